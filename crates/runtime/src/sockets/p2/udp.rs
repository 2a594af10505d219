//! `wasi:sockets/udp` and `udp-create-socket` of WASI 0.2.

use std::net::SocketAddr;
use std::sync::Arc;

use wasmtime::component::Resource;
use wasmtime_wasi::p2::{DynPollable, Pollable, subscribe};

use super::bindings::wasi::sockets::network::{ErrorCode, IpAddressFamily, IpSocketAddress};
use super::bindings::wasi::sockets::udp::{
    Host, HostIncomingDatagramStream, HostOutgoingDatagramStream, HostUdpSocket, IncomingDatagram, OutgoingDatagram,
};
use super::bindings::wasi::sockets::udp_create_socket;
use super::{Answer, Network};
use crate::ctx::Ctx;
use crate::sockets::addresses::Family;
use crate::sockets::datagrams::AT_ONCE;
use crate::sockets::grant::Code;
use crate::sockets::udp::{BUFFER, HOP_LIMIT, Peers};

/// A socket of a guest.
#[allow(unreachable_pub, reason = "the generated module names it as public")]
pub struct UdpSocket {
    family: Family,
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

#[async_trait::async_trait]
impl Pollable for Incoming {
    async fn ready(&mut self) {
        self.0.readable().await;
    }
}

#[async_trait::async_trait]
impl Pollable for Outgoing {
    async fn ready(&mut self) {
        self.0.writable().await;
    }
}

#[async_trait::async_trait]
impl Pollable for UdpSocket {
    async fn ready(&mut self) {}
}

impl Host for Ctx {}

impl udp_create_socket::Host for Ctx {
    fn create_udp_socket(&mut self, family: IpAddressFamily) -> Answer<Resource<UdpSocket>> {
        Ok(self.table.push(UdpSocket { family: family.into(), bound: Bound::No, remote: None })?)
    }
}

impl HostUdpSocket for Ctx {
    fn start_bind(&mut self, socket: Resource<UdpSocket>, _: Resource<Network>, at: IpSocketAddress) -> Answer<()> {
        let family = self.table.get(&socket)?.family;
        self.client_end(family, at.into())?;
        let socket = self.table.get_mut(&socket)?;
        if socket.bound != Bound::No {
            return Err(Code::InvalidState.into());
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
        let (family, bound) = {
            let socket = self.table.get(&socket)?;
            (socket.family, socket.bound)
        };
        if bound != Bound::Yes {
            return Err(Code::InvalidState.into());
        }
        let peers = match remote {
            Some(remote) => self.peers_at(family, remote.into())?,
            None => Peers::anywhere(family),
        };
        self.table.get_mut(&socket)?.remote = peers.connected();
        Ok((self.table.push(Incoming(peers.clone()))?, self.table.push(Outgoing(peers))?))
    }

    fn local_address(&mut self, socket: Resource<UdpSocket>) -> Answer<IpSocketAddress> {
        let socket = self.table.get(&socket)?;
        match socket.bound {
            Bound::Yes => Ok(socket.family.own_end(0).into()),
            _ => Err(Code::InvalidState.into()),
        }
    }

    fn remote_address(&mut self, socket: Resource<UdpSocket>) -> Answer<IpSocketAddress> {
        let remote = self.table.get(&socket)?.remote;
        remote.map(IpSocketAddress::from).ok_or_else(|| Code::InvalidState.into())
    }

    fn address_family(&mut self, socket: Resource<UdpSocket>) -> wasmtime::Result<IpAddressFamily> {
        Ok(self.table.get(&socket)?.family.into())
    }

    fn unicast_hop_limit(&mut self, _: Resource<UdpSocket>) -> Answer<u8> {
        Ok(HOP_LIMIT)
    }

    fn set_unicast_hop_limit(&mut self, _: Resource<UdpSocket>, _: u8) -> Answer<()> {
        Err(Code::NotSupported.into())
    }

    fn receive_buffer_size(&mut self, _: Resource<UdpSocket>) -> Answer<u64> {
        Ok(BUFFER)
    }

    fn set_receive_buffer_size(&mut self, _: Resource<UdpSocket>, _: u64) -> Answer<()> {
        Err(Code::NotSupported.into())
    }

    fn send_buffer_size(&mut self, _: Resource<UdpSocket>) -> Answer<u64> {
        Ok(BUFFER)
    }

    fn set_send_buffer_size(&mut self, _: Resource<UdpSocket>, _: u64) -> Answer<()> {
        Err(Code::NotSupported.into())
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
        let peers = self.table.get(&incoming)?.0.clone();
        let most = usize::try_from(most).unwrap_or(AT_ONCE).min(AT_ONCE);
        let mut taken = Vec::new();
        while taken.len() < most {
            match peers.receive() {
                Ok(Some((data, from))) => taken.push(IncomingDatagram { data, remote_address: from.into() }),
                Ok(None) => break,
                Err(fault) if taken.is_empty() => return Err(self.code_of(&fault).into()),
                Err(fault) => {
                    peers.tell_later(fault);
                    break;
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
        let room = self.table.get(&outgoing)?.0.is_writable();
        Ok(if room { AT_ONCE as u64 } else { 0 })
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
    /// Whether there was room for it.
    fn send_one(&mut self, peers: &Peers, datagram: OutgoingDatagram) -> Answer<bool> {
        let remote = datagram.remote_address.map(SocketAddr::from);
        let peer = self.peer(peers, remote, datagram.data.len())?;
        peer.send(&datagram.data).map_err(|fault| {
            peers.told(&peer);
            self.code_of(&fault).into()
        })
    }
}
