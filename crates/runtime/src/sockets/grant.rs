//! What a guest may do with sockets, whichever contract it speaks, and what its calls fail with. Here alone is asked
//! whether a component is granted what it wants, and here its place among what the call has open is taken.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use model::egress::{Destination, Transport};

use super::addresses::{Family, is_mapped};
use super::{SocketFault, Sockets};
use crate::call::Subrequest;
use crate::ctx::Ctx;
use crate::log::LogStreamKind;

/// Why a call of a guest failed. Each contract has its own word for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Code {
    /// Not granted; its log says what to write.
    AccessDenied,
    /// An option that the node alone sets.
    NotSupported,
    InvalidArgument,
    InvalidState,
    Timeout,
    /// More than a call, a socket or a tenant may have.
    TooManySockets,
    TooManyNames,
    /// Too many datagrams wait to be sent.
    NoRoom,
    RemoteUnreachable,
    ConnectionRefused,
    DatagramTooLarge,
    NameUnresolvable,
}

/// Where a guest wants to, if it may.
pub(super) struct Wanted {
    pub(super) sockets: Arc<dyn Sockets>,
    pub(super) host: String,
    pub(super) port: u16,
    /// Holds its place among what the call has open.
    pub(super) open: Subrequest,
}

impl Ctx {
    /// Checks where a guest wants to. What it may not is said in its log, with what to write.
    pub(super) fn wanted(&mut self, transport: Transport, family: Family, remote: SocketAddr) -> Result<Wanted, Code> {
        let fits = Family::of(remote.ip()) == family && !is_mapped(remote.ip());
        if !fits || remote.port() == 0 || remote.ip().is_unspecified() {
            return Err(Code::InvalidArgument);
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
            return Err(Code::AccessDenied);
        };
        let open = self.call.take_subrequest().ok_or(Code::TooManySockets)?;
        Ok(Wanted { sockets, host, port, open })
    }

    /// The address that stands for a name, see [`super::names`]; one that is written out is itself.
    pub(super) fn look_up(&mut self, name: &str) -> Result<IpAddr, Code> {
        match Destination::parse(name).map_err(|_| Code::InvalidArgument)? {
            Destination::Address(address) => Ok(address),
            Destination::Name(name) => {
                if !self.sockets().is_some_and(|sockets| sockets.names(&name)) {
                    self.refused(&format!(
                        "looking up {name} is not granted; where it is wanted, add \"tcp://{name}:PORT\" or \"udp://{name}:PORT\" to `allow-hosts` of this component in app.toml"
                    ));
                    return Err(Code::AccessDenied);
                }
                self.names.address(name).ok_or(Code::TooManyNames)
            }
        }
    }

    /// What a fault is to the guest; what the operator's policy refused is said in the log.
    pub(super) fn code_of(&mut self, fault: &SocketFault) -> Code {
        match fault {
            SocketFault::Denied(why) => {
                self.refused(why);
                Code::AccessDenied
            }
            SocketFault::Dns => Code::NameUnresolvable,
            SocketFault::Refused => Code::ConnectionRefused,
            SocketFault::TimedOut => Code::Timeout,
            SocketFault::Limited => Code::TooManySockets,
            SocketFault::Other(_) => Code::RemoteUnreachable,
        }
    }

    /// Nobody reaches a component from outside by a socket.
    pub(super) fn inbound(&mut self) -> Code {
        self.refused("a component binds and listens nowhere: requests come to it through routes");
        Code::AccessDenied
    }

    /// Any port of any address is what a client binds before it sends; nothing else is bound.
    pub(super) fn client_end(&mut self, family: Family, at: SocketAddr) -> Result<(), Code> {
        if !at.ip().is_unspecified() || at.port() != 0 {
            return Err(self.inbound());
        }
        if Family::of(at.ip()) != family {
            return Err(Code::InvalidArgument);
        }
        Ok(())
    }

    fn refused(&mut self, why: &str) {
        self.log(LogStreamKind::Warn, "wasi:sockets", why.as_bytes());
    }
}
