//! Tasks that run and that no agent knows. Where an agent is killed before it has written down that it started a task, alone or
//! together with its plugin, and the job is stopped before an agent is there again, no start of it follows and nobody asks for its
//! end: it would run, with its port, until its allocation is gone. What an agent knows it waits for, as long as that runs, or has
//! recovered and waits for once its hooks are through. An agent that starts asks at once for every task it knows; what it neither
//! waits for nor has recovered long after that, it does not know.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::noted::Intent;
use super::others;
use super::turns::Turns;

/// How long an agent has taken fingerprints of one stream, and has waited for tasks, and how long nobody has waited for a task,
/// before it is taken that the agent does not know the task. An agent that is away takes none, however long it is away.
pub const PATIENCE: Duration = Duration::from_secs(600);

/// What the agent asks this process for.
#[derive(Debug)]
pub struct Asked {
    patience: Duration,
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    /// The tasks that it was asked for, to start or to recover, and not to destroy since.
    tasks: HashMap<String, Calls>,
    /// The folders of the allocations of those who asked: of another agent, whose plugin may have the same `state_dir`, nothing is
    /// known here.
    folders: HashSet<PathBuf>,
    /// When the agent first waited for a task or started one: by then it has asked for all that it knows, of every driver.
    whole: Option<Instant>,
}

/// How an agent has asked for a task.
#[derive(Debug)]
struct Calls {
    /// Starts that are under way, and waits.
    open: usize,
    /// When the last of them ended.
    since: Instant,
    /// It was recovered and not waited for since: hooks come in between, which may wait for other servers for as long as they are
    /// away.
    recovered: bool,
    /// It is no more: what is known of it goes with the last call.
    over: bool,
}

impl Default for Calls {
    fn default() -> Self {
        Self { open: 0, since: Instant::now(), recovered: false, over: false }
    }
}

/// A call of the agent's, which knows the task as long as that lasts.
#[derive(Debug)]
pub struct Call {
    asked: Arc<Asked>,
    id: String,
}

impl Drop for Call {
    fn drop(&mut self) {
        let tasks = &mut self.asked.known().tasks;
        if let Some(calls) = tasks.get_mut(&self.id) {
            calls.open = calls.open.saturating_sub(1);
            calls.since = Instant::now();
            if calls.open == 0 && calls.over {
                tasks.remove(&self.id);
            }
        }
    }
}

impl Asked {
    /// Nothing yet. A task that nobody knows is ended after `patience`.
    pub fn new(patience: Duration) -> Self {
        Self { patience, known: Mutex::default() }
    }

    /// An agent begins to take fingerprints. It may be another one, which has yet to ask for what it knows.
    pub fn listens(&self) {
        self.known().whole = None;
    }

    /// The agent starts this task of the allocation in this directory, which it does once it has recovered all that it knows.
    pub fn starts(self: &Arc<Self>, id: &str, alloc: &Path) -> Call {
        self.known().folders.extend(folder(alloc));
        self.call(id)
    }

    /// The agent waits for a task, which it does once it has recovered all that it knows.
    pub fn waits(self: &Arc<Self>, id: &str) -> Call {
        let call = self.call(id);
        self.known().tasks.entry(id.to_owned()).or_default().recovered = false;
        call
    }

    fn call(self: &Arc<Self>, id: &str) -> Call {
        let mut known = self.known();
        known.whole.get_or_insert_with(Instant::now);
        let calls = known.tasks.entry(id.to_owned()).or_default();
        (calls.open, calls.over) = (calls.open + 1, false);
        Call { asked: self.clone(), id: id.to_owned() }
    }

    /// The agent recovers this task of the allocation in this directory.
    pub fn recovers(&self, id: &str, alloc: &Path) {
        let mut known = self.known();
        known.folders.extend(folder(alloc));
        known.tasks.entry(id.to_owned()).or_default().recovered = true;
    }

    /// Whether an agent that has taken fingerprints of one stream for so long has had the time to ask.
    pub fn is_due(&self, listens: Duration) -> bool {
        let waited = self.known().whole.map(|since| since.elapsed());
        waited.is_some_and(|waited| listens.min(waited) >= self.patience)
    }

