//! Which of the contract's errors an error of Postgres is, by the class of its SQLSTATE
//! (<https://www.postgresql.org/docs/current/errcodes-appendix.html>).

use std::error::Error as _;

use model::sql::{ConstraintKind, STATEMENT_MS, SqlError};
use tokio_postgres::Error;

use super::guard::Oversize;

/// An error on a connection.
pub(super) fn translate(cause: &Error, oversize: &Oversize) -> SqlError {
    if oversize.is_so() {
        return SqlError::TooLarge("the answer has a row that is larger than an answer may be".to_owned());
    }
    // Ours, from reading or writing a value.
    if let Some(ours) = cause.source().and_then(|source| source.downcast_ref::<SqlError>()) {
        return ours.clone();
    }
    let Some(said) = cause.as_db_error() else { return SqlError::Unavailable(full(cause)) };
    let (code, message) = (said.code().code(), said.message().to_owned());
    let constraint = |kind| SqlError::Constraint { kind, message: message.clone() };
    match (code, code.get(..2).unwrap_or_default()) {
        ("23505", _) => constraint(ConstraintKind::Unique),
        ("23502", _) => constraint(ConstraintKind::NotNull),
        ("23503" | "23001", _) => constraint(ConstraintKind::ForeignKey),
        ("23514", _) => constraint(ConstraintKind::Check),
        // What triggers and functions of the database refuse is a rule of it, too.
        (_, "23" | "44" | "P0" | "27" | "09") => constraint(ConstraintKind::Other),
        ("57014", _) => SqlError::TimedOut { ms: STATEMENT_MS },
        ("42501", _) | (_, "28") | ("25006", _) => SqlError::Denied(message),
        ("40001" | "40P01" | "55P03", _) => SqlError::Conflict(message),
        (_, "54") => SqlError::TooLarge(message),
        (_, "22") => SqlError::Value(message),
        (_, "08" | "53" | "57" | "58" | "F0" | "XX" | "3D") => SqlError::Unavailable(message),
        _ => SqlError::Invalid(message),
    }
}

/// An error while a connection is opened.
pub(super) fn cannot_connect(cause: &Error) -> SqlError {
    let Some(said) = cause.as_db_error() else {
        let text = full(cause);
        // The library has no other way to say that a login needs what we do not have.
        return match text.starts_with("authentication error") || text.starts_with("invalid configuration") {
            true => SqlError::Denied(format!("the login failed: {text}")),
            false => SqlError::Unavailable(format!("what answers there is no Postgres, or it went away: {text}")),
        };
    };
    match said.code().code().get(..2).unwrap_or_default() {
        "28" => SqlError::Denied(format!("the login failed: {}", said.message())),
        "42" => SqlError::Denied(said.message().to_owned()),
        _ => SqlError::Unavailable(said.message().to_owned()),
    }
}

fn full(cause: &Error) -> String {
    match cause.source() {
        Some(source) => format!("{cause}: {source}"),
        None => cause.to_string(),
    }
}
