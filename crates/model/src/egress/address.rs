//! What kind of address an IP address is. Everything that is not plainly public has its own word, so that a refusal
//! can say what it refused.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The kind of an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Class {
    /// Reachable over the public internet.
    Public,
    /// `0.0.0.0/8`, `::`: on Linux a way to say *this machine*.
    Unspecified,
    /// `127.0.0.0/8`, `::1`.
    Loopback,
    /// `169.254.0.0/16`, `fe80::/10`.
    LinkLocal,
    /// RFC 1918, and the retired site-local `fec0::/10`.
    Private,
    /// `100.64.0.0/10`.
    CarrierNat,
    /// `fc00::/7`.
    UniqueLocal,
    /// Where clouds hand out credentials.
    Metadata,
    /// An address of the machine that dials, whatever its range: services that listen on all of its addresses answer there,
    /// past any firewall around the machine. No range says so: the node finds out.
    Own,
    /// `224.0.0.0/4`, `ff00::/8`.
    Multicast,
    /// `255.255.255.255`.
    Broadcast,
    /// Set aside for examples.
    Documentation,
    /// `198.18.0.0/15`, `2001:2::/48`.
    Benchmarking,
    /// Set aside by IANA for anything else, or not handed out.
    Reserved,
    /// An IPv6 address that only wraps an IPv4 address: mapped, compatible, NAT64, 6to4, Teredo, ISATAP.
    Wrapped(Ipv4Addr),
}

impl Class {
    /// Whether the machine that dials may have such an address, and it would say nothing of the class that it does. Loopback
    /// is the machine's wherever it is; the others nobody has.
    pub fn may_be_own(self) -> bool {
        !matches!(
            self,
            Self::Unspecified | Self::Loopback | Self::Metadata | Self::Multicast | Self::Broadcast | Self::Wrapped(_)
        )
    }
}

impl fmt::Display for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Class::Public => "a public address",
            Class::Unspecified => "an unspecified address",
            Class::Loopback => "a loopback address",
            Class::LinkLocal => "a link-local address",
            Class::Private => "a private address",
            Class::CarrierNat => "a carrier-grade NAT address",
            Class::UniqueLocal => "a unique local address",
            Class::Metadata => "a cloud metadata address",
            Class::Own => "an address of this machine, which only a range with ports grants",
            Class::Multicast => "a multicast address",
            Class::Broadcast => "a broadcast address",
            Class::Documentation => "a documentation address",
            Class::Benchmarking => "a benchmarking address",
            Class::Reserved => "a reserved address",
            // Not which one: a tenant is told the class of an address that it does not know.
            Class::Wrapped(inner) => return write!(f, "an IPv6 form of {}", classify_4(*inner)),
        })
    }
}

/// Credential services of the clouds, some of them on public-looking or private addresses.
const METADATA_4: [Ipv4Addr; 6] = [
    Ipv4Addr::new(169, 254, 169, 254),
    Ipv4Addr::new(169, 254, 170, 2),
    Ipv4Addr::new(169, 254, 170, 23),
    Ipv4Addr::new(100, 100, 100, 200),
    Ipv4Addr::new(192, 0, 0, 192),
    Ipv4Addr::new(168, 63, 129, 16),
];
const METADATA_6: [Ipv6Addr; 4] = [
    Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254),
    Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x23),
    Ipv6Addr::new(0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254),
    Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0xa9fe, 0xa9fe),
];

/// The kind of `address`.
pub fn classify(address: IpAddr) -> Class {
    match address {
        IpAddr::V4(v4) => classify_4(v4),
        IpAddr::V6(v6) => classify_6(v6),
    }
}

fn classify_4(address: Ipv4Addr) -> Class {
    if METADATA_4.contains(&address) {
        return Class::Metadata;
    }
    match address.octets() {
        [0, ..] => Class::Unspecified,
        [127, ..] => Class::Loopback,
        [169, 254, ..] => Class::LinkLocal,
        [10, ..] | [172, 16..=31, ..] | [192, 168, ..] => Class::Private,
        [100, 64..=127, ..] => Class::CarrierNat,
        [192, 0, 2, _] | [198, 51, 100, _] | [203, 0, 113, _] => Class::Documentation,
        // 192.0.0.0/24 is IETF protocol assignments, 192.88.99.0/24 the withdrawn 6to4 relays.
        [192, 0, 0, _] | [192, 88, 99, _] => Class::Reserved,
        [198, 18..=19, ..] => Class::Benchmarking,
        [224..=239, ..] => Class::Multicast,
        [255, 255, 255, 255] => Class::Broadcast,
        [240..=255, ..] => Class::Reserved,
        _ => Class::Public,
    }
}

fn classify_6(address: Ipv6Addr) -> Class {
    if METADATA_6.contains(&address) {
        return Class::Metadata;
    }
    let halves = |high: u16, low: u16| Ipv4Addr::from((u32::from(high) << 16) | u32::from(low));
    match address.segments() {
        [0, 0, 0, 0, 0, 0, 0, 0] => Class::Unspecified,
        [0, 0, 0, 0, 0, 0, 0, 1] => Class::Loopback,
        // Compatible `::a.b.c.d`, mapped `::ffff:a.b.c.d`, translated `::ffff:0:a.b.c.d`.
        [0, 0, 0, 0, 0, 0 | 0xffff, h, l] | [0, 0, 0, 0, 0xffff, 0, h, l] => Class::Wrapped(halves(h, l)),
        // NAT64: the well-known prefix and the one for local use.
        [0x64, 0xff9b, 0, 0, 0, 0, h, l] | [0x64, 0xff9b, 1, _, _, _, h, l] => Class::Wrapped(halves(h, l)),
        // 6to4 carries the address behind its prefix, Teredo inverted at its end, ISATAP at the end of any prefix.
        [0x2002, h, l, ..] => Class::Wrapped(halves(h, l)),
        [0x2001, 0, _, _, _, _, h, l] => Class::Wrapped(halves(!h, !l)),
        [_, _, _, _, 0 | 0x200, 0x5efe, h, l] => Class::Wrapped(halves(h, l)),
        [0xfe80..=0xfebf, ..] => Class::LinkLocal,
        [0xfec0..=0xfeff, ..] => Class::Private,
        [0xfc00..=0xfdff, ..] => Class::UniqueLocal,
        [0xff00..=0xffff, ..] => Class::Multicast,
        [0x2001, 0xdb8, ..] | [0x3fff, 0..=0xfff, ..] => Class::Documentation,
        [0x2001, 2, 0, ..] => Class::Benchmarking,
        // 2001::/23 is IETF protocol assignments. Only 2000::/3 is handed out as global unicast.
        [0x2001, 0..=0x1ff, ..] => Class::Reserved,
        [0x2000..=0x3fff, ..] => Class::Public,
        _ => Class::Reserved,
    }
}
