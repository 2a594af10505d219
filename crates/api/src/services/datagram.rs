//! Datagrams between a host and the node's relay. A UDP socket sends to whatever address it is told, also one that is
//! connected: whoever holds it decides, so it never leaves the node. What is handed over is one end of a pair of packet
//! sockets (`SOCK_SEQPACKET`), which keeps the bounds of datagrams and says when the other end is gone.
//!
//! One packet is a tag and what belongs to it: [`DATA`] and the datagram, or, from the node alone, [`REFUSED`].

use std::io::{self, IoSlice};
use std::os::fd::OwnedFd;

use rustix::buffer::spare_capacity;
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, recv, socketpair};
use tokio::io::Interest;
use tokio::net::UnixStream;

/// The largest datagram, bytes: what fits a UDP packet over IPv4.
pub const MAX_DATAGRAM: usize = 65_507;

/// The tag of a datagram.
const DATA: u8 = 0;
/// The tag of news: the last datagrams were refused by the other side.
const REFUSED: u8 = 1;

/// What came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Packet<'a> {
    /// A datagram.
    Data(&'a [u8]),
    /// The address that is sent to says that nobody listens there.
    Refused,
}

/// One end of a pair. A stream to the reactor, which asks no more of it than whether it is ready.
#[derive(Debug)]
pub struct DatagramEnd(UnixStream);

/// Two ends: one to keep, one to hand over.
///
/// # Errors
/// Where there are no more descriptors. Must run inside a tokio runtime.
pub fn pair() -> io::Result<(DatagramEnd, OwnedFd)> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
    Ok((DatagramEnd::new(ours)?, theirs))
}

impl DatagramEnd {
    /// An end that was handed over.
    ///
    /// # Errors
    /// What the reactor says. Must run inside a tokio runtime.
    pub fn new(fd: OwnedFd) -> io::Result<Self> {
        let socket = std::os::unix::net::UnixStream::from(fd);
        socket.set_nonblocking(true)?;
        Ok(Self(UnixStream::from_std(socket)?))
    }

    /// Sends a datagram.
    ///
    /// # Errors
    /// [`io::ErrorKind::WouldBlock`] where there is no room now, any other where the other end is gone.
    pub fn try_send(&self, datagram: &[u8]) -> io::Result<()> {
        self.try_packet(DATA, datagram)
    }

    /// Tells that the address refused.
    ///
    /// # Errors
    /// As [`Self::try_send`].
    pub fn try_refused(&self) -> io::Result<()> {
        self.try_packet(REFUSED, &[])
    }

    fn try_packet(&self, tag: u8, datagram: &[u8]) -> io::Result<()> {
        if datagram.len() > MAX_DATAGRAM {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let tag = [tag];
        let parts = [IoSlice::new(&tag), IoSlice::new(datagram)];
        self.at_once(Interest::WRITABLE, || {
            // One packet. `sendmsg` could name an address, and is not for a host.
            rustix::io::writev(&self.0, &parts)?;
            Ok(())
        })
    }

    /// The next packet, read into `buffer`, whose content is replaced; `None` where the other end is gone.
    ///
    /// # Errors
    /// [`io::ErrorKind::WouldBlock`] where none is there now.
    pub fn try_recv<'a>(&self, buffer: &'a mut Vec<u8>) -> io::Result<Option<Packet<'a>>> {
        buffer.clear();
        buffer.reserve(MAX_DATAGRAM + 1);
        let got = self.at_once(Interest::READABLE, || Ok(recv(&self.0, spare_capacity(buffer), RecvFlags::empty())?));
        match got {
            Err(cause) if cause.kind() == io::ErrorKind::ConnectionReset => return Ok(None),
            Err(cause) => return Err(cause),
            Ok(_) => {}
        }
        Ok(match buffer.as_slice() {
            [DATA, datagram @ ..] => Some(Packet::Data(datagram)),
            [REFUSED, ..] => Some(Packet::Refused),
            _ => None,
        })
    }

    /// Asks the kernel, and the reactor only where there is something to wait for: of a fresh socket it knows nothing.
    fn at_once<T>(&self, interest: Interest, mut act: impl FnMut() -> io::Result<T>) -> io::Result<T> {
        match act() {
            Err(cause) if cause.kind() == io::ErrorKind::WouldBlock => self.0.try_io(interest, act),
            done => done,
        }
    }

    /// Waits until a datagram can be sent, or the other end is gone.
    ///
    /// # Errors
    /// What the reactor says.
    pub async fn writable(&self) -> io::Result<()> {
        self.0.writable().await
    }

    /// Waits until a packet is there, or the other end is gone.
    ///
    /// # Errors
    /// What the reactor says.
    pub async fn readable(&self) -> io::Result<()> {
        self.0.readable().await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn datagrams_keep_their_bounds_and_the_end_is_told() {
        let (ours, theirs) = pair().unwrap();
        let theirs = DatagramEnd::new(theirs).unwrap();
        ours.try_send(b"one").unwrap();
        ours.try_send(b"").unwrap();
        ours.try_refused().unwrap();
        let buffer = &mut Vec::new();
        theirs.readable().await.unwrap();
        assert_eq!(theirs.try_recv(buffer).unwrap(), Some(Packet::Data(b"one")));
        assert_eq!(theirs.try_recv(buffer).unwrap(), Some(Packet::Data(b"")));
        assert_eq!(theirs.try_recv(buffer).unwrap(), Some(Packet::Refused));
        assert_eq!(theirs.try_recv(buffer).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        let large = vec![7; MAX_DATAGRAM];
        theirs.try_send(&large).unwrap();
        ours.readable().await.unwrap();
        assert_eq!(ours.try_recv(buffer).unwrap(), Some(Packet::Data(&large)));
        assert!(theirs.try_send(&[0; MAX_DATAGRAM + 1]).is_err());
        drop(ours);
        theirs.readable().await.unwrap();
        assert_eq!(theirs.try_recv(buffer).unwrap(), None);
        assert_ne!(theirs.try_send(b"x").unwrap_err().kind(), io::ErrorKind::WouldBlock);
    }
}
