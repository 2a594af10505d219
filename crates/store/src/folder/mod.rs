//! Objects of apps as files of the node: `<tenant>/<app>/<provider>/<hash of container>/objects/<hash of object>`.
//!
//! Names are hashed, so that any text is one, no path escapes, and neither case nor normal form of a file system makes
//! two of them one; the name itself stands at the end of the file, behind the content. A file under that name is always
//! whole: it is written elsewhere, synced, and renamed. What is removed is renamed away first, so it is gone at once.

mod count;
mod file;

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use model::{AppName, Digest, ProviderName, TenantName};
use serde::{Deserialize, Serialize};

use crate::disk::sync_dir;
use crate::room::{Full, Room};
use count::{Counted, Tracked};
pub use file::{Opened, Partial};

/// The largest object, bytes.
pub const MAX_OBJECT: u64 = 5 << 30;
/// The most names one page of a listing has.
pub const PAGE: usize = 1000;
/// The most containers of one provider that are told at once.
pub const MAX_CONTAINERS: usize = 10_000;
/// Where things are that are not yet, or no longer, there. No tenant has such a name.
const ELSEWHERE: &str = ".partial";
const ABOUT: &str = "container.json";
const OBJECTS: &str = "objects";

/// Why an object cannot be kept or had.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FolderError {
    /// There is no such container.
    #[error("there is no container `{0}`")]
    NoContainer(String),
    /// The container to be made is there.
    #[error("the container `{0}` is there already")]
    ContainerExists(String),
    /// There is no such object.
    #[error("there is no object `{object}` in the container `{container}`")]
    NoObject { container: String, object: String },
    /// The file is not what was written.
    #[error("the object `{object}` is damaged: {why}")]
    Damaged { object: String, why: String },
    /// An object above [`MAX_OBJECT`].
    #[error("an object has at most {MAX_OBJECT} bytes")]
    TooLarge,
    /// The tenant keeps as much as it may.
    #[error(transparent)]
    OverQuota(#[from] Full),
    /// The disk is full or read-only; nothing was changed.
    #[error("the node's folder of objects cannot be written: {0}; free space or mount it writable, then retry")]
    CannotWrite(String),
    /// The disk cannot be read.
    #[error("the node's folder of objects cannot be read: {0}")]
    CannotRead(String),
}

/// Whose objects: nobody else's are in reach.
#[derive(Debug, Clone, Copy)]
pub struct Scope<'a> {
    /// The tenant.
    pub tenant: &'a TenantName,
    /// The app.
    pub app: &'a AppName,
    /// Which of its providers.
    pub provider: &'a ProviderName,
}

/// An object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ObjectInfo {
    /// When it was written, seconds since 1970.
    pub created_at: u64,
    /// Bytes.
    pub size: u64,
}

/// Names and where to go on.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Page {
    /// At most [`PAGE`].
    pub names: Vec<String>,
    /// Present where there may be more.
    pub cursor: Option<String>,
}

/// What was removed: already out of sight, and still taking room until [`Trash::empty`].
#[derive(Debug)]
#[must_use = "it takes room until it is emptied"]
pub struct Trash(Option<(PathBuf, Option<Arc<Room>>)>);

impl Trash {
    /// Gives the room back.
    pub fn empty(self) {
        let Some((path, room)) = self.0 else { return };
        // Nobody can add to it any more.
        let size = room.map(|room| (count::size(&path), room));
        match (fs::remove_dir_all(&path), size) {
            (Ok(()), Some((Ok(bytes), room))) => room.give(bytes),
            (Ok(()), None) => {}
            (removed, _) => {
                tracing::warn!(path = %path.display(), ?removed, "cannot remove what an app removed; the next start tries again");
            }
        }
    }
}

/// What is known of a container, in its directory.
#[derive(Debug, Serialize, Deserialize)]
struct About {
    name: String,
    created_at: u64,
}

/// A folder of objects. Cheap to clone; every method blocks on the disk, so async callers use `spawn_blocking`.
#[derive(Debug, Clone)]
pub struct Folder {
    dir: Arc<Path>,
    next: Arc<AtomicU64>,
    counted: Arc<Counted>,
}

