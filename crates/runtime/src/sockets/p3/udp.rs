//! The UDP sockets of `wasi:sockets/types` in WASI 0.3.

use std::net::SocketAddr;
use std::sync::Arc;

use wasmtime::component::{Accessor, HasSelf, Resource};

use super::Answer;
use super::bindings::wasi::sockets::types::{HostUdpSocket, HostUdpSocketWithStore, IpAddressFamily, IpSocketAddress};
use crate::ctx::Ctx;
use crate::sockets::addresses::Family;
use crate::sockets::datagrams::Sender;
use crate::sockets::grant::Code;
use crate::sockets::udp::{BUFFER, HOP_LIMIT, Peers};

/// A socket of a guest.
#[allow(unreachable_pub, reason = "the generated module names it as public")]
pub struct UdpSocket {
    family: Family,
    bound: bool,
    peers: Arc<Peers>,
}

/// What a receiving socket has, or whom it waits for.
enum Received {
    Datagram(Vec<u8>, SocketAddr),
    Waits(Arc<Peers>),
}

impl HostUdpSocketWithStore<Ctx> for HasSelf<Ctx> {
    async fn send(
        accessor: &Accessor<Ctx, Self>,
        socket: Resource<UdpSocket>,
        data: Vec<u8>,
        remote: Option<IpSocketAddress>,
    ) -> Answer<()> {
        let (peers, sender) = accessor.with(|mut access| access.get().sender(&socket, remote, data.len()))?;
        let sent = sender.send(&data).await;
        sent.map_err(|fault| {
            peers.told(sender.peer());
            accessor.with(|mut access| access.get().code_of(&fault)).into()
        })
    }

    async fn receive(
        accessor: &Accessor<Ctx, Self>,
        socket: Resource<UdpSocket>,
    ) -> Answer<(Vec<u8>, IpSocketAddress)> {
        loop {
            match accessor.with(|mut access| access.get().received(&socket))? {
                Received::Datagram(data, from) => return Ok((data, from.into())),
                Received::Waits(peers) => peers.readable().await,
            }
        }
    }
}

impl Ctx {
    /// Begins to send. That binds, where nothing did before.
    fn sender(
        &mut self,
        socket: &Resource<UdpSocket>,
        remote: Option<IpSocketAddress>,
        size: usize,
    ) -> Answer<(Arc<Peers>, Sender)> {
        let peers = self.table.get(socket)?.peers.clone();
        let peer = self.peer(&peers, remote.map(SocketAddr::from), size)?;
        self.table.get_mut(socket)?.bound = true;
        Ok((peers, peer.sender().ok_or(Code::NoRoom)?))
    }

    fn received(&mut self, socket: &Resource<UdpSocket>) -> Answer<Received> {
        let socket = self.table.get(socket)?;
        if !socket.bound {
            return Err(Code::InvalidState.into());
        }
        let peers = socket.peers.clone();
        match peers.receive() {
            Ok(Some((data, from))) => Ok(Received::Datagram(data, from)),
            Ok(None) => Ok(Received::Waits(peers)),
            Err(fault) => Err(self.code_of(&fault).into()),
        }
    }

    /// Gives a socket other peers; the connections to those it had end.
    fn replace_peers(&mut self, socket: &Resource<UdpSocket>, peers: Arc<Peers>) -> Answer<()> {
        let socket = self.table.get_mut(socket)?;
        socket.bound = true;
        std::mem::replace(&mut socket.peers, peers).replace();
        Ok(())
    }
}

impl HostUdpSocket for Ctx {
    fn create(&mut self, family: IpAddressFamily) -> Answer<Resource<UdpSocket>> {
        let family = family.into();
        Ok(self.table.push(UdpSocket { family, bound: false, peers: Peers::anywhere(family) })?)
    }

    fn bind(&mut self, socket: Resource<UdpSocket>, at: IpSocketAddress) -> Answer<()> {
        let family = self.table.get(&socket)?.family;
        self.client_end(family, at.into())?;
        let socket = self.table.get_mut(&socket)?;
        if socket.bound {
            return Err(Code::InvalidState.into());
        }
        socket.bound = true;
        Ok(())
    }

    fn connect(&mut self, socket: Resource<UdpSocket>, remote: IpSocketAddress) -> Answer<()> {
        let family = self.table.get(&socket)?.family;
        let peers = self.peers_at(family, remote.into())?;
        self.replace_peers(&socket, peers)
    }

    fn disconnect(&mut self, socket: Resource<UdpSocket>) -> Answer<()> {
        let UdpSocket { family, peers, .. } = self.table.get(&socket)?;
        if peers.connected().is_none() {
            return Err(Code::InvalidState.into());
        }
        let peers = Peers::anywhere(*family);
        self.replace_peers(&socket, peers)
    }

    fn get_local_address(&mut self, socket: Resource<UdpSocket>) -> Answer<IpSocketAddress> {
        match self.table.get(&socket)? {
            UdpSocket { bound: true, family, .. } => Ok(family.own_end(0).into()),
            _ => Err(Code::InvalidState.into()),
        }
    }

    fn get_remote_address(&mut self, socket: Resource<UdpSocket>) -> Answer<IpSocketAddress> {
        let remote = self.table.get(&socket)?.peers.connected();
        remote.map(IpSocketAddress::from).ok_or_else(|| Code::InvalidState.into())
    }

    fn get_address_family(&mut self, socket: Resource<UdpSocket>) -> wasmtime::Result<IpAddressFamily> {
        Ok(self.table.get(&socket)?.family.into())
    }

    fn get_unicast_hop_limit(&mut self, _: Resource<UdpSocket>) -> Answer<u8> {
        Ok(HOP_LIMIT)
    }

    fn set_unicast_hop_limit(&mut self, _: Resource<UdpSocket>, _: u8) -> Answer<()> {
        Err(Code::NotSupported.into())
    }

    fn get_receive_buffer_size(&mut self, _: Resource<UdpSocket>) -> Answer<u64> {
        Ok(BUFFER)
    }

    fn set_receive_buffer_size(&mut self, _: Resource<UdpSocket>, _: u64) -> Answer<()> {
        Err(Code::NotSupported.into())
    }

    fn get_send_buffer_size(&mut self, _: Resource<UdpSocket>) -> Answer<u64> {
        Ok(BUFFER)
    }

    fn set_send_buffer_size(&mut self, _: Resource<UdpSocket>, _: u64) -> Answer<()> {
        Err(Code::NotSupported.into())
    }

    fn drop(&mut self, socket: Resource<UdpSocket>) -> wasmtime::Result<()> {
        self.table.delete(socket)?;
        Ok(())
    }
}
