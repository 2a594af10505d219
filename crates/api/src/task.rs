//! A task: one process, `sidereal task`, that plays the node's part for exactly one host, started by whoever schedules it
//! (a Nomad task driver) and found again by its directory. It outlives its starter.
//!
//! | In the directory | Meaning |
//! |---|---|
//! | [`SPEC_FILE`] | what to run, [`TaskSpec`]; written before the process is started |
//! | [`LOCK_FILE`] | locked by the starter, and by what it has started: its standard input is the locked file |
//! | [`PROCESS_FILE`] | which process it is, [`TaskProcess`]; written by itself, before anything else is done |
//! | [`SOCKET`] | the task API while the process lives: HTTP/1.1 and JSON |
//! | [`EXIT_FILE`] | how it ended, [`TaskExit`]; absent where the process was killed |
//!
//! | Request | Meaning |
//! |---|---|
//! | `GET /v1/task/started` | [`TaskStatus`], once it runs or has failed |
//! | `POST /v1/task/stop` ([`DrainRequest`](crate::agent::DrainRequest)) | finish calls in flight, then end; answers at once |

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Duration;

use bytes::Bytes;
use http::Method;
use model::tenant::TenantSettings;
use model::{ContractId, Label};
use serde::{Deserialize, Serialize};

use crate::Problem;
use crate::agent_client::{HostClient, within};
use crate::run::Folder;

/// The version of these files; another one is refused.
pub const VERSION: u32 = 4;
/// What to run.
pub const SPEC_FILE: &str = "task.json";
/// Whoever holds it starts the task, or is the task.
pub const LOCK_FILE: &str = "lock";
/// Which process it is.
pub const PROCESS_FILE: &str = "process.json";
/// The task API.
pub const SOCKET: &str = "task.sock";
/// How it ended.
pub const EXIT_FILE: &str = "exit.json";

/// Variables of the scheduler's by which registries are reached and known: proxies, certificates, and who asks, whose credentials may
/// be in the care of a program.
pub const REGISTRY_ENV: [&str; 12] = [
    "HTTPS_PROXY",
    "https_proxy",
    "HTTP_PROXY",
    "http_proxy",
    "ALL_PROXY",
    "all_proxy",
    "NO_PROXY",
    "no_proxy",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "DOCKER_CONFIG",
    "PATH",
];

/// What a task runs, and with what.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TaskSpec {
    /// [`VERSION`].
    pub version: u32,
    /// The scheduler's name of it, for messages.
    pub id: String,
    /// The component.
    pub component: TaskComponent,
    /// Where its HTTP is answered; absent for a program, which is run once. In a network of its own `0.0.0.0` is every address,
    /// of IPv6 too.
    #[serde(default)]
    pub listen: Option<SocketAddr>,
    /// Arguments of a program; what it is called comes before them.
    #[serde(default)]
    pub args: Vec<String>,
    /// The environment of its component. What a service has of it is in `config` too.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// Folders its component may use, at most [`MAX_FOLDERS`](crate::run::MAX_FOLDERS).
    #[serde(default)]
    pub folders: Vec<TaskFolder>,
    /// The user its component runs as: a name, or numbers as `1000` and `1000:1000`. One of its own where absent.
    #[serde(default)]
    pub user: Option<String>,
    /// Layers of isolation it is not to have, by name; `missing` for whatever the machine refuses as it starts.
    #[serde(default)]
    pub waive: Vec<String>,
    /// Layers that it is not to have either, by name: its starter knows that the machine refuses them, and why.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub refused: BTreeMap<String, String>,
    /// The network namespace it runs in; the machine's where absent.
    #[serde(default)]
    pub network: Option<PathBuf>,
    /// Who is asked for the addresses of names; as the machine does where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dns: Option<TaskDns>,
    /// Answers of `wasi:config`.
    #[serde(default)]
    pub config: BTreeMap<String, String>,
    /// What answers its contracts.
    #[serde(default)]
    pub links: Vec<TaskLink>,
    /// Where outgoing HTTP may go.
    #[serde(default)]
    pub allow_hosts: Vec<String>,
    /// Limits of its component as a manifest has them, by name; the defaults of those that are not named.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub limits: BTreeMap<String, String>,
    /// Whom it trusts, what it may use and reach.
    pub settings: TenantSettings,
    /// Its lines of standard output go to this FIFO or file.
    pub stdout: Place,
    /// All its other lines go to this FIFO or file.
    pub stderr: Place,
    /// Embedded data are kept in this folder, and whose user id is whose: all of it is trusted, so the folder is where nobody
    /// but the starter's user can put anything. It is made where it is not there.
    pub data: PathBuf,
    /// Compiled code is kept in this folder, which tasks share.
    pub code: PathBuf,
    /// Control groups that bound its host.
    #[serde(default)]
    pub groups: Groups,
    /// Environment of the process that asks a registry for the component, of [`REGISTRY_ENV`]; of nothing else.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub registry: BTreeMap<String, String>,
}

