//! The host's end of `node.sock`: multiplexed calls ([`super::line`]), a few connections for descriptors, and the one
//! that is held open so that each side sees the other die.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::BytesMut;
use tokio::io::AsyncReadExt;
use tokio::net::UnixStream;
use tokio::sync::Semaphore;

pub use super::line::{CallError, CallsClient, KvClient, KvError};

use super::codec::{self, WireError};
use super::descriptor;
use super::{FileFault, FileReply, FileRequest, Hello};

/// Dials of one host under way at once.
const MAX_DIALS: usize = 32;
/// Sockets of external providers asked for by one host at once; the node answers at once, whatever the process does.
const MAX_EXTERNALS: usize = 32;
/// Compiled code asked for by one host at once. Apart from dials: addresses that do not answer hold every one of
/// those for seconds, and code must still load.
const MAX_LOADS: usize = 16;

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

pub(super) async fn greet(socket: &Path, hello: Hello) -> Result<UnixStream, WireError> {
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

/// Descriptors from the node: compiled code and connected sockets.
#[derive(Debug)]
pub struct FilesClient {
    socket: PathBuf,
    dials: Semaphore,
    loads: Semaphore,
    externals: Semaphore,
    idle: Mutex<Vec<UnixStream>>,
}

impl FilesClient {
    /// A client of the node that listens on `socket`.
    pub fn new(socket: impl Into<PathBuf>) -> Self {
        Self {
            socket: socket.into(),
            dials: Semaphore::new(MAX_DIALS),
            loads: Semaphore::new(MAX_LOADS),
            externals: Semaphore::new(MAX_EXTERNALS),
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
            FileRequest::External(_) => &self.externals,
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
