//! `up`: control plane, node and ingress in this process, hosts as its children, until a signal says stop.

use std::fs::{self, File};
use std::io::{Read as _, Seek as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use anyhow::Context as _;
use api::client::{ControlClient, Require};
use api::{Code, Problem};
use control::{Audit, Control, ControlConfig, ControlError, MoveWaits};
use model::NodeName;
use model::claims::keys::KeyKind;
use model::tenant::TenantSettings;
use node::confine::{Confinement, Wanted};
use node::dialer::{Nameserver, Resolve};
use node::otlp::{OtlpConfig, OtlpError};
use node::{AdminConfig, Node, NodeConfig, Storage};
use store::Store;
use store::blobs::Blobs;
use store::data::DataEngine;
use store::redb::RedbStore;
use store::secrets::Secrets;

use crate::args::{Listen, Up};
use crate::commands::config::environment;
use crate::commands::ready::{Ready, greeting, the_demo};
use crate::commands::why::{self, sealed, storage, storage_text};
use crate::context::{Context, connect, refused};
use crate::home::Running;
use crate::{demo, keys, programs, secret_files};

/// What hosts and the node's own tasks have beyond the calls' time when the platform stops.
const LAST: Duration = Duration::from_secs(4);

/// How long an artifact stays that no revision names: `plan` sends them too, and a deploy may follow.
const KEEP_UNNAMED: Duration = Duration::from_secs(3600);

/// `sidereal up`
///
/// # Errors
/// When it runs already, or something it needs is taken, full or damaged.
pub async fn up(context: &Context, args: Up) -> anyhow::Result<()> {
    let begun = Instant::now();
    let signal = telemetry::shutdown_signal().context("cannot wait for signals")?;
    let refused = |cause: OtlpError| {
        Problem::new(Code::RequestInvalid, cause.to_string()).help("`docs/observability.md` has what is understood")
    };
    let otlp = OtlpConfig::from_env().map_err(refused)?;
    let programs = programs::named(&args)?;
    let env = environment(&args.config_env, &args.config_env_prefix, std::env::vars_os())?;
    context.home.create()?;
    let lock = lock(context)?;
    let since_ms = now_ms();
    let token = context.home.token(true)?;
    keys::ensure(&context.home, keys::OPERATOR, KeyKind::Operator)?;
    let account = keys::ensure(&context.home, keys::ACCOUNT, KeyKind::Account)?.public_key();

    let store: Arc<dyn Store> = RedbStore::open(context.home.store()).map_err(storage)?;
    let blobs = Blobs::open(context.home.blobs()).map_err(|cause| storage_text(cause.to_string()))?;
    let data = DataEngine::open(context.home.data()).map_err(|cause| storage_text(cause.to_string()))?;
    let secrets = Secrets::open(store.clone(), &context.home.keys()).await.map_err(sealed)?;
    let audit = Arc::new(Audit::start(context.home.audit(), store.clone()).await.map_err(why::control)?);
    seed_tenant(context, &args, &store, &audit, &account).await?;
    secret_files::follow(&secrets, &audit, &context.tenant, &args.secret_files).await?;
    let storage = Storage { store, blobs, data, secrets };

    let name: NodeName = "local".parse()?;
    let exe = std::env::current_exe().context("cannot find this program's own file")?;
    let home = context.home.dir();
    let confinement = confine(context, &args, &exe).await?;
    if confinement.gives_users() {
        programs::open_to_others(&programs)?;
    }
    for (name, _) in programs.iter().filter(|(_, program)| program.network) {
        context
            .out
            .warn(&format!("the external program `{name}` has the machine's network: no egress policy decides there"));
    }
    let config = NodeConfig::new(name.clone(), home, exe, confinement, storage.clone(), args.listen);
    let admin = admin(context, &args);
    let run_dir = context.home.run_dir()?;
    let code_budget = Some(args.code_budget.0);
    let resolver = args.resolver.map(|address| Arc::new(Nameserver::new(address)) as Arc<dyn Resolve>);
    let config = NodeConfig { run_dir, code_budget, admin, otlp, resolver, programs, ..config };
    let node = Node::start(config).await.map_err(why::node)?;
    let control = start_control(context, args.api_listen, |listen| ControlConfig {
        listen,
        token: token.clone(),
        node: name.clone(),
        audit: audit.clone(),
        store: storage.store.clone(),
        blobs: storage.blobs.clone(),
        secrets: storage.secrets.clone(),
        nodes: node.clone(),
        env: env.clone(),
        allowed_hosts: args.api_names.clone(),
        keep_unnamed: KEEP_UNNAMED,
        move_waits: MoveWaits::default(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
    })
    .await?;
    let running = Running {
        api: format!("http://{}", called(control.addr())),
        ingress: node.ingress().to_string(),
        metrics: node.admin().map(|address| format!("http://{address}/metrics")),
        pid: std::process::id(),
        since_ms,
    };
    if let (Listen::At(wished), Some(got)) = (args.metrics_listen, node.admin()) {
        say_moved(context, "metrics listener", wished, got);
    }
    say_moved(context, "ingress", args.listen, node.ingress());
    if !control.addr().ip().is_loopback() {
        context.out.warn(&format!(
            "the API listens on {} without TLS: whoever reads that network reads the tokens that are sent to it",
            control.addr()
        ));
    }
    // The lock first: whoever finds the announcement asks the lock whether it is true.
    write_lock(&lock, &running)?;
    context.home.announce(&running)?;

    let getting_ready = async {
        // The ready line means that what ran before answers again.
        if !node.settled(Duration::from_secs(10)).await {
            context.out.warn("some apps are still starting; `sidereal status` names them");
        }
        get_ready(context, &args, &running, &token, begun).await
    };
    // Whoever wants it to stop need not wait until it is ready.
    let outcome = match signal.run_until_cancelled(getting_ready).await {
        None => {
            context.out.note("stopping before it was ready");
            Ok(())
        }
        Some(Ok(ready)) => {
            // A ready line nobody can read ends nothing: `sidereal up >/dev/full` goes on and stops as it should.
            context.out.announce(&ready, || greeting(context, &ready, args.demo));
            signal.cancelled().await;
            context.out.note("stopping: finishing the calls in flight (Ctrl-C again waits for none)");
            Ok(())
        }
        Some(Err(error)) => Err(error),
    };
    context.home.retract();
    // The control plane first: that its only node leaves now is no news.
    control.shutdown().await;
    let cut = node.end(args.drain.duration(), args.drain.duration() + LAST).await;
    if cut > 0 {
        let calls = if cut == 1 { "1 call was".to_owned() } else { format!("{cut} calls were") };
        context.out.warn(&format!("{calls} in flight still after {}, and cut; `--drain` gives longer", args.drain));
    }
    drop(lock);
    outcome
}

/// How what the node starts is confined. Only a demo goes on with less than everything unasked.
async fn confine(context: &Context, args: &Up, exe: &Path) -> anyhow::Result<Arc<Confinement>> {
    let mut waiver = args.waive.clone().unwrap_or_default();
    waiver.missing |= args.demo;
    let confinement = Confinement::establish(&Wanted {
        exe: exe.to_owned(),
        data_dir: context.home.dir().to_owned(),
        waiver,
        uids: args.uid_range,
        user: None,
        join: Vec::new(),
        command: "sidereal up --waive".to_owned(),
    })
    .await?;
    let waived = confinement.waived();
    if !waived.is_empty() {
        let names: Vec<&str> = waived.keys().map(String::as_str).collect();
        context.out.warn(&format!(
            "tenants are not isolated by {}: run only components you trust (`sidereal doctor` says why)",
            names.join(", ")
        ));
    }
    Ok(confinement)
}

/// Where monitoring listens, and whose sizes it tells.
fn admin(context: &Context, args: &Up) -> Option<AdminConfig> {
    let Listen::At(listen) = args.metrics_listen else { return None };
    let files = vec![("state", context.home.store()), ("data", context.home.data())];
    Some(AdminConfig { listen, fallback: true, files })
}

async fn get_ready(
    context: &Context,
    args: &Up,
    running: &Running,
    token: &str,
    begun: Instant,
) -> anyhow::Result<Ready> {
    let client = connect(running, token)?;
    apply_flags(context, args, &client).await?;
    let app = if args.demo { the_demo(context, &client).await? } else { None };
    Ok(Ready {
        api: running.api.clone(),
        ingress: running.ingress.clone(),
        metrics: running.metrics.clone(),
        pid: running.pid,
        ms: u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX),
        app,
    })
}

/// `doctor` has the lock for a moment to see that nobody has: so often it is tried again, after so long each.
const SHARED: u32 = 10;
const LOOK: Duration = Duration::from_millis(20);

/// One platform per data directory: whoever holds the lock runs.
fn lock(context: &Context) -> anyhow::Result<File> {
    let path = context.home.lock_file();
    let mut file = fs::OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&path)
        .with_context(|| format!("cannot open {}", path.display()))?;
    let mut tried = file.try_lock();
    for _ in 0..SHARED {
        if !matches!(tried, Err(fs::TryLockError::WouldBlock)) {
            break;
        }
        std::thread::sleep(LOOK);
        tried = file.try_lock();
    }
    match tried {
        Ok(()) => {
            // What it says is of a run that is over.
            file.set_len(0).with_context(|| format!("cannot write {}", path.display()))?;
            Ok(file)
        }
        Err(fs::TryLockError::WouldBlock) => {
            let mut text = String::new();
            drop(file.read_to_string(&mut text));
            Err(already(serde_json::from_str(&text).ok(), context).into())
        }
        Err(fs::TryLockError::Error(cause)) => Err(cause).with_context(|| format!("cannot lock {}", path.display())),
    }
}

