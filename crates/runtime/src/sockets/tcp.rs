//! `wasi:sockets/tcp` and `tcp-create-socket`. Connecting is all a socket can do; its options are those the node sets.

use std::net::SocketAddr;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use model::egress::Transport;
use wasmtime::component::Resource;
use wasmtime_wasi::p2::{DynInputStream, DynOutputStream, DynPollable, Pollable, subscribe};

use super::bindings::wasi::sockets::network::{ErrorCode, IpAddressFamily, IpSocketAddress};
use super::bindings::wasi::sockets::tcp::{Host, HostTcpSocket, ShutdownType};
use super::bindings::wasi::sockets::tcp_create_socket;
use super::stream::{In, Line, Out};
use super::{Answer, Connection, Network, Opening, SocketFault, from_guest, own_end, to_guest};
use crate::call::Subrequest;
use crate::ctx::Ctx;

/// What an unset option says: the value of Linux.
const HOP_LIMIT: u8 = 64;
const BUFFER: u64 = 128 << 10;
const IDLE_NS: u64 = 7_200_000_000_000;
const INTERVAL_NS: u64 = 75_000_000_000;
const PROBES: u32 = 9;

/// A socket of a guest.
#[allow(unreachable_pub, reason = "the generated module names it as public")]
pub struct TcpSocket {
    family: IpAddressFamily,
    state: State,
    /// Its place among what the call has open, until it is connected: then the [`Line`] has it.
    open: Option<Subrequest>,
}

enum State {
    New,
    Connecting(SocketAddr, Opening<Connection>),
    /// Known, and not asked for yet.
    Known(SocketAddr, Result<Connection, SocketFault>),
    Connected(SocketAddr, Arc<Line>),
    Failed,
}

impl TcpSocket {
    /// Takes what a connection attempt has come to, if it has.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let State::Connecting(remote, opening) = &mut self.state else { return Poll::Ready(()) };
        let Poll::Ready(result) = opening.as_mut().poll(cx) else { return Poll::Pending };
        self.state = State::Known(*remote, result);
        Poll::Ready(())
    }

    fn line(&self) -> Answer<&Arc<Line>> {
        match &self.state {
            State::Connected(_, line) => Ok(line),
            _ => Err(ErrorCode::InvalidState.into()),
        }
    }
}

#[async_trait::async_trait]
impl Pollable for TcpSocket {
    async fn ready(&mut self) {
        std::future::poll_fn(|cx| self.poll(cx)).await;
    }
}

impl Host for Ctx {}

impl tcp_create_socket::Host for Ctx {
    fn create_tcp_socket(&mut self, family: IpAddressFamily) -> Answer<Resource<TcpSocket>> {
        Ok(self.table.push(TcpSocket { family, state: State::New, open: None })?)
    }
}

type Streams = (Resource<DynInputStream>, Resource<DynOutputStream>);

impl HostTcpSocket for Ctx {
    fn start_bind(&mut self, _: Resource<TcpSocket>, _: Resource<Network>, _: IpSocketAddress) -> Answer<()> {
        Err(self.inbound())
    }

    fn finish_bind(&mut self, _: Resource<TcpSocket>) -> Answer<()> {
        Err(ErrorCode::NotInProgress.into())
    }

    fn start_connect(
        &mut self,
        socket: Resource<TcpSocket>,
        _: Resource<Network>,
        remote: IpSocketAddress,
    ) -> Answer<()> {
        let remote = from_guest(remote);
        let family = match self.table.get(&socket)? {
            TcpSocket { state: State::New, family, .. } => *family,
            TcpSocket { state: State::Connecting(..) | State::Known(..), .. } => {
                return Err(ErrorCode::ConcurrencyConflict.into());
            }
            _ => return Err(ErrorCode::InvalidState.into()),
        };
        let wanted = self.wanted(Transport::Tcp, family, remote)?;
        let socket = self.table.get_mut(&socket)?;
        socket.open = Some(wanted.open);
        socket.state = State::Connecting(remote, wanted.sockets.connect(wanted.host, wanted.port));
        Ok(())
    }

    fn finish_connect(&mut self, resource: Resource<TcpSocket>) -> Answer<Streams> {
        let socket = self.table.get_mut(&resource)?;
        if socket.poll(&mut Context::from_waker(Waker::noop())).is_pending() {
            return Err(ErrorCode::WouldBlock.into());
        }
        let (remote, result) = match std::mem::replace(&mut socket.state, State::Failed) {
            State::Known(remote, result) => (remote, result),
            other => {
                socket.state = other;
                return Err(ErrorCode::NotInProgress.into());
            }
        };
        match result {
            Ok(connection) => {
                let line = Line::new(connection, socket.open.take());
                socket.state = State::Connected(remote, line.clone());
                let input: DynInputStream = Box::new(In::new(line.clone()));
                let output: DynOutputStream = Box::new(Out::new(line));
                Ok((self.table.push(input)?, self.table.push(output)?))
            }
            Err(fault) => {
                socket.open = None;
                Err(self.code_of(&fault).into())
            }
        }
    }

