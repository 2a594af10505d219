//! Outgoing HTTP of one component: a pooled HTTP/1.1 client that connects through the `Dialer`, sends only where the
//! manifest allows, and gives up in time. A redirect is the guest's to follow, so each hop is checked like the first.

mod allow;
mod body;
pub(crate) mod connect;

use std::error::Error as _;
use std::sync::Arc;
use std::time::Duration;

pub use allow::{AllowHosts, Origin, PatternError, Scheme};
use connect::{CONNECT, ConnectError, Connector};
use http::header::{self, HeaderMap, HeaderName};
use http::{Method, Request, Response, Version};
use http_body_util::BodyExt;
use hyper_util::client::legacy::{self, connect::capture_connection};
use hyper_util::rt::{TokioExecutor, TokioTimer};
use model::{AppName, ComponentName};
use runtime::{HttpBody, Outbound, OutboundError, OutboundOptions, OutboundResponse};
use rustls::RootCertStore;
use tokio::sync::Semaphore;

use crate::dial::{Caller, DialError, Dialer};
use body::{Progress, Watched};

/// To connect, TLS included.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// From the last piece of the request that was sent to the head of the response, once there is a connection.
pub const FIRST_BYTE_TIMEOUT: Duration = Duration::from_secs(30);
/// Between two pieces of a body.
pub const IDLE_TIMEOUT: Duration = Duration::from_secs(30);
/// Requests of one component under way at once; one more fails.
pub const MAX_OPEN: usize = 256;
/// Idle connections kept per origin.
const MAX_IDLE: usize = 16;
/// How long an idle connection is kept.
const POOL_IDLE: Duration = Duration::from_secs(30);

/// Outgoing HTTP cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// A text of `allow_hosts`.
    #[error(transparent)]
    Pattern(#[from] PatternError),
    /// The TLS library refuses its settings.
    #[error("TLS cannot be set up: {0}")]
    Tls(#[from] rustls::Error),
}

/// The client of one component of one revision. Its connections are nobody else's.
pub struct HttpOut {
    shared: Arc<Shared>,
}

struct Shared {
    allow: AllowHosts,
    client: legacy::Client<Connector, Watched>,
    open: Arc<Semaphore>,
}

pub(crate) use connect::Stream;

/// The public certificate authorities.
pub fn public_roots() -> RootCertStore {
    RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() }
}

/// What many components can share: TLS settings are costly and hold no secret.
#[derive(Clone)]
pub struct Tls(Arc<rustls::ClientConfig>);

impl Tls {
    /// TLS that trusts `roots`, for most purposes [`public_roots`].
    ///
    /// # Errors
    /// [`SetupError::Tls`].
    pub fn new(roots: RootCertStore) -> Result<Self, SetupError> {
        Ok(Self(connect::tls(roots)?))
    }

    /// For a connector.
    pub(crate) fn config(&self) -> Arc<rustls::ClientConfig> {
        self.0.clone()
    }
}

impl HttpOut {
    /// A client that sends where `allow_hosts` says and nowhere else.
    ///
    /// # Errors
    /// [`SetupError::Pattern`].
    pub fn new(
        app: AppName,
        component: ComponentName,
        allow_hosts: &[String],
        tls: Tls,
        dialer: Arc<dyn Dialer>,
    ) -> Result<Self, SetupError> {
        let allow = AllowHosts::parse(allow_hosts)?;
        let client = legacy::Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .timer(TokioTimer::new())
            .pool_idle_timeout(POOL_IDLE)
            .pool_max_idle_per_host(MAX_IDLE)
            .http1_max_headers(100)
            .http1_max_buf_size(128 << 10)
            .build(Connector { dialer, app, caller: Caller::Component(component), tls: tls.0 });
        Ok(Self { shared: Arc::new(Shared { allow, client, open: Arc::new(Semaphore::new(MAX_OPEN)) }) })
    }
}

impl Outbound for HttpOut {
    fn send(&self, request: Request<HttpBody>, options: OutboundOptions) -> OutboundResponse {
        let shared = self.shared.clone();
        Box::pin(async move { shared.send(request, options).await })
    }
}

