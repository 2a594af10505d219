//! One object's file: the content, then what is known of it, then how long that is. A file that was cut, grew or rotted
//! does not end as it should or does not hash to what it says.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use model::Digest;
use serde::{Deserialize, Serialize};

use super::count::Tracked;
use super::{FolderError, MAX_OBJECT, OBJECTS, ObjectInfo, cannot_read, cannot_write, is_missing, now};
use crate::disk::sync_dir;

/// The last bytes of every file.
const MAGIC: &[u8; 8] = b"sid-obj1";
/// Bytes of the length before [`MAGIC`].
const LENGTH: u64 = 4;
/// The longest description; a name has far less.
const MAX_ABOUT: u64 = 64 << 10;

/// What is known of an object.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct About {
    name: String,
    created_at: u64,
    size: u64,
    /// BLAKE3 of the content, hex.
    hash: String,
}

/// Where an object's file is.
pub(super) fn path(objects: &Path, object: &str) -> PathBuf {
    under(objects, &Digest::of(object.as_bytes()).hex())
}

fn under(objects: &Path, hash: &str) -> PathBuf {
    objects.join(hash.get(..2).unwrap_or_default()).join(hash)
}

/// The hashes of the objects in one group, sorted.
pub(super) fn hashes(dir: &Path, group: &str) -> Result<Vec<String>, FolderError> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(cause) if is_missing(&cause) => return Ok(Vec::new()),
        Err(cause) => return Err(cannot_read(&cause)),
    };
    let mut found = Vec::new();
    for entry in entries {
        let name = entry.map_err(|cause| cannot_read(&cause))?.file_name();
        if let Some(name) = name.to_str().filter(|name| name.len() == 64 && name.starts_with(group)) {
            found.push(name.to_owned());
        }
    }
    found.sort_unstable();
    Ok(found)
}

/// The name of the object of a hash; `None` where it went meanwhile, or its file is damaged and the name lost.
pub(super) fn name_of(objects: &Path, hash: &str) -> Result<Option<String>, FolderError> {
    let path = under(objects, hash);
    let file = match File::open(&path) {
        Ok(file) => file,
        Err(cause) if is_missing(&cause) => return Ok(None),
        Err(cause) => return Err(cannot_read(&cause)),
    };
    match about(&file) {
        Ok(about) => Ok(Some(about.name)),
        Err(why) => {
            tracing::error!(path = %path.display(), %why, "an object's file is damaged");
            Ok(None)
        }
    }
}

/// Reads the end of a file.
fn about(file: &File) -> Result<About, String> {
    let text = |cause: io::Error| cause.to_string();
    let length = file.metadata().map_err(text)?.len();
    let mut end = [0; 12];
    let tail = LENGTH + MAGIC.len() as u64;
    let at = length.checked_sub(tail).ok_or("its file is too short")?;
    file.read_exact_at(&mut end, at).map_err(text)?;
    let (size, magic) = end.split_first_chunk().ok_or("its file is too short")?;
    let size = u64::from(u32::from_le_bytes(*size));
    let content = at.checked_sub(size).filter(|_| magic == MAGIC && size <= MAX_ABOUT);
    let content = content.ok_or("its file does not end as it should")?;
    let mut bytes = vec![0; size as usize];
    file.read_exact_at(&mut bytes, content).map_err(text)?;
    let about: About = serde_json::from_slice(&bytes).map_err(|_| "its description does not parse")?;
    if about.size == content { Ok(about) } else { Err("its file has another length than was written".to_owned()) }
}

/// An object that is open for reading.
#[derive(Debug)]
pub struct Opened {
    file: File,
    about: About,
    /// What was read so far, where that was from the start and in order.
    read: Option<(u64, blake3::Hasher)>,
}

impl Opened {
    pub(super) fn new(file: File, object: &str) -> Result<Self, FolderError> {
        let damaged = |why| FolderError::Damaged { object: object.to_owned(), why };
        let about = about(&file).map_err(damaged)?;
        if about.name != object {
            return Err(damaged(format!("its file is that of `{}`", about.name)));
        }
        Ok(Self { file, about, read: Some((0, blake3::Hasher::new())) })
    }

    /// What it is.
    pub fn info(&self) -> ObjectInfo {
        ObjectInfo { created_at: self.about.created_at, size: self.about.size }
    }

    /// Up to `length` bytes from `offset`; fewer only at the end. Whoever reads all of it in order gets its last bytes
    /// only if all of them are those that were written.
    ///
    /// # Errors
    /// [`FolderError::Damaged`], [`FolderError::CannotRead`].
    pub fn read(&mut self, offset: u64, length: usize) -> Result<Vec<u8>, FolderError> {
        let length = (length as u64).min(self.about.size.saturating_sub(offset));
        let mut bytes = vec![0; length as usize];
        self.file.read_exact_at(&mut bytes, offset).map_err(|cause| cannot_read(&cause))?;
        self.read = match self.read.take() {
            Some((at, mut hasher)) if at == offset => {
                hasher.update(&bytes);
                Some((at + length, hasher))
            }
            _ => None,
        };
        if let Some((at, hasher)) = &self.read
            && *at == self.about.size
            && hasher.finalize().to_hex().as_str() != self.about.hash
        {
            let why = "its bytes are not those that were written".to_owned();
            return Err(FolderError::Damaged { object: self.about.name.clone(), why });
        }
        Ok(bytes)
    }
}

