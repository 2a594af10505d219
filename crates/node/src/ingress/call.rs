//! Requests that do not come as bytes of HTTP/1: those of HTTP/2 clients, and calls from inside the node. They get the
//! same head, the same shard and the same checks of the answer.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use api::shares::Held;
use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response};
use http_body::Body;
use http_body_util::{BodyExt as _, Full};
use tokio::io::{AsyncRead, ReadBuf};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::oneshot;
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

use super::answer::Answer;
use super::bad::BadRequest;
use super::body::{Decoder, Framing, LAST_CHUNK, begin_chunk, end_chunk};
use super::buffer::Buffer;
use super::fields::{Class, Field, class};
use super::gateway::{Attempt, Gateway, Lease};
use super::pool::Upstream;
use super::pump::{self, ResponseEnd};
use super::response::{ResponseHead, is_stale};
use super::shard::{InFlight, Target};
use super::target::{check_path_and_query, host_name};
use super::upstream_head::{self, Forwarded};
use super::wire::{send, write_all};

/// Bytes of a body that are handed over at once: how much a client has to take to be seen going on.
const PIECE: usize = 16 * 1024;
/// How long an answer that is read whole waits for room in memory.
const ROOM: Duration = Duration::from_secs(5);

/// Refuses fields that could be taken for framing, as the reader of HTTP/1 heads does.
pub(super) fn check_fields(headers: &HeaderMap) -> Result<(), BadRequest> {
    for (name, value) in headers {
        match class(name.as_str().as_bytes()) {
            Class::Disguised | Class::TransferEncoding => return Err(BadRequest::Framing),
            Class::Upgrade => return Err(BadRequest::Upgrade),
            Class::Expect if !value.as_bytes().eq_ignore_ascii_case(b"100-continue") => return Err(BadRequest::Expect),
            _ => {}
        }
    }
    Ok(())
}

/// Writes the head a host gets for a parsed request.
pub(super) fn head(
    parts: &http::request::Parts,
    host: &str,
    framing: Framing,
    forwarded: &Forwarded,
    target: &Target,
    traced: Option<&[u8]>,
) -> Vec<u8> {
    let incoming = upstream_head::traceparent(&parts.headers);
    // HTTP/2 lets a client split it; HTTP/1 has it once (RFC 9113, 8.2.3).
    let cookies: Vec<&[u8]> = parts.headers.get_all(http::header::COOKIE).iter().map(HeaderValue::as_bytes).collect();
    let cookie = cookies.join(b"; ".as_slice());
    let cookie = Field { name: b"cookie", value: &cookie };
    let others = upstream_head::carried_on(&parts.headers, incoming.is_some());
    let others = others.filter(|field| field.name != cookie.name);
    let fields = others.chain((!cookies.is_empty()).then_some(cookie));
    let parts = upstream_head::Parts {
        method: parts.method.as_str().as_bytes(),
        path_and_query: parts.uri.path_and_query().map_or("/", |path| path.as_str()).as_bytes(),
        host: host.as_bytes(),
        framing,
        traceparent: traced.or(incoming),
    };
    let mut out = Vec::with_capacity(512);
    upstream_head::write(&mut out, &parts, fields, forwarded, target);
    out
}

/// One request on its way to a shard.
pub(super) struct Exchange<'a> {
    pub(super) gateway: &'a Gateway,
    pub(super) target: &'a Target,
    pub(super) head: &'a [u8],
    pub(super) to_head: bool,
    pub(super) idempotent: bool,
    /// Longest silence of the side that sends the request body.
    pub(super) stall: Duration,
    /// When the whole request has to be over.
    pub(super) until: Instant,
}

/// A response whose body is still to be read.
pub(super) struct Answered {
    pub(super) head: http::response::Parts,
    pub(super) source: HostBody,
}

/// A response body on its way from a host.
pub(super) struct HostBody {
    reader: HostReader,
    buffer: Buffer,
    decoder: Decoder,
    in_flight: InFlight,
    /// The host keeps its connection open after this response.
    reusable: bool,
}

