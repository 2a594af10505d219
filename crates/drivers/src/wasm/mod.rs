//! `driver = "wasm"`: runs a WebAssembly component as a Nomad task.
//!
//! A task is one `sidereal task` process in a session of its own: the node's part for exactly one `sidereal host`. The
//! plugin starts it, finds it again after it was killed or replaced, and ends it; it never stands in the way of a request.
//!
//! | Module | Answers |
//! |---|---|
//! | [`config`] | what the agent's and the task's `config` blocks may say |
//! | [`spec`] | what the process of a task is told |
//! | `ports` | where it listens, and those beside it |
//! | [`task`] | a task's life: start, recover, wait, stop |
//! | `begin` | how one begins of which nothing was started before |
//! | `folder` | where it is, and how that is made and goes |
//! | `turns` | who may begin a task of an id |
//! | [`end`] | how it ended |
//! | [`process`] | its process, and what is in its session |
//! | [`cgroup`] | what bounds it |
//! | [`usage`] | what it uses |
//! | [`kept`] | what is kept of an allocation beside it |
//! | [`noted`] | what is written down of a start |
//! | [`others`] | what is left of starts that nobody asks about any more |
//! | `strays` | what runs that no agent knows |
//! | [`fingerprint`] | whether this machine can run tasks |

mod begin;
pub mod cgroup;
pub mod config;
mod dns;
pub mod end;
pub mod fingerprint;
mod folder;
pub mod kept;
pub mod noted;
pub mod others;
mod ports;
pub mod process;
pub mod spec;
mod strays;
pub mod task;
mod turns;
pub mod usage;

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use futures::StreamExt as _;
use futures::stream::BoxStream;
use tokio::sync::broadcast;

use config::{AgentConfig, TaskOptions};
use folder::{dir_of, forget, remove};
use noted::Noted;
use plugin::driver::{
    Capabilities, Driver, Event, ExitResult, Fingerprint, Info, Inspection, Mode, Spec, Started, TaskConfig,
    TaskHandle, TaskState, TaskStatus,
};
use plugin::tasks::{Tasks, decode, encode};
use plugin::{Failure, config as block};
use task::{State, Task};
use turns::Turns;

/// Events that wait for an agent that is slow to take them.
const EVENTS: usize = 256;
/// An agent that hung up in the middle of a start, and lives, asks again by then. It begins a start that it did not hear of anew
/// in any case.
const UNHEARD: Duration = Duration::from_secs(30);
/// How long a task may take to run: its component is brought, compiled, and answers, each of which has its own shorter bound.
const STARTED: Duration = Duration::from_secs(20 * 60);

/// The driver.
#[derive(Debug)]
pub struct WasmDriver {
    agent: RwLock<AgentConfig>,
    tasks: Arc<Tasks<Task>>,
    /// Starts whose answer the agent did not hear, until it asks about them.
    unheard: Mutex<HashSet<String>>,
    asked: Arc<strays::Asked>,
    turns: Arc<Turns>,
    events: broadcast::Sender<Event>,
    sampler: Arc<usage::Sampler>,
    layers: fingerprint::Known,
}

impl WasmDriver {
    /// With the defaults of every setting, and no tasks.
    pub fn new() -> Self {
        Self::patient(strays::PATIENCE)
    }

    /// As [`WasmDriver::new`], and a task that no agent knows is ended after `patience`.
    pub fn patient(patience: Duration) -> Self {
        let events = broadcast::channel(EVENTS).0;
        // It is known from here on, whatever this process is short of later.
        api::task::boot();
        Self {
            agent: RwLock::default(),
            tasks: Arc::default(),
            unheard: Mutex::default(),
            asked: Arc::new(strays::Asked::new(patience)),
            turns: Arc::default(),
            events,
            sampler: Arc::default(),
            layers: fingerprint::Known::default(),
        }
    }

    /// The agent knows of this start.
    fn heard(&self, id: &str) -> bool {
        self.unheard.lock().unwrap_or_else(PoisonError::into_inner).remove(id)
    }

    fn is_unheard(&self, id: &str) -> bool {
        self.unheard.lock().unwrap_or_else(PoisonError::into_inner).contains(id)
    }

    /// Somebody still waits for this start. Where nobody does, the agent may have begun another one meanwhile.
    fn wanted(&self, id: &str) -> Result<(), Failure> {
        match self.is_unheard(id) {
            true => Err(Failure::recoverable("the agent hung up before the task was started")),
            false => Ok(()),
        }
    }

