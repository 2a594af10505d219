//! `wasi:sockets/udp` and `udp-create-socket`. A socket is bound to nothing; each address it sends to gets datagrams of
//! its own from the broker, and those that come back are the only ones that come.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures::future::{BoxFuture, FutureExt as _, select_all};
use model::egress::Transport;
use tokio::sync::Notify;
use tokio::task::AbortHandle;
use wasmtime::component::Resource;
use wasmtime_wasi::p2::{DynPollable, Pollable, subscribe};

use super::bindings::wasi::sockets::network::{ErrorCode, IpAddressFamily, IpSocketAddress};
use super::bindings::wasi::sockets::udp::{
    Host, HostIncomingDatagramStream, HostOutgoingDatagramStream, HostUdpSocket, IncomingDatagram, OutgoingDatagram,
};
use super::bindings::wasi::sockets::udp_create_socket;
use super::{Answer, Datagrams, Network, Received, SocketFault, Wanted, from_guest, own_end, to_guest};
use crate::call::Subrequest;
use crate::ctx::Ctx;

/// The largest datagram, bytes.
const LARGEST: usize = 65_507;
/// Datagrams one call sends, or takes in, and that wait for an address to be connected.
const AT_ONCE: usize = 16;
/// Addresses one socket sends to.
const PEERS: usize = 16;
/// What an unset option says.
const HOP_LIMIT: u8 = 64;
const BUFFER: u64 = 208 << 10;

/// A socket of a guest.
#[allow(unreachable_pub, reason = "the generated module names it as public")]
pub struct UdpSocket {
    family: IpAddressFamily,
    bound: Bound,
    remote: Option<SocketAddr>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Bound {
    No,
    Starting,
    Yes,
}

/// The datagrams that come to a socket.
#[allow(unreachable_pub, reason = "the generated module names it as public")]
pub struct Incoming(Arc<Peers>);

/// The datagrams it sends.
#[allow(unreachable_pub, reason = "the generated module names it as public")]
pub struct Outgoing(Arc<Peers>);

/// The addresses one socket sends to.
struct Peers {
    family: IpAddressFamily,
    /// Where everything goes, and the only place it comes from, where the guest said so.
    connected: Option<SocketAddr>,
    all: Mutex<Vec<Arc<Peer>>>,
    /// There is one more.
    more: Notify,
}

struct Peer {
    remote: SocketAddr,
    line: Mutex<Line>,
    changed: Notify,
}

enum Line {
    Opening { task: Option<AbortHandle>, waiting: VecDeque<Vec<u8>> },
    Open { datagrams: Arc<dyn Datagrams>, full: bool, _open: Subrequest },
    Failed(SocketFault),
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Drop for Line {
    fn drop(&mut self) {
        if let Self::Opening { task: Some(task), .. } = self {
            task.abort();
        }
    }
}

impl Peer {
    /// Begins to connect; what is sent meanwhile waits.
    fn open(wanted: Wanted, remote: SocketAddr) -> Arc<Self> {
        let waiting = VecDeque::new();
        let line = Mutex::new(Line::Opening { task: None, waiting });
        let peer = Arc::new(Self { remote, line, changed: Notify::new() });
        let (weak, open) = (Arc::downgrade(&peer), wanted.open);
        let opening = wanted.sockets.datagrams(wanted.host, wanted.port);
        let task = tokio::spawn(async move {
            let opened = opening.await;
            let Some(peer) = weak.upgrade() else { return };
            let mut line = lock(&peer.line);
            if let Line::Opening { task, waiting } = &mut *line {
                *task = None;
                if let Ok(datagrams) = &opened {
                    // What finds no room is lost, as datagrams are.
                    waiting.drain(..).for_each(|datagram| drop(datagrams.try_send(&datagram)));
                }
            }
            *line = match opened {
                Ok(datagrams) => Line::Open { datagrams, full: false, _open: open },
                Err(fault) => Line::Failed(fault),
            };
            drop(line);
            peer.changed.notify_waiters();
        });
        if let Line::Opening { task: place, .. } = &mut *lock(&peer.line) {
            *place = Some(task.abort_handle());
        }
        peer
    }

