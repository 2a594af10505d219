//! What is kept of an allocation beside it, in the driver's own directory: the data of the providers of its tasks. They are
//! trusted as they are read (a task's process is root, and reads whose user id is whose, databases and folders in there), and
//! below the allocation every task of the group may put anything in their place. So they are here, where nobody else writes,
//! and end with the allocation.

use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use super::folder::make_private;

/// Where, in the driver's directory.
const DATA: &str = "data";
/// The directory of the allocation, in words; beside the folders of its tasks, none of which has such a name.
const OF: &str = "allocation.txt";
/// Since when the directory of the allocation is gone: its own age.
const GONE: &str = "gone.txt";
/// The longest name of a folder that is a task's name spelled out; a longer one is spelled by its digest.
const SPELLED: usize = 120;
/// What is kept is removed when the directory of its allocation has been gone for so long: it may be on a disk that is mounted
/// again.
pub const GONE_FOR: Duration = Duration::from_secs(3600);

/// The folder of an allocation.
fn of(state: &Path, alloc: &Path) -> PathBuf {
    state.join(DATA).join(model::Digest::of(alloc.as_os_str().as_encoded_bytes()).short())
}

/// The folder of the data of one task: the same after each restart.
pub fn folder(state: &Path, alloc: &Path, task: &str) -> PathBuf {
    of(state, alloc).join(spelled(task))
}

/// Makes the folder of an allocation, and writes down whose it is, where it does not say so.
///
/// # Errors
/// When it cannot be written.
pub fn begin(state: &Path, alloc: &Path) -> io::Result<()> {
    let dir = of(state, alloc);
    make_private(&dir)?;
    if named(&dir).as_deref() == Some(alloc) {
        return Ok(());
    }
    super::task::write_whole(&dir.join(OF), alloc.as_os_str().as_encoded_bytes())
}

/// The directory of the allocation whose task has its data in this folder.
pub fn alloc_of(data: &Path) -> Option<PathBuf> {
    named(data.parent()?)
}

/// Whose this folder of an allocation is.
fn named(dir: &Path) -> Option<PathBuf> {
    use std::os::unix::ffi::OsStringExt as _;
    let alloc = std::fs::read(dir.join(OF)).ok()?;
    Some(PathBuf::from(std::ffi::OsString::from_vec(alloc)))
}

/// Removes what is kept of allocations whose directory has been gone for `patience`. Blocks on the disk.
pub fn sweep(state: &Path, patience: Duration) {
    let Ok(entries) = std::fs::read_dir(state.join(DATA)) else { return };
    for dir in entries.flatten().map(|entry| entry.path()) {
        // One that is being begun says nothing yet.
        let Some(alloc) = named(&dir) else { continue };
        if !gone_for(&alloc, &dir.join(GONE), patience) {
            continue;
        }
        match std::fs::remove_dir_all(&dir) {
            Ok(()) => tracing::info!(alloc = %alloc.display(), "removed the data of an allocation that is gone"),
            Err(cause) => tracing::warn!(dir = %dir.display(), %cause, "data of an allocation that is gone stay"),
        }
    }
}

/// Whether the directory of an allocation has been gone for so long. Since when it is, is in the age of the file `mark`.
pub fn gone_for(alloc: &Path, mark: &Path, patience: Duration) -> bool {
    match alloc.symlink_metadata() {
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => {}
        found => {
            if found.is_ok() && mark.exists() {
                drop(std::fs::remove_file(mark));
            }
            return false;
        }
    }
    let since = std::fs::metadata(mark).and_then(|found| found.modified());
    let since = since.or_else(|_| std::fs::write(mark, "").map(|()| SystemTime::now()));
    since.is_ok_and(|since| since.elapsed().unwrap_or_default() >= patience)
}

/// The name of a folder that belongs to this task and to no other of its group. Letters, digits and `-` stand for
/// themselves, every other byte for `_` and its number in two digits.
fn spelled(name: &str) -> String {
    use std::fmt::Write as _;
    let mut spelled = String::new();
    for byte in name.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' => spelled.push(char::from(byte)),
            // Writing to a text does not fail.
            _ => drop(write!(spelled, "_{byte:02x}")),
        }
    }
    match spelled.len() > SPELLED {
        // No name is spelled with two of them.
        true => format!("__{}", model::Digest::of(name.as_bytes()).hex()),
        false => spelled,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_look_alike_keep_their_data_apart() {
        let long = "x".repeat(200);
        let names = [
            "a.b",
            "a_b",
            "a-b",
            "a b",
            "a/b",
            "a_2eb",
            "A-b",
            "a",
            "a_",
            "_",
            "__",
            "..",
            ".",
            "ä",
            "a\u{308}",
            &long,
            &long[1..],
            &format!("{long}."),
            "allocation.txt",
        ];
        let spelled: std::collections::BTreeSet<String> = names.iter().map(|name| spelled(name)).collect();
        assert_eq!(spelled.len(), names.len(), "{spelled:?}");
        assert!(spelled.iter().all(|name| name.len() <= SPELLED && !name.contains(['.', '/'])), "{spelled:?}");
        let (state, alloc) = (Path::new("/state"), Path::new("/nomad/alloc/1"));
        let kept = folder(state, alloc, "a.b");
        assert!(kept.starts_with("/state/data") && kept.ends_with("a_2eb"), "{kept:?}");
        assert_ne!(kept, folder(state, Path::new("/nomad/alloc/2"), "a.b"));
    }

    #[test]
    fn data_end_with_the_allocation_and_not_before() {
        let dir = tempfile::tempdir().unwrap();
        let (state, alloc) = (dir.path().join("state"), dir.path().join("alloc/1"));
        std::fs::create_dir_all(&alloc).unwrap();
        begin(&state, &alloc).unwrap();
        begin(&state, &alloc).unwrap();
        let data = folder(&state, &alloc, "web");
        std::fs::create_dir(&data).unwrap();
        assert_eq!(alloc_of(&data).as_deref(), Some(alloc.as_path()));
        let now = Duration::ZERO;
        sweep(&state, now);
        assert!(data.exists(), "its allocation is there");
        // Away for a moment, and there again: since when it is gone is counted anew.
        std::fs::rename(&alloc, dir.path().join("away")).unwrap();
        sweep(&state, GONE_FOR);
        assert!(data.exists(), "not so soon");
        std::fs::rename(dir.path().join("away"), &alloc).unwrap();
        sweep(&state, now);
        assert!(data.exists() && !of(&state, &alloc).join(GONE).exists());
        std::fs::remove_dir(&alloc).unwrap();
        sweep(&state, GONE_FOR);
        let mark = std::fs::File::open(of(&state, &alloc).join(GONE)).unwrap();
        mark.set_modified(SystemTime::now() - GONE_FOR - Duration::from_secs(1)).unwrap();
        sweep(&state, GONE_FOR);
        assert!(!data.exists() && !of(&state, &alloc).exists());
        // What cannot be looked at is not gone.
        assert!(!gone_for(Path::new("/proc/1/root\0"), &dir.path().join("mark"), now));
    }
}
