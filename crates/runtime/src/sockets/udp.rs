//! The datagrams of a guest, whichever contract it speaks. A socket is bound to nothing; each address it sends to gets
//! datagrams of its own from the broker, and those that come back are the only ones that come.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex};

use futures::future::{BoxFuture, FutureExt as _, select_all};
use model::egress::Transport;
use tokio::sync::Notify;

use super::SocketFault;
use super::addresses::Family;
use super::datagrams::{Peer, lock};
use super::grant::Code;
use crate::ctx::Ctx;

/// The largest datagram, bytes.
const LARGEST: usize = 65_507;
/// Addresses one socket sends to.
const PEERS: usize = 16;
/// What an unset option says.
pub(super) const HOP_LIMIT: u8 = 64;
pub(super) const BUFFER: u64 = 208 << 10;

/// The addresses one socket sends to.
pub(super) struct Peers {
    family: Family,
    /// Where everything goes, and the only place it comes from, where the guest said so.
    connected: Option<SocketAddr>,
    all: Mutex<Vec<Arc<Peer>>>,
    /// Who is asked first for what came, so that one who sends much does not silence the others.
    turn: AtomicUsize,
    /// A fault that is told with the next call.
    late: Mutex<Option<SocketFault>>,
    /// The socket has others: nothing comes here any more.
    replaced: AtomicBool,
    /// There is one more, or they were replaced.
    more: Notify,
}

impl Peers {
    /// Those of a socket that sends anywhere, as far as it is granted.
    pub(super) fn anywhere(family: Family) -> Arc<Self> {
        Arc::new(Self::new(family, None))
    }

    fn new(family: Family, connected: Option<SocketAddr>) -> Self {
        Self {
            family,
            connected,
            all: Mutex::default(),
            turn: AtomicUsize::new(0),
            late: Mutex::default(),
            replaced: AtomicBool::new(false),
            more: Notify::new(),
        }
    }

    pub(super) fn connected(&self) -> Option<SocketAddr> {
        self.connected
    }

    fn find(&self, remote: SocketAddr) -> Option<Arc<Peer>> {
        lock(&self.all).iter().find(|peer| peer.remote == remote).cloned()
    }

    fn add(&self, peer: Arc<Peer>) {
        lock(&self.all).push(peer);
        self.more.notify_waiters();
    }

    /// A fault of one address was told. Where the socket has others, it does not stand in their way any more.
    pub(super) fn told(&self, peer: &Arc<Peer>) {
        if self.connected.is_none() && peer.has_failed() {
            lock(&self.all).retain(|known| !Arc::ptr_eq(known, peer));
        }
    }

    /// Tells a fault with the next call: this one has something else to say.
    pub(super) fn tell_later(&self, fault: SocketFault) {
        *lock(&self.late) = Some(fault);
    }

    /// The next datagram and who sent it, if one is there.
    pub(super) fn receive(&self) -> Result<Option<(Vec<u8>, SocketAddr)>, SocketFault> {
        if let Some(fault) = lock(&self.late).take() {
            return Err(fault);
        }
        let mut all: Vec<_> = lock(&self.all).clone();
        let first = self.turn.load(Relaxed).checked_rem(all.len()).unwrap_or(0);
        all.rotate_left(first);
        for (nth, peer) in all.iter().enumerate() {
            match peer.receive() {
                Ok(Some(datagram)) => {
                    self.turn.store(first + nth + 1, Relaxed);
                    return Ok(Some((datagram, peer.remote)));
                }
                Ok(None) => {}
                Err(fault) => {
                    self.told(peer);
                    return Err(fault);
                }
            }
        }
        Ok(None)
    }

    /// Waits until [`Self::receive`] has something to say, or the socket has others.
    pub(super) async fn readable(&self) {
        loop {
            let mut more = std::pin::pin!(self.more.notified());
            more.as_mut().enable();
            if lock(&self.late).is_some() || self.replaced.load(Relaxed) {
                return;
            }
            let waits: Vec<BoxFuture<'_, ()>> =
                lock(&self.all).iter().map(|peer| peer.clone().readable().boxed()).collect();
            if waits.is_empty() {
                more.await;
                continue;
            }
            tokio::select! {
                _ = select_all(waits) => return,
                () = more => {}
            }
        }
    }

    /// Waits until every address has room.
    pub(super) async fn writable(&self) {
        let all: Vec<_> = lock(&self.all).clone();
        for peer in all {
            peer.writable().await;
        }
    }

    /// Whether every address has room.
    pub(super) fn is_writable(&self) -> bool {
        let all: Vec<_> = lock(&self.all).clone();
        all.into_iter().all(|peer| peer.writable().now_or_never().is_some())
    }

    /// The socket has others from now on: whoever waits for these looks again.
    pub(super) fn replace(&self) {
        self.replaced.store(true, Relaxed);
        self.more.notify_waiters();
    }
}

