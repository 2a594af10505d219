//! A way to a server that lets through only so much of what its clients send, or so much a second: what goes over it is in the
//! middle for as long as a test wants, and not for as long as a machine takes.

use std::io::{Read, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

/// How soon what may go on goes on.
const LOOK: Duration = Duration::from_millis(5);

/// It; its threads end with the process.
pub struct Throttle {
    /// Where clients connect to.
    pub addr: SocketAddr,
    way: Arc<Way>,
}

/// What may pass: so many bytes still, and so many a second.
struct Way {
    left: AtomicUsize,
    rate: AtomicUsize,
}

impl Throttle {
    /// A free way to this server.
    ///
    /// # Errors
    /// When it cannot listen.
    pub fn before(server: SocketAddr) -> std::io::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let way = Arc::new(Way { left: AtomicUsize::new(usize::MAX), rate: AtomicUsize::new(usize::MAX) });
        let (addr, shared) = (listener.local_addr()?, way.clone());
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let way = shared.clone();
                std::thread::spawn(move || drop(between(&client, server, &way)));
            }
        });
        Ok(Self { addr, way })
    }

    /// So many bytes are let through, and then none until this is said again.
    pub fn passes(&self, bytes: usize) {
        self.way.left.store(bytes, SeqCst);
    }

    /// So many bytes a second are let through on each connection.
    pub fn rate(&self, bytes: usize) {
        self.way.rate.store(bytes, SeqCst);
    }
}

fn between(client: &TcpStream, server: SocketAddr, way: &Way) -> std::io::Result<()> {
    let server = TcpStream::connect(server)?;
    let answers = (server.try_clone()?, client.try_clone()?);
    std::thread::spawn(move || {
        let (mut from, mut to) = answers;
        drop(std::io::copy(&mut from, &mut to));
        drop((from.shutdown(Shutdown::Both), to.shutdown(Shutdown::Both)));
    });
    let (mut from, mut to, mut piece) = (client, &server, [0; 4096]);
    while let Ok(count @ 1..) = from.read(&mut piece) {
        let pay = |left: usize| if left == usize::MAX { Some(left) } else { left.checked_sub(count) };
        while way.left.fetch_update(SeqCst, SeqCst, pay).is_err() {
            std::thread::sleep(LOOK);
        }
        let rate = way.rate.load(SeqCst);
        if rate != usize::MAX {
            std::thread::sleep(Duration::from_secs_f64(count as f64 / rate as f64));
        }
        to.write_all(piece.get(..count).unwrap_or_default())?;
    }
    server.shutdown(Shutdown::Both)
}
