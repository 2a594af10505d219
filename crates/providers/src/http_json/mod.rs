//! A small client for servers that speak JSON over HTTP: one server, connected through the `Dialer`, TLS where its
//! address is `https`, connections kept and shared, every request bounded in time and every answer in size.
//!
//! What it carries are often secrets: bodies are wiped when they are dropped, headers that hold one are marked so, and
//! no error repeats a piece of either.

mod renewed;
mod server;

use std::error::Error as _;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, StatusCode, header};
use http_body_util::{BodyExt, Full};
use hyper_util::client::legacy::{self, connect::capture_connection};
use hyper_util::rt::{TokioExecutor, TokioTimer};
use model::AppName;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::Semaphore;
use zeroize::Zeroizing;

use crate::breaker::{Breaker, Pauses};
use crate::dial::{Caller, DialError, Dialer};
use crate::http_out::connect::{CONNECT, ConnectError, Connector};
use crate::per_link::{LinkId, PerLink};

pub(crate) use renewed::Renewed;
pub use server::{Server, SettingsError};
pub(crate) use server::{roots as certificates, trust};

/// For one request: connecting, sending, and the whole answer.
pub const TIMEOUT: Duration = Duration::from_secs(4);
/// Requests of one link under way at once; the next wait, within their own time.
pub const MAX_OPEN: usize = 64;
/// How long an idle connection is kept.
const POOL_IDLE: Duration = Duration::from_secs(60);

/// Time-outs say less than a refused connection: one slow answer is no dead server.
const PAUSES: Pauses = Pauses { after: 1, least: Duration::from_millis(50), most: Duration::from_secs(2) };
const SLOW: Pauses = Pauses { after: 3, least: Duration::from_millis(200), most: Duration::from_secs(5) };

/// Why there is no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HttpError {
    /// Nobody answers there, or the connection broke. Whether the request was carried out is not known.
    #[error("{0}")]
    Unreachable(String),
    /// Connecting there is not granted.
    #[error("{0}")]
    Denied(String),
    /// No whole answer in time. Whether the request was carried out is not known.
    #[error("no answer within {ms} ms")]
    TimedOut {
        /// The limit, milliseconds.
        ms: u64,
    },
    /// The answer is larger than asked for.
    #[error("the answer has more than {limit} bytes")]
    TooLarge {
        /// The limit, bytes.
        limit: usize,
    },
    /// What came back is not HTTP, or not the JSON that was expected.
    #[error("{0}")]
    Garbage(String),
    /// The request cannot be written: an address or header that HTTP has no way to say.
    #[error("the request cannot be sent: {0}")]
    Request(String),
}

/// What is asked.
pub struct Ask<'a> {
    /// The method.
    pub method: Method,
    /// Below the server's own path, percent-encoded where it must be, with its query; begins with `/`.
    pub path: &'a str,
    /// Headers beside those of every request.
    pub headers: HeaderMap,
    /// The body; empty is none.
    pub body: Zeroizing<Vec<u8>>,
    /// The most bytes of the answer.
    pub limit: usize,
}

/// What was answered.
pub struct Told {
    /// The status.
    pub status: StatusCode,
    /// The headers.
    pub headers: HeaderMap,
    /// The body, whole.
    pub body: Zeroizing<Vec<u8>>,
}

impl Told {
    /// The body as JSON.
    ///
    /// # Errors
    /// [`HttpError::Garbage`], which says where the body is wrong and nothing of what stands in it.
    pub fn json<T: DeserializeOwned>(&self) -> Result<T, HttpError> {
        serde_json::from_slice(&self.body).map_err(|cause| {
            let (line, column) = (cause.line(), cause.column());
            let what = match cause.classify() {
                serde_json::error::Category::Data => "JSON of another shape",
                _ => "not JSON",
            };
            HttpError::Garbage(format!(
                "the answer with status {} is {what} (line {line}, column {column})",
                self.status.as_u16()
            ))
        })
    }
}

