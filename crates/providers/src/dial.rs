//! The one way out: whoever runs the providers connects for them, and decides on the address that is dialled.

use std::net::SocketAddr;

use futures::future::BoxFuture;
use model::{AppName, ComponentName, ProviderName};
use tokio::net::TcpStream;

/// Who wants to connect where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// On whose behalf.
    pub app: AppName,
    /// Guest or provider.
    pub caller: Caller,
    /// A host name or an address literal without brackets.
    pub host: String,
    /// The port.
    pub port: u16,
}

/// Which part of an app connects.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Caller {
    /// A component's outgoing HTTP.
    Component(ComponentName),
    /// A provider's client.
    Provider(ProviderName),
}

/// A connection and the address that was chosen for it.
#[derive(Debug)]
pub struct Dialled {
    /// Connected.
    pub stream: TcpStream,
    /// Where to, after the name was resolved.
    pub address: Option<SocketAddr>,
}

/// Why there is no connection.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DialError {
    /// The name does not resolve.
    #[error("`{host}` does not resolve: {cause}")]
    Dns {
        /// The name.
        host: String,
        /// Why.
        cause: String,
    },
    /// Policy forbids it.
    #[error("connecting is not granted: {0}")]
    Denied(String),
    /// Nothing answers there.
    #[error("cannot connect: {0}")]
    Connect(String),
    /// It took too long.
    #[error("connecting took longer than {ms} ms")]
    TimedOut {
        /// The limit, milliseconds.
        ms: u64,
    },
    /// Whoever dials for us is not there.
    #[error("the node does not answer: {0}")]
    Unavailable(String),
}

/// Connects. The host's is served by its node; a test's may connect itself.
pub trait Dialer: Send + Sync + 'static {
    /// One TCP connection, with `TCP_NODELAY`.
    fn dial(&self, target: Target) -> BoxFuture<'_, Result<Dialled, DialError>>;
}
