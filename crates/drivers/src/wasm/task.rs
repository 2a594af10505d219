//! One task as the driver tracks it: its directory, its process, and how that ended.

use std::fs::File;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use api::task::{EXIT_FILE, LOCK_FILE, SOCKET, SPEC_FILE, TaskClient, TaskPhase, TaskSpec, boot};
use api::{Code, Problem};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use super::cgroup::Made;
use super::end::{self, Ended};
use super::noted::{Intent, START_FILE};
use super::process::{Identity, Process, Seen, clear, last_words};
use plugin::{Class, Failure};

/// A task that was told to stop keeps this part of its time for its last calls; the rest is for the end of its processes.
const DRAIN_SHARE: f64 = 0.8;
/// How long the process of a task that was killed may take to be gone, and what it wrote down to be read.
const KILLED: Duration = Duration::from_secs(20);

/// What finds a task again; kept by the agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// Its directory.
    pub dir: PathBuf,
    /// Its process.
    pub process: Identity,
    /// The boot of the machine it was started in: in another one its number and its session are somebody else's.
    pub boot: String,
    /// What bounds it.
    pub groups: Made,
}

impl State {
    /// Whether both are of one process.
    pub fn is_of(&self, other: &Self) -> bool {
        (self.process, &self.boot) == (other.process, &other.boot)
    }
}

impl plugin::tasks::State for State {
    const VERSION: u32 = 1;
}

/// A task.
#[derive(Debug)]
pub struct Task {
    /// What the agent is to keep of it.
    pub state: State,
    /// What the job calls it.
    pub name: String,
    /// When it was started.
    pub since: SystemTime,
    client: TaskClient,
    process: Option<Arc<Process>>,
    ended: watch::Receiver<Option<Ended>>,
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
    pub async fn start(
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
        let process = Process::start(sidereal, dir, lock).await;
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
        // What says how it ended says enough: nobody runs it again for a file that was removed as too old.
        let is_there = |name: &&str| !matches!(state.dir.join(name).try_exists(), Ok(false));
        let there = [SPEC_FILE, EXIT_FILE].iter().any(is_there);
        let task = Self::found(state, name)?;
        // One that runs without its directory would keep its port from the next start: it is tracked, to be ended.
        if !there && task.process.is_none() {
            let dir = task.state.dir.display();
            return Err(Failure::unrecoverable(format!("nothing is left of the task: {dir} is gone")));
        }
        Ok(task)
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
        let (watched, of) = (process.clone(), state.clone());
        tokio::spawn(async move {
            let status = match watched {
                Some(process) => process.ended().await,
                None => None,
            };
            end::readable(&of.dir).await;
            tell.send_replace(Some(Ended::of(&of.dir, of.boot != boot(), status)));
        });
        let client = TaskClient::new(state.dir.join(SOCKET));
        // Written once, just before its process was started.
        let since = std::fs::metadata(state.dir.join(SPEC_FILE)).and_then(|found| found.modified());
        let since = since.ok().or_else(|| Seen::of(process.as_ref()?.identity.pid).ok()??.began());
        let since = since.unwrap_or_else(SystemTime::now);
        Arc::new(Self { state, name: name.to_owned(), since, client, process, ended })
    }

    /// Waits until it runs, not longer than `patience`.
    ///
    /// # Errors
    /// Why it does not.
    pub async fn runs(&self, patience: Duration) -> Result<(), Failure> {
        let late = || Failure::recoverable(format!("the task does not run after {} minutes", patience.as_secs() / 60));
        tokio::time::timeout(patience, self.run_or_end()).await.unwrap_or_else(|_| Err(late()))
    }

    async fn run_or_end(&self) -> Result<(), Failure> {
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
        let exit = end::written(&self.state.dir);
        if exit.as_ref().is_some_and(|exit| exit.ran) {
            return Ok(());
        }
        let oom = exit.as_ref().is_some_and(|exit| exit.oom);
        Err(match exit.and_then(|exit| exit.problem) {
            Some(problem) => failure(&problem, oom),
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
        seen.unwrap_or_else(|| Ended::of(&self.state.dir, self.state.boot != boot(), None))
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
                // Somebody has removed its socket: it hears signals, and its calls have a moment.
                if let (Ok(false), Some(process)) = (self.state.dir.join(SOCKET).try_exists(), &self.process) {
                    process.terminate();
                }
            }
            self.wait().await
        };
        if tokio::time::timeout(timeout, asked).await.is_err() {
            tracing::info!(task = %self.name, ?timeout, "a task did not end in time and is killed");
        }
        // Whoever asks for the end of what is left says so when it is destroyed.
        self.kill().await;
    }