/// A body of JSON, wiped when it is dropped.
///
/// # Errors
/// [`HttpError::Request`] for what JSON cannot say.
pub fn json_body(value: &impl Serialize) -> Result<Zeroizing<Vec<u8>>, HttpError> {
    // Counted first: a buffer that grows leaves copies behind.
    let mut counter = Counter(0);
    let unsayable = |cause: serde_json::Error| HttpError::Request(cause.to_string());
    serde_json::to_writer(&mut counter, value).map_err(unsayable)?;
    let mut body = Zeroizing::new(Vec::with_capacity(counter.0));
    serde_json::to_writer(&mut *body, value).map_err(unsayable)?;
    Ok(body)
}

struct Counter(usize);

impl std::io::Write for Counter {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0 += bytes.len();
        Ok(bytes.len())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// A header value that no log shows, whose memory is wiped. `None` for text that no header can hold.
pub fn secret_header(text: &str) -> Option<HeaderValue> {
    let owned = Zeroizing::new(text.as_bytes().to_vec());
    let mut value = HeaderValue::from_maybe_shared(Bytes::from_owner(owned)).ok()?;
    value.set_sensitive(true);
    Some(value)
}

fn late() -> HttpError {
    HttpError::TimedOut { ms: TIMEOUT.as_millis() as u64 }
}

/// The requests of one link that are under way.
struct Open(Semaphore);

impl Default for Open {
    fn default() -> Self {
        Self(Semaphore::new(MAX_OPEN))
    }
}

/// A client of one server on behalf of one provider of one app. Its connections are nobody else's, and each carries one
/// request at a time.
pub struct HttpJson {
    server: Server,
    client: Renewed<legacy::Client<Connector, Full<Bytes>>>,
    open: PerLink<Open>,
    /// Two kinds of failure with patience of their own.
    dead: Breaker<HttpError>,
    slow: Breaker<HttpError>,
}

impl HttpJson {
    /// A client of `server`. Nothing is connected before the first request.
    pub fn new(server: Server, app: AppName, caller: Caller, dialer: Arc<dyn Dialer>) -> Self {
        let connector = Connector { dialer, app, caller, tls: server.tls.config() };
        let client = Renewed::new(move || {
            legacy::Client::builder(TokioExecutor::new())
                .pool_timer(TokioTimer::new())
                .timer(TokioTimer::new())
                .pool_idle_timeout(POOL_IDLE)
                .pool_max_idle_per_host(MAX_OPEN)
                .http1_max_headers(100)
                .http1_max_buf_size(128 << 10)
                .build(connector.clone())
        });
        let (dead, slow) = (Breaker::new(PAUSES), Breaker::new(SLOW).or_silent(late()));
        Self { server, client, open: PerLink::default(), dead, slow }
    }

    /// Where it sends to, for people: scheme, host and port.
    pub fn place(&self) -> &str {
        &self.server.place
    }

    /// One request and its whole answer, whatever its status. While the server is known to be down, an error at once.
    ///
    /// # Errors
    /// [`HttpError`].
    pub async fn send(&self, ask: Ask<'_>) -> Result<Told, HttpError> {
        let deadline = tokio::time::Instant::now() + TIMEOUT;
        let open = self.open.of(LinkId::calling().as_ref());
        let permit = tokio::time::timeout_at(deadline, open.0.acquire());
        // The semaphore is never closed.
        let _permit = permit.await.map_err(|_| late())?.map_err(|cause| HttpError::Request(cause.to_string()))?;
        let dead = self.dead.enter()?;
        let slow = self.slow.enter()?;
        let (client, of) = self.client.now();
        let answer = tokio::time::timeout_at(deadline, self.exchange(&client, ask)).await.unwrap_or(Err(late()));
        if matches!(answer, Err(HttpError::TimedOut { .. })) {
            self.client.renew(of);
        }
        match &answer {
            Err(cause @ (HttpError::Unreachable(_) | HttpError::Denied(_))) => dead.failed(cause.clone()),
            Err(cause @ HttpError::TimedOut { .. }) => drop(slow.late(cause.clone())),
            Err(HttpError::Request(_)) => {}
            Ok(_) | Err(HttpError::TooLarge { .. } | HttpError::Garbage(_)) => {
                dead.answered();
                slow.answered();
            }
        }
        answer
    }

