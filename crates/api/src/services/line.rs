//! Calls of a host to its node, many at once over one connection: the calls of a moment travel together, answers come
//! in any order. One line for key-value, which is hot, and one for every other service.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::BytesMut;
use model::AppName;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{Notify, oneshot};

use super::client::NodeWay;
use super::codec::{self, FrameReader, FrameWriter};
use super::{Hello, KvAnswer, KvFault, KvOp, KvScope, Reply, ServiceAnswer, ServiceFault, ServiceRequest};

/// Calls of one line that wait for their answer at once.
pub const MAX_CALLS: usize = 16_384;
/// Bytes of calls that wait to be written.
const MAX_QUEUED: usize = 256 << 20;

/// Why a call has no answer.
#[derive(Debug, thiserror::Error)]
pub enum CallError<F: std::error::Error> {
    /// The service's refusal.
    #[error("{0}")]
    Fault(F),
    /// The call cannot be encoded, or is above the largest frame.
    #[error("the call cannot be sent: {0}")]
    Unsendable(String),
    /// The connection failed. Whether a write happened is not known.
    #[error("the connection to the node was lost: {0}")]
    Lost(String),
    /// Too many calls wait already.
    #[error("too many calls wait for the node")]
    Busy,
    /// No answer in time. Whether a write happened is not known.
    #[error("the node did not answer within {0:?}")]
    TimedOut(Duration),
}

/// Why a key-value call has no answer.
pub type KvError = CallError<KvFault>;

/// The embedded key-value store, as the node serves it.
#[derive(Debug)]
pub struct KvClient(Lines<Result<KvAnswer, KvFault>>);

impl KvClient {
    /// A client of the node; a call without an answer for `timeout` fails.
    pub fn new(node: impl Into<NodeWay>, timeout: Duration) -> Self {
        Self(Lines::new(node.into(), Hello::KeyValue, timeout))
    }

    /// One call. Cancel safe; a write that was given up may still happen.
    ///
    /// # Errors
    /// Any [`KvError`].
    pub async fn call(&self, scope: &KvScope, op: &KvOp) -> Result<KvAnswer, KvError> {
        self.0.call(&(scope, op)).await
    }
}

/// Every other service of the node.
#[derive(Debug)]
pub struct CallsClient(Lines<Result<ServiceAnswer, ServiceFault>>);

impl CallsClient {
    /// A client of the node; a call without an answer for `timeout` fails.
    pub fn new(node: impl Into<NodeWay>, timeout: Duration) -> Self {
        Self(Lines::new(node.into(), Hello::Calls, timeout))
    }

    /// One call on behalf of an app. Cancel safe; a write that was given up may still happen.
    ///
    /// # Errors
    /// Any [`CallError`].
    pub async fn call(
        &self,
        app: &AppName,
        request: &ServiceRequest,
    ) -> Result<ServiceAnswer, CallError<ServiceFault>> {
        self.0.call(&(app, request)).await
    }
}

/// Connects on the first call and again after a loss.
#[derive(Debug)]
struct Lines<R> {
    node: NodeWay,
    hello: Hello,
    timeout: Duration,
    connecting: tokio::sync::Mutex<()>,
    current: Mutex<Option<Arc<Line<R>>>>,
}

/// One connection.
#[derive(Debug)]
struct Line<R> {
    state: Mutex<LineState<R>>,
    /// Told when `state.out` has bytes, or the line is closed.
    work: Notify,
}

#[derive(Debug)]
struct LineState<R> {
    next: u64,
    out: BytesMut,
    waiting: HashMap<u64, oneshot::Sender<R>>,
    /// Why it is of no more use.
    closed: Option<String>,
}

/// Takes a call that its caller gave up off the list of those that wait.
struct Waiting<'a, R> {
    line: &'a Line<R>,
    id: u64,
}

