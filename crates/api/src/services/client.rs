//! The host's end of `node.sock`: one multiplexed key-value connection, a few connections for descriptors, and the
//! one that is held open so that each side sees the other die.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::BytesMut;
use serde::Serialize;
use tokio::io::AsyncReadExt;
use tokio::net::UnixStream;
use tokio::sync::{Notify, Semaphore, oneshot};

use super::codec::{self, FrameReader, FrameWriter, WireError};
use super::descriptor;
use super::{FileFault, FileReply, FileRequest, Hello, KvAnswer, KvFault, KvOp, KvReply, KvScope};

/// Key-value calls of one host that wait for their answer at once.
pub const MAX_CALLS: usize = 16_384;
/// Bytes of key-value calls that wait to be written.
const MAX_QUEUED: usize = 256 << 20;
/// Dials of one host under way at once.
const MAX_DIALS: usize = 32;
/// Compiled code asked for by one host at once. Apart from dials: addresses that do not answer hold every one of
/// those for seconds, and code must still load.
const MAX_LOADS: usize = 16;

/// Why a key-value call has no answer.
#[derive(Debug, thiserror::Error)]
pub enum KvError {
    /// The store's refusal.
    #[error(transparent)]
    Fault(#[from] KvFault),
    /// The connection failed. Whether a write happened is not known.
    #[error("the connection to the node's store was lost: {0}")]
    Lost(String),
    /// Too many calls wait already.
    #[error("too many key-value calls wait for the node's store")]
    Busy,
    /// No answer in time. Whether a write happened is not known.
    #[error("the node's store did not answer within {0:?}")]
    TimedOut(Duration),
}

/// Why a descriptor was not handed over.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// The node's refusal.
    #[error(transparent)]
    Fault(#[from] FileFault),
    /// The connection failed.
    #[error(transparent)]
    Wire(#[from] WireError),
}

async fn greet(socket: &Path, hello: Hello) -> Result<UnixStream, WireError> {
    let stream = UnixStream::connect(socket).await?;
    let mut frame = BytesMut::new();
    codec::encode(&hello, &mut frame)?;
    descriptor::send_with_fd(&stream, &frame, None).await?;
    Ok(stream)
}

/// Connects and holds the connection; the future ends when the node's end closes.
///
/// # Errors
/// Where the node does not listen.
pub async fn alive(socket: &Path) -> Result<impl Future<Output = ()> + Send + 'static + use<>, WireError> {
    let mut stream = greet(socket, Hello::Alive).await?;
    Ok(async move {
        let mut byte = [0; 64];
        while matches!(stream.read(&mut byte).await, Ok(n) if n > 0) {}
    })
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The embedded key-value store, as the node serves it. Calls made together travel together; answers come in any
/// order. Connects on the first call and again after a loss.
#[derive(Debug)]
pub struct KvClient {
    socket: PathBuf,
    timeout: Duration,
    line: tokio::sync::Mutex<()>,
    current: Mutex<Option<Arc<Line>>>,
}

/// One connection.
#[derive(Debug)]
struct Line {
    state: Mutex<LineState>,
    /// Told when `state.out` has bytes, or the line is closed.
    work: Notify,
}

#[derive(Debug)]
struct LineState {
    next: u64,
    out: BytesMut,
    waiting: HashMap<u64, oneshot::Sender<Result<KvAnswer, KvFault>>>,
    /// Why it is of no more use.
    closed: Option<String>,
}

/// [`super::KvCall`] without owning its parts: the same bytes.
#[derive(Serialize)]
struct CallRef<'a> {
    id: u64,
    scope: &'a KvScope,
    op: &'a KvOp,
}

/// Takes a call that its caller gave up off the list of those that wait.
struct Waiting<'a> {
    line: &'a Line,
    id: u64,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        lock(&self.line.state).waiting.remove(&self.id);
    }
}

impl KvClient {
    /// A client of the node that listens on `socket`; a call without an answer for `timeout` fails.
    pub fn new(socket: impl Into<PathBuf>, timeout: Duration) -> Self {
        Self { socket: socket.into(), timeout, line: tokio::sync::Mutex::new(()), current: Mutex::new(None) }
    }

    /// One call. Cancel safe; a write that was given up may still happen.
    ///
    /// # Errors
    /// Any [`KvError`].
    pub async fn call(&self, scope: &KvScope, op: &KvOp) -> Result<KvAnswer, KvError> {
        tokio::time::timeout(self.timeout, async {
            let line = match self.open_line() {
                Some(line) => line,
                None => self.connect().await?,
            };
            line.call(scope, op).await
        })
        .await
        .unwrap_or(Err(KvError::TimedOut(self.timeout)))
    }

