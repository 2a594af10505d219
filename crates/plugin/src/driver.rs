//! What a task driver implements. The kit calls it with requests that are whole, from many tasks at once.

use std::collections::BTreeMap;
use std::future::Future;
use std::time::Duration;

use futures::StreamExt as _;
use futures::stream::BoxStream;

pub use crate::contracts::hashicorp::nomad::plugins::base::proto::NomadDriverConfig as Client;
pub use crate::contracts::hashicorp::nomad::plugins::drivers::proto::{
    ExecTaskResponse as Executed, ExitResult, HostsConfig, NetworkIsolationSpec, NetworkOverride, TaskConfig,
    TaskHandle, TaskState, TaskStatus, network_isolation_spec::Mode,
};
pub use crate::contracts::hashicorp::nomad::plugins::shared::hclspec::Spec;
pub use crate::exec::{Command, Input, Inputs, Output, Outputs};

use crate::{Failure, exec};

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
    /// The agent fills a root for the task with parts of the machine's files, and the driver keeps the task in it.
    Root,
    /// A task sees what the driver shows it; its environment says `/alloc`, `/local` and `/secrets`.
    Own,
}

/// What a driver can do beside running tasks. Agents ask for it often: it is always the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capabilities {
    /// Signals reach tasks ([`Driver::signal`]).
    pub signals: bool,
    /// Commands are run inside tasks ([`Driver::exec_streaming`]).
    pub exec: bool,
    /// How files are kept apart.
    pub files: Files,
    /// The networks a task can be in. Of a job that asks for another one agents say so, and do not start it.
    pub networks: &'static [Mode],
    /// The network of a group is made by the driver and not by the agent ([`Driver::create_network`]).
    pub creates_networks: bool,
    /// `volume_mount` blocks are honoured.
    pub mounts: bool,
    /// What tasks write is taken elsewhere by the driver: agents from 1.6 then start no collector where the client says so too.
    pub own_logs: bool,
    /// Tasks can be given users that exist only for them, by agents from 1.8.
    pub dynamic_users: bool,
}