fn already(running: Option<Running>, context: &Context) -> Problem {
    let dir = context.home.dir().display();
    match running {
        Some(running) => {
            let since = i64::try_from(running.since_ms).ok().and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok());
            let since = since.map_or_else(String::new, |t| {
                format!(", since {}", t.to_zoned(jiff::tz::TimeZone::system()).strftime("%Y-%m-%d %H:%M:%S"))
            });
            Problem::new(
                Code::Conflict,
                format!(
                    "already running: pid {}{since}, API {}, ingress http://{}",
                    running.pid, running.api, running.ingress
                ),
            )
            .help("`sidereal status` shows what it runs; another one needs another --data-dir")
        }
        None => Problem::new(Code::Conflict, format!("another `sidereal up` is starting in {dir}"))
            .help("wait a moment, then `sidereal status`"),
    }
}

fn write_lock(mut lock: &File, running: &Running) -> anyhow::Result<()> {
    lock.set_len(0)?;
    lock.rewind()?;
    lock.write_all(serde_json::to_string(running)?.as_bytes()).context("cannot write the lock file")
}

/// The tenant of this machine, on first start: it trusts this machine's account key, and its apps may have every host.
async fn seed_tenant(
    context: &Context,
    args: &Up,
    store: &Arc<dyn Store>,
    audit: &Audit,
    account: &str,
) -> anyhow::Result<()> {
    let key = store::keys::tenant(&context.tenant);
    if store.get(&key).await.map_err(storage)?.is_some() {
        return Ok(());
    }
    if store.get(&store::keys::gone(&context.tenant)).await.map_err(storage)?.is_some() {
        let text = format!("the tenant `{}` was deleted, and its name is not used again", context.tenant);
        return Err(Problem::new(Code::Conflict, text).help("name another one: `sidereal up --tenant NAME`").into());
    }
    let (trust_anchors, hosts) = (vec![account.to_owned()], vec![model::hosts::ANY.to_owned()]);
    let mut settings = TenantSettings { trust_anchors, hosts, ..TenantSettings::default() };
    if let Some(shards) = args.shards {
        let may = TenantSettings::SHARDS;
        if !may.contains(&shards) {
            let text = format!("--shards is {shards}; it is {} to {}", may.start(), may.end());
            return Err(Problem::new(Code::RequestInvalid, text).help("choose another number").into());
        }
        settings.shards = shards;
    }
    let value = serde_json::to_vec(&settings)?;
    let make = async {
        match store.put(&key, value.into(), store::Expect::Absent, None).await {
            Ok(_) | Err(store::StoreError::Conflict { .. }) => Ok(()),
            Err(other) => Err(storage(other)),
        }
    };
    audit.platform(&context.tenant, "makes the tenant at its first start".to_owned(), make).await
}

