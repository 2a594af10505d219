//! Requests over the lines to the hosts: one line for each worker and shard, so that all requests that a turn of the event loop
//! brings to a shard leave in one write, and come back in as few reads. A host that has no line, or whose line is full, is asked
//! over connections of the pool.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use api::data_line::{self, Kind, LineError, MAX_MESSAGE, Wire};
use bytes::{Buf as _, Bytes, BytesMut};
use tokio::net::UnixStream;
use tokio::time::Instant;

use super::numbered::Numbered;
use super::shard::Shard;

/// Bytes that wait to be written to a host that does not read; more are not queued.
const MAX_QUEUED: usize = 1024 * 1024;
/// A host without a line is asked for one again after this.
const AGAIN: Duration = Duration::from_secs(1);
/// A local socket that does not accept for so long belongs to a host that does nothing any more.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// A large buffer is given back once what it held was written, bytes.
const KEEP: usize = 64 * 1024;

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The lines of one worker, by shard.
#[derive(Debug, Default)]
pub(super) struct Lines(Mutex<Numbered<Slot>>);

#[derive(Debug)]
enum Slot {
    Open(Arc<Line>),
    Opening,
    /// There was none; when it is tried again.
    Without(Instant),
}

impl Lines {
    /// Puts a whole request on the line to a shard; `None` where there is none yet or it takes no more.
    pub(super) fn call(self: &Arc<Self>, shard: &Shard, request: &[u8]) -> Option<Waiting> {
        if request.len() > MAX_MESSAGE {
            return None;
        }
        let mut lines = lock(&self.0);
        match lines.get(&shard.id()) {
            Some(Slot::Open(line)) => match line.call(request) {
                Err(Full::Closed) => {}
                queued => return queued.ok(),
            },
            Some(Slot::Opening) => return None,
            Some(Slot::Without(until)) if Instant::now() < *until => return None,
            Some(Slot::Without(_)) | None => {}
        }
        lines.insert(shard.id(), Slot::Opening);
        drop(lines);
        let (all, id, socket) = (Arc::downgrade(self), shard.id(), data_line::socket(shard.data_socket()));
        tokio::spawn(async move {
            let connected = tokio::time::timeout(CONNECT_TIMEOUT, UnixStream::connect(&socket)).await;
            let connected = connected.map_err(std::io::Error::from).and_then(std::convert::identity);
            let slot = match connected.and_then(Line::start) {
                Ok(line) => Slot::Open(line),
                Err(cause) => {
                    tracing::debug!(socket = %socket.display(), %cause, "a host has no line");
                    Slot::Without(Instant::now() + AGAIN)
                }
            };
            if let Some(all) = Weak::upgrade(&all) {
                lock(&all.0).insert(id, slot);
            }
        });
        None
    }

    /// Forgets the shards that are gone, and closes the lines that had no call since the last sweep.
    pub(super) fn sweep(&self) {
        lock(&self.0).retain(|_, slot| match slot {
            Slot::Open(line) => line.is_used(),
            Slot::Opening => true,
            Slot::Without(until) => Instant::now() < *until,
        });
    }
}

impl Drop for Lines {
    fn drop(&mut self) {
        for (_, slot) in lock(&self.0).drain() {
            if let Slot::Open(line) = slot {
                line.close();
            }
        }
    }
}

/// Why a request cannot go on a line.
enum Full {
    Closed,
    Queue,
}

/// One line.
#[derive(Debug)]
struct Line(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    next: u64,
    out: BytesMut,
    /// Bytes ever put into `out`, and how many of them were written: what a call that is lost has cost.
    queued: u64,
    written: u64,
    calls: Numbered<Call>,
    /// Calls given up whose answer may still come.
    cancelled: u64,
    /// Wakes the task that reads and writes.
    work: Option<Waker>,
    closed: bool,
    used: bool,
}

/// A call that waits for its answer, or has it.
#[derive(Debug)]
struct Call {
    /// `queued` before it.
    start: u64,
    told: Option<Told>,
    /// The host has an answer that is not whole, and keeps it until it is asked for or the call is cancelled.
    claimed: bool,
    waker: Option<Waker>,
}

/// What became of a call.
#[derive(Debug)]
pub(super) enum Told {
    /// A whole answer: head and body.
    Answer(Bytes),
    /// The answer is to be asked for by this, on the data socket.
    Claim(Bytes),
    /// The line ended; whether the host can have seen the request.
    Lost { sent: bool },
}

