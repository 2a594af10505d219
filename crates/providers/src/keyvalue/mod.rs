//! `wasi:keyvalue` 0.2.0-draft: the [`Backend`] every store implements, and the [`KeyValueLinks`] that say which of
//! them a component's buckets are.
//!
//! The limits here hold for every backend, so an app that works on one works on the others.

mod adapter;
mod component;
pub mod conformance;
pub mod consul;
pub mod copy;
mod count;
mod cursor;
pub(crate) mod escape;
pub mod external;
mod follow;
pub mod journal;
pub mod memory;
pub mod nats;
pub mod redis;
pub mod vault;
pub mod watch;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

pub use adapter::KeyValue;
pub use component::ComponentStore;
pub use consul::Consul;
use cursor::Cursors;
pub use external::External;
use futures::future::BoxFuture;
use futures::{StreamExt, stream};
pub use memory::{Memory, Room};
pub use nats::Nats;
pub use redis::Redis;
pub use vault::VaultKv;

use crate::meter::{ErrorKind, Kind, LinkMeter};
use crate::secrets::SecretError;

/// The longest key, bytes; the shortest has one.
pub const MAX_KEY: usize = 1024;
/// The largest value, bytes.
pub const MAX_VALUE: usize = 8 << 20;
/// The most keys in one batch.
pub const MAX_BATCH: usize = 1024;
/// The most bytes of keys and values in one batch.
pub const MAX_BATCH_BYTES: usize = 16 << 20;
/// The most keys one listing returns.
pub const PAGE: u32 = 1000;

/// Keys of a bucket and where to go on.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Page {
    /// The keys.
    pub keys: Vec<String>,
    /// Present where there may be more; means something only to the backend that gave it.
    pub cursor: Option<String>,
}

/// Why a backend refused or failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BackendError {
    /// Incrementing something that is not an integer, or below 0 or past the range of one.
    #[error("the value of `{0}` is not an integer that can be incremented")]
    NotANumber(String),
    /// A key, value, batch or bucket above its limit.
    #[error("{0}")]
    TooLarge(String),
    /// The backend has no way to do it as the contract says.
    #[error("{0}")]
    Unsupported(String),
    /// The backend refuses this app: credentials, policy.
    #[error("the key-value store denies access: {0}")]
    Denied(String),
    /// The backend cannot be reached or cannot do it now. Whether a write happened is not known.
    #[error("the key-value store is not available: {0}")]
    Unavailable(String),
    /// No answer in time. Whether a write happened is not known.
    #[error("the key-value store did not answer within {ms} ms")]
    TimedOut {
        /// The limit, milliseconds.
        ms: u64,
    },
}

impl From<SecretError> for BackendError {
    fn from(error: SecretError) -> Self {
        match (&error, error.kind()) {
            (SecretError::TimedOut { ms, .. }, _) => Self::TimedOut { ms: *ms },
            (_, ErrorKind::Unavailable | ErrorKind::TimedOut | ErrorKind::Cancelled) => {
                Self::Unavailable(error.to_string())
            }
            (_, ErrorKind::Denied | ErrorKind::Refused) => Self::Denied(error.to_string()),
        }
    }
}

impl Kind for BackendError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::NotANumber(_) | Self::TooLarge(_) | Self::Unsupported(_) => ErrorKind::Refused,
            Self::Denied(_) => ErrorKind::Denied,
            Self::Unavailable(_) => ErrorKind::Unavailable,
            Self::TimedOut { .. } => ErrorKind::TimedOut,
        }
    }
}

/// An answer that may take a while.
pub type Answer<'a, T> = BoxFuture<'a, Result<T, BackendError>>;

/// One key-value store, already narrowed to one provider of one app of one tenant. A write that was answered is as
/// durable as the backend promises; a call that is dropped may still happen.
pub trait Backend: Send + Sync + 'static {
    /// The value of a key.
    fn get<'a>(&'a self, bucket: &'a str, key: &'a str) -> Answer<'a, Option<Vec<u8>>>;
    /// Sets a key.
    fn set<'a>(&'a self, bucket: &'a str, key: &'a str, value: Vec<u8>) -> Answer<'a, ()>;
    /// Removes a key; no error where it is not there.
    fn delete<'a>(&'a self, bucket: &'a str, key: &'a str) -> Answer<'a, ()>;
    /// Whether a key is there.
    fn exists<'a>(&'a self, bucket: &'a str, key: &'a str) -> Answer<'a, bool>;
    /// Some keys, about [`PAGE`] of them. Going on from cursor to cursor names every key that was there all the time.
    fn list_keys<'a>(&'a self, bucket: &'a str, cursor: Option<&'a str>) -> Answer<'a, Page>;
    /// Adds to a number that is kept as decimal text, as [`model::number`] says; a missing key counts as 0. Atomic; what is
    /// refused changes nothing.
    fn increment<'a>(&'a self, bucket: &'a str, key: &'a str, delta: u64) -> Answer<'a, u64>;
    /// Several values, in the order asked; [`BackendError::TooLarge`] where keys and values together have more than
    /// [`MAX_BATCH_BYTES`].
    fn get_many<'a>(&'a self, bucket: &'a str, keys: Vec<String>) -> Answer<'a, Vec<(String, Option<Vec<u8>>)>>;
    /// Sets several keys, all or none; the last of equal keys wins.
    fn set_many<'a>(&'a self, bucket: &'a str, pairs: Vec<(String, Vec<u8>)>) -> Answer<'a, ()>;
    /// Removes several keys, all or none.
    fn delete_many<'a>(&'a self, bucket: &'a str, keys: Vec<String>) -> Answer<'a, ()>;
}

