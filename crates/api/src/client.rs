//! The typed client of the control API, so that the cli and tests speak it without writing a path or a header.
//!
//! HTTP/1.1 over a pooled TCP connection, with the bearer token. Every refusal is the server's own [`Problem`]; a server
//! that does not answer is [`ClientError::Unreachable`] with its address and how to start it, never a bare socket error.
//! Whoever is told to come back later (429 with `Retry-After`) does, where the client was made [`ControlClient::patient`].

mod apps;
mod kept;
mod stream;
mod tenants;
#[cfg(test)]
mod tests;

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use model::{AppName, TenantName};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::control::{ContractView, MAX_BLOB, NodeView, Version};
use crate::problem::{Code, Problem};

pub use stream::{EventQuery, Events, Items};

/// How long a connection may take to be made.
const CONNECT: Duration = Duration::from_secs(2);
/// How long an answer may take; streams are not limited.
const ANSWER: Duration = Duration::from_secs(120);

/// Why a request has no answer.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ClientError {
    /// The control plane refused; its own words.
    #[error(transparent)]
    Refused(#[from] Problem),
    /// Nobody answers there.
    #[error("the control plane at {address} is not reachable: {cause}; start it with `sidereal up`")]
    Unreachable {
        /// `http://host:port`.
        address: String,
        /// The last cause, in words.
        cause: String,
    },
    /// It answers, but not what the API promises: another program, or another version of this one.
    #[error("the server at {address} does not speak this API: {cause}")]
    Protocol {
        /// `http://host:port`.
        address: String,
        /// What was wrong.
        cause: String,
    },
}

impl ClientError {
    /// The same as a problem: what the cli prints and the code it exits with.
    pub fn problem(self) -> Problem {
        let text = self.to_string();
        match self {
            Self::Refused(problem) => problem,
            Self::Unreachable { address, cause } => {
                Problem::new(Code::Unreachable, format!("the control plane at {address} is not reachable: {cause}"))
                    .help("start it with `sidereal up`")
            }
            Self::Protocol { .. } => Problem::new(Code::Unreachable, text)
                .help("compare `sidereal --version` with the version that runs there"),
        }
    }
}

/// What a write requires of the thing it changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Require {
    /// Nothing.
    #[default]
    Any,
    /// It exists.
    Exists,
    /// It does not exist.
    Absent,
    /// Its current revision (apps) or etag (tenants) is this.
    At(u64),
}

impl Require {
    fn apply(self, headers: &mut HeaderMap) {
        match self {
            Self::Any => {}
            Self::Exists => drop(headers.insert(header::IF_MATCH, HeaderValue::from_static("*"))),
            Self::Absent => drop(headers.insert(header::IF_NONE_MATCH, HeaderValue::from_static("*"))),
            Self::At(n) => drop(headers.insert(header::IF_MATCH, HeaderValue::from(n))),
        }
    }
}

/// Speaks to one control plane. Cheap to clone; clones share connections.
#[derive(Clone)]
pub struct ControlClient {
    http: Client<HttpConnector, Full<Bytes>>,
    base: String,
    bearer: HeaderValue,
    patience: Duration,
}

impl std::fmt::Debug for ControlClient {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ControlClient").field("base", &self.base).finish_non_exhaustive()
    }
}

impl ControlClient {
    /// A client of the control plane at `address`. Connects on the first request.
    pub fn new(address: SocketAddr, token: &str) -> Self {
        Self::named(&address.to_string(), token)
    }

    /// A client of the control plane that is called `authority`, `host` or `host:port`: it is asked by that name, at each
    /// address that the name has until one answers.
    pub fn named(authority: &str, token: &str) -> Self {
        let mut connector = HttpConnector::new();
        connector.set_connect_timeout(Some(CONNECT));
        connector.set_nodelay(true);
        // A token with characters no header can carry is no token; the server then answers `unauthorized`.
        let mut bearer =
            HeaderValue::from_str(&format!("Bearer {token}")).unwrap_or_else(|_| HeaderValue::from_static("Bearer"));
        bearer.set_sensitive(true);
        Self {
            http: Client::builder(TokioExecutor::new()).build(connector),
            base: format!("http://{authority}"),
            bearer,
            patience: Duration::ZERO,
        }
    }

    /// Does as it is told where a request is one too many: waits and asks again, for so long together, and then passes on the
    /// refusal. Such a request was refused before anything of it was done.
    #[must_use]
    pub fn patient(self, patience: Duration) -> Self {
        Self { patience, ..self }
    }

    /// Where it sends requests: `http://host:port`.
    pub fn address(&self) -> &str {
        &self.base
    }

    /// The control plane answers at all.
    ///
    /// # Errors
    /// [`ClientError`], as every method here.
    pub async fn health(&self) -> Result<(), ClientError> {
        self.send(Method::GET, "/v1/healthz", HeaderMap::new(), Bytes::new(), None).await.map(drop)
    }

    /// Which product answers, and since when.
    ///
    /// # Errors
    /// [`ClientError`], as every method here.
    pub async fn version(&self) -> Result<Version, ClientError> {
        self.get("/v1/version").await
    }

