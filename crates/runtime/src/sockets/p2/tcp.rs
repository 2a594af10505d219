//! `wasi:sockets/tcp` and `tcp-create-socket` of WASI 0.2.

use std::task::{Context, Waker};

use model::egress::Transport;
use wasmtime::component::Resource;
use wasmtime_wasi::p2::{DynInputStream, DynOutputStream, DynPollable, Pollable, subscribe};

use super::bindings::wasi::sockets::network::{ErrorCode, IpAddressFamily, IpSocketAddress};
use super::bindings::wasi::sockets::tcp::{Host, HostTcpSocket, ShutdownType};
use super::bindings::wasi::sockets::tcp_create_socket;
use super::streams::{In, Out};
use super::{Answer, Network};
use crate::ctx::Ctx;
use crate::sockets::grant::Code;
use crate::sockets::tcp::{BUFFER, HOP_LIMIT, IDLE_NS, INTERVAL_NS, PROBES, Stage, TcpSocket};

#[async_trait::async_trait]
impl Pollable for TcpSocket {
    async fn ready(&mut self) {
        std::future::poll_fn(|cx| self.poll(cx)).await;
    }
}

impl Host for Ctx {}

impl tcp_create_socket::Host for Ctx {
    fn create_tcp_socket(&mut self, family: IpAddressFamily) -> Answer<Resource<TcpSocket>> {
        Ok(self.table.push(TcpSocket::new(family.into()))?)
    }
}

type Streams = (Resource<DynInputStream>, Resource<DynOutputStream>);

impl HostTcpSocket for Ctx {
    fn start_bind(&mut self, _: Resource<TcpSocket>, _: Resource<Network>, _: IpSocketAddress) -> Answer<()> {
        Err(self.inbound().into())
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
        let (remote, state) = (remote.into(), self.table.get(&socket)?);
        let family = state.family();
        match state.stage() {
            Stage::New => {}
            Stage::Connecting => return Err(ErrorCode::ConcurrencyConflict.into()),
            Stage::Done => return Err(Code::InvalidState.into()),
        }
        let wanted = self.wanted(Transport::Tcp, family, remote)?;
        self.table.get_mut(&socket)?.begin(wanted, remote);
        Ok(())
    }

    fn finish_connect(&mut self, resource: Resource<TcpSocket>) -> Answer<Streams> {
        let socket = self.table.get_mut(&resource)?;
        if socket.poll(&mut Context::from_waker(Waker::noop())).is_pending() {
            return Err(ErrorCode::WouldBlock.into());
        }
        match socket.finish().ok_or(ErrorCode::NotInProgress)? {
            Ok(line) => {
                let input: DynInputStream = Box::new(In::new(line.clone()));
                let output: DynOutputStream = Box::new(Out::new(line));
                Ok((self.table.push(input)?, self.table.push(output)?))
            }
            Err(fault) => Err(self.code_of(&fault).into()),
        }
    }

    fn start_listen(&mut self, _: Resource<TcpSocket>) -> Answer<()> {
        Err(self.inbound().into())
    }

    fn finish_listen(&mut self, _: Resource<TcpSocket>) -> Answer<()> {
        Err(ErrorCode::NotInProgress.into())
    }

    fn accept(
        &mut self,
        _: Resource<TcpSocket>,
    ) -> Answer<(Resource<TcpSocket>, Resource<DynInputStream>, Resource<DynOutputStream>)> {
        Err(Code::InvalidState.into())
    }

    fn local_address(&mut self, socket: Resource<TcpSocket>) -> Answer<IpSocketAddress> {
        Ok(self.table.get(&socket)?.local()?.into())
    }

    fn remote_address(&mut self, socket: Resource<TcpSocket>) -> Answer<IpSocketAddress> {
        Ok(self.table.get(&socket)?.remote()?.into())
    }

    fn is_listening(&mut self, _: Resource<TcpSocket>) -> wasmtime::Result<bool> {
        Ok(false)
    }

    fn address_family(&mut self, socket: Resource<TcpSocket>) -> wasmtime::Result<IpAddressFamily> {
        Ok(self.table.get(&socket)?.family().into())
    }

    fn set_listen_backlog_size(&mut self, _: Resource<TcpSocket>, _: u64) -> Answer<()> {
        Err(Code::NotSupported.into())
    }

    fn keep_alive_enabled(&mut self, _: Resource<TcpSocket>) -> Answer<bool> {
        Ok(false)
    }

    fn set_keep_alive_enabled(&mut self, _: Resource<TcpSocket>, _: bool) -> Answer<()> {
        Err(Code::NotSupported.into())
    }

    fn keep_alive_idle_time(&mut self, _: Resource<TcpSocket>) -> Answer<u64> {
        Ok(IDLE_NS)
    }

    fn set_keep_alive_idle_time(&mut self, _: Resource<TcpSocket>, _: u64) -> Answer<()> {
        Err(Code::NotSupported.into())
    }

    fn keep_alive_interval(&mut self, _: Resource<TcpSocket>) -> Answer<u64> {
        Ok(INTERVAL_NS)
    }

    fn set_keep_alive_interval(&mut self, _: Resource<TcpSocket>, _: u64) -> Answer<()> {
        Err(Code::NotSupported.into())
    }

    fn keep_alive_count(&mut self, _: Resource<TcpSocket>) -> Answer<u32> {
        Ok(PROBES)
    }

    fn set_keep_alive_count(&mut self, _: Resource<TcpSocket>, _: u32) -> Answer<()> {
        Err(Code::NotSupported.into())
    }

    fn hop_limit(&mut self, _: Resource<TcpSocket>) -> Answer<u8> {
        Ok(HOP_LIMIT)
    }

    fn set_hop_limit(&mut self, _: Resource<TcpSocket>, _: u8) -> Answer<()> {
        Err(Code::NotSupported.into())
    }

    fn receive_buffer_size(&mut self, _: Resource<TcpSocket>) -> Answer<u64> {
        Ok(BUFFER)
    }

    fn set_receive_buffer_size(&mut self, _: Resource<TcpSocket>, _: u64) -> Answer<()> {
        Err(Code::NotSupported.into())
    }

    fn send_buffer_size(&mut self, _: Resource<TcpSocket>) -> Answer<u64> {
        Ok(BUFFER)
    }

    fn set_send_buffer_size(&mut self, _: Resource<TcpSocket>, _: u64) -> Answer<()> {
        Err(Code::NotSupported.into())
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
        shut.map_err(|_| Code::InvalidState.into())
    }

    fn drop(&mut self, socket: Resource<TcpSocket>) -> wasmtime::Result<()> {
        self.table.delete(socket)?;
        Ok(())
    }
}
