//! The TCP sockets of `wasi:sockets/types` in WASI 0.3.

use std::future::{poll_fn, ready};
use std::io;
use std::iter;

use model::egress::Transport;
use tokio::sync::oneshot;
use wasmtime::component::{Access, Accessor, FutureReader, HasSelf, Resource, StreamReader};

use super::Answer;
use super::bindings::wasi::sockets::types::{
    Duration, HostTcpSocket, HostTcpSocketWithStore, IpAddressFamily, IpSocketAddress,
};
use super::streams::{Outcome, Receiving, Sending};
use crate::ctx::Ctx;
use crate::sockets::grant::Code;
use crate::sockets::tcp::{BUFFER, HOP_LIMIT, IDLE_NS, INTERVAL_NS, PROBES, Stage, TcpSocket};

impl HostTcpSocketWithStore<Ctx> for HasSelf<Ctx> {
    async fn connect(
        accessor: &Accessor<Ctx, Self>,
        socket: Resource<TcpSocket>,
        remote: IpSocketAddress,
    ) -> Answer<()> {
        accessor.with(|mut access| access.get().begin_connect(&socket, remote))?;
        // The attempt is the socket's, so that it ends with it.
        poll_fn(|cx| {
            accessor.with(|mut access| match access.get().table.get_mut(&socket) {
                Ok(socket) => socket.poll(cx).map(Ok),
                Err(cause) => std::task::Poll::Ready(Err(cause)),
            })
        })
        .await?;
        accessor.with(|mut access| access.get().finish_connect(&socket))
    }

    fn send(
        mut access: Access<'_, Ctx, Self>,
        socket: Resource<TcpSocket>,
        mut data: StreamReader<u8>,
    ) -> wasmtime::Result<FutureReader<Outcome>> {
        let line = access.get().table.get(&socket)?.line().cloned();
        match line.and_then(|line| if line.first_writer() { Ok(line) } else { Err(Code::InvalidState) }) {
            Ok(line) => {
                let (told, outcome) = oneshot::channel();
                data.pipe(&mut access, Sending::new(line, told))?;
                FutureReader::new(access, outcome)
            }
            Err(code) => {
                data.close(&mut access)?;
                failed(access, code)
            }
        }
    }

    fn receive(
        mut access: Access<'_, Ctx, Self>,
        socket: Resource<TcpSocket>,
    ) -> wasmtime::Result<(StreamReader<u8>, FutureReader<Outcome>)> {
        let line = access.get().table.get(&socket)?.line().cloned();
        match line.and_then(|line| if line.first_reader() { Ok(line) } else { Err(Code::InvalidState) }) {
            Ok(line) => {
                let (told, outcome) = oneshot::channel();
                let data = StreamReader::new(&mut access, Receiving::new(line, told))?;
                Ok((data, FutureReader::new(access, outcome)?))
            }
            Err(code) => Ok((StreamReader::new(&mut access, iter::empty())?, failed(access, code)?)),
        }
    }
}

/// A future that tells why there is nothing.
fn failed(access: Access<'_, Ctx, HasSelf<Ctx>>, code: Code) -> wasmtime::Result<FutureReader<Outcome>> {
    FutureReader::new(access, ready(Ok::<Outcome, io::Error>(Err(code.into()))))
}

impl Ctx {
    fn begin_connect(&mut self, socket: &Resource<TcpSocket>, remote: IpSocketAddress) -> Answer<()> {
        let (remote, state) = (remote.into(), self.table.get(socket)?);
        let family = state.family();
        if state.stage() != Stage::New {
            return Err(Code::InvalidState.into());
        }
        let wanted = self.wanted(Transport::Tcp, family, remote)?;
        self.table.get_mut(socket)?.begin(wanted, remote);
        Ok(())
    }

    fn finish_connect(&mut self, socket: &Resource<TcpSocket>) -> Answer<()> {
        match self.table.get_mut(socket)?.finish() {
            Some(Ok(_)) => Ok(()),
            Some(Err(fault)) => Err(self.code_of(&fault).into()),
            None => Err(Code::InvalidState.into()),
        }
    }
}

