//! The typed client of the agent API: how a node (or a task driver) talks to a host over its `agent.sock`.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::stream::{BoxStream, StreamExt};
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use model::{AppName, Revision};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;

use crate::agent::{
    Called, DrainRequest, Drained, HostInfo, HostStatus, LogLine, ScheduledCall, SpanBatch, StartRequest, TakingRequest,
};
use crate::copy::{Held, Release};
use crate::metrics::HostMetrics;
use crate::run::{RunFrame, RunRequest};
use crate::{Code, Problem};

/// The largest answer a host may give, bytes.
const MAX_ANSWER: usize = 64 << 20;
/// The longest line of `/v1/logs` and `/v1/spans`, bytes: 16 KiB of text, escaped, and its frame; 64 spans.
const MAX_LINE: usize = 256 << 10;
/// Connections kept for the next request.
const KEPT: usize = 8;

/// A client of one host. Connections are made when needed and kept.
#[derive(Debug)]
pub struct HostClient {
    socket: PathBuf,
    kept: Mutex<Vec<SendRequest<Full<Bytes>>>>,
}

impl HostClient {
    /// A client of the host whose agent API listens at `socket`. Connects with the first request.
    pub fn new(socket: impl Into<PathBuf>) -> Self {
        Self { socket: socket.into(), kept: Mutex::new(Vec::new()) }
    }

    /// Where the host listens.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Forgets kept connections: the process behind the socket is another one now.
    pub fn reset(&self) {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// Who the host is.
    ///
    /// # Errors
    /// [`Code::Unreachable`] when nobody answers, otherwise what the host says.
    pub async fn info(&self) -> Result<HostInfo, Problem> {
        self.json(Method::GET, "/v1/info", Bytes::new()).await
    }

    /// Makes a revision answer. Idempotent.
    ///
    /// # Errors
    /// [`Code::Unreachable`] when nobody answers, otherwise what the host says.
    pub async fn start(&self, app: &AppName, revision: Revision, request: &StartRequest) -> Result<(), Problem> {
        self.start_encoded(app, revision, encode(request)?).await
    }

    /// As [`HostClient::start`] with the JSON text of a [`StartRequest`], for callers that send one to many hosts.
    ///
    /// # Errors
    /// As [`HostClient::start`].
    pub async fn start_encoded(&self, app: &AppName, revision: Revision, request: Bytes) -> Result<(), Problem> {
        let path = format!("/v1/apps/{app}/revisions/{revision}");
        self.bytes(Method::PUT, &path, request).await.map(drop)
    }

    /// Ends a revision: calls in flight have until `deadline`.
    ///
    /// # Errors
    /// As [`HostClient::start`].
    pub async fn drain_revision(
        &self,
        app: &AppName,
        revision: Revision,
        deadline: Duration,
    ) -> Result<Drained, Problem> {
        self.json(Method::POST, &format!("/v1/apps/{app}/revisions/{revision}/drain"), within(deadline)?).await
    }

    /// Lets new calls of a revision wait, and gives those in flight until `deadline` to end.
    ///
    /// # Errors
    /// As [`HostClient::start`].
    pub async fn hold(&self, app: &AppName, revision: Revision, deadline: Duration) -> Result<Held, Problem> {
        self.json(Method::POST, &format!("/v1/apps/{app}/revisions/{revision}/hold"), within(deadline)?).await
    }

    /// Lets the calls of an app that wait go on: on revision `to`, or each on its own.
    ///
    /// # Errors
    /// As [`HostClient::start`].
    pub async fn release(&self, app: &AppName, to: Option<Revision>) -> Result<(), Problem> {
        let path = format!("/v1/apps/{app}/release");
        self.bytes(Method::POST, &path, encode(&Release { to })?).await.map(drop)
    }

    /// One step of the copy `id`; which one is the last part of its path ([`crate::copy`]).
    ///
    /// # Errors
    /// As [`HostClient::start`]; [`Code::NotFound`] where the host does not know the copy, for example because it was
    /// started again.
    pub async fn copy<Q: Serialize, A: DeserializeOwned>(
        &self,
        method: Method,
        app: &AppName,
        id: &str,
        step: &str,
        request: &Q,
    ) -> Result<A, Problem> {
        self.json(method, &format!("/v1/apps/{app}/copies/{id}{step}"), encode(request)?).await
    }

    /// Makes a revision take messages, or stop; the latter returns when no handler of it is under way.
    ///
    /// # Errors
    /// As [`HostClient::start`].
    pub async fn set_taking(&self, app: &AppName, revision: Revision, taking: bool) -> Result<(), Problem> {
        let path = format!("/v1/apps/{app}/revisions/{revision}/taking");
        self.bytes(Method::PUT, &path, encode(&TakingRequest { taking })?).await.map(drop)
    }

    /// Calls a component for a schedule. The one request that is never sent twice.
    ///
    /// # Errors
    /// As [`HostClient::start`]. After [`Code::NotFound`] and [`Code::Busy`] the component was not called; otherwise it
    /// may have been.
    pub async fn scheduled(&self, app: &AppName, revision: Revision, call: &ScheduledCall) -> Result<Called, Problem> {
        let path = format!("/v1/apps/{app}/revisions/{revision}/scheduled");
        let mut sender = self.connect().await?;
        let answer = sender.send_request(self.request(Method::POST, &path, encode(call)?)?).await;
        let (status, body) = self.collect(answer.map_err(|cause| self.unreachable(&cause))?).await?;
        if !status.is_success() {
            return Err(refusal(status, &body));
        }
        serde_json::from_slice(&body)
            .map_err(|cause| Problem::new(Code::Internal, format!("a host answered with unreadable JSON: {cause}")))
    }

    /// Runs a program once: what it writes, and last how it ended. Never sent twice. Dropping the stream ends the run.
    ///
    /// # Errors
    /// As [`HostClient::start`]. After an error it was not run, except where nobody answers: then it may have been.
    pub async fn run(
        &self,
        app: &AppName,
        revision: Revision,
        request: &RunRequest,
    ) -> Result<BoxStream<'static, Result<RunFrame, Problem>>, Problem> {
        let path = format!("/v1/apps/{app}/revisions/{revision}/run");
        let mut sender = self.connect().await?;
        let answer = sender.send_request(self.request(Method::POST, &path, encode(request)?)?).await;
        let answer = answer.map_err(|cause| self.unreachable(&cause))?;
        if answer.status() != StatusCode::OK {
            let (status, body) = self.collect(answer).await?;
            return Err(refusal(status, &body));
        }
        let state = Frames { body: answer.into_body(), buffer: BytesMut::new(), _sender: sender };
        let frames = futures::stream::unfold(state, |mut frames| async {
            let frame = frames.next().await.transpose()?;
            Some((frame, frames))
        });
        Ok(frames.boxed())
    }

