//! What the programs of one tenant may have together: so many at once, and the room of its quota for what they keep. What
//! each may use of memory and the processor is its control group's affair.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, ErrorKind};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use model::unit::ByteSize;
use store::audit::Disk;
use tokio::sync::Mutex;

use super::lock;
use super::places::Places;

/// Stands for "no quota".
const ANY: u64 = u64::MAX;
/// What a file takes at least.
const BLOCK: u64 = 4096;

/// Files and folders that they may keep where there is a quota, whatever is in them: each is looked at.
const FILES: usize = 1 << 16;
/// The next look is not before so many times what the last one took, and never later than after this: how long one takes is
/// theirs to say.
const REST: (u32, Duration) = (20, Duration::from_secs(5));
/// The same where the disk has little room.
const SCARCE_REST: (u32, Duration) = (2, Duration::from_secs(1));
/// Bytes more that they may keep while the disk has little room.
const SCARCE_MORE: u64 = 16 << 20;

/// One tenant's.
#[derive(Debug)]
pub(super) struct Tenancy {
    pub(super) places: Arc<Places>,
    /// Bytes that all its programs may keep together.
    most: AtomicU64,
    /// Where they keep them.
    folders: std::sync::Mutex<BTreeSet<PathBuf>>,
    /// Taken for a look, and what came of the last one: however many programs ask, one looks for all of them.
    looked: Arc<Mutex<Option<Looked>>>,
}

/// What came of a look.
#[derive(Debug)]
struct Looked {
    /// What they might keep, and whether the disk had little room.
    of: (u64, bool),
    /// What they kept when the disk last had room, or at the first look since.
    base: u64,
    /// Why that is too much, where it is.
    why: Option<String>,
    /// When somebody looks again.
    again: Instant,
}

impl Default for Tenancy {
    fn default() -> Self {
        Self {
            places: Arc::default(),
            most: AtomicU64::new(ANY),
            folders: std::sync::Mutex::default(),
            looked: Arc::default(),
        }
    }
}

impl Tenancy {
    /// What they may keep from now on.
    pub(super) fn limit(&self, most: Option<ByteSize>) {
        self.most.store(most.map_or(ANY, |bytes| bytes.0), Ordering::Relaxed);
    }

    /// What all of them together may keep, where that is bounded: no file of theirs is larger.
    pub(super) fn most(&self) -> Option<u64> {
        let most = self.most.load(Ordering::Relaxed);
        (most != ANY).then_some(most)
    }

    /// A program may write in there from now on.
    pub(super) fn writes(&self, folder: &Path) {
        lock(&self.folders).insert(folder.to_owned());
    }

    /// There is no such folder any more.
    pub(super) fn gone(&self, folder: &Path) {
        lock(&self.folders).remove(folder);
    }

    /// Why they keep too much in the tenant's folders, if they do; `disk` is the one these are on.
    pub(super) async fn over(&self, disk: &Path) -> Option<String> {
        let scarce = Disk::under(disk).is_ok_and(|disk| disk.is_scarce());
        let most = self.most.load(Ordering::Relaxed);
        if most == ANY && !scarce {
            // What they keep now is as it should be, also where the disk has little room later.
            if let Ok(mut looked) = self.looked.try_lock() {
                *looked = None;
            }
            return None;
        }
        let folders: Vec<PathBuf> = lock(&self.folders).iter().cloned().collect();
        self.look((most, scarce), move || count(folders, most, FILES).map_err(|cause| cause.to_string())).await
    }

    /// What came of the last look, or of one that is made now where that is to be.
    async fn look(
        &self,
        of: (u64, bool),
        find: impl FnOnce() -> Result<(Kept, u64), String> + Send + 'static,
    ) -> Option<String> {
        let mut looked = self.looked.clone().lock_owned().await;
        if let Some(known) = looked.as_ref().filter(|known| known.of == of && Instant::now() < known.again) {
            return known.why.clone();
        }
        // Whoever waits for it may be told to end: the look goes on, and the next one waits for it.
        let look = tokio::task::spawn_blocking(move || {
            let begun = Instant::now();
            let found = find();
            let ended = Instant::now();
            let before = looked.as_ref().map(|known| known.base);
            let now = found.as_ref().ok().map(|(_, bytes)| *bytes);
            let base = if of.1 { before.or(now) } else { now.or(before) }.unwrap_or_default();
            let why = judge(of, base, found);
            let (times, most) = if of.1 { SCARCE_REST } else { REST };
            let again = ended + ((ended - begun) * times).min(most);
            *looked = Some(Looked { of, base, why: why.clone(), again });
            why
        });
        let failed = |cause| Some(format!("what the programs of its tenant keep cannot be counted: {cause}"));
        look.await.unwrap_or_else(failed)
    }
}

/// Why programs keep too much, if they do, of which they kept `base` when the disk had room.
fn judge((most, scarce): (u64, bool), base: u64, found: Result<(Kept, u64), String>) -> Option<String> {
    match found {
        Ok((Kept::Within, bytes)) if scarce && bytes > base.saturating_add(SCARCE_MORE) => Some(
            "the disk of this node has little room left, and the programs of its tenant go on writing; remove something, \
             or have the operator make room"
                .to_owned(),
        ),
        Ok((Kept::Within, _)) => None,
        Ok((Kept::Bytes, _)) => Some(format!(
            "over quota: the programs of its tenant keep more than the {} of `store_bytes`; remove something, or ask \
             the operator for more",
            ByteSize(most)
        )),
        // Without a quota they have as many as they like.
        Ok((Kept::Files, _)) if most == ANY => None,
        Ok((Kept::Files, _)) => Some(format!(
            "over quota: the programs of its tenant keep more than {FILES} files and folders, the most that a tenant \
             with `store_bytes` may; remove some, or ask the operator to do without it for a while"
        )),
        Err(cause) => Some(format!("what the programs of its tenant keep cannot be counted: {cause}")),
    }
}

