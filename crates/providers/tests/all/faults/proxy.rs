//! A TCP proxy between a provider and its server that fails in every way a network and a server can.
//!
//! It changes from one way to another while connections are open; those that are open change with it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::Instant;

/// What happens to what passes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    /// Nothing.
    Pass,
    /// Everything takes so much longer, each way.
    Slow(Duration),
    /// Nothing passes; connecting works, and nobody ever says anything. What was sent arrives when it passes again.
    Hang,
    /// Whoever answers speaks no protocol at all.
    Garbage,
    /// Nobody is there: connecting is refused, and what was open is closed.
    Refuse,
}

/// Unlike anything that Redis, NATS or HTTP say.
const NONSENSE: &[u8] = b"\x16\x03nonsense, and no protocol\r\n\xff\xfe\r\n";

#[derive(Clone, Copy)]
struct Way {
    mode: Mode,
    /// Connections up to this one are lost for good: nothing passes on them ever again.
    lost: u32,
    /// Connections up to this one are closed.
    cut: u32,
}

/// The proxy of one test, gone with it.
pub(crate) struct Proxy {
    pub(crate) address: SocketAddr,
    way: watch::Sender<Way>,
    accepted: Arc<AtomicU32>,
    listening: watch::Receiver<bool>,
    accepting: AbortHandle,
}

impl Proxy {
    /// Before the server at `server`, at an address of its own.
    pub(crate) async fn start(server: SocketAddr, mode: Mode) -> Self {
        // Held for as long as the test runs, so that nobody else has the address while nobody listens.
        let held = bound("127.0.0.1:0".parse().unwrap());
        let address = held.local_addr().unwrap();
        let (way, mut follow) = watch::channel(Way { mode, lost: 0, cut: 0 });
        let accepted = Arc::new(AtomicU32::new(0));
        let (tell, listening) = watch::channel(false);
        let count = accepted.clone();
        let accept = async move {
            let _held = held;
            let mut open = JoinSet::new();
            let mut listener: Option<TcpListener> = None;
            loop {
                match follow.borrow_and_update().mode {
                    Mode::Refuse => listener = None,
                    _ if listener.is_none() => listener = Some(bound(address).listen(1024).unwrap()),
                    _ => {}
                }
                tell.send_replace(listener.is_some());
                let Some(listening) = &listener else {
                    follow.changed().await.unwrap();
                    continue;
                };
                tokio::select! {
                    came = listening.accept() => {
                        let number = count.fetch_add(1, SeqCst) + 1;
                        open.spawn(connection(came.unwrap().0, server, number, follow.clone()));
                    }
                    changed = follow.changed() => changed.unwrap(),
                }
            }
        };
        let accepting = tokio::spawn(accept).abort_handle();
        let proxy = Self { address, way, accepted, listening, accepting };
        proxy.settled().await;
        proxy
    }

    /// From now on it is like this, for connections old and new.
    pub(crate) async fn set(&self, mode: Mode) {
        let accepted = self.accepted();
        self.way.send_modify(|way| {
            way.mode = mode;
            if mode == Mode::Refuse {
                way.cut = accepted;
            }
        });
        self.settled().await;
    }

    /// Closes what is open.
    pub(crate) fn cut(&self) {
        let accepted = self.accepted();
        self.way.send_modify(|way| way.cut = accepted);
    }

    /// What is open is lost without a word: neither side hears of the other again.
    pub(crate) fn lose(&self) {
        let accepted = self.accepted();
        self.way.send_modify(|way| way.lost = accepted);
    }

    /// Connections that came.
    pub(crate) fn accepted(&self) -> u32 {
        self.accepted.load(SeqCst)
    }

    async fn settled(&self) {
        let listens = self.way.borrow().mode != Mode::Refuse;
        self.listening.clone().wait_for(|now| *now == listens).await.unwrap();
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

fn bound(address: SocketAddr) -> TcpSocket {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_reuseaddr(true).unwrap();
    socket.bind(address).unwrap();
    socket
}

async fn connection(client: TcpStream, server: SocketAddr, number: u32, mut way: watch::Receiver<Way>) {
    client.set_nodelay(true).unwrap();
    let ways = way.clone();
    let work = async move {
        // A server that was not reached yet is reached when it passes.
        passes(&mut ways.clone(), number, Instant::now()).await;
        let (from_client, to_client) = client.into_split();
        let (from_server, to_server) = match TcpStream::connect(server).await {
            Ok(stream) => {
                stream.set_nodelay(true).unwrap();
                stream.into_split()
            }
            Err(_) => return,
        };
        let up = pump(from_client, to_server, number, ways.clone(), false);
        let down = pump(from_server, to_client, number, ways, true);
        tokio::join!(up, down);
    };
    tokio::select! {
        () = work => {}
        // One that came in the moment in which nobody is to come any more has a higher number.
        _ = way.wait_for(|way| way.cut >= number || way.mode == Mode::Refuse) => {}
    }
}

/// Waits until what was said at `said` may pass; how.
async fn passes(way: &mut watch::Receiver<Way>, number: u32, said: Instant) -> Mode {
    loop {
        let Way { mode, lost, .. } = *way.borrow_and_update();
        match mode {
            _ if lost >= number => std::future::pending().await,
            Mode::Hang | Mode::Refuse => way.changed().await.unwrap(),
            Mode::Slow(more) => {
                tokio::time::sleep_until(said + more).await;
                return mode;
            }
            Mode::Pass | Mode::Garbage => return mode,
        }
    }
}

/// One direction, with time for each piece of its own: what is slow is no narrower.
async fn pump(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    number: u32,
    mut way: watch::Receiver<Way>,
    answers: bool,
) {
    let (pieces, mut arrive) = mpsc::channel::<(Instant, Vec<u8>)>(256);
    let read = async move {
        let mut buffer = vec![0; 64 << 10];
        while let Ok(count @ 1..) = from.read(&mut buffer).await {
            if pieces.send((Instant::now(), buffer[..count].to_vec())).await.is_err() {
                return;
            }
        }
    };
    let write = async move {
        while let Some((said, piece)) = arrive.recv().await {
            let mode = passes(&mut way, number, said).await;
            let piece = if answers && mode == Mode::Garbage { NONSENSE } else { &piece };
            if to.write_all(piece).await.is_err() {
                return;
            }
        }
    };
    tokio::join!(read, write);
}