    /// Counters and memory.
    ///
    /// # Errors
    /// As [`HostClient::info`].
    pub async fn status(&self) -> Result<HostStatus, Problem> {
        self.json(Method::GET, "/v1/status", Bytes::new()).await
    }

    /// Everything the host counted, over all revisions.
    ///
    /// # Errors
    /// As [`HostClient::info`].
    pub async fn metrics(&self) -> Result<HostMetrics, Problem> {
        self.json(Method::GET, "/v1/metrics", Bytes::new()).await
    }

    /// Ends the host: calls in flight have until `deadline`, then the process exits 0.
    ///
    /// # Errors
    /// As [`HostClient::info`].
    pub async fn drain(&self, deadline: Duration) -> Result<Drained, Problem> {
        self.json(Method::POST, "/v1/drain", within(deadline)?).await
    }

    /// Every log line from now on; the stream ends when the host does. Lines that cannot be read are skipped.
    ///
    /// # Errors
    /// As [`HostClient::info`].
    pub async fn logs(&self) -> Result<BoxStream<'static, LogLine>, Problem> {
        self.stream("/v1/logs").await
    }

    /// Every span from now on; the stream ends when the host does.
    ///
    /// # Errors
    /// As [`HostClient::info`].
    pub async fn spans(&self) -> Result<BoxStream<'static, SpanBatch>, Problem> {
        self.stream("/v1/spans").await
    }

    async fn stream<T: DeserializeOwned + Send + 'static>(&self, path: &str) -> Result<BoxStream<'static, T>, Problem> {
        let mut sender = self.connect().await?;
        let answer = sender.send_request(self.request(Method::GET, path, Bytes::new())?).await;
        let answer = answer.map_err(|cause| self.unreachable(&cause))?;
        if answer.status() != StatusCode::OK {
            let (status, body) = self.collect(answer).await?;
            return Err(refusal(status, &body));
        }
        let state = Lines { body: answer.into_body(), buffer: BytesMut::new(), skipping: false, _sender: sender };
        let lines = futures::stream::unfold(state, |mut lines| async {
            let line = lines.next().await?;
            Some((line, lines))
        });
        Ok(lines.boxed())
    }

    pub(crate) async fn json<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> Result<T, Problem> {
        let body = self.bytes(method, path, body).await?;
        serde_json::from_slice(&body).map_err(|cause| {
            let socket = self.socket.display();
            Problem::new(Code::Internal, format!("the host at {socket} answered {path} with unreadable JSON: {cause}"))
        })
    }

    async fn bytes(&self, method: Method, path: &str, body: Bytes) -> Result<Bytes, Problem> {
        let (status, body) = self.exchange(method, path, body).await?;
        if status.is_success() { Ok(body) } else { Err(refusal(status, &body)) }
    }

    async fn exchange(&self, method: Method, path: &str, body: Bytes) -> Result<(StatusCode, Bytes), Problem> {
        // A kept connection may have been closed meanwhile. Every request that comes here may be sent twice, so a failure
        // on a kept connection is tried once more on a new one.
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner).pop();
        if let Some(mut sender) = kept.filter(|sender| !sender.is_closed())
            && sender.ready().await.is_ok()
            && let Ok(answer) = sender.send_request(self.request(method.clone(), path, body.clone())?).await
        {
            return self.finish(sender, answer).await;
        }
        let mut sender = self.connect().await?;
        let answer = sender.send_request(self.request(method, path, body)?).await;
        let answer = answer.map_err(|cause| self.unreachable(&cause))?;
        self.finish(sender, answer).await
    }

    async fn finish(
        &self,
        sender: SendRequest<Full<Bytes>>,
        answer: Response<Incoming>,
    ) -> Result<(StatusCode, Bytes), Problem> {
        let done = self.collect(answer).await?;
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() < KEPT && !sender.is_closed() {
            kept.push(sender);
        }
        Ok(done)
    }

    async fn collect(&self, answer: Response<Incoming>) -> Result<(StatusCode, Bytes), Problem> {
        let status = answer.status();
        let body = Limited::new(answer.into_body(), MAX_ANSWER).collect().await;
        let body = body.map_err(|cause| self.unreachable(cause.as_ref()))?;
        Ok((status, body.to_bytes()))
    }

    async fn connect(&self) -> Result<SendRequest<Full<Bytes>>, Problem> {
        let stream = UnixStream::connect(&self.socket).await.map_err(|cause| self.unreachable(&cause))?;
        let (sender, connection) =
            http1::handshake(TokioIo::new(stream)).await.map_err(|cause| self.unreachable(&cause))?;
        tokio::spawn(async move {
            if let Err(cause) = connection.await {
                tracing::debug!(%cause, "connection to a host's agent API ended");
            }
        });
        Ok(sender)
    }

    fn request(&self, method: Method, path: &str, body: Bytes) -> Result<Request<Full<Bytes>>, Problem> {
        Request::builder()
            .method(method)
            .uri(path)
            .header(http::header::HOST, "host")
            .header(http::header::CONTENT_TYPE, "application/json")
            .body(Full::new(body))
            .map_err(|cause| Problem::new(Code::Internal, format!("cannot build the request {path}: {cause}")))
    }

    fn unreachable(&self, cause: &(dyn std::error::Error + 'static)) -> Problem {
        Problem::new(Code::Unreachable, format!("the host at {} does not answer: {cause}", self.socket.display()))
    }
}

