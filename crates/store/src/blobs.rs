//! Artifacts on disk by the digest of their content: `<dir>/sha256/<hex>`. A file under that name is always whole,
//! because it is written elsewhere, synced, and renamed; and what is read is hashed again, because disks rot.

use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use bytes::Bytes;
use model::Digest;
use sha2::{Digest as _, Sha256};

use crate::disk::sync_dir;

/// The prefix of files that are being written; no digest has it.
const PARTIAL: &str = ".partial-";
/// Bytes that are read and hashed at once.
const PIECE: usize = 64 << 10;

/// Why an artifact cannot be kept or had.
#[derive(Debug, thiserror::Error)]
pub enum BlobError {
    /// The bytes given do not hash to the digest given.
    #[error("the bytes are {actual}, not {expected}: nothing was kept; send the artifact again")]
    Mismatch { expected: Digest, actual: Digest },
    /// There is no such artifact.
    #[error("there is no artifact {0} on this machine: deploy it again")]
    Missing(Digest),
    /// The file on disk no longer hashes to its name.
    #[error("the artifact file {path} is damaged (its content is {actual}): delete the file and deploy the app again")]
    Damaged { path: String, actual: Digest },
    /// The disk is full or read-only; nothing was kept.
    #[error("the artifact folder {path} cannot be written: {cause}; free space or mount it writable, then retry")]
    CannotWrite { path: String, cause: String },
    /// The disk cannot be read.
    #[error("{path} cannot be read: {cause}")]
    CannotRead { path: String, cause: String },
}

/// A folder of artifacts. Cheap to clone; every method blocks on the disk, so async callers use `spawn_blocking`.
#[derive(Debug, Clone)]
pub struct Blobs {
    dir: Arc<Path>,
    next: Arc<AtomicU64>,
    /// Held between the look at an artifact's age and its removal, and while its age is set back.
    ages: Arc<Mutex<()>>,
}

impl Blobs {
    /// Opens or makes `dir/sha256` and removes what an interrupted write left there.
    pub fn open(dir: impl AsRef<Path>) -> Result<Self, BlobError> {
        let folder = dir.as_ref().join("sha256");
        fs::create_dir_all(&folder).map_err(|e| cannot_write(&folder, &e))?;
        sync_dir(dir.as_ref()).map_err(|e| cannot_write(dir.as_ref(), &e))?;
        for entry in fs::read_dir(&folder).map_err(|e| cannot_read(&folder, &e))? {
            let entry = entry.map_err(|e| cannot_read(&folder, &e))?;
            if entry.file_name().to_string_lossy().starts_with(PARTIAL)
                && let Err(e) = fs::remove_file(entry.path())
            {
                tracing::warn!(path = %entry.path().display(), error = %e, "cannot remove an unfinished artifact");
            }
        }
        Ok(Self { dir: folder.into(), next: Arc::default(), ages: Arc::default() })
    }

    /// Keeps `bytes` under `digest` after checking that they are it. On return they are on disk.
    pub fn put(&self, digest: &Digest, bytes: &[u8]) -> Result<(), BlobError> {
        let actual = Digest::of(bytes);
        if actual != *digest {
            return Err(BlobError::Mismatch { expected: *digest, actual });
        }
        // A whole file is kept as it is; a damaged one is replaced by the good bytes at hand.
        if self.check(digest).is_ok() && self.want(digest) {
            return Ok(());
        }
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let partial = self.dir.join(format!("{PARTIAL}{}-{number}", std::process::id()));
        let written = write_synced(&partial, bytes)
            .and_then(|()| fs::rename(&partial, self.path(digest)))
            .and_then(|()| sync_dir(&self.dir));
        written.map_err(|e| {
            // The partial file is of no use; where even removing it fails, the next open does it.
            let _ = fs::remove_file(&partial);
            cannot_write(&self.dir, &e)
        })
    }

    /// The artifact's bytes, hashed again.
    pub fn get(&self, digest: &Digest) -> Result<Bytes, BlobError> {
        let path = self.path(digest);
        let mut bytes = Vec::new();
        match File::open(&path).and_then(|mut file| file.read_to_end(&mut bytes)) {
            Ok(_) => {}
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Err(BlobError::Missing(*digest)),
            Err(e) => return Err(cannot_read(&path, &e)),
        }
        let actual = Digest::of(&bytes);
        if actual != *digest {
            return Err(BlobError::Damaged { path: path.display().to_string(), actual });
        }
        Ok(bytes.into())
    }

