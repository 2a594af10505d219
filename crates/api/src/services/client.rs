//! The host's end of its connections to the node: multiplexed calls ([`super::line`]), a few connections for descriptors,
//! and the one that is held open so that each side sees the other die.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream as StdStream;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::BytesMut;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::{Semaphore, mpsc, oneshot};

pub use super::line::{CallError, CallsClient, KvClient, KvError};

use super::codec::{self, WireError};
use super::exchange::Exchange;
use super::{FileFault, FileReply, FileRequest, Hello, MAX_FRAME, MoreRequest, Standing};

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

/// How a process reaches its node. Cheap to clone.
#[derive(Debug, Clone)]
pub struct NodeWay(Arc<Way>);

#[derive(Debug)]
enum Way {
    /// Whoever may open the socket.
    Path(PathBuf),
    /// A process that can connect nowhere: it asks for each connection over the one it was handed.
    Handed(mpsc::Sender<oneshot::Sender<Result<UnixStream, WireError>>>),
}

impl From<PathBuf> for NodeWay {
    fn from(socket: PathBuf) -> Self {
        Self(Arc::new(Way::Path(socket)))
    }
}

impl NodeWay {
    /// Over a connection that the node handed to this process. Must run inside a tokio runtime.
    ///
    /// # Errors
    /// Where the connection cannot be used.
    pub fn handed(first: StdStream) -> std::io::Result<Self> {
        first.set_nonblocking(true)?;
        let first = Exchange::new(UnixStream::from_std(first)?, BytesMut::new(), MAX_FRAME)?;
        let (ask, asked) = mpsc::channel(64);
        // A task of its own: whoever gives up waiting leaves no half-read answer behind.
        tokio::spawn(ask_for_more(first, asked));
        Ok(Self(Arc::new(Way::Handed(ask))))
    }

    /// A connection that is for this from now on.
    pub(super) async fn open(&self, hello: Hello) -> Result<UnixStream, WireError> {
        let mut stream = match &*self.0 {
            Way::Path(socket) => UnixStream::connect(socket).await?,
            Way::Handed(ask) => {
                let (tell, told) = oneshot::channel();
                ask.send(tell).await.map_err(|_| WireError::Closed)?;
                told.await.map_err(|_| WireError::Closed)??
            }
        };
        say(&mut stream, &hello).await?;
        Ok(stream)
    }

    /// Opens a connection to say on where this host stands in the queue for the cores.
    ///
    /// # Errors
    /// Where the node is not there.
    pub async fn standing(&self) -> Result<StandingWord, WireError> {
        Ok(StandingWord(self.open(Hello::Standing).await?.into_std()?))
    }

    /// Opens a connection and holds it; the future ends when the node's end closes.
    ///
    /// # Errors
    /// Where the node is not there.
    pub async fn alive(&self) -> Result<impl Future<Output = ()> + Send + 'static + use<>, WireError> {
        let mut stream = self.open(Hello::Alive).await?;
        Ok(async move {
            let mut byte = [0; 64];
            while matches!(stream.read(&mut byte).await, Ok(n) if n > 0) {}
        })
    }
}

/// The host's word of where it stands, from any thread.
#[derive(Debug)]
pub struct StandingWord(StdStream);

impl StandingWord {
    /// Says it; false where the node takes nothing now. It never waits: whoever says it has others to keep time for.
    pub fn say(&self, standing: Standing) -> bool {
        matches!(std::io::Write::write(&mut &self.0, &[standing.byte()]), Ok(1))
    }
}

/// One frame.
async fn say(stream: &mut UnixStream, what: &impl serde::Serialize) -> Result<(), WireError> {
    let mut frame = BytesMut::new();
    codec::encode(what, &mut frame)?;
    Ok(stream.write_all(&frame).await?)
}

/// Asks for connections over the first one, one after the other, until it breaks or nobody wants any.
async fn ask_for_more(mut first: Exchange, mut asked: mpsc::Receiver<oneshot::Sender<Result<UnixStream, WireError>>>) {
    if first.say(&Hello::More).is_err() {
        return;
    }
    while let Some(tell) = asked.recv().await {
        let made = one_more(&mut first).await;
        let broken = made.is_err();
        // Where nobody waits any more, the connection closes.
        drop(tell.send(made));
        if broken {
            return;
        }
    }
}

async fn one_more(first: &mut Exchange) -> Result<UnixStream, WireError> {
    first.say(&MoreRequest::Connection)?;
    match first.next_with_fd().await? {
        (FileReply::Ready { .. }, Some(fd)) => {
            let stream = StdStream::from(fd);
            stream.set_nonblocking(true)?;
            Ok(UnixStream::from_std(stream)?)
        }
        (reply, _) => Err(WireError::Malformed(format!("a connection was asked for and this came: {reply:?}"))),
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Descriptors from the node: compiled code and connected sockets.
#[derive(Debug)]
pub struct FilesClient {
    node: NodeWay,
    dials: Semaphore,
    loads: Semaphore,
    externals: Semaphore,
    idle: Mutex<Vec<Exchange>>,
}

impl FilesClient {
    /// A client of the node.
    pub fn new(node: impl Into<NodeWay>) -> Self {
        Self {
            node: node.into(),
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
        let mut stream = match idle {
            Some(stream) if stream.still_open() => stream,
            _ => {
                let stream = self.node.open(Hello::Files).await?;
                Exchange::new(stream, BytesMut::new(), MAX_FRAME).map_err(WireError::from)?
            }
        };
        stream.say(request)?;
        let (reply, received) = stream.next_with_fd().await?;
        if stream.is_drained() {
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