    fn start_listen(&mut self, _: Resource<TcpSocket>) -> Answer<()> {
        Err(self.inbound())
    }

    fn finish_listen(&mut self, _: Resource<TcpSocket>) -> Answer<()> {
        Err(ErrorCode::NotInProgress.into())
    }

    fn accept(
        &mut self,
        _: Resource<TcpSocket>,
    ) -> Answer<(Resource<TcpSocket>, Resource<DynInputStream>, Resource<DynOutputStream>)> {
        Err(ErrorCode::InvalidState.into())
    }

    fn local_address(&mut self, socket: Resource<TcpSocket>) -> Answer<IpSocketAddress> {
        let socket = self.table.get(&socket)?;
        let port = socket.line()?.socket().local_addr().map_err(|_| ErrorCode::InvalidState)?.port();
        Ok(own_end(socket.family, port))
    }

    fn remote_address(&mut self, socket: Resource<TcpSocket>) -> Answer<IpSocketAddress> {
        match &self.table.get(&socket)?.state {
            State::Connected(remote, _) => Ok(to_guest(*remote)),
            _ => Err(ErrorCode::InvalidState.into()),
        }
    }

    fn is_listening(&mut self, _: Resource<TcpSocket>) -> wasmtime::Result<bool> {
        Ok(false)
    }

    fn address_family(&mut self, socket: Resource<TcpSocket>) -> wasmtime::Result<IpAddressFamily> {
        Ok(self.table.get(&socket)?.family)
    }

    fn set_listen_backlog_size(&mut self, _: Resource<TcpSocket>, _: u64) -> Answer<()> {
        Err(ErrorCode::NotSupported.into())
    }

    fn keep_alive_enabled(&mut self, _: Resource<TcpSocket>) -> Answer<bool> {
        Ok(false)
    }

    fn set_keep_alive_enabled(&mut self, _: Resource<TcpSocket>, _: bool) -> Answer<()> {
        Err(ErrorCode::NotSupported.into())
    }

    fn keep_alive_idle_time(&mut self, _: Resource<TcpSocket>) -> Answer<u64> {
        Ok(IDLE_NS)
    }

    fn set_keep_alive_idle_time(&mut self, _: Resource<TcpSocket>, _: u64) -> Answer<()> {
        Err(ErrorCode::NotSupported.into())
    }

    fn keep_alive_interval(&mut self, _: Resource<TcpSocket>) -> Answer<u64> {
        Ok(INTERVAL_NS)
    }

    fn set_keep_alive_interval(&mut self, _: Resource<TcpSocket>, _: u64) -> Answer<()> {
        Err(ErrorCode::NotSupported.into())
    }

    fn keep_alive_count(&mut self, _: Resource<TcpSocket>) -> Answer<u32> {
        Ok(PROBES)
    }

    fn set_keep_alive_count(&mut self, _: Resource<TcpSocket>, _: u32) -> Answer<()> {
        Err(ErrorCode::NotSupported.into())
    }

    fn hop_limit(&mut self, _: Resource<TcpSocket>) -> Answer<u8> {
        Ok(HOP_LIMIT)
    }

    fn set_hop_limit(&mut self, _: Resource<TcpSocket>, _: u8) -> Answer<()> {
        Err(ErrorCode::NotSupported.into())
    }

    fn receive_buffer_size(&mut self, _: Resource<TcpSocket>) -> Answer<u64> {
        Ok(BUFFER)
    }

    fn set_receive_buffer_size(&mut self, _: Resource<TcpSocket>, _: u64) -> Answer<()> {
        Err(ErrorCode::NotSupported.into())
    }

    fn send_buffer_size(&mut self, _: Resource<TcpSocket>) -> Answer<u64> {
        Ok(BUFFER)
    }

    fn set_send_buffer_size(&mut self, _: Resource<TcpSocket>, _: u64) -> Answer<()> {
        Err(ErrorCode::NotSupported.into())
    }

    fn subscribe(&mut self, socket: Resource<TcpSocket>) -> wasmtime::Result<Resource<DynPollable>> {
        subscribe(&mut self.table, socket)
    }

    fn shutdown(&mut self, socket: Resource<TcpSocket>, direction: ShutdownType) -> Answer<()> {
        let line = self.table.get(&socket)?.line()?.clone();
        let shut = match direction {
            ShutdownType::Receive => line.shut_reading(),
            ShutdownType::Send => line.shut_writing(),
            ShutdownType::Both => line.shut_reading().and_then(|()| line.shut_writing()),
        };
        shut.map_err(|_| ErrorCode::InvalidState.into())
    }

    fn drop(&mut self, socket: Resource<TcpSocket>) -> wasmtime::Result<()> {
        self.table.delete(socket)?;
        Ok(())
    }
}
