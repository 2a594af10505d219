//! The connector of the pooled clients, a component's and a provider's: dials through the `Dialer`, then TLS with the
//! name that was asked for.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use http::Uri;
use hyper_util::client::legacy::connect::{Connected, Connection};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::allow::{Origin, Scheme};
use crate::dial::{Caller, DialError, Dialer, Line, Target};

/// Why there is no connection to send a request on.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum ConnectError {
    /// The URI has no origin we know.
    #[error("the address has no host")]
    Uri,
    /// TCP.
    #[error(transparent)]
    Dial(#[from] DialError),
    /// The other side does not prove to be who it should.
    #[error("TLS failed: {0}")]
    Tls(Arc<io::Error>),
}

/// Connects on behalf of one part of an app.
#[derive(Clone)]
pub(crate) struct Connector {
    pub(crate) dialer: Arc<dyn Dialer>,
    pub(crate) app: model::AppName,
    pub(crate) caller: Caller,
    pub(crate) tls: Arc<ClientConfig>,
}

/// TLS that trusts `roots` and speaks HTTP/1.1.
///
/// # Errors
/// Where the TLS library was built without a protocol version that is safe.
pub(crate) fn tls(roots: RootCertStore) -> Result<Arc<ClientConfig>, rustls::Error> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
    Ok(Arc::new(builder.with_root_certificates(roots).with_no_client_auth()))
}

tokio::task_local! {
    /// The time the request that is being polled gives a new connection.
    pub(crate) static CONNECT: Duration;
}

impl tower::Service<Uri> for Connector {
    type Response = TokioIo<Stream>;
    type Error = ConnectError;
    type Future = BoxFuture<'static, Result<Self::Response, ConnectError>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), ConnectError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let this = self.clone();
        // The client calls from within the request's future; what outlives the request keeps the time it began with.
        let limit = CONNECT.try_with(|limit| *limit).unwrap_or(super::CONNECT_TIMEOUT);
        let connect = async move {
            let origin = Origin::of(&uri).ok_or(ConnectError::Uri)?;
            let target = Target { app: this.app, caller: this.caller, host: origin.host.clone(), port: origin.port };
            let tcp = this.dialer.dial(target).await?.stream;
            let stream = match origin.scheme {
                Scheme::Http => Stream::Plain(tcp),
                Scheme::Https => {
                    let name = ServerName::try_from(origin.host).map_err(|_| ConnectError::Uri)?;
                    let tls = TlsConnector::from(this.tls).connect(name, tcp).await;
                    Stream::Tls(Box::new(tls.map_err(|cause| ConnectError::Tls(Arc::new(cause)))?))
                }
            };
            Ok(TokioIo::new(stream))
        };
        let late = ConnectError::Dial(DialError::TimedOut { ms: limit.as_millis() as u64 });
        tokio::time::timeout(limit, connect).map(|done| done.unwrap_or(Err(late))).boxed()
    }
}

/// A connection, plain or not.
pub(crate) enum Stream {
    Plain(Line),
    Tls(Box<TlsStream<Line>>),
}

impl Connection for Stream {
    fn connected(&self) -> Connected {
        Connected::new()
    }
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Tls(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Tls(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Self::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