/// An object that is being written. Dropped before it is finished, nothing of it stays.
#[derive(Debug)]
pub struct Partial {
    file: File,
    path: PathBuf,
    container_dir: PathBuf,
    container: String,
    object: String,
    size: u64,
    hasher: blake3::Hasher,
    counted: Arc<Tracked>,
    /// Room that was taken for it so far; none before its tenant was counted.
    taken: u64,
}

impl Partial {
    pub(super) fn new(
        path: PathBuf,
        container_dir: PathBuf,
        container: &str,
        object: &str,
        counted: Arc<Tracked>,
    ) -> Result<Self, FolderError> {
        let file = File::options().write(true).create_new(true).open(&path).map_err(|cause| cannot_write(&cause))?;
        let (container, object) = (container.to_owned(), object.to_owned());
        let hasher = blake3::Hasher::new();
        Ok(Self { file, path, container_dir, container, object, size: 0, hasher, counted, taken: 0 })
    }

    /// The next bytes.
    ///
    /// # Errors
    /// [`FolderError::TooLarge`], [`FolderError::OverQuota`], [`FolderError::CannotWrite`]; it can only be dropped then.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), FolderError> {
        self.size += bytes.len() as u64;
        if self.size > MAX_OBJECT {
            return Err(FolderError::TooLarge);
        }
        self.counted.hold().take(self.size, &mut self.taken)?;
        self.hasher.update(bytes);
        self.file.write_all(bytes).map_err(|cause| cannot_write(&cause))
    }

    /// Puts it in its place. On return it is on disk.
    ///
    /// # Errors
    /// [`FolderError::NoContainer`] where that went meanwhile, [`FolderError::OverQuota`], [`FolderError::CannotWrite`].
    pub fn finish(mut self) -> Result<(), FolderError> {
        let about = About {
            name: self.object.clone(),
            created_at: now(),
            size: self.size,
            hash: self.hasher.finalize().to_hex().to_string(),
        };
        let whole = self.describe(&about).map_err(|cause| cannot_write(&cause))?;
        let target = path(&self.container_dir.join(OBJECTS), &self.object);
        // Whoever clears the container takes the directories away between the two steps: they are made again.
        for _ in 0..8 {
            if self.make_dirs(&target).map_err(|cause| self.translate(&cause))? {
                // What is in its place goes, and what it took is what the new one has.
                match self.counted.hold().put(&self.path, &target, whole, &mut self.taken)? {
                    Err(cause) if is_missing(&cause) => continue,
                    other => other.map_err(|cause| cannot_write(&cause))?,
                }
                return match target.parent().map_or(Ok(()), sync_dir) {
                    // Cleared after it was put there.
                    Err(cause) if is_missing(&cause) => Ok(()),
                    other => other.map_err(|cause| cannot_write(&cause)),
                };
            }
        }
        Err(FolderError::CannotWrite("the container is being cleared all the time".to_owned()))
    }

    /// Ends the file; how many bytes it has.
    fn describe(&mut self, about: &About) -> io::Result<u64> {
        let mut end = serde_json::to_vec(about)?;
        let length = u32::try_from(end.len()).map_err(io::Error::other)?;
        end.extend_from_slice(&length.to_le_bytes());
        end.extend_from_slice(MAGIC);
        self.file.write_all(&end)?;
        self.file.sync_all()?;
        Ok(self.size + end.len() as u64)
    }

    /// Makes the two directories an object lies in, never the container's; `false` where one went meanwhile.
    fn make_dirs(&self, target: &Path) -> io::Result<bool> {
        let objects = self.container_dir.join(OBJECTS);
        for (at, parent) in [(Some(&*objects), &*self.container_dir), (target.parent(), &*objects)] {
            let Some(at) = at else { continue };
            match fs::create_dir(at).and_then(|()| sync_dir(parent)) {
                Ok(()) => {}
                Err(cause) if cause.kind() == io::ErrorKind::AlreadyExists => {}
                Err(cause) if is_missing(&cause) && parent != self.container_dir => return Ok(false),
                Err(cause) => return Err(cause),
            }
        }
        Ok(true)
    }

    fn translate(&self, cause: &io::Error) -> FolderError {
        if is_missing(cause) { FolderError::NoContainer(self.container.clone()) } else { cannot_write(cause) }
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        // Finished, it is no longer there.
        match fs::remove_file(&self.path) {
            Err(cause) if !is_missing(&cause) => {
                tracing::warn!(path = %self.path.display(), %cause, "cannot remove an unfinished object");
            }
            _ => {}
        }
        self.counted.hold().give(self.taken);
    }
}

pub(super) fn write_synced(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = File::options().write(true).create_new(true).open(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}
