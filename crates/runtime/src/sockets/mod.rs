//! `wasi:sockets` of guests. A host process has no network: whoever runs the component connects for it, so a socket here
//! is a state and, once connected, what the broker handed over. Nothing is bound, nothing is listened on, and names are
//! not resolved: a look-up gives out an address that only stands for the name until it is connected to.

mod lookup;
mod names;
mod stream;
mod tcp;
mod udp;

use std::future::Future;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;

use model::egress::Transport;
use tokio::net::TcpStream;
use wasmtime::component::{HasSelf, Linker, Resource, ResourceTableError};

use crate::call::Subrequest;
use crate::ctx::Ctx;
use crate::log::LogStreamKind;
pub(crate) use names::Names;

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
            "wasi:sockets/tcp.tcp-socket": super::tcp::TcpSocket,
            "wasi:sockets/udp.udp-socket": super::udp::UdpSocket,
            "wasi:sockets/udp.incoming-datagram-stream": super::udp::Incoming,
            "wasi:sockets/udp.outgoing-datagram-stream": super::udp::Outgoing,
            "wasi:sockets/ip-name-lookup.resolve-address-stream": super::lookup::Answers,
        },
        trappable_error_type: { "wasi:sockets/network.error-code" => super::Failed },
    });
}
use bindings::wasi::sockets::network::{self, ErrorCode, IpAddress, IpAddressFamily, IpSocketAddress};
use bindings::wasi::sockets::{instance_network, ip_name_lookup, tcp_create_socket, udp_create_socket};

/// A connected TCP socket. Dropping it ends the connection.
pub type Connection = Arc<dyn AsRef<TcpStream> + Send + Sync>;

/// What a [`Sockets`] returns.
pub type Opening<T> = Pin<Box<dyn Future<Output = Result<T, SocketFault>> + Send>>;

/// What came from a peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Received {
    /// A datagram.
    Data(Vec<u8>),
    /// The peer says that nobody listens there.
    Refused,
}

/// Datagrams to and from one address. Dropping it ends them.
pub trait Datagrams: Send + Sync {
    /// Sends one.
    ///
    /// # Errors
    /// [`io::ErrorKind::WouldBlock`] where there is no room now; any other means that no more will go.
    fn try_send(&self, datagram: &[u8]) -> io::Result<()>;

    /// The next one; `None` where no more will come.
    ///
    /// # Errors
    /// [`io::ErrorKind::WouldBlock`] where none is there now.
    fn try_recv(&self) -> io::Result<Option<Received>>;

    /// Waits until [`Self::try_recv`] has something to say.
    fn readable(&self) -> Pin<Box<dyn Future<Output = ()> + Send + '_>>;

    /// Waits until [`Self::try_send`] has room.
    fn writable(&self) -> Pin<Box<dyn Future<Output = ()> + Send + '_>>;
}

/// Why there is no connection.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SocketFault {
    /// Not granted, in words.
    #[error("{0}")]
    Denied(String),
    /// The name has no address.
    #[error("the name does not resolve")]
    Dns,
    /// Nobody listens there.
    #[error("the connection was refused")]
    Refused,
    /// No connection in time.
    #[error("the connection timed out")]
    TimedOut,
    /// Too many connections.
    #[error("too many connections")]
    Limited,
    /// Anything else.
    #[error("{0}")]
    Other(String),
}

/// Opens the sockets of one component.
pub trait Sockets: Send + Sync {
    /// Whether the component may have such a socket to `host`, a name or an address, and `port`.
    fn grants(&self, transport: Transport, host: &str, port: u16) -> bool;

    /// Whether the component may have any socket to `host`.
    fn names(&self, host: &str) -> bool;

    /// Connects. The name is resolved and its addresses are checked now.
    fn connect(&self, host: String, port: u16) -> Opening<Connection>;

    /// Datagrams to and from `host` and `port`.
    fn datagrams(&self, host: String, port: u16) -> Opening<Arc<dyn Datagrams>>;
}

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

/// Where a guest wants to, if it may.
struct Wanted {
    sockets: Arc<dyn Sockets>,
    host: String,
    port: u16,
    /// Holds its place among what the call has open.
    open: Subrequest,
}