    /// Whether the artifact is there and whole, hashed again piece by piece: never all of it in memory.
    ///
    /// # Errors
    /// Those of [`Blobs::get`].
    pub fn check(&self, digest: &Digest) -> Result<(), BlobError> {
        let path = self.path(digest);
        let hashed = File::open(&path).and_then(|mut file| {
            let (mut hasher, mut piece) = (Sha256::new(), vec![0; PIECE]);
            loop {
                match file.read(&mut piece) {
                    Ok(0) => return Ok(Digest::from_bytes(hasher.finalize().into())),
                    Ok(count) => hasher.update(piece.get(..count).unwrap_or_default()),
                    Err(cause) if cause.kind() == io::ErrorKind::Interrupted => {}
                    Err(cause) => return Err(cause),
                }
            }
        });
        match hashed {
            Ok(actual) if actual == *digest => Ok(()),
            Ok(actual) => Err(BlobError::Damaged { path: path.display().to_string(), actual }),
            Err(cause) if cause.kind() == io::ErrorKind::NotFound => Err(BlobError::Missing(*digest)),
            Err(cause) => Err(cannot_read(&path, &cause)),
        }
    }

    /// Where the artifact is or would be.
    pub fn path(&self, digest: &Digest) -> PathBuf {
        self.dir.join(digest.hex())
    }

    /// Whether a file of that name is there; [`Blobs::get`] says whether it is whole.
    pub fn has(&self, digest: &Digest) -> bool {
        self.path(digest).is_file()
    }

    /// Says that somebody is about to name the artifact: it counts as new, so [`Blobs::remove_unwanted`] leaves it. False
    /// where there is no file of that name.
    pub fn want(&self, digest: &Digest) -> bool {
        let _ages = self.ages();
        match File::open(self.path(digest)) {
            Ok(file) => {
                // A disk that takes no new time does not take a removal either.
                if let Err(cause) = file.set_modified(SystemTime::now()) {
                    tracing::debug!(%digest, %cause, "the age of an artifact cannot be set");
                }
                true
            }
            Err(_) => false,
        }
    }

    /// The artifacts nobody has sent or wanted since `before`.
    ///
    /// # Errors
    /// [`BlobError::CannotRead`].
    pub fn unwanted_since(&self, before: SystemTime) -> Result<Vec<Digest>, BlobError> {
        let mut found = Vec::new();
        for (digest, _) in self.list()? {
            if self.is_older(&digest, before)? {
                found.push(digest);
            }
        }
        Ok(found)
    }

    /// Removes an artifact unless somebody sent or wanted it since `before`; says whether it did.
    ///
    /// # Errors
    /// [`BlobError::CannotRead`], [`BlobError::CannotWrite`].
    pub fn remove_unwanted(&self, digest: &Digest, before: SystemTime) -> Result<bool, BlobError> {
        let _ages = self.ages();
        let old = self.is_older(digest, before)?;
        if old {
            self.remove(digest)?;
        }
        Ok(old)
    }

    fn is_older(&self, digest: &Digest, before: SystemTime) -> Result<bool, BlobError> {
        let path = self.path(digest);
        match fs::metadata(&path).and_then(|meta| meta.modified()) {
            Ok(modified) => Ok(modified < before),
            Err(cause) if cause.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(cause) => Err(cannot_read(&path, &cause)),
        }
    }

    fn ages(&self) -> MutexGuard<'_, ()> {
        self.ages.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Every artifact and its size in bytes, in order of digest.
    pub fn list(&self) -> Result<Vec<(Digest, u64)>, BlobError> {
        let mut found = Vec::new();
        for entry in fs::read_dir(&*self.dir).map_err(|e| cannot_read(&self.dir, &e))? {
            let entry = entry.map_err(|e| cannot_read(&self.dir, &e))?;
            let Ok(digest) = format!("sha256:{}", entry.file_name().to_string_lossy()).parse() else { continue };
            match entry.metadata() {
                Ok(metadata) => found.push((digest, metadata.len())),
                // Removed since the folder was read.
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                Err(e) => return Err(cannot_read(&entry.path(), &e)),
            }
        }
        found.sort_unstable();
        Ok(found)
    }

