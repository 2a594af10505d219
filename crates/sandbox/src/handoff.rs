//! Descriptors for a process before it is confined: over the socket that is its stdin, in one message.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
    recvmsg, sendmsg,
};

use crate::SandboxError;

/// What a host is handed: it can make no socket itself.
#[derive(Debug)]
pub struct Handed {
    /// Where its agent API is asked.
    pub agent: OwnedFd,
    /// Where its requests come from.
    pub data: OwnedFd,
    /// The folder of compiled code, as a mere name of it.
    pub code: OwnedFd,
}

/// Hands a host its descriptors; the caller keeps its own copies.
///
/// # Errors
/// Where the other end is gone.
pub fn send(line: impl AsFd, fds: [BorrowedFd<'_>; 3]) -> std::io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(3))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !control.push(SendAncillaryMessage::ScmRights(&fds)) {
        return Err(std::io::Error::other("no room for the descriptors"));
    }
    sendmsg(line, &[IoSlice::new(b"h")], &mut control, SendFlags::NOSIGNAL)?;
    Ok(())
}

/// Waits for what [`send`] sent.
///
/// # Errors
/// [`SandboxError::Handoff`].
pub fn receive(line: impl AsFd) -> Result<Handed, SandboxError> {
    let failed = |why: String| SandboxError::Handoff(why);
    let mut byte = [0; 1];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(3))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = recvmsg(line, &mut [IoSliceMut::new(&mut byte)], &mut control, RecvFlags::CMSG_CLOEXEC);
    let received = received.map_err(|cause| failed(cause.to_string()))?;
    let mut fds: Vec<OwnedFd> = Vec::new();
    for part in control.drain() {
        if let RecvAncillaryMessage::ScmRights(some) = part {
            fds.extend(some);
        }
    }
    let count = fds.len();
    match (received.bytes, <[OwnedFd; 3]>::try_from(fds)) {
        (1, Ok([agent, data, code])) => Ok(Handed { agent, data, code }),
        (bytes, _) => Err(failed(format!("{bytes} bytes with {count} descriptors instead of 1 with 3"))),
    }
}