impl Ctx {
    /// Checks where a guest wants to. What it may not is said in its log, with what to write.
    fn wanted(&mut self, transport: Transport, family: IpAddressFamily, remote: SocketAddr) -> Answer<Wanted> {
        let fits = family_of(remote.ip()) == family && !is_mapped(remote.ip());
        if !fits || remote.port() == 0 || remote.ip().is_unspecified() {
            return Err(ErrorCode::InvalidArgument.into());
        }
        let (host, port) = (self.names.host(remote.ip()), remote.port());
        let sockets = self.sockets().filter(|sockets| sockets.grants(transport, &host, port)).cloned();
        let Some(sockets) = sockets else {
            let entry = match host.contains(':') {
                true => format!("{transport}://[{host}]:{port}"),
                false => format!("{transport}://{host}:{port}"),
            };
            self.refused(&format!(
                "connecting to {host} port {port} over {transport} is not granted; where it is wanted, add \"{entry}\" to `allow-hosts` of this component in app.toml"
            ));
            return Err(ErrorCode::AccessDenied.into());
        };
        let open = self.call.take_subrequest().ok_or(ErrorCode::NewSocketLimit)?;
        Ok(Wanted { sockets, host, port, open })
    }

    fn refused(&mut self, why: &str) {
        self.log(LogStreamKind::Warn, "wasi:sockets", why.as_bytes());
    }

    /// The error code of a fault; what the operator's policy refused is said in the log.
    fn code_of(&mut self, fault: &SocketFault) -> ErrorCode {
        match fault {
            SocketFault::Denied(why) => {
                self.refused(why);
                ErrorCode::AccessDenied
            }
            SocketFault::Dns => ErrorCode::NameUnresolvable,
            SocketFault::Refused => ErrorCode::ConnectionRefused,
            SocketFault::TimedOut => ErrorCode::Timeout,
            SocketFault::Limited => ErrorCode::NewSocketLimit,
            SocketFault::Other(_) => ErrorCode::RemoteUnreachable,
        }
    }

    /// Nobody reaches a component from outside by a socket.
    fn inbound(&mut self) -> Failed {
        self.refused("a component binds and listens nowhere: requests come to it through routes");
        ErrorCode::AccessDenied.into()
    }
}

fn family_of(ip: IpAddr) -> IpAddressFamily {
    match ip {
        IpAddr::V4(_) => IpAddressFamily::Ipv4,
        IpAddr::V6(_) => IpAddressFamily::Ipv6,
    }
}

fn is_mapped(ip: IpAddr) -> bool {
    matches!(ip, IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some())
}

/// What a guest is told of its own end: the port, and not which address the machine has.
fn own_end(family: IpAddressFamily, port: u16) -> IpSocketAddress {
    let any: IpAddr = match family {
        IpAddressFamily::Ipv4 => Ipv4Addr::UNSPECIFIED.into(),
        IpAddressFamily::Ipv6 => Ipv6Addr::UNSPECIFIED.into(),
    };
    to_guest(SocketAddr::new(any, port))
}

fn ip_to_guest(ip: IpAddr) -> IpAddress {
    match ip {
        IpAddr::V4(v4) => IpAddress::Ipv4(v4.octets().into()),
        IpAddr::V6(v6) => IpAddress::Ipv6(v6.segments().into()),
    }
}

fn to_guest(address: SocketAddr) -> IpSocketAddress {
    match address {
        SocketAddr::V4(v4) => {
            let address = v4.ip().octets().into();
            IpSocketAddress::Ipv4(network::Ipv4SocketAddress { port: v4.port(), address })
        }
        SocketAddr::V6(v6) => IpSocketAddress::Ipv6(network::Ipv6SocketAddress {
            port: v6.port(),
            flow_info: 0,
            address: v6.ip().segments().into(),
            scope_id: 0,
        }),
    }
}

/// A zone or a flow means nothing to whoever dials, and is dropped.
fn from_guest(address: IpSocketAddress) -> SocketAddr {
    match address {
        IpSocketAddress::Ipv4(v4) => SocketAddr::from((<[u8; 4]>::from(v4.address), v4.port)),
        IpSocketAddress::Ipv6(v6) => SocketAddr::from((<[u16; 8]>::from(v6.address), v6.port)),
    }
}
