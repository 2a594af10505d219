//! Folders that the components of this host may use: named by whoever starts it, for a task whose scheduler granted them, and
//! handed over open. The host never learns where they are. Without a word from there, there are none.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::sync::{Arc, OnceLock};

use api::run::{FOLDERS_ENV, Folder, MAX_FOLDERS};
use runtime::{Folders, Granted};

use crate::HostError;

/// Settled before anything runs.
static GRANTED: OnceLock<Arc<Folders>> = OnceLock::new();

/// What the environment names, in the order in which the folders are handed over.
///
/// # Errors
/// Where it cannot be read, or names too many.
pub fn named() -> Result<Vec<Folder>, HostError> {
    let Some(text) = std::env::var_os(FOLDERS_ENV) else { return Ok(Vec::new()) };
    let read = text.to_str().and_then(|text| serde_json::from_str::<Vec<Folder>>(text).ok());
    read.filter(|folders| folders.len() <= MAX_FOLDERS).ok_or(HostError::Folders)
}

/// Grants these to every component of this process from now on, and gives them with whether they may be changed.
///
/// # Errors
/// Where there are not as many as were named, or some were granted before.
pub fn grant(named: Vec<Folder>, opened: Vec<OwnedFd>) -> Result<Vec<(BorrowedFd<'static>, bool)>, HostError> {
    if named.len() != opened.len() {
        return Err(HostError::Folders);
    }
    if named.is_empty() {
        return Ok(Vec::new());
    }
    let granted = named.into_iter().zip(opened);
    let granted = granted.map(|(Folder { name, writable }, dir)| Granted { dir, name, writable });
    GRANTED.set(Arc::new(Folders(granted.collect()))).map_err(|_| HostError::Folders)?;
    let granted = GRANTED.get().into_iter().flat_map(|folders| &folders.0);
    Ok(granted.map(|folder| (folder.dir.as_fd(), folder.writable)).collect())
}

/// What was granted.
pub(crate) fn granted() -> Option<Arc<Folders>> {
    GRANTED.get().cloned()
}
