//! One redb file, opened without trust and written without loss; both engines of this crate stand on it.
//!
//! * Before a file is written to it is read whole through [`backend::Backend::memory`], which never writes it: a
//!   damaged file is refused as it was found.
//! * Each commit carries a sequence number, and [`witness::Witness`] holds the last acknowledged one beside the file.
//!   Damage to the newest pages looks to redb like a commit that a crash cut short, and it falls back to the one
//!   before; the witness tells the two apart.
//! * redb refuses everything after an I/O error until it is opened again. [`Disk::commit`] opens it again, and looks
//!   whether the commit that failed is there.

mod backend;
mod create;
mod fail;
#[cfg(test)]
pub(crate) mod tests;
mod witness;

pub(crate) use create::sync_dir;
pub(crate) use fail::Fail;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{PoisonError, RwLock};

use ::redb::backends::FileBackend;
use ::redb::{
    Database, Durability, ReadTransaction, ReadableDatabase as _, StorageBackend as _, TableDefinition,
    WriteTransaction,
};

use crate::StoreError;
use backend::Backend;
use witness::{Seen, Witness};

/// What the file is and how far it has come: `format`, `sequence`, and what an engine adds.
pub(crate) const META: TableDefinition<'static, &str, u64> = TableDefinition::new("meta");
const FORMAT: &str = "format";
const SEQUENCE: &str = "sequence";

/// What distinguishes one engine's file from another's.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Kind {
    /// Of the file: which engine and which version. The low 16 bits are the version.
    pub format: u64,
    /// Memory for pages, bytes.
    pub cache: usize,
    /// Files up to this size, bytes, are read whole before use. Larger ones are checked where they are read.
    pub verify_up_to: u64,
    /// Makes the engine's tables in a new file.
    pub prepare: fn(&WriteTransaction) -> Result<(), Fail>,
    /// Checks that the engine's tables can be read in an existing one.
    pub check: fn(&ReadTransaction) -> Result<(), Fail>,
}

/// How the file is written; tests put a failing disk here.
type Attach = Box<dyn Fn(FileBackend) -> Backend + Send + Sync>;

/// An open file. One thread commits; any thread reads.
pub(crate) struct Disk {
    path: PathBuf,
    kind: Kind,
    witness: Witness,
    attach: Attach,
    /// `None` while it could not be opened again after an I/O error.
    database: RwLock<Option<Database>>,
    writable: AtomicBool,
    /// The last write known to be in the file.
    sequence: AtomicU64,
}

impl std::fmt::Debug for Disk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Disk").field("path", &self.path).finish_non_exhaustive()
    }
}

impl Disk {
    /// Opens the file, or makes it where there is none and never was.
    pub(crate) fn open(path: &Path, kind: Kind) -> Result<Self, StoreError> {
        Self::open_with(path, kind, Box::new(Backend::file))
    }

    fn open_with(path: &Path, kind: Kind, attach: Attach) -> Result<Self, StoreError> {
        let explain = |fail: Fail| fail.explain(path);
        let witness_path = witness::path_of(path);
        if !path.try_exists().map_err(|e| explain(e.into()))? {
            if witness::read(&witness_path).map_err(explain)? != Seen::Nothing {
                return Err(explain(lost(&witness_path)));
            }
            create::create(path, |file| new_file(file, kind)).map_err(explain)?;
        }
        let acknowledged = witness::read(&witness_path).map_err(explain)?;
        verify(path, kind, acknowledged).map_err(explain)?;
        let database = open_real(path, kind, &attach).map_err(explain)?;
        let sequence = read_sequence(&database).map_err(explain)?;
        check_acknowledged(sequence, acknowledged).map_err(explain)?;
        create::sweep(path);
        let witness = Witness::open(&witness_path, sequence).map_err(explain)?;
        Ok(Self {
            path: path.to_owned(),
            kind,
            witness,
            attach,
            database: RwLock::new(Some(database)),
            writable: true.into(),
            sequence: sequence.into(),
        })
    }

    /// The file.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// A view of everything committed by now.
    pub(crate) fn read(&self) -> Result<ReadTransaction, Fail> {
        let database = self.database.read().unwrap_or_else(PoisonError::into_inner);
        let database = database.as_ref().ok_or_else(Fail::closed)?;
        Ok(database.begin_read()?)
    }

