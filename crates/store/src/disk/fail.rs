//! What a disk or a file can do to us, reduced to the differences that matter to callers.

use std::io;
use std::path::Path;

use crate::StoreError;

/// Why a file could not be read or written.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum Fail {
    /// The disk refused: full, read-only, broken. Nothing was changed.
    #[error("{0}")]
    Disk(String),
    /// The content is not what was written.
    #[error("{0}")]
    Damaged(String),
    /// Another process has the file.
    #[error("in use by another process")]
    InUse,
    /// Whether the write is on disk cannot be told.
    #[error("the disk failed while a write was synced, whether it was kept is unknown: {0}")]
    Unknown(String),
}

impl Fail {
    /// The file could not be opened again after an error.
    pub(super) fn closed() -> Self {
        Self::Disk("the file was closed after an I/O error and could not be opened again yet".into())
    }

    /// In words of the store's interface.
    pub(crate) fn explain(self, path: &Path) -> StoreError {
        let path = path.display().to_string();
        match self {
            Self::Disk(cause) => StoreError::CannotWrite { path, cause },
            Self::Damaged(cause) => StoreError::Damaged {
                path,
                cause: format!("{cause}. Restore it from a backup, or move it away to start without its content"),
            },
            Self::InUse => StoreError::InUse { path },
            Self::Unknown(_) => StoreError::Unreachable(self.to_string()),
        }
    }
}

impl From<io::Error> for Fail {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            // Reads are of pages that were written: an end in their middle is a file cut short.
            io::ErrorKind::UnexpectedEof => Self::Damaged("it is shorter than it was".into()),
            // redb's word for a file that does not begin like one of its own.
            io::ErrorKind::InvalidData => Self::Damaged(error.to_string()),
            _ => Self::Disk(error.to_string()),
        }
    }
}

impl From<::redb::Error> for Fail {
    fn from(error: ::redb::Error) -> Self {
        use ::redb::Error;
        match error {
            Error::Io(error) => error.into(),
            Error::DatabaseAlreadyOpen => Self::InUse,
            Error::PreviousIo | Error::DatabaseClosed => Self::Disk(error.to_string()),
            Error::Corrupted(cause) => Self::Damaged(cause),
            Error::TableDoesNotExist(table) => Self::Damaged(format!("it has no table `{table}`")),
            other => Self::Damaged(other.to_string()),
        }
    }
}

macro_rules! from_redb {
    ($($error:ident),+) => {$(
        impl From<::redb::$error> for Fail {
            fn from(error: ::redb::$error) -> Self {
                ::redb::Error::from(error).into()
            }
        }
    )+};
}

from_redb!(StorageError, TableError, TransactionError, CommitError, DatabaseError, SetDurabilityError);