/// What one component of one revision may open: a binding, immutable. Another link is another revision.
#[derive(Default)]
pub struct KeyValueLinks {
    by_label: HashMap<String, Linked>,
    cursors: Arc<Cursors>,
}

/// A bucket of a backend, shared with every instance that opens it.
#[derive(Clone)]
struct Linked {
    backend: Arc<dyn Backend>,
    bucket: Arc<str>,
    meter: Arc<LinkMeter>,
}

/// The label of `open("")`.
const DEFAULT_LABEL: &str = "default";

impl KeyValueLinks {
    /// No links.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds what `open(label)` gives: `bucket` of `backend`.
    #[must_use]
    pub fn with(
        mut self,
        label: &model::Label,
        backend: Arc<dyn Backend>,
        bucket: &str,
        meter: Arc<LinkMeter>,
    ) -> Self {
        self.by_label.insert(label.as_str().to_owned(), Linked { backend, bucket: bucket.into(), meter });
        self
    }

    /// What a component means that opens `identifier` after it chose the link labelled `chosen`: that link, unless it
    /// names another one itself.
    fn meant<'a>(&self, identifier: &'a str, chosen: Option<&'a str>) -> &'a str {
        match chosen {
            Some(chosen) if identifier.is_empty() || identifier == DEFAULT_LABEL => chosen,
            _ => identifier,
        }
    }

    fn find(&self, identifier: &str) -> Option<&Linked> {
        self.by_label.get(if identifier.is_empty() { DEFAULT_LABEL } else { identifier })
    }

    /// The labels, for the message that one is missing.
    fn labels(&self) -> String {
        let mut labels: Vec<_> = self.by_label.keys().map(String::as_str).collect();
        labels.sort_unstable();
        if labels.is_empty() { "nothing is linked".to_owned() } else { format!("linked: {}", labels.join(", ")) }
    }
}

fn check_key(key: &str) -> Result<(), BackendError> {
    match key.len() {
        0 => Err(BackendError::TooLarge("a key has at least one character".into())),
        1..=MAX_KEY => Ok(()),
        n => Err(BackendError::TooLarge(format!("a key has at most {MAX_KEY} bytes, this one has {n}"))),
    }
}

fn check_value(value: &[u8]) -> Result<(), BackendError> {
    check_length(value.len())
}

fn check_length(length: usize) -> Result<(), BackendError> {
    match length {
        0..=MAX_VALUE => Ok(()),
        n => Err(BackendError::TooLarge(format!("a value has at most {MAX_VALUE} bytes, this one has {n}"))),
    }
}

/// Refuses a batch of `count` entries and `bytes` bytes that no backend takes.
fn check_batch(count: usize, bytes: usize) -> Result<(), BackendError> {
    if count > MAX_BATCH {
        return Err(BackendError::TooLarge(format!("a batch has at most {MAX_BATCH} keys, this one has {count}")));
    }
    if bytes > MAX_BATCH_BYTES {
        return Err(BackendError::TooLarge(format!("a batch has at most {MAX_BATCH_BYTES} bytes, this one {bytes}")));
    }
    Ok(())
}

/// The answer to a batch read while it grows: a value is copied only where it still fits, because a short list of keys
/// may name the same large value again and again.
#[derive(Default)]
struct Gathered {
    values: Vec<(String, Option<Vec<u8>>)>,
    bytes: usize,
}

impl Gathered {
    fn push(&mut self, key: String, value: Option<&Vec<u8>>) -> Result<(), BackendError> {
        self.bytes = self.bytes.saturating_add(key.len()).saturating_add(value.map_or(0, Vec::len));
        check_answer(self.bytes)?;
        self.values.push((key, value.cloned()));
        Ok(())
    }
}

