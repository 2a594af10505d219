//! `driver = "wasm"`: runs a WebAssembly component as a Nomad task.
//!
//! A task is one `sidereal task` process in a session of its own: the node's part for exactly one `sidereal host`. The
//! plugin starts it, finds it again after it was killed or replaced, and ends it; it never stands in the way of a request.
//!
//! | Module | Answers |
//! |---|---|
//! | [`config`] | what the agent's and the task's `config` blocks may say |
//! | [`spec`] | what the process of a task is told |
//! | [`task`] | a task's life: start, recover, wait, stop |
//! | [`process`] | its process, and what is in its session |
//! | [`cgroup`] | what bounds it |
//! | [`usage`] | what it uses |
//! | [`fingerprint`] | whether this machine can run tasks |

pub mod cgroup;
pub mod config;
pub mod fingerprint;
pub mod process;
pub mod spec;
pub mod task;
pub mod usage;

use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use futures::StreamExt as _;
use futures::stream::BoxStream;
use tokio::sync::broadcast;

use crate::plugin::driver::{
    Capabilities, Driver, Event, ExitResult, Files, Fingerprint, Info, Spec, Started, TaskConfig, TaskHandle,
    TaskState, TaskStatus,
};
use crate::plugin::tasks::{Tasks, decode, encode};
use crate::plugin::{Failure, config as block};
use cgroup::{Bounds, Made};
use config::{AgentConfig, TaskOptions};
use task::{Intent, Noted, STATE_VERSION, State, Task};

/// Events that wait for an agent that is slow to take them.
const EVENTS: usize = 256;

/// The driver.
#[derive(Debug)]
pub struct WasmDriver {
    agent: RwLock<AgentConfig>,
    tasks: Tasks<Task>,
    events: broadcast::Sender<Event>,
}

impl WasmDriver {
    /// With the defaults of every setting, and no tasks.
    pub fn new() -> Self {
        Self { agent: RwLock::default(), tasks: Tasks::default(), events: broadcast::channel(EVENTS).0 }
    }

    fn agent(&self) -> AgentConfig {
        self.agent.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn say(&self, task: &TaskConfig, message: impl Into<String>) {
        let event = Event {
            task: task.id.clone(),
            alloc: task.alloc_id.clone(),
            name: task.name.clone(),
            message: message.into(),
        };
        if self.events.send(event).is_err() {
            tracing::debug!(task = %task.id, "nobody listens to what happens to tasks");
        }
    }

    /// Starts a task of which nothing was started before.
    async fn begin(&self, config: &TaskConfig, agent: &AgentConfig, dir: &Path) -> Result<Arc<Task>, Failure> {
        let mut spec = spec::spec(config, agent)?;
        let sidereal = agent.sidereal().ok_or_else(|| Failure::recoverable(fingerprint::MISSING))?;
        remove(dir)?;
        make(dir)?;
        let bounds = if agent.enforce_resources { spec::bounds(config) } else { Bounds::default() };
        let name = dir.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let intent = Intent { id: config.id.clone(), groups: Made::intended(name, &bounds) };
        let lock = Task::intend(dir, &intent).inspect_err(|_| forget(dir))?;
        let groups = bound(name, &bounds).inspect_err(|_| forget(dir))?;
        spec.groups = groups.groups.clone();
        self.say(config, "Bringing the component up");
        let started = Task::start(&sidereal, (dir, lock), &spec, groups.clone(), &config.name);
        if started.is_err() {
            groups.clear().await;
            forget(dir);
        }
        started
    }

    /// Tells the agent's people when a task ends otherwise than they asked.
    fn watch(&self, config: TaskConfig, task: Arc<Task>) {
        let events = self.events.clone();
        tokio::spawn(async move {
            let ended = task.wait().await;
            if let Some(problem) = ended.problem {
                let TaskConfig { id, alloc_id, name, .. } = config;
                drop(events.send(Event { task: id, alloc: alloc_id, name, message: problem }));
            }
        });
    }
}

impl Default for WasmDriver {
    fn default() -> Self {
        Self::new()
    }
}

/// The directory of a task: short, for its sockets, and the same for the same id.
fn dir_of(agent: &AgentConfig, id: &str) -> PathBuf {
    agent.state_dir().join("tasks").join(model::Digest::of(id.as_bytes()).short())
}

fn make(dir: &Path) -> Result<(), Failure> {
    let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir);
    made.map_err(|cause| {
        Failure::recoverable(format!(
            "{} cannot be made: {cause}; `state_dir` of the plugin's configuration says where state is kept",
            dir.display()
        ))
    })
}

