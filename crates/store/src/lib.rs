//! The only rendezvous between control plane and nodes, and the engine behind embedded data.
//!
//! [`Store`] is a small key-value interface with revisions, compare-and-set, prefix watch and leases. A write is
//! acknowledged after it is on disk. One conformance suite runs over every backend.
#![forbid(unsafe_code)]

pub mod audit;
pub mod blobs;
pub mod conformance;
pub mod data;
mod disk;
pub mod folder;
pub mod keys;
pub mod redb;
pub mod room;
mod seal;
pub mod secrets;
pub mod sql;

use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream::BoxStream;

/// A key and what it holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The whole key.
    pub key: String,
    /// Its value.
    pub value: Bytes,
    /// The store revision of its last write.
    pub revision: u64,
}

/// All entries under a prefix at one revision of the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// In key order.
    pub entries: Vec<Entry>,
    /// The store's revision: a watch after it misses nothing.
    pub revision: u64,
}

/// One change, in the order of revisions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// The whole key.
    pub key: String,
    /// The new value; `None` where the key is gone.
    pub value: Option<Bytes>,
    /// The store revision of the change.
    pub revision: u64,
}

/// What a write requires of the key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expect {
    /// Nothing.
    Any,
    /// The key is not there.
    Absent,
    /// The key was last written at this revision.
    Revision(u64),
}

/// A lease: keys written with it vanish when it ends. Leased keys do not survive the embedded store's process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct LeaseId(pub u64);

/// Why the store refused.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Compare-and-set lost; the key's current revision, if it is there.
    #[error("`{key}` was changed by somebody else (now at revision {current:?})")]
    Conflict { key: String, current: Option<u64> },
    /// A watch asked for changes that are no longer kept: list again.
    #[error("changes after revision {asked} are no longer kept (oldest kept: {oldest})")]
    Compacted { asked: u64, oldest: u64 },
    /// The lease ended or never was.
    #[error("lease {} has ended", .0.0)]
    LeaseEnded(LeaseId),
    /// The disk is full or read-only; nothing was changed.
    #[error("the store at {path} cannot write: {cause}")]
    CannotWrite { path: String, cause: String },
    /// The store's file is damaged or of another version; it was not touched.
    #[error("the store file {path} cannot be used: {cause}")]
    Damaged { path: String, cause: String },
    /// Another process has it open.
    #[error("the store file {path} is in use by another process")]
    InUse { path: String },
    /// The backend cannot be reached now.
    #[error("the store cannot be reached: {0}")]
    Unreachable(String),
}

/// The store. Cheap to share behind an `Arc`.
pub trait Store: Send + Sync + 'static {
    /// One key.
    fn get<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Option<Entry>, StoreError>>;
    /// All keys that start with `prefix`.
    fn list<'a>(&'a self, prefix: &'a str) -> BoxFuture<'a, Result<Snapshot, StoreError>>;
    /// All keys that start with `prefix`, in their order, and how large the value of each is, bytes: for whoever must not hold all values
    /// at once, or wants none of them.
    fn sizes<'a>(&'a self, prefix: &'a str) -> BoxFuture<'a, Result<Vec<(String, u64)>, StoreError>> {
        Box::pin(async move {
            let entries = self.list(prefix).await?.entries.into_iter();
            Ok(entries.map(|entry| (entry.key, entry.value.len() as u64)).collect())
        })
    }
    /// Writes a key; answers with the store's new revision after the write is durable (leased keys: visible).
    fn put<'a>(
        &'a self,
        key: &'a str,
        value: Bytes,
        expect: Expect,
        lease: Option<LeaseId>,
    ) -> BoxFuture<'a, Result<u64, StoreError>>;
    /// Removes a key; no error with [`Expect::Any`] when it is not there.
    fn delete<'a>(&'a self, key: &'a str, expect: Expect) -> BoxFuture<'a, Result<u64, StoreError>>;
    /// Every change under `prefix` after `revision`, first those that happened already. Ends only with an error.
    fn watch(&self, prefix: &str, after: u64) -> BoxStream<'static, Result<Change, StoreError>>;
    /// A new lease.
    fn grant(&self, ttl: Duration) -> BoxFuture<'_, Result<LeaseId, StoreError>>;
    /// Starts the lease's time anew.
    fn keep_alive(&self, lease: LeaseId) -> BoxFuture<'_, Result<(), StoreError>>;
    /// Ends the lease and removes its keys.
    fn revoke(&self, lease: LeaseId) -> BoxFuture<'_, Result<(), StoreError>>;
}