/// A file or a folder below one that is the scheduler's. What is between the two may be anybody's in the job, who may put a
/// link there at any time: it is opened from `root` down, never by its whole name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// The scheduler's.
    pub root: PathBuf,
    /// From there; empty for the root itself.
    pub path: PathBuf,
}

impl Place {
    /// Its name, for messages.
    pub fn name(&self) -> PathBuf {
        if self.path.as_os_str().is_empty() { self.root.clone() } else { self.root.join(&self.path) }
    }
}

/// Who resolves a task's names, and how: what `resolv.conf(5)` calls by the same names.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TaskDns {
    /// Asked in this order, on port 53; those of the machine where there is none.
    pub servers: Vec<IpAddr>,
    /// Appended to names in turn, until there is one.
    pub searches: Vec<String>,
    /// A name with so many dots is tried as it is before anything is appended.
    pub ndots: usize,
    /// How long one question waits for its answer, seconds.
    pub timeout: u64,
    /// How often all servers are asked.
    pub attempts: usize,
    /// Each question begins with the next server.
    pub rotate: bool,
}

/// A folder that the task's component may use.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskFolder {
    /// Where it is.
    pub place: Place,
    /// How it is granted.
    pub folder: Folder,
    /// It is made where it is not there.
    pub make: bool,
}

/// A process for ever: numbers come again, numbers with their start and boot do not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskProcess {
    /// Its number.
    pub pid: i32,
    /// When it was started, in ticks since boot.
    pub started: u64,
    /// The boot of the machine; empty where the kernel does not say.
    pub boot: String,
}

impl TaskProcess {
    /// This process; `None` where the kernel does not tell.
    pub fn own() -> Option<Self> {
        let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
        // The name is in brackets and may hold anything; the fields after it are counted from the state, which is the third.
        let started = stat.get(stat.rfind(')')? + 1..)?.split_whitespace().nth(22 - 3)?.parse().ok()?;
        let pid = i32::try_from(std::process::id()).ok()?;
        Some(Self { pid, started, boot: boot() })
    }
}

/// The boot the machine runs in; empty where the kernel does not say. It is read once: a process that is short of descriptors
/// later does not take its own tasks for those of another boot.
pub fn boot() -> String {
    static BOOT: OnceLock<String> = OnceLock::new();
    if let Some(known) = BOOT.get() {
        return known.clone();
    }
    match std::fs::read_to_string("/proc/sys/kernel/random/boot_id") {
        Ok(said) => BOOT.get_or_init(|| said.trim().to_owned()).clone(),
        Err(_) => String::new(),
    }
}

/// The control groups of a task. Its host is in them: what a component does is bounded, what the platform does for it, such
/// as compiling it, is not charged to it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Groups {
    /// Folders of the groups its host joins.
    pub join: Vec<PathBuf>,
    /// A file in which the kernel counts, as `oom_kill <n>`, the processes it killed because memory ran out.
    #[serde(default)]
    pub oom: Option<PathBuf>,
}

impl Groups {
    /// How often the kernel has killed something in here because memory ran out.
    pub fn killed(&self) -> u64 {
        self.oom.as_deref().and_then(|file| count(file, "oom_kill ")).unwrap_or(0)
    }

