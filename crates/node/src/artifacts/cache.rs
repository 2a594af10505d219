//! The files of compiled code and their MACs: `<fingerprint>/<hex>.<world>.cwasm` and the same with `.mac`.
//!
//! Loading compiled code is as good as running it, so what protects us is the MAC: BLAKE3 keyed with a key of this
//! machine, over fingerprint, digest, world and content. Whoever can write the cache but not read the key can only
//! make us compile again.

use std::collections::{BTreeSet, HashMap};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use model::Digest;
use rustix::fs::{Mode, OFlags};

use super::{ArtifactError, CodeKey};
use crate::NodeError;

const KEY_FILE: &str = "mac.key";
/// What the name of a MAC has after that of its code.
pub(super) const MAC: &str = ".mac";
/// Whoever is handed a file of code opens it once more, to map it, and may be any user. The folder is closed to all others.
const READABLE: u32 = 0o644;
/// Checked files remembered at once; about 200 bytes each.
const MAX_CHECKED: usize = 32_768;

/// A file that was checked: where and how it lay on disk. Any write to it changes the time of change, which no
/// program can set back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Checked {
    device: u64,
    inode: u64,
    size: u64,
    changed: (i64, i64),
}

impl Checked {
    fn of(file: &File) -> io::Result<Self> {
        let meta = file.metadata()?;
        Ok(Self {
            device: meta.dev(),
            inode: meta.ino(),
            size: meta.size(),
            changed: (meta.ctime(), meta.ctime_nsec()),
        })
    }
}

/// What the cache has of some code.
#[derive(Debug)]
pub(super) enum Found {
    /// A file whose MAC is ours.
    Ours(File),
    /// A file that must not be loaded.
    Foreign,
    /// Nothing.
    Missing,
}

#[derive(Debug)]
pub(super) struct Cache {
    dir: PathBuf,
    key: [u8; blake3::KEY_LEN],
    checked: Mutex<HashMap<CodeKey, Checked>>,
    next: AtomicU64,
}

impl Cache {
    pub(super) fn open(dir: PathBuf, keys: &Path) -> Result<Self, NodeError> {
        for path in [&dir, keys] {
            make_dir(path).map_err(|cause| NodeError::Files { action: "create", path: path.to_owned(), cause })?;
        }
        let key = read_or_make_key(&key_file(keys))?;
        Ok(Self { dir, key, checked: Mutex::default(), next: AtomicU64::new(0) })
    }

