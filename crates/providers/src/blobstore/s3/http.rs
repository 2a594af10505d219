//! How the S3 client speaks HTTP: over connections that the `Dialer` makes, each request with a time and each answer that
//! is not an object with a size.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use http::Method;
use http_body_util::{BodyExt, Limited};
use hyper_util::client::legacy;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use model::AppName;
use object_store::ClientOptions;
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpRequestBody, HttpResponse, HttpResponseBody,
    HttpService,
};

use crate::dial::{Caller, DialError, Dialer};
use crate::http_out::Tls;
use crate::http_out::connect::{CONNECT, ConnectError, Connector};

/// To connect, TLS included.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(4);
/// From the start of a request to the head of its answer: a part of 5 MiB may have to go out before.
pub(super) const HEAD_TIMEOUT: Duration = Duration::from_secs(20);
/// The largest answer that is not an object, bytes.
const MAX_ANSWER: usize = 8 << 20;
/// Idle connections kept, and how long.
const MAX_IDLE: usize = 16;
const POOL_IDLE: Duration = Duration::from_secs(30);

/// Makes the client's connections.
#[derive(Clone)]
pub(super) struct Http(legacy::Client<Connector, HttpRequestBody>);

impl Http {
    pub(super) fn new(app: AppName, caller: Caller, tls: Tls, dialer: Arc<dyn Dialer>) -> Self {
        let client = legacy::Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .timer(TokioTimer::new())
            .pool_idle_timeout(POOL_IDLE)
            .pool_max_idle_per_host(MAX_IDLE)
            .http1_max_headers(100)
            .build(Connector { dialer, app, caller, tls: tls.config() });
        Self(client)
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
    async fn call(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let is_object = request.method() == Method::GET && request.uri().query().is_none();
        let sent = CONNECT.scope(CONNECT_TIMEOUT, self.0.request(request));
        let response = match tokio::time::timeout(HEAD_TIMEOUT, sent).await {
            Ok(response) => response.map_err(|cause| HttpError::new(kind(&cause), cause))?,
            Err(_) => return Err(HttpError::new(HttpErrorKind::Timeout, Late(HEAD_TIMEOUT))),
        };
        let is_object = is_object && response.status().is_success();
        let interrupted = |cause: hyper::Error| HttpError::new(HttpErrorKind::Interrupted, cause);
        Ok(response.map(|body| {
            let body = body.map_err(interrupted);
            if is_object {
                HttpResponseBody::new(body)
            } else {
                let limited = Limited::new(body, MAX_ANSWER);
                HttpResponseBody::new(limited.map_err(|cause| HttpError::new_boxed(HttpErrorKind::Decode, cause)))
            }
        }))
    }
}

/// Whether the client may try again.
fn kind(error: &legacy::Error) -> HttpErrorKind {
    match dial_error(error) {
        // What is not granted now is not granted a moment later.
        Some(DialError::Denied(_)) => HttpErrorKind::Unknown,
        _ if error.is_connect() => HttpErrorKind::Connect,
        _ => HttpErrorKind::Interrupted,
    }
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
