//! The one way out: whoever runs the providers connects for them, and decides on the address that is dialled.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};

use futures::future::BoxFuture;
use model::{AppName, ComponentName, ProviderName};
use rustix::net::Shutdown;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
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
    pub stream: Line,
    /// Where to, after the name was resolved.
    pub address: Option<SocketAddr>,
}

/// A connected TCP socket. Whoever dialled keeps a hand on it, so closing it would tell nobody: dropping it shuts it down,
/// which does.
#[derive(Debug)]
pub struct Line(TcpStream);

impl AsRef<TcpStream> for Line {
    fn as_ref(&self) -> &TcpStream {
        &self.0
    }
}

impl From<TcpStream> for Line {
    fn from(stream: TcpStream) -> Self {
        Self(stream)
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        if let Err(cause) = rustix::net::shutdown(&self.0, Shutdown::Both) {
            tracing::trace!(%cause, "a connection has ended already");
        }
    }
}

impl AsyncRead for Line {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().0).poll_read(cx, buf)
    }
}

impl AsyncWrite for Line {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().0).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().0).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.0.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().0).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().0).poll_shutdown(cx)
    }
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
    /// There are too many already.
    #[error("connecting is limited: {0}")]
    Limited(String),
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
