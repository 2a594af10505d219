//! What the objects of a tenant take of its room. Whatever changes how much there is does so with the tenant's lock held, so
//! that nothing is counted twice or not at all; a tenant without a quota has nothing but the lock.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::{fs, io};

use model::TenantName;

use super::is_missing;
use crate::room::{Full, Room};

/// A file takes whole blocks of the disk.
const BLOCK: u64 = 4096;

/// What a file of so many bytes takes.
pub(super) fn cost(bytes: u64) -> u64 {
    bytes.checked_next_multiple_of(BLOCK).unwrap_or(u64::MAX)
}

/// Every tenant's.
#[derive(Debug, Default)]
pub(super) struct Counted(Mutex<HashMap<TenantName, Arc<Tracked>>>);

/// One tenant's: its room from when it is counted on.
#[derive(Debug, Default)]
pub(super) struct Tracked(Mutex<Option<Arc<Room>>>);

/// Nobody else changes what the tenant has.
pub(super) struct Held<'t>(MutexGuard<'t, Option<Arc<Room>>>);

impl Counted {
    pub(super) fn of(&self, tenant: &TenantName) -> Arc<Tracked> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.entry(tenant.clone()).or_default().clone()
    }
}

impl Tracked {
    pub(super) fn hold(&self) -> Held<'_> {
        Held(self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Counts what is below `dir`, and goes on counting.
    pub(super) fn track(&self, dir: &Path, room: &Arc<Room>) -> io::Result<()> {
        let mut held = self.hold();
        room.found(size(dir)?);
        *held.0 = Some(room.clone());
        Ok(())
    }
}

impl Held<'_> {
    pub(super) fn room(&self) -> Option<Arc<Room>> {
        self.0.clone()
    }

    /// Takes what a file of so many bytes needs beyond what was taken for it.
    pub(super) fn take(&self, bytes: u64, taken: &mut u64) -> Result<(), Full> {
        let Some(room) = &*self.0 else { return Ok(()) };
        let more = cost(bytes).saturating_sub(*taken);
        room.take(more)?;
        *taken += more;
        Ok(())
    }

    pub(super) fn give(&self, bytes: u64) {
        if let Some(room) = self.0.as_ref().filter(|_| bytes > 0) {
            room.give(bytes);
        }
    }

    /// Puts a file of `whole` bytes in its place. `taken` is what it has taken of the room, and 0 once it is there: it is the
    /// place's from then on.
    pub(super) fn put(&self, from: &Path, to: &Path, whole: u64, taken: &mut u64) -> Result<io::Result<()>, Full> {
        let Some(room) = &*self.0 else { return Ok(fs::rename(from, to)) };
        self.take(whole, taken)?;
        let old = fs::metadata(to).map_or(0, |old| cost(old.len()));
        let put = fs::rename(from, to);
        if put.is_ok() {
            room.give(old);
            *taken = 0;
        }
        Ok(put)
    }

    /// Removes a file.
    pub(super) fn remove(&self, path: &Path) -> io::Result<()> {
        let Some(room) = &*self.0 else { return fs::remove_file(path) };
        let old = cost(fs::metadata(path)?.len());
        fs::remove_file(path)?;
        room.give(old);
        Ok(())
    }
}

/// What all files below a directory take; nothing where there is no directory.
pub(super) fn size(dir: &Path) -> io::Result<u64> {
    let mut bytes = 0;
    let mut dirs = vec![dir.to_owned()];
    while let Some(dir) = dirs.pop() {
        let entries = match fs::read_dir(&dir) {
            Ok(entries) => entries,
            Err(cause) if is_missing(&cause) => continue,
            Err(cause) => return Err(cause),
        };
        for entry in entries {
            let entry = entry?;
            match entry.metadata() {
                Ok(about) if about.is_dir() => dirs.push(entry.path()),
                Ok(about) => bytes += cost(about.len()),
                Err(cause) if is_missing(&cause) => {}
                Err(cause) => return Err(cause),
            }
        }
    }
    Ok(bytes)
}
