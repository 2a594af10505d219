//! Processes of external providers: real programs, started, asked, killed and started again.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use api::node::LogQuery;
use api::services::{External, FileFault};
use futures::StreamExt;
use model::secret::SecretValue;
use model::unit::ByteSize;
use model::{AppName, ProviderKind, ProviderName, ProviderSpec, Revision, SecretRef, TenantName};
use node::confine::Confinement;
use node::external::{ExternalConfig, ExternalEvent, Externals, Lease, Pace, Program};
use node::logs::Logs;
use store::Expect;
use store::redb::RedbStore;
use store::secrets::Secrets;
use tokio::net::UnixStream;
use tokio::sync::mpsc;

/// Answers the question whether it is well, and behaves as files in its directory say.
const PROGRAM: &str = r#"#!/usr/bin/python3 -I
import json, os, socket, sys, time
handed = json.loads(sys.stdin.readline())
data = handed["data"]
told = lambda what: os.path.exists(data + "/" + what)
with open(data + "/pids", "a") as pids: pids.write(f"{os.getpid()}\n")
if told("broken"): sys.exit("it has no licence")
with open("/proc/self/environ") as env, open(data + "/handed.partial", "w") as file:
    file.write(json.dumps({"handed": handed, "argv": sys.argv, "env": env.read(), "cwd": os.getcwd()}))
os.rename(data + "/handed.partial", data + "/handed")
print("it says hello", flush=True)
listener = socket.socket(socket.AF_UNIX)
listener.bind(handed["socket"])
listener.listen()
while True:
    call, _ = listener.accept()
    while told("hang"): time.sleep(0.05)
    try:
        call.recv(4096)
        call.sendall(b"nonsense" if told("garbage") else b"\0\2\0\0")
        call.close()
    except OSError: pass
"#;

/// What stands between node and program is the binary's; here, what is left of it without any confinement.
const BETWEEN: &str = r#"#!/usr/bin/python3 -I
import os, signal, socket, sys, threading
line = socket.socket(fileno=0)
_, (stdin,), _, _ = socket.recv_fds(line, 1, 1)
program, dir = sys.argv[sys.argv.index("--program") + 1], sys.argv[sys.argv.index("--dir") + 1]
child = os.fork()
if child == 0:
    os.dup2(stdin, 0)
    os.chdir(dir)
    os.execve(program, [program], {})
os.close(stdin)
def told():
    while line.recv(1) == b"e": os.kill(child, signal.SIGTERM)
    os.kill(child, signal.SIGKILL)
threading.Thread(target=told, daemon=True).start()
_, status = os.waitpid(child, 0)
code = os.waitstatus_to_exitcode(status)
os._exit(code if code >= 0 else 128 - code)
"#;

const PACE: Pace = Pace {
    ready: Duration::from_secs(60),
    every: Duration::from_millis(100),
    answer: Duration::from_secs(8),
    calm: Duration::from_millis(500),
    end: Duration::from_secs(2),
};

/// For what happens soon, also on a slow machine with much to do.
const PATIENCE: Duration = Duration::from_secs(60);

/// How soon a program that ended is to be started again.
const RESTARTED: Duration = Duration::from_secs(1);

struct Rig {
    dir: tempfile::TempDir,
    secrets: Arc<Secrets>,
    logs: Arc<Logs>,
    externals: Arc<Externals>,
    events: mpsc::UnboundedReceiver<ExternalEvent>,
}

fn tenant() -> TenantName {
    "t".parse().unwrap()
}

fn app() -> AppName {
    "a".parse().unwrap()
}

fn kv() -> ProviderName {
    "kv".parse().unwrap()
}

fn executable(path: &Path, text: &str) {
    std::fs::write(path, text).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o700)).unwrap();
}

fn spec(program: &str) -> ProviderSpec {
    let settings = [("program", program), ("contract", "wasi:keyvalue"), ("config.colour", "blue")];
    let config = settings.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    ProviderSpec { config, ..ProviderSpec::new(ProviderKind::External) }
}