/// The read side of a connection to a host.
enum HostReader {
    /// The request had no body: the connection can serve another one afterwards.
    Whole(UnixStream),
    /// A task sends, or has sent, the request body; it ends with the response, whatever is left to send.
    Half(OwnedReadHalf, #[allow(dead_code, reason = "held for its drop")] AbortOnDropHandle<()>),
}

impl AsyncRead for HostReader {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, to: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Whole(stream) => Pin::new(stream).poll_read(cx, to),
            Self::Half(half, _) => Pin::new(half).poll_read(cx, to),
        }
    }
}

impl HostBody {
    /// The next piece of the body; `None` at its end.
    pub(super) fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Option<io::Result<Bytes>>> {
        let broken = || io::Error::from(io::ErrorKind::UnexpectedEof);
        while !self.decoder.is_done() {
            if self.buffer.is_empty() && ready!(self.buffer.poll_fill(cx, &mut self.reader))? == 0 {
                return Poll::Ready(Some(Err(broken())));
            }
            let here = self.buffer.data();
            let step = self.decoder.step(here.get(..PIECE).unwrap_or(here)).map_err(|_| broken())?;
            let data = Bytes::copy_from_slice(self.buffer.data().get(step.data).unwrap_or_default());
            self.buffer.consume(step.consumed);
            if !data.is_empty() {
                return Poll::Ready(Some(Ok(data)));
            }
        }
        Poll::Ready(None)
    }

    /// Nothing is left to read.
    pub(super) fn is_done(&self) -> bool {
        self.decoder.is_done()
    }

    /// Bytes still to come, if that is known.
    pub(super) fn left(&self) -> Option<u64> {
        match self.decoder {
            Decoder::Length(left) => Some(left),
            Decoder::Chunked(_) => None,
        }
    }

    /// After the end: the connection serves the next request, if it can.
    pub(super) fn give_back(self, gateway: &Gateway) {
        if let (HostReader::Whole(stream), true) = (self.reader, self.reusable && self.decoder.is_done()) {
            gateway.put(self.in_flight.shard(), Upstream { stream, buffer: self.buffer });
        }
    }
}

impl Exchange<'_> {
    /// Sends the request and reads the response's head.
    pub(super) async fn send<B>(&self, framing: Framing, body: B) -> Result<Answered, Answer>
    where
        B: Body<Data = Bytes, Error: Send> + Send + Unpin + 'static,
    {
        tokio::time::timeout_at(self.until, self.send_unbounded(framing, body))
            .await
            .unwrap_or_else(|_| Err(Answer::timed_out()))
    }

    async fn send_unbounded<B>(&self, framing: Framing, body: B) -> Result<Answered, Answer>
    where
        B: Body<Data = Bytes, Error: Send> + Send + Unpin + 'static,
    {
        let mut attempt = Attempt::default();
        let mut body = Some(body);
        loop {
            let mut lease =
                self.gateway.lease(self.target, &mut attempt).await.map_err(|_| Answer::no_shard(self.target))?;
            if let Err(sent) = send(&mut lease.upstream.stream, self.head).await
                && sent == 0
                && lease.pooled
            {
                attempt.fresh = true;
                continue;
            }
            let may_repeat = lease.pooled && self.idempotent && !framing.has_body();
            let body = if framing.has_body() { body.take() } else { None };
            match self.receive(lease, framing, body).await {
                Err(Lost::Nothing) if may_repeat => attempt.fresh = true,
                Err(Lost::Nothing | Lost::Broken) => return Err(Answer::host_gone()),
                Err(Lost::Answer(answer)) => return Err(answer),
                Ok(answered) => return Ok(answered),
            }
        }
    }

    async fn receive<B>(&self, lease: Lease, framing: Framing, body: Option<B>) -> Result<Answered, Lost>
    where
        B: Body<Data = Bytes, Error: Send> + Send + Unpin + 'static,
    {
        let (Upstream { stream, mut buffer }, in_flight) = lease.into_parts();
        let (failed, failure) = oneshot::channel();
        let mut reader = match body {
            None => HostReader::Whole(stream),
            Some(body) => {
                let (reader, writer) = stream.into_split();
                let task = send_body(writer, framing, body, self.target.request_body, self.stall, failed);
                HostReader::Half(reader, AbortOnDropHandle::new(tokio::spawn(task)))
            }
        };
        let mut failure = std::pin::pin!(failure);
        let mut sending = matches!(reader, HostReader::Half(..));
        let mut interim = 0;
        while interim <= pump::MAX_INTERIM {
            let length = tokio::select! {
                biased;
                head = pump::response_head(&mut reader, &mut buffer) => head?,
                result = &mut failure, if sending => {
                    sending = false;
                    match result {
                        Ok(answer) => return Err(Lost::Answer(answer)),
                        Err(_) => continue,
                    }
                }
            };
            let bytes = buffer.data().get(..length).unwrap_or_default();
            let parsed = ResponseHead::parse(bytes, self.to_head).map_err(|_| Lost::Broken)?;
            if parsed.status == http::StatusCode::SWITCHING_PROTOCOLS {
                return Err(Lost::Broken);
            }
            if parsed.status.is_informational() {
                interim += 1;
                buffer.consume(length);
                continue;
            }
            let head = to_parts(&parsed).ok_or(Lost::Broken)?;
            let (decoder, reusable) = (parsed.framing.decoder(), !parsed.close);
            buffer.consume(length);
            return Ok(Answered { head, source: HostBody { reader, buffer, decoder, in_flight, reusable } });
        }
        Err(Lost::Broken)
    }
}