    /// Takes a datagram; `false` where there is no room now.
    fn send(&self, datagram: &[u8]) -> Result<bool, SocketFault> {
        let mut line = lock(&self.line);
        match &mut *line {
            Line::Opening { waiting, .. } if waiting.len() < AT_ONCE => waiting.push_back(datagram.to_vec()),
            Line::Opening { .. } => return Ok(false),
            Line::Open { datagrams, full, .. } => match datagrams.try_send(datagram) {
                Ok(()) => *full = false,
                Err(cause) if cause.kind() == io::ErrorKind::WouldBlock => {
                    *full = true;
                    return Ok(false);
                }
                Err(cause) => return Err(fail(&mut line, cause.to_string())),
            },
            Line::Failed(fault) => return Err(fault.clone()),
        }
        Ok(true)
    }

    /// The next datagram, if one is there.
    fn receive(&self) -> Result<Option<Vec<u8>>, SocketFault> {
        let mut line = lock(&self.line);
        match &mut *line {
            Line::Opening { .. } => Ok(None),
            Line::Open { datagrams, .. } => match datagrams.try_recv() {
                Ok(Some(Received::Data(datagram))) => Ok(Some(datagram)),
                Ok(Some(Received::Refused)) => Err(SocketFault::Refused),
                Ok(None) => Err(fail(&mut line, "the connection has ended".to_owned())),
                Err(cause) if cause.kind() == io::ErrorKind::WouldBlock => Ok(None),
                Err(cause) => Err(fail(&mut line, cause.to_string())),
            },
            Line::Failed(fault) => Err(fault.clone()),
        }
    }

    /// Waits for something to receive.
    async fn readable(self: Arc<Self>) {
        loop {
            let mut changed = std::pin::pin!(self.changed.notified());
            changed.as_mut().enable();
            let datagrams = match &*lock(&self.line) {
                Line::Opening { .. } => None,
                Line::Open { datagrams, .. } => Some(datagrams.clone()),
                Line::Failed(_) => return,
            };
            match datagrams {
                Some(datagrams) => return datagrams.readable().await,
                None => changed.await,
            }
        }
    }

    /// Waits for room, where there was none.
    async fn writable(self: Arc<Self>) {
        loop {
            let mut changed = std::pin::pin!(self.changed.notified());
            changed.as_mut().enable();
            let datagrams = match &*lock(&self.line) {
                Line::Opening { waiting, .. } if waiting.len() >= AT_ONCE => None,
                Line::Open { datagrams, full: true, .. } => Some(datagrams.clone()),
                _ => return,
            };
            match datagrams {
                Some(datagrams) => return datagrams.writable().await,
                None => changed.await,
            }
        }
    }
}

fn fail(line: &mut Line, why: String) -> SocketFault {
    let fault = SocketFault::Other(why);
    *line = Line::Failed(fault.clone());
    fault
}

impl Peers {
    fn find(&self, remote: SocketAddr) -> Option<Arc<Peer>> {
        lock(&self.all).iter().find(|peer| peer.remote == remote).cloned()
    }