impl Rig {
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let exe = dir.path().join("exe");
        executable(&exe, BETWEEN);
        let program = dir.path().join("program");
        executable(&program, PROGRAM);
        let store = RedbStore::open(dir.path().join("store.redb")).unwrap();
        let secrets = Secrets::open(store, &dir.path().join("keys")).await.unwrap();
        let logs = Arc::new(Logs::default());
        let (tell, events) = mpsc::unbounded_channel();
        let config = ExternalConfig {
            exe,
            confinement: Confinement::bare(),
            hide: Vec::new(),
            programs: [("good", program), ("nothing", "/bin/true".into())]
                .map(|(name, path)| (name.parse().unwrap(), Program::at(path)))
                .into(),
            run_dir: dir.path().join("run"),
            data_dir: dir.path().join("data"),
            secrets: secrets.clone(),
            logs: logs.clone(),
            events: tell,
            pace: PACE,
        };
        Self { externals: Externals::new(config), dir, secrets, logs, events }
    }

    async fn keep(&self, name: &str, value: &str) {
        let value = SecretValue::new(value.as_bytes().to_vec());
        self.secrets.set(&tenant(), &name.parse().unwrap(), &value, Expect::Any).await.unwrap();
    }

    fn lease(&self, spec: &ProviderSpec) -> Lease {
        self.externals.lease(&tenant(), &app(), Revision(1), &kv(), spec)
    }

    async fn connect(&self, spec: &ProviderSpec) -> Result<UnixStream, FileFault> {
        let wanted = External { app: app(), provider: kv(), spec: spec.fingerprint() };
        self.externals.connect(&tenant(), &wanted).await
    }

    /// Waits until it can be connected to.
    async fn ready(&self, spec: &ProviderSpec) {
        let begun = Instant::now();
        while let Err(cause) = self.connect(spec).await {
            assert!(begun.elapsed() < PATIENCE, "{cause}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    fn data(&self, name: &str) -> PathBuf {
        self.dir.path().join("data/t/a/kv").join(name)
    }

    /// The processes there were, oldest first.
    fn pids(&self) -> Vec<i32> {
        let text = std::fs::read_to_string(self.data("pids")).unwrap_or_default();
        text.lines().map(|line| line.parse().unwrap()).collect()
    }

    async fn starts(&self, count: usize) {
        let begun = Instant::now();
        while self.pids().len() < count {
            assert!(begun.elapsed() < PATIENCE, "{:?}", self.pids());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    fn handed(&self) -> serde_json::Value {
        serde_json::from_slice(&std::fs::read(self.data("handed")).unwrap()).unwrap()
    }

    async fn event(&mut self) -> ExternalEvent {
        tokio::time::timeout(PATIENCE, self.events.recv()).await.unwrap().unwrap()
    }
}

fn is_there(pid: i32) -> bool {
    rustix::process::test_kill_process(rustix::process::Pid::from_raw(pid).unwrap()).is_ok()
}

fn kill(pid: i32) {
    rustix::process::kill_process(rustix::process::Pid::from_raw(pid).unwrap(), rustix::process::Signal::KILL).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_is_handed_its_settings_and_nothing_else_and_ends_with_its_last_lease() {
    let rig = Rig::new().await;
    rig.keep("token", "canary-5f1b").await;
    let plain = spec("good");
    let mut spec = plain.clone();
    spec.secrets.insert("config.token".to_owned(), SecretRef::new("token".parse().unwrap()));
    let lease = rig.lease(&spec);
    let other = rig.lease(&spec);
    rig.ready(&spec).await;
    let seen = rig.handed();
    assert_eq!(seen["handed"]["config"], serde_json::json!({ "colour": "blue", "token": "canary-5f1b" }));
    assert_eq!(seen["handed"]["contract"], "wasi:keyvalue");
    assert_eq!(seen["argv"].as_array().unwrap().len(), 1);
    assert_eq!(seen["env"], "");
    assert_eq!(seen["cwd"], seen["handed"]["data"]);
    let dir = Path::new(seen["handed"]["socket"].as_str().unwrap()).parent().unwrap().to_owned();
    assert_eq!(std::fs::metadata(&dir).unwrap().permissions().mode() & 0o777, 0o700);

    // Another tenant, another configuration: nothing of theirs runs.
    let stranger = External { app: app(), provider: kv(), spec: spec.fingerprint() };
    assert!(rig.externals.connect(&"u".parse().unwrap(), &stranger).await.is_err());
    assert!(rig.connect(&plain).await.is_err());

    // A new value of the secret reaches it.
    rig.keep("token", "second").await;
    rig.starts(2).await;
    rig.ready(&spec).await;
    assert_eq!(rig.handed()["handed"]["config"]["token"], "second");

    let query = LogQuery { last: 10, ..LogQuery::default() };
    let begun = Instant::now();
    loop {
        let lines: Vec<String> = rig.logs.query(&tenant(), &app(), query.clone()).map(|line| line.text).collect().await;
        if lines == ["it says hello", "it says hello"] {
            break;
        }
        assert!(begun.elapsed() < PATIENCE, "{lines:?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }

    let pid = *rig.pids().last().unwrap();
    drop(lease);
    assert!(rig.connect(&spec).await.is_ok(), "one lease is left");
    drop(other);
    let begun = Instant::now();
    while is_there(pid) || dir.exists() {
        assert!(begun.elapsed() < PATIENCE);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    rig.externals.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_hanging_or_talking_nonsense_it_is_started_again() {
    let rig = Rig::new().await;
    let spec = spec("good");
    let _lease = rig.lease(&spec);
    rig.ready(&spec).await;
    let mut best = Duration::MAX;
    for (round, what) in ["killed", "hang", "garbage"].into_iter().enumerate() {
        let old = *rig.pids().last().unwrap();
        match what {
            "killed" => kill(old),
            told => {
                std::fs::write(rig.data(told), "").unwrap();
                let begun = Instant::now();
                while is_there(old) {
                    assert!(begun.elapsed() < PATIENCE, "{told}: it is not ended");
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                std::fs::remove_file(rig.data(told)).unwrap();
            }
        }
        let begun = Instant::now();
        rig.starts(round + 2).await;
        println!("{what}: started again after {:?}", begun.elapsed());
        rig.ready(&spec).await;
        best = best.min(begun.elapsed());
        assert_ne!(*rig.pids().last().unwrap(), old);
    }
    // Within 1 s it is started again: how long is waited is chosen to be less (a value, tested with `Backoff`). Here the start
    // of the program and the first question come to it, on a machine that may be slow and have other things to do.
    assert!(best < 5 * RESTARTED, "the best of three restarts took {best:?}, {RESTARTED:?} are promised");
    rig.externals.shutdown().await;
    assert!(rig.pids().into_iter().all(|pid| !is_there(pid)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_ends_again_and_again_is_degraded_with_its_reason_until_it_is_well() {
    let mut rig = Rig::new().await;
    let spec = spec("good");
    std::fs::create_dir_all(rig.data("")).unwrap();
    std::fs::write(rig.data("broken"), "").unwrap();
    let lease = rig.lease(&spec);
    let told = rig.event().await;
    assert_eq!((told.tenant, told.app, told.provider), (tenant(), app(), (kv(), spec.fingerprint())));
    let reason = told.ailing.unwrap();
    assert_eq!(reason.code, "provider-unavailable");
    let says =
        "external provider `kv` of t/a (program `good`) was not ready yet and ended with status 1: it has no licence";
    assert_eq!(reason.message, says);
    // Six prompt restarts are the budget; one that was late on a busy machine counts for none, and may be started once more since.
    assert!((7..=10).contains(&rig.pids().len()), "six prompt restarts are the budget: {:?}", rig.pids());
    let refused = rig.connect(&spec).await.unwrap_err();
    assert!(matches!(refused, FileFault::NotReady { why, soon: false } if why == says));
    std::fs::remove_file(rig.data("broken")).unwrap();
    loop {
        if rig.event().await.ailing.is_none() {
            break;
        }
    }
    assert!(rig.connect(&spec).await.is_ok());
    drop(lease);
    rig.externals.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_programs_keep_is_held_to_the_quota_of_their_tenant() {
    let mut rig = Rig::new().await;
    let spec = spec("good");
    rig.externals.limit(&tenant(), Some(ByteSize::kib(256)));
    let lease = rig.lease(&spec);
    rig.ready(&spec).await;
    let pid = *rig.pids().last().unwrap();
    // What another program of the tenant keeps counts as well.
    let other = rig.dir.path().join("data/t/b/kv");
    std::fs::create_dir_all(&other).unwrap();
    std::fs::write(other.join("large"), vec![1; 512 << 10]).unwrap();
    let reason = rig.event().await.ailing.unwrap();
    assert!(reason.message.contains("over quota") && reason.message.contains("`store_bytes`"), "{reason:?}");
    // It is in a namespace that ends with its first process.
    tokio::time::timeout(PATIENCE, async {
        while is_there(pid) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await
    .unwrap();
    // With room it is back.
    rig.externals.limit(&tenant(), Some(ByteSize::mib(2)));
    rig.ready(&spec).await;
    drop(lease);
    rig.externals.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tenant_has_so_many_programs_and_the_next_one_waits() {
    let rig = Rig::new().await;
    let lease = |name: &str, program: &str| {
        rig.externals.lease(&tenant(), &app(), Revision(1), &name.parse().unwrap(), &spec(program))
    };
    let mut held: Vec<_> = (0..32).map(|n| lease(&format!("p{n}"), "nothing")).collect();
    // Each has its place from its start on, whatever becomes of its process: one that has ended had one.
    let begun = Instant::now();
    for n in 0..32 {
        let wanted =
            External { app: app(), provider: format!("p{n}").parse().unwrap(), spec: spec("nothing").fingerprint() };
        while !matches!(
            rig.externals.connect(&tenant(), &wanted).await,
            Err(FileFault::NotReady { why, .. }) if why.contains("ended with")
        ) {
            assert!(begun.elapsed() < PATIENCE, "p{n}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
    held.push(lease("kv", "good"));
    let begun = Instant::now();
    loop {
        let refused = rig.connect(&spec("good")).await.unwrap_err();
        if matches!(&refused, FileFault::NotReady { why, soon: false } if why.contains("has 32 programs")) {
            break;
        }
        assert!(begun.elapsed() < PATIENCE, "{refused}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let other = rig.externals.lease(&"u".parse().unwrap(), &app(), Revision(1), &kv(), &spec("good"));
    let wanted = External { app: app(), provider: kv(), spec: spec("good").fingerprint() };
    let begun = Instant::now();
    while rig.externals.connect(&"u".parse().unwrap(), &wanted).await.is_err() {
        assert!(begun.elapsed() < PATIENCE, "another tenant's waits for nothing");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    // One that replaces another one, of which only the settings differ, does not wait.
    let mut changed = spec("good");
    changed.config.insert("config.colour".to_owned(), "green".to_owned());
    let name: ProviderName = "p7".parse().unwrap();
    held.push(rig.externals.lease(&tenant(), &app(), Revision(2), &name, &changed));
    let wanted = External { app: app(), provider: name, spec: changed.fingerprint() };
    let begun = Instant::now();
    while let Err(cause) = rig.externals.connect(&tenant(), &wanted).await {
        assert!(begun.elapsed() < PATIENCE, "{cause}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    held.remove(0);
    rig.ready(&spec("good")).await;
    drop((held, other));
    rig.externals.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_program_that_nobody_names_is_refused_with_those_there_are() {
    let mut rig = Rig::new().await;
    let spec = spec("other-program");
    let lease = rig.lease(&spec);
    let reason = rig.event().await.ailing.unwrap();
    assert!(reason.message.contains("`other-program`"), "{reason:?}");
    assert_eq!(reason.help.as_deref(), Some("there are: `good`, `nothing`"));
    assert!(matches!(rig.connect(&spec).await, Err(FileFault::NotReady { soon: false, .. })));
    drop(lease);
    assert_eq!(rig.event().await.ailing, None);
    rig.externals.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_it_kept_goes_with_its_app_and_nothing_else_does() {
    let rig = Rig::new().await;
    let spec = spec("good");
    // Whoever still holds it does not keep it from ending.
    let _lease = rig.lease(&spec);
    rig.ready(&spec).await;
    let pid = *rig.pids().last().unwrap();
    let others = ["data/t/b/kv", "data/u/a/kv"].map(|path| rig.dir.path().join(path));
    others.iter().for_each(|path| std::fs::create_dir_all(path).unwrap());
    rig.externals.purge(&tenant(), &app()).await.unwrap();
    assert!(!is_there(pid) && !rig.dir.path().join("data/t/a").exists());
    assert!(others.iter().all(|path| path.exists()));
    rig.externals.purge(&tenant(), &"b".parse().unwrap()).await.unwrap();
    assert!(!rig.dir.path().join("data/t").exists());
    rig.externals.purge(&tenant(), &app()).await.expect("what is gone is gone");
    rig.externals.shutdown().await;
}
