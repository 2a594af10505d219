//! Which addresses this machine has itself. A service that listens on all addresses of the machine answers on its public
//! and its private ones too, and what goes there never leaves the machine: a firewall around it sees nothing.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};
use std::os::fd::OwnedFd;
use std::sync::{LazyLock, Mutex, PoisonError};

use model::egress::{Class, classify};
use rustix::io::Errno;
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, bind, recv, socket_with};

/// Of more addresses than this it is not kept whether they are the machine's own.
const KEPT: usize = 4096;
/// What may make an address the machine's own, or end that: links, addresses, routes and rules of both families. The bits of
/// `nl_groups` in netlink(7) and rtnetlink(7).
const CHANGES: u32 = 0x1 | 0x10 | 0x40 | 0x80 | 0x100 | 0x400 | 0x4_0000;

/// Those of `addresses`, and of what they wrap, that are this machine's as it is now and do not say so.
pub(crate) fn among(addresses: &[IpAddr]) -> Vec<IpAddr> {
    let meant = addresses.iter().map(|address| match classify(*address) {
        Class::Wrapped(inner) => inner.into(),
        _ => *address,
    });
    meant.filter(|address| classify(*address).may_be_own() && is_known(*address)).collect()
}

/// [`is_own`], asked once until the kernel says that something changed: that is one call of it for each dial, where asking
/// anew is five, among them the making of a socket.
fn is_known(address: IpAddr) -> bool {
    static KNOWN: LazyLock<Mutex<Known>> = LazyLock::new(|| Mutex::new(Known::new()));
    KNOWN.lock().unwrap_or_else(PoisonError::into_inner).is_own(address)
}

/// What was found out about addresses. The kernel queues what it changes before whoever changed it goes on, so nothing that
/// is older than a change is believed after it.
struct Known {
    /// Where the kernel says that something changed; where it is not to be had, nothing is kept.
    changes: Option<OwnedFd>,
    own: HashMap<IpAddr, bool>,
}

impl Known {
    fn new() -> Self {
        Self { changes: listen().ok(), own: HashMap::new() }
    }

    fn is_own(&mut self, address: IpAddr) -> bool {
        let Some(changes) = &self.changes else { return is_own(address) };
        if changed(changes) || self.own.len() >= KEPT {
            self.own.clear();
        }
        *self.own.entry(address).or_insert_with(|| is_own(address))
    }
}

fn listen() -> Result<OwnedFd, Errno> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    // Without a number of a protocol: that of routes is 0.
    let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, None)?;
    bind(&socket, &SocketAddrNetlink::new(0, CHANGES))?;
    Ok(socket)
}

/// Whether anything was said since it was asked last. What does not fit is lost, and that is said too (`ENOBUFS`).
fn changed(changes: &OwnedFd) -> bool {
    let mut any = false;
    loop {
        // Of a message only that it came is of interest: the rest of it is dropped.
        match recv(changes, &mut [0; 16], RecvFlags::DONTWAIT) {
            Err(Errno::AGAIN) => return any,
            Err(Errno::INTR) => {}
            // Lost messages are said once; anything else that fails is no news that can be believed.
            Err(Errno::NOBUFS) | Ok(_) => any = true,
            Err(_) => return true,
        }
    }
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

    /// In a network of its own, which only this thread is in.
    #[test]
    #[expect(deprecated, reason = "the thread shares nothing of what it leaves with anybody who would miss it")]
    fn what_is_known_is_forgotten_when_an_address_comes_or_goes() {
        if !rustix::process::geteuid().is_root() {
            let what = "addresses of the machine that come and go. What was missing: the rights of root";
            println!("NOT RUN: {what}");
            if let Some(list) = std::env::var_os("SIDEREAL_NOT_RUN") {
                let mut list = std::fs::OpenOptions::new().append(true).create(true).open(list).unwrap();
                std::io::Write::write_all(&mut list, format!("{what}\n").as_bytes()).unwrap();
            }
            return;
        }
        let ip = |args: &str| {
            let ran = std::process::Command::new("ip").args(args.split(' ')).status().expect("ip of iproute2");
            assert!(ran.success(), "ip {args}");
        };
        std::thread::spawn(move || {
            rustix::thread::unshare(rustix::thread::UnshareFlags::NEWNET).unwrap();
            let mut known = Known::new();
            let address = Ipv4Addr::new(10, 9, 0, 1).into();
            ip("link set lo up");
            for _ in 0..3 {
                assert!(!known.is_own(address) && !known.is_own(address));
                ip("address add 10.9.0.1/32 dev lo");
                assert!(known.is_own(address) && known.is_own(address));
                ip("address delete 10.9.0.1/32 dev lo");
            }
            ip("route add local 10.9.0.0/24 dev lo");
            assert!(known.is_own(address));
            ip("route delete local 10.9.0.0/24 dev lo");
            assert!(!known.is_own(address));
            assert_eq!(known.own.len(), 1);
        })
        .join()
        .unwrap();
    }
}
