//! Addresses for servers that are told theirs before they have it. They lie below those that the kernel hands out to whoever
//! asks for any, so nobody gets one between its choice and its use, nor while its server is started again.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::atomic::{AtomicU16, Ordering::Relaxed};

/// What there is to choose from; Nomad gives its tasks those from 20,000 on, and Linux whoever asks those from 32,768 on.
const FIRST: u16 = 10_000;
const COUNT: u16 = 10_000;

/// One that nobody listens at, and that no other test of this process is given.
///
/// # Panics
/// When there is none.
pub fn free() -> SocketAddr {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    // Other processes begin elsewhere: some of their servers may not listen yet.
    let begin = (std::process::id() % 97) as u16 * 103;
    for _ in 0..COUNT / 2 {
        // The one behind it is its server's, too: an OpenBao listens at both.
        let port = FIRST + (begin + NEXT.fetch_add(2, Relaxed) % COUNT) % COUNT;
        if let Ok(listener) = TcpListener::bind((Ipv4Addr::LOCALHOST, port)) {
            return listener.local_addr().expect("it has an address");
        }
    }
    panic!("no port from {FIRST} on is free");
}
