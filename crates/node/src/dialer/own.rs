//! Which addresses this machine has itself. A service that listens on all addresses of the machine answers on its public
//! and its private ones too, and what goes there never leaves the machine: a firewall around it sees nothing.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};

use model::egress::{Class, classify};

/// Those of `addresses`, and of what they wrap, that are this machine's as it is now and do not say so.
pub(crate) fn among(addresses: &[IpAddr]) -> Vec<IpAddr> {
    let meant = addresses.iter().map(|address| match classify(*address) {
        Class::Wrapped(inner) => inner.into(),
        _ => *address,
    });
    meant.filter(|address| classify(*address).may_be_own() && is_own(*address)).collect()
}

/// Whether it is an address of the network that this process is in: the kernel sends from an address to itself, and from another
/// one to everybody else. Nothing is sent.
pub fn is_own(address: IpAddr) -> bool {
    let any: IpAddr = if address.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let from = UdpSocket::bind((any, 0)).and_then(|socket| {
        socket.connect((address, 9))?;
        socket.local_addr()
    });
    // Where there is no way to it, connecting will say so.
    from.is_ok_and(|from| from.ip() == address)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_of_this_machine_is_told_from_others() {
        assert!(is_own(Ipv4Addr::LOCALHOST.into()));
        assert!(!is_own(Ipv4Addr::new(192, 0, 2, 1).into()));
        assert!(among(&[Ipv4Addr::LOCALHOST.into()]).is_empty(), "of others the policy knows more");
    }
}
