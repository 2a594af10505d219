//! A line: many requests at once over one connection from the ingress. A call that needs not wait is made where its request
//! was read, so that the requests of one read cost no task and one write; one that waits goes on in a task of its own.

use std::collections::HashMap;
use std::future::poll_fn;
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use api::Code;
use api::data_line::{self, Frame, Kind, LineError, MAX_MESSAGE, Wire};
use bytes::BytesMut;
use http::Response;
use tokio::net::UnixStream;
use tokio::task::AbortHandle;
use tokio_util::sync::CancellationToken;

use crate::data::{self, Data, DataBody};
use crate::message;

/// Answers gather for so long while further calls are made: longer, and the ingress would wait for all of them.
const GATHER: Duration = Duration::from_micros(40);
/// A large buffer is given back once what it held was written, bytes.
const KEEP: usize = 256 << 10;

/// One line.
struct Line {
    data: Arc<Data>,
    number: u64,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    out: BytesMut,
    /// Calls that wait for something, each in a task.
    waiting: HashMap<u64, AbortHandle>,
    /// Wakes the task that reads and writes.
    work: Option<Waker>,
}

/// Serves a line until the ingress closes it; after `done`, until what was sent has been answered.
pub(crate) async fn serve(stream: UnixStream, data: Arc<Data>, done: CancellationToken) {
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let line = Arc::new(Line { data, number, state: Mutex::default() });
    let mut wire = match Wire::new(stream) {
        Ok(wire) => wire,
        Err(cause) => return tracing::warn!(%cause, "a line cannot be served"),
    };
    let mut done = pin!(done.cancelled());
    let ended = poll_fn(|cx| match line.poll(cx, &mut wire) {
        Poll::Pending if done.as_mut().poll(cx).is_ready() && line.is_idle() => Poll::Ready(LineError::Closed),
        polled => polled,
    })
    .await;
    tracing::debug!(why = %ended, "a line ended");
    // Nobody waits for these any more.
    for (_, call) in line.state().waiting.drain() {
        call.abort();
    }
    line.data.forget(|(of, _)| *of == number);
}

impl Line {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_idle(&self) -> bool {
        let state = self.state();
        state.waiting.is_empty() && state.out.is_empty()
    }

    fn poll(self: &Arc<Self>, cx: &mut Context<'_>, wire: &mut Wire) -> Poll<LineError> {
        {
            let mut state = self.state();
            if state.work.as_ref().is_none_or(|waker| !waker.will_wake(cx.waker())) {
                state.work = Some(cx.waker().clone());
            }
        }
        let mut since = None;
        loop {
            match wire.poll_frame(cx) {
                Poll::Ready(Ok(frame)) => {
                    if let Err(error) = self.take(cx, frame) {
                        return Poll::Ready(error);
                    }
                    if since.get_or_insert_with(Instant::now).elapsed() < GATHER {
                        continue;
                    }
                    since = None;
                }
                Poll::Ready(Err(error)) => return Poll::Ready(error),
                Poll::Pending => {
                    return match self.flush(cx, wire) {
                        Poll::Ready(Err(error)) => Poll::Ready(error),
                        _ => Poll::Pending,
                    };
                }
            }
            if let Poll::Ready(Err(error)) = self.flush(cx, wire) {
                return Poll::Ready(error);
            }
        }
    }

    fn flush(&self, cx: &mut Context<'_>, wire: &mut Wire) -> Poll<Result<(), LineError>> {
        let mut state = self.state();
        let flushed = wire.poll_flush(cx, &mut state.out);
        if flushed.is_ready() && state.out.capacity() > KEEP {
            state.out = BytesMut::new();
        }
        flushed
    }

    fn take(self: &Arc<Self>, cx: &mut Context<'_>, frame: Frame) -> Result<(), LineError> {
        match frame.kind {
            Kind::Call => self.call(cx, frame),
            Kind::Cancel => {
                if let Some(call) = self.state().waiting.remove(&frame.call) {
                    call.abort();
                }
                self.data.forget(|claim| *claim == (self.number, frame.call));
            }
            Kind::Answer | Kind::Claim => return Err(LineError::Malformed),
        }
        Ok(())
    }

    fn call(self: &Arc<Self>, cx: &mut Context<'_>, frame: Frame) {
        let id = frame.call;
        let Some(request) = message::request(&frame.content) else {
            return self.answered(id, data::refuse(Code::RequestInvalid, "the request on the line is malformed"));
        };
        drop(frame);
        let mut call = Box::pin(data::answer(self.data.clone(), request));
        // It may be woken through this task until it is polled in its own: once too often is harmless.
        if let Poll::Ready(response) = call.as_mut().poll(cx) {
            return self.answered(id, response);
        }
        let line = self.clone();
        // Looked at by the task only after it stands in the list: the state is held until then.
        let mut state = self.state();
        let task = tokio::spawn(async move {
            let response = call.await;
            let waited = line.state().waiting.remove(&id);
            // Otherwise it was cancelled in the meantime.
            if waited.is_some() {
                line.answered(id, response);
            }
        });
        state.waiting.insert(id, task.abort_handle());
    }

    /// Queues an answer. One that is not whole waits to be asked for.
    fn answered(&self, id: u64, response: Response<DataBody>) {
        let (head, body) = response.into_parts();
        let head = Response::from_parts(head, ());
        let mut state = self.state();
        let quiet = state.out.is_empty();
        match body.whole(MAX_MESSAGE) {
            Ok(body) => {
                data_line::push(&mut state.out, Kind::Answer, id, |out| message::answer(out, &head, body.iter()));
            }
            Err(body) => {
                let claim = self.data.keep((self.number, id), head.map(|()| body));
                data_line::push(&mut state.out, Kind::Claim, id, |out| out.extend_from_slice(claim.as_bytes()));
            }
        }
        if quiet && let Some(work) = &state.work {
            work.wake_by_ref();
        }
    }
}
