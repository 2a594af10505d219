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
//!   [`FileReply::Ready`], the descriptor travels with the reply's bytes by `SCM_RIGHTS`.
//! * [`Hello::More`]: then one [`MoreRequest`] at a time, answered like a [`FileRequest`] with one end of a new connection.
//! * [`Hello::Alive`]: nothing more; whoever sees it close knows the other process is gone.

pub mod blob;
pub mod client;
pub mod codec;
pub mod datagram;
mod descriptor;
pub mod line;
pub mod messaging;
pub mod secret;
pub mod server;
pub mod sql;
#[cfg(test)]
mod tests;

pub use codec::WireError;

use model::egress::Transport;
use model::{AppName, ComponentName, Digest, ProviderName, World};
use serde::{Deserialize, Serialize};

/// The largest frame either side accepts, bytes.
pub const MAX_FRAME: usize = 20 << 20;

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

/// The operations of `wasi:keyvalue` 0.2.0-draft that a backend must offer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum KvOp {
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
    Increment { key: String, delta: i64 },
    /// Sets a key if its value is still `expected` (absent: not there).
    CompareAndSet { key: String, expected: Option<Vec<u8>>, value: Vec<u8> },
    /// Several values.
    GetMany { keys: Vec<String> },
    /// Sets several keys, all or none.
    SetMany { pairs: Vec<(String, Vec<u8>)> },
    /// Removes several keys, all or none.
    DeleteMany { keys: Vec<String> },
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
    Number(i64),
    /// ListKeys: the keys and where to go on.
    Keys { keys: Vec<String>, cursor: Option<String> },
    /// GetMany, in the order asked.
    Values(Vec<(String, Option<Vec<u8>>)>),
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
    /// A connected socket. TCP: the socket itself. UDP: one end of a pair of packet sockets whose other end the node
    /// relays, see [`crate::services::datagram`].
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
    /// The process of an external provider cannot be spoken to now. `soon`: it is being started, or has more callers
    /// than it takes at once; asking again in a moment may help.
    #[error("{why}")]
    NotReady { why: String, soon: bool },
}