    fn agent(&self) -> AgentConfig {
        self.agent.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn say(&self, task: &TaskConfig, message: impl Into<String>) {
        if self.events.send(Event::of(task, message)).is_err() {
            tracing::debug!(task = %task.id, "nobody listens to what happens to tasks");
        }
    }

    /// Tells the agent's people when a task ends otherwise than they asked.
    fn watch(&self, config: TaskConfig, task: Arc<Task>) {
        let events = self.events.clone();
        tokio::spawn(async move {
            let ended = task.wait().await;
            if let Some(problem) = ended.problem {
                drop(events.send(Event::of(&config, problem)));
            }
        });
    }
}

impl Default for WasmDriver {
    fn default() -> Self {
        Self::new()
    }
}

/// Removes what is left of allocations that are gone.
async fn sweep(state: PathBuf) {
    others::sweep(&state, kept::GONE_FOR).await;
    let swept = tokio::task::spawn_blocking(move || kept::sweep(&state, kept::GONE_FOR)).await;
    if let Err(cause) = swept {
        tracing::warn!(%cause, "what is left of allocations that are gone stays");
    }
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
        config.check_grants().map_err(Failure::unrecoverable)?;
        config.check_state_dir().map_err(|why| Failure::unrecoverable(format!("`state_dir`: {why}")))?;
        config.check_waive().map_err(|why| Failure::unrecoverable(format!("`waive`: {why}")))?;
        *self.agent.write().unwrap_or_else(PoisonError::into_inner) = config;
        self.layers.forget();
        Ok(())
    }

    fn task_schema(&self) -> Spec {
        TaskOptions::schema()
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities { networks: &[Mode::Host, Mode::Group, Mode::None], mounts: true, ..Capabilities::default() }
    }