    /// See [`super::Artifacts::folder`].
    pub(super) fn folder(&self) -> io::Result<OwnedFd> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(rustix::fs::open(&self.dir, flags, Mode::empty())?)
    }

    fn path(&self, key: &CodeKey) -> PathBuf {
        self.dir.join(&key.fingerprint).join(format!("{}.{}.cwasm", key.digest.hex(), key.world.as_str()))
    }

    pub(super) fn error(&self, key: &CodeKey, cause: &str) -> ArtifactError {
        ArtifactError::Cache { path: self.path(key), cause: Arc::new(io::Error::other(cause.to_owned())) }
    }

    pub(super) fn has(&self, key: &CodeKey) -> bool {
        self.path(key).is_file()
    }

    fn mac(&self, key: &CodeKey) -> blake3::Hasher {
        let mut hasher = blake3::Hasher::new_keyed(&self.key);
        // Each part behind its length: no two keys give the same bytes.
        for part in [key.fingerprint.as_bytes(), key.digest.as_bytes().as_slice(), key.world.as_str().as_bytes()] {
            hasher.update(&(part.len() as u64).to_le_bytes()).update(part);
        }
        hasher
    }

    /// Opens the file and checks its MAC, unless this very file was checked before.
    pub(super) fn open_checked(&self, key: &CodeKey) -> Result<Found, ArtifactError> {
        if key.fingerprint.is_empty() || !key.fingerprint.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(ArtifactError::Fingerprint(key.fingerprint.clone()));
        }
        let path = self.path(key);
        let failed = |cause| ArtifactError::Cache { path: path.clone(), cause: Arc::new(cause) };
        let mut file = match File::open(&path) {
            Ok(file) => file,
            Err(cause) if cause.kind() == io::ErrorKind::NotFound => return Ok(Found::Missing),
            Err(cause) => return Err(failed(cause)),
        };
        // Of a version that kept it for one user.
        if file.metadata().map_err(failed)?.mode() & READABLE != READABLE {
            file.set_permissions(fs::Permissions::from_mode(READABLE)).map_err(failed)?;
        }
        let before = Checked::of(&file).map_err(failed)?;
        if self.checked().get(key) == Some(&before) {
            return Ok(Found::Ours(file));
        }
        let stored = match fs::read(mac_path(&path)) {
            Ok(stored) => stored,
            Err(cause) if cause.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(cause) => return Err(failed(cause)),
        };
        let mut hasher = self.mac(key);
        hasher.update_reader(&mut file).map_err(failed)?;
        // The comparison of two `blake3::Hash` takes the same time wherever they differ.
        let ours =
            <[u8; blake3::OUT_LEN]>::try_from(stored).is_ok_and(|mac| hasher.finalize() == blake3::Hash::from(mac));
        if !ours || Checked::of(&file).map_err(failed)? != before {
            tracing::error!(path = %path.display(), "compiled code is not ours and is made anew: its MAC does not match");
            return Ok(Found::Foreign);
        }
        // The descriptor that was read stands at its end, and the host's would share that place: open it afresh, and
        // make sure it is still the same file.
        let fresh = File::open(&path).map_err(failed)?;
        if Checked::of(&fresh).map_err(failed)? != before {
            return Ok(Found::Foreign);
        }
        let mut checked = self.checked();
        if checked.len() >= MAX_CHECKED {
            checked.clear();
        }
        checked.insert(key.clone(), before);
        drop(checked);
        // Once for each process: every other look is at what was checked before.
        self.used(key);
        Ok(Found::Ours(fresh))
    }

    /// Keeps that code is used now.
    fn used(&self, key: &CodeKey) {
        let path = mac_path(&self.path(key));
        let used = File::options().append(true).open(&path).and_then(|mac| mac.set_modified(SystemTime::now()));
        if let Err(cause) = used {
            tracing::debug!(path = %path.display(), %cause, "that code was used cannot be kept");
        }
    }

    /// See [`super::Artifacts::still_used`].
    pub(super) fn still_used(&self) {
        let handed_out: Vec<CodeKey> = self.checked().keys().cloned().collect();
        handed_out.iter().for_each(|key| self.used(key));
    }

    /// Keeps code that was just made. It need not be synced: half a file does not match its MAC.
    pub(super) fn keep(&self, key: &CodeKey, code: &[u8]) -> Result<(), ArtifactError> {
        let path = self.path(key);
        let failed = |cause| ArtifactError::Cache { path: path.clone(), cause: Arc::new(cause) };
        make_dir(&self.dir.join(&key.fingerprint)).map_err(failed)?;
        let mac = self.mac(key).update(code).finalize();
        self.replace(&path, code).map_err(failed)?;
        self.replace(&mac_path(&path), mac.as_bytes()).map_err(failed)
    }

    /// See [`super::Artifacts::tidy`].
    pub(super) fn tidy(&self, unnamed: &[Digest], engines: &BTreeSet<String>) {
        let unnamed: BTreeSet<String> = unnamed.iter().map(Digest::hex).collect();
        for (name, path) in entries(&self.dir) {
            // Only what we made ourselves: a folder of an engine's code.
            let is_engine = !name.is_empty() && name.bytes().all(|b| b.is_ascii_hexdigit()) && path.is_dir();
            if is_engine && !engines.is_empty() && !engines.contains(&name) {
                match fs::remove_dir_all(&path) {
                    Ok(()) => tracing::info!(path = %path.display(), "removed the code of an earlier engine"),
                    Err(cause) => tracing::warn!(path = %path.display(), %cause, "code of an earlier engine stays"),
                }
            } else if is_engine && !unnamed.is_empty() {
                for (name, path) in entries(&path) {
                    let hex = name.split_once('.').map_or("", |(hex, _)| hex);
                    if unnamed.contains(hex)
                        && let Err(cause) = fs::remove_file(&path)
                    {
                        tracing::warn!(path = %path.display(), %cause, "code that nobody names stays");
                    }
                }
            }
        }
    }

    fn replace(&self, path: &Path, content: &[u8]) -> io::Result<()> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let mut name = path.as_os_str().to_owned();
        name.push(format!(".{}-{number}.partial", std::process::id()));
        let partial = PathBuf::from(name);
        let written = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&partial)
            .and_then(|mut file| {
                file.write_all(content)?;
                // Whatever the mask of this process is.
                file.set_permissions(fs::Permissions::from_mode(READABLE))
            })
            .and_then(|()| fs::rename(&partial, path));
        if written.is_err()
            && let Err(cause) = fs::remove_file(&partial)
        {
            tracing::debug!(path = %partial.display(), %cause, "an unfinished file stays behind");
        }
        written
    }

    fn checked(&self) -> std::sync::MutexGuard<'_, HashMap<CodeKey, Checked>> {
        self.checked.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What is in a folder, by name; nothing where it cannot be read.
