//! Key-value in a process beside the platform that speaks wRPC: `wrpc:keyvalue@0.2.0-draft`, the contract with the bucket
//! as a name in every call.
//!
//! Each call has a connection of its own, as wRPC over a unix socket does it, so a slow call holds up no other. The node
//! runs the process and makes the connections.

mod wire;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use model::ProviderName;
use tokio::net::UnixStream;
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tokio_util::codec::{Decoder, Encoder};
use wire::{Refusal, WireError, invoke};
use wrpc_transport::{Decode, Encode, Packer};

use super::{Answer, Backend, BackendError, Gathered, MAX_BATCH_BYTES, MAX_VALUE, Page};

const STORE: &str = "wrpc:keyvalue/store@0.2.0-draft";
const ATOMICS: &str = "wrpc:keyvalue/atomics@0.2.0-draft";
const BATCH: &str = "wrpc:keyvalue/batch@0.2.0-draft";

/// A call that is not answered for so long has failed.
const CALL: Duration = Duration::from_secs(5);
/// A call waits this long for a process that is being started again.
const CONNECT: Duration = Duration::from_secs(5);
/// As [`CONNECT`], before a revision is first served: longer than a process may take for its start.
const FIRST: Duration = Duration::from_secs(12);
/// Calls of one app under way at once; the rest waits.
const MAX_CALLS: usize = 128;
/// The most bytes of an answer that says done or not, or why not.
const SHORT: u64 = 64 << 10;
/// As [`SHORT`], with a value.
const VALUE: u64 = MAX_VALUE as u64 + SHORT;
/// As [`SHORT`], with a page of keys.
const KEYS: u64 = 2 << 20;
/// As [`SHORT`], with a batch and what goes around each of its keys.
const MANY: u64 = MAX_BATCH_BYTES as u64 + SHORT;
/// Of what a refusal says, this many characters are repeated.
const MAX_WORDS: usize = 300;

/// Why there is no connection to a process.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{why}")]
pub struct NotReady {
    /// The reason, as a sentence.
    pub why: String,
    /// Asking again in a moment may help.
    pub soon: bool,
}

/// Connects to the process of one provider.
pub trait Connect: Send + Sync + 'static {
    /// One connection, for one call. Answers at once.
    fn connect(&self) -> BoxFuture<'_, Result<UnixStream, NotReady>>;
}

/// One app's keys in one external process.
pub struct External {
    name: ProviderName,
    connect: Arc<dyn Connect>,
    calls: Semaphore,
}

/// Whether a call that came to nothing may be made again.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Read,
    Write,
}

/// A function: where it is, its name, what it does, and the most bytes of its answer.
struct Function(&'static str, &'static str, Kind, u64);

impl External {
    /// The keys behind `connect`. Nothing is connected before the first call.
    pub fn new(name: ProviderName, connect: Arc<dyn Connect>) -> Self {
        Self { name, connect, calls: Semaphore::new(MAX_CALLS) }
    }

    /// Asks for a key that nobody has: says early and with its reason what every call would say.
    ///
    /// # Errors
    /// What a call would answer.
    pub async fn check(&self) -> Result<(), BackendError> {
        let function = Function(STORE, "exists", Kind::Read, SHORT);
        let asked: Result<bool, BackendError> = self.within(FIRST, &function, ("sidereal-health", "health")).await;
        match asked {
            // It answered, and it may have no such bucket.
            Err(BackendError::Unsupported(_) | BackendError::Denied(_)) | Ok(_) => Ok(()),
            Err(error) => Err(error),
        }
    }