    fn fingerprint(&self) -> BoxStream<'static, Fingerprint> {
        let state = self.agent().state_dir();
        let (asked, turns, tasks) = (self.asked.clone(), self.turns.clone(), self.tasks.clone());
        let begun = tokio::time::Instant::now();
        asked.listens();
        let swept = move |told| {
            let (state, asked, turns, tasks) = (state.clone(), asked.clone(), turns.clone(), tasks.clone());
            // Nobody waits for it.
            tokio::spawn(async move {
                if asked.is_due(begun.elapsed()) {
                    for id in asked.sweep(&state, &turns).await {
                        tasks.remove(&id);
                    }
                }
                sweep(state).await;
            });
            told
        };
        fingerprint::stream(self.agent(), self.layers.clone()).map(swept).boxed()
    }

    async fn start(&self, config: TaskConfig) -> Result<Started, Failure> {
        let unheard = self.heard(&config.id);
        if let Ok(known) = self.tasks.get(&config.id) {
            return match unheard {
                // Its first answer did not arrive.
                true => Ok(Started { state: encode(&known.state)?, network: None }),
                false => Err(Failure::unrecoverable(format!("the task `{}` was started already", config.id))),
            };
        }
        let agent = self.agent();
        let dir = dir_of(&agent, &config.id);
        // Whoever asks at the same time finds what this one begins.
        let turn = self.turns.take(&config.id).await;
        let _call = self.asked.starts(&config.id, Path::new(&config.alloc_dir));
        let begun = match Noted::of(&dir, &config.id).await {
            // A plugin that was killed before the agent heard of it has started it: whatever became of it, that was its start.
            Ok(Noted::Started(state)) => Task::recover(state, &config.name),
            Ok(Noted::Nothing | Noted::Intended(_)) => self.begin(&config, &agent, &dir).await,
            Err(failure) => Err(failure),
        };
        let task = begun.inspect_err(|_| self.asked.end(&config.id))?;
        drop(turn);
        if let Err(failure) = task.runs(STARTED).await {
            // What does not end is ended by the next start of the task, or when it is looked for.
            match task.finish().await {
                Ok(()) => forget(&dir),
                Err(left) => {
                    tracing::error!(task = %config.id, %left, "something is left of a task that did not start")
                }
            }
            self.asked.end(&config.id);
            return Err(failure);
        }
        let own = encode(&task.state)?;
        let state = match self.tasks.add(&config.id, task.clone()) {
            Ok(()) => {
                self.watch(config, task);
                own
            }
            // Asked for twice while it started, and it is one: either answer may be the one that is heard.
            Err(known) if known.state.is_of(&task.state) => encode(&known.state)?,
            Err(_) => {
                // Nobody else would ever end it.
                task.kill().await;
                return Err(Failure::unrecoverable(format!("the task `{}` was started already", config.id)));
            }
        };
        Ok(Started { state, network: None })
    }

    async fn unheard(&self, id: &str) {
        self.unheard.lock().unwrap_or_else(PoisonError::into_inner).insert(id.to_owned());
        tokio::time::sleep(UNHEARD).await;
        // Whoever asks for it meanwhile goes first, and it is heard of then.
        let _turn = self.turns.take(id).await;
        if !self.is_unheard(id) {
            return;
        }
        self.tasks.remove(id);
        match others::end(&dir_of(&self.agent(), id), id).await {
            Ok(()) => {
                self.heard(id);
                tracing::warn!(task = %id, "a start whose agent is gone was ended");
            }
            // What has not come to its process yet goes no further: nobody has heard of it still.
            Err(failure) => tracing::warn!(task = %id, %failure, "a start whose agent is gone stays"),
        }
        self.asked.end(id);
    }

    async fn recover(&self, handle: TaskHandle) -> Result<(), Failure> {
        let TaskHandle { config, driver_state, .. } = handle;
        let config = config.ok_or_else(|| Failure::unrecoverable("the agent's handle names no task"))?;
        self.heard(&config.id);
        // Also where it cannot be recovered: what becomes of it then is for the agent to say.
        self.asked.recovers(&config.id, Path::new(&config.alloc_dir));
        if self.tasks.get(&config.id).is_ok() {
            return Ok(());
        }
        let state: State = decode(&driver_state)?;
        let task = Task::recover(state, &config.name)?;
        let alloc = Path::new(&config.alloc_dir);
        // Where that was removed, nobody would know any more when what is kept of the allocation ends.
        if alloc.is_absolute()
            && let Err(cause) = kept::begin(&self.agent().state_dir(), alloc)
        {
            tracing::warn!(task = %config.id, %cause, "whose data they are is not written down");
        }
        if self.tasks.add(&config.id, task.clone()).is_ok() {
            self.watch(config, task);
        }
        Ok(())
    }

    async fn wait(&self, id: &str) -> Result<ExitResult, Failure> {
        let task = self.tasks.get(id)?;
        let _call = self.asked.waits(id);
        Ok(task.wait().await.result)
    }

    async fn stop(&self, id: &str, timeout: Duration, signal: Option<&str>) -> Result<(), Failure> {
        let task = match self.tasks.get(id) {
            Ok(task) => task,
            Err(_) => match Noted::of(&dir_of(&self.agent(), id), id).await? {
                // It is being started, which then fails.
                Noted::Started(state) => Task::found(state, id)?,
                // One that is unknown has ended: an error would be tried again and again.
                Noted::Nothing | Noted::Intended(_) => return Ok(()),
            },
        };
        match signal {
            Some("SIGKILL") => drop(task.kill().await),
            _ => task.stop(timeout).await,
        }
        Ok(())
    }

    async fn destroy(&self, id: &str, force: bool) -> Result<(), Failure> {
        let Ok(task) = self.tasks.get(id) else {
            // One that could not be recovered may run on, and keep its port from the next.
            let ended = others::end(&dir_of(&self.agent(), id), id).await;
            self.asked.end(id);
            return ended;
        };
        if task.ended().is_none() && !force {
            return Err(Failure::unrecoverable(format!("the task `{id}` still runs")));
        }
        // While anything is left it is known, here and by its directory: it can be asked for again.
        task.finish().await?;
        remove(&task.state.dir)?;
        self.tasks.remove(id);
        self.asked.end(id);
        Ok(())
    }

    async fn inspect(&self, id: &str) -> Result<Inspection, Failure> {
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
        let facts = [("pid".to_owned(), task.state.process.pid.to_string())].into();
        Ok(Inspection { status, facts, network: None })
    }

    fn stats(&self, id: &str, interval: Duration) -> Result<BoxStream<'static, plugin::driver::Usage>, Failure> {
        let task = self.tasks.get(id)?;
        let ended = task.clone();
        let samples = usage::samples(self.sampler.clone(), task.state.process, interval);
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