    /// It came to nothing, or is no more.
    pub fn end(&self, id: &str) {
        let tasks = &mut self.known().tasks;
        // Whoever else asks for it at this moment knows it still.
        match tasks.get_mut(id).filter(|calls| calls.open > 1) {
            Some(calls) => (calls.recovered, calls.over) = (false, true),
            None => drop(tasks.remove(id)),
        }
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_stray(&self, Intent { id, alloc, .. }: &Intent) -> bool {
        let known = self.known();
        let here = folder(alloc).is_some_and(|folder| known.folders.contains(&folder));
        let over = |calls: &Calls| calls.open == 0 && !calls.recovered && calls.since.elapsed() >= self.patience;
        here && known.tasks.get(id).is_none_or(over)
    }

    /// Ends what the agent does not know; which tasks that were. To be called once it has had the time to ask for it.
    pub async fn sweep(&self, state: &Path, turns: &Turns) -> Vec<String> {
        let mut ended = Vec::new();
        let started = others::started(state).unwrap_or_else(|failure| {
            tracing::warn!(%failure, "tasks that no agent knows are not looked for");
            Vec::new()
        });
        for (dir, intent) in started.into_iter().filter(|(_, intent)| self.is_stray(intent)) {
            let id = &intent.id;
            // Whoever is asked for it meanwhile goes first, and it is known then.
            let _turn = turns.take(id).await;
            if !self.is_stray(&intent) {
                continue;
            }
            match others::end(&dir, id).await {
                Ok(()) => {
                    tracing::warn!(
                        task = %id,
                        "a task was ended that no agent knows: one has been here for {} minutes and has neither waited for it nor \
                         recovered it, as where it was killed before it had written down that it started the task",
                        self.patience.as_secs() / 60
                    );
                    self.end(id);
                    ended.push(intent.id);
                }
                Err(failure) => tracing::warn!(task = %id, %failure, "a task that no agent knows stays"),
            }
        }
        ended
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

    fn intent(id: &str, alloc: &str) -> Intent {
        Intent { id: id.to_owned(), alloc: alloc.into(), groups: Made::default() }
    }

    /// Writes down a start that came to nothing; its directory.
    fn begun(state: &Path, id: &str, alloc: &str) -> PathBuf {
        let dir = others::folder(state).join(model::Digest::of(id.as_bytes()).short());
        std::fs::create_dir_all(&dir).unwrap();
        std::fs::write(dir.join(START_FILE), serde_json::to_vec(&intent(id, alloc)).unwrap()).unwrap();
        dir
    }

    #[tokio::test]
    async fn what_the_agent_asked_for_and_what_is_another_agents_stays() {
        let state = tempfile::tempdir().unwrap();
        let (asked, turns) = (Arc::new(Asked::new(PATIENCE)), Turns::default());
        let mine = begun(state.path(), "a/web/1", "/nomad/alloc/a");
        let stray = begun(state.path(), "b/web/1", "/nomad/alloc/b");
        let others = begun(state.path(), "c/web/1", "/other/alloc/c");
        let unsaid = begun(state.path(), "d/web/1", "");
        let there = || [&mine, &stray, &others, &unsaid].map(|dir| dir.exists());
        assert!(asked.sweep(state.path(), &turns).await.is_empty());
        assert_eq!(there(), [true; 4], "nothing is known of an agent that has asked for nothing");
        let start = asked.starts("a/web/1", Path::new("/nomad/alloc/a"));
        assert_eq!(asked.sweep(state.path(), &turns).await, ["b/web/1"]);
        assert_eq!(there(), [true, false, true, true]);
        drop(start);
        assert!(asked.sweep(state.path(), &turns).await.is_empty());
        assert_eq!(there(), [true, false, true, true], "it was answered a moment ago");
        asked.end("a/web/1");
        assert_eq!(asked.sweep(state.path(), &turns).await, ["a/web/1"], "the agent wants no more of it");
        assert_eq!(there(), [false, false, true, true]);
    }

    /// An agent writes a start down before it waits for the task, and has hooks to run between recovery and wait.
    #[test]
    fn an_agent_knows_what_it_waits_for_and_what_it_has_recovered() {
        let (asked, alloc) = (Arc::new(Asked::new(Duration::ZERO)), Path::new("/nomad/alloc/a"));
        let stray = || asked.is_stray(&intent("a/web/1", "/nomad/alloc/a"));
        let start = asked.starts("a/web/1", alloc);
        assert!(!stray(), "it starts");
        drop(start);
        assert!(stray(), "nobody waits for it");
        let (first, second) = (asked.waits("a/web/1"), asked.waits("a/web/1"));
        drop(first);
        assert!(!stray(), "somebody waits for it");
        drop(second);
        assert!(stray(), "nobody does any more");
        asked.recovers("a/web/1", alloc);
        assert!(!stray(), "the next agent knows it");
        drop(asked.waits("a/web/1"));
        assert!(stray(), "and is gone");
    }

    /// Agents recover what they know one after the other, before they do anything else.
    #[test]
    fn an_agent_has_the_time_to_ask() {
        let asked = Arc::new(Asked::new(PATIENCE));
        assert!(!asked.is_due(PATIENCE), "it has waited for nothing yet");
        let wait = asked.waits("a/web/1");
        assert!(!asked.is_due(PATIENCE), "not for so long");
        asked.known().whole = Instant::now().checked_sub(PATIENCE);
        assert!(!asked.is_due(Duration::from_secs(599)) && asked.is_due(PATIENCE));
        drop(wait);
        asked.listens();
        assert!(!asked.is_due(PATIENCE), "that was another agent");
    }

    /// One that is started, or recovered, at that very moment is known by the time it is its turn.
    #[tokio::test]
    async fn who_asks_meanwhile_is_in_time() {
        let state = tempfile::tempdir().unwrap();
        let (asked, turns) = (Arc::new(Asked::new(PATIENCE)), Turns::default());
        let dir = begun(state.path(), "a/web/1", "/nomad/alloc/a");
        asked.recovers("b/web/1", Path::new("/nomad/alloc/b"));
        let turn = turns.take("a/web/1").await;
        let mut sweeps = Box::pin(asked.sweep(state.path(), &turns));
        assert!(futures::poll!(&mut sweeps).is_pending());
        let _start = asked.starts("a/web/1", Path::new("/nomad/alloc/a"));
        drop(turn);
        sweeps.await;
        assert!(dir.exists());
    }
}
