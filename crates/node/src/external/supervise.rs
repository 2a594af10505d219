//! One task per external process: it starts the process, asks whether it is well, and starts it again when it ends,
//! hangs or answers garbage, until nobody wants it any more.

use std::collections::BTreeMap;
use std::os::unix::fs::{MetadataExt as _, lchown};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Instant;

use api::{Code, Problem};
use model::observed::Reason;
use model::rules::external::{self, PREFIX};
use model::{AppName, ComponentName, Digest, ProviderName, ProviderSpec, Revision, SecretName, TenantName};
use sandbox::{Spec, View};
use serde::Serialize;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use zeroize::Zeroizing;

use super::places::{PROGRAMS, Place};
use super::process::Process;
use super::words::{self, Words};
use super::{ExternalEvent, Program, SOCKET, Shared, State, health};
use crate::artifacts::make_dir;
use crate::confine::Who;
use crate::supervisor::Backoff;

/// What a unix socket's path may have, bytes.
const MAX_SOCKET_PATH: usize = 107;

/// A process that hung up has ended within this time, or has not ended.
const ENDING: std::time::Duration = std::time::Duration::from_millis(100);

pub(super) struct Supervisor {
    pub(super) shared: Arc<Shared>,
    pub(super) tenant: TenantName,
    pub(super) app: AppName,
    pub(super) revision: Revision,
    pub(super) provider: ProviderName,
    pub(super) spec: ProviderSpec,
    pub(super) fingerprint: Digest,
    pub(super) dir: PathBuf,
    pub(super) owner: Arc<AtomicU32>,
    pub(super) tell: watch::Sender<State>,
    pub(super) stop: CancellationToken,
}

/// How one life of the process ended.
enum End {
    /// Nobody wants it any more.
    Stopped,
    /// A secret it was handed has another value: it is started again at once, which counts as nothing.
    Renewed,
    Ended(String),
}

/// Makes a folder and all that is in it a user's, where it is somebody else's: an earlier one may have been kept by a process of
/// the platform's user. While a process of that user runs it is that user's already, so nobody moves what is looked at.
fn give(dir: &Path, owner: u32) -> std::io::Result<()> {
    if std::fs::symlink_metadata(dir)?.uid() == owner {
        return Ok(());
    }
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            give(&entry.path(), owner)?;
        } else {
            lchown(entry.path(), Some(owner), Some(owner))?;
        }
    }
    // Last, so that what was begun is gone on with.
    lchown(dir, Some(owner), Some(owner))
}

/// The first line of the process's stdin.
#[derive(Serialize)]
struct Settings<'a> {
    /// Of this line.
    version: u32,
    /// Where to listen.
    socket: &'a str,
    /// What to answer.
    contract: &'a str,
    /// A directory of its own, kept from start to start.
    data: &'a str,
    tenant: &'a TenantName,
    app: &'a AppName,
    provider: &'a ProviderName,
    /// What the app hands to it, secrets among it.
    config: BTreeMap<&'a str, &'a str>,
}

/// The versions of the secrets it was handed.
type Versions = BTreeMap<SecretName, u64>;

impl Supervisor {
    pub(super) async fn run(self, turn: Arc<tokio::sync::Mutex<()>>) {
        // One that is still ending has the same directory.
        let _turn = turn.lock().await;
        let program = match self.shared.program(&self.provider, &self.spec) {
            Ok(program) => program.clone(),
            Err(reason) => {
                self.tell.send_replace(State::Degraded(reason.clone()));
                self.event(Some(reason));
                self.stop.cancelled().await;
                self.event(None);
                return;
            }
        };
        let Some(_place) = self.place().await else { return };
        let mut backoff = Backoff::default();
        let mut ailing = false;
        loop {
            let how = match self.live(&program, &mut ailing).await {
                End::Stopped => break,
                End::Renewed => {
                    self.tell.send_replace(State::Starting(None));
                    continue;
                }
                End::Ended(how) => how,
            };
            let pause = backoff.after_end(Instant::now());
            let reason = self.reason(&how);
            let (tenant, app, provider) = (&self.tenant, &self.app, &self.provider);
            tracing::warn!(%tenant, %app, %provider, reason = %reason.message, wait = ?pause.wait, "an external provider ended");
            if pause.degraded {
                ailing = true;
                self.tell.send_replace(State::Degraded(reason.clone()));
                self.event(Some(reason));
            } else {
                self.tell.send_replace(State::Starting(Some(reason)));
            }
            tokio::select! {
                () = tokio::time::sleep(pause.wait) => {}
                () = self.stop.cancelled() => break,
            }
        }
        self.event(None);
        self.shared.config.confinement.release(self.who()).await;
        if let Err(cause) = std::fs::remove_dir_all(&self.dir) {
            tracing::debug!(dir = %self.dir.display(), %cause, "an external provider's directory stays behind");
        }
        // Not of a tenant that is gone.
        if let Some(tenancy) = super::lock(&self.shared.tenants).get(&self.tenant) {
            tenancy.gone(&self.dir);
        }
    }

