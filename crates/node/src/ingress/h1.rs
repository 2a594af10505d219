//! One client connection of HTTP/1: request after request, each read strictly, sent to a shard, and its answer brought
//! back. Written for one purpose instead of a general client and server back to back: one read and one write per
//! request, and its share of those of a [line](super::line); where the request or its answer is not whole, two of each.

mod exchange;

use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use http::StatusCode;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::time::{Instant, timeout};
use tokio_util::sync::WaitForCancellationFutureOwned;

use super::Worker;
use super::answer::Answer;
use super::body::Framing;
use super::buffer::Buffer;
use super::gateway::{Attempt, Way};
use super::head::{Head, HeadScan};
use super::shard::Target;
use super::table::Lookup;
use super::target::routing_path;
use super::trace::Traced;
use super::upstream_head::{self, Forwarded};
use super::wire::{Timer, write_all};

/// After an answer that ends the connection, so long and so many bytes are read and thrown away: a socket closed with
/// unread bytes resets the connection, and the client would not see the answer.
const LINGER: Duration = Duration::from_secs(1);
const LINGER_BYTES: usize = 1024 * 1024;
/// A connection that rests keeps no larger buffers than this, bytes.
const KEEP: usize = 16 << 10;

/// Who is at the other end.
#[derive(Debug, Clone)]
pub(super) struct Client {
    pub(super) is_local: bool,
    pub(super) forwarded: Forwarded,
}

impl Client {
    pub(super) fn new(ip: IpAddr) -> Self {
        Self { is_local: ip.to_canonical().is_loopback(), forwarded: Forwarded::new(ip) }
    }
}

/// Serves a connection until it ends.
pub(super) async fn serve(worker: Arc<Worker>, mut stream: TcpStream, client: Client, buffer: Buffer) {
    let (mut reader, mut writer) = stream.split();
    let mut connection = Connection {
        worker: &worker,
        client,
        reader: &mut reader,
        writer: &mut writer,
        buffer,
        out: Vec::new(),
        request: Vec::new(),
        scratch: Vec::new(),
        timer: Timer::new(Instant::now() + worker.config.keep_alive),
        draining: Box::pin(worker.draining.clone().cancelled_owned()),
        served: 0,
        answered: None,
        traced: None,
    };
    loop {
        let end = match connection.next_head().await {
            Ok(length) => {
                let mut measured = worker.meter.begin();
                let end = connection.request(length, measured.began()).await;
                let traced = connection.traced.take();
                if let Some(status) = connection.answered.take() {
                    measured.answered(status);
                    if let Some(mut traced) = traced {
                        traced.answered(status);
                    }
                }
                end
            }
            Err(end) => {
                // What is no request is refused all the same.
                if let Some(status) = connection.answered.take() {
                    worker.meter.begin().answered(status);
                }
                Err(end)
            }
        };
        match end {
            Ok(()) => {}
            Err(End::Close) => return,
            Err(End::Linger) => return connection.linger().await,
        }
    }
}

/// The connection serves no further request.
enum End {
    Close,
    /// An answer was sent though the client may still be sending.
    Linger,
}

/// What a request wants, once its head is read and routed.
struct Call {
    target: Arc<Target>,
    framing: Framing,
    expects_continue: bool,
    is_11: bool,
    keep_alive: bool,
    to_head: bool,
    idempotent: bool,
}

/// Why a call has no response.
enum Failed {
    /// The client is gone, or has a part of the response that cannot be taken back.
    Aborted,
    Answer(Answer),
    /// The pooled connection was dead; nothing was executed, or executing it twice does no harm.
    Again,
    /// The host does not have this revision any more: the route was read from the table before.
    Stale,
}

struct Connection<'a, 'b> {
    worker: &'a Worker,
    client: Client,
    reader: &'a mut ReadHalf<'b>,
    writer: &'a mut WriteHalf<'b>,
    /// From the client.
    buffer: Buffer,
    /// To the client.
    out: Vec<u8>,
    /// To the host: the head, and the body where it was all there.
    request: Vec<u8>,
    scratch: Vec<u8>,
    timer: Timer,
    draining: Pin<Box<WaitForCancellationFutureOwned>>,
    served: u64,
    /// The status of the answer that was sent whole, until it is counted.
    answered: Option<StatusCode>,
    /// The request's span, where it has one.
    traced: Option<Traced>,
}