/// A refusal as the host worded it, or the bare status where it did not.
fn refusal(status: StatusCode, body: &[u8]) -> Problem {
    serde_json::from_slice(body).unwrap_or_else(|_| {
        let text: String = String::from_utf8_lossy(body).chars().take(200).collect();
        Problem::new(Code::Internal, format!("the host answered {status}: {text}"))
    })
}

fn encode<T: Serialize>(value: &T) -> Result<Bytes, Problem> {
    let text = serde_json::to_vec(value);
    text.map(Bytes::from).map_err(|cause| Problem::new(Code::Internal, format!("cannot write JSON: {cause}")))
}

pub(crate) fn within(deadline: Duration) -> Result<Bytes, Problem> {
    encode(&DrainRequest { deadline_ms: u64::try_from(deadline.as_millis()).unwrap_or(u64::MAX) })
}

/// The frames of a run out of a response body.
struct Frames {
    body: Incoming,
    buffer: BytesMut,
    _sender: SendRequest<Full<Bytes>>,
}

impl Frames {
    async fn next(&mut self) -> Result<Option<RunFrame>, Problem> {
        loop {
            let frame = RunFrame::decode(&mut self.buffer);
            if let Some(frame) = frame.map_err(|cause| Problem::new(Code::Internal, cause.to_string()))? {
                return Ok(Some(frame));
            }
            let Some(Ok(frame)) = self.body.frame().await else { return Ok(None) };
            if let Ok(data) = frame.into_data() {
                self.buffer.extend_from_slice(&data);
            }
        }
    }
}

/// Newline-delimited JSON out of a response body, with a bound on what one line may hold.
struct Lines {
    body: Incoming,
    buffer: BytesMut,
    skipping: bool,
    _sender: SendRequest<Full<Bytes>>,
}

impl Lines {
    async fn next<T: DeserializeOwned>(&mut self) -> Option<T> {
        loop {
            while let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') {
                let line = self.buffer.split_to(end + 1);
                if std::mem::take(&mut self.skipping) {
                    continue;
                }
                if let Ok(line) = serde_json::from_slice(&line) {
                    return Some(line);
                }
            }
            if self.buffer.len() > MAX_LINE {
                self.buffer.clear();
                self.skipping = true;
            }
            let frame = self.body.frame().await?.ok()?;
            if let Ok(data) = frame.into_data() {
                self.buffer.extend_from_slice(&data);
            }
        }
    }
}