fn remove(dir: &Path) -> Result<(), Failure> {
    match std::fs::remove_dir_all(dir) {
        Err(cause) if cause.kind() != std::io::ErrorKind::NotFound => {
            Err(Failure::recoverable(format!("{} cannot be removed: {cause}", dir.display())))
        }
        _ => Ok(()),
    }
}

/// Removes what a start that failed left; that it failed is what is told.
fn forget(dir: &Path) {
    if let Err(failure) = remove(dir) {
        tracing::warn!(%failure, "a folder of a task that did not start stays");
    }
}

/// The control groups of a task, made.
fn bound(name: &str, bounds: &Bounds) -> Result<Made, Failure> {
    Made::new(name, bounds).map_err(|cause| {
        Failure::unrecoverable(format!(
            "the `resources` block cannot be enforced on this machine: {cause}; run the agent as root with control groups, or set \
             `enforce_resources = false` in the plugin's configuration"
        ))
    })
}

impl Driver for WasmDriver {
    fn info(&self) -> Info {
        Info { name: "wasm", version: env!("CARGO_PKG_VERSION") }
    }

    fn agent_schema(&self) -> Spec {
        AgentConfig::schema()
    }

    fn configure(&self, text: &[u8]) -> Result<(), Failure> {
        let config: AgentConfig = block::decode(text)?;
        for range in &config.egress {
            range
                .parse::<model::egress::Cidr>()
                .map_err(|cause| Failure::unrecoverable(format!("`egress`: {cause}")))?;
        }
        config.check_waive().map_err(|why| Failure::unrecoverable(format!("`waive`: {why}")))?;
        for anchor in &config.trust_anchors {
            let key = model::claims::PublicKey::parse(anchor);
            // A mistyped anchor may be a seed: never repeat it.
            let fine = key.is_ok_and(|key| key.kind() == model::claims::KeyKind::Account);
            if !fine {
                return Err(Failure::unrecoverable(
                    "`trust_anchors` holds something that is no account's public key (A…, 56 characters)",
                ));
            }
        }
        *self.agent.write().unwrap_or_else(PoisonError::into_inner) = config;
        Ok(())
    }

    fn task_schema(&self) -> Spec {
        TaskOptions::schema()
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities { signals: false, files: Files::Own, group_network: true, mounts: true }
    }