    /// A place among those of its tenant; `None` where it is wanted no more before there is one.
    async fn place(&self) -> Option<Place> {
        let places = self.shared.tenancy(&self.tenant).places.clone();
        let of = (self.app.clone(), self.provider.clone());
        if let Some(place) = places.try_take(&of) {
            return Some(place);
        }
        let reason = self.reason(&format!("waits: its tenant has {PROGRAMS} programs that run, and may have no more"));
        let reason = Reason { help: Some("remove providers that are not needed".to_owned()), ..reason };
        self.tell.send_replace(State::Degraded(reason.clone()));
        self.event(Some(reason));
        let place = tokio::select! {
            place = places.take(&of) => Some(place),
            () = self.stop.cancelled() => None,
        };
        self.event(None);
        self.tell.send_replace(State::Starting(None));
        place
    }

    /// Why what its tenant's programs keep is too much, if it is.
    async fn over(&self) -> Option<String> {
        self.shared.tenancy(&self.tenant).over(&self.shared.config.data_dir).await
    }

    /// One life of the process, from its start to its end.
    async fn live(&self, program: &Program, ailing: &mut bool) -> End {
        if self.stop.is_cancelled() {
            return End::Stopped;
        }
        let tenancy = self.shared.tenancy(&self.tenant);
        tenancy.writes(&self.dir);
        tenancy.writes(&self.shared.config.data_dir.join(self.tenant.as_str()));
        let over = tokio::select! {
            over = self.over() => over,
            () = self.stop.cancelled() => return End::Stopped,
        };
        if let Some(over) = over {
            return End::Ended(format!("is not started, {over}"));
        }
        let config = &self.shared.config;
        let changes = config.secrets.changed(&self.tenant, 0);
        // The number to wait from is taken before the values: a change in between starts it once more.
        let seen = tokio::time::timeout(std::time::Duration::ZERO, changes).await.unwrap_or_default();
        let spec = match self.confined(program) {
            Ok(spec) => spec,
            Err(how) => return End::Ended(how),
        };
        let (settings, versions) = match self.settings().await {
            Ok(settings) => settings,
            Err(how) => return End::Ended(how),
        };
        let data = self.data();
        let words = Words {
            logs: config.logs.clone(),
            tenant: self.tenant.clone(),
            app: self.app.clone(),
            revision: self.revision,
            component: self.provider.as_str().parse::<ComponentName>().ok(),
            rate: std::sync::Mutex::new(words::rate()),
            last: Default::default(),
        };
        let before = config.confinement.held(self.who());
        let started = Process::start(&config.exe, &spec, &program.path, &data, settings, words);
        let mut process = match started {
            Ok(process) => process,
            Err(cause) => return End::Ended(format!("cannot be started: {cause}")),
        };
        config.confinement.started(self.who());
        let mut end = self.while_it_runs(&mut process, seen, &versions, ailing).await;
        if let End::Ended(how) = &mut end
            && config.confinement.held(self.who()).out_of_memory > before.out_of_memory
        {
            how.push_str(": it had used all the memory that a program, or all of its tenant together, may");
        }
        match &end {
            // Whoever comes now waits for the next one.
            End::Ended(_) => {
                self.tell.send_replace(State::Starting(None));
                process.kill().await;
            }
            End::Renewed | End::Stopped => {
                self.tell.send_replace(State::Starting(None));
                process.stop(config.pace.end).await;
            }
        }
        end
    }

