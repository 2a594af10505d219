//! One file descriptor beside a frame's bytes (`SCM_RIGHTS`) on a tokio unix socket.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};

use bytes::BytesMut;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
};
use tokio::io::Interest;
use tokio::net::UnixStream;

/// Room for one read: a reply is far smaller.
const CHUNK: usize = 4096;

/// Sends all of `bytes`; the descriptor travels with the first of them.
pub(super) async fn send_with_fd(stream: &UnixStream, bytes: &[u8], fd: Option<BorrowedFd<'_>>) -> io::Result<()> {
    let mut fd = fd;
    let mut rest = bytes;
    while !rest.is_empty() {
        stream.writable().await?;
        let sent = stream.try_io(Interest::WRITABLE, || {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
            let mut control = SendAncillaryBuffer::new(&mut space);
            let fds = fd.map(|fd| [fd]);
            if let Some(fds) = &fds
                && !control.push(SendAncillaryMessage::ScmRights(fds))
            {
                return Err(io::Error::other("no room for a descriptor"));
            }
            Ok(rustix::net::sendmsg(stream, &[IoSlice::new(rest)], &mut control, SendFlags::NOSIGNAL)?)
        });
        match sent {
            Ok(n) => {
                fd = None;
                rest = rest.get(n..).unwrap_or_default();
            }
            Err(cause) if cause.kind() == io::ErrorKind::WouldBlock => {}
            Err(cause) => return Err(cause),
        }
    }
    Ok(())
}

/// Reads some bytes to the end of `buffer`, and the descriptor that came with them. 0 bytes: the other side closed.
pub(super) async fn recv_with_fd(stream: &UnixStream, buffer: &mut BytesMut) -> io::Result<(usize, Option<OwnedFd>)> {
    loop {
        stream.readable().await?;
        let got = stream.try_io(Interest::READABLE, || {
            let mut chunk = [0; CHUNK];
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
            let mut control = RecvAncillaryBuffer::new(&mut space);
            let slices = &mut [IoSliceMut::new(&mut chunk)];
            let message = rustix::net::recvmsg(stream, slices, &mut control, RecvFlags::CMSG_CLOEXEC)?;
            // A second descriptor does not fit the control buffer: the kernel closes it. Any that did fit is kept once.
            let mut fd = None;
            for part in control.drain() {
                if let RecvAncillaryMessage::ScmRights(fds) = part {
                    fd = fds.last().or(fd);
                }
            }
            buffer.extend_from_slice(chunk.get(..message.bytes).unwrap_or_default());
            Ok((message.bytes, fd))
        });
        match got {
            Err(cause) if cause.kind() == io::ErrorKind::WouldBlock => {}
            other => return other,
        }
    }
}