impl<R> Drop for Waiting<'_, R> {
    fn drop(&mut self) {
        lock(&self.line.state).waiting.remove(&self.id);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<A, F> Lines<Result<A, F>>
where
    A: DeserializeOwned + Send + 'static,
    F: DeserializeOwned + std::error::Error + Send + 'static,
{
    fn new(node: NodeWay, hello: Hello, timeout: Duration) -> Self {
        Self { node, hello, timeout, connecting: tokio::sync::Mutex::new(()), current: Mutex::new(None) }
    }

    async fn call<B: Serialize>(&self, body: &B) -> Result<A, CallError<F>> {
        tokio::time::timeout(self.timeout, async {
            let line = match self.open_line() {
                Some(line) => line,
                None => self.connect().await?,
            };
            line.call(body).await
        })
        .await
        .unwrap_or(Err(CallError::TimedOut(self.timeout)))
    }

    fn open_line(&self) -> Option<Arc<Line<Result<A, F>>>> {
        lock(&self.current).clone().filter(|line| lock(&line.state).closed.is_none())
    }

    async fn connect(&self) -> Result<Arc<Line<Result<A, F>>>, CallError<F>> {
        let _one = self.connecting.lock().await;
        if let Some(line) = self.open_line() {
            return Ok(line);
        }
        let stream = self.node.open(self.hello).await.map_err(|cause| CallError::Lost(cause.to_string()))?;
        let line = Arc::new(Line {
            state: Mutex::new(LineState { next: 0, out: BytesMut::new(), waiting: HashMap::new(), closed: None }),
            work: Notify::new(),
        });
        let (read, write) = stream.into_split();
        tokio::spawn(line.clone().write(FrameWriter::new(write)));
        tokio::spawn(line.clone().read(FrameReader::new(read)));
        *lock(&self.current) = Some(line.clone());
        Ok(line)
    }
}

impl<R> Drop for Lines<R> {
    fn drop(&mut self) {
        if let Some(line) = lock(&self.current).take() {
            line.close("the client was dropped");
        }
    }
}

impl<R> Line<R> {
    fn close(&self, why: &str) {
        let mut state = lock(&self.state);
        state.closed.get_or_insert_with(|| why.to_owned());
        state.out.clear();
        // Dropped after the lock: each wakes its caller.
        let callers = std::mem::take(&mut state.waiting);
        drop(state);
        drop(callers);
        self.work.notify_one();
    }
}

impl<A, F> Line<Result<A, F>>
where
    A: DeserializeOwned + Send + 'static,
    F: DeserializeOwned + std::error::Error + Send + 'static,
{
    async fn call<B: Serialize>(&self, body: &B) -> Result<A, CallError<F>> {
        let (sender, answer) = oneshot::channel();
        let waiting = {
            let mut state = lock(&self.state);
            if let Some(why) = &state.closed {
                return Err(CallError::Lost(why.clone()));
            }
            if state.waiting.len() >= MAX_CALLS || state.out.len() >= MAX_QUEUED {
                return Err(CallError::Busy);
            }
            let id = state.next;
            state.next = state.next.wrapping_add(1);
            let quiet = state.out.is_empty();
            codec::encode(&(id, body), &mut state.out).map_err(|cause| CallError::Unsendable(cause.to_string()))?;
            state.waiting.insert(id, sender);
            if quiet {
                self.work.notify_one();
            }
            Waiting { line: self, id }
        };
        let result = answer.await;
        match result {
            Ok(result) => result.map_err(CallError::Fault),
            Err(_) => {
                let state = lock(&waiting.line.state);
                Err(CallError::Lost(state.closed.clone().unwrap_or_default()))
            }
        }
    }

    /// Writes whatever gathered since it last woke.
    async fn write(self: Arc<Self>, mut sink: FrameWriter<OwnedWriteHalf>) {
        loop {
            self.work.notified().await;
            let frames = {
                let mut state = lock(&self.state);
                if state.closed.is_some() {
                    return;
                }
                state.out.split()
            };
            sink.push_encoded(frames);
            if let Err(cause) = sink.flush().await {
                return self.close(&cause.to_string());
            }
        }
    }

    /// Ends when the node closes, which it does after the writer ended.
    async fn read(self: Arc<Self>, mut source: FrameReader<OwnedReadHalf>) {
        loop {
            match source.next::<Reply<Result<A, F>>>().await {
                Ok(Some(reply)) => {
                    let caller = lock(&self.state).waiting.remove(&reply.id);
                    // A caller that gave up is not there; its answer is of no use.
                    if let Some(caller) = caller {
                        drop(caller.send(reply.result));
                    }
                }
                Ok(None) => return self.close("the node closed the connection"),
                Err(cause) => return self.close(&cause.to_string()),
            }
        }
    }
}