    /// Removes an artifact; no error when it is not there.
    pub fn remove(&self, digest: &Digest) -> Result<(), BlobError> {
        match fs::remove_file(self.path(digest)) {
            Ok(()) => sync_dir(&self.dir).map_err(|e| cannot_write(&self.dir, &e)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(e) => Err(cannot_write(&self.dir, &e)),
        }
    }
}

fn write_synced(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = File::options().write(true).create_new(true).open(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

fn cannot_write(path: &Path, error: &io::Error) -> BlobError {
    BlobError::CannotWrite { path: path.display().to_string(), cause: error.to_string() }
}

fn cannot_read(path: &Path, error: &io::Error) -> BlobError {
    BlobError::CannotRead { path: path.display().to_string(), cause: error.to_string() }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;

    use super::*;

    #[test]
    fn what_is_put_is_had_and_listed() {
        let dir = tempfile::tempdir().unwrap();
        let blobs = Blobs::open(dir.path()).unwrap();
        let digest = Digest::of(b"hello");
        assert!(matches!(blobs.get(&digest), Err(BlobError::Missing(_))));
        assert!(matches!(blobs.check(&digest), Err(BlobError::Missing(_))));
        blobs.put(&digest, b"hello").unwrap();
        blobs.put(&digest, b"hello").unwrap();
        assert_eq!(blobs.get(&digest).unwrap(), "hello");
        assert!(blobs.has(&digest));
        assert_eq!(blobs.list().unwrap(), [(digest, 5)]);
        blobs.remove(&digest).unwrap();
        blobs.remove(&digest).unwrap();
        assert!(!blobs.has(&digest));
    }

    #[test]
    fn other_bytes_are_refused_and_leave_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let blobs = Blobs::open(dir.path()).unwrap();
        let digest = Digest::of(b"hello");
        assert!(matches!(blobs.put(&digest, b"hullo"), Err(BlobError::Mismatch { .. })));
        assert_eq!(fs::read_dir(dir.path().join("sha256")).unwrap().count(), 0);
    }

    #[test]
    fn a_damaged_file_is_refused_by_path_and_healed_by_a_put() {
        let dir = tempfile::tempdir().unwrap();
        let blobs = Blobs::open(dir.path()).unwrap();
        let digest = Digest::of(b"hello");
        blobs.put(&digest, b"hello").unwrap();
        fs::write(blobs.path(&digest), b"hell").unwrap();
        let error = blobs.get(&digest).unwrap_err();
        assert!(matches!(error, BlobError::Damaged { .. }));
        assert_eq!(blobs.check(&digest).unwrap_err().to_string(), error.to_string());
        assert!(error.to_string().contains(&digest.hex()), "{error}");
        blobs.put(&digest, b"hello").unwrap();
        assert_eq!(blobs.get(&digest).unwrap(), "hello");
        blobs.check(&digest).unwrap();
    }

    #[test]
    fn an_artifact_that_is_wanted_again_is_not_removed() {
        let dir = tempfile::tempdir().unwrap();
        let blobs = Blobs::open(dir.path()).unwrap();
        let (old, wanted) = (Digest::of(b"old"), Digest::of(b"wanted"));
        let before = SystemTime::now() - std::time::Duration::from_secs(60);
        for (digest, bytes) in [(&old, b"old".as_slice()), (&wanted, b"wanted".as_slice())] {
            blobs.put(digest, bytes).unwrap();
            let file = File::open(blobs.path(digest)).unwrap();
            file.set_modified(before - std::time::Duration::from_secs(60)).unwrap();
        }
        let mut both = vec![old, wanted];
        both.sort_unstable();
        assert_eq!(blobs.unwanted_since(before).unwrap(), both);
        // Sent again, or named by a deploy: from now on it counts as new.
        blobs.put(&wanted, b"wanted").unwrap();
        assert!(blobs.want(&wanted) && !blobs.want(&Digest::of(b"never there")));
        assert!(blobs.remove_unwanted(&old, before).unwrap());
        assert!(!blobs.remove_unwanted(&wanted, before).unwrap());
        assert_eq!(blobs.list().unwrap(), [(wanted, 6)]);
    }

    #[test]
    fn what_goes_while_it_is_listed_is_no_fault() {
        let dir = tempfile::tempdir().unwrap();
        let blobs = Blobs::open(dir.path()).unwrap();
        let paths: Vec<_> = (0..64_u8).map(|n| blobs.path(&Digest::of(&[n]))).collect();
        let over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !over.load(Ordering::Relaxed) {
                    paths.iter().for_each(|path| fs::write(path, b"x").unwrap());
                    paths.iter().for_each(|path| fs::remove_file(path).unwrap());
                }
            });
            let failed = (0..300).find_map(|_| blobs.list().err());
            over.store(true, Ordering::Relaxed);
            assert_eq!(failed.map(|cause| cause.to_string()), None);
        });
    }

    #[test]
    fn unfinished_writes_are_swept_at_open_and_nothing_else_is() {
        let dir = tempfile::tempdir().unwrap();
        let blobs = Blobs::open(dir.path()).unwrap();
        blobs.put(&Digest::of(b"kept"), b"kept").unwrap();
        let partial = dir.path().join("sha256").join(format!("{PARTIAL}1-0"));
        fs::write(&partial, b"half").unwrap();
        let blobs = Blobs::open(dir.path()).unwrap();
        assert!(!partial.exists());
        assert_eq!(blobs.list().unwrap().len(), 1);
    }
}
