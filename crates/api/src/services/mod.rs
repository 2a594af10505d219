//! What a host asks of its node. It can connect nowhere, so the node hands it a first connection when it starts it, and
//! over that one as many more as it asks for. The node knows who asks by which connection it is: nothing a host says about
//! its tenant is believed, and so nothing of that kind is in these messages.
//!
//! The wire: a 4-byte little-endian length, then [postcard](https://postcard.jamesmunns.com/wire-format). The first
//! frame of a connection is a [`Hello`] that fixes what the connection is for:
//!
//! * [`Hello::KeyValue`]: then [`KvCall`]s one way and [`KvReply`]s the other, multiplexed by `id`, any order.
//! * [`Hello::Calls`]: the same with [`ServiceCall`]s and [`ServiceReply`]s, for every other service.
//! * [`Hello::Files`]: then one [`FileRequest`] at a time, each answered by a [`FileReply`]; where the reply is
//!   [`FileReply::Ready`], the descriptor travels with the reply's bytes by `SCM_RIGHTS`. Who goes on asking without reading
//!   the answers is hung up on.
//! * [`Hello::More`]: then one [`MoreRequest`] at a time, answered like a [`FileRequest`] with one end of a new connection.
//! * [`Hello::Alive`]: nothing more; whoever sees it close knows the other process is gone.
//! * [`Hello::Standing`]: then one byte whenever the host stands elsewhere in the queue for the cores, a [`Standing`]; not answered.

pub mod blob;
pub mod client;
pub mod codec;
pub mod datagram;
mod exchange;
pub mod line;
pub mod messaging;
pub mod secret;
pub mod server;
pub mod sql;
#[cfg(test)]
mod tests;

pub use codec::WireError;

use model::egress::Transport;
use model::listed::at_most;
use model::trace::TraceContext;
use model::{AppName, ComponentName, Digest, ProviderName, World};
use serde::{Deserialize, Serialize};

/// The largest frame either side accepts, bytes.
pub const MAX_FRAME: usize = 20 << 20;
/// The most keys one call names.
pub const MAX_KEYS: usize = 1024;
/// The most queues a write is told to: each is a link of the app.
pub const MAX_TELL: usize = model::rules::MAX_LINKS;
/// The most keys that a write tells of, all its queues together. The node refuses more.
pub const MAX_TOLD: usize = 16 * MAX_KEYS;

/// What a connection is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Hello {
    /// Embedded key-value calls.
    KeyValue,
    /// Calls of every other service.
    Calls,
    /// Compiled code and connected sockets.
    Files,
    /// Held open for as long as the process lives.
    Alive,
    /// Further connections.
    More,
    /// Where the thread that runs guests stands.
    Standing,
}

/// Where a host stands in the queue for the cores: where its control group is its own, the node puts that there as well.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// With everybody else.
    Usual,
    /// Behind everybody: its guest computes.
    Last,
    /// It computes and got nothing for a while: with everybody else until it has run.
    Owed,
}

impl Standing {
    /// On the wire.
    pub fn byte(self) -> u8 {
        match self {
            Self::Usual => b'u',
            Self::Last => b'l',
            Self::Owed => b'o',
        }
    }

    /// From the wire.
    pub fn of(byte: u8) -> Option<Self> {
        [Self::Usual, Self::Last, Self::Owed].into_iter().find(|one| one.byte() == byte)
    }
}

/// What is asked on a [`Hello::More`] connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum MoreRequest {
    /// A connection to the node that nothing was said on yet.
    Connection,
}

/// Where a key lives. The tenant is the socket's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KvScope {
    /// The app.
    pub app: AppName,
    /// The provider of the app: two embedded providers share nothing.
    pub provider: ProviderName,
    /// The bucket.
    pub bucket: String,
}

/// One call to the embedded key-value store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KvCall {
    /// Chosen by the host; comes back in the reply.
    pub id: u64,
    /// Where.
    pub scope: KvScope,
    /// What.
    pub op: KvOp,
}

/// The operations of `wasi:keyvalue` 0.2.0-draft that a backend must offer. None holds another one: what a host sends is
/// read by a thread that serves everybody, and a frame could say so often enough to have it end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum KvOp {
    /// The value of a key.
    Get { key: String },
    /// Whether a key is there.
    Exists { key: String },
    /// Keys in order after `cursor`, at most `limit`.
    ListKeys { cursor: Option<String>, limit: u32 },
    /// Several values.
    GetMany {
        /// At most [`MAX_KEYS`].
        #[serde(deserialize_with = "at_most::<_, _, MAX_KEYS>")]
        keys: Vec<String>,
    },
    /// A write, and which queues of the app are told of it: once it was asked for, neither the end of the host nor that of
    /// the node leaves it done and untold.
    Write {
        /// What is changed.
        write: KvWrite,
        /// At most [`MAX_TELL`].
        #[serde(deserialize_with = "at_most::<_, _, MAX_TELL>")]
        tell: Vec<KvTell>,
    },
}

