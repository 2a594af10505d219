//! `wasi:sockets` 0.2: calls that do not wait, and pollables to wait with.

mod lookup;
mod streams;
mod tcp;
mod udp;

use std::net::{IpAddr, SocketAddr};

use wasmtime::component::{HasSelf, Linker, Resource, ResourceTableError};

use super::addresses::{Family, conversions};
use super::grant::Code;
use crate::ctx::Ctx;

mod bindings {
    wasmtime::component::bindgen!({
        path: "../../wit/p2",
        inline: "package sidereal:sockets; world imports { include wasi:sockets/imports@0.2.12; }",
        world: "sidereal:sockets/imports",
        imports: { default: trappable },
        require_store_data_send: true,
        with: {
            "wasi:io": wasmtime_wasi::p2::bindings::io,
            "wasi:clocks": wasmtime_wasi::p2::bindings::clocks,
            "wasi:sockets/network.network": super::Network,
            "wasi:sockets/tcp.tcp-socket": crate::sockets::tcp::TcpSocket,
            "wasi:sockets/udp.udp-socket": super::udp::UdpSocket,
            "wasi:sockets/udp.incoming-datagram-stream": super::udp::Incoming,
            "wasi:sockets/udp.outgoing-datagram-stream": super::udp::Outgoing,
            "wasi:sockets/ip-name-lookup.resolve-address-stream": super::lookup::Answers,
        },
        trappable_error_type: { "wasi:sockets/network.error-code" => super::Failed },
    });
}
use bindings::wasi::sockets::network::{self, ErrorCode};
use bindings::wasi::sockets::{instance_network, ip_name_lookup, tcp_create_socket, udp_create_socket};

conversions!(network);

/// What a guest calls a network; there is one.
#[derive(Debug)]
#[allow(unreachable_pub, reason = "the generated module names it as public")]
pub struct Network;

/// What a call of a guest failed with.
#[derive(Debug)]
#[allow(unreachable_pub, reason = "the generated module names it as public")]
pub enum Failed {
    Code(ErrorCode),
    Trap(wasmtime::Error),
}

impl From<ErrorCode> for Failed {
    fn from(code: ErrorCode) -> Self {
        Self::Code(code)
    }
}

impl From<Code> for Failed {
    fn from(code: Code) -> Self {
        Self::Code(match code {
            Code::AccessDenied => ErrorCode::AccessDenied,
            Code::NotSupported => ErrorCode::NotSupported,
            Code::InvalidArgument => ErrorCode::InvalidArgument,
            Code::InvalidState => ErrorCode::InvalidState,
            Code::Timeout => ErrorCode::Timeout,
            Code::TooManySockets => ErrorCode::NewSocketLimit,
            Code::TooManyNames | Code::NoRoom => ErrorCode::OutOfMemory,
            Code::RemoteUnreachable => ErrorCode::RemoteUnreachable,
            Code::ConnectionRefused => ErrorCode::ConnectionRefused,
            Code::DatagramTooLarge => ErrorCode::DatagramTooLarge,
            Code::NameUnresolvable => ErrorCode::NameUnresolvable,
        })
    }
}

impl From<ResourceTableError> for Failed {
    fn from(cause: ResourceTableError) -> Self {
        Self::Trap(cause.into())
    }
}

type Answer<T> = Result<T, Failed>;

/// Adds every interface of `wasi:sockets` 0.2.
pub(crate) fn add_to_linker(linker: &mut Linker<Ctx>) -> wasmtime::Result<()> {
    network::add_to_linker::<Ctx, HasSelf<Ctx>>(linker, &network::LinkOptions::default(), |c| c)?;
    instance_network::add_to_linker::<Ctx, HasSelf<Ctx>>(linker, |c| c)?;
    ip_name_lookup::add_to_linker::<Ctx, HasSelf<Ctx>>(linker, |c| c)?;
    bindings::wasi::sockets::tcp::add_to_linker::<Ctx, HasSelf<Ctx>>(linker, |c| c)?;
    tcp_create_socket::add_to_linker::<Ctx, HasSelf<Ctx>>(linker, |c| c)?;
    bindings::wasi::sockets::udp::add_to_linker::<Ctx, HasSelf<Ctx>>(linker, |c| c)?;
    udp_create_socket::add_to_linker::<Ctx, HasSelf<Ctx>>(linker, |c| c)
}

impl network::Host for Ctx {
    fn convert_error_code(&mut self, error: Failed) -> wasmtime::Result<ErrorCode> {
        match error {
            Failed::Code(code) => Ok(code),
            Failed::Trap(cause) => Err(cause),
        }
    }

    /// Not stable, and so not linked: no guest gets here.
    fn network_error_code(&mut self, _: Resource<wasmtime::Error>) -> wasmtime::Result<Option<ErrorCode>> {
        Ok(None)
    }
}

impl network::HostNetwork for Ctx {
    fn drop(&mut self, network: Resource<Network>) -> wasmtime::Result<()> {
        self.table.delete(network)?;
        Ok(())
    }
}

impl instance_network::Host for Ctx {
    fn instance_network(&mut self) -> wasmtime::Result<Resource<Network>> {
        Ok(self.table.push(Network)?)
    }
}
