//! The typed client of the agent API: how a node (or a task driver) talks to a host over its `agent.sock`.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::stream::{BoxStream, StreamExt};
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
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
use crate::ndjson::LineBuffer;
use crate::run::{RunFrame, RunRequest};
use crate::{Code, Problem};

/// The largest answer to a step of a copy, bytes: a page of what is copied is the largest there is, but for what is bounded by
/// its asker.
const MAX_PAGE: usize = 16 << 20;
/// The largest answer to anything else, bytes.
const MAX_ANSWER: usize = 256 << 10;
/// The largest [`HostInfo`], bytes.
const MAX_INFO: usize = 1 << 20;
/// The longest line of `/v1/logs` and `/v1/spans`, bytes: 16 KiB of text, escaped, and its frame; 64 spans.
const MAX_LINE: usize = 256 << 10;
/// What a piece of those, or a line that is none, counts for at least, bytes: it is work however small it is.
const LEAST: usize = 256;
/// How long a host may take to start a revision: code that the node has compiled already is brought and linked.
const STARTS: Duration = Duration::from_secs(120);
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
        self.told("/v1/info", MAX_INFO).await
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
    /// As [`HostClient::start`]; [`Code::Unreachable`] also after two minutes.
    pub async fn start_encoded(&self, app: &AppName, revision: Revision, request: Bytes) -> Result<(), Problem> {
        let path = format!("/v1/apps/{app}/revisions/{revision}");
        let answer = tokio::time::timeout(STARTS, self.bytes(Method::PUT, &path, request)).await;
        answer.map_err(|late| self.unreachable(&late))?.map(drop)
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
        let path = format!("/v1/apps/{app}/copies/{id}{step}");
        self.read(&path, &self.bounded(method, &path, encode(request)?, MAX_PAGE).await?)
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
        let mut sender = self.connect().await.map_err(|cause| Problem::new(Code::NotFound, cause.detail))?;
        let answer = sender.send_request(self.request(Method::POST, &path, encode(call)?)?).await;
        let (status, body) = self.collect(answer.map_err(|cause| self.unreachable(&cause))?, MAX_ANSWER).await?;
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
            let (status, body) = self.collect(answer, MAX_ANSWER).await?;
            return Err(refusal(status, &body));
        }
        let state = Frames { body: answer.into_body(), buffer: BytesMut::new(), _sender: sender };
        let frames = futures::stream::unfold(state, |mut frames| async {
            let frame = frames.next().await.transpose()?;
            Some((frame, frames))
        });
        Ok(frames.boxed())
    }

    /// Counters and memory, in at most so many bytes: whoever asks knows how much there is to say.
    ///
    /// # Errors
    /// As [`HostClient::info`].
    pub async fn status(&self, most: usize) -> Result<HostStatus, Problem> {
        self.told("/v1/status", most).await
    }

    /// Everything the host counted, over all revisions, in at most so many bytes.
    ///
    /// # Errors
    /// As [`HostClient::info`].
    pub async fn metrics(&self, most: usize) -> Result<HostMetrics, Problem> {
        self.told("/v1/metrics", most).await
    }

    /// Ends the host: calls in flight have until `deadline`, then the process exits 0.
    ///
    /// # Errors
    /// As [`HostClient::info`].
    pub async fn drain(&self, deadline: Duration) -> Result<Drained, Problem> {
        self.json(Method::POST, "/v1/drain", within(deadline)?).await
    }

    /// Every log line from now on; the stream ends when the host does. Lines that cannot be read are skipped. Before bytes
    /// are looked at, `pace` is told how many there are: it takes them, or says how long to wait before it is told again.
    ///
    /// # Errors
    /// As [`HostClient::info`].
    pub async fn logs(
        &self,
        pace: impl FnMut(usize) -> Option<Duration> + Send + 'static,
    ) -> Result<BoxStream<'static, LogLine>, Problem> {
        self.stream("/v1/logs", pace).await
    }

    /// Every span from now on; the stream ends when the host does. Of the traces that begin at the host, the part
    /// `roots` is recorded, 0 to 1. `pace` is that of [`HostClient::logs`].
    ///
    /// # Errors
    /// As [`HostClient::info`].
    pub async fn spans(
        &self,
        roots: f64,
        pace: impl FnMut(usize) -> Option<Duration> + Send + 'static,
    ) -> Result<BoxStream<'static, SpanBatch>, Problem> {
        self.stream(&format!("/v1/spans?roots={roots}"), pace).await
    }

    async fn stream<T: DeserializeOwned + Send + 'static>(
        &self,
        path: &str,
        pace: impl FnMut(usize) -> Option<Duration> + Send + 'static,
    ) -> Result<BoxStream<'static, T>, Problem> {
        let mut sender = self.connect().await?;
        let answer = sender.send_request(self.request(Method::GET, path, Bytes::new())?).await;
        let answer = answer.map_err(|cause| self.unreachable(&cause))?;
        if answer.status() != StatusCode::OK {
            let (status, body) = self.collect(answer, MAX_LINE).await?;
            return Err(refusal(status, &body));
        }
        let state = Lines { body: answer.into_body(), buffer: LineBuffer::new(MAX_LINE), pace, _sender: sender };
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
        self.read(path, &self.bytes(method, path, body).await?)
    }

    async fn told<T: DeserializeOwned>(&self, path: &str, most: usize) -> Result<T, Problem> {
        self.read(path, &self.bounded(Method::GET, path, Bytes::new(), most).await?)
    }

    fn read<T: DeserializeOwned>(&self, path: &str, body: &[u8]) -> Result<T, Problem> {
        serde_json::from_slice(body).map_err(|cause| {
            let socket = self.socket.display();
            Problem::new(Code::Internal, format!("the host at {socket} answered {path} with unreadable JSON: {cause}"))
        })
    }

    async fn bytes(&self, method: Method, path: &str, body: Bytes) -> Result<Bytes, Problem> {
        self.bounded(method, path, body, MAX_ANSWER).await
    }

    async fn bounded(&self, method: Method, path: &str, body: Bytes, most: usize) -> Result<Bytes, Problem> {
        let (status, body) = self.exchange(method, path, body, most).await?;
        if status.is_success() { Ok(body) } else { Err(refusal(status, &body)) }
    }

    async fn exchange(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
        most: usize,
    ) -> Result<(StatusCode, Bytes), Problem> {
        // A kept connection may have been closed meanwhile. Every request that comes here may be sent twice, so a failure
        // on a kept connection is tried once more on a new one.
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner).pop();
        if let Some(mut sender) = kept.filter(|sender| !sender.is_closed())
            && sender.ready().await.is_ok()
            && let Ok(answer) = sender.send_request(self.request(method.clone(), path, body.clone())?).await
        {
            return self.finish(sender, answer, most).await;
        }
        let mut sender = self.connect().await?;
        let answer = sender.send_request(self.request(method, path, body)?).await;
        let answer = answer.map_err(|cause| self.unreachable(&cause))?;
        self.finish(sender, answer, most).await
    }

    async fn finish(
        &self,
        sender: SendRequest<Full<Bytes>>,
        answer: Response<Incoming>,
        most: usize,
    ) -> Result<(StatusCode, Bytes), Problem> {
        let done = self.collect(answer, most).await?;
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() < KEPT && !sender.is_closed() {
            kept.push(sender);
        }
        Ok(done)
    }

    async fn collect(&self, answer: Response<Incoming>, most: usize) -> Result<(StatusCode, Bytes), Problem> {
        let (status, mut body) = (answer.status(), answer.into_body());
        // One piece of memory, however small the pieces are that it comes in.
        let mut whole = BytesMut::new();
        while let Some(frame) = body.frame().await {
            let Ok(data) = frame.map_err(|cause| self.unreachable(&cause))?.into_data() else { continue };
            if data.len() > most.saturating_sub(whole.len()) {
                let what = format!("the host at {} answered more than {most} bytes", self.socket.display());
                return Err(Problem::new(Code::Unreachable, what));
            }
            whole.extend_from_slice(&data);
        }
        Ok((status, whole.freeze()))
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

/// The longest text of a refusal that is passed on, bytes.
const MAX_TEXT: usize = 16 << 10;

/// A refusal as the host worded it, or the bare status where it did not; as text that people may be shown.
fn refusal(status: StatusCode, body: &[u8]) -> Problem {
    let said: Problem = serde_json::from_slice(body).unwrap_or_else(|_| {
        let text: String = String::from_utf8_lossy(body).chars().take(200).collect();
        Problem::new(Code::Internal, format!("the host answered {status}: {text}"))
    });
    said.shown(MAX_TEXT)
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

/// Newline-delimited JSON out of a response body, with a bound on what one line may hold, at the reader's pace.
struct Lines<P> {
    body: Incoming,
    buffer: LineBuffer,
    pace: P,
    _sender: SendRequest<Full<Bytes>>,
}

impl<P: FnMut(usize) -> Option<Duration>> Lines<P> {
    async fn next<T: DeserializeOwned>(&mut self) -> Option<T> {
        loop {
            while let Some(line) = self.buffer.line() {
                match serde_json::from_slice(&line) {
                    Ok(line) => return Some(line),
                    Err(_) => self.pay(LEAST).await,
                }
            }
            let frame = self.body.frame().await?.ok()?;
            if let Ok(data) = frame.into_data() {
                self.pay(data.len().max(LEAST)).await;
                self.buffer.push(&data);
            }
        }
    }

    async fn pay(&mut self, bytes: usize) {
        while let Some(wait) = (self.pace)(bytes) {
            tokio::time::sleep(wait).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::UnixListener;

    use super::*;

    /// A host that answers one request with so many bytes of text, each in a piece of its own.
    async fn asked(count: usize) -> Result<String, Problem> {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("s");
        let listener = UnixListener::bind(&socket).unwrap();
        let host = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            drop(stream.read(&mut [0; 4096]).await);
            let head = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";
            let body =
                [b"1\r\n\"\r\n".to_vec(), b"1\r\nx\r\n".repeat(count), b"1\r\n\"\r\n0\r\n\r\n".to_vec()].concat();
            // Whoever has enough does not read the rest.
            drop(stream.write_all(&[&head[..], &body].concat()).await);
            drop(stream.read(&mut [0; 1]).await);
        });
        let answer = HostClient::new(socket).json(Method::GET, "/x", Bytes::new()).await;
        host.abort();
        answer
    }

    #[tokio::test]
    async fn an_answer_in_the_smallest_pieces_is_whole_and_one_that_is_too_large_is_none() {
        assert_eq!(asked(10_000).await.unwrap(), "x".repeat(10_000));
        assert_eq!(asked(MAX_ANSWER).await.unwrap_err().code, Code::Unreachable);
    }

    #[tokio::test(start_paused = true)]
    async fn a_start_that_is_not_answered_ends() {
        let dir = tempfile::tempdir().unwrap();
        let _nobody = UnixListener::bind(dir.path().join("s")).unwrap();
        let client = HostClient::new(dir.path().join("s"));
        let started = client.start_encoded(&"a".parse().unwrap(), Revision(1), Bytes::new()).await;
        assert_eq!(started.unwrap_err().code, Code::Unreachable);
    }
}
