//! One client connection of HTTP/2 with prior knowledge. The protocol itself is hyper's, with its bounds; the requests go
//! through the same checks, the same routing and the same connections to hosts as those of HTTP/1.

use std::convert::Infallible;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpStream;
use tokio::time::Instant;

use super::Worker;
use super::answer::Answer;
use super::bad::BadRequest;
use super::body::Framing;
use super::buffer::Buffer;
use super::call::{self, Exchange, HostBody};
use super::gate::Entered;
use super::gathered::Gathered;
use super::h1::Client;
use super::head::{MAX_FIELDS, MAX_HEAD, MAX_METHOD};
use super::meter;
use super::shard::Target;
use super::streams::{Deadline, Streams};
use super::table::Lookup;
use super::target::{check_path_and_query, host_name, path_of, routing_path};
use super::trace::Traced;
use super::upstream_head;

/// Flow control: what a client may send ahead on one stream, and on all streams of a connection together, bytes.
const STREAM_WINDOW: u32 = 64 * 1024;
const CONNECTION_WINDOW: u32 = 1024 * 1024;
/// Bytes buffered towards a client that reads slowly, per stream.
const SEND_BUFFER: usize = 64 * 1024;
/// An idle connection is asked for a sign of life so often, and closed when none comes.
const PING_EVERY: Duration = Duration::from_secs(20);

/// Serves a connection whose first bytes (the preface) are in `buffer`.
pub(super) async fn serve(worker: Arc<Worker>, stream: TcpStream, client: Client, buffer: Buffer) {
    let draining = worker.draining.clone();
    let last_used = Arc::new(std::sync::Mutex::new(Activity { open: 0, since: Instant::now() }));
    let (keep_alive, stall) = (worker.config.keep_alive, worker.config.body_timeout);
    let request_timeout = worker.config.request_timeout;
    let mut builder = http2::Builder::new(Streams { stall });
    builder
        .timer(TokioTimer::new())
        .max_concurrent_streams(worker.config.h2_streams)
        .max_header_list_size(u32::try_from(MAX_HEAD).unwrap_or(u32::MAX))
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_send_buf_size(SEND_BUFFER)
        .keep_alive_interval(PING_EVERY)
        .keep_alive_timeout(PING_EVERY / 2);
    let client = Arc::new(client);
    let service = service_fn({
        let last_used = Arc::clone(&last_used);
        move |request| {
            let mut busy = Busy::new(&last_used, &worker);
            let (worker, client) = (Arc::clone(&worker), Arc::clone(&client));
            async move {
                let until = Instant::now() + request_timeout;
                let response = respond(worker, &client, request, until, &mut busy.traced).await;
                let response =
                    response.unwrap_or_else(|answer| answer.into_response().map(|text| Source::Text(Some(text))));
                busy.status = Some(response.status());
                let taking = Taking { deadline: Deadline::here(), stall, until };
                taking.waits_for_client();
                Ok::<_, Infallible>(response.map(|source| H2Body { source, busy: Some(busy), taking }))
            }
        }
    });
    let io = TokioIo::new(Prefixed { buffer, stream });
    let mut connection = pin!(builder.serve_connection(io, service));
    let mut goodbye: Option<Instant> = None;
    // When the connection has had enough of a client that asks for nothing: first it is told, then left.
    let over = |goodbye: Option<Instant>| match goodbye {
        None => Activity::idle_until(&last_used, keep_alive),
        Some(said) => Activity::idle_until(&last_used, stall).max(said + stall),
    };
    loop {
        tokio::select! {
            result = &mut connection => {
                if let Err(error) = result {
                    tracing::debug!(%error, "an HTTP/2 connection failed");
                }
                return;
            }
            () = draining.cancelled(), if goodbye.is_none() => {
                goodbye = Some(Instant::now());
                connection.as_mut().graceful_shutdown();
            }
            () = tokio::time::sleep_until(over(goodbye)) => {
                let now = Instant::now();
                match goodbye {
                    _ if over(goodbye) > now => {}
                    None => {
                        goodbye = Some(now);
                        connection.as_mut().graceful_shutdown();
                    }
                    // What is left is what its client did not take.
                    Some(_) => return,
                }
            }
        }
    }
}

/// Streams that are open, or since when none is.
#[derive(Debug)]
struct Activity {
    open: usize,
    since: Instant,
}

impl Activity {
    fn idle_until(this: &std::sync::Mutex<Self>, keep_alive: Duration) -> Instant {
        let this = this.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if this.open > 0 { Instant::now() + keep_alive } else { this.since + keep_alive }
    }
}