    async fn stream(&self, patience: Duration) -> Result<UnixStream, BackendError> {
        let deadline = Instant::now() + patience;
        let mut pause = Duration::from_millis(2);
        loop {
            match self.connect.connect().await {
                Ok(stream) => return Ok(stream),
                Err(NotReady { soon: true, .. }) if Instant::now() + pause < deadline => {}
                Err(NotReady { why, .. }) => return Err(BackendError::Unavailable(why)),
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(Duration::from_millis(50));
        }
    }

    async fn call<P, R>(&self, function: Function, params: P) -> Result<R, BackendError>
    where
        P: Encode<Packer> + Clone,
        io::Error: From<<P::Encoder as Encoder<P>>::Error>,
        R: Decode,
        io::Error: From<<R::Decoder as Decoder>::Error>,
    {
        self.within(CONNECT, &function, params).await
    }

    async fn within<P, R>(&self, patience: Duration, function: &Function, params: P) -> Result<R, BackendError>
    where
        P: Encode<Packer> + Clone,
        io::Error: From<<P::Encoder as Encoder<P>>::Error>,
        R: Decode,
        io::Error: From<<R::Decoder as Decoder>::Error>,
    {
        let name = &self.name;
        let closed = |_| BackendError::Unavailable("the host is ending".to_owned());
        let _permit = self.calls.acquire().await.map_err(closed)?;
        let Function(instance, function, kind, limit) = function;
        let mut again = *kind == Kind::Read;
        let answered: Result<R, Refusal> = loop {
            let stream = self.stream(patience).await?;
            let call = invoke(stream, instance, function, params.clone(), *limit);
            let late = |_| BackendError::TimedOut { ms: CALL.as_millis() as u64 };
            match tokio::time::timeout(CALL, call).await.map_err(late)? {
                Ok(answered) => break answered,
                // The process ended under it; a read changes nothing, so the next process may as well answer it.
                Err(WireError::HungUp(_)) if again => again = false,
                Err(WireError::TooLarge(limit)) => {
                    let why =
                        format!("the answer of external provider `{name}` has more than {limit} bytes; ask for less");
                    return Err(BackendError::TooLarge(why));
                }
                Err(cause) => return Err(BackendError::Unavailable(format!("external provider `{name}`: {cause}"))),
            }
        };
        answered.map_err(|refusal| match refusal {
            Refusal::AccessDenied => BackendError::Denied(format!("external provider `{name}` says so")),
            Refusal::NoSuchStore => BackendError::Unsupported(format!("external provider `{name}` has no such bucket")),
            Refusal::Other(text) => {
                let text: String = text.chars().filter(|c| !c.is_control()).take(MAX_WORDS).collect();
                BackendError::Unsupported(text)
            }
        })
    }

    fn garbage(&self, what: &str) -> BackendError {
        BackendError::Unavailable(format!("external provider `{}` answered {what}", self.name))
    }
}

impl Backend for External {
    fn get<'a>(&'a self, bucket: &'a str, key: &'a str) -> Answer<'a, Option<Vec<u8>>> {
        async move {
            let found: Option<Bytes> = self.call(Function(STORE, "get", Kind::Read, VALUE), (bucket, key)).await?;
            Ok(found.map(Vec::from))
        }
        .boxed()
    }

    fn set<'a>(&'a self, bucket: &'a str, key: &'a str, value: Vec<u8>) -> Answer<'a, ()> {
        self.call(Function(STORE, "set", Kind::Write, SHORT), (bucket, key, Bytes::from(value))).boxed()
    }

    fn delete<'a>(&'a self, bucket: &'a str, key: &'a str) -> Answer<'a, ()> {
        self.call(Function(STORE, "delete", Kind::Write, SHORT), (bucket, key)).boxed()
    }

    fn exists<'a>(&'a self, bucket: &'a str, key: &'a str) -> Answer<'a, bool> {
        self.call(Function(STORE, "exists", Kind::Read, SHORT), (bucket, key)).boxed()
    }

    /// In the provider's order; its own number is the cursor.
    fn list_keys<'a>(&'a self, bucket: &'a str, cursor: Option<&'a str>) -> Answer<'a, Page> {
        async move {
            let cursor: Option<u64> = cursor
                .map(str::parse)
                .transpose()
                .map_err(|_| BackendError::Unsupported("the cursor is not one of this store".to_owned()))?;
            let (keys, cursor): (Vec<String>, Option<u64>) =
                self.call(Function(STORE, "list-keys", Kind::Read, KEYS), (bucket, cursor)).await?;
            Ok(Page { keys, cursor: cursor.map(|cursor| cursor.to_string()) })
        }
        .boxed()
    }

    fn increment<'a>(&'a self, bucket: &'a str, key: &'a str, delta: i64) -> Answer<'a, i64> {
        async move {
            let refused = |_| BackendError::Unsupported("an external provider counts upwards only".to_owned());
            let delta = u64::try_from(delta).map_err(refused)?;
            let sum: u64 = self.call(Function(ATOMICS, "increment", Kind::Write, SHORT), (bucket, key, delta)).await?;
            i64::try_from(sum).map_err(|_| self.garbage("with a number past the range of one"))
        }
        .boxed()
    }

    fn get_many<'a>(&'a self, bucket: &'a str, keys: Vec<String>) -> Answer<'a, Vec<(String, Option<Vec<u8>>)>> {
        async move {
            // A short list of keys may name the same large value again and again: each is asked for once.
            let once: Vec<String> = keys.iter().cloned().collect::<BTreeSet<_>>().into_iter().collect();
            let found: Vec<Option<(String, Bytes)>> =
                self.call(Function(BATCH, "get-many", Kind::Read, MANY), (bucket, once.clone())).await?;
            if found.len() != once.len() {
                return Err(self.garbage("for other keys than those asked for"));
            }
            let found = found.into_iter().map(|one| one.map(|(_, value)| Vec::from(value)));
            let found: BTreeMap<String, Option<Vec<u8>>> = once.into_iter().zip(found).collect();
            let mut gathered = Gathered::default();
            for key in keys {
                let value = found.get(&key).and_then(Option::as_ref);
                gathered.push(key, value)?;
            }
            Ok(gathered.values)
        }
        .boxed()
    }

    fn set_many<'a>(&'a self, bucket: &'a str, pairs: Vec<(String, Vec<u8>)>) -> Answer<'a, ()> {
        let pairs: Vec<(String, Bytes)> = pairs.into_iter().map(|(key, value)| (key, value.into())).collect();
        self.call(Function(BATCH, "set-many", Kind::Write, SHORT), (bucket, pairs)).boxed()
    }

    fn delete_many<'a>(&'a self, bucket: &'a str, keys: Vec<String>) -> Answer<'a, ()> {
        self.call(Function(BATCH, "delete-many", Kind::Write, SHORT), (bucket, keys)).boxed()
    }
}
