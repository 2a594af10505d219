//! `wasi:sockets` 0.3: calls that wait for themselves, and streams.

mod lookup;
mod streams;
mod tcp;
mod udp;

use std::net::{IpAddr, SocketAddr};

use wasmtime::component::{HasSelf, Linker, ResourceTableError};

use super::addresses::{Family, conversions};
use super::grant::Code;
use crate::ctx::Ctx;

mod bindings {
    wasmtime::component::bindgen!({
        path: "../../wit/p3",
        inline: "package sidereal:sockets; world imports { include wasi:sockets/imports@0.3.0; }",
        world: "sidereal:sockets/imports",
        imports: {
            "wasi:sockets/types.[method]tcp-socket.send": store | trappable,
            "wasi:sockets/types.[method]tcp-socket.receive": store | trappable,
            default: trappable,
        },
        with: {
            "wasi:clocks": wasmtime_wasi::p3::bindings::clocks,
            "wasi:sockets/types.tcp-socket": crate::sockets::tcp::TcpSocket,
            "wasi:sockets/types.udp-socket": super::udp::UdpSocket,
        },
        trappable_error_type: { "wasi:sockets/types.error-code" => super::Failed },
    });
}
use bindings::wasi::sockets::ip_name_lookup;
use bindings::wasi::sockets::types::{self, ErrorCode};

conversions!(types);

/// What a call of a guest failed with.
#[derive(Debug)]
#[allow(unreachable_pub, reason = "the generated module names it as public")]
pub enum Failed {
    Code(ErrorCode),
    Trap(wasmtime::Error),
}

impl From<Code> for ErrorCode {
    fn from(code: Code) -> Self {
        let other = |why: &str| Self::Other(Some(why.to_owned()));
        match code {
            Code::AccessDenied => Self::AccessDenied,
            Code::NotSupported => Self::NotSupported,
            Code::InvalidArgument => Self::InvalidArgument,
            Code::InvalidState => Self::InvalidState,
            Code::Timeout => Self::Timeout,
            Code::RemoteUnreachable => Self::RemoteUnreachable,
            Code::ConnectionRefused => Self::ConnectionRefused,
            Code::DatagramTooLarge => Self::DatagramTooLarge,
            Code::TooManyNames | Code::NoRoom => Self::OutOfMemory,
            // For these 0.3 has no words of its own; they are those of 0.2.
            Code::TooManySockets => other("new-socket-limit"),
            Code::NameUnresolvable => other("name-unresolvable"),
        }
    }
}

impl From<Code> for Failed {
    fn from(code: Code) -> Self {
        Self::Code(code.into())
    }
}

impl From<ResourceTableError> for Failed {
    fn from(cause: ResourceTableError) -> Self {
        Self::Trap(cause.into())
    }
}

type Answer<T> = Result<T, Failed>;

/// Adds every interface of `wasi:sockets` 0.3.
pub(crate) fn add_to_linker(linker: &mut Linker<Ctx>) -> wasmtime::Result<()> {
    types::add_to_linker::<Ctx, HasSelf<Ctx>>(linker, |c| c)?;
    ip_name_lookup::add_to_linker::<Ctx, HasSelf<Ctx>>(linker, |c| c)
}

impl types::Host for Ctx {
    fn convert_error_code(&mut self, error: Failed) -> wasmtime::Result<ErrorCode> {
        match error {
            Failed::Code(code) => Ok(code),
            Failed::Trap(cause) => Err(cause),
        }
    }
}
