//! What is written down of a start in its directory, and what follows from it. What says nothing is told from what cannot be
//! read: of a task that may run nobody takes it that there is none because this process, or the disk, was short of something.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use api::task::{LOCK_FILE, PROCESS_FILE, SPEC_FILE, TaskProcess, TaskSpec};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::cgroup::{Bounds, Made};
use super::kept;
use super::process::Identity;
use super::task::State;
use plugin::Failure;

/// What a start is about to do, [`Intent`].
pub const START_FILE: &str = "start.json";
/// How long a process that was started may take to say who it is.
const PATIENCE: Duration = Duration::from_secs(30);
/// How often it is looked for.
const LOOK: Duration = Duration::from_millis(5);

/// What a start is about to do, written down before it does anything: whatever becomes of the plugin in between, the next one
/// finds what there is.
#[derive(Debug, Serialize, Deserialize)]
pub struct Intent {
    /// The agent's name of the task.
    pub id: String,
    /// The directory of its allocation.
    #[serde(default)]
    pub alloc: PathBuf,
    /// The control groups that are made for it.
    pub groups: Made,
}

impl Intent {
    /// What was written down in this directory of a task.
    ///
    /// # Errors
    /// Where it cannot be read.
    pub fn of(dir: &Path) -> io::Result<Option<Self>> {
        match read(&dir.join(START_FILE))? {
            Some(intent) => Ok(Some(intent)),
            None => Self::guessed(dir),
        }
    }

    /// From what else is there, where that is gone or damaged: what may be left of a task, and of which one, is known in any case.
    fn guessed(dir: &Path) -> io::Result<Option<Self>> {
        let Some(spec) = read::<TaskSpec>(&dir.join(SPEC_FILE))? else { return Ok(None) };
        let alloc = kept::alloc_of(&spec.data).unwrap_or_default();
        Ok(Some(Self { id: spec.id, alloc, groups: any_groups(dir) }))
    }
}

/// Whatever control groups the task of this directory may have: they are called as it is.
fn any_groups(dir: &Path) -> Made {
    let all = Bounds { memory: Some(0), cpu_shares: Some(0), given: None };
    let name = dir.file_name().and_then(|name| name.to_str());
    name.map_or_else(Made::default, |name| Made::intended(name, &all))
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
    /// Where the directory is another task's or cannot be read, or somebody holds it and does not say who that is.
    pub async fn of(dir: &Path, id: &str) -> Result<Self, Failure> {
        let unread = |cause: io::Error| Failure::recoverable(format!("it is not known whether the task runs: {cause}"));
        let intent = Intent::of(dir).map_err(unread)?;
        if let Some(other) = intent.as_ref().filter(|intent| intent.id != id) {
            let text = format!("{} is the directory of the task `{}`", dir.display(), other.id);
            return Err(Failure::unrecoverable(text));
        }
        let until = tokio::time::Instant::now() + PATIENCE;
        loop {
            // Looked at before the file: whoever has ended since then has written it.
            let held = is_held(dir);
            if let Some(TaskProcess { pid, started, boot }) = read(&dir.join(PROCESS_FILE)).map_err(unread)? {
                let process = Identity { pid, started };
                // The directory is called by the id, so it is the task's also where nothing in it says so.
                let groups = intent.map_or_else(|| any_groups(dir), |intent| intent.groups);
                return Ok(Self::Started(State { dir: dir.to_owned(), process, boot, groups }));
            }
            if !held {
                return Ok(intent.map_or(Self::Nothing, Self::Intended));
            }
            if tokio::time::Instant::now() > until {
                let text = format!("whoever starts the task in {} does not say who it is", dir.display());
                return Err(Failure::recoverable(text));
            }
            tokio::time::sleep(LOOK).await;
        }
    }
}

/// Whether a process has the directory, as the starter of its task or as the task; also where that is not known.
pub fn is_held(dir: &Path) -> bool {
    match File::open(dir.join(LOCK_FILE)) {
        Ok(file) => file.try_lock().is_err(),
        Err(cause) => !is_absent(&cause),
    }
}

/// Whether that says that there is no such file.
pub fn is_absent(cause: &io::Error) -> bool {
    matches!(cause.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

/// What a file says; `None` where there is none, and where it says nothing that can be understood.
///
/// # Errors
/// Where it cannot be read, which says neither.
pub fn read<T: DeserializeOwned>(path: &Path) -> io::Result<Option<T>> {
    match std::fs::read(path) {
        Ok(text) => Ok(serde_json::from_slice(&text).ok()),
        Err(cause) if is_absent(&cause) => Ok(None),
        Err(cause) => Err(io::Error::new(cause.kind(), format!("{} cannot be read: {cause}", path.display()))),
    }
}

/// Makes a file that is there and cannot be opened, by whichever user.
#[cfg(test)]
pub fn unreadable(path: &Path) {
    std::os::unix::fs::symlink(path.file_name().unwrap_or_default(), path).unwrap();
}

#[cfg(test)]
mod tests {
    use plugin::Class;

    use super::*;

    /// A descriptor too few, or a disk that fails, makes no running task one that never was.
    #[tokio::test]
    async fn what_cannot_be_read_is_not_taken_for_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let known = async || Noted::of(dir.path(), "a").await;
        assert!(matches!(known().await, Ok(Noted::Nothing)));
        for name in [START_FILE, SPEC_FILE, PROCESS_FILE] {
            let file = dir.path().join(name);
            unreadable(&file);
            let failure = known().await.unwrap_err();
            assert!(matches!(failure.class, Class::Recoverable) && failure.message.contains(name), "{failure:?}");
            std::fs::remove_file(&file).unwrap();
            std::fs::write(&file, "{").unwrap();
            assert!(matches!(known().await, Ok(Noted::Nothing)), "{name}: half a text says nothing");
            std::fs::remove_file(&file).unwrap();
        }
        assert!(!is_held(dir.path()) && !is_held(&dir.path().join("none")));
        unreadable(&dir.path().join(LOCK_FILE));
        assert!(is_held(dir.path()), "somebody may have it");
    }

    /// What says which process it is says it of the task that the directory is called by.
    #[tokio::test]
    async fn a_process_is_known_without_the_rest() {
        let dir = tempfile::tempdir().unwrap();
        let process = TaskProcess { pid: 7, started: 8, boot: "boot".into() };
        std::fs::write(dir.path().join(PROCESS_FILE), serde_json::to_vec(&process).unwrap()).unwrap();
        let Ok(Noted::Started(state)) = Noted::of(dir.path(), "a").await else { panic!("there is a process") };
        assert_eq!((state.process, state.boot.as_str()), (Identity { pid: 7, started: 8 }, "boot"));
        assert_eq!(state.groups, any_groups(dir.path()));
    }
}