impl Line {
    fn start(stream: UnixStream) -> std::io::Result<Arc<Self>> {
        let mut wire = Wire::new(stream)?;
        let line = Arc::new(Self(Mutex::new(State { used: true, ..State::default() })));
        let task = line.clone();
        tokio::spawn(async move {
            let ended = poll_fn(|cx| task.poll(cx, &mut wire)).await;
            tracing::debug!(why = %ended, "a line to a host ended");
            task.close();
        });
        Ok(line)
    }

    /// Queues a request.
    fn call(self: &Arc<Self>, request: &[u8]) -> Result<Waiting, Full> {
        let mut state = lock(&self.0);
        if state.closed {
            return Err(Full::Closed);
        }
        if state.out.len() > MAX_QUEUED {
            return Err(Full::Queue);
        }
        let (id, start) = (state.next, state.queued);
        state.push(Kind::Call, id, request);
        state.next = id.wrapping_add(1);
        state.used = true;
        state.calls.insert(id, Call { start, told: None, claimed: false, waker: None });
        Ok(Waiting { line: self.clone(), id })
    }

    /// The task of the line: everything that waits is written, everything that came is handed out.
    fn poll(&self, cx: &mut Context<'_>, wire: &mut Wire) -> Poll<LineError> {
        let mut state = lock(&self.0);
        if state.closed {
            return Poll::Ready(LineError::Closed);
        }
        let before = state.out.len();
        let flushed = wire.poll_flush(cx, &mut state.out);
        state.written = state.written.wrapping_add(before.saturating_sub(state.out.len()) as u64);
        match flushed {
            Poll::Ready(Err(error)) => return Poll::Ready(error),
            Poll::Ready(Ok(())) if state.out.capacity() > KEEP => state.out = BytesMut::new(),
            _ => {}
        }
        loop {
            match wire.poll_frame(cx) {
                Poll::Ready(Ok(frame)) => {
                    let told = match frame.kind {
                        Kind::Answer => Told::Answer(frame.content),
                        Kind::Claim => Told::Claim(frame.content),
                        Kind::Call | Kind::Cancel => return Poll::Ready(LineError::Malformed),
                    };
                    if !state.tell(frame.call, told) {
                        return Poll::Ready(LineError::Malformed);
                    }
                }
                Poll::Ready(Err(error)) => return Poll::Ready(error),
                Poll::Pending => break,
            }
        }
        match &state.work {
            Some(waker) if waker.will_wake(cx.waker()) => {}
            _ => state.work = Some(cx.waker().clone()),
        }
        Poll::Pending
    }

    /// Nothing goes over it any more; whoever waits learns it.
    fn close(&self) {
        let mut state = lock(&self.0);
        state.closed = true;
        state.out = BytesMut::new();
        let written = state.written;
        for call in state.calls.values_mut().filter(|call| call.told.is_none() && !call.claimed) {
            call.tell(Told::Lost { sent: written > call.start });
        }
        if let Some(work) = state.work.take() {
            work.wake();
        }
    }

    /// Whether it had a call since the last time this was asked, or has one now. One that had none is closed.
    fn is_used(&self) -> bool {
        let mut state = lock(&self.0);
        let used = !state.closed && (std::mem::take(&mut state.used) || !state.calls.is_empty());
        drop(state);
        if !used {
            self.close();
        }
        used
    }
}

impl State {
    fn push(&mut self, kind: Kind, id: u64, content: &[u8]) {
        let before = self.out.len();
        data_line::push(&mut self.out, kind, id, |out| out.extend_from_slice(content));
        self.queued = self.queued.wrapping_add(self.out.len().saturating_sub(before) as u64);
        if before == 0
            && let Some(work) = &self.work
        {
            work.wake_by_ref();
        }
    }

    /// Hands an answer out. `false` where nobody asked for it: a host that answers twice is not to be believed.
    fn tell(&mut self, id: u64, told: Told) -> bool {
        match self.calls.get_mut(&id) {
            Some(call) if call.told.is_none() && !call.claimed => call.tell(told),
            Some(_) => return false,
            None => match self.cancelled.checked_sub(1) {
                Some(left) => self.cancelled = left,
                None => return false,
            },
        }
        true
    }
}