/// One open stream, and the request on it.
struct Busy {
    activity: Arc<std::sync::Mutex<Activity>>,
    worker: Arc<Worker>,
    began: Instant,
    status: Option<http::StatusCode>,
    /// The whole answer was handed over.
    whole: bool,
    traced: Option<Traced>,
}

impl Busy {
    fn new(activity: &Arc<std::sync::Mutex<Activity>>, worker: &Arc<Worker>) -> Self {
        activity.lock().unwrap_or_else(std::sync::PoisonError::into_inner).open += 1;
        worker.meter.enter();
        let (activity, worker) = (Arc::clone(activity), Arc::clone(worker));
        Self { activity, worker, began: Instant::now(), status: None, whole: false, traced: None }
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        let status = self.status.filter(|_| self.whole);
        if let (Some(traced), Some(status)) = (&mut self.traced, status) {
            traced.answered(status);
        }
        let class = status.map_or(meter::ABORTED, meter::class);
        self.worker.meter.leave(self.began, class);
        let mut activity = self.activity.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        activity.open = activity.open.saturating_sub(1);
        activity.since = Instant::now();
    }
}

async fn respond(
    worker: Arc<Worker>,
    client: &Client,
    request: Request<Incoming>,
    until: Instant,
    traced: &mut Option<Traced>,
) -> Result<Response<Source>, Answer> {
    let (parts, body) = request.into_parts();
    let host = checked_host(&parts).map_err(Answer::bad)?;
    let framing = match (body.is_end_stream(), body.size_hint().exact()) {
        (true, _) => Framing::None,
        (false, Some(length)) => Framing::Length(length),
        (false, None) => Framing::Chunked,
    };
    let mut target = route(&worker, client, &parts, &host, framing, traced)?;
    if parts.method == http::Method::TRACE && framing != Framing::None {
        return Err(Answer::bad(BadRequest::Framing));
    }
    let entered = target.gate.enter().map_err(Answer::over_quota)?;
    let mut body = Gathered::of(body);
    let mut rerouted = false;
    let call::Answered { head, source } = loop {
        let again = if rerouted { None } else { body.again() };
        let head = call::head(&parts, &host, framing, &client.forwarded, &target, traced.as_ref().map(Traced::header));
        let exchange = Exchange {
            gateway: &worker.gateway,
            target: &target,
            head: &head,
            to_head: parts.method == http::Method::HEAD,
            idempotent: parts.method.is_idempotent(),
            stall: worker.config.body_timeout,
            until,
        };
        let answered = exchange.send(framing, body).await?;
        match again {
            Some(again) if answered.is_stale() => {
                rerouted = true;
                body = again;
                target = route(&worker, client, &parts, &host, framing, traced)?;
            }
            _ => break answered,
        }
    };
    let source = Source::Host { body: Some(source), worker, _target: target, _entered: entered };
    Ok(Response::from_parts(head, source))
}

/// Finds the route of a request as the table is now.
fn route(
    worker: &Worker,
    client: &Client,
    parts: &http::request::Parts,
    host: &str,
    framing: Framing,
    traced: &mut Option<Traced>,
) -> Result<Arc<Target>, Answer> {
    let path_and_query = parts.uri.path_and_query().map_or("/", |path| path.as_str()).as_bytes();
    check_path_and_query(path_and_query).map_err(Answer::bad)?;
    let name = host_name(host.as_bytes()).map_err(Answer::bad)?;
    let mut scratch = Vec::new();
    let path = routing_path(path_of(path_and_query), &mut scratch);
    let table = worker.routes.load();
    let entry = match table.lookup(name, path, parts.method.as_str().as_bytes()) {
        Lookup::Found(entry) => entry,
        Lookup::MethodNotAllowed(allow) => return Err(Answer::method_not_allowed(allow)),
        Lookup::NotFound => {
            let help = client.is_local.then_some((host.as_bytes(), path_of(path_and_query)));
            return Err(Answer::not_found(help));
        }
    };
    if traced.is_none() {
        let incoming = upstream_head::traceparent(&parts.headers);
        *traced = Traced::begin(worker.config.exporter.as_ref(), incoming);
    }
    if let Some(traced) = traced {
        traced.asks(parts.method.as_str().as_bytes(), path_of(path_and_query), name, entry);
    }
    let target = &entry.target;
    if matches!(framing, Framing::Length(length) if length > target.request_body) {
        return Err(Answer::too_large(target.request_body));
    }
    Ok(Arc::clone(target))
}