/// What programs keep, against what they may.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kept {
    Within,
    /// More bytes.
    Bytes,
    /// More files and folders.
    Files,
}

/// Whether what is below these folders takes more than so many bytes, in whole blocks, or is more than so many files and folders,
/// and the bytes. No more is looked at than that.
fn count(mut todo: Vec<PathBuf>, most: u64, most_files: usize) -> io::Result<(Kept, u64)> {
    let gone = |cause: &io::Error| cause.kind() == ErrorKind::NotFound;
    let (mut bytes, mut files) = (0u64, 0usize);
    while let Some(dir) = todo.pop() {
        let entries = match fs::read_dir(&dir) {
            Ok(entries) => entries,
            Err(cause) if gone(&cause) => continue,
            Err(cause) => return Err(cause),
        };
        for entry in entries {
            let entry = entry?;
            let meta = match entry.metadata() {
                Ok(meta) => meta,
                Err(cause) if gone(&cause) => continue,
                Err(cause) => return Err(cause),
            };
            // It has to have a socket.
            let least = if meta.file_type().is_socket() { 0 } else { BLOCK };
            bytes = bytes.saturating_add(meta.blocks().saturating_mul(512).max(least));
            files += 1;
            if bytes > most {
                return Ok((Kept::Bytes, bytes));
            }
            if files > most_files {
                return Ok((Kept::Files, bytes));
            }
            if meta.is_dir() {
                todo.push(entry.path());
            }
        }
    }
    Ok((Kept::Within, bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_is_counted_in_blocks_over_all_folders() {
        let dir = tempfile::tempdir().unwrap();
        let told = |most, files| count(vec![dir.path().join("a"), dir.path().join("b")], most, files).unwrap();
        let found = |most| told(most, FILES).0;
        assert_eq!(told(0, 0), (Kept::Within, 0));
        fs::create_dir_all(dir.path().join("a/a")).unwrap();
        fs::create_dir(dir.path().join("b")).unwrap();
        fs::write(dir.path().join("b/small"), "x").unwrap();
        // Links lead nowhere, and holes take nothing.
        std::os::unix::fs::symlink("/usr", dir.path().join("a/a/link")).unwrap();
        fs::File::create(dir.path().join("a/a/holes")).unwrap().set_len(1 << 30).unwrap();
        assert_eq!(told(4 * BLOCK, FILES), (Kept::Within, 4 * BLOCK));
        assert_eq!(found(4 * BLOCK - 1), Kept::Bytes);
        assert_eq!(told(ANY, 4).0, Kept::Within);
        assert_eq!(told(ANY, 3).0, Kept::Files);
        fs::write(dir.path().join("a/large"), vec![1; 1 << 20]).unwrap();
        assert_eq!(found(1 << 20), Kept::Bytes);
        assert_eq!(found(2 << 20), Kept::Within);
    }

    #[tokio::test]
    async fn what_many_programs_keep_is_counted_once_and_not_again_for_a_while() {
        let (tenancy, looks) = (Tenancy::default(), Arc::new(AtomicU64::new(0)));
        let look = |most| {
            let looks = looks.clone();
            tenancy.look((most, false), move || {
                std::thread::sleep(Duration::from_millis(20));
                Err(format!("look {}", looks.fetch_add(1, Ordering::Relaxed) + 1))
            })
        };
        let told = |n| Some(format!("what the programs of its tenant keep cannot be counted: look {n}"));
        let said = futures::future::join_all((0..32).map(|_| look(1))).await;
        assert_eq!(said, vec![told(1); 32]);
        // Another quota is looked at at once, and what takes long not at once again.
        let begun = Instant::now();
        assert_eq!(look(2).await, told(2));
        while look(2).await == told(2) {
            assert!(begun.elapsed() < Duration::from_secs(120));
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert!(begun.elapsed() >= Duration::from_millis(20) * (REST.0 - 1), "{:?}", begun.elapsed());
    }

    #[tokio::test]
    async fn however_long_a_look_takes_the_next_one_is_not_put_off_for_long() {
        let tenancy = Tenancy::default();
        let find = || {
            std::thread::sleep(Duration::from_millis(600));
            Ok((Kept::Within, 0))
        };
        assert_eq!(tenancy.look((1, false), find).await, None);
        let again = tenancy.looked.lock().await.as_ref().unwrap().again;
        assert!(again <= Instant::now() + REST.1, "{again:?}");
    }

    #[tokio::test]
    async fn who_goes_on_writing_on_a_scarce_disk_is_stopped_at_the_next_look_and_nobody_else() {
        let mib = |n: u64| n << 20;
        for most in [mib(1000), ANY] {
            let tenancy = Tenancy::default();
            let look = |scarce, kept| tenancy.look((most, scarce), move || Ok((Kept::Within, kept)));
            assert_eq!(look(false, mib(50)).await, None);
            // That there is little room is looked at at once.
            tenancy.looked.lock().await.as_mut().unwrap().again += Duration::from_secs(1000);
            assert_eq!(look(true, mib(60)).await, None);
            for kept in [65, 70, 75] {
                tenancy.looked.lock().await.as_mut().unwrap().again = Instant::now();
                let why = look(true, mib(kept)).await;
                assert_eq!(why.is_some(), kept > 66, "{kept}: a little at a time is too much as well");
            }
            // Until there is room, or less is kept.
            tenancy.looked.lock().await.as_mut().unwrap().again = Instant::now();
            assert_eq!(look(true, mib(66)).await, None);
            assert_eq!(look(false, mib(75)).await, None);
        }
    }
}
