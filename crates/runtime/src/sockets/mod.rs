//! `wasi:sockets` of guests. A host process has no network: whoever runs the component connects for it, so a socket here
//! is a state and, once connected, what the broker handed over. Nothing is bound, nothing is listened on, and names are
//! not resolved: a look-up gives out an address that only stands for the name until it is connected to.
//!
//! What asks the broker is the same for every version of the contract ([`grant`], [`tcp`], [`udp`]); [`p2`] and [`p3`] say
//! it in the words of theirs.

mod addresses;
mod datagrams;
mod grant;
mod line;
mod names;
pub(crate) mod p2;
pub(crate) mod p3;
mod tcp;
mod udp;

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;

use model::egress::Transport;
use tokio::net::TcpStream;

pub(crate) use names::Names;

/// A connected TCP socket. Dropping it ends the connection.
pub type Connection = Arc<dyn AsRef<TcpStream> + Send + Sync>;

/// What a [`Sockets`] returns.
pub type Opening<T> = Pin<Box<dyn Future<Output = Result<T, SocketFault>> + Send>>;

/// What came from a peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Received {
    /// A datagram.
    Data(Vec<u8>),
    /// The peer says that nobody listens there.
    Refused,
}

/// Datagrams to and from one address. Dropping it ends them.
pub trait Datagrams: Send + Sync {
    /// Sends one.
    ///
    /// # Errors
    /// [`io::ErrorKind::WouldBlock`] where there is no room now; any other means that no more will go.
    fn try_send(&self, datagram: &[u8]) -> io::Result<()>;

    /// The next one; `None` where no more will come.
    ///
    /// # Errors
    /// [`io::ErrorKind::WouldBlock`] where none is there now.
    fn try_recv(&self) -> io::Result<Option<Received>>;

    /// Waits until [`Self::try_recv`] has something to say.
    fn readable(&self) -> Pin<Box<dyn Future<Output = ()> + Send + '_>>;

    /// Waits until [`Self::try_send`] has room.
    fn writable(&self) -> Pin<Box<dyn Future<Output = ()> + Send + '_>>;
}

/// Why there is no connection.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SocketFault {
    /// Not granted, in words.
    #[error("{0}")]
    Denied(String),
    /// The name has no address.
    #[error("the name does not resolve")]
    Dns,
    /// Nobody listens there.
    #[error("the connection was refused")]
    Refused,
    /// No connection in time.
    #[error("the connection timed out")]
    TimedOut,
    /// Too many connections.
    #[error("too many connections")]
    Limited,
    /// Anything else.
    #[error("{0}")]
    Other(String),
}

/// Opens the sockets of one component.
pub trait Sockets: Send + Sync {
    /// Whether the component may have such a socket to `host`, a name or an address, and `port`.
    fn grants(&self, transport: Transport, host: &str, port: u16) -> bool;

    /// Whether the component may have any socket to `host`.
    fn names(&self, host: &str) -> bool;

    /// Connects. The name is resolved and its addresses are checked now.
    fn connect(&self, host: String, port: u16) -> Opening<Connection>;

    /// Datagrams to and from `host` and `port`.
    fn datagrams(&self, host: String, port: u16) -> Opening<Arc<dyn Datagrams>>;
}