    /// Runs `write` in one transaction and returns after it is on disk. On an error nothing was changed, except where
    /// the error is [`Fail::Unknown`]. One thread only.
    pub(crate) fn commit<T>(&self, write: impl FnOnce(&WriteTransaction) -> Result<T, Fail>) -> Result<T, Fail> {
        if !self.writable.load(Relaxed) {
            create::probe(&self.path)?;
            self.reopen()?;
        }
        let next = self.sequence.load(Relaxed) + 1;
        let mut outcome = None;
        let written = self.attempt(next, |txn| {
            outcome = Some(write(txn)?);
            Ok(())
        });
        if let Err(fail) = written {
            tracing::warn!(path = %self.path.display(), error = %fail, "a write failed; opening the store file again");
            let reopened = self.reopen();
            if self.sequence.load(Relaxed) < next {
                // Not in the file, even if it could only be opened for reading.
                return Err(if self.is_open() { fail } else { Fail::Unknown(fail.to_string()) });
            }
            // The commit reached the file although the disk reported an error: what is there now counts only after
            // a sync that succeeds.
            reopened
                .and_then(|()| self.attempt(next + 1, |_| Ok(())))
                .map_err(|again| Fail::Unknown(format!("{fail}; {again}")))?;
            self.acknowledge(next + 1);
        } else {
            self.acknowledge(next);
        }
        outcome.ok_or_else(|| Fail::Damaged("a commit succeeded without its content".into()))
    }

    fn acknowledge(&self, sequence: u64) {
        self.sequence.store(sequence, Relaxed);
        self.witness.advance(sequence);
    }

    fn is_open(&self) -> bool {
        self.database.read().unwrap_or_else(PoisonError::into_inner).is_some()
    }

    fn attempt(&self, sequence: u64, write: impl FnOnce(&WriteTransaction) -> Result<(), Fail>) -> Result<(), Fail> {
        let database = self.database.read().unwrap_or_else(PoisonError::into_inner);
        let database = database.as_ref().ok_or_else(Fail::closed)?;
        // redb asserts on pages that rotted while it was running; that must not take the process down.
        let written = guarded(|| {
            let mut txn = database.begin_write()?;
            txn.set_durability(Durability::Immediate)?;
            write(&txn)?;
            txn.open_table(META)?.insert(SEQUENCE, sequence)?;
            Ok(txn.commit()?)
        });
        self.writable.store(written.is_ok(), Relaxed);
        written
    }

    /// Closes and opens the file and learns up to which write it goes. Where it cannot be opened for writing it is
    /// opened for reading, so that whoever reads can go on; that is an error all the same.
    fn reopen(&self) -> Result<(), Fail> {
        let mut database = self.database.write().unwrap_or_else(PoisonError::into_inner);
        self.writable.store(false, Relaxed);
        // The old one holds the file's lock.
        *database = None;
        let writable = open_real(&self.path, self.kind, &self.attach);
        let (again, outcome) = match writable {
            Ok(again) => (again, Ok(())),
            Err(fail) => (open_view(&self.path, self.kind)?, Err(fail)),
        };
        let found = read_sequence(&again)?;
        let known = self.sequence.load(Relaxed);
        if found < known {
            return Err(Fail::Damaged(format!("write {known} was acknowledged, the file ends at {found}")));
        }
        self.sequence.store(found, Relaxed);
        self.writable.store(outcome.is_ok(), Relaxed);
        *database = Some(again);
        outcome
    }
}

/// Checks a file that nobody has open as [`Disk::open`] does before it writes, whole whatever its size, and changes
/// nothing. Where there is none and never was, there is nothing to say.
pub(crate) fn check(path: &Path, kind: Kind) -> Result<(), StoreError> {
    let look = || {
        let witness_path = witness::path_of(path);
        let acknowledged = witness::read(&witness_path)?;
        if path.try_exists()? {
            return verify(path, Kind { verify_up_to: u64::MAX, ..kind }, acknowledged);
        }
        if acknowledged == Seen::Nothing { Ok(()) } else { Err(lost(&witness_path)) }
    };
    look().map_err(|fail: Fail| fail.explain(path))
}