    /// The machines.
    ///
    /// # Errors
    /// [`ClientError`], as every method here.
    pub async fn nodes(&self) -> Result<Vec<NodeView>, ClientError> {
        self.get("/v1/nodes").await
    }

    /// What components may import there, and which provider types answer.
    ///
    /// # Errors
    /// [`ClientError`], as every method here.
    pub async fn contracts(&self) -> Result<Vec<ContractView>, ClientError> {
        self.get("/v1/contracts").await
    }

    async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        let body = self.send(Method::GET, path, HeaderMap::new(), Bytes::new(), None).await?;
        self.decode(&body)
    }

    async fn json<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        headers: HeaderMap,
        value: &impl Serialize,
    ) -> Result<T, ClientError> {
        let body = serde_json::to_vec(value).map_err(|cause| self.protocol(cause))?;
        let kind = HeaderValue::from_static("application/json");
        let body = self.send(method, path, headers, body.into(), Some(kind)).await?;
        self.decode(&body)
    }

    fn decode<T: DeserializeOwned>(&self, body: &[u8]) -> Result<T, ClientError> {
        serde_json::from_slice(body).map_err(|cause| self.protocol(cause))
    }

    fn protocol(&self, cause: impl std::fmt::Display) -> ClientError {
        ClientError::Protocol { address: self.base.clone(), cause: cause.to_string() }
    }

    fn unreachable(&self, cause: &(dyn std::error::Error + 'static)) -> ClientError {
        // The outermost text is "client error (Connect)"; people need the innermost one.
        let innermost = std::iter::successors(Some(cause), |e| e.source()).last().unwrap_or(cause);
        ClientError::Unreachable { address: self.base.clone(), cause: innermost.to_string() }
    }

    /// Sends a request and answers with the response once its head is there; a refusal is read whole.
    async fn open(
        &self,
        method: Method,
        path: &str,
        headers: HeaderMap,
        body: Bytes,
        kind: Option<HeaderValue>,
    ) -> Result<http::Response<hyper::body::Incoming>, ClientError> {
        let mut request = http::Request::new(Full::new(body));
        *request.method_mut() = method;
        *request.uri_mut() = format!("{}{path}", self.base).parse().map_err(|cause| self.protocol(cause))?;
        *request.headers_mut() = headers;
        request.headers_mut().insert(header::AUTHORIZATION, self.bearer.clone());
        if let Some(kind) = kind {
            request.headers_mut().insert(header::CONTENT_TYPE, kind);
        }
        let mut patience = self.patience;
        let response = loop {
            let answered = match self.http.request(request.clone()).await {
                // A kept connection can have ended meanwhile: what only reads is asked again, on a new one.
                Err(cause) if request.method().is_safe() && !cause.is_connect() => {
                    self.http.request(request.clone()).await
                }
                other => other,
            };
            let response = answered.map_err(|cause| self.unreachable(&cause))?;
            match told_to_wait(&response).and_then(|pause| Some((pause, patience.checked_sub(pause)?))) {
                None => break response,
                Some((pause, left)) => {
                    patience = left;
                    // Read to its end, so that its connection is the next one's.
                    self.collect(response).await?;
                    tokio::time::sleep(pause).await;
                }
            }
        };
        if response.status().is_success() {
            return Ok(response);
        }
        let status = response.status();
        let body = self.collect(response).await?;
        Err(match serde_json::from_slice::<Problem>(&body) {
            Ok(problem) => problem.into(),
            Err(_) if status == StatusCode::NOT_FOUND && body.is_empty() => {
                Problem::new(Code::NotFound, format!("{path} does not exist")).into()
            }
            Err(_) => self.protocol(format!("status {status} without a problem document")),
        })
    }

    async fn collect(&self, response: http::Response<hyper::body::Incoming>) -> Result<Bytes, ClientError> {
        let body = Limited::new(response.into_body(), MAX_BLOB).collect().await;
        body.map(|b| b.to_bytes()).map_err(|cause| self.protocol(cause))
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        headers: HeaderMap,
        body: Bytes,
        kind: Option<HeaderValue>,
    ) -> Result<Bytes, ClientError> {
        let whole = async { self.collect(self.open(method, path, headers, body, kind).await?).await };
        tokio::time::timeout(ANSWER, whole).await.unwrap_or_else(|_| {
            Err(Problem::new(Code::TimedOut, format!("{} did not answer within {} s", self.base, ANSWER.as_secs()))
                .into())
        })
    }
}

/// When to come back with a request that was one too many.
fn told_to_wait<T>(response: &http::Response<T>) -> Option<Duration> {
    if response.status() != StatusCode::TOO_MANY_REQUESTS {
        return None;
    }
    let seconds = response.headers().get(header::RETRY_AFTER)?.to_str().ok()?.parse::<u64>().ok()?;
    Some(Duration::from_secs(seconds.max(1)))
}

fn of(tenant: &TenantName, app: &AppName, rest: &str) -> String {
    format!("/v1/tenants/{tenant}/apps/{app}{rest}")
}