impl Call {
    fn tell(&mut self, told: Told) {
        self.claimed = matches!(told, Told::Claim(_));
        self.told = Some(told);
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }
}

/// A request on a line; resolves with what became of it. Dropped before, it is cancelled; so is one with [`Told::Claim`]
/// whose answer was not [`Waiting::fetched`]: it has a place among the component's calls as long as its host keeps it.
#[derive(Debug)]
pub(super) struct Waiting {
    line: Arc<Line>,
    id: u64,
}

impl Future for Waiting {
    type Output = Told;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Told> {
        let mut state = lock(&self.line.0);
        // Without an entry it has been told already; whoever asks again gets no other answer.
        let Some(call) = state.calls.get_mut(&self.id) else { return Poll::Ready(Told::Lost { sent: true }) };
        match call.told.take() {
            Some(told) => {
                if !call.claimed {
                    state.calls.remove(&self.id);
                }
                Poll::Ready(told)
            }
            None => {
                match &call.waker {
                    Some(waker) if waker.will_wake(cx.waker()) => {}
                    _ => call.waker = Some(cx.waker().clone()),
                }
                Poll::Pending
            }
        }
    }
}

impl Waiting {
    /// The answer was asked for and came.
    pub(super) fn fetched(self) {
        lock(&self.line.0).calls.remove(&self.id);
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let mut state = lock(&self.line.0);
        let Some(call) = state.calls.remove(&self.id) else { return };
        if state.closed || call.told.is_some() && !call.claimed {
            return;
        }
        // To one that was claimed no further answer comes.
        if !call.claimed {
            state.cancelled = state.cancelled.wrapping_add(1);
        }
        state.push(Kind::Cancel, self.id, &[]);
    }
}

/// Whether the content of a claim is what we would put into a request of our own: digits and dots.
pub(super) fn is_claim(content: &Bytes) -> bool {
    content.has_remaining() && content.len() <= 64 && content.iter().all(|byte| byte.is_ascii_digit() || *byte == b'.')
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn frame(wire: &mut Wire) -> (Kind, u64) {
        let frame = poll_fn(|cx| wire.poll_frame(cx)).await.unwrap();
        (frame.kind, frame.call)
    }

    async fn send(wire: &mut Wire, kind: Kind, call: u64, content: &[u8]) {
        let mut out = BytesMut::new();
        assert!(data_line::push(&mut out, kind, call, |out| out.extend_from_slice(content)));
        poll_fn(|cx| wire.poll_flush(cx, &mut out)).await.unwrap();
    }

    /// Two ends: ours, and that of a host.
    fn line() -> (Arc<Line>, Wire) {
        let (ours, host) = UnixStream::pair().unwrap();
        (Line::start(ours).unwrap(), Wire::new(host).unwrap())
    }

    #[tokio::test]
    async fn an_answer_that_nobody_fetches_is_cancelled_and_one_that_came_is_not() {
        let (line, mut host) = line();
        for fetched in [true, false] {
            let mut waiting = line.call(b"x").ok().unwrap();
            let (kind, call) = frame(&mut host).await;
            assert_eq!(kind, Kind::Call);
            send(&mut host, Kind::Claim, call, b"0.0").await;
            assert!(matches!((&mut waiting).await, Told::Claim(_)));
            assert!(line.is_used() && line.is_used(), "a line with an answer to be fetched is not swept");
            if fetched {
                waiting.fetched();
            } else {
                drop(waiting);
                assert_eq!(frame(&mut host).await, (Kind::Cancel, call));
            }
        }
        // Nothing else was said meanwhile.
        let _next = line.call(b"y").ok().unwrap();
        assert_eq!(frame(&mut host).await.0, Kind::Call);
    }

    #[tokio::test]
    async fn a_host_that_answers_what_it_has_claimed_is_not_believed() {
        let (line, mut host) = line();
        let mut waiting = line.call(b"x").ok().unwrap();
        let (_, call) = frame(&mut host).await;
        send(&mut host, Kind::Claim, call, b"0.0").await;
        assert!(matches!((&mut waiting).await, Told::Claim(_)));
        send(&mut host, Kind::Answer, call, b"x").await;
        let ended = poll_fn(|cx| host.poll_frame(cx)).await;
        assert!(matches!(ended, Err(LineError::Closed | LineError::Io(_))), "{ended:?}");
    }
}
