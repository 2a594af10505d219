//! Takes connections in: one listener per worker on the same port, bounds on how many connections a client and all
//! clients together have, and the look at the first bytes that tells HTTP/2 from HTTP/1.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, listen, socket_with, sockopt};
use tokio::net::TcpStream;
use tokio_util::task::TaskTracker;

use super::Worker;
use super::buffer::Buffer;
use super::h1::{self, Client};
use super::{h2, wire};
use crate::pace::LineRate;

const BACKLOG: i32 = 4096;
/// After a failed accept (no descriptors left, no memory) the next one waits, longer each time.
const BACKOFF: Duration = Duration::from_millis(10);
const MAX_BACKOFF: Duration = Duration::from_secs(1);
/// Lines about connections that were refused: a second over time, and at once.
const SAID: (f64, f64) = (0.1, 2.0);
/// What a client of HTTP/2 sends first.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Opens `count` listeners on one address. The first is bound alone, so an address somebody else listens on is refused
/// even where that listener would share it.
pub(super) fn listeners(address: SocketAddr, count: usize) -> io::Result<Vec<TcpListener>> {
    let first = open(address, false)?;
    sockopt::set_socket_reuseport(&first, true)?;
    let address = first.local_addr()?;
    let mut all = vec![first];
    while all.len() < count {
        all.push(open(address, true)?);
    }
    for listener in &all {
        listen(listener, BACKLOG)?;
        listener.set_nonblocking(true)?;
    }
    Ok(all)
}

fn open(address: SocketAddr, shared: bool) -> io::Result<TcpListener> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let socket = socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    // Connections of an earlier process that wait out their time do not keep the port.
    sockopt::set_socket_reuseaddr(&socket, true)?;
    sockopt::set_socket_reuseport(&socket, shared)?;
    if address.is_ipv6() && address.ip().is_unspecified() {
        // Every address is also every one of IPv4, whatever the machine's default is.
        sockopt::set_ipv6_v6only(&socket, false)?;
    }
    bind(&socket, &address)?;
    Ok(TcpListener::from(socket))
}

/// Accepts until the worker drains; errors are waited out.
pub(super) async fn accept(worker: Arc<Worker>, listener: tokio::net::TcpListener, tasks: TaskTracker) {
    let mut backoff = BACKOFF;
    loop {
        let accepted = tokio::select! {
            biased;
            () = worker.draining.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, peer)) => {
                backoff = BACKOFF;
                // Refused by closing it: an answer would cost what the bound is there to save.
                let ip = peer.ip().to_canonical();
                match worker.door.enter(ip) {
                    Ok(permit) => drop(tasks.spawn(serve(Arc::clone(&worker), stream, ip, permit))),
                    Err(bound) => worker.refused(ip, bound),
                }
            }
            Err(error) if is_of_one_connection(&error) => {}
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted; trying again in {backoff:?}");
                tokio::time::sleep(backoff).await;
                backoff = (backoff * 2).min(MAX_BACKOFF);
            }
        }
    }
}

fn is_of_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset)
}

async fn serve(worker: Arc<Worker>, mut stream: TcpStream, ip: IpAddr, _permit: Permit) {
    if stream.set_nodelay(true).is_err() {
        return;
    }
    let client = Client::new(ip);
    let mut buffer = Buffer::within(Arc::clone(&worker.heads));
    // HTTP/1 is decided by the first byte that is not the preface's, usually the first of all.
    let mut patience = worker.config.header_timeout;
    loop {
        let data = buffer.data();
        if data.len() >= PREFACE.len() && data.starts_with(PREFACE) {
            return h2::serve(worker, stream, client, buffer).await;
        }
        if !PREFACE.starts_with(data) {
            return h1::serve(worker, stream, client, buffer).await;
        }
        let began = tokio::time::Instant::now();
        let read = tokio::select! {
            biased;
            read = wire::fill(&mut stream, &mut buffer, patience) => read,
            () = worker.draining.cancelled() => return,
        };
        if !matches!(read, Ok(1..)) {
            return;
        }
        patience = patience.saturating_sub(began.elapsed());
    }
}

impl Worker {
    /// Says that a connection was refused, now and then: whoever has it sees it close, and nothing else tells anybody why.
    fn refused(&self, ip: IpAddr, bound: Bound) {
        let Some(others) = self.door.may_say(Instant::now()) else { return };
        let said = bound.said(ip, others);
        tracing::warn!("{said}");
        if let Some(remarks) = &self.config.remarks
            && remarks.try_send(said).is_err()
        {
            tracing::debug!("nobody takes remarks about connections");
        }
    }
}

/// Which bound a connection did not get past.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Bound {
    /// Of all clients together: so many.
    All(usize),
    /// Of one address: so many.
    Address(usize),
}

impl Bound {
    /// In words, of a connection of `ip` after so many others of which nothing was said.
    fn said(self, ip: IpAddr, others: u64) -> String {
        let why = match self {
            Self::All(most) => format!("{most} are open, the most of all clients together"),
            Self::Address(most) => format!("its address has {most} open, the most of one"),
        };
        let others = if others > 0 { format!(", and {others} before it") } else { String::new() };
        format!("a connection of {ip} was closed unread: {why}{others}")
    }
}

