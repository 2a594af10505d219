//! What can go wrong between us and a NATS server.

use crate::dial::DialError;
use crate::meter::{ErrorKind, Kind};
use crate::secrets::SecretError;

/// Why a call failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NatsError {
    /// There is no connection. Nothing was sent.
    #[error("NATS cannot be reached: {0}")]
    Unavailable(String),
    /// The connection broke while the call was under way. Whether the server saw it is not known.
    #[error("the connection to NATS was lost: {0}")]
    Lost(String),
    /// Credentials, permissions, or policy on the way there.
    #[error("NATS denies access: {0}")]
    Denied(String),
    /// No answer in time. Whether the server saw the call is not known.
    #[error("NATS did not answer within {ms} ms")]
    TimedOut {
        /// The limit, milliseconds.
        ms: u64,
    },
    /// JetStream does not answer what this link asks. Nothing was sent.
    #[error(
        "JetStream did not answer the last calls of this link within {ms} ms each; it is asked again after a pause, and until it \
         answers no call is sent: look whether the stream has a leader (`nats stream info`)"
    )]
    Silent {
        /// What each of them had, milliseconds.
        ms: u64,
    },
    /// Nobody listens on the subject of a request.
    #[error("nobody answers on the NATS subject `{0}`")]
    NoResponders(String),
    /// The message is larger than the server takes.
    #[error("a NATS message has at most {limit} bytes here (`max_payload` of the server), this one has {bytes}")]
    TooLarge {
        /// Headers and payload, bytes.
        bytes: usize,
        /// What the server takes, bytes.
        limit: usize,
    },
    /// A subject, header or credential that cannot be sent.
    #[error("{0}")]
    Invalid(String),
}

impl Kind for NatsError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Unavailable(_) | Self::Lost(_) | Self::Silent { .. } | Self::NoResponders(_) => {
                ErrorKind::Unavailable
            }
            Self::Denied(_) => ErrorKind::Denied,
            Self::TimedOut { .. } => ErrorKind::TimedOut,
            Self::TooLarge { .. } | Self::Invalid(_) => ErrorKind::Refused,
        }
    }
}

impl From<DialError> for NatsError {
    fn from(cause: DialError) -> Self {
        match cause {
            DialError::Denied(why) => Self::Denied(why),
            DialError::TimedOut { ms } => Self::TimedOut { ms },
            other => Self::Unavailable(other.to_string()),
        }
    }
}

/// A secret that cannot be had is a connection that cannot be made.
impl From<SecretError> for NatsError {
    fn from(cause: SecretError) -> Self {
        match cause.kind() {
            ErrorKind::Refused | ErrorKind::Denied => Self::Denied(cause.to_string()),
            ErrorKind::Unavailable | ErrorKind::TimedOut | ErrorKind::Cancelled => Self::Unavailable(cause.to_string()),
        }
    }
}