    /// How often the memory of the group itself was used up; `None` where the kernel does not say. Where something in here was
    /// killed and it was not, memory ran out around it: on the machine, or in a group that this one is in.
    pub fn used_up(&self) -> Option<u64> {
        let file = self.oom.as_deref()?;
        // Version 2: `max` also counts what was freed again.
        if let Some(times) = count(file, "oom ") {
            return Some(times);
        }
        // Version 1 counts at each of two limits, which are the same: at that of memory and swap first, where there is one. Newer
        // kernels do not count there; what the group had at most is at its limit then, but for less than they charge at once.
        let at = |name| count(&file.with_file_name(name), "");
        let both = [at("memory.failcnt"), at("memory.memsw.failcnt")];
        let times = both.into_iter().flatten().reduce(u64::saturating_add)?;
        let (most, limit) = (at("memory.max_usage_in_bytes"), at("memory.limit_in_bytes"));
        let was_full = most.zip(limit).is_some_and(|(most, limit)| most >= limit.saturating_sub(limit / 64));
        Some(times.saturating_add(u64::from(was_full)))
    }
}

/// A number in a file of the kernel's, in the line that begins so.
fn count(file: &Path, begins: &str) -> Option<u64> {
    let text = std::fs::read_to_string(file).ok()?;
    text.lines().find_map(|line| line.strip_prefix(begins)?.trim().parse().ok())
}

/// Where a component comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TaskComponent {
    /// A file of the task.
    Path(Place),
    /// `registry/repository@sha256:…`
    Oci(String),
}

/// A link of the task's component.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskLink {
    /// Which contract.
    pub contract: ContractId,
    /// Which of several links of the contract.
    pub label: Label,
    /// A built-in provider, or a type of provider: `redis` stands for `keyvalue-redis` where the contract is key-value.
    pub provider: String,
    /// Settings of the provider, and of the link.
    pub settings: BTreeMap<String, String>,
    /// Settings of the provider that are secrets, each in a file.
    pub secret_files: BTreeMap<String, Place>,
}

/// Where a task stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TaskPhase {
    /// It is being brought up.
    Starting,
    /// It answers.
    Running,
    /// It did not start; the process ends.
    Failed,
    /// It finishes its calls.
    Stopping,
}

/// A task as it says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskStatus {
    /// Its process.
    pub pid: u32,
    /// Where it stands.
    pub phase: TaskPhase,
    /// Why it does not start.
    #[serde(default)]
    pub problem: Option<Problem>,
}

/// How a task ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskExit {
    /// As of a process: 0 is well.
    pub code: i32,
    /// What went wrong.
    #[serde(default)]
    pub problem: Option<Problem>,
    /// It was killed because memory ran out: that which it was given, or that of the machine.
    #[serde(default)]
    pub oom: bool,
    /// It was running: what went wrong is no failure to start.
    #[serde(default)]
    pub ran: bool,
    /// When, milliseconds since 1970.
    pub ended_ms: u64,
}

/// What the program that runs tasks says of itself and of the machine, to whoever starts them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskOffer {
    /// The version of the tasks that it runs, [`VERSION`]; 0 where it is older than this word.
    #[serde(default)]
    pub tasks: u32,
    /// Layers of isolation that the machine refuses, and why.
    #[serde(default)]
    pub refused: BTreeMap<String, String>,
}

/// A client of one task.
#[derive(Debug)]
pub struct TaskClient(HostClient);

impl TaskClient {
    /// A client of the task whose API listens at `socket`. Connects with the first request.
    pub fn new(socket: impl Into<PathBuf>) -> Self {
        Self(HostClient::new(socket))
    }

    /// Where it stands, once it has started or failed.
    ///
    /// # Errors
    /// [`crate::Code::Unreachable`] when nobody answers.
    pub async fn started(&self) -> Result<TaskStatus, Problem> {
        self.0.json(Method::GET, "/v1/task/started", Bytes::new()).await
    }

    /// Ends it: calls in flight have until `deadline`.
    ///
    /// # Errors
    /// As [`TaskClient::started`].
    pub async fn stop(&self, deadline: Duration) -> Result<TaskStatus, Problem> {
        self.0.json(Method::POST, "/v1/task/stop", within(deadline)?).await
    }
}
