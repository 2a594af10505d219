//! The two streams of a TCP connection in WASI 0.3. Bytes go straight between the guest's memory and the connection, and
//! what ended a stream is told by a future beside it.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::BytesMut;
use tokio::sync::oneshot;
use wasmtime::component::{Destination, Source, StreamConsumer, StreamProducer, StreamResult};
use wasmtime::{AsContextMut as _, StoreContextMut};

use super::bindings::wasi::sockets::types::ErrorCode;
use crate::ctx::Ctx;
use crate::sockets::line::Line;

/// Bytes moved at once where the other end of a stream is not a guest's memory.
const AT_ONCE: usize = 64 << 10;

/// What a stream came to.
pub(super) type Outcome = Result<(), ErrorCode>;

fn code_of(cause: &io::Error) -> ErrorCode {
    match cause.kind() {
        io::ErrorKind::BrokenPipe | io::ErrorKind::NotConnected => ErrorCode::ConnectionBroken,
        io::ErrorKind::ConnectionReset => ErrorCode::ConnectionReset,
        io::ErrorKind::ConnectionAborted => ErrorCode::ConnectionAborted,
        io::ErrorKind::ConnectionRefused => ErrorCode::ConnectionRefused,
        io::ErrorKind::TimedOut => ErrorCode::Timeout,
        io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable => ErrorCode::RemoteUnreachable,
        kind => ErrorCode::Other(Some(kind.to_string())),
    }
}

/// One way of a connection, until it ends.
struct Way {
    line: Arc<Line>,
    told: oneshot::Sender<Outcome>,
}

impl Way {
    fn end(self, outcome: Outcome) {
        // Where the guest does not want to know, it is told nothing.
        drop(self.told.send(outcome));
    }
}

/// What to say of a wait that is not over: the guest may have asked to end it.
fn unfinished(finish: bool) -> Poll<wasmtime::Result<StreamResult>> {
    if finish { Poll::Ready(Ok(StreamResult::Cancelled)) } else { Poll::Pending }
}

/// What comes in.
pub(super) struct Receiving(Option<Way>);

impl Receiving {
    pub(super) fn new(line: Arc<Line>, told: oneshot::Sender<Outcome>) -> Self {
        Self(Some(Way { line, told }))
    }

    fn end(&mut self, outcome: Outcome) -> Poll<wasmtime::Result<StreamResult>> {
        if let Some(way) = self.0.take() {
            way.end(outcome);
        }
        Poll::Ready(Ok(StreamResult::Dropped))
    }
}

impl Drop for Receiving {
    fn drop(&mut self) {
        // The guest wants no more: where the connection is gone already, that is so without us.
        if let Some(way) = self.0.take() {
            drop(way.line.shut_reading());
            way.end(Ok(()));
        }
    }
}

impl StreamProducer<Ctx> for Receiving {
    type Item = u8;
    type Buffer = BytesMut;

    fn poll_produce<'a>(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        mut store: StoreContextMut<'a, Ctx>,
        into: Destination<'a, u8, BytesMut>,
        finish: bool,
    ) -> Poll<wasmtime::Result<StreamResult>> {
        let Some(way) = &self.0 else { return Poll::Ready(Ok(StreamResult::Dropped)) };
        // Room for nothing: it asks whether there is something.
        if into.remaining(store.as_context_mut()) == Some(0) {
            return match way.line.socket().poll_read_ready(cx) {
                Poll::Ready(_) => Poll::Ready(Ok(StreamResult::Completed)),
                Poll::Pending => unfinished(finish),
            };
        }
        let mut into = into.as_direct(store, AT_ONCE);
        match way.line.poll_read(cx, into.remaining()) {
            Poll::Ready(Ok(0)) => self.end(Ok(())),
            Poll::Ready(Ok(count)) => {
                into.mark_written(count);
                Poll::Ready(Ok(StreamResult::Completed))
            }
            Poll::Ready(Err(cause)) => self.end(Err(code_of(&cause))),
            Poll::Pending => unfinished(finish),
        }
    }
}

/// What goes out.
pub(super) struct Sending(Option<Way>);

impl Sending {
    pub(super) fn new(line: Arc<Line>, told: oneshot::Sender<Outcome>) -> Self {
        Self(Some(Way { line, told }))
    }
}

impl Drop for Sending {
    fn drop(&mut self) {
        // The guest closed its stream: that was all.
        if let Some(way) = self.0.take() {
            let outcome = way.line.shut_writing().map_err(|cause| code_of(&cause));
            way.end(outcome);
        }
    }
}

impl StreamConsumer<Ctx> for Sending {
    type Item = u8;

    fn poll_consume(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        store: StoreContextMut<'_, Ctx>,
        from: Source<'_, u8>,
        finish: bool,
    ) -> Poll<wasmtime::Result<StreamResult>> {
        let Some(way) = &self.0 else { return Poll::Ready(Ok(StreamResult::Dropped)) };
        let mut from = from.as_direct(store);
        // Nothing to write: it asks whether there is room.
        if from.remaining().is_empty() {
            return match way.line.socket().poll_write_ready(cx) {
                Poll::Ready(_) => Poll::Ready(Ok(StreamResult::Completed)),
                Poll::Pending => unfinished(finish),
            };
        }
        match way.line.poll_write(cx, from.remaining()) {
            Poll::Ready(Ok(count)) => {
                from.mark_read(count);
                Poll::Ready(Ok(StreamResult::Completed))
            }
            Poll::Ready(Err(cause)) => {
                if let Some(way) = self.0.take() {
                    way.end(Err(code_of(&cause)));
                }
                Poll::Ready(Ok(StreamResult::Dropped))
            }
            Poll::Pending => unfinished(finish),
        }
    }
}