/// A file that was written to is not there.
fn lost(witness: &Path) -> Fail {
    Fail::Damaged(format!("it is gone but was written to; to start empty, remove {} too", witness.display()))
}

/// Checks a file without changing it.
fn verify(path: &Path, kind: Kind, acknowledged: Seen) -> Result<(), Fail> {
    // Opening it for writing tells a read-only disk from a damaged file.
    if create::open_existing(path)?.metadata()?.len() > kind.verify_up_to {
        return Ok(());
    }
    guarded(|| {
        let mut database = open_view(path, kind)?;
        if !database.check_integrity()? {
            return Err(Fail::Damaged("its pages do not match their checksums".into()));
        }
        let txn = database.begin_read()?;
        let format = txn.open_table(META)?.get(FORMAT)?.map(|value| value.value());
        check_format(format, kind.format)?;
        (kind.check)(&txn)?;
        drop(txn);
        check_acknowledged(read_sequence(&database)?, acknowledged)
    })
}

fn check_format(found: Option<u64>, expected: u64) -> Result<(), Fail> {
    match found {
        Some(found) if found == expected => Ok(()),
        Some(found) if found >> 16 == expected >> 16 => Err(Fail::Damaged(format!(
            "it has format version {}, this program reads version {}: start the program version that wrote it",
            found & 0xffff,
            expected & 0xffff
        ))),
        _ => Err(Fail::Damaged("it is not a file of this engine".into())),
    }
}

fn check_acknowledged(found: u64, acknowledged: Seen) -> Result<(), Fail> {
    match acknowledged {
        Seen::Write(acknowledged) if acknowledged > found => Err(Fail::Damaged(format!(
            "write {acknowledged} was acknowledged but the file ends at {found}: its newest pages are lost, or it is \
             an older copy; restore the newest backup together with the file `.last` beside it"
        ))),
        _ => Ok(()),
    }
}

fn new_file(file: std::fs::File, kind: Kind) -> Result<(), Fail> {
    let database = Database::builder().set_cache_size(kind.cache).create_file(file)?;
    let txn = database.begin_write()?;
    {
        let mut meta = txn.open_table(META)?;
        meta.insert(FORMAT, kind.format)?;
        meta.insert(SEQUENCE, 0)?;
    }
    (kind.prepare)(&txn)?;
    Ok(txn.commit()?)
}

fn open_real(path: &Path, kind: Kind, attach: &Attach) -> Result<Database, Fail> {
    let backend = attach(FileBackend::new(create::open_existing(path)?)?);
    guarded(|| {
        // redb would fill an empty file.
        if backend.len()? == 0 {
            return Err(Fail::Damaged("it lost its content".into()));
        }
        let database = Database::builder().set_cache_size(kind.cache).create_with_backend(backend)?;
        let txn = database.begin_read()?;
        check_format(txn.open_table(META)?.get(FORMAT)?.map(|value| value.value()), kind.format)?;
        Ok(database)
    })
}

/// Opens the file for reading; writes of redb itself stay in memory.
fn open_view(path: &Path, kind: Kind) -> Result<Database, Fail> {
    let file = create::open_for_reading(path)?;
    let size = file.metadata()?.len();
    if size == 0 {
        return Err(Fail::Damaged("it has no content".into()));
    }
    guarded(|| {
        let backend = Backend::memory(FileBackend::new(file)?, size);
        Ok(Database::builder().set_cache_size(kind.cache).create_with_backend(backend)?)
    })
}

fn read_sequence(database: &Database) -> Result<u64, Fail> {
    let txn = database.begin_read()?;
    let sequence = txn.open_table(META)?.get(SEQUENCE)?.map(|value| value.value());
    sequence.ok_or_else(|| Fail::Damaged("it has no sequence number".into()))
}

/// redb asserts what a damaged file breaks; here that is an error like the others.
fn guarded<T>(act: impl FnOnce() -> Result<T, Fail>) -> Result<T, Fail> {
    catch_unwind(AssertUnwindSafe(act)).unwrap_or_else(|panic| {
        let message = panic.downcast_ref::<String>().map(String::as_str);
        let message = message.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("an assertion failed");
        Err(Fail::Damaged(format!("its structure is broken ({message})")))
    })
}
