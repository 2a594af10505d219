//! How the S3 client speaks HTTP: over connections that the `Dialer` makes, each request with a time and each answer that
//! is not an object with a size.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::Method;
use http_body::{Body, Frame};
use http_body_util::{BodyExt, Limited};
use hyper_util::client::legacy;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use model::AppName;
use object_store::ClientOptions;
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpRequestBody, HttpResponse, HttpResponseBody,
    HttpService,
};
use tokio::time::Sleep;

use crate::dial::{Caller, DialError, Dialer};
use crate::http_json::Renewed;
use crate::http_out::Tls;
use crate::http_out::connect::{CONNECT, ConnectError, Connector};

/// To connect, TLS included.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(4);
/// From the start of a request to the head of its answer, and from one piece of an answer to the next.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// The same for a request that carries more than [`SMALL`] bytes: a part of 5 MiB may have to go out before.
const UPLOAD_TIMEOUT: Duration = Duration::from_secs(20);
/// Goes out at once.
const SMALL: usize = 64 << 10;
/// The largest answer that is not an object, bytes.
const MAX_ANSWER: usize = 8 << 20;
/// Idle connections kept, and how long.
const MAX_IDLE: usize = 16;
const POOL_IDLE: Duration = Duration::from_secs(30);

/// Makes the client's connections.
#[derive(Clone)]
pub(super) struct Http(Arc<Renewed<legacy::Client<Connector, HttpRequestBody>>>);

impl Http {
    pub(super) fn new(app: AppName, caller: Caller, tls: Tls, dialer: Arc<dyn Dialer>) -> Self {
        let connector = Connector { dialer, app, caller, tls: tls.config() };
        Self(Arc::new(Renewed::new(move || {
            legacy::Client::builder(TokioExecutor::new())
                .pool_timer(TokioTimer::new())
                .timer(TokioTimer::new())
                .pool_idle_timeout(POOL_IDLE)
                .pool_max_idle_per_host(MAX_IDLE)
                .http1_max_headers(100)
                .build(connector.clone())
        })))
    }
}

impl fmt::Debug for Http {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Http")
    }
}

impl HttpConnector for Http {
    fn connect(&self, _: &ClientOptions) -> object_store::Result<HttpClient> {
        Ok(HttpClient::new(self.clone()))
    }
}

/// No answer in time.
#[derive(Debug, thiserror::Error)]
#[error("no answer within {} ms", .0.as_millis())]
pub(super) struct Late(pub(super) Duration);

#[async_trait::async_trait]
impl HttpService for Http {
    async fn call(&self, mut request: HttpRequest) -> Result<HttpResponse, HttpError> {
        // The signature is over what was there before, and leaves others free to add to it.
        crate::traced::onward(request.headers_mut());
        let is_object = request.method() == Method::GET && request.uri().query().is_none();
        let limit = if request.body().content_length() > SMALL { UPLOAD_TIMEOUT } else { ANSWER_TIMEOUT };
        let (client, of) = self.0.now();
        let sent = CONNECT.scope(CONNECT_TIMEOUT, client.request(request));
        let response = match tokio::time::timeout(limit, sent).await {
            Ok(response) => response.map_err(|cause| HttpError::new(kind(&cause), cause))?,
            Err(_) => {
                self.0.renew(of);
                // Not tried again: whoever waits has waited long enough.
                return Err(HttpError::new(HttpErrorKind::Unknown, Late(limit)));
            }
        };
        let is_object = is_object && response.status().is_success();
        let interrupted = |cause: hyper::Error| HttpError::new(HttpErrorKind::Interrupted, cause);
        Ok(response.map(|body| {
            let body = Flowing { body: Box::pin(body.map_err(interrupted)), since: None };
            if is_object {
                HttpResponseBody::new(body)
            } else {
                let limited = Limited::new(body, MAX_ANSWER);
                HttpResponseBody::new(limited.map_err(|cause| HttpError::new_boxed(HttpErrorKind::Decode, cause)))
            }
        }))
    }
}

/// A body whose next piece is late after [`ANSWER_TIMEOUT`]; a reader that does not ask does not make it late.
struct Flowing<B> {
    body: Pin<Box<B>>,
    since: Option<Pin<Box<Sleep>>>,
}

impl<B: Body<Data = Bytes, Error = HttpError>> Body for Flowing<B> {
    type Data = Bytes;
    type Error = HttpError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, HttpError>>> {
        if let Poll::Ready(frame) = self.body.as_mut().poll_frame(context) {
            self.since = None;
            return Poll::Ready(frame);
        }
        let since = self.since.get_or_insert_with(|| Box::pin(tokio::time::sleep(ANSWER_TIMEOUT)));
        match since.as_mut().poll(context) {
            Poll::Ready(()) => {
                self.since = None;
                Poll::Ready(Some(Err(HttpError::new(HttpErrorKind::Unknown, Late(ANSWER_TIMEOUT)))))
            }
            Poll::Pending => Poll::Pending,
        }
    }

    fn size_hint(&self) -> http_body::SizeHint {
        self.body.size_hint()
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }
}

/// Whether the client may try again.
fn kind(error: &legacy::Error) -> HttpErrorKind {
    // What is not granted now is not granted a moment later; and when to knock again where nobody is there is the
    // breaker's to say, not every call's for itself.
    let unconnected = error.is_connect() || dial_error(error).is_some();
    if unconnected { HttpErrorKind::Unknown } else { HttpErrorKind::Interrupted }
}

/// Why there was no connection, where that is the reason.
pub(super) fn dial_error<'a>(error: &'a (dyn std::error::Error + 'static)) -> Option<&'a DialError> {
    let mut cause = Some(error);
    while let Some(at) = cause {
        if let Some(ConnectError::Dial(dial)) = at.downcast_ref::<ConnectError>() {
            return Some(dial);
        }
        cause = at.source();
    }
    None
}
