//! What can be asked of the embedded data and what it answers: the operations of `wasi:keyvalue` 0.2.0-draft, the
//! same as on the wire between a host and its node, which maps one to the other.

use crate::room::Full;

/// The longest key, bytes.
pub const MAX_KEY: usize = 1024;
/// The longest bucket name, bytes; any text.
pub const MAX_BUCKET: usize = 256;
/// The largest value, bytes.
pub const MAX_VALUE: usize = 8 << 20;
/// The most keys of one batch operation.
pub const MAX_BATCH: usize = 1024;
/// The most bytes of keys and values of one batch operation or one answer.
pub const MAX_BYTES: usize = 16 << 20;
/// The most keys of one page of a listing; a larger `limit` gets this many and a cursor.
pub const MAX_LIST: u32 = 1000;

/// One operation on a bucket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Op {
    /// The value of a key.
    Get { key: String },
    /// Sets a key.
    Set { key: String, value: Vec<u8> },
    /// Removes a key; no error when it is not there.
    Delete { key: String },
    /// Whether a key is there.
    Exists { key: String },
    /// Keys in order after `cursor`, at most `limit`.
    ListKeys { cursor: Option<String>, limit: u32 },
    /// Adds to an integer stored as decimal text; a missing key counts as 0.
    Increment { key: String, delta: u64 },
    /// Sets a key if its value is still `expected` (absent: not there).
    CompareAndSet { key: String, expected: Option<Vec<u8>>, value: Vec<u8> },
    /// Several values.
    GetMany { keys: Vec<String> },
    /// Sets several keys, all or none.
    SetMany { pairs: Vec<(String, Vec<u8>)> },
    /// Removes several keys, all or none.
    DeleteMany { keys: Vec<String> },
}

/// What an operation returns.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// Set, Delete, SetMany, DeleteMany.
    Done,
    /// Get.
    Value(Option<Vec<u8>>),
    /// Exists; CompareAndSet: whether it was set.
    Bool(bool),
    /// Increment: the new value.
    Number(u64),
    /// ListKeys: the keys and where to go on.
    Keys { keys: Vec<String>, cursor: Option<String> },
    /// GetMany, in the order asked.
    Values(Vec<(String, Option<Vec<u8>>)>),
}

/// Why an operation failed; nothing was changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// Increment of something that is not a number, or overflow.
    #[error("the value of `{0}` is not an integer that can be incremented")]
    NotANumber(String),
    /// A key, value, bucket name or batch above its limit.
    #[error("{0}")]
    TooLarge(String),
    /// The tenant keeps as much as it may.
    #[error(transparent)]
    OverQuota(#[from] Full),
    /// The disk is full, read-only or damaged.
    #[error("the embedded store cannot be used now: {0}")]
    Unavailable(String),
}