impl Connection<'_, '_> {
    /// Reads until a whole request head is in the buffer; its length.
    async fn next_head(&mut self) -> Result<usize, End> {
        self.buffer.shrink();
        for buffer in [&mut self.out, &mut self.request] {
            if buffer.capacity() > KEEP {
                *buffer = Vec::new();
            }
        }
        let config = &self.worker.config;
        let mut scan = HeadScan::default();
        // A new connection is for a request; one that has served may rest.
        let patience = if self.served == 0 { config.header_timeout } else { config.keep_alive };
        let mut idle = true;
        let mut deadline = Instant::now() + patience;
        loop {
            if !self.buffer.is_empty() {
                match scan.look(self.buffer.data()) {
                    Ok(Some(length)) => return Ok(length),
                    Ok(None) if idle => {
                        idle = false;
                        deadline = Instant::now() + config.header_timeout;
                    }
                    Ok(None) => {}
                    Err(bad) => return Err(self.refuse(Answer::bad(bad)).await),
                }
                if self.buffer.is_full() {
                    return Err(self.refuse(Answer::heads_full()).await);
                }
            }
            let event = std::future::poll_fn(|cx| {
                if let Poll::Ready(read) = self.buffer.poll_fill(cx, self.reader) {
                    return Poll::Ready(Some(read.unwrap_or(0)));
                }
                if idle && self.draining.as_mut().poll(cx).is_ready() {
                    return Poll::Ready(Some(0));
                }
                self.timer.poll_until(cx, deadline).map(|()| None)
            });
            match event.await {
                Some(1..) => {}
                None if !idle => return Err(self.refuse(Answer::client_timeout()).await),
                _ => return Err(End::Close),
            }
        }
    }

    /// Serves the request whose head is the first `length` bytes of the buffer.
    async fn request(&mut self, length: usize, began: Instant) -> Result<(), End> {
        let mut call = match self.route(length) {
            Ok(call) => call,
            Err((answer, to_head)) => return self.answer(answer, to_head, length).await,
        };
        self.served = self.served.saturating_add(1);
        let _entered = match call.target.gate.enter() {
            Ok(entered) => entered,
            Err(refused) => {
                self.request.clear();
                let answer = Answer::over_quota(refused).closing(!call.keep_alive || call.framing.has_body());
                return self.answer(answer, call.to_head, length).await;
            }
        };
        let until = began + self.worker.config.request_timeout;
        // A body that is here already goes with the head, in one write, and can be sent again.
        let body = match call.framing {
            Framing::None => Some(0),
            Framing::Length(body) => usize::try_from(body).ok(),
            Framing::Chunked => None,
        };
        let available = self.buffer.data().len();
        let whole = body.and_then(|body| length.checked_add(body)).filter(|&end| end <= available);
        match whole {
            Some(end) => self.request.extend_from_slice(self.buffer.data().get(length..end).unwrap_or_default()),
            None => self.buffer.consume(length),
        }

        let mut attempt = Attempt::default();
        let mut rerouted = false;
        loop {
            let gateway = &self.worker.gateway;
            let way = if whole.is_some() && !call.to_head {
                gateway.send(&call.target, &mut attempt, &self.request).await
            } else {
                gateway.lease(&call.target, &mut attempt).await.map(Way::Connection)
            };
            let result = match way {
                Err(_) => Err(Failed::Answer(Answer::no_shard(&call.target))),
                Ok(Way::Connection(lease)) => self.exchange(lease, &call, whole.is_some(), rerouted, until).await,
                Ok(Way::Line(waiting, in_flight)) => self.on_line(waiting, in_flight, &call, rerouted, until).await,
            };
            let failed = match result {
                Ok(keep) => {
                    self.buffer.consume(whole.unwrap_or(0));
                    return if keep { Ok(()) } else { Err(End::Linger) };
                }
                Err(failed) => failed,
            };
            match failed {
                Failed::Again => attempt.fresh = true,
                Failed::Stale => {
                    rerouted = true;
                    call = match self.route(length) {
                        Ok(call) => call,
                        Err((answer, to_head)) => return self.answer(answer, to_head, length).await,
                    };
                    let body = self.buffer.data().get(length..whole.unwrap_or(length)).unwrap_or_default();
                    self.request.extend_from_slice(body);
                }
                Failed::Aborted => return Err(End::Close),
                Failed::Answer(answer) => {
                    let keep = whole.is_some() && call.keep_alive && !answer.close;
                    self.buffer.consume(whole.unwrap_or(0));
                    return self.send_answer(&answer.closing(!keep), call.to_head).await;
                }
            }
        }
    }

