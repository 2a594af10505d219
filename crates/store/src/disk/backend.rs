//! Where redb's pages go: to the file, or, for looking at a file without changing it, to memory in front of it.

use std::collections::HashMap;
use std::io;
use std::ops::Bound;
use std::sync::{Mutex, PoisonError};

use ::redb::backends::FileBackend;
use ::redb::{BackendError, StorageBackend};

const BLOCK: u64 = 4096;

/// A locked file and what happens to writes.
#[derive(Debug)]
pub(super) struct Backend {
    file: FileBackend,
    writes: Writes,
}

#[derive(Debug)]
enum Writes {
    File,
    Memory(Mutex<Memory>),
    #[cfg(test)]
    Faulty(std::sync::Arc<super::tests::Faults>),
}

/// Written blocks, the length the file seems to have, and up to where its own content still shows.
#[derive(Debug)]
struct Memory {
    blocks: HashMap<u64, Box<[u8]>>,
    len: u64,
    visible: u64,
}

impl Backend {
    /// Reads and writes the file.
    pub(super) fn file(file: FileBackend) -> Self {
        Self { file, writes: Writes::File }
    }

    /// Reads the file, `len` bytes long, and never writes it.
    pub(super) fn memory(file: FileBackend, len: u64) -> Self {
        Self { file, writes: Writes::Memory(Mutex::new(Memory { blocks: HashMap::new(), len, visible: len })) }
    }

    #[cfg(test)]
    pub(super) fn faulty(file: FileBackend, faults: std::sync::Arc<super::tests::Faults>) -> Self {
        Self { file, writes: Writes::Faulty(faults) }
    }
}

impl Memory {
    fn block(&mut self, file: &FileBackend, index: u64) -> io::Result<&mut [u8]> {
        let start = index * BLOCK;
        let block = match self.blocks.entry(index) {
            std::collections::hash_map::Entry::Occupied(entry) => entry.into_mut(),
            std::collections::hash_map::Entry::Vacant(entry) => {
                let mut block = vec![0; BLOCK as usize].into_boxed_slice();
                let own = self.visible.saturating_sub(start).min(BLOCK) as usize;
                if let Some(part) = block.get_mut(..own)
                    && own > 0
                {
                    file.read(start, part)?;
                }
                entry.insert(block)
            }
        };
        Ok(block)
    }

    fn read(&self, file: &FileBackend, offset: u64, out: &mut [u8]) -> io::Result<()> {
        if offset.checked_add(out.len() as u64).is_none_or(|end| end > self.len) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let mut at = offset;
        let mut rest = out;
        while !rest.is_empty() {
            let inner = at % BLOCK;
            let length = ((BLOCK - inner) as usize).min(rest.len());
            let (part, after) = rest.split_at_mut(length);
            if let Some(block) = self.blocks.get(&(at / BLOCK)) {
                if let Some(written) = block.get(inner as usize..inner as usize + length) {
                    part.copy_from_slice(written);
                }
            } else {
                let own = (self.visible.saturating_sub(at) as usize).min(length);
                let (shown, zeroed) = part.split_at_mut(own);
                if own > 0 {
                    file.read(at, shown)?;
                }
                zeroed.fill(0);
            }
            at += length as u64;
            rest = after;
        }
        Ok(())
    }

    fn write(&mut self, file: &FileBackend, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut at = offset;
        let mut rest = data;
        while !rest.is_empty() {
            let inner = (at % BLOCK) as usize;
            let length = (BLOCK as usize - inner).min(rest.len());
            let (part, after) = rest.split_at(length);
            if let Some(place) = self.block(file, at / BLOCK)?.get_mut(inner..inner + length) {
                place.copy_from_slice(part);
            }
            at += length as u64;
            rest = after;
        }
        self.len = self.len.max(at);
        Ok(())
    }

    fn set_len(&mut self, file: &FileBackend, len: u64) -> io::Result<()> {
        if len < self.len {
            self.visible = self.visible.min(len);
            let last = len / BLOCK;
            self.blocks.retain(|index, _| *index <= last);
            if let Some(tail) = self.block(file, last)?.get_mut((len % BLOCK) as usize..) {
                tail.fill(0);
            }
        }
        self.len = len;
        Ok(())
    }
}

fn lock(memory: &Mutex<Memory>) -> std::sync::MutexGuard<'_, Memory> {
    memory.lock().unwrap_or_else(PoisonError::into_inner)
}

impl StorageBackend for Backend {
    fn len(&self) -> io::Result<u64> {
        match &self.writes {
            Writes::Memory(memory) => Ok(lock(memory).len),
            _ => self.file.len(),
        }
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        match &self.writes {
            Writes::Memory(memory) => lock(memory).read(&self.file, offset, out),
            _ => self.file.read(offset, out),
        }
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        match &self.writes {
            Writes::File => self.file.set_len(len),
            Writes::Memory(memory) => lock(memory).set_len(&self.file, len),
            #[cfg(test)]
            Writes::Faulty(faults) => faults.act(|| self.file.set_len(len)),
        }
    }

    fn sync_data(&self) -> io::Result<()> {
        match &self.writes {
            Writes::File => self.file.sync_data(),
            Writes::Memory(_) => Ok(()),
            #[cfg(test)]
            Writes::Faulty(faults) => faults.act(|| self.file.sync_data()),
        }
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        match &self.writes {
            Writes::File => self.file.write(offset, data),
            Writes::Memory(memory) => lock(memory).write(&self.file, offset, data),
            #[cfg(test)]
            Writes::Faulty(faults) => faults.act(|| self.file.write(offset, data)),
        }
    }

    fn close(&self) -> io::Result<()> {
        self.file.close()
    }

    fn try_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.file.try_lock_range(start, end)
    }

    fn try_lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.file.try_lock_shared_range(start, end)
    }

    fn lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.file.lock_range(start, end)
    }

    fn lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.file.lock_shared_range(start, end)
    }

    fn unlock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.file.unlock_range(start, end)
    }

    fn query_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.file.query_lock_range(start, end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;

    #[test]
    fn memory_behaves_like_a_file_and_the_file_stays_as_it_was() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        let content: Vec<u8> = (0..10_000u32).map(|n| n as u8).collect();
        file.write_all(&content).unwrap();
        let backend = Backend::memory(FileBackend::new(file.reopen().unwrap()).unwrap(), 10_000);
        let mut twin = content.clone();
        let look = |backend: &Backend, twin: &[u8]| {
            let mut seen = vec![1; twin.len()];
            backend.read(0, &mut seen).unwrap();
            assert!(seen == twin);
            assert_eq!(backend.len().unwrap(), twin.len() as u64);
        };
        look(&backend, &twin);
        backend.write(4000, &[9; 300]).unwrap();
        twin[4000..4300].fill(9);
        look(&backend, &twin);
        backend.set_len(5000).unwrap();
        backend.set_len(20_000).unwrap();
        twin.truncate(5000);
        twin.resize(20_000, 0);
        look(&backend, &twin);
        backend.write(19_999, &[7, 7, 7]).unwrap();
        twin.truncate(19_999);
        twin.extend([7, 7, 7]);
        look(&backend, &twin);
        assert!(backend.read(20_000, &mut [0; 3]).is_err());
        assert!(std::fs::read(file.path()).unwrap() == content);
    }
}
