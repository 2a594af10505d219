//! Addresses as contracts write them: the same shapes in each version, and other types. [`conversions`] writes the ways
//! between them and those of the standard library.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// The family of a socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Family {
    V4,
    V6,
}

impl Family {
    pub(super) fn of(ip: IpAddr) -> Self {
        match ip {
            IpAddr::V4(_) => Self::V4,
            IpAddr::V6(_) => Self::V6,
        }
    }

    /// What a guest is told of its own end: the port, and not which address the machine has.
    pub(super) fn own_end(self, port: u16) -> SocketAddr {
        let any: IpAddr = match self {
            Self::V4 => Ipv4Addr::UNSPECIFIED.into(),
            Self::V6 => Ipv6Addr::UNSPECIFIED.into(),
        };
        SocketAddr::new(any, port)
    }
}

/// Whether it is an IPv4 address in the clothes of the other family.
pub(super) fn is_mapped(ip: IpAddr) -> bool {
    matches!(ip, IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some())
}

/// The ways between the addresses of an interface, a module of generated types, and ours. A zone or a flow means nothing
/// to whoever dials, and is dropped.
macro_rules! conversions {
    ($words:ident) => {
        impl From<Family> for $words::IpAddressFamily {
            fn from(family: Family) -> Self {
                match family {
                    Family::V4 => Self::Ipv4,
                    Family::V6 => Self::Ipv6,
                }
            }
        }

        impl From<$words::IpAddressFamily> for Family {
            fn from(family: $words::IpAddressFamily) -> Self {
                match family {
                    $words::IpAddressFamily::Ipv4 => Self::V4,
                    $words::IpAddressFamily::Ipv6 => Self::V6,
                }
            }
        }

        impl From<IpAddr> for $words::IpAddress {
            fn from(ip: IpAddr) -> Self {
                match ip {
                    IpAddr::V4(v4) => Self::Ipv4(v4.octets().into()),
                    IpAddr::V6(v6) => Self::Ipv6(v6.segments().into()),
                }
            }
        }

        impl From<SocketAddr> for $words::IpSocketAddress {
            fn from(address: SocketAddr) -> Self {
                let port = address.port();
                match address.ip() {
                    IpAddr::V4(v4) => Self::Ipv4($words::Ipv4SocketAddress { port, address: v4.octets().into() }),
                    IpAddr::V6(v6) => Self::Ipv6($words::Ipv6SocketAddress {
                        port,
                        flow_info: 0,
                        address: v6.segments().into(),
                        scope_id: 0,
                    }),
                }
            }
        }

        impl From<$words::IpSocketAddress> for SocketAddr {
            fn from(address: $words::IpSocketAddress) -> Self {
                match address {
                    $words::IpSocketAddress::Ipv4(v4) => SocketAddr::from((<[u8; 4]>::from(v4.address), v4.port)),
                    $words::IpSocketAddress::Ipv6(v6) => SocketAddr::from((<[u16; 8]>::from(v6.address), v6.port)),
                }
            }
        }
    };
}
pub(super) use conversions;
