//! What the programs of one tenant may have together: so many at once, and the room of its quota for what they keep. What
//! each may use of memory and the processor is its control group's affair.

use std::fs;
use std::io::{self, ErrorKind};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use model::unit::ByteSize;
use tokio::sync::Mutex;

use super::places::Places;

/// Stands for "no quota".
const ANY: u64 = u64::MAX;
/// What a file takes at least.
const BLOCK: u64 = 4096;

/// Files and folders that they may keep where there is a quota, whatever is in them: each is looked at.
const FILES: usize = 1 << 20;
/// The next look is not before so many times what the last one took.
const REST: u32 = 20;

/// One tenant's.
#[derive(Debug)]
pub(super) struct Tenancy {
    pub(super) places: Arc<Places>,
    /// Bytes that all its programs may keep together.
    most: AtomicU64,
    /// Taken for a look, and what came of the last one: however many programs ask, one looks for all of them.
    looked: Arc<Mutex<Option<Looked>>>,
}

/// What came of a look.
#[derive(Debug)]
struct Looked {
    /// What they might keep.
    most: u64,
    /// Why that is too much, where it is.
    why: Option<String>,
    /// When somebody looks again.
    again: Instant,
}

impl Default for Tenancy {
    fn default() -> Self {
        Self { places: Arc::default(), most: AtomicU64::new(ANY), looked: Arc::default() }
    }
}

impl Tenancy {
    /// What they may keep from now on.
    pub(super) fn limit(&self, most: Option<ByteSize>) {
        self.most.store(most.map_or(ANY, |bytes| bytes.0), Ordering::Relaxed);
    }

    /// Why they keep too much in the tenant's folder, if they do.
    pub(super) async fn over(&self, dir: &Path) -> Option<String> {
        let most = self.most.load(Ordering::Relaxed);
        if most == ANY {
            return None;
        }
        let dir = dir.to_owned();
        self.look(most, move || {
            match count(&dir, most, FILES) {
                Ok(Kept::Within) => None,
                Ok(Kept::Bytes) => Some(format!(
                    "over quota: the programs of its tenant keep more than the {} of `store_bytes`; remove something, or ask \
                     the operator for more",
                    ByteSize(most)
                )),
                Ok(Kept::Files) => Some(format!(
                    "over quota: the programs of its tenant keep more than {FILES} files and folders, the most that a tenant \
                     with `store_bytes` may; remove some, or ask the operator to do without it for a while"
                )),
                Err(cause) => Some(format!("what the programs of its tenant keep cannot be counted: {cause}")),
            }
        })
        .await
    }

    /// What came of the last look, or of one that is made now where that is to be.
    async fn look(&self, most: u64, find: impl FnOnce() -> Option<String> + Send + 'static) -> Option<String> {
        let mut looked = self.looked.clone().lock_owned().await;
        if let Some(known) = looked.as_ref().filter(|known| known.most == most && Instant::now() < known.again) {
            return known.why.clone();
        }
        // Whoever waits for it may be told to end: the look goes on, and the next one waits for it.
        let look = tokio::task::spawn_blocking(move || {
            let begun = Instant::now();
            let why = find();
            let ended = Instant::now();
            *looked = Some(Looked { most, why: why.clone(), again: ended + (ended - begun) * REST });
            why
        });
        let failed = |cause| Some(format!("what the programs of its tenant keep cannot be counted: {cause}"));
        look.await.unwrap_or_else(failed)
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

/// Whether what is below a folder takes more than so many bytes, in whole blocks, or is more than so many files and folders.
/// No more is looked at than that.
fn count(dir: &Path, most: u64, most_files: usize) -> io::Result<Kept> {
    let gone = |cause: &io::Error| cause.kind() == ErrorKind::NotFound;
    let (mut todo, mut bytes, mut files) = (vec![dir.to_owned()], 0u64, 0usize);
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
            bytes = bytes.saturating_add(meta.blocks().saturating_mul(512).max(BLOCK));
            files += 1;
            if bytes > most {
                return Ok(Kept::Bytes);
            }
            if files > most_files {
                return Ok(Kept::Files);
            }
            if meta.is_dir() {
                todo.push(entry.path());
            }
        }
    }
    Ok(Kept::Within)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn what_is_kept_is_counted_in_blocks_over_all_folders() {
        let dir = tempfile::tempdir().unwrap();
        let found = |most| count(dir.path(), most, FILES).unwrap();
        assert_eq!(count(&dir.path().join("none"), 0, 0).unwrap(), Kept::Within);
        fs::create_dir(dir.path().join("a")).unwrap();
        fs::write(dir.path().join("a/small"), "x").unwrap();
        // Links lead nowhere, and holes take nothing.
        std::os::unix::fs::symlink("/usr", dir.path().join("a/link")).unwrap();
        fs::File::create(dir.path().join("a/holes")).unwrap().set_len(1 << 30).unwrap();
        assert_eq!(found(4 * BLOCK), Kept::Within);
        assert_eq!(found(4 * BLOCK - 1), Kept::Bytes);
        assert_eq!(count(dir.path(), ANY, 4).unwrap(), Kept::Within);
        assert_eq!(count(dir.path(), ANY, 3).unwrap(), Kept::Files);
        fs::write(dir.path().join("a/large"), vec![1; 1 << 20]).unwrap();
        assert_eq!(found(1 << 20), Kept::Bytes);
        assert_eq!(found(2 << 20), Kept::Within);
    }

    #[tokio::test]
    async fn what_many_programs_keep_is_counted_once_and_not_again_for_a_while() {
        let (tenancy, looks) = (Tenancy::default(), Arc::new(AtomicU64::new(0)));
        let look = |most| {
            let looks = looks.clone();
            tenancy.look(most, move || {
                std::thread::sleep(Duration::from_millis(20));
                Some(format!("look {}", looks.fetch_add(1, Ordering::Relaxed) + 1))
            })
        };
        let said = futures::future::join_all((0..32).map(|_| look(1))).await;
        assert_eq!(said, vec![Some("look 1".to_owned()); 32]);
        // Another quota is looked at at once, and what takes long not at once again.
        let begun = Instant::now();
        assert_eq!(look(2).await.as_deref(), Some("look 2"));
        while look(2).await.as_deref() == Some("look 2") {
            assert!(begun.elapsed() < Duration::from_secs(120));
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert!(begun.elapsed() >= Duration::from_millis(20) * (REST - 1), "{:?}", begun.elapsed());
    }
}
