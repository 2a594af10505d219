//! Outgoing HTTP of guests: the trait the platform's client implements, and the hook that hands requests to it.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::HeaderName;
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt;
use wasmtime_wasi_http::{DEFAULT_FORBIDDEN_HEADERS, Error, RequestOptions, WasiBody, WasiHttpHooks};

use crate::call::{Call, Subrequest};

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

/// A response body that keeps its request open until its end.
struct Held {
    body: HttpBody,
    open: Option<Subrequest>,
}

fn held(body: HttpBody, open: Subrequest) -> HttpBody {
    if body.is_end_stream() { body } else { Held { body, open: Some(open) }.boxed_unsync() }
}

impl Body for Held {
    type Data = Bytes;
    type Error = HttpBodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, HttpBodyError>>> {
        let polled = Pin::new(&mut self.body).poll_frame(cx);
        let ended = match &polled {
            Poll::Pending => false,
            Poll::Ready(Some(Ok(_))) => self.body.is_end_stream(),
            Poll::Ready(Some(Err(_)) | None) => true,
        };
        if ended {
            self.open = None;
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

type Sent = Result<(http::Response<WasiBody>, Box<dyn Future<Output = Result<(), Error>> + Send>), Error>;

/// The headers that `wasi:http` keeps from guests, made once: as a constant they are made anew wherever it is named.
static FORBIDDEN: [HeaderName; 9] = DEFAULT_FORBIDDEN_HEADERS;

impl WasiHttpHooks for Hooks {
    fn is_forbidden_header(&mut self, name: &HeaderName) -> bool {
        FORBIDDEN.contains(name)
    }

    fn send_request(
        &mut self,
        mut request: http::Request<WasiBody>,
        options: Option<RequestOptions>,
        _processed: Box<dyn Future<Output = Result<(), Error>> + Send>,
    ) -> Box<dyn Future<Output = Sent> + Send> {
        let Some(outbound) = &self.outbound else {
            return Box::new(async { Err(Error::HttpRequestDenied) });
        };
        let Some(open) = self.call.take_subrequest() else {
            return Box::new(async { Err(OutboundError::LimitReached.into()) });
        };
        let mut span = self.call.trace().and_then(|trace| trace.outgoing(&mut request));
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
            let response = response.await;
            if let Some(span) = &mut span {
                span.answered(&response);
            }
            let response = response?.map(|body| held(body, open));
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

#[cfg(test)]
mod tests {
    use http_body_util::Full;
    use model::Limits;

    use super::*;
    use crate::call::OPEN_SUBREQUESTS;

    struct Echo;
    impl Outbound for Echo {
        fn send(&self, request: http::Request<HttpBody>, _: OutboundOptions) -> OutboundResponse {
            Box::pin(async { Ok(http::Response::new(request.into_body())) })
        }
    }

    async fn send(hooks: &mut Hooks, body: &'static str) -> Result<HttpBody, Error> {
        let body = Full::new(Bytes::from_static(body.as_bytes())).map_err(|e| match e {}).boxed_unsync();
        let sent = hooks.send_request(http::Request::new(body), None, Box::new(async { Ok(()) }));
        Box::into_pin(sent).await.map(|(response, _)| response.into_body())
    }

    #[tokio::test]
    async fn a_call_has_only_so_many_requests_open() {
        let limits = Limits { subrequests: 100, ..Limits::default() };
        let call = Arc::new(Call::new(&limits, Arc::default()));
        let mut hooks = Hooks { outbound: Some(Arc::new(Echo)), call };
        let mut open = Vec::new();
        for _ in 0..OPEN_SUBREQUESTS {
            open.push(send(&mut hooks, "body").await.ok().unwrap());
        }
        assert!(matches!(send(&mut hooks, "body").await, Err(Error::ConnectionLimitReached)));
        // One whose body has been read is no longer open, nor is one that was let go.
        let read = open.pop().unwrap();
        let mut read = std::pin::pin!(read);
        assert!(matches!(read.frame().await, Some(Ok(_))));
        open.pop();
        open.push(send(&mut hooks, "body").await.ok().unwrap());
        // An empty answer ends with its head.
        let empty = send(&mut hooks, "").await.ok().unwrap();
        open.push(send(&mut hooks, "body").await.ok().unwrap());
        assert!(matches!(send(&mut hooks, "").await, Err(Error::ConnectionLimitReached)));
        drop(empty);
    }
}