/// Counts connections and holds the bounds.
#[derive(Debug)]
pub(super) struct Door {
    most: usize,
    most_per_ip: usize,
    open: AtomicUsize,
    per_ip: Mutex<HashMap<IpAddr, usize>>,
    said: Mutex<LineRate>,
}

/// One connection's place; given back when dropped.
#[derive(Debug)]
pub(super) struct Permit {
    door: Arc<Door>,
    counted: Option<IpAddr>,
}

impl Door {
    pub(super) fn new(most: usize, most_per_ip: usize) -> Arc<Self> {
        let said = Mutex::new(LineRate::new(Instant::now(), SAID.0, SAID.1));
        Arc::new(Self { most, most_per_ip, open: AtomicUsize::new(0), per_ip: Mutex::default(), said })
    }

    /// Leave for a line about a refusal, with the number of those that had none before it.
    fn may_say(&self, now: Instant) -> Option<u64> {
        self.said.lock().unwrap_or_else(PoisonError::into_inner).take(now)
    }

    /// A place for a connection of this address.
    ///
    /// # Errors
    /// The bound that leaves none.
    pub(super) fn enter(self: &Arc<Self>, ip: IpAddr) -> Result<Permit, Bound> {
        let counted = key(ip);
        // Dropped, and so given back, where a bound is reached.
        let mut permit = Permit { door: Arc::clone(self), counted: None };
        if self.open.fetch_add(1, Ordering::Relaxed) >= self.most {
            return Err(Bound::All(self.most));
        }
        if let Some(ip) = counted {
            let mut per_ip = self.per_ip.lock().unwrap_or_else(PoisonError::into_inner);
            let count = per_ip.entry(ip).or_default();
            if *count >= self.most_per_ip {
                return Err(Bound::Address(self.most_per_ip));
            }
            *count += 1;
            permit.counted = Some(ip);
        }
        Ok(permit)
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.door.open.fetch_sub(1, Ordering::Relaxed);
        if let Some(ip) = self.counted {
            let mut per_ip = self.door.per_ip.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(count) = per_ip.get_mut(&ip) {
                *count -= 1;
                if *count == 0 {
                    per_ip.remove(&ip);
                }
            }
        }
    }
}

/// What connections are counted by: an IPv4 address, or the /64 one IPv6 customer has; nothing for loopback.
fn key(ip: IpAddr) -> Option<IpAddr> {
    match ip.to_canonical() {
        ip if ip.is_loopback() => None,
        IpAddr::V4(ip) => Some(ip.into()),
        IpAddr::V6(ip) => Some(Ipv6Addr::from_bits(ip.to_bits() & !u128::from(u64::MAX)).into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_bounded_and_given_back() {
        let door = Door::new(3, 2);
        let enter = |ip: &str| door.enter(ip.parse().unwrap());
        let a = enter("192.0.2.1").unwrap();
        let _b = enter("::ffff:192.0.2.1").unwrap();
        assert_eq!(enter("192.0.2.1").unwrap_err(), Bound::Address(2));
        let _c = enter("192.0.2.2").unwrap();
        assert_eq!(enter("192.0.2.3").unwrap_err(), Bound::All(3));
        drop(a);
        assert!(enter("192.0.2.1").is_ok());
        assert_eq!(door.open.load(Ordering::Relaxed), 2);
        assert_eq!(door.per_ip.lock().unwrap().len(), 2);
    }

    #[test]
    fn refusals_are_said_now_and_then() {
        let (door, start) = (Door::new(1, 1), Instant::now());
        let told = (0..1000).filter_map(|_| door.may_say(start)).count();
        assert_eq!(told, 2);
        let others = door.may_say(start + Duration::from_secs(60)).unwrap();
        let said = Bound::Address(1).said("192.0.2.1".parse().unwrap(), others);
        assert_eq!(
            said,
            "a connection of 192.0.2.1 was closed unread: its address has 1 open, the most of one, and 998 before it"
        );
    }

    #[test]
    fn one_customer_is_one_address_and_loopback_is_none() {
        let of = |ip: &str| key(ip.parse().unwrap());
        assert_eq!(of("2001:db8::1"), of("2001:db8::ffff:1"));
        assert_ne!(of("2001:db8::1"), of("2001:db8:0:1::1"));
        assert_eq!(of("127.0.0.9"), None);
        assert_eq!(of("::1"), None);
        assert_eq!(of("::ffff:127.0.0.1"), None);
    }

    #[test]
    fn every_address_is_of_both_kinds() {
        let Ok(listener) = listeners((Ipv6Addr::UNSPECIFIED, 0).into(), 1) else {
            return println!("NOT RUN: listening at every address: this machine has no IPv6");
        };
        assert!(!sockopt::ipv6_v6only(&listener[0]).unwrap());
        let port = listener[0].local_addr().unwrap().port();
        std::net::TcpStream::connect(("127.0.0.1", port)).unwrap();
    }

    #[test]
    fn a_taken_port_is_refused_even_if_its_owner_would_share_it() {
        let first = listeners(([127, 0, 0, 1], 0).into(), 2).unwrap();
        let address = first[0].local_addr().unwrap();
        assert_eq!(address, first[1].local_addr().unwrap());
        assert_eq!(listeners(address, 1).unwrap_err().kind(), io::ErrorKind::AddrInUse);
    }
}
