//! Outgoing HTTP of guests: the trait the platform's client implements, and the hook that hands requests to it.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use wasmtime_wasi_http::{Error, RequestOptions, WasiBody, WasiHttpHooks};

use crate::call::Call;

/// A request or response body on its way between guests and the world.
pub type HttpBody = WasiBody;
/// Why such a body broke off. Converts from [`hyper::Error`](https://docs.rs/hyper) and from `Infallible`.
pub type HttpBodyError = Error;

/// The timeouts a guest asked for. The client applies the smaller of these and its own.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct OutboundOptions {
    /// To connect.
    pub connect: Option<Duration>,
    /// To the first byte of the response.
    pub first_byte: Option<Duration>,
    /// Between two pieces of the response body.
    pub between_bytes: Option<Duration>,
}

/// Why an outgoing request failed; the guest sees the matching `wasi:http` error code.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OutboundError {
    /// Not granted: by the manifest's allowed hosts or by policy.
    #[error("the request is not granted")]
    Denied,
    /// The address behind the name is one no app may reach.
    #[error("the address is prohibited")]
    AddressProhibited,
    /// The name has no address.
    #[error("the name cannot be resolved")]
    Dns,
    /// Nobody listens there.
    #[error("the connection was refused")]
    Refused,
    /// No connection in time.
    #[error("the connection timed out")]
    ConnectTimeout,
    /// No answer in time.
    #[error("the response timed out")]
    ResponseTimeout,
    /// The connection broke.
    #[error("the connection was closed")]
    Terminated,
    /// Too many requests, in all or at once.
    #[error("too many outgoing requests")]
    LimitReached,
    /// TLS failed.
    #[error("the TLS connection failed")]
    Tls,
    /// The certificate is not valid for the name.
    #[error("the TLS certificate is not valid")]
    Certificate,
    /// The request cannot be sent as it is.
    #[error("the request is not valid")]
    InvalidRequest,
    /// The other side does not speak HTTP.
    #[error("the HTTP exchange failed")]
    Protocol,
    /// Anything else, in words.
    #[error("{0}")]
    Other(String),
}

/// What an [`Outbound`] returns.
pub type OutboundResponse = Pin<Box<dyn Future<Output = Result<http::Response<HttpBody>, OutboundError>> + Send>>;

/// Sends the HTTP requests of one component.
pub trait Outbound: Send + Sync {
    /// Sends one request. `Host` is set and the URI is absolute. The body of the response is read as the guest reads
    /// it; dropping the future or the body must end the exchange.
    fn send(&self, request: http::Request<HttpBody>, options: OutboundOptions) -> OutboundResponse;
}

impl From<OutboundError> for Error {
    fn from(error: OutboundError) -> Self {
        match error {
            OutboundError::Denied => Error::HttpRequestDenied,
            OutboundError::AddressProhibited => Error::DestinationIpProhibited,
            OutboundError::Dns => Error::DnsError { rcode: None, info_code: None },
            OutboundError::Refused => Error::ConnectionRefused,
            OutboundError::ConnectTimeout => Error::ConnectionTimeout,
            OutboundError::ResponseTimeout => Error::HttpResponseTimeout,
            OutboundError::Terminated => Error::ConnectionTerminated,
            OutboundError::LimitReached => Error::ConnectionLimitReached,
            OutboundError::Tls => Error::TlsProtocolError,
            OutboundError::Certificate => Error::TlsCertificateError,
            OutboundError::InvalidRequest => Error::HttpRequestUriInvalid,
            OutboundError::Protocol => Error::HttpProtocolError,
            OutboundError::Other(message) => Error::InternalError(Some(message)),
        }
    }
}

/// What `wasi:http` asks the host while a call runs.
pub(crate) struct Hooks {
    pub(crate) outbound: Option<Arc<dyn Outbound>>,
    pub(crate) call: Arc<Call>,
}

/// Pieces of an outgoing body the host holds while the reader is slow, and their size: at most 1 MiB together.
const BODY_CHUNKS: usize = 15;
const BODY_CHUNK: usize = 64 * 1024;

type Sent = Result<(http::Response<WasiBody>, Box<dyn Future<Output = Result<(), Error>> + Send>), Error>;

impl WasiHttpHooks for Hooks {
    fn send_request(
        &mut self,
        request: http::Request<WasiBody>,
        options: Option<RequestOptions>,
        _processed: Box<dyn Future<Output = Result<(), Error>> + Send>,
    ) -> Box<dyn Future<Output = Sent> + Send> {
        let Some(outbound) = &self.outbound else {
            return Box::new(async { Err(Error::HttpRequestDenied) });
        };
        if !self.call.take_subrequest() {
            return Box::new(async { Err(OutboundError::LimitReached.into()) });
        }
        let options = options.unwrap_or_default();
        let response = outbound.send(
            request,
            OutboundOptions {
                connect: options.connect_timeout,
                first_byte: options.first_byte_timeout,
                between_bytes: options.between_bytes_timeout,
            },
        );
        Box::new(async move {
            let response = response.await?;
            let done: Box<dyn Future<Output = Result<(), Error>> + Send> = Box::new(async { Ok(()) });
            Ok((response, done))
        })
    }

    fn p2_outgoing_body_buffer_chunks(&mut self) -> usize {
        BODY_CHUNKS
    }

    fn p2_outgoing_body_chunk_size(&mut self) -> usize {
        BODY_CHUNK
    }

    fn p3_outgoing_body_chunk_size(&mut self) -> usize {
        BODY_CHUNK
    }
}