impl Ctx {
    /// The peers of a socket that sends to one address, which it begins to connect to.
    pub(super) fn peers_at(&mut self, family: Family, remote: SocketAddr) -> Result<Arc<Peers>, Code> {
        let peers = Peers::new(family, Some(remote));
        peers.add(Peer::open(self.wanted(Transport::Udp, family, remote)?, remote));
        Ok(Arc::new(peers))
    }

    /// Whom a datagram of `size` bytes goes to, where the guest says `remote`; begins to connect to who is new.
    pub(super) fn peer(&mut self, peers: &Peers, remote: Option<SocketAddr>, size: usize) -> Result<Arc<Peer>, Code> {
        let remote = match (peers.connected, remote) {
            (Some(connected), said) if said.is_none_or(|said| said == connected) => connected,
            (None, Some(said)) => said,
            _ => return Err(Code::InvalidArgument),
        };
        if size > LARGEST {
            return Err(Code::DatagramTooLarge);
        }
        match peers.find(remote) {
            Some(peer) => Ok(peer),
            None if lock(&peers.all).len() >= PEERS => Err(Code::TooManySockets),
            None => {
                let peer = Peer::open(self.wanted(Transport::Udp, peers.family, remote)?, remote);
                peers.add(peer.clone());
                Ok(peer)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::io;
    use std::pin::Pin;

    use futures::future::ready;
    use model::Limits;

    use super::*;
    use crate::call::Call;
    use crate::sockets::grant::Wanted;
    use crate::sockets::{Connection, Datagrams, Opening, Received, Sockets};

    /// Opens, but for port 1, what has sent as many datagrams as its port says.
    struct Ports;

    struct Sent(Mutex<VecDeque<u8>>);

    impl Datagrams for Sent {
        fn try_send(&self, _: &[u8]) -> io::Result<()> {
            Ok(())
        }
        fn try_recv(&self) -> io::Result<Option<Received>> {
            let next = lock(&self.0).pop_front().ok_or(io::ErrorKind::WouldBlock)?;
            Ok(Some(Received::Data(vec![next])))
        }
        fn readable(&self) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
            ready(()).boxed()
        }
        fn writable(&self) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
            ready(()).boxed()
        }
    }

    impl Sockets for Ports {
        fn grants(&self, _: Transport, _: &str, _: u16) -> bool {
            true
        }
        fn names(&self, _: &str) -> bool {
            true
        }
        fn connect(&self, _: String, _: u16) -> Opening<Connection> {
            ready(Err(SocketFault::Refused)).boxed()
        }
        fn datagrams(&self, _: String, port: u16) -> Opening<Arc<dyn Datagrams>> {
            let sent = (0..port).map(|n| n as u8).collect();
            let opened: Arc<dyn Datagrams> = Arc::new(Sent(Mutex::new(sent)));
            ready(if port == 1 { Err(SocketFault::Denied("no".into())) } else { Ok(opened) }).boxed()
        }
    }

    fn peer(port: u16) -> Arc<Peer> {
        let call = Arc::new(Call::new(&Limits::default(), Arc::default()));
        let open = call.take_subrequest().unwrap();
        let wanted = Wanted { sockets: Arc::new(Ports), host: "127.0.0.1".into(), port, open };
        Peer::open(wanted, SocketAddr::from(([127, 0, 0, 1], port)))
    }

    /// Ports in the order in which they are heard.
    async fn heard(peers: &Peers) -> Vec<Result<u16, SocketFault>> {
        let mut heard = Vec::new();
        loop {
            tokio::task::yield_now().await;
            match peers.receive() {
                Ok(Some((_, from))) => heard.push(Ok(from.port())),
                Ok(None) => return heard,
                Err(fault) => heard.push(Err(fault)),
            }
        }
    }

    #[tokio::test]
    async fn all_are_heard_in_turn_and_a_refusal_once() {
        let peers = Peers::anywhere(Family::V4);
        [peer(4), peer(1), peer(2)].into_iter().for_each(|peer| peers.add(peer));
        tokio::task::yield_now().await;
        let denied = SocketFault::Denied("no".into());
        assert_eq!(heard(&peers).await, [Ok(4), Err(denied.clone()), Ok(2), Ok(4), Ok(2), Ok(4), Ok(4)]);
        // What is told later is told once too, and what is connected to one address keeps its fault.
        peers.tell_later(SocketFault::Refused);
        assert_eq!(heard(&peers).await, [Err(SocketFault::Refused)]);
        let one = Peers::new(Family::V4, Some(SocketAddr::from(([127, 0, 0, 1], 1))));
        one.add(peer(1));
        tokio::task::yield_now().await;
        assert_eq!([one.receive(), one.receive()].map(Result::unwrap_err), [denied.clone(), denied]);
    }

    #[tokio::test]
    async fn only_so_many_wait_to_send_to_one_address() {
        let peer = peer(2);
        let waiting: Vec<_> = (0..17).map(|_| peer.sender()).collect();
        assert_eq!(waiting.iter().filter(|sender| sender.is_some()).count(), 16);
        drop(waiting);
        assert!(peer.sender().is_some(), "who has sent makes room");
    }
}