/// The operations that change something.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum KvWrite {
    /// Sets a key.
    Set { key: String, value: Vec<u8> },
    /// Removes a key; no error when it is not there.
    Delete { key: String },
    /// Adds to an integer stored as decimal text; a missing key counts as 0.
    Increment { key: String, delta: u64 },
    /// Sets a key if its value is still `expected` (absent: not there).
    CompareAndSet { key: String, expected: Option<Vec<u8>>, value: Vec<u8> },
    /// Sets several keys, all or none.
    SetMany {
        /// At most [`MAX_KEYS`].
        #[serde(deserialize_with = "at_most::<_, _, MAX_KEYS>")]
        pairs: Vec<(String, Vec<u8>)>,
    },
    /// Removes several keys, all or none.
    DeleteMany {
        /// At most [`MAX_KEYS`].
        #[serde(deserialize_with = "at_most::<_, _, MAX_KEYS>")]
        keys: Vec<String>,
    },
}

impl From<KvWrite> for KvOp {
    /// Nobody is told.
    fn from(write: KvWrite) -> Self {
        Self::Write { write, tell: Vec::new() }
    }
}

impl KvOp {
    /// Bytes of memory its lists take beside what is in them: on the wire an entry may be one byte.
    pub fn spread(&self) -> usize {
        match self {
            Self::GetMany { keys } => keys.len() * size_of::<String>(),
            Self::Write { write, tell } => {
                let keys = tell.iter().map(|told| told.keys.len() * size_of::<u16>() + size_of::<KvTell>());
                write.spread() + keys.sum::<usize>()
            }
            Self::Get { .. } | Self::Exists { .. } | Self::ListKeys { .. } => 0,
        }
    }
}

impl KvWrite {
    /// The keys that it writes.
    pub fn keys(&self) -> Vec<&str> {
        match self {
            Self::Set { key, .. }
            | Self::Delete { key }
            | Self::Increment { key, .. }
            | Self::CompareAndSet { key, .. } => vec![key],
            Self::SetMany { pairs } => pairs.iter().map(|(key, _)| key.as_str()).collect(),
            Self::DeleteMany { keys } => keys.iter().map(String::as_str).collect(),
        }
    }

    fn spread(&self) -> usize {
        match self {
            Self::DeleteMany { keys } => keys.len() * size_of::<String>(),
            Self::SetMany { pairs } => pairs.len() * size_of::<(String, Vec<u8>)>(),
            Self::Set { .. } | Self::Delete { .. } | Self::Increment { .. } | Self::CompareAndSet { .. } => 0,
        }
    }
}

/// Which of the keys that are written a queue of the app is told of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KvTell {
    /// The queue.
    pub group: String,
    /// The places of the keys among those that are written; at most [`MAX_KEYS`].
    #[serde(deserialize_with = "at_most::<_, _, MAX_KEYS>")]
    pub keys: Vec<u16>,
    /// Where they are written from, in a trace.
    pub trace: Option<TraceContext>,
}

/// The answer to the call of the same `id`. A write is answered after it is on disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reply<R> {
    /// The call's.
    pub id: u64,
    /// What became of it.
    pub result: R,
}

/// The answer to a [`KvCall`].
pub type KvReply = Reply<Result<KvAnswer, KvFault>>;

/// One call to any other service of the node.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ServiceCall {
    /// Chosen by the host; comes back in the reply.
    pub id: u64,
    /// On whose behalf. The tenant is the socket's.
    pub app: AppName,
    /// What.
    pub request: ServiceRequest,
}

/// What can be asked on a [`Hello::Calls`] connection: one variant per service, each with an enum of its own in a
/// file of its own.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum ServiceRequest {
    /// Secrets.
    Secret(secret::SecretRequest),
    /// Objects.
    Blob(blob::BlobRequest),
    /// The brokers of messages.
    Messaging(messaging::MessagingRequest),
    /// The apps' databases.
    Sql(sql::SqlRequest),
}

impl ServiceRequest {
    /// As [`KvOp::spread`].
    pub fn spread(&self) -> usize {
        use model::sql::{Statement, Value};
        match self {
            Self::Blob(blob::BlobRequest { op: blob::BlobOp::Remove { objects, .. }, .. }) => {
                objects.len() * size_of::<String>()
            }
            Self::Messaging(messaging::MessagingRequest::Tell { messages, .. }) => {
                messages.len() * size_of::<messaging::WireMessage>()
            }
            Self::Sql(request) => {
                let of = |one: &Statement| size_of::<Statement>() + one.params.len() * size_of::<Value>();
                request.call.statements().iter().map(of).sum()
            }
            Self::Secret(_) | Self::Blob(_) | Self::Messaging(_) => 0,
        }
    }
}