    async fn while_it_runs(&self, process: &mut Process, seen: u64, versions: &Versions, ailing: &mut bool) -> End {
        let pace = &self.shared.config.pace;
        let begun = Instant::now();
        // Beside all questions: how long it takes to answer one is its own to say, and it may never be ready.
        let over = async {
            loop {
                tokio::time::sleep(pace.every).await;
                if let Some(over) = self.over().await {
                    return over;
                }
            }
        };
        tokio::pin!(over);
        let ready = tokio::select! {
            ready = tokio::time::timeout(pace.ready, self.first_answer()) => ready,
            how = process.ended() => return End::Ended(format!("was not ready yet and {how}")),
            over = &mut over => return End::Ended(format!("was ended, {over}")),
            () = self.stop.cancelled() => return End::Stopped,
        };
        if ready.is_err() {
            let last = self.ask().await.err().unwrap_or_default();
            return End::Ended(format!("was not ready after {:?}: {last}", pace.ready));
        }
        let (tenant, app, provider) = (&self.tenant, &self.app, &self.provider);
        tracing::info!(%tenant, %app, %provider, pid = process.pid(), elapsed = ?begun.elapsed(), "an external provider is ready");
        self.tell.send_replace(State::Ready);
        let ready_at = Instant::now();
        let renewed = self.renewed(seen, versions);
        tokio::pin!(renewed);
        loop {
            if *ailing && ready_at.elapsed() >= pace.calm {
                *ailing = false;
                self.event(None);
            }
            let next = async {
                tokio::time::sleep(pace.every).await;
                self.ask().await
            };
            tokio::select! {
                biased;
                () = self.stop.cancelled() => return End::Stopped,
                how = process.ended() => return End::Ended(how),
                () = &mut renewed => return End::Renewed,
                over = &mut over => return End::Ended(format!("was ended, {over}")),
                well = next => match well {
                    Ok(()) => {}
                    // It may have ended by itself in this moment.
                    Err(how) => return match tokio::time::timeout(ENDING, process.ended()).await {
                        Ok(how) => End::Ended(how),
                        Err(_) => End::Ended(format!("was killed: it {how}")),
                    },
                },
            }
        }
    }

    /// Whether it answers as its contract says.
    async fn ask(&self) -> Result<(), String> {
        let question = health::question(self.contract());
        health::ask(
            &self.dir.join(SOCKET),
            self.owner.load(Ordering::Relaxed),
            question,
            self.shared.config.pace.answer,
        )
        .await
    }

    fn contract(&self) -> &str {
        self.spec.config.get(external::CONTRACT).map_or("", String::as_str)
    }

    async fn first_answer(&self) {
        let mut pause = std::time::Duration::from_millis(5);
        while let Err(cause) = self.ask().await {
            tracing::trace!(%cause, "an external provider is not ready yet");
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(std::time::Duration::from_millis(50));
        }
    }

    /// Ends when a secret it was handed has another value.
    async fn renewed(&self, mut seen: u64, versions: &Versions) {
        if versions.is_empty() {
            return std::future::pending().await;
        }
        let secrets = &self.shared.config.secrets;
        loop {
            seen = secrets.changed(&self.tenant, seen).await;
            for (name, version) in versions {
                // One that is gone or cannot be read now changes nothing: the process has what it was handed.
                if let Ok(Some(found)) = secrets.reveal(&self.tenant, name).await
                    && found.mark != *version
                {
                    return;
                }
            }
        }
    }

    /// What it keeps.
    fn data(&self) -> PathBuf {
        let of_tenant = self.shared.config.data_dir.join(self.tenant.as_str());
        of_tenant.join(self.app.as_str()).join(self.provider.as_str())
    }

