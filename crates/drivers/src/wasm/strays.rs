//! Tasks that run and that no agent knows. Where plugin and agent are both killed while a task starts, and its job is stopped
//! before an agent is there again, no start of it follows and nobody asks for its end: it would run, with its port, until its
//! allocation is gone. An agent that starts asks at once for every task it knows; what it has not asked for long after that, it
//! does not know.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::noted::Intent;
use super::others;
use super::turns::Turns;

/// How long an agent has taken fingerprints of one stream, and has waited for tasks, without a word of a task, before it is taken that it does not know the
/// task. An agent that is away takes none, however long it is away.
pub const PATIENCE: Duration = Duration::from_secs(600);

/// The tasks that this process was asked for, to start or to recover, and not to destroy since.
#[derive(Debug, Default)]
pub struct Asked(Mutex<Known>);

#[derive(Debug, Default)]
struct Known {
    ids: HashSet<String>,
    /// The folders of the allocations of those who asked: of another agent, whose plugin may have the same `state_dir`, nothing is
    /// known here.
    folders: HashSet<PathBuf>,
    /// When the agent first waited for a task or started one: by then it has asked for all that it knows, of every driver.
    whole: Option<Instant>,
}

impl Asked {
    /// The agent asks for this task of the allocation in this directory.
    pub fn begin(&self, id: &str, alloc: &Path) {
        let mut known = self.known();
        known.ids.insert(id.to_owned());
        known.folders.extend(folder(alloc));
    }

    /// The agent waits for a task or starts one, which it does once it has recovered all of them.
    pub fn waits(&self) {
        self.known().whole.get_or_insert_with(Instant::now);
    }

    /// Whether an agent that has taken fingerprints of one stream for so long has had the time to ask.
    pub fn is_due(&self, listens: Duration) -> bool {
        let waited = self.known().whole.map(|since| since.elapsed());
        waited.is_some_and(|waited| listens.min(waited) >= PATIENCE)
    }

    /// It came to nothing, or is no more.
    pub fn end(&self, id: &str) {
        self.known().ids.remove(id);
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_stray(&self, Intent { id, alloc, .. }: &Intent) -> bool {
        let known = self.known();
        !known.ids.contains(id) && folder(alloc).is_some_and(|folder| known.folders.contains(&folder))
    }

    /// Ends what the agent has not asked for. To be called once it has had the time to.
    pub async fn sweep(&self, state: &Path, turns: &Turns) {
        let started = match others::started(state) {
            Ok(started) => started,
            Err(failure) => return tracing::warn!(%failure, "tasks that no agent knows are not looked for"),
        };
        for (dir, intent) in started.into_iter().filter(|(_, intent)| self.is_stray(intent)) {
            let id = &intent.id;
            // Whoever is asked for it meanwhile goes first, and it is known then.
            let _turn = turns.take(id).await;
            if !self.is_stray(&intent) {
                continue;
            }
            match others::end(&dir, id).await {
                Ok(()) => tracing::warn!(
                    task = %id,
                    "a task was ended that no agent knows: the agent has been here for {} minutes and has neither started nor \
                     recovered it, as where it was killed together with its plugin before it heard of the task's start",
                    PATIENCE.as_secs() / 60
                ),
                Err(failure) => tracing::warn!(task = %id, %failure, "a task that no agent knows stays"),
            }
        }
    }
}

/// The folder that an agent has all its allocations in.
fn folder(alloc: &Path) -> Option<PathBuf> {
    alloc.parent().filter(|_| alloc.is_absolute()).map(Path::to_owned)
}

#[cfg(test)]
mod tests {
    use super::super::cgroup::Made;
    use super::super::noted::START_FILE;
    use super::*;

    /// Writes down a start that came to nothing; its directory.
    fn begun(state: &Path, id: &str, alloc: &str) -> PathBuf {
        let dir = others::folder(state).join(model::Digest::of(id.as_bytes()).short());
        std::fs::create_dir_all(&dir).unwrap();
        let intent = Intent { id: id.to_owned(), alloc: alloc.into(), groups: Made::default() };
        std::fs::write(dir.join(START_FILE), serde_json::to_vec(&intent).unwrap()).unwrap();
        dir
    }

    #[tokio::test]
    async fn what_the_agent_asked_for_and_what_is_another_agents_stays() {
        let state = tempfile::tempdir().unwrap();
        let (asked, turns) = (Asked::default(), Turns::default());
        let mine = begun(state.path(), "a/web/1", "/nomad/alloc/a");
        let stray = begun(state.path(), "b/web/1", "/nomad/alloc/b");
        let others = begun(state.path(), "c/web/1", "/other/alloc/c");
        let unsaid = begun(state.path(), "d/web/1", "");
        let there = || [&mine, &stray, &others, &unsaid].map(|dir| dir.exists());
        asked.sweep(state.path(), &turns).await;
        assert_eq!(there(), [true; 4], "nothing is known of an agent that has asked for nothing");
        asked.begin("a/web/1", Path::new("/nomad/alloc/a"));
        asked.sweep(state.path(), &turns).await;
        assert_eq!(there(), [true, false, true, true]);
        asked.end("a/web/1");
        asked.sweep(state.path(), &turns).await;
        assert_eq!(there(), [false, false, true, true], "the agent wants no more of it");
    }

    /// Agents recover what they know one after the other, before they do anything else.
    #[test]
    fn an_agent_has_the_time_to_ask() {
        let asked = Asked::default();
        assert!(!asked.is_due(PATIENCE), "it has waited for nothing yet");
        asked.waits();
        assert!(!asked.is_due(PATIENCE), "not for so long");
        asked.known().whole = Instant::now().checked_sub(PATIENCE);
        assert!(!asked.is_due(Duration::from_secs(599)) && asked.is_due(PATIENCE));
    }

    /// One that is started, or recovered, at that very moment is known by the time it is its turn.
    #[tokio::test]
    async fn who_asks_meanwhile_is_in_time() {
        let state = tempfile::tempdir().unwrap();
        let (asked, turns) = (Asked::default(), Turns::default());
        let dir = begun(state.path(), "a/web/1", "/nomad/alloc/a");
        asked.begin("b/web/1", Path::new("/nomad/alloc/b"));
        let turn = turns.take("a/web/1").await;
        let mut sweeps = Box::pin(asked.sweep(state.path(), &turns));
        assert!(futures::poll!(&mut sweeps).is_pending());
        asked.begin("a/web/1", Path::new("/nomad/alloc/a"));
        drop(turn);
        sweeps.await;
        assert!(dir.exists());
    }
}