/// What is answered, variant by variant as [`ServiceRequest`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum ServiceAnswer {
    /// Secrets.
    Secret(secret::SecretAnswer),
    /// Objects.
    Blob(Result<blob::BlobAnswer, blob::BlobFault>),
    /// The brokers of messages.
    Messaging(messaging::MessagingAnswer),
    /// The apps' databases.
    Sql(Result<model::sql::Answer, model::sql::SqlError>),
}

/// Why a service refused or failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum ServiceFault {
    /// The host asked for something that is not its app's, or that makes no sense.
    #[error("{0}")]
    Refused(String),
    /// The service cannot do it now: disk full, too much under way.
    #[error("{0}")]
    Unavailable(String),
}

/// The answer to a [`ServiceCall`].
pub type ServiceReply = Reply<Result<ServiceAnswer, ServiceFault>>;

/// What a call returns.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum KvAnswer {
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
    /// A write has this answer, and these queues were not told of so many keys.
    Untold { answer: KvWritten, lost: Vec<(String, u32)> },
}

/// What a write returns.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum KvWritten {
    /// Set, Delete, SetMany, DeleteMany.
    Done,
    /// CompareAndSet: whether it was set.
    Bool(bool),
    /// Increment: the new value.
    Number(u64),
}

impl From<KvWritten> for KvAnswer {
    fn from(written: KvWritten) -> Self {
        match written {
            KvWritten::Done => Self::Done,
            KvWritten::Bool(set) => Self::Bool(set),
            KvWritten::Number(value) => Self::Number(value),
        }
    }
}

/// Why a call failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum KvFault {
    /// Increment of something that is not a number, or overflow.
    #[error("the value of `{0}` is not an integer that can be incremented")]
    NotANumber(String),
    /// A key, value or batch above its limit.
    #[error("{0}")]
    TooLarge(String),
    /// The store cannot write now: disk full, read-only.
    #[error("the embedded store cannot write: {0}")]
    Unavailable(String),
    /// The tenant keeps as much as it may; nothing was changed.
    #[error("{0}")]
    OverQuota(String),
}

/// A request answered with a file descriptor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum FileRequest {
    /// Compiled code of an artifact the tenant runs; the node has checked its MAC when it answers.
    Compiled { digest: Digest, world: World },
    /// A connected socket. TCP: the socket itself, set not to delay what is small. UDP: one end of a pair of packet
    /// sockets whose other end the node relays, see [`crate::services::datagram`].
    Dial(Dial),
    /// A connected unix socket to the process of an external provider.
    External(External),
}

/// Which process is meant. The tenant is the socket's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct External {
    /// On whose behalf.
    pub app: AppName,
    /// The provider.
    pub provider: ProviderName,
    /// [`model::ProviderSpec::fingerprint`]: two revisions may mean differently configured processes.
    pub spec: Digest,
}

/// Who wants to connect where.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dial {
    /// On whose behalf.
    pub app: AppName,
    /// Guest or provider.
    pub caller: Caller,
    /// TCP or UDP.
    pub transport: Transport,
    /// A host name or an address literal, as configured; the node resolves it once.
    pub host: String,
    /// The port.
    pub port: u16,
}

/// Which part of an app connects.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Caller {
    /// A component's outgoing HTTP or sockets. The host checked its `allow_hosts` with the scheme, the node checks transport,
    /// host and port again, and decides on the address.
    Component(ComponentName),
    /// A provider's client. The node connects it, over TCP, to the host and the port in the settings of the provider, which a
    /// link of the app uses; to a private address only if the operator declared the provider so.
    Provider(ProviderName),
}

/// The answer to a [`FileRequest`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum FileReply {
    /// The descriptor came with this frame. For a dial: the address that was connected.
    Ready { address: Option<std::net::SocketAddr> },
    /// Refused or failed.
    Refused(FileFault),
}

/// Why there is no descriptor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum FileFault {
    /// The name does not resolve.
    #[error("`{host}` does not resolve: {cause}")]
    Dns { host: String, cause: String },
    /// Policy forbids the address.
    #[error("{address} ({what}) is not granted to this app")]
    Denied { address: String, what: String },
    /// The tenant opens connections too fast, or has too many.
    #[error("{address}: {what}")]
    Limited { address: String, what: String },
    /// Nothing answers there.
    #[error("cannot connect to {address}: {cause}")]
    Connect { address: String, cause: String },
    /// It took longer than the connect timeout.
    #[error("connecting to {address} took longer than {ms} ms")]
    TimedOut { address: String, ms: u64 },
    /// No such artifact for this tenant, or its compiled code failed its check.
    #[error("{0}")]
    NoCode(String),
    /// The process of an external provider cannot be spoken to now, or code is still being made. `soon`: it is being
    /// started, has more callers than it takes at once, or is code; asking again in a moment may help.
    #[error("{why}")]
    NotReady { why: String, soon: bool },
}