impl Default for Capabilities {
    /// A task of the machine's own network, with files of its own, and nothing else.
    fn default() -> Self {
        Self {
            signals: false,
            exec: false,
            files: Files::Own,
            networks: &[Mode::Host],
            creates_networks: false,
            mounts: false,
            own_logs: false,
            dynamic_users: false,
        }
    }
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
    /// A number of a unit that Nomad knows: `MiB`, `MHz`, `ms`.
    Measure(i64, &'static str),
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
    /// Facts beside the words, for programs.
    pub annotations: BTreeMap<String, String>,
}

impl Event {
    /// Of this task, in words.
    pub fn of(task: &TaskConfig, message: impl Into<String>) -> Self {
        Self {
            task: task.id.clone(),
            alloc: task.alloc_id.clone(),
            name: task.name.clone(),
            message: message.into(),
            annotations: BTreeMap::new(),
        }
    }
}

/// A task driver. What has a body here a driver may leave out: the agent is then told that it does not do this.
pub trait Driver: Send + Sync + 'static {
    /// What it is called.
    fn info(&self) -> Info;
    /// The block `config` of the agent's `plugin` block.
    fn agent_schema(&self) -> Spec;
    /// Takes the agent's configuration (see [`crate::config::decode`]). Called more than once, also in processes that are
    /// ended right after; an agent that finds a running plugin does not call it.
    ///
    /// # Errors
    /// What is wrong with it: the agent does not start then, and says this.
    fn configure(&self, block: &[u8]) -> Result<(), Failure>;
    /// What the agent's client says of itself, after [`Driver::configure`]: in the process that it keeps, and not where it only
    /// tries the block.
    fn client(&self, client: &Client) {
        let _ = client;
    }
    /// The block `config` of a task.
    fn task_schema(&self) -> Spec;
    /// What it can do.
    fn capabilities(&self) -> Capabilities;
    /// An agent begins with this process, whether it launched it or found it. Agents before 2.0.4 do not say so: nothing may
    /// depend on it.
    ///
    /// # Errors
    /// Why it cannot work.
    fn init(&self) -> impl Future<Output = Result<(), Failure>> + Send {
        std::future::ready(Ok(()))
    }
    /// This process ends; tasks go on. Called once, whoever ends it, and given a second. A process that is killed is not asked.
    fn shutdown(&self) -> impl Future<Output = ()> + Send {
        std::future::ready(())
    }
    /// Whether it can work here: something at once, whatever is known, since the agent is not ready before it has heard it; and
    /// on every change. Ends never.
    fn fingerprint(&self) -> BoxStream<'static, Fingerprint>;
    /// Starts a task and returns once it runs. A task that was started and then forgotten, because the plugin died in
    /// between, is found again and not started a second time.
    ///
    /// # Errors
    /// Why it does not run; nothing is left of it then.
    fn start(&self, task: TaskConfig) -> impl Future<Output = Result<Started, Failure>> + Send;
    /// The host hung up while the task was being started: it does not hear how that ends. Where it lives on it asks again, for
    /// this task or for the next start of it; where it does not, nobody will ask for the task.
    fn unheard(&self, task: &str) -> impl Future<Output = ()> + Send {
        let _ = task;
        std::future::ready(())
    }
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
    /// How a task stands.
    ///
    /// # Errors
    /// When it is unknown.
    fn inspect(&self, task: &str) -> impl Future<Output = Result<Inspection, Failure>> + Send;
    /// What a task uses, every `interval`, until it ends. A driver that does not measure says nothing: an agent that is told so
    /// asks again each second, and logs an error each time.
    ///
    /// # Errors
    /// When it is unknown.
    fn stats(&self, task: &str, interval: Duration) -> Result<BoxStream<'static, Usage>, Failure> {
        let _ = (task, interval);
        Ok(futures::stream::pending().boxed())
    }
    /// What happens to tasks, from now on. Ends never.
    fn events(&self) -> BoxStream<'static, Event> {
        futures::stream::pending().boxed()
    }
    /// Sends a signal, by name.
    ///
    /// # Errors
    /// When there is no such task or signal; unsupported where [`Capabilities::signals`] says no.
    fn signal(&self, task: &str, signal: &str) -> impl Future<Output = Result<(), Failure>> + Send {
        let _ = (task, signal);
        std::future::ready(Err(Failure::unsupported("signals")))
    }
    /// Runs a command inside a task, for a person (`nomad alloc exec`). What it answers is dropped when that person goes away:
    /// the command then ends.
    ///
    /// # Errors
    /// When there is no such task or program; unsupported where [`Capabilities::exec`] says no.
    fn exec_streaming(
        &self,
        command: Command,
        inputs: Inputs,
    ) -> impl Future<Output = Result<Outputs, Failure>> + Send {
        let _ = (command, inputs);
        std::future::ready(Err(Failure::unsupported("commands inside a task")))
    }
    /// Runs a command inside a task, for the agent: script checks, and templates with `change_mode = "script"`. Made of
    /// [`Driver::exec_streaming`], with nothing to read and 4 MiB of each output.
    ///
    /// # Errors
    /// As there, and when it has not ended after `timeout`.
    fn exec(
        &self,
        command: Command,
        timeout: Option<Duration>,
    ) -> impl Future<Output = Result<Executed, Failure>> + Send {
        async move {
            let nothing = futures::stream::iter([Input::End]).boxed();
            exec::whole(self.exec_streaming(command, nothing).await?, timeout).await
        }
    }
    /// Makes the network of an allocation whose group has one, before its tasks start. The same again for one that is there.
    ///
    /// # Errors
    /// When it cannot be made; unsupported where [`Capabilities::creates_networks`] says no.
    fn create_network(
        &self,
        alloc: &str,
        hostname: Option<&str>,
    ) -> impl Future<Output = Result<CreatedNetwork, Failure>> + Send {
        let _ = (alloc, hostname);
        std::future::ready(Err(Failure::unsupported("networks of its own making")))
    }
    /// Removes the network of an allocation after its tasks have ended. One that is unknown is gone.
    ///
    /// # Errors
    /// When it cannot be removed; unsupported where [`Capabilities::creates_networks`] says no.
    fn destroy_network(
        &self,
        alloc: &str,
        network: NetworkIsolationSpec,
    ) -> impl Future<Output = Result<(), Failure>> + Send {
        let _ = (alloc, network);
        std::future::ready(Err(Failure::unsupported("networks of its own making")))
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

/// How a task stands.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Inspection {
    /// As agents know it.
    pub status: TaskStatus,
    /// Facts of the driver's own.
    pub facts: BTreeMap<String, String>,
    /// Where it is reached, as [`Started::network`] said.
    pub network: Option<NetworkOverride>,
}

/// The network of an allocation.
#[derive(Debug, Clone, PartialEq)]
pub struct CreatedNetwork {
    /// What its tasks are told of it.
    pub network: NetworkIsolationSpec,
    /// It was not there before.
    pub new: bool,
}
