//! One task as the driver tracks it: its directory, its process, and how that ended.

use std::fs::{File, TryLockError};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use api::task::{
    EXIT_FILE, LOCK_FILE, PROCESS_FILE, SOCKET, SPEC_FILE, TaskClient, TaskExit, TaskPhase, TaskProcess, TaskSpec, boot,
};
use api::{Code, Problem};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use super::cgroup::Made;
use super::process::{Identity, Process, clear, last_words};
use crate::plugin::driver::ExitResult;
use crate::plugin::{Class, Failure};

/// What a start is about to do, [`Intent`].
const START_FILE: &str = "start.json";
/// How long a process that was started may take to say who it is.
const PATIENCE: Duration = Duration::from_secs(30);
/// How often it is looked for.
const LOOK: Duration = Duration::from_millis(5);
/// Version of [`State`].
pub const STATE_VERSION: u32 = 1;
/// A task that was told to stop keeps this part of its time for its last calls; the rest is for the end of its processes.
const DRAIN_SHARE: f64 = 0.8;
/// The signal of a process that was killed.
const KILLED: i32 = 9;

/// What finds a task again; kept by the agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// Its directory.
    pub dir: PathBuf,
    /// Its process.
    pub process: Identity,
    /// The boot of the machine it was started in: in another one its number and its session are somebody else's.
    #[serde(default)]
    pub boot: String,
    /// What bounds it.
    pub groups: Made,
}

/// A task.
#[derive(Debug)]
pub struct Task {
    /// What the agent is to keep of it.
    pub state: State,
    /// What the job calls it.
    pub name: String,
    /// When it was started, or found again.
    pub since: SystemTime,
    client: TaskClient,
    process: Option<Arc<Process>>,
    ended: watch::Receiver<Option<Ended>>,
}

/// How a task ended.
#[derive(Debug, Clone, PartialEq)]
pub struct Ended {
    /// As the agent is told.
    pub result: ExitResult,
    /// In words, where something went wrong.
    pub problem: Option<String>,
    /// When.
    pub at: SystemTime,
}

/// What a start is about to do, written down before it does anything: whatever becomes of the plugin in between, the next one
/// finds what there is.
#[derive(Debug, Serialize, Deserialize)]
pub struct Intent {
    /// The agent's name of the task.
    pub id: String,
    /// The control groups that are made for it.
    pub groups: Made,
}

/// What is known of the start of a task.
#[derive(Debug)]
pub enum Noted {
    /// There was none.
    Nothing,
    /// It came to nothing; this may be left of it.
    Intended(Intent),
    /// There is a process, or was one.
    Started(State),
}

impl Noted {
    /// Looks into the directory of the task of this id. A process that is being started is waited for: it holds the lock of
    /// the directory from its beginning, and says who it is before it does anything.
    ///
    /// # Errors
    /// Where the directory is another task's, or somebody holds it and does not say who that is.
    pub async fn of(dir: &Path, id: &str) -> Result<Self, Failure> {
        let Some(intent) = read::<Intent>(&dir.join(START_FILE)) else { return Ok(Self::Nothing) };
        if intent.id != id {
            let text = format!("{} is the directory of the task `{}`", dir.display(), intent.id);
            return Err(Failure::unrecoverable(text));
        }
        let until = tokio::time::Instant::now() + PATIENCE;
        loop {
            // Looked at before the file: whoever has ended since then has written it.
            let held = is_held(dir);
            if let Some(TaskProcess { pid, started, boot }) = read(&dir.join(PROCESS_FILE)) {
                let process = Identity { pid, started };
                return Ok(Self::Started(State { dir: dir.to_owned(), process, boot, groups: intent.groups }));
            }
            if !held {
                return Ok(Self::Intended(intent));
            }
            if tokio::time::Instant::now() > until {
                let text = format!("whoever starts the task in {} does not say who it is", dir.display());
                return Err(Failure::recoverable(text));
            }
            tokio::time::sleep(LOOK).await;
        }
    }
}

