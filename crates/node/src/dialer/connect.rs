//! Connecting to addresses that were decided on. A host waits for this, so what is connected at once is not waited for:
//! to this machine the kernel has the connection, or the refusal, before its first answer.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::time::Duration;

use api::services::FileFault;
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, ipproto, sockopt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::{Instant, timeout_at};

use super::unconnected;
use crate::connections::Socket;

/// An attempt on one of several addresses takes no longer, so that one dead address does not cost the whole time.
const ATTEMPT: Duration = Duration::from_millis(1500);
/// Addresses tried before giving up.
const MAX_ATTEMPTS: usize = 4;

/// Tries the checked addresses in the resolver's order; `None` where the time is up.
pub(super) async fn tcp(
    addresses: &[IpAddr],
    port: u16,
    deadline: Instant,
) -> Option<Result<(Socket, SocketAddr), FileFault>> {
    let mut last = None;
    let tried = addresses.len().min(MAX_ATTEMPTS);
    for (at, ip) in addresses.iter().take(MAX_ATTEMPTS).enumerate() {
        let address = SocketAddr::new(*ip, port);
        let until = if at + 1 == tried { deadline } else { deadline.min(Instant::now() + ATTEMPT) };
        match timeout_at(until, stream(address)).await {
            Ok(Ok(stream)) => return Some(Ok((Socket::Tcp(stream), address))),
            Ok(Err(cause)) => last = Some(unconnected(address, &cause)),
            Err(_) if Instant::now() >= deadline => return None,
            Err(_) => {}
        }
    }
    last.map(Err)
}

/// A connected socket that neither waits nor holds back what is small; what it is set to the host gets with it.
async fn stream(address: SocketAddr) -> io::Result<OwnedFd> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket = rustix::net::socket_with(family, SocketType::STREAM, flags, Some(ipproto::TCP))?;
    if let Err(cause) = sockopt::set_tcp_nodelay(&socket, true) {
        tracing::debug!(%address, %cause, "cannot switch off delayed sending");
    }
    // Asked a second time, the kernel says what became of it, and of what is still under way, that it is.
    match begun(&socket, &address).and_then(|began| if began { Ok(true) } else { begun(&socket, &address) }) {
        Ok(true) => Ok(socket),
        Ok(false) => settled(socket).await,
        Err(cause) => Err(cause.into()),
    }
}

/// Begins to connect, or asks how far that is: whether it is done.
fn begun(socket: &OwnedFd, address: &SocketAddr) -> Result<bool, Errno> {
    match rustix::net::connect(socket, address) {
        Ok(()) | Err(Errno::ISCONN) => Ok(true),
        Err(Errno::INPROGRESS | Errno::ALREADY) => Ok(false),
        Err(cause) => Err(cause),
    }
}

/// Waits for a connection that is under way.
async fn settled(socket: OwnedFd) -> io::Result<OwnedFd> {
    let stream = TcpStream::from_std(socket.into())?;
    stream.writable().await?;
    if let Some(cause) = stream.take_error()? {
        return Err(cause);
    }
    Ok(stream.into_std()?.into())
}

/// A UDP socket that sends to the first checked address there is a way to, and takes datagrams from it alone.
pub(super) async fn udp(addresses: &[IpAddr], port: u16) -> Result<(Socket, SocketAddr), FileFault> {
    let mut last = None;
    for ip in addresses {
        let address = SocketAddr::new(*ip, port);
        let any: IpAddr = if ip.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
        let connecting = async {
            let socket = UdpSocket::bind((any, 0)).await?;
            socket.connect(address).await?;
            Ok(socket)
        };
        match connecting.await {
            Ok(socket) => return Ok((Socket::Udp(socket), address)),
            Err(cause) => last = Some(unconnected(address, &cause)),
        }
    }
    Err(last.unwrap_or_else(|| FileFault::Dns { host: String::new(), cause: "it has no address".to_owned() }))
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use futures::FutureExt as _;

    use super::*;

    /// Whether it is as a host is to get it.
    fn is_ready(socket: &OwnedFd) -> bool {
        let flags = rustix::fs::fcntl_getfl(socket).unwrap();
        flags.contains(rustix::fs::OFlags::NONBLOCK) && sockopt::tcp_nodelay(socket).unwrap()
    }

    fn own(socket: &OwnedFd) -> SocketAddr {
        rustix::net::getsockname(socket).unwrap().try_into().unwrap()
    }

    /// Takes connections until this is the one.
    fn take(listener: &TcpListener, from: SocketAddr) {
        while listener.accept().unwrap().1 != from {}
    }

    #[tokio::test]
    async fn what_this_machine_answers_at_once_is_not_waited_for() {
        let loopback = [TcpListener::bind("127.0.0.1:0").ok(), TcpListener::bind("[::1]:0").ok()];
        for listener in loopback.into_iter().flatten() {
            let address = listener.local_addr().unwrap();
            // Where the kernel was busy, it is under way at first.
            let connected = (0..100).find_map(|_| stream(address).now_or_never()).unwrap().unwrap();
            assert!(is_ready(&connected));
            take(&listener, own(&connected));
            drop(listener);
            let refused = (0..100).find_map(|_| stream(address).now_or_never()).unwrap().unwrap_err();
            assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
        }
    }

    /// A listener on loopback that has as many connections that nobody took as it may have.
    async fn full() -> (TcpListener, OwnedFd) {
        let socket = rustix::net::socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
        rustix::net::bind(&socket, &SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).unwrap();
        rustix::net::listen(&socket, 0).unwrap();
        let listener = TcpListener::from(socket);
        let held = stream(listener.local_addr().unwrap()).await.unwrap();
        (listener, held)
    }

    #[tokio::test]
    async fn what_is_not_answered_at_once_is_waited_for() {
        let (listener, _held) = full().await;
        let mut waiting = Box::pin(stream(listener.local_addr().unwrap()));
        assert!(waiting.as_mut().now_or_never().is_none());
        // The kernel asks again after a second.
        drop(listener.accept().unwrap());
        let connected = waiting.await.unwrap();
        assert!(is_ready(&connected));
        take(&listener, own(&connected));
    }

    #[tokio::test]
    async fn an_address_that_does_not_answer_has_its_time_and_no_more() {
        let (listener, _held) = full().await;
        let port = listener.local_addr().unwrap().port();
        let soon = Instant::now() + Duration::from_millis(50);
        assert!(tcp(&[Ipv4Addr::LOCALHOST.into()], port, soon).await.is_none());
    }
}