    /// Reads the head at the start of the buffer, finds its route and writes the head for the host.
    fn route(&mut self, length: usize) -> Result<Call, (Answer, bool)> {
        let bytes = self.buffer.data().get(..length).unwrap_or_default();
        let head = Head::parse(bytes).map_err(|bad| (Answer::bad(bad), false))?;
        let to_head = head.method == b"HEAD";
        let table = self.worker.routes.load();
        let path = routing_path(head.target.path(), &mut self.scratch);
        let close = !head.keep_alive || head.framing.has_body();
        let entry = match table.lookup(head.host_name, path, head.method) {
            Lookup::Found(entry) => entry,
            Lookup::MethodNotAllowed(allow) => {
                return Err((Answer::method_not_allowed(allow).closing(close), to_head));
            }
            Lookup::NotFound => {
                let help = self.client.is_local.then_some((head.host, head.target.path()));
                return Err((Answer::not_found(help).closing(close), to_head));
            }
        };
        let target = &entry.target;
        if matches!(head.framing, Framing::Length(length) if length > target.request_body) {
            return Err((Answer::too_large(target.request_body), to_head));
        }
        if self.traced.is_none() {
            self.traced = Traced::begin(self.worker.config.exporter.as_ref(), head.traceparent);
        }
        if let Some(traced) = &mut self.traced {
            traced.asks(head.method, head.target.path(), head.host_name, entry);
        }
        let parts = upstream_head::Parts {
            method: head.method,
            path_and_query: head.target.path_and_query,
            host: head.host,
            framing: head.framing,
            traceparent: self.traced.as_ref().map(Traced::header).or(head.traceparent),
        };
        upstream_head::write(&mut self.request, &parts, head.fields.iter().copied(), &self.client.forwarded, target);
        Ok(Call {
            target: Arc::clone(target),
            framing: head.framing,
            expects_continue: head.expects_continue,
            is_11: head.is_11,
            keep_alive: head.keep_alive,
            to_head,
            idempotent: Head::is_idempotent(head.method),
        })
    }

    /// Answers a request that goes to no host; its head is still in the buffer.
    async fn answer(&mut self, answer: Answer, to_head: bool, length: usize) -> Result<(), End> {
        self.buffer.consume(length);
        self.send_answer(&answer, to_head).await
    }

    async fn send_answer(&mut self, answer: &Answer, to_head: bool) -> Result<(), End> {
        let close = answer.close || self.worker.draining.is_cancelled();
        self.out.clear();
        answer.write(&mut self.out, to_head, close);
        let sent = write_all(self.writer, &self.out, self.worker.config.body_timeout).await;
        self.answered = sent.is_ok().then_some(answer.status);
        match sent {
            Ok(()) if !close => Ok(()),
            Ok(()) => Err(End::Linger),
            Err(_) => Err(End::Close),
        }
    }

    async fn refuse(&mut self, answer: Answer) -> End {
        match self.send_answer(&answer, false).await {
            Err(end) => end,
            Ok(()) => End::Close,
        }
    }

    async fn linger(mut self) {
        if self.writer.shutdown().await.is_err() {
            return;
        }
        let read_on = async {
            let mut read = 0usize;
            while read < LINGER_BYTES {
                self.buffer.consume(usize::MAX);
                match self.buffer.fill(self.reader).await {
                    Ok(count @ 1..) => read = read.saturating_add(count),
                    _ => return,
                }
            }
        };
        // Whether the client hung up or the time is over, the connection ends here.
        let _ = timeout(LINGER, read_on).await;
    }
}