    fn add(&self, peer: Arc<Peer>) {
        lock(&self.all).push(peer);
        self.more.notify_waiters();
    }
}

#[async_trait::async_trait]
impl Pollable for Incoming {
    async fn ready(&mut self) {
        loop {
            let mut more = std::pin::pin!(self.0.more.notified());
            more.as_mut().enable();
            let waits: Vec<BoxFuture<'_, ()>> =
                lock(&self.0.all).iter().map(|peer| peer.clone().readable().boxed()).collect();
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
}

#[async_trait::async_trait]
impl Pollable for Outgoing {
    async fn ready(&mut self) {
        let all: Vec<_> = lock(&self.0.all).clone();
        for peer in all {
            peer.writable().await;
        }
    }
}

#[async_trait::async_trait]
impl Pollable for UdpSocket {
    async fn ready(&mut self) {}
}

impl Host for Ctx {}

impl udp_create_socket::Host for Ctx {
    fn create_udp_socket(&mut self, family: IpAddressFamily) -> Answer<Resource<UdpSocket>> {
        Ok(self.table.push(UdpSocket { family, bound: Bound::No, remote: None })?)
    }
}

impl HostUdpSocket for Ctx {
    fn start_bind(&mut self, socket: Resource<UdpSocket>, _: Resource<Network>, at: IpSocketAddress) -> Answer<()> {
        let at = from_guest(at);
        // Any port of any address is what a client binds before it sends.
        if !at.ip().is_unspecified() || at.port() != 0 {
            return Err(self.inbound());
        }
        let socket = self.table.get_mut(&socket)?;
        if super::family_of(at.ip()) != socket.family {
            return Err(ErrorCode::InvalidArgument.into());
        }
        if socket.bound != Bound::No {
            return Err(ErrorCode::InvalidState.into());
        }
        socket.bound = Bound::Starting;
        Ok(())
    }

    fn finish_bind(&mut self, socket: Resource<UdpSocket>) -> Answer<()> {
        let socket = self.table.get_mut(&socket)?;
        if socket.bound != Bound::Starting {
            return Err(ErrorCode::NotInProgress.into());
        }
        socket.bound = Bound::Yes;
        Ok(())
    }

    fn stream(
        &mut self,
        socket: Resource<UdpSocket>,
        remote: Option<IpSocketAddress>,
    ) -> Answer<(Resource<Incoming>, Resource<Outgoing>)> {
        let remote = remote.map(from_guest);
        let (family, bound) = {
            let socket = self.table.get(&socket)?;
            (socket.family, socket.bound)
        };
        if bound != Bound::Yes {
            return Err(ErrorCode::InvalidState.into());
        }
        let peers = Peers { family, connected: remote, all: Mutex::default(), more: Notify::new() };
        if let Some(remote) = remote {
            let wanted = self.wanted(Transport::Udp, family, remote)?;
            peers.add(Peer::open(wanted, remote));
        }
        self.table.get_mut(&socket)?.remote = remote;
        let peers = Arc::new(peers);
        Ok((self.table.push(Incoming(peers.clone()))?, self.table.push(Outgoing(peers))?))
    }

    fn local_address(&mut self, socket: Resource<UdpSocket>) -> Answer<IpSocketAddress> {
        let socket = self.table.get(&socket)?;
        match socket.bound {
            Bound::Yes => Ok(own_end(socket.family, 0)),
            _ => Err(ErrorCode::InvalidState.into()),
        }
    }

    fn remote_address(&mut self, socket: Resource<UdpSocket>) -> Answer<IpSocketAddress> {
        let remote = self.table.get(&socket)?.remote;
        remote.map(to_guest).ok_or_else(|| ErrorCode::InvalidState.into())
    }

    fn address_family(&mut self, socket: Resource<UdpSocket>) -> wasmtime::Result<IpAddressFamily> {
        Ok(self.table.get(&socket)?.family)
    }

    fn unicast_hop_limit(&mut self, _: Resource<UdpSocket>) -> Answer<u8> {
        Ok(HOP_LIMIT)
    }

    fn set_unicast_hop_limit(&mut self, _: Resource<UdpSocket>, _: u8) -> Answer<()> {
        Err(ErrorCode::NotSupported.into())
    }

    fn receive_buffer_size(&mut self, _: Resource<UdpSocket>) -> Answer<u64> {
        Ok(BUFFER)
    }

    fn set_receive_buffer_size(&mut self, _: Resource<UdpSocket>, _: u64) -> Answer<()> {
        Err(ErrorCode::NotSupported.into())
    }

    fn send_buffer_size(&mut self, _: Resource<UdpSocket>) -> Answer<u64> {
        Ok(BUFFER)
    }

    fn set_send_buffer_size(&mut self, _: Resource<UdpSocket>, _: u64) -> Answer<()> {
        Err(ErrorCode::NotSupported.into())
    }

    fn subscribe(&mut self, socket: Resource<UdpSocket>) -> wasmtime::Result<Resource<DynPollable>> {
        subscribe(&mut self.table, socket)
    }

    fn drop(&mut self, socket: Resource<UdpSocket>) -> wasmtime::Result<()> {
        self.table.delete(socket)?;
        Ok(())
    }
}

impl HostIncomingDatagramStream for Ctx {
    fn receive(&mut self, incoming: Resource<Incoming>, most: u64) -> Answer<Vec<IncomingDatagram>> {
        let all: Vec<_> = lock(&self.table.get(&incoming)?.0.all).clone();
        let most = usize::try_from(most).unwrap_or(AT_ONCE).min(AT_ONCE);
        let mut taken = Vec::new();
        for peer in all {
            while taken.len() < most {
                match peer.receive() {
                    Ok(Some(data)) => taken.push(IncomingDatagram { data, remote_address: to_guest(peer.remote) }),
                    Ok(None) => break,
                    // Told with the next call, where something came before it.
                    Err(_) if !taken.is_empty() => return Ok(taken),
                    Err(fault) => return Err(self.code_of(&fault).into()),
                }
            }
        }
        Ok(taken)
    }

    fn subscribe(&mut self, incoming: Resource<Incoming>) -> wasmtime::Result<Resource<DynPollable>> {
        subscribe(&mut self.table, incoming)
    }

    fn drop(&mut self, incoming: Resource<Incoming>) -> wasmtime::Result<()> {
        self.table.delete(incoming)?;
        Ok(())
    }
}

impl HostOutgoingDatagramStream for Ctx {
    fn check_send(&mut self, outgoing: Resource<Outgoing>) -> Answer<u64> {
        let peers = &self.table.get(&outgoing)?.0;
        let all: Vec<_> = lock(&peers.all).clone();
        let full = all.into_iter().any(|peer| peer.writable().now_or_never().is_none());
        Ok(if full { 0 } else { AT_ONCE as u64 })
    }

    fn send(&mut self, outgoing: Resource<Outgoing>, datagrams: Vec<OutgoingDatagram>) -> Answer<u64> {
        let peers = self.table.get(&outgoing)?.0.clone();
        let mut sent = 0;
        for datagram in datagrams.into_iter().take(AT_ONCE) {
            match self.send_one(&peers, datagram) {
                Ok(true) => sent += 1,
                Ok(false) => break,
                Err(_) if sent > 0 => break,
                Err(failed) => return Err(failed),
            }
        }
        Ok(sent)
    }

    fn subscribe(&mut self, outgoing: Resource<Outgoing>) -> wasmtime::Result<Resource<DynPollable>> {
        subscribe(&mut self.table, outgoing)
    }

    fn drop(&mut self, outgoing: Resource<Outgoing>) -> wasmtime::Result<()> {
        self.table.delete(outgoing)?;
        Ok(())
    }
}

impl Ctx {
    fn send_one(&mut self, peers: &Peers, datagram: OutgoingDatagram) -> Answer<bool> {
        let said = datagram.remote_address.map(from_guest);
        let remote = match (peers.connected, said) {
            (Some(connected), said) if said.is_none_or(|said| said == connected) => connected,
            (None, Some(said)) => said,
            _ => return Err(ErrorCode::InvalidArgument.into()),
        };
        if datagram.data.len() > LARGEST {
            return Err(ErrorCode::DatagramTooLarge.into());
        }
        let peer = match peers.find(remote) {
            Some(peer) => peer,
            None if lock(&peers.all).len() >= PEERS => return Err(ErrorCode::NewSocketLimit.into()),
            None => {
                let wanted = self.wanted(Transport::Udp, peers.family, remote)?;
                let peer = Peer::open(wanted, remote);
                peers.add(peer.clone());
                peer
            }
        };
        peer.send(&datagram.data).map_err(|fault| self.code_of(&fault).into())
    }
}