    fn who(&self) -> Who<'_> {
        let name = self.dir.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        Who::External(&self.tenant, name.rsplit('.').next().unwrap_or(name))
    }

    /// How it is confined; makes its directories, and gives them to its user.
    fn confined(&self, program: &Program) -> Result<Spec, String> {
        let config = &self.shared.config;
        let data = self.data();
        for dir in [&self.dir, &data] {
            make_dir(dir).map_err(|cause| format!("cannot have {}: {cause}", dir.display()))?;
        }
        // Its own file too, also where its name is a link.
        let file = program.path.canonicalize().ok();
        // Where names are resolved is often said outside of the system's own folders.
        let names = program.network.then(|| Path::new("/etc/resolv.conf").canonicalize().ok()).flatten();
        let read = program.read.iter().chain([&program.path]).chain(&file).chain(&names).cloned().collect();
        let view = View {
            read,
            write: vec![data.clone(), self.dir.clone()],
            hide: config.hide.clone(),
            network: program.network,
            largest: self.shared.tenancy(&self.tenant).most(),
        };
        let spec = config.confinement.program(self.who(), view);
        let spec = spec.map_err(|cause| format!("cannot be confined: {cause}"))?;
        let owner = spec.uid.unwrap_or_else(|| rustix::process::geteuid().as_raw());
        for dir in [&self.dir, &data] {
            give(dir, owner).map_err(|cause| format!("cannot be given {}: {cause}", dir.display()))?;
        }
        self.owner.store(owner, Ordering::Relaxed);
        Ok(spec)
    }

    /// Makes what is handed to it.
    async fn settings(&self) -> Result<(Zeroizing<Vec<u8>>, Versions), String> {
        let config = &self.shared.config;
        let data = self.data();
        let socket = self.dir.join(SOCKET);
        let long = socket.as_os_str().len() > MAX_SOCKET_PATH;
        let text = |path: &std::path::Path| path.to_str().map(str::to_owned);
        let (Some(path), Some(data), false) = (text(&socket), text(&data), long) else {
            return Err(format!("cannot listen at {}: choose a shorter data directory", socket.display()));
        };
        match std::fs::remove_file(&socket) {
            Err(cause) if cause.kind() != std::io::ErrorKind::NotFound => {
                return Err(format!("cannot listen at {path}: {cause}"));
            }
            _ => {}
        }
        let mut versions = Versions::new();
        let mut secrets = Vec::new();
        for (key, named) in self.spec.secrets.iter().filter(|(key, _)| external::is_own(key)) {
            let name = &named.secret;
            let found = config.secrets.reveal(&self.tenant, name).await;
            let found = found.map_err(|cause| format!("cannot have the secret `{name}`: {cause}"))?;
            let found = found.ok_or_else(|| format!("needs the secret `{name}`, which the tenant does not have"))?;
            versions.insert(name.clone(), found.mark);
            secrets.push((key, name, found.value));
        }
        let mut handed = BTreeMap::new();
        for (key, name, value) in &secrets {
            let value =
                value.expose_text().ok_or_else(|| format!("cannot be handed the secret `{name}`: it is no text"))?;
            handed.insert(key.strip_prefix(PREFIX).unwrap_or(key), value);
        }
        for (key, value) in self.spec.config.iter().filter(|(key, _)| external::is_own(key)) {
            handed.insert(key.strip_prefix(PREFIX).unwrap_or(key), value);
        }
        let settings = Settings {
            version: 1,
            socket: &path,
            contract: self.contract(),
            data: &data,
            tenant: &self.tenant,
            app: &self.app,
            provider: &self.provider,
            config: handed,
        };
        // Large enough that no half-written copy of a secret is left behind where the text grew.
        let room = secrets.iter().map(|(_, _, value)| value.expose().len() * 6).sum::<usize>() + (640 << 10);
        let mut line = Zeroizing::new(Vec::with_capacity(room));
        serde_json::to_writer(&mut *line, &settings)
            .map_err(|cause| format!("cannot be handed its settings: {cause}"))?;
        line.push(b'\n');
        Ok((line, versions))
    }

    fn reason(&self, how: &str) -> Reason {
        let program = external::program(&self.spec).unwrap_or_default();
        let what = format!(
            "external provider `{}` of {}/{} (program `{program}`) {how}",
            self.provider, self.tenant, self.app
        );
        let help = format!("`sidereal logs {}` has what it wrote; it is started again and again", self.app);
        Problem::new(Code::ProviderUnavailable, what).help(help).reason()
    }

    fn event(&self, ailing: Option<Reason>) {
        let event = ExternalEvent {
            tenant: self.tenant.clone(),
            app: self.app.clone(),
            provider: (self.provider.clone(), self.fingerprint),
            ailing,
        };
        if self.shared.config.events.send(event).is_err() {
            tracing::debug!("nobody listens to external providers any more");
        }
    }
}