/// What the flags ask of the tenant, through the API like everybody's changes.
async fn apply_flags(context: &Context, args: &Up, client: &ControlClient) -> anyhow::Result<()> {
    let view = client.tenant(&context.tenant).await.map_err(refused)?;
    let mut settings = view.settings.clone();
    if args.demo && !settings.trust_anchors.iter().any(|key| key == demo::signer()) {
        settings.trust_anchors.push(demo::signer().to_owned());
    }
    // The flag switches the policy on; switching it off again is said by name (`tenant-settings set`).
    settings.allow_unsigned |= args.allow_unsigned;
    settings.shards = args.shards.unwrap_or(settings.shards);
    for range in &args.allow_egress {
        if !settings.egress.contains(range) {
            settings.egress.push(range.clone());
        }
    }
    if settings != view.settings {
        client.put_tenant(&context.tenant, &settings, Require::At(view.etag)).await.map_err(refused)?;
    }
    if settings.allow_unsigned {
        context.out.warn("unsigned components run: for development only; off with `sidereal tenant-settings set --allow-unsigned false`");
    }
    Ok(())
}

/// Starts the control plane at `listen`, or at another port of that address where it is taken.
async fn start_control(
    context: &Context,
    listen: SocketAddr,
    config: impl Fn(SocketAddr) -> ControlConfig,
) -> anyhow::Result<Control> {
    let started = match Control::start(config(listen)).await {
        Err(ControlError::Listen { cause, .. }) if cause.kind() == std::io::ErrorKind::AddrInUse => {
            Control::start(config(SocketAddr::new(listen.ip(), 0))).await
        }
        other => other,
    };
    let control = started.map_err(why::control)?;
    say_moved(context, "API", listen, control.addr());
    Ok(control)
}