impl Gathered {
    /// Asks for each key once, `at_once` of them together, and stops where the answer grows too large.
    async fn each<F: Future<Output = Result<Option<Vec<u8>>, BackendError>>>(
        keys: Vec<String>,
        ask: impl Fn(String) -> F,
        at_once: usize,
    ) -> Result<Vec<(String, Option<Vec<u8>>)>, BackendError> {
        let mut times: BTreeMap<String, usize> = BTreeMap::new();
        for key in &keys {
            *times.entry(key.clone()).or_default() += 1;
        }
        let mut found: BTreeMap<String, Option<Vec<u8>>> = BTreeMap::new();
        let mut bytes = 0_usize;
        let mut answers = stream::iter(times)
            .map(|(key, times)| {
                let answer = ask(key.clone());
                async move { (key, times, answer.await) }
            })
            .buffer_unordered(at_once);
        while let Some((key, times, answer)) = answers.next().await {
            let value = answer?;
            let length = key.len().saturating_add(value.as_ref().map_or(0, Vec::len));
            bytes = bytes.saturating_add(length.saturating_mul(times));
            check_answer(bytes)?;
            found.insert(key, value);
        }
        let mut gathered = Self::default();
        for key in keys {
            let value = found.get(&key).and_then(Option::as_ref);
            gathered.push(key, value)?;
        }
        Ok(gathered.values)
    }
}

/// One page of the names that a server told; the cursor is the last name of the page before. One that tells `most` at once
/// and told so many may have more behind them. A name that `key_of` does not know is somebody else's and no key.
fn paged(
    mut names: Vec<String>,
    cursor: Option<&str>,
    (size, most): (usize, Option<usize>),
    key_of: fn(&str) -> Option<String>,
) -> Page {
    let may_be_more = most == Some(names.len());
    names.sort_unstable();
    let start = cursor.map_or(0, |cursor| names.partition_point(|name| name.as_str() <= cursor));
    let rest = names.get(start..).unwrap_or_default();
    let page = rest.get(..size).unwrap_or(rest);
    let cursor = page.last().filter(|_| may_be_more || page.len() < rest.len()).cloned();
    Page { keys: page.iter().filter_map(|name| key_of(name)).collect(), cursor }
}

/// Refuses an answer of `bytes` bytes, keys and values together.
fn check_answer(bytes: usize) -> Result<(), BackendError> {
    if bytes <= MAX_BATCH_BYTES {
        return Ok(());
    }
    Err(BackendError::TooLarge(format!(
        "the keys and values asked for have more than {MAX_BATCH_BYTES} bytes together; ask for fewer"
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limits_are_inclusive() {
        assert!(check_key("").is_err());
        assert!(check_key(&"k".repeat(MAX_KEY)).is_ok());
        assert!(check_key(&"k".repeat(MAX_KEY + 1)).is_err());
        assert!(check_value(&vec![0; MAX_VALUE]).is_ok());
        assert!(check_value(&vec![0; MAX_VALUE + 1]).is_err());
        assert!(check_batch(MAX_BATCH, MAX_BATCH_BYTES).is_ok());
        assert!(check_batch(MAX_BATCH + 1, 0).is_err());
        assert!(check_batch(1, MAX_BATCH_BYTES + 1).is_err());
    }

    #[test]
    fn names_told_all_at_once_are_paged() {
        let names = || ["c", "a", "?", "b"].map(str::to_owned).to_vec();
        let known = |name: &str| (name != "?").then(|| name.to_uppercase());
        let page = |cursor| paged(names(), cursor, (2, None), known);
        let is = |keys: &[&str], cursor: Option<&str>| Page {
            keys: keys.iter().map(|key| (*key).to_owned()).collect(),
            cursor: cursor.map(str::to_owned),
        };
        assert_eq!(page(None), is(&["A"], Some("a")));
        assert_eq!(page(Some("a")), is(&["B", "C"], None));
        assert_eq!(page(Some("aa")), is(&["B", "C"], None), "the name the cursor stands on may be gone");
        assert_eq!(page(Some("c")), is(&[], None));
        // A server that tells four at once: what is behind them is asked for, whatever of these was told before.
        assert_eq!(paged(names(), Some("a"), (3, Some(4)), known), is(&["B", "C"], Some("c")));
    }

    #[test]
    fn a_label_is_found_whole_and_the_empty_identifier_is_the_default() {
        let memory: Arc<dyn Backend> = Arc::new(Memory::new(1024));
        let links = KeyValueLinks::new()
            .with(&model::Label::default_label(), memory.clone(), "one", Arc::default())
            .with(&"cart".parse().unwrap(), memory, "two", Arc::default());
        let bucket = |identifier| links.find(identifier).map(|linked| linked.bucket.to_string());
        assert_eq!(bucket(""), Some("one".into()));
        assert_eq!(bucket("default"), Some("one".into()));
        assert_eq!(bucket("cart"), Some("two".into()));
        assert_eq!(bucket("car"), None);
        for (identifier, chosen, expected) in [
            ("default", Some("cart"), "cart"),
            ("", Some("cart"), "cart"),
            ("default", None, "default"),
            ("cart", Some("default"), "cart"),
            ("other", Some("cart"), "other"),
        ] {
            assert_eq!(links.meant(identifier, chosen), expected, "{identifier} after {chosen:?}");
        }
        assert_eq!(links.labels(), "linked: cart, default");
    }
}
