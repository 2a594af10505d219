//! What is left of starts that nobody asks about any more. An agent that is killed while a task starts never learns of it: its
//! next start of the same task has another id. Both are of the same task of the same allocation, of which there is one at most.

use std::io;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::folder::remove;
use super::kept::gone_for;
use super::noted::{Intent, Noted, is_absent, is_held};
use super::task::Task;
use api::task::SOCKET;
use plugin::Failure;

/// In the directory of a task whose allocation is gone, since when.
const GONE: &str = "gone.txt";

/// The directories of all tasks.
pub fn folder(state: &Path) -> PathBuf {
    state.join("tasks")
}

/// Ends the task of this id and this directory, whatever is left of it, and removes what is left of it.
///
/// # Errors
/// Where the directory is another task's, where its process is not found, or does not end, or cannot be removed. What says whose it
/// is stays then.
pub async fn end(dir: &Path, id: &str) -> Result<(), Failure> {
    match Noted::of(dir, id).await? {
        Noted::Nothing => {}
        Noted::Intended(Intent { groups, .. }) => groups.clear().await?,
        Noted::Started(state) => Task::found(state, id)?.finish().await?,
    }
    remove(dir)
}

/// Ends every other start of the task that this id is a start of; their ids. The agent ends one before it begins the next, so
/// what there is it has no knowledge of.
///
/// # Errors
/// Where one cannot be ended, or it is not known whether there is one.
pub async fn end_all(state: &Path, id: &str) -> Result<Vec<String>, Failure> {
    let mut ended = Vec::new();
    for (dir, other) in started(state)? {
        if other.id != id && same_task(&other.id, id) {
            tracing::warn!(task = %id, other = %other.id, "an earlier start of the task, of which the agent does not know, is ended");
            end(&dir, &other.id).await?;
            ended.push(other.id);
        }
    }
    Ok(ended)
}

/// Ends tasks whose allocation has been gone for `patience`: nobody is left to ask for that.
pub async fn sweep(state: &Path, patience: Duration) {
    let folders = folders(state).unwrap_or_else(|cause| {
        tracing::warn!(%cause, "what is left of tasks is not looked at");
        Vec::new()
    });
    for dir in folders {
        let Intent { id, alloc, .. } = match Intent::of(&dir) {
            Ok(Some(intent)) => intent,
            Ok(None) => {
                forget(&dir, patience);
                continue;
            }
            Err(cause) => {
                tracing::warn!(%cause, "what is left of a task is not known, and stays");
                continue;
            }
        };
        if alloc.as_os_str().is_empty() || !gone_for(&alloc, &dir.join(GONE), patience) {
            continue;
        }
        match end(&dir, &id).await {
            Ok(()) => tracing::warn!(task = %id, "a task whose allocation is gone was ended"),
            Err(failure) => tracing::warn!(task = %id, %failure, "a task whose allocation is gone stays"),
        }
    }
}

/// Removes a directory that says nothing of any task, as a machine may leave one that lost its power, once it is old.
fn forget(dir: &Path, patience: Duration) {
    let made = dir.metadata().and_then(|found| found.modified());
    let old = made.is_ok_and(|made| made.elapsed().is_ok_and(|age| age >= patience));
    // One may run whose files somebody else removed, also where it cannot be asked just now.
    let answers = || match UnixStream::connect(dir.join(SOCKET)) {
        Ok(_) => true,
        Err(cause) => !is_absent(&cause) && cause.kind() != io::ErrorKind::ConnectionRefused,
    };
    if !old || is_held(dir) || answers() {
        return;
    }
    match remove(dir) {
        Ok(()) => tracing::warn!(dir = %dir.display(), "a directory that says nothing of any task was removed"),
        Err(failure) => tracing::warn!(%failure, "a directory that says nothing of any task stays"),
    }
}

/// The directories of all starts.
fn folders(state: &Path) -> io::Result<Vec<PathBuf>> {
    match std::fs::read_dir(folder(state)) {
        Ok(entries) => entries.map(|entry| entry.map(|entry| entry.path())).collect(),
        Err(cause) if is_absent(&cause) => Ok(Vec::new()),
        Err(cause) => {
            let text = format!("{} cannot be read: {cause}", folder(state).display());
            Err(io::Error::new(cause.kind(), text))
        }
    }
}

/// Whatever was started, with its directory.
///
/// # Errors
/// Where it is not known.
pub fn started(state: &Path) -> Result<Vec<(PathBuf, Intent)>, Failure> {
    let known = |dir: PathBuf| match Intent::of(&dir) {
        Ok(intent) => intent.map(|intent| Ok((dir, intent))),
        Err(cause) => Some(Err(cause)),
    };
    let all = folders(state).and_then(|folders| folders.into_iter().filter_map(known).collect());
    all.map_err(|cause: io::Error| {
        Failure::recoverable(format!("it is not known whether an earlier start of the task runs: {cause}"))
    })
}

/// An id is `<allocation>/<task>/<a number of the start>`.
fn same_task(one: &str, other: &str) -> bool {
    let task = |id: &str| id.rsplit_once('/').map(|(task, _)| task.to_owned());
    task(one).is_some_and(|one| task(other) == Some(one))
}

#[cfg(test)]
mod tests {
    use super::super::noted::{START_FILE, unreadable};
    use super::*;
    use api::task::LOCK_FILE;

    #[test]
    fn starts_of_one_task_are_told_from_those_of_others() {
        assert!(same_task("a/web/1", "a/web/2"));
        for other in ["a/web2/1", "b/web/1", "a/web", "", "a/web/sub/1"] {
            assert!(!same_task("a/web/1", other), "{other}");
        }
        assert!(!same_task("a", "b"));
    }

    /// A directory is removed, and a task begun, where it is known that nothing runs; not where that cannot be found out.
    #[tokio::test]
    async fn what_cannot_be_looked_at_may_run() {
        let state = tempfile::tempdir().unwrap();
        let dir = folder(state.path()).join("dir");
        std::fs::create_dir_all(&dir).unwrap();
        for name in [START_FILE, LOCK_FILE, SOCKET] {
            unreadable(&dir.join(name));
            sweep(state.path(), Duration::ZERO).await;
            assert!(dir.exists(), "{name}");
            let others = end_all(state.path(), "a/web/2").await;
            assert_eq!(others.is_err(), name == START_FILE, "{name}: {others:?}");
            std::fs::remove_file(dir.join(name)).unwrap();
        }
        sweep(state.path(), Duration::ZERO).await;
        assert!(!dir.exists(), "nothing says anything of it");
    }
}
