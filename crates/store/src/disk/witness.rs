//! The number of the last acknowledged write, in a 16-byte file `<file>.last` beside the store's.
//!
//! It is written after each commit and before the acknowledgement, and not synced: after `kill -9` it is exact, after a
//! power cut it may be behind, which only makes the check weaker. It never is ahead of a store file that is whole.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use super::Fail;

/// What the witness says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Seen {
    /// There is none: the store file never was, or was copied without it.
    Nothing,
    /// It is torn or damaged; the store file was there.
    Unreadable,
    /// The last acknowledged write.
    Write(u64),
}

/// The open file.
#[derive(Debug)]
pub(super) struct Witness {
    file: File,
    warned: AtomicBool,
}

/// Where it is.
pub(super) fn path_of(store: &Path) -> PathBuf {
    super::create::beside(store, ".last")
}

/// Reads it.
pub(super) fn read(path: &Path) -> Result<Seen, Fail> {
    match fs::read(path) {
        Ok(bytes) => Ok(decode(&bytes).map_or(Seen::Unreadable, Seen::Write)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Seen::Nothing),
        Err(e) => Err(e.into()),
    }
}

impl Witness {
    /// Opens or makes it, at `sequence`.
    pub(super) fn open(path: &Path, sequence: u64) -> Result<Self, Fail> {
        let file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(path)?;
        if read(path)? != Seen::Write(sequence) {
            file.write_all_at(&encode(sequence), 0)?;
            file.set_len(16)?;
            file.sync_all()?;
            super::sync_dir(super::create::parent(path))?;
        }
        Ok(Self { file, warned: AtomicBool::new(false) })
    }

    /// Records an acknowledged write.
    pub(super) fn advance(&self, sequence: u64) {
        if let Err(error) = self.file.write_all_at(&encode(sequence), 0)
            && !self.warned.swap(true, Ordering::Relaxed)
        {
            tracing::warn!(%error, "the last-write file of the store cannot be written; damage is harder to notice");
        }
    }
}

fn encode(sequence: u64) -> [u8; 16] {
    let mut bytes = [0; 16];
    let (number, check) = bytes.split_at_mut(8);
    number.copy_from_slice(&sequence.to_le_bytes());
    check.copy_from_slice(&check_of(sequence));
    bytes
}

fn decode(bytes: &[u8]) -> Option<u64> {
    let (number, check) = bytes.split_first_chunk::<8>()?;
    let sequence = u64::from_le_bytes(*number);
    (check == check_of(sequence)).then_some(sequence)
}

fn check_of(sequence: u64) -> [u8; 8] {
    let hash = blake3::hash(&sequence.to_le_bytes());
    let mut check = [0; 8];
    check.iter_mut().zip(hash.as_bytes()).for_each(|(to, from)| *to = *from);
    check
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_reads_what_it_wrote_and_notices_damage() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("w");
        assert_eq!(read(&path).unwrap(), Seen::Nothing);
        let witness = Witness::open(&path, 3).unwrap();
        witness.advance(u64::MAX - 1);
        assert_eq!(read(&path).unwrap(), Seen::Write(u64::MAX - 1));
        let good = fs::read(&path).unwrap();
        for bit in 0..128 {
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            fs::write(&path, bad).unwrap();
            assert_eq!(read(&path).unwrap(), Seen::Unreadable);
        }
        fs::write(&path, &good[..15]).unwrap();
        assert_eq!(read(&path).unwrap(), Seen::Unreadable);
    }
}
