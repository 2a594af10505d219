//! What a task driver implements. The kit calls it with requests that are whole, from many tasks at once.

use std::future::Future;
use std::time::Duration;

use futures::stream::BoxStream;

pub use crate::contracts::hashicorp::nomad::plugins::drivers::proto::{
    ExitResult, NetworkOverride, TaskConfig, TaskHandle, TaskState, TaskStatus,
};
pub use crate::contracts::hashicorp::nomad::plugins::shared::hclspec::Spec;

use super::Failure;

/// What a driver is called. The name is what jobs write after `driver =`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Info {
    /// Its name.
    pub name: &'static str,
    /// Its version: semantic versioning.
    pub version: &'static str,
}

/// How a driver keeps the files of a task apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Files {
    /// A task sees the machine's files; its environment names their places on the machine.
    Machine,
    /// A task sees what the driver shows it; its environment says `/alloc`, `/local` and `/secrets`.
    Own,
}

/// What a driver can do beside running tasks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capabilities {
    /// Signals reach tasks ([`Driver::signal`]).
    pub signals: bool,
    /// How files are kept apart.
    pub files: Files,
    /// Tasks can run in a network namespace that the agent made for their group.
    pub group_network: bool,
    /// `volume_mount` blocks are honoured.
    pub mounts: bool,
}

/// Whether the driver can work on this machine.
#[derive(Debug, Clone, PartialEq)]
pub struct Fingerprint {
    /// Whether it can.
    pub health: Health,
    /// Why not, or `Healthy`.
    pub description: String,
    /// Facts for constraints of jobs, by full name: `driver.wasm.version`.
    pub attributes: Vec<(String, Fact)>,
}

/// Whether tasks can run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Health {
    /// What the driver needs is not on this machine.
    Undetected,
    /// It is there and does not work.
    Unhealthy,
    /// Tasks can run.
    Healthy,
}

/// The value of an attribute.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fact {
    /// A text.
    Text(String),
    /// A number.
    Number(i64),
    /// Yes or no.
    Flag(bool),
}

/// What the processes of a task use.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Usage {
    /// CPU time spent in programs since the last sample, of one core's time.
    pub user: f64,
    /// The same, in the kernel.
    pub system: f64,
    /// Resident memory, bytes.
    pub rss: u64,
    /// The most of it so far, bytes.
    pub max_rss: u64,
}

/// Something that happened to a task, for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// Which task.
    pub task: String,
    /// Of which allocation.
    pub alloc: String,
    /// What the job calls it.
    pub name: String,
    /// In words.
    pub message: String,
}

/// A task driver.
pub trait Driver: Send + Sync + 'static {
    /// What it is called.
    fn info(&self) -> Info;
    /// The block `config` of the agent's `plugin` block.
    fn agent_schema(&self) -> Spec;
    /// Takes the agent's configuration (see [`super::config::decode`]). Called more than once, also in processes that are
    /// ended right after; an agent that finds a running plugin does not call it.
    ///
    /// # Errors
    /// What is wrong with it: the agent does not start then, and says this.
    fn configure(&self, block: &[u8]) -> Result<(), Failure>;
    /// The block `config` of a task.
    fn task_schema(&self) -> Spec;
    /// What it can do.
    fn capabilities(&self) -> Capabilities;
    /// Whether it can work here: at once, and on every change. Ends never.
    fn fingerprint(&self) -> BoxStream<'static, Fingerprint>;
    /// Starts a task and returns once it runs. A task that was started and then forgotten, because the plugin died in
    /// between, is found again and not started a second time.
    ///
    /// # Errors
    /// Why it does not run; nothing is left of it then.
    fn start(&self, task: TaskConfig) -> impl Future<Output = Result<Started, Failure>> + Send;
    /// Tracks a task again that another plugin process started. The configuration in the handle lacks the task's block.
    ///
    /// # Errors
    /// When nothing is known of it; not when it has ended meanwhile.
    fn recover(&self, handle: TaskHandle) -> impl Future<Output = Result<(), Failure>> + Send;
    /// Waits until a task has ended; the same for everyone who asks, until it is destroyed.
    ///
    /// # Errors
    /// When it is unknown.
    fn wait(&self, task: &str) -> impl Future<Output = Result<ExitResult, Failure>> + Send;
    /// Ends a task within `timeout`, whatever it does. An unknown task has ended.
    ///
    /// # Errors
    /// When it cannot be ended.
    fn stop(
        &self,
        task: &str,
        timeout: Duration,
        signal: Option<&str>,
    ) -> impl Future<Output = Result<(), Failure>> + Send;
    /// Forgets a task and everything kept for it.
    ///
    /// # Errors
    /// When it runs and is not to be ended by `force`.
    fn destroy(&self, task: &str, force: bool) -> impl Future<Output = Result<(), Failure>> + Send;
    /// How a task stands, and facts of the driver's own.
    ///
    /// # Errors
    /// When it is unknown.
    fn inspect(&self, task: &str) -> impl Future<Output = Result<(TaskStatus, Vec<(String, String)>), Failure>> + Send;
    /// What a task uses, every `interval`, until it ends.
    ///
    /// # Errors
    /// When it is unknown.
    fn stats(&self, task: &str, interval: Duration) -> Result<BoxStream<'static, Usage>, Failure>;
    /// What happens to tasks, from now on. Ends never.
    fn events(&self) -> BoxStream<'static, Event>;
    /// Sends a signal, by name.
    ///
    /// # Errors
    /// When there is no such task or signal; unsupported where [`Capabilities::signals`] says no.
    fn signal(&self, task: &str, signal: &str) -> impl Future<Output = Result<(), Failure>> + Send {
        let _ = (task, signal);
        std::future::ready(Err(Failure::unsupported("signals")))
    }
}

/// A task that runs.
#[derive(Debug, Clone, PartialEq)]
pub struct Started {
    /// What [`Driver::recover`] needs to find it again.
    pub state: Vec<u8>,
    /// Where it is reached, where that is not what the agent assigned.
    pub network: Option<NetworkOverride>,
}