pub(super) fn entries(dir: &Path) -> Vec<(String, PathBuf)> {
    let entry = |entry: fs::DirEntry| Some((entry.file_name().into_string().ok()?, entry.path()));
    fs::read_dir(dir).map(|all| all.flatten().filter_map(entry).collect()).unwrap_or_default()
}

pub(super) fn mac_path(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(MAC);
    name.into()
}

/// Makes a directory for this user only.
pub(crate) fn make_dir(path: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path)
}

/// Where the key is, in the folder of keys.
pub(super) fn key_file(keys: &Path) -> PathBuf {
    keys.join(KEY_FILE)
}

/// The key, which is made where it is not there. Its folder is there.
pub(super) fn read_or_make_key(path: &Path) -> Result<[u8; blake3::KEY_LEN], NodeError> {
    let failed = |action| move |cause| NodeError::Files { action, path: path.to_owned(), cause };
    if let Some(key) = read_key(path)? {
        return Ok(key);
    }
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let partial = path.with_extension(format!("{}-{number}.partial", std::process::id()));
    let key: [u8; blake3::KEY_LEN] = rand::random();
    let written = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&partial);
    let written = written.and_then(|mut file| file.write_all(&key).and_then(|()| file.sync_all()));
    // Whole or not at all, and never in place of one that is there: of two processes that begin together both have the
    // key of the one that was first.
    let named = written.and_then(|()| fs::hard_link(&partial, path));
    if let Err(cause) = fs::remove_file(&partial) {
        tracing::debug!(path = %partial.display(), %cause, "an unfinished key stays behind");
    }
    match named {
        Ok(()) => Ok(key),
        Err(cause) if cause.kind() == io::ErrorKind::AlreadyExists => {
            let gone = || failed("read")(io::Error::from(io::ErrorKind::NotFound));
            read_key(path)?.ok_or_else(gone)
        }
        Err(cause) => Err(failed("create")(cause)),
    }
}

/// The key that is there; `None` where there is none.
pub(super) fn read_key(path: &Path) -> Result<Option<[u8; blake3::KEY_LEN]>, NodeError> {
    let failed = |cause| NodeError::Files { action: "read", path: path.to_owned(), cause };
    let file = match File::open(path) {
        Ok(file) => file,
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(cause) => return Err(failed(cause)),
    };
    let mut bytes = Vec::new();
    file.take(1024).read_to_end(&mut bytes).map_err(failed)?;
    bytes.try_into().map(Some).map_err(|_| NodeError::KeyDamaged(path.to_owned()))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// What runs for weeks looks at its code once.
    #[test]
    fn code_that_was_handed_out_is_used_for_as_long_as_that_is_said() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::open(dir.path().join("cache"), &dir.path().join("keys")).unwrap();
        let key = |name: &[u8]| CodeKey { digest: Digest::of(name), world: model::World::P2, fingerprint: "aa".into() };
        let (own, other) = (key(b"own"), key(b"other"));
        let mac = |key: &CodeKey| mac_path(&cache.path(key));
        let old = || SystemTime::now() - Duration::from_secs(20 * 24 * 3600);
        let age = |key: &CodeKey| File::options().append(true).open(mac(key)).unwrap().set_modified(old()).unwrap();
        let is_old = |key: &CodeKey| {
            let used = fs::metadata(mac(key)).unwrap().modified().unwrap();
            used.elapsed().is_ok_and(|since| since > Duration::from_secs(24 * 3600))
        };
        for key in [&own, &other] {
            cache.keep(key, b"code").unwrap();
        }
        assert!(matches!(cache.open_checked(&own).unwrap(), Found::Ours(_)));
        age(&own);
        age(&other);
        assert!(matches!(cache.open_checked(&own).unwrap(), Found::Ours(_)));
        assert!(is_old(&own), "a look at what was checked before is none");
        cache.still_used();
        assert!(!is_old(&own) && is_old(&other), "nobody uses the other one");
        assert!(matches!(cache.open_checked(&own).unwrap(), Found::Ours(_)), "it is what it was");
        // What is gone is made again by whoever wants it.
        fs::remove_file(mac(&own)).unwrap();
        cache.still_used();
        assert!(!mac(&own).exists());
    }
}