    /// Ends it at once, with everything it started. How many processes do not end: the kernel cannot end one that waits for a disk
    /// that does not answer.
    pub async fn kill(&self) -> usize {
        if let Some(process) = &self.process {
            process.kill();
        }
        // One that the kernel cannot end yet is counted below.
        if tokio::time::timeout(KILLED, self.wait()).await.is_err() {
            tracing::error!(task = %self.name, "the process of a task does not end");
        }
        if self.state.boot != boot() {
            return 0;
        }
        let left = clear(self.state.process, self.over()).await;
        if left > 0 {
            tracing::error!(task = %self.name, left, "processes of a task do not end");
        }
        left
    }

    /// Ends it at once, and removes its control groups: nothing is left of it then but its directory.
    ///
    /// # Errors
    /// Recoverable: what is left. Its directory says so, and is not to be removed.
    pub async fn finish(&self) -> Result<(), Failure> {
        let left = self.kill().await;
        let groups = self.state.groups.clear().await;
        if left > 0 {
            return Err(Failure::recoverable(format!(
                "{left} processes of the task do not end, of the session {}",
                self.state.process.pid
            )));
        }
        groups
    }

    /// When it ended, as it wrote down, or as it was seen; `None` where neither is so. What began later is not its own.
    fn over(&self) -> Option<SystemTime> {
        let written = end::written(&self.state.dir);
        let written = written.map(|exit| SystemTime::UNIX_EPOCH + Duration::from_millis(exit.ended_ms));
        written.or_else(|| self.process.as_ref().and_then(|_| Some(self.ended()?.at)))
    }
}

/// As what an agent takes it: what is about something beside the task may pass. So may what was killed because memory ran out
/// (`oom`): how much a start takes depends on what else is there.
fn failure(problem: &Problem, oom: bool) -> Failure {
    let class = match problem.code {
        _ if oom => Class::Recoverable,
        Code::Unreachable | Code::TimedOut | Code::StoreUnavailable | Code::Busy | Code::ProviderUnavailable => {
            Class::Recoverable
        }
        // Nothing that the job says: a process that did not come up, something this machine lacks at the moment.
        Code::Internal | Code::StartFailed => Class::Recoverable,
        _ => Class::Unrecoverable,
    };
    Failure { class, message: end::in_words(problem) }
}

/// Writes a file that is there whole or not at all.
pub fn write_whole(path: &Path, text: &[u8]) -> std::io::Result<()> {
    let partial = path.with_extension("partial");
    std::fs::write(&partial, text).and_then(|()| std::fs::rename(&partial, path))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(dir: &Path, pid: i32) -> State {
        let process = Seen::of(pid).unwrap().map_or(Identity { pid, started: 1 }, |seen| seen.identity);
        State { dir: dir.to_owned(), process, boot: boot(), groups: Made::default() }
    }

    #[test]
    fn what_the_machine_lacks_is_no_fault_of_the_job() {
        let class = |code, oom| failure(&Problem::new(code, "x"), oom).class;
        assert_eq!(class(Code::LimitReached, true), Class::Recoverable, "memory ran out");
        assert_eq!(class(Code::LimitReached, false), Class::Unrecoverable, "a limit of the component's own");
        for code in [Code::Busy, Code::StoreUnavailable, Code::TimedOut, Code::ProviderUnavailable, Code::StartFailed] {
            assert_eq!(class(code, false), Class::Recoverable, "{code:?}");
        }
        for code in [Code::CompileFailed, Code::ArtifactMissing, Code::ManifestInvalid, Code::LinkMissing] {
            assert_eq!(class(code, false), Class::Unrecoverable, "{code:?}");
        }
    }

    /// What began after a task ended has its session's number and is somebody else's, whether the end was written down or seen.
    #[tokio::test]
    async fn an_end_that_was_seen_is_known_without_a_file() {
        let dir = tempfile::tempdir().unwrap();
        let mut child = tokio::process::Command::new("setsid").args(["sleep", "600"]).spawn().unwrap();
        let state = state(dir.path(), i32::try_from(child.id().unwrap()).unwrap());
        let task = Task::found(state.clone(), "web").unwrap();
        assert_eq!(task.over(), None, "it runs");
        child.start_kill().unwrap();
        child.wait().await.unwrap();
        let at = task.wait().await.at;
        assert_eq!(task.over(), Some(at));
        let later = Task::found(state, "web").unwrap();
        later.wait().await;
        assert_eq!(later.over(), None, "nobody saw when");
    }
}