/// Whether a process has the directory, as the starter of its task or as the task.
fn is_held(dir: &Path) -> bool {
    let Ok(file) = File::open(dir.join(LOCK_FILE)) else { return false };
    matches!(file.try_lock(), Err(TryLockError::WouldBlock))
}

impl Task {
    /// Writes down what is about to be done in a fresh directory, and takes it.
    ///
    /// # Errors
    /// When it cannot be written, or somebody has it.
    pub fn intend(dir: &Path, intent: &Intent) -> Result<File, Failure> {
        let lock = || {
            let mut options = File::options();
            let lock = OpenOptionsExt::mode(options.create(true).append(true), 0o600).open(dir.join(LOCK_FILE))?;
            lock.try_lock()?;
            let text = serde_json::to_vec(intent)?;
            write_whole(&dir.join(START_FILE), &text)?;
            Ok(lock)
        };
        lock().map_err(|cause: std::io::Error| {
            Failure::recoverable(format!("the task cannot be written to {}: {cause}", dir.display()))
        })
    }

    /// Starts the task of a fresh directory, with its lock. See [`Task::runs`].
    ///
    /// # Errors
    /// Why it is not started. Its directory is for the caller to remove.
    pub fn start(
        sidereal: &Path,
        (dir, lock): (&Path, File),
        spec: &TaskSpec,
        groups: Made,
        name: &str,
    ) -> Result<Arc<Self>, Failure> {
        let written = serde_json::to_vec(spec).map_err(std::io::Error::from);
        let written = written.and_then(|text| write_whole(&dir.join(SPEC_FILE), &text));
        written.map_err(|cause| {
            Failure::recoverable(format!("the task cannot be written to {}: {cause}", dir.display()))
        })?;
        let process = Process::start(sidereal, dir, lock);
        let process = process
            .map_err(|cause| Failure::recoverable(format!("{} cannot be started: {cause}", sidereal.display())))?;
        let state = State { dir: dir.to_owned(), process: process.identity, boot: boot(), groups };
        Ok(Self::track(state, name, Some(process)))
    }

    /// Tracks a task that another plugin process started; one that has ended is tracked as that.
    ///
    /// # Errors
    /// When nothing is left of it.
    pub fn recover(state: State, name: &str) -> Result<Arc<Self>, Failure> {
        if !state.dir.join(SPEC_FILE).is_file() {
            let dir = state.dir.display();
            return Err(Failure::unrecoverable(format!("nothing is left of the task: {dir} is gone")));
        }
        Self::found(state, name)
    }

    /// Tracks a task whatever is left of it.
    ///
    /// # Errors
    /// When the kernel gives no handle of its process.
    pub fn found(state: State, name: &str) -> Result<Arc<Self>, Failure> {
        let found = match state.boot == boot() {
            true => Process::again(state.process),
            // Numbers of another boot are somebody else's.
            false => Ok(None),
        };
        let process = found.map_err(|cause| Failure::recoverable(format!("the task cannot be found: {cause}")))?;
        Ok(Self::track(state, name, process))
    }

    fn track(state: State, name: &str, process: Option<Process>) -> Arc<Self> {
        let (tell, ended) = watch::channel(None);
        let process = process.map(Arc::new);
        let (watched, dir) = (process.clone(), state.dir.clone());
        tokio::spawn(async move {
            if let Some(process) = watched {
                process.ended().await;
            }
            tell.send_replace(Some(how(&dir)));
        });
        let client = TaskClient::new(state.dir.join(SOCKET));
        Arc::new(Self { state, name: name.to_owned(), since: SystemTime::now(), client, process, ended })
    }

    /// Waits until it runs.
    ///
    /// # Errors
    /// Why it does not.
    pub async fn runs(&self) -> Result<(), Failure> {
        let mut pause = Duration::from_millis(1);
        loop {
            let asked = tokio::select! {
                asked = self.client.started() => asked,
                ended = self.wait() => return self.had_started(ended),
            };
            match asked {
                Ok(status) if status.phase == TaskPhase::Failed => {
                    let ended = self.wait().await;
                    return self.had_started(ended);
                }
                Ok(_) => return Ok(()),
                // No socket yet.
                Err(_) => tokio::time::sleep(pause).await,
            }
            pause = (pause * 2).min(Duration::from_millis(20));
        }
    }

