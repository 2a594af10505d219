//! An object on its way from a guest: what the guest writes waits in a pipe of bounded size, and one task carries it to
//! the backend. Nothing is stored unless the guest says that the value is whole.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use runtime::trace::{CallTrace, within};
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use wasmtime_wasi::p2::{OutputStream, Pollable, StreamError, StreamResult};

use super::{BackendError, CHUNK, MAX_OBJECT, Upload};
use crate::meter::LinkMeter;

/// Bytes that wait for the backend, and the most that may be written before the value has a destination.
const WAITING: usize = 1 << 20;
/// The most a guest writes at once.
const WRITE: usize = 64 << 10;
/// How long a backend may take for one chunk, and for the end.
const TIMEOUT: Duration = Duration::from_secs(60);

/// What `outgoing-value` is. Dropped before it is finished, it stores nothing.
#[allow(unreachable_pub, reason = "the generated module names it as public")]
pub struct Outgoing {
    pipe: Arc<Pipe>,
    body_taken: bool,
    carried: Option<Carried>,
}

/// An upload under way.
pub(super) struct Carried {
    pub(super) task: JoinHandle<Result<(), BackendError>>,
    pub(super) meter: Arc<LinkMeter>,
}

impl Outgoing {
    pub(super) fn new() -> Self {
        Self { pipe: Arc::default(), body_taken: false, carried: None }
    }

    /// The stream that fills it, once.
    pub(super) fn body(&mut self) -> Option<Body> {
        let first = !std::mem::replace(&mut self.body_taken, true);
        first.then(|| Body { pipe: self.pipe.clone() })
    }

    /// Whether it has a destination.
    pub(super) fn is_carried(&self) -> bool {
        self.carried.is_some()
    }

    /// Gives it a destination; what was written already goes first.
    pub(super) fn carry(&mut self, upload: Box<dyn Upload>, meter: Arc<LinkMeter>) {
        self.pipe.change(|state| state.carried = true);
        let carried = meter.id().calls(carry(self.pipe.clone(), upload));
        self.carried = Some(Carried { task: tokio::spawn(within(CallTrace::current(), carried)), meter });
    }

    /// The value is whole.
    pub(super) fn finish(mut self) -> Option<Carried> {
        self.pipe.change(|state| state.end = Some(End::Finished));
        self.carried.take()
    }
}

impl Drop for Outgoing {
    fn drop(&mut self) {
        // Does nothing to one that was finished.
        self.pipe.change(|state| {
            state.end.get_or_insert(End::Abandoned);
        });
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Finished,
    Abandoned,
}

#[derive(Default)]
struct State {
    chunks: VecDeque<Bytes>,
    waiting: usize,
    carried: bool,
    end: Option<End>,
    failed: Option<BackendError>,
}

#[derive(Default)]
struct Pipe {
    state: Mutex<State>,
    /// Told of what the carrier waits for.
    filled: Notify,
    /// Told of what the guest waits for.
    drained: Notify,
}

enum Next {
    Chunk(Bytes),
    End(End),
}

impl Pipe {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.lock());
        self.filled.notify_one();
        self.drained.notify_one();
    }

    /// The next bytes, small writes together.
    async fn next(&self) -> Next {
        loop {
            {
                let mut state = self.lock();
                if state.end == Some(End::Abandoned) {
                    return Next::End(End::Abandoned);
                }
                if let Some(chunk) = gather(&mut state.chunks) {
                    state.waiting -= chunk.len();
                    drop(state);
                    self.drained.notify_one();
                    return Next::Chunk(chunk);
                }
                if let Some(end) = state.end {
                    return Next::End(end);
                }
            }
            self.filled.notified().await;
        }
    }
}

/// Up to [`CHUNK`] bytes off the front.
fn gather(chunks: &mut VecDeque<Bytes>) -> Option<Bytes> {
    let first = chunks.pop_front()?;
    if chunks.front().is_none_or(|second| first.len() + second.len() > CHUNK) {
        return Some(first);
    }
    let mut all = BytesMut::from(first);
    while let Some(next) = chunks.pop_front_if(|next| all.len() + next.len() <= CHUNK) {
        all.extend_from_slice(&next);
    }
    Some(all.freeze())
}

async fn carry(pipe: Arc<Pipe>, mut upload: Box<dyn Upload>) -> Result<(), BackendError> {
    let late = || BackendError::TimedOut { ms: TIMEOUT.as_millis() as u64 };
    let mut size: u64 = 0;
    loop {
        match pipe.next().await {
            Next::Chunk(chunk) => {
                size += chunk.len() as u64;
                let written = if size > MAX_OBJECT {
                    Err(BackendError::TooLarge(format!("an object has at most {MAX_OBJECT} bytes")))
                } else {
                    tokio::time::timeout(TIMEOUT, upload.write(chunk)).await.unwrap_or_else(|_| Err(late()))
                };
                if let Err(cause) = written {
                    pipe.change(|state| {
                        state.chunks.clear();
                        state.waiting = 0;
                        state.failed = Some(cause.clone());
                    });
                    drop(tokio::time::timeout(TIMEOUT, upload.abandon()).await);
                    return Err(cause);
                }
            }
            Next::End(End::Finished) => {
                return tokio::time::timeout(TIMEOUT, upload.finish()).await.unwrap_or_else(|_| Err(late()));
            }
            Next::End(End::Abandoned) => {
                drop(tokio::time::timeout(TIMEOUT, upload.abandon()).await);
                return Err(BackendError::Misuse("the value was dropped before it was finished".to_owned()));
            }
        }
    }
}

