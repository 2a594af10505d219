//! The audit log: who changed what, and who was refused. Lines of JSON in files that only grow; each line holds the
//! SHA-256 of the line before it, so that none can be edited, removed or moved without the next one disagreeing. The hash of
//! the last line is kept elsewhere (the store), so that none can be cut off the end either.
//!
//! The log shows that it was tampered with; it cannot keep whoever may write both the files and the store from it.

mod read;
mod write;

use model::{Digest, TenantName};
use serde::{Deserialize, Serialize};

pub use read::{Report, last, measured, verify, verify_measured};
pub use write::{Disk, Log};

/// What one line says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Act {
    /// `operator`, `token <id>`, or `nobody`: whoever it was had no token that is one.
    pub who: String,
    /// The tenant that `who` belongs to or that the act is about; absent: neither is one tenant's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tenant: Option<TenantName>,
    /// The address the request came from.
    pub from: String,
    /// Method and path.
    pub what: String,
    /// What came of it.
    pub outcome: Outcome,
    /// The status it was answered with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
    /// Why it was refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<String>,
    /// The number of the line that says it was begun.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub begun: Option<u64>,
    /// Refused attempts before this line, of the same tenant's tokens or of strangers, that came too fast to be written
    /// down one by one.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub left_out: u64,
}

fn is_zero(n: &u64) -> bool {
    *n == 0
}

/// What came of an act.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// It is about to be tried. A line that says what came of it follows, unless the process ended first.
    Begun,
    /// It was done.
    Done,
    /// It was refused, or failed.
    Refused,
    /// The log itself: at a start it did not end as the store says.
    Broken,
    /// The log itself: at a start it had lines that the store did not know of.
    Found,
}

/// One line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Lines are numbered from 1.
    pub number: u64,
    /// Milliseconds since 1970.
    pub time_ms: u64,
    /// The SHA-256 of the line before, without its line end; of nothing before the first.
    pub prev: Digest,
    /// What it says.
    #[serde(flatten)]
    pub act: Act,
}

/// Where the log ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tail {
    /// The number of the last line; 0: there is none.
    pub number: u64,
    /// Its SHA-256.
    pub hash: Digest,
}

impl Tail {
    /// The end of a log without lines.
    pub fn none() -> Self {
        Self { number: 0, hash: Digest::of(b"") }
    }
}