/// The address that this machine calls a listener by: one that listens everywhere has no name of its own.
fn called(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, address.port())
}

fn say_moved(context: &Context, what: &str, wished: SocketAddr, got: SocketAddr) {
    if wished.port() != 0 && wished != got {
        context.out.warn(&format!("port {} is taken: the {what} listens on {got}", wished.port()));
    }
}

fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::home::Holder;

    #[test]
    fn whoever_starts_is_not_taken_for_the_run_before() {
        use clap::Parser as _;
        let dir = tempfile::tempdir().unwrap();
        let home = dir.path().to_string_lossy().into_owned();
        let cli = crate::args::Cli::try_parse_from(["sidereal", "--data-dir", &home, "up"]).unwrap();
        let context = Context::new(&cli.global, true).unwrap();
        let before = r#"{"api":"http://127.0.0.1:1","ingress":"127.0.0.1:2","pid":3,"since_ms":4}"#;
        fs::write(context.home.lock_file(), before).unwrap();
        let held = lock(&context).unwrap();
        let said = lock(&context).unwrap_err().to_string();
        assert!(said.contains("is starting"), "{said}");
        drop(held);
    }

    #[test]
    fn the_lock_says_who_runs_here() {
        use clap::Parser as _;
        let dir = tempfile::tempdir().unwrap();
        let home = dir.path().to_string_lossy().into_owned();
        let cli = crate::args::Cli::try_parse_from(["sidereal", "--data-dir", &home, "up"]).unwrap();
        let context = Context::new(&cli.global, true).unwrap();
        assert!(matches!(context.home.holder(), Holder::Nobody), "there is no lock");
        let (api, ingress) = ("http://127.0.0.1:1".to_owned(), "127.0.0.1:2".to_owned());
        let running = Running { api, ingress, metrics: None, pid: std::process::id(), since_ms: 4 };
        let held = lock(&context).unwrap();
        assert!(matches!(context.home.holder(), Holder::Unsaid));
        write_lock(&held, &running).unwrap();
        assert!(matches!(context.home.holder(), Holder::Platform(said) if said.since_ms == 4));
        // What it leaves says nothing, though a process of that number is there.
        context.home.announce(&running).unwrap();
        assert_eq!(context.home.running().unwrap().api, running.api);
        drop(held);
        assert!(matches!(context.home.holder(), Holder::Nobody));
        let why = |error: anyhow::Error| error.downcast::<Problem>().unwrap();
        let nobody = why(context.home.running().unwrap_err());
        assert!(nobody.code == Code::Unreachable && nobody.detail.starts_with("nothing runs here"), "{nobody}");
        // The next one, until it has said where it answers.
        let next = lock(&context).unwrap();
        assert!(why(context.home.running().unwrap_err()).detail.ends_with("is starting"));
        drop(next);
    }
}