/// The stream a guest writes to.
pub(super) struct Body {
    pipe: Arc<Pipe>,
}

#[async_trait::async_trait]
impl Pollable for Body {
    async fn ready(&mut self) {
        while matches!(self.check_write(), Ok(0)) {
            self.pipe.drained.notified().await;
        }
    }
}

impl OutputStream for Body {
    fn write(&mut self, bytes: Bytes) -> StreamResult<()> {
        if bytes.len() > self.check_write()? {
            return Err(StreamError::trap("more was written than check-write allows"));
        }
        if !bytes.is_empty() {
            self.pipe.change(|state| {
                state.waiting += bytes.len();
                state.chunks.push_back(bytes);
            });
        }
        Ok(())
    }

    fn flush(&mut self) -> StreamResult<()> {
        Ok(())
    }

    fn check_write(&mut self) -> StreamResult<usize> {
        let state = self.pipe.lock();
        let failed = |cause: String| StreamError::LastOperationFailed(wasmtime::Error::msg(cause));
        match &*state {
            State { failed: Some(cause), .. } => Err(failed(cause.to_string())),
            State { end: Some(_), .. } => Err(StreamError::Closed),
            // One that has no destination cannot drain: waiting would never end.
            State { carried: false, waiting, .. } if *waiting > WAITING => Err(failed(format!(
                "more than {WAITING} bytes were written before the value was given to a container: call write-data first"
            ))),
            State { carried: true, waiting, .. } if *waiting >= WAITING => Ok(0),
            _ => Ok(WRITE),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

    use futures::FutureExt;
    use futures::future::{BoxFuture, ready};

    use super::*;
    use crate::blobstore::Answer;

    /// Takes what it is given, one chunk for each permit, and says what became of it.
    struct Slow {
        permits: Arc<tokio::sync::Semaphore>,
        taken: Arc<AtomicUsize>,
        fate: Arc<Mutex<&'static str>>,
    }

    impl Upload for Slow {
        fn write(&mut self, chunk: Bytes) -> Answer<'_, ()> {
            async move {
                self.permits.acquire().await.unwrap().forget();
                self.taken.fetch_add(chunk.len(), SeqCst);
                Ok(())
            }
            .boxed()
        }
        fn finish(self: Box<Self>) -> Answer<'static, ()> {
            *self.fate.lock().unwrap() = "finished";
            ready(Ok(())).boxed()
        }
        fn abandon(self: Box<Self>) -> BoxFuture<'static, ()> {
            *self.fate.lock().unwrap() = "abandoned";
            ready(()).boxed()
        }
    }

    fn slow() -> Slow {
        Slow { permits: Arc::new(tokio::sync::Semaphore::new(0)), taken: Arc::default(), fate: Arc::default() }
    }

    #[tokio::test]
    async fn a_slow_backend_holds_the_guest_and_bounds_what_waits() {
        let (slow, mut value) = (slow(), Outgoing::new());
        let (permits, taken, fate) = (slow.permits.clone(), slow.taken.clone(), slow.fate.clone());
        let mut body = value.body().unwrap();
        assert!(value.body().is_none(), "there is one stream");
        value.carry(Box::new(slow), Arc::default());
        let mut written = 0;
        loop {
            tokio::task::yield_now().await;
            let room = body.check_write().unwrap();
            if room == 0 {
                break;
            }
            written += room;
            body.write(Bytes::from(vec![1; room])).unwrap();
            assert!(written <= 2 * WAITING, "nothing holds the guest");
        }
        assert!(body.ready().now_or_never().is_none());
        permits.add_permits(1000);
        body.ready().await;
        body.write(Bytes::from_static(b"end")).unwrap();
        drop(body);
        value.finish().unwrap().task.await.unwrap().unwrap();
        assert_eq!((taken.load(SeqCst), *fate.lock().unwrap()), (written + 3, "finished"));
    }

    #[tokio::test]
    async fn a_value_that_is_dropped_is_abandoned() {
        let (slow, mut value) = (slow(), Outgoing::new());
        let fate = slow.fate.clone();
        slow.permits.add_permits(10);
        let mut body = value.body().unwrap();
        body.write(Bytes::from_static(b"half")).unwrap();
        value.carry(Box::new(slow), Arc::default());
        let task = value.carried.take().unwrap().task;
        drop(value);
        assert!(matches!(task.await.unwrap(), Err(BackendError::Misuse(_))));
        assert_eq!(*fate.lock().unwrap(), "abandoned");
        assert!(matches!(body.check_write(), Err(StreamError::Closed)));
    }

    #[tokio::test]
    async fn a_megabyte_may_come_before_the_destination_and_more_is_said_to_be_too_much() {
        let mut value = Outgoing::new();
        let mut body = value.body().unwrap();
        for _ in 0..WAITING / WRITE {
            body.blocking_write_and_flush(Bytes::from(vec![7; WRITE])).await.unwrap();
        }
        body.write(Bytes::from(vec![7; WRITE])).unwrap();
        let refused = body.check_write().unwrap_err();
        assert!(refused.to_string().contains("write-data"), "{refused}");
    }
}