/// The authority of a request: `:authority` or `host`, the same if both are there, and the other rules of a head.
pub(super) fn checked_host(parts: &http::request::Parts) -> Result<String, BadRequest> {
    // The same request has its authority in a field where it is written in HTTP/1.
    let host = usize::from(!parts.headers.contains_key(http::header::HOST));
    if parts.headers.len() + host > MAX_FIELDS {
        return Err(BadRequest::HeadTooLarge);
    }
    if parts.method == http::Method::CONNECT {
        return Err(BadRequest::Upgrade);
    }
    if parts.method.as_str().len() > MAX_METHOD {
        return Err(BadRequest::RequestLine);
    }
    let mut hosts = parts.headers.get_all(http::header::HOST).iter();
    let field = hosts.next().map(|value| value.to_str().map_err(|_| BadRequest::Host)).transpose()?;
    if hosts.next().is_some() {
        return Err(BadRequest::Host);
    }
    let authority = parts.uri.authority().map(http::uri::Authority::as_str);
    match (authority, field) {
        (Some(authority), Some(field)) if !authority.eq_ignore_ascii_case(field) => Err(BadRequest::HostMismatch),
        (Some(host), _) | (None, Some(host)) => Ok(host.to_owned()),
        (None, None) => Err(BadRequest::Host),
    }
    .and_then(|host| call::check_fields(&parts.headers).map(|()| host))
}

/// A response body on its way to a client of HTTP/2.
struct H2Body {
    source: Source,
    busy: Option<Busy>,
    taking: Taking,
}

enum Source {
    Text(Option<Bytes>),
    /// The target is held until the end: a revision leaves when nobody holds one any more.
    Host {
        body: Option<HostBody>,
        worker: Arc<Worker>,
        _target: Arc<Target>,
        _entered: Entered,
    },
}

/// Whose turn it is: that of the client, which has so long to take what is there, or that of the host.
struct Taking {
    deadline: Arc<Deadline>,
    stall: Duration,
    /// When the whole request has to be over.
    until: Instant,
}

impl Taking {
    fn waits_for_client(&self) {
        self.deadline.set(self.until.min(Instant::now() + self.stall));
    }

    fn waits_for_host(&self) {
        self.deadline.set(self.until);
    }
}

impl Body for H2Body {
    type Data = Bytes;
    type Error = std::io::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let this = &mut *self;
        match &mut this.source {
            Source::Text(text) => {
                Poll::Ready(text.take().filter(|text| !text.is_empty()).map(|text| Ok(Frame::data(text))))
            }
            Source::Host { body, worker, .. } => {
                let Some(source) = body else { return Poll::Ready(None) };
                let Poll::Ready(data) = source.poll_data(cx) else {
                    this.taking.waits_for_host();
                    return Poll::Pending;
                };
                this.taking.waits_for_client();
                if source.is_done()
                    && let Some(source) = body.take()
                {
                    source.give_back(&worker.gateway);
                    if let Some(mut busy) = this.busy.take() {
                        busy.whole = true;
                    }
                }
                Poll::Ready(data.map(|data| data.map(Frame::data)))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.source {
            Source::Text(text) => text.as_ref().is_none_or(Bytes::is_empty),
            Source::Host { body, .. } => body.as_ref().is_none_or(HostBody::is_done),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.source {
            Source::Text(text) => SizeHint::with_exact(text.as_ref().map_or(0, |text| text.len() as u64)),
            Source::Host { body, .. } => match body.as_ref().map_or(Some(0), HostBody::left) {
                Some(left) => SizeHint::with_exact(left),
                None => SizeHint::default(),
            },
        }
    }
}

impl Drop for H2Body {
    fn drop(&mut self) {
        // A response without a body, or with a text of our own, need not be polled to its end.
        if let Some(busy) = &mut self.busy {
            busy.whole |= match &self.source {
                Source::Text(_) => true,
                Source::Host { body, .. } => body.as_ref().is_none_or(HostBody::is_done),
            };
        }
        if let Source::Host { body, worker, .. } = &mut self.source
            && let Some(source) = body.take_if(|body| body.is_done())
        {
            source.give_back(&worker.gateway);
        }
    }
}

/// A connection whose first bytes were read already.
struct Prefixed {
    buffer: Buffer,
    stream: TcpStream,
}

impl tokio::io::AsyncRead for Prefixed {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        to: &mut tokio::io::ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        if self.buffer.is_empty() {
            return Pin::new(&mut self.stream).poll_read(cx, to);
        }
        let take = self.buffer.data().len().min(to.remaining());
        to.put_slice(self.buffer.data().get(..take).unwrap_or_default());
        self.buffer.consume(take);
        Poll::Ready(Ok(()))
    }
}

impl tokio::io::AsyncWrite for Prefixed {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[std::io::IoSlice<'_>],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bytes)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}