    fn fingerprint(&self) -> BoxStream<'static, Fingerprint> {
        fingerprint::stream(self.agent())
    }

    async fn start(&self, config: TaskConfig) -> Result<Started, Failure> {
        if self.tasks.get(&config.id).is_ok() {
            return Err(Failure::unrecoverable(format!("the task `{}` was started already", config.id)));
        }
        let agent = self.agent();
        let dir = dir_of(&agent, &config.id);
        let task = match Noted::of(&dir, &config.id).await? {
            // A plugin that was killed before the agent heard of it has started it: whatever became of it, that was its start.
            Noted::Started(state) => Task::recover(state, &config.name)?,
            Noted::Nothing | Noted::Intended(_) => self.begin(&config, &agent, &dir).await?,
        };
        if let Err(failure) = task.runs().await {
            task.kill().await;
            task.state.groups.clear().await;
            forget(&dir);
            return Err(failure);
        }
        let state = encode(STATE_VERSION, &task.state)?;
        if self.tasks.add(&config.id, task.clone()).is_err() {
            return Err(Failure::unrecoverable(format!("the task `{}` was started already", config.id)));
        }
        self.watch(config, task);
        Ok(Started { state, network: None })
    }

    async fn recover(&self, handle: TaskHandle) -> Result<(), Failure> {
        let TaskHandle { config, driver_state, .. } = handle;
        let config = config.ok_or_else(|| Failure::unrecoverable("the agent's handle names no task"))?;
        if self.tasks.get(&config.id).is_ok() {
            return Ok(());
        }
        let state: State = decode(STATE_VERSION, &driver_state)?;
        let task = Task::recover(state, &config.name)?;
        if self.tasks.add(&config.id, task.clone()).is_ok() {
            self.watch(config, task);
        }
        Ok(())
    }

    async fn wait(&self, id: &str) -> Result<ExitResult, Failure> {
        Ok(self.tasks.get(id)?.wait().await.result)
    }

    async fn stop(&self, id: &str, timeout: Duration, signal: Option<&str>) -> Result<(), Failure> {
        // One that is unknown has ended: an error would be tried again and again.
        let Ok(task) = self.tasks.get(id) else { return Ok(()) };
        match signal {
            Some("SIGKILL") => task.kill().await,
            _ => task.stop(timeout).await,
        }
        Ok(())
    }

    async fn destroy(&self, id: &str, force: bool) -> Result<(), Failure> {
        let Ok(task) = self.tasks.get(id) else {
            // One that could not be recovered may run on, and keep its port from the next.
            let dir = dir_of(&self.agent(), id);
            match Noted::of(&dir, id).await? {
                Noted::Nothing => {}
                Noted::Intended(Intent { groups, .. }) => groups.clear().await,
                Noted::Started(state) => {
                    let groups = state.groups.clone();
                    Task::found(state, id)?.kill().await;
                    groups.clear().await;
                }
            }
            return remove(&dir);
        };
        if task.ended().is_none() && !force {
            return Err(Failure::unrecoverable(format!("the task `{id}` still runs")));
        }
        task.kill().await;
        task.state.groups.clear().await;
        remove(&task.state.dir)?;
        self.tasks.remove(id);
        Ok(())
    }

    async fn inspect(&self, id: &str) -> Result<(TaskStatus, Vec<(String, String)>), Failure> {
        let task = self.tasks.get(id)?;
        let ended = task.ended();
        let state = if ended.is_some() { TaskState::Exited } else { TaskState::Running };
        let status = TaskStatus {
            id: id.to_owned(),
            name: task.name.clone(),
            state: state.into(),
            started_at: Some(task.since.into()),
            completed_at: ended.as_ref().map(|ended| ended.at.into()),
            result: ended.map(|ended| ended.result),
        };
        Ok((status, vec![("pid".to_owned(), task.state.process.pid.to_string())]))
    }

    fn stats(&self, id: &str, interval: Duration) -> Result<BoxStream<'static, crate::plugin::driver::Usage>, Failure> {
        let task = self.tasks.get(id)?;
        let ended = task.clone();
        let samples = usage::samples(task.state.process, interval);
        Ok(samples.take_until(async move { drop(ended.wait().await) }).boxed())
    }

    fn events(&self) -> BoxStream<'static, Event> {
        let receiver = self.events.subscribe();
        futures::stream::unfold(receiver, |mut receiver| async move {
            loop {
                match receiver.recv().await {
                    Ok(event) => return Some((event, receiver)),
                    Err(broadcast::error::RecvError::Lagged(lost)) => tracing::warn!(lost, "events of tasks were lost"),
                    Err(broadcast::error::RecvError::Closed) => return None,
                }
            }
        })
        .boxed()
    }
}