fn cannot_write(cause: &io::Error) -> FolderError {
    FolderError::CannotWrite(cause.to_string())
}

fn cannot_read(cause: &io::Error) -> FolderError {
    FolderError::CannotRead(cause.to_string())
}

fn damaged(cause: &serde_json::Error) -> FolderError {
    FolderError::CannotRead(format!("a container's file is damaged: {cause}"))
}

fn is_missing(cause: &io::Error) -> bool {
    cause.kind() == io::ErrorKind::NotFound
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

impl Folder {
    /// Opens or makes `dir` and removes what was never finished.
    ///
    /// # Errors
    /// [`FolderError::CannotWrite`], [`FolderError::CannotRead`].
    pub fn open(dir: impl AsRef<Path>) -> Result<Self, FolderError> {
        let elsewhere = dir.as_ref().join(ELSEWHERE);
        fs::create_dir_all(&elsewhere).map_err(|cause| cannot_write(&cause))?;
        sync_dir(dir.as_ref()).map_err(|cause| cannot_write(&cause))?;
        for entry in fs::read_dir(&elsewhere).map_err(|cause| cannot_read(&cause))? {
            let path = entry.map_err(|cause| cannot_read(&cause))?.path();
            let removed = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
            if let Err(cause) = removed {
                tracing::warn!(path = %path.display(), %cause, "cannot remove an unfinished object");
            }
        }
        Ok(Self { dir: dir.as_ref().into(), next: Arc::default(), counted: Arc::default() })
    }

    /// From now on what the tenant keeps here takes room of `room`, also what there is already. Blocks while that is
    /// counted; what the tenant would change meanwhile waits.
    ///
    /// # Errors
    /// [`FolderError::CannotRead`].
    pub fn track(&self, tenant: &TenantName, room: &Arc<Room>) -> Result<(), FolderError> {
        self.counted.of(tenant).track(&self.dir.join(tenant.as_str()), room).map_err(|cause| cannot_read(&cause))
    }

    fn elsewhere(&self) -> PathBuf {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        self.dir.join(ELSEWHERE).join(format!("{}-{number}", std::process::id()))
    }

    fn containers(&self, scope: Scope<'_>) -> PathBuf {
        self.dir.join(scope.tenant.as_str()).join(scope.app.as_str()).join(scope.provider.as_str())
    }

    fn place(&self, scope: Scope<'_>, container: &str) -> PathBuf {
        self.containers(scope).join(Digest::of(container.as_bytes()).hex())
    }

    /// Makes an empty container.
    ///
    /// # Errors
    /// [`FolderError::ContainerExists`], [`FolderError::OverQuota`], [`FolderError::CannotWrite`].
    pub fn create(&self, scope: Scope<'_>, container: &str) -> Result<(), FolderError> {
        let (fresh, place) = (self.elsewhere(), self.place(scope, container));
        let about = About { name: container.to_owned(), created_at: now() };
        let about = serde_json::to_vec(&about).map_err(|cause| cannot_write(&cause.into()))?;
        let (counted, mut taken) = (self.counted.of(scope.tenant), 0);
        let held = counted.hold();
        held.take(about.len() as u64, &mut taken)?;
        let made = || {
            fs::create_dir(&fresh)?;
            file::write_synced(&fresh.join(ABOUT), &about)?;
            sync_dir(&fresh)?;
            self.make_containers(scope)?;
            fs::rename(&fresh, &place)?;
            sync_dir(&self.containers(scope))
        };
        made().map_err(|cause: io::Error| {
            held.give(taken);
            // Where even this fails, the next start does it.
            drop(fs::remove_dir_all(&fresh));
            match cause.kind() {
                io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::AlreadyExists => {
                    FolderError::ContainerExists(container.to_owned())
                }
                _ => cannot_write(&cause),
            }
        })
    }

    /// The directory of a provider's containers, durably there.
    fn make_containers(&self, scope: Scope<'_>) -> io::Result<()> {
        let mut at = self.dir.to_path_buf();
        for name in [scope.tenant.as_str(), scope.app.as_str(), scope.provider.as_str()] {
            let parent = at.clone();
            at.push(name);
            match fs::create_dir(&at) {
                Ok(()) => sync_dir(&parent)?,
                Err(cause) if cause.kind() == io::ErrorKind::AlreadyExists => {}
                Err(cause) => return Err(cause),
            }
        }
        Ok(())
    }

    /// When a container was made, seconds since 1970, where there is one.
    ///
    /// # Errors
    /// [`FolderError::CannotRead`].
    pub fn container(&self, scope: Scope<'_>, container: &str) -> Result<Option<u64>, FolderError> {
        match fs::read(self.place(scope, container).join(ABOUT)) {
            Ok(bytes) => {
                let about: About = serde_json::from_slice(&bytes).map_err(|cause| damaged(&cause))?;
                Ok(Some(about.created_at))
            }
            Err(cause) if is_missing(&cause) => Ok(None),
            Err(cause) => Err(cannot_read(&cause)),
        }
    }

    /// The names of all containers, at most [`MAX_CONTAINERS`].
    ///
    /// # Errors
    /// [`FolderError::CannotRead`], also where there are more.
    pub fn names(&self, scope: Scope<'_>) -> Result<Vec<String>, FolderError> {
        let entries = match fs::read_dir(self.containers(scope)) {
            Ok(entries) => entries,
            Err(cause) if is_missing(&cause) => return Ok(Vec::new()),
            Err(cause) => return Err(cannot_read(&cause)),
        };
        let mut names = Vec::new();
        for entry in entries {
            let path = entry.map_err(|cause| cannot_read(&cause))?.path();
            let bytes = match fs::read(path.join(ABOUT)) {
                Ok(bytes) => bytes,
                // Removed meanwhile.
                Err(cause) if is_missing(&cause) => continue,
                Err(cause) => return Err(cannot_read(&cause)),
            };
            let about: About = serde_json::from_slice(&bytes).map_err(|cause| damaged(&cause))?;
            names.push(about.name);
            if names.len() > MAX_CONTAINERS {
                return Err(FolderError::CannotRead(format!("there are more than {MAX_CONTAINERS} containers")));
            }
        }
        Ok(names)
    }

    fn existing(&self, scope: Scope<'_>, container: &str) -> Result<PathBuf, FolderError> {
        match self.container(scope, container)? {
            Some(_) => Ok(self.place(scope, container)),
            None => Err(FolderError::NoContainer(container.to_owned())),
        }
    }

    /// Removes a container and all its objects; no error where it is not there.
    ///
    /// # Errors
    /// [`FolderError::CannotWrite`].
    pub fn delete(&self, scope: Scope<'_>, container: &str) -> Result<Trash, FolderError> {
        self.discard(scope.tenant, &self.place(scope, container))
    }

    /// Removes all objects of a container.
    ///
    /// # Errors
    /// [`FolderError::NoContainer`], [`FolderError::CannotWrite`].
    pub fn clear(&self, scope: Scope<'_>, container: &str) -> Result<Trash, FolderError> {
        self.discard(scope.tenant, &self.existing(scope, container)?.join(OBJECTS))
    }

    /// Removes every container of an app, of all its providers; no error where there is none.
    ///
    /// # Errors
    /// [`FolderError::CannotWrite`].
    pub fn purge(&self, tenant: &TenantName, app: &AppName) -> Result<Trash, FolderError> {
        self.discard(tenant, &self.dir.join(tenant.as_str()).join(app.as_str()))
    }

    fn discard(&self, tenant: &TenantName, path: &Path) -> Result<Trash, FolderError> {
        let (away, counted) = (self.elsewhere(), self.counted.of(tenant));
        let room = {
            // Whatever is put there is put there before or after, and counted where it lies then.
            let tracked = counted.hold();
            match fs::rename(path, &away) {
                Ok(()) => tracked.room(),
                Err(cause) if is_missing(&cause) => return Ok(Trash(None)),
                Err(cause) => return Err(cannot_write(&cause)),
            }
        };
        path.parent().map_or(Ok(()), sync_dir).map_err(|cause| cannot_write(&cause))?;
        Ok(Trash(Some((away, room))))
    }

    /// The object, where there is one.
    ///
    /// # Errors
    /// [`FolderError::NoContainer`], [`FolderError::Damaged`], [`FolderError::CannotRead`].
    pub fn object(&self, scope: Scope<'_>, container: &str, object: &str) -> Result<Option<ObjectInfo>, FolderError> {
        match self.read(scope, container, object) {
            Ok(opened) => Ok(Some(opened.info())),
            Err(FolderError::NoObject { .. }) => Ok(None),
            Err(cause) => Err(cause),
        }
    }

    /// Opens an object; it stays what it is now for as long as it is open.
    ///
    /// # Errors
    /// [`FolderError::NoContainer`], [`FolderError::NoObject`], [`FolderError::Damaged`], [`FolderError::CannotRead`].
    pub fn read(&self, scope: Scope<'_>, container: &str, object: &str) -> Result<Opened, FolderError> {
        let path = file::path(&self.place(scope, container).join(OBJECTS), object);
        match File::open(&path) {
            Ok(file) => Opened::new(file, object),
            Err(cause) if is_missing(&cause) => {
                self.existing(scope, container)?;
                Err(FolderError::NoObject { container: container.to_owned(), object: object.to_owned() })
            }
            Err(cause) => Err(cannot_read(&cause)),
        }
    }

    /// Begins to write an object.
    ///
    /// # Errors
    /// [`FolderError::NoContainer`], [`FolderError::CannotWrite`]; [`FolderError::OverQuota`] while it is written.
    pub fn write(&self, scope: Scope<'_>, container: &str, object: &str) -> Result<Partial, FolderError> {
        let place = self.existing(scope, container)?;
        Partial::new(self.elsewhere(), place, container, object, self.counted.of(scope.tenant))
    }

    /// Removes objects; no error for one that is not there.
    ///
    /// # Errors
    /// [`FolderError::NoContainer`], [`FolderError::CannotWrite`].
    pub fn remove(&self, scope: Scope<'_>, container: &str, objects: &[String]) -> Result<(), FolderError> {
        let objects_dir = self.existing(scope, container)?.join(OBJECTS);
        let mut changed = std::collections::BTreeSet::new();
        let counted: Arc<Tracked> = self.counted.of(scope.tenant);
        for object in objects {
            let path = file::path(&objects_dir, object);
            match counted.hold().remove(&path) {
                Ok(()) => changed.extend(path.parent().map(Path::to_owned)),
                Err(cause) if is_missing(&cause) => {}
                Err(cause) => return Err(cannot_write(&cause)),
            }
        }
        for dir in changed {
            match sync_dir(&dir) {
                // Cleared meanwhile.
                Err(cause) if is_missing(&cause) => {}
                other => other.map_err(|cause| cannot_write(&cause))?,
            }
        }
        Ok(())
    }

    /// Some names after `cursor`, in no order that means anything.
    ///
    /// # Errors
    /// [`FolderError::NoContainer`], [`FolderError::CannotRead`].
    pub fn list(&self, scope: Scope<'_>, container: &str, cursor: Option<&str>) -> Result<Page, FolderError> {
        let objects = self.existing(scope, container)?.join(OBJECTS);
        let after = cursor.unwrap_or_default();
        let mut page = Page::default();
        for first in 0..=u8::MAX {
            let group = format!("{first:02x}");
            if after.get(..2).is_some_and(|passed| *group < *passed) {
                continue;
            }
            for hash in file::hashes(&objects.join(&group), &group)? {
                if *hash <= *after {
                    continue;
                }
                if page.names.len() == PAGE {
                    return Ok(page);
                }
                if let Some(name) = file::name_of(&objects, &hash)? {
                    page.names.push(name);
                    page.cursor = Some(hash);
                }
            }
        }
        page.cursor = None;
        Ok(page)
    }
}