enum Lost {
    Nothing,
    Broken,
    Answer(Answer),
}

impl From<ResponseEnd> for Lost {
    fn from(end: ResponseEnd) -> Self {
        match end {
            ResponseEnd::Nothing => Self::Nothing,
            ResponseEnd::Broken | ResponseEnd::ClientGone => Self::Broken,
        }
    }
}

/// Sends a body, then keeps the write half open until the task is aborted. A failure that deserves an answer is reported; the
/// write half is dropped, so the host sees that the request was cut short.
async fn send_body<B>(
    mut to: OwnedWriteHalf,
    framing: Framing,
    mut body: B,
    limit: u64,
    stall: Duration,
    failed: oneshot::Sender<Answer>,
) where
    B: Body<Data = Bytes, Error: Send> + Send + Unpin + 'static,
{
    let chunks = framing == Framing::Chunked;
    let mut left = limit;
    let mut out = Vec::new();
    let answer = loop {
        let frame = match tokio::time::timeout(stall, body.frame()).await {
            Err(_) => break Some(Answer::client_timeout()),
            Ok(Some(Err(_))) => break Some(Answer::bad(BadRequest::Framing)),
            Ok(Some(Ok(frame))) => frame,
            Ok(None) => {
                let end: &[u8] = if chunks { LAST_CHUNK } else { b"" };
                // The host may have answered without reading the body; then the response says what it is worth.
                let _ = write_all(&mut to, end, Duration::MAX).await;
                break None;
            }
        };
        // Trailers end here, as those of HTTP/1 do.
        let Ok(data) = frame.into_data() else { continue };
        let Some(rest) = left.checked_sub(data.len() as u64) else { break Some(Answer::too_large(limit)) };
        left = rest;
        if data.is_empty() {
            continue;
        }
        out.clear();
        if chunks {
            begin_chunk(data.len(), &mut out);
        }
        out.extend_from_slice(&data);
        if chunks {
            end_chunk(&mut out);
        }
        if write_all(&mut to, &out, Duration::MAX).await.is_err() {
            break None;
        }
    };
    if let Some(answer) = answer {
        // Nobody waits for it once the response has begun.
        let _ = failed.send(answer);
        return;
    }
    // Closing the write half would tell the host that the client is gone.
    let _open = to;
    std::future::pending::<()>().await;
}