impl HostTcpSocket for Ctx {
    fn create(&mut self, family: IpAddressFamily) -> Answer<Resource<TcpSocket>> {
        Ok(self.table.push(TcpSocket::new(family.into()))?)
    }

    fn bind(&mut self, _: Resource<TcpSocket>, _: IpSocketAddress) -> Answer<()> {
        Err(self.inbound().into())
    }

    fn listen(&mut self, _: Resource<TcpSocket>) -> Answer<StreamReader<Resource<TcpSocket>>> {
        Err(self.inbound().into())
    }

    fn get_local_address(&mut self, socket: Resource<TcpSocket>) -> Answer<IpSocketAddress> {
        Ok(self.table.get(&socket)?.local()?.into())
    }

    fn get_remote_address(&mut self, socket: Resource<TcpSocket>) -> Answer<IpSocketAddress> {
        Ok(self.table.get(&socket)?.remote()?.into())
    }

    fn get_is_listening(&mut self, _: Resource<TcpSocket>) -> wasmtime::Result<bool> {
        Ok(false)
    }

    fn get_address_family(&mut self, socket: Resource<TcpSocket>) -> wasmtime::Result<IpAddressFamily> {
        Ok(self.table.get(&socket)?.family().into())
    }

    fn set_listen_backlog_size(&mut self, _: Resource<TcpSocket>, _: u64) -> Answer<()> {
        Err(Code::NotSupported.into())
    }

    fn get_keep_alive_enabled(&mut self, _: Resource<TcpSocket>) -> Answer<bool> {
        Ok(false)
    }

    fn set_keep_alive_enabled(&mut self, _: Resource<TcpSocket>, _: bool) -> Answer<()> {
        Err(Code::NotSupported.into())
    }

    fn get_keep_alive_idle_time(&mut self, _: Resource<TcpSocket>) -> Answer<Duration> {
        Ok(IDLE_NS)
    }

    fn set_keep_alive_idle_time(&mut self, _: Resource<TcpSocket>, _: Duration) -> Answer<()> {
        Err(Code::NotSupported.into())
    }

    fn get_keep_alive_interval(&mut self, _: Resource<TcpSocket>) -> Answer<Duration> {
        Ok(INTERVAL_NS)
    }

    fn set_keep_alive_interval(&mut self, _: Resource<TcpSocket>, _: Duration) -> Answer<()> {
        Err(Code::NotSupported.into())
    }

    fn get_keep_alive_count(&mut self, _: Resource<TcpSocket>) -> Answer<u32> {
        Ok(PROBES)
    }

    fn set_keep_alive_count(&mut self, _: Resource<TcpSocket>, _: u32) -> Answer<()> {
        Err(Code::NotSupported.into())
    }

    fn get_hop_limit(&mut self, _: Resource<TcpSocket>) -> Answer<u8> {
        Ok(HOP_LIMIT)
    }

    fn set_hop_limit(&mut self, _: Resource<TcpSocket>, _: u8) -> Answer<()> {
        Err(Code::NotSupported.into())
    }

    fn get_receive_buffer_size(&mut self, _: Resource<TcpSocket>) -> Answer<u64> {
        Ok(BUFFER)
    }

    fn set_receive_buffer_size(&mut self, _: Resource<TcpSocket>, _: u64) -> Answer<()> {
        Err(Code::NotSupported.into())
    }

    fn get_send_buffer_size(&mut self, _: Resource<TcpSocket>) -> Answer<u64> {
        Ok(BUFFER)
    }

    fn set_send_buffer_size(&mut self, _: Resource<TcpSocket>, _: u64) -> Answer<()> {
        Err(Code::NotSupported.into())
    }

    fn drop(&mut self, socket: Resource<TcpSocket>) -> wasmtime::Result<()> {
        self.table.delete(socket)?;
        Ok(())
    }
}