    async fn exchange(&self, client: &legacy::Client<Connector, Full<Bytes>>, ask: Ask<'_>) -> Result<Told, HttpError> {
        let Ask { method, path, headers, body, limit } = ask;
        // What only reads is asked once more where a kept connection turns out to have been closed by the server.
        let again = method == Method::GET;
        let body = Bytes::from_owner(body);
        let carrier = Mutex::new(None);
        let request = || {
            let mut request = self.request(&method, path, &headers, body.clone())?;
            *carrier.lock().unwrap_or_else(PoisonError::into_inner) = Some(capture_connection(&mut request));
            Ok(request)
        };
        let connected = CONNECT.scope(TIMEOUT, client.request(request()?)).await;
        let response = match connected {
            Err(cause) if again && was_closed(&cause) => {
                CONNECT.scope(TIMEOUT, client.request(request()?)).await.map_err(|cause| translate(&cause))?
            }
            other => other.map_err(|cause| translate(&cause))?,
        };
        let (head, mut incoming) = response.into_parts();
        if head.status == StatusCode::PAYLOAD_TOO_LARGE
            && let Some(connection) = carrier.lock().unwrap_or_else(PoisonError::into_inner).take()
            && let Some(connection) = connection.connection_metadata().as_ref()
        {
            // Servers refuse what is too large without reading it, and some then take the rest for the next request.
            connection.poison();
        }
        let too_large = HttpError::TooLarge { limit };
        let expected = head.headers.get(header::CONTENT_LENGTH).and_then(|n| n.to_str().ok()?.parse().ok());
        if expected.is_some_and(|length: usize| length > limit) {
            return Err(too_large);
        }
        let mut whole = Zeroizing::new(Vec::with_capacity(expected.unwrap_or(0)));
        while let Some(frame) = incoming.frame().await {
            let frame = frame.map_err(|cause| broken(&cause))?;
            if let Some(data) = frame.data_ref() {
                if whole.len().saturating_add(data.len()) > limit {
                    return Err(too_large);
                }
                whole.extend_from_slice(data);
            }
        }
        Ok(Told { status: head.status, headers: head.headers, body: whole })
    }

    fn request(
        &self,
        method: &Method,
        path: &str,
        headers: &HeaderMap,
        body: Bytes,
    ) -> Result<Request<Full<Bytes>>, HttpError> {
        let uri = format!("{}{}{path}", self.server.place, self.server.path);
        let mut request = Request::builder().method(method).uri(uri);
        if let Some(all) = request.headers_mut() {
            all.extend(headers.clone());
            all.insert(header::ACCEPT, HeaderValue::from_static("application/json"));
            crate::traced::onward(all);
        }
        request.body(Full::new(body)).map_err(|cause| HttpError::Request(cause.to_string()))
    }
}

/// Whether a kept connection ended under the request, as it does where the server closes it at the same moment.
fn was_closed(error: &legacy::Error) -> bool {
    let mut cause = error.source();
    while let Some(at) = cause {
        if let Some(hyper) = at.downcast_ref::<hyper::Error>() {
            return hyper.is_incomplete_message() || hyper.is_closed() || hyper.is_canceled();
        }
        cause = at.source();
    }
    false
}

fn translate(error: &legacy::Error) -> HttpError {
    let mut cause = error.source();
    while let Some(at) = cause {
        if let Some(connect) = at.downcast_ref::<ConnectError>() {
            return match connect {
                ConnectError::Dial(DialError::Denied(why)) => HttpError::Denied(why.clone()),
                ConnectError::Dial(DialError::TimedOut { ms }) => HttpError::TimedOut { ms: *ms },
                other => HttpError::Unreachable(other.to_string()),
            };
        }
        if let Some(hyper) = at.downcast_ref::<hyper::Error>() {
            return broken(hyper);
        }
        cause = at.source();
    }
    HttpError::Unreachable("the connection was closed".to_owned())
}

fn broken(cause: &hyper::Error) -> HttpError {
    match () {
        () if cause.is_user() => HttpError::Request(cause.to_string()),
        () if cause.is_parse() || cause.is_parse_too_large() => {
            HttpError::Garbage(format!("what answers there does not speak HTTP: {cause}"))
        }
        () => HttpError::Unreachable(format!("the connection broke: {cause}")),
    }
}