impl Shared {
    async fn send(
        &self,
        mut request: Request<HttpBody>,
        options: OutboundOptions,
    ) -> Result<Response<HttpBody>, OutboundError> {
        let origin = Origin::of(request.uri()).ok_or(OutboundError::InvalidRequest)?;
        if request.method() == Method::CONNECT {
            return Err(OutboundError::InvalidRequest);
        }
        if !self.allow.allows(&origin) {
            tracing::debug!(%origin, "outgoing request not allowed");
            return Err(OutboundError::Denied);
        }
        let permit = self.open.clone().try_acquire_owned().map_err(|_| OutboundError::LimitReached)?;
        let limit = |asked: Option<Duration>, ours: Duration| asked.map_or(ours, |asked| asked.min(ours));
        let connect = limit(options.connect, CONNECT_TIMEOUT);
        let first_byte = limit(options.first_byte, FIRST_BYTE_TIMEOUT);
        let idle = limit(options.between_bytes, IDLE_TIMEOUT);

        *request.version_mut() = Version::HTTP_11;
        strip_hop_by_hop(request.headers_mut());
        // The client sets it from the address, so that it is the one that was checked.
        request.headers_mut().remove(header::HOST);
        let progress = Progress::new();
        let mut request = request.map(|body| Watched::request(body, progress.clone()));
        let mut connection = capture_connection(&mut request);

        let response = CONNECT.scope(connect, self.client.request(request));
        // To connect has a time of its own, and where a connection is used again it takes none.
        let late = async {
            drop(connection.wait_for_connection_metadata().await);
            progress.moved();
            progress.stalled(first_byte).await;
        };
        let response = tokio::select! {
            response = response => response.map_err(|cause| translate(&cause))?,
            () = late => return Err(OutboundError::ResponseTimeout),
        };
        let (mut head, body) = response.into_parts();
        strip_hop_by_hop(&mut head.headers);
        let body = Watched::response(HttpBody::new(body.map_err(Into::into)), idle, permit);
        Ok(Response::from_parts(head, HttpBody::new(body)))
    }
}

/// What speaks of one connection only (RFC 9110, 7.6.1) goes no further.
fn strip_hop_by_hop(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .collect();
    for name in named {
        headers.remove(name);
    }
    for name in [
        header::CONNECTION,
        header::PROXY_AUTHENTICATE,
        header::PROXY_AUTHORIZATION,
        header::TE,
        header::TRAILER,
        header::TRANSFER_ENCODING,
        header::UPGRADE,
    ] {
        headers.remove(name);
    }
    headers.remove("keep-alive");
    headers.remove("proxy-connection");
}

/// The guest's word for why the client failed.
fn translate(error: &legacy::Error) -> OutboundError {
    let mut cause = error.source();
    while let Some(at) = cause {
        if let Some(connect) = at.downcast_ref::<ConnectError>() {
            return match connect {
                ConnectError::Uri => OutboundError::InvalidRequest,
                ConnectError::Dial(DialError::Dns { .. }) => OutboundError::Dns,
                ConnectError::Dial(DialError::Denied(_)) => OutboundError::AddressProhibited,
                ConnectError::Dial(DialError::TimedOut { .. }) => OutboundError::ConnectTimeout,
                ConnectError::Dial(DialError::Connect(_)) => OutboundError::Refused,
                ConnectError::Dial(DialError::Limited(_)) => OutboundError::LimitReached,
                ConnectError::Dial(DialError::Unavailable(why)) => OutboundError::Other(why.clone()),
                ConnectError::Tls(cause) => match cause.get_ref().and_then(|cause| cause.downcast_ref()) {
                    Some(rustls::Error::InvalidCertificate(_) | rustls::Error::NoCertificatesPresented) => {
                        OutboundError::Certificate
                    }
                    _ => OutboundError::Tls,
                },
            };
        }
        if let Some(hyper) = at.downcast_ref::<hyper::Error>() {
            return match () {
                () if hyper.is_user() => OutboundError::InvalidRequest,
                () if hyper.is_parse() || hyper.is_parse_too_large() => OutboundError::Protocol,
                () if hyper.is_timeout() => OutboundError::ResponseTimeout,
                () => OutboundError::Terminated,
            };
        }
        cause = at.source();
    }
    OutboundError::Terminated
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hop_by_hop_headers_and_those_they_name_are_stripped() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("connection", "close, X-Named"),
            ("x-named", "1"),
            ("keep-alive", "timeout=5"),
            ("te", "trailers"),
            ("transfer-encoding", "chunked"),
            ("upgrade", "websocket"),
            ("proxy-connection", "keep-alive"),
            ("x-kept", "2"),
        ] {
            headers.append(HeaderName::from_static(name), value.parse().unwrap());
        }
        strip_hop_by_hop(&mut headers);
        assert_eq!(headers.keys().map(HeaderName::as_str).collect::<Vec<_>>(), ["x-kept"]);
    }
}