fn to_parts(head: &ResponseHead<'_>) -> Option<http::response::Parts> {
    let mut response = Response::new(());
    *response.status_mut() = head.status;
    for field in &head.fields {
        let name = HeaderName::from_bytes(field.name).ok()?;
        response.headers_mut().append(name, HeaderValue::from_bytes(field.value).ok()?);
    }
    if let Some(length) = head.content_length() {
        response.headers_mut().insert(http::header::CONTENT_LENGTH, HeaderValue::from(length));
    }
    Some(response.into_parts().0)
}

/// What answers that are read whole may take of memory.
#[derive(Debug)]
pub struct Room {
    /// Bytes of one.
    pub most: usize,
    /// Its tenant's part of what all of them together have. An answer has it for as long as it is there.
    pub held: Held,
}

/// An answer that was read whole, and its room.
struct Whole {
    bytes: BytesMut,
    _room: Held,
}

impl AsRef<[u8]> for Whole {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

/// Sends one request to a component and reads its whole answer, where there is room for it. Everything that goes wrong
/// comes back as a response with [`api::agent::FAULT_HEADER`]; nothing else is different from a request that came through
/// the ingress.
pub async fn forward(target: &Target, request: Request<Bytes>, within: Duration, room: Room) -> Response<Bytes> {
    forward_inner(target, request, within, room).await.unwrap_or_else(Answer::into_response)
}

async fn forward_inner(
    target: &Target,
    request: Request<Bytes>,
    within: Duration,
    room: Room,
) -> Result<Response<Bytes>, Answer> {
    let (parts, body) = request.into_parts();
    if body.len() as u64 > target.request_body {
        return Err(Answer::too_large(target.request_body));
    }
    let path = parts.uri.path_and_query().map_or("/", |path| path.as_str());
    check_path_and_query(path.as_bytes()).map_err(Answer::bad)?;
    check_fields(&parts.headers).map_err(Answer::bad)?;
    let named = parts.headers.get(http::header::HOST).and_then(|host| host.to_str().ok());
    let host = named.or(parts.uri.authority().map(http::uri::Authority::as_str)).unwrap_or("localhost").to_owned();
    host_name(host.as_bytes()).map_err(Answer::bad)?;
    let framing = if body.is_empty() { Framing::None } else { Framing::Length(body.len() as u64) };
    let until = Instant::now() + within;
    let forwarded = Forwarded::new(std::net::Ipv4Addr::LOCALHOST.into());
    let head = head(&parts, &host, framing, &forwarded, target, None);
    // Its own connection, closed afterwards: calls from inside are rare and come from any thread.
    let gateway = Gateway::new(within.min(Duration::from_millis(1500)), usize::MAX);
    let exchange = Exchange {
        gateway: &gateway,
        target,
        head: &head,
        to_head: parts.method == http::Method::HEAD,
        idempotent: parts.method.is_idempotent(),
        stall: within,
        until,
    };
    let mut answered = exchange.send(framing, Full::new(body)).await?;
    let read = answered.read_body(room);
    let body = tokio::time::timeout_at(until, read).await.map_err(|_| Answer::timed_out())??;
    Ok(Response::from_parts(answered.head, body))
}

impl Answered {
    /// As [`is_stale`].
    pub(super) fn is_stale(&self) -> bool {
        is_stale(self.head.status, self.head.headers.get(api::agent::FAULT_HEADER).map(HeaderValue::as_bytes))
    }

    /// Room is taken for what has arrived, and waited for a moment only: answers that are half read cannot wait for each
    /// other for ever.
    async fn read_body(&mut self, mut room: Room) -> Result<Bytes, Answer> {
        let mut bytes = BytesMut::new();
        while let Some(data) = poll_fn(|cx| self.source.poll_data(cx)).await {
            let data = data.map_err(|_| Answer::host_gone())?;
            let size = bytes.len().saturating_add(data.len());
            if size > room.most {
                return Err(Answer::answer_too_large(room.most));
            }
            tokio::time::timeout(ROOM, room.held.more(data.len())).await.map_err(|_| Answer::no_room())?;
            bytes.extend_from_slice(&data);
        }
        Ok(Bytes::from_owner(Whole { bytes, _room: room.held }))
    }
}