    fn open_line(&self) -> Option<Arc<Line>> {
        lock(&self.current).clone().filter(|line| lock(&line.state).closed.is_none())
    }

    async fn connect(&self) -> Result<Arc<Line>, KvError> {
        let _one = self.line.lock().await;
        if let Some(line) = self.open_line() {
            return Ok(line);
        }
        let stream = greet(&self.socket, Hello::KeyValue).await.map_err(|cause| KvError::Lost(cause.to_string()))?;
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

impl Drop for KvClient {
    fn drop(&mut self) {
        if let Some(line) = lock(&self.current).take() {
            line.close("the client was dropped");
        }
    }
}

impl Line {
    async fn call(&self, scope: &KvScope, op: &KvOp) -> Result<KvAnswer, KvError> {
        let (sender, answer) = oneshot::channel();
        let waiting = {
            let mut state = lock(&self.state);
            if let Some(why) = &state.closed {
                return Err(KvError::Lost(why.clone()));
            }
            if state.waiting.len() >= MAX_CALLS || state.out.len() >= MAX_QUEUED {
                return Err(KvError::Busy);
            }
            let id = state.next;
            state.next = state.next.wrapping_add(1);
            let quiet = state.out.is_empty();
            codec::encode(&CallRef { id, scope, op }, &mut state.out)
                .map_err(|cause| KvFault::TooLarge(cause.to_string()))?;
            state.waiting.insert(id, sender);
            if quiet {
                self.work.notify_one();
            }
            Waiting { line: self, id }
        };
        let result = answer.await;
        match result {
            Ok(result) => Ok(result?),
            Err(_) => {
                let state = lock(&waiting.line.state);
                Err(KvError::Lost(state.closed.clone().unwrap_or_default()))
            }
        }
    }

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

    /// Writes whatever gathered since it last woke.
    async fn write(self: Arc<Self>, mut sink: FrameWriter<tokio::net::unix::OwnedWriteHalf>) {
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
    async fn read(self: Arc<Self>, mut source: FrameReader<tokio::net::unix::OwnedReadHalf>) {
        loop {
            match source.next::<KvReply>().await {
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

/// Descriptors from the node: compiled code and connected sockets.
#[derive(Debug)]
pub struct FilesClient {
    socket: PathBuf,
    dials: Semaphore,
    loads: Semaphore,
    idle: Mutex<Vec<UnixStream>>,
}

impl FilesClient {
    /// A client of the node that listens on `socket`.
    pub fn new(socket: impl Into<PathBuf>) -> Self {
        Self {
            socket: socket.into(),
            dials: Semaphore::new(MAX_DIALS),
            loads: Semaphore::new(MAX_LOADS),
            idle: Mutex::new(Vec::new()),
        }
    }

    /// One request: the descriptor, and for a dial the address it is connected to.
    ///
    /// # Errors
    /// Any [`FileError`]. The caller bounds the time; a call that is given up closes its connection.
    pub async fn request(&self, request: &FileRequest) -> Result<(OwnedFd, Option<std::net::SocketAddr>), FileError> {
        let permits = match request {
            FileRequest::Compiled { .. } => &self.loads,
            FileRequest::Dial(_) => &self.dials,
        };
        let _permit = permits.acquire().await.map_err(|_| WireError::Closed)?;
        let idle = lock(&self.idle).pop();
        let stream = match idle {
            Some(stream) if still_open(&stream) => stream,
            _ => greet(&self.socket, Hello::Files).await?,
        };
        let mut frame = BytesMut::new();
        codec::encode(request, &mut frame)?;
        descriptor::send_with_fd(&stream, &frame, None).await.map_err(WireError::from)?;

        let mut buffer = BytesMut::new();
        let mut received = None;
        let reply: FileReply = loop {
            if let Some(reply) = codec::decode(&mut buffer)? {
                break reply;
            }
            let (count, fd) = descriptor::recv_with_fd(&stream, &mut buffer).await.map_err(WireError::from)?;
            if count == 0 {
                return Err(WireError::Closed.into());
            }
            received = fd.or(received);
        };
        if buffer.is_empty() {
            lock(&self.idle).push(stream);
        }
        match (reply, received) {
            (FileReply::Ready { address }, Some(fd)) => Ok((fd, address)),
            (FileReply::Ready { .. }, None) => {
                Err(WireError::Malformed("the node said ready and sent no descriptor".into()).into())
            }
            (FileReply::Refused(fault), _) => Err(fault.into()),
        }
    }
}

/// An idle connection has nothing to say: anything readable is its end.
fn still_open(stream: &UnixStream) -> bool {
    let mut byte = [0; 1];
    matches!(stream.try_read(&mut byte), Err(cause) if cause.kind() == std::io::ErrorKind::WouldBlock)
}