    /// A program may have ended before anybody asked: that is no failure to start.
    fn had_started(&self, ended: Ended) -> Result<(), Failure> {
        let exit = read_exit(&self.state.dir);
        if exit.as_ref().is_some_and(|exit| exit.ran) {
            return Ok(());
        }
        Err(match exit.and_then(|exit| exit.problem) {
            Some(problem) => failure(&problem),
            None => {
                let words = last_words(&self.state.dir).map_or_else(String::new, |words| format!(": {words}"));
                let signal = if ended.result.signal == 0 { "" } else { ", killed" };
                Failure::recoverable(format!("the task's process ended before it ran{signal}{words}"))
            }
        })
    }

    /// Waits until it has ended.
    pub async fn wait(&self) -> Ended {
        let mut ended = self.ended.clone();
        let seen = ended.wait_for(Option::is_some).await.ok().and_then(|seen| seen.clone());
        seen.unwrap_or_else(|| how(&self.state.dir))
    }

    /// How it ended, where it has.
    pub fn ended(&self) -> Option<Ended> {
        self.ended.borrow().clone()
    }

    /// Ends it within `timeout`: its calls first, then whatever is left.
    pub async fn stop(&self, timeout: Duration) {
        if self.ended().is_some() {
            return;
        }
        let asked = async {
            if let Err(cause) = self.client.stop(timeout.mul_f64(DRAIN_SHARE)).await {
                tracing::debug!(%cause, "a task does not answer and is killed when its time is up");
            }
            self.wait().await
        };
        if tokio::time::timeout(timeout, asked).await.is_err() {
            tracing::info!(task = %self.name, ?timeout, "a task did not end in time and is killed");
        }
        self.kill().await;
    }

    /// Ends it at once, with everything it started.
    pub async fn kill(&self) {
        if let Some(process) = &self.process {
            process.kill();
        }
        self.wait().await;
        if self.state.boot != boot() {
            return;
        }
        let left = clear(self.state.process).await;
        if left > 0 {
            tracing::error!(task = %self.name, left, "processes of a task do not end");
        }
    }
}

/// As what an agent takes it: what is about something beside the task may pass.
fn failure(problem: &Problem) -> Failure {
    let class = match problem.code {
        Code::Unreachable | Code::TimedOut | Code::StoreUnavailable | Code::Busy | Code::ProviderUnavailable => {
            Class::Recoverable
        }
        _ => Class::Unrecoverable,
    };
    let help = problem.help.as_ref().map_or_else(String::new, |help| format!(" ({help})"));
    Failure { class, message: format!("{} [{}]{help}", problem.detail, problem.code.as_str()) }
}

fn read<T: DeserializeOwned>(path: &Path) -> Option<T> {
    serde_json::from_slice(&std::fs::read(path).ok()?).ok()
}

fn read_exit(dir: &Path) -> Option<TaskExit> {
    read(&dir.join(EXIT_FILE))
}

/// How a process that has ended ended: as it wrote down, or killed where it could not.
fn how(dir: &Path) -> Ended {
    match read_exit(dir) {
        Some(exit) => Ended {
            result: ExitResult {
                exit_code: exit.code,
                signal: if exit.oom { KILLED } else { 0 },
                oom_killed: exit.oom,
            },
            problem: exit.problem.map(|problem| problem.detail),
            at: SystemTime::UNIX_EPOCH + Duration::from_millis(exit.ended_ms),
        },
        None => Ended {
            result: ExitResult { exit_code: 128 + KILLED, signal: KILLED, oom_killed: false },
            problem: Some("the task's process was killed".to_owned()),
            at: SystemTime::now(),
        },
    }
}

fn write_whole(path: &Path, text: &[u8]) -> std::io::Result<()> {
    let partial = path.with_extension("partial");
    std::fs::write(&partial, text).and_then(|()| std::fs::rename(&partial, path))
}
