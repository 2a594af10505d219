//! A failure and what the agent is to do about it. Nomad reads the retry class from the details of a gRPC status alone;
//! an error without them is never tried again.

use prost::Message as _;
use prost_types::Any;
use tonic::{Code, Status};

use crate::contracts::google::rpc;
use crate::contracts::hashicorp::nomad::plugins::shared::structs::RecoverableError;

/// The type of the detail, as Nomad names it.
const RECOVERABLE: &str = "type.googleapis.com/hashicorp.nomad.plugins.shared.structs.RecoverableError";

/// Whether trying the same again may help.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// It may: the restart policy of the task applies.
    Recoverable,
    /// It cannot: the allocation fails.
    Unrecoverable,
    /// There is no such task.
    Unknown,
    /// The driver does not do this.
    Unsupported,
}

/// Why something was not done, in one sentence that a person can act on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// What to do about it.
    pub class: Class,
    /// The sentence.
    pub message: String,
}

impl Failure {
    /// Trying again may help.
    pub fn recoverable(message: impl Into<String>) -> Self {
        Self { class: Class::Recoverable, message: message.into() }
    }

    /// Trying again cannot help.
    pub fn unrecoverable(message: impl Into<String>) -> Self {
        Self { class: Class::Unrecoverable, message: message.into() }
    }

    /// The driver knows no such task.
    pub fn unknown_task(id: &str) -> Self {
        Self { class: Class::Unknown, message: format!("this driver has no task `{id}`") }
    }

    /// The driver does not do this.
    pub fn unsupported(what: &str) -> Self {
        Self { class: Class::Unsupported, message: format!("this driver does not support {what}") }
    }
}

impl From<Failure> for Status {
    fn from(failure: Failure) -> Self {
        let (code, recoverable) = match failure.class {
            Class::Recoverable => (Code::FailedPrecondition, true),
            Class::Unrecoverable => (Code::FailedPrecondition, false),
            Class::Unknown => (Code::NotFound, false),
            Class::Unsupported => (Code::Unimplemented, false),
        };
        let detail = Any { type_url: RECOVERABLE.to_owned(), value: RecoverableError { recoverable }.encode_to_vec() };
        let status = rpc::Status { code: code.into(), message: failure.message.clone(), details: vec![detail] };
        Status::with_details(code, failure.message, status.encode_to_vec().into())
    }
}

/// The retry class of a status, as an agent reads it.
pub fn is_recoverable(status: &Status) -> bool {
    let Ok(status) = rpc::Status::decode(status.details()) else { return false };
    let detail = status.details.first().filter(|detail| detail.type_url == RECOVERABLE);
    detail.is_some_and(|detail| RecoverableError::decode(&*detail.value).is_ok_and(|error| error.recoverable))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_class_survives_the_wire_and_no_detail_means_never_again() {
        let status = Status::from(Failure::recoverable("the port is taken"));
        assert_eq!((status.code(), status.message()), (Code::FailedPrecondition, "the port is taken"));
        assert!(is_recoverable(&status));
        assert!(!is_recoverable(&Failure::unrecoverable("no such file").into()));
        assert!(!is_recoverable(&Status::internal("x")));
        assert_eq!(Status::from(Failure::unknown_task("a")).code(), Code::NotFound);
    }
}
