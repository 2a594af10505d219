//! Which of the contract's errors an error of SQLite is.

use model::sql::{ConstraintKind, STATEMENT_MS, SqlError};
use rusqlite::ffi::{self, ErrorCode};

/// `refused` is what the guard refused, `full` why the database cannot grow where it has as many bytes as it may.
pub(super) fn translate(cause: rusqlite::Error, refused: Option<String>, full: Option<String>) -> SqlError {
    let (code, message) = match cause {
        rusqlite::Error::SqliteFailure(code, message) => (code, message),
        rusqlite::Error::SqlInputError { error, msg, .. } => (error, Some(msg)),
        rusqlite::Error::MultipleStatement => {
            return SqlError::Invalid("it has more than one statement; `batch` takes a list of them".to_owned());
        }
        other => return SqlError::Invalid(other.to_string()),
    };
    let message = message.unwrap_or_else(|| code.to_string());
    match code.code {
        ErrorCode::ConstraintViolation => SqlError::Constraint { kind: kind(code.extended_code), message },
        ErrorCode::OperationInterrupted => SqlError::TimedOut { ms: STATEMENT_MS },
        ErrorCode::AuthorizationForStatementDenied => {
            let what = refused.unwrap_or(message);
            SqlError::Denied(format!("components may not use {what}"))
        }
        ErrorCode::TooBig => SqlError::TooLarge(message),
        ErrorCode::OutOfMemory => SqlError::TooLarge("it needs more memory than a statement can have".to_owned()),
        ErrorCode::DiskFull => match full {
            Some(why) => SqlError::TooLarge(why),
            None => SqlError::Unavailable("the disk of the node is full".to_owned()),
        },
        ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked => SqlError::Conflict(message),
        ErrorCode::TypeMismatch | ErrorCode::ParameterOutOfRange => SqlError::Value(message),
        ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase => {
            SqlError::Unavailable(format!("its file is damaged ({message}); it is kept as it is"))
        }
        ErrorCode::Unknown | ErrorCode::ApiMisuse if code.extended_code & 0xff == ffi::SQLITE_ERROR => {
            SqlError::Invalid(message)
        }
        _ => SqlError::Unavailable(message),
    }
}

fn kind(extended: i32) -> ConstraintKind {
    match extended {
        ffi::SQLITE_CONSTRAINT_UNIQUE | ffi::SQLITE_CONSTRAINT_PRIMARYKEY | ffi::SQLITE_CONSTRAINT_ROWID => {
            ConstraintKind::Unique
        }
        ffi::SQLITE_CONSTRAINT_NOTNULL => ConstraintKind::NotNull,
        ffi::SQLITE_CONSTRAINT_FOREIGNKEY => ConstraintKind::ForeignKey,
        ffi::SQLITE_CONSTRAINT_CHECK => ConstraintKind::Check,
        _ => ConstraintKind::Other,
    }
}
