//! Descriptors for a process before it is confined: over the socket that is its stdin, in one message.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
    recvmsg, sendmsg,
};

use crate::SandboxError;

/// The most a process is handed.
const MOST: usize = 8;

/// Hands a process descriptors, at most 8; the caller keeps its own copies.
///
/// # Errors
/// Where the other end is gone, or there are too many.
pub fn send(line: impl AsFd, fds: &[BorrowedFd<'_>]) -> std::io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    // The buffer is rounded up: more would fit, and not arrive.
    if fds.len() > MOST || !control.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(std::io::Error::other(format!("no room for {} descriptors", fds.len())));
    }
    sendmsg(line, &[IoSlice::new(b"h")], &mut control, SendFlags::NOSIGNAL)?;
    Ok(())
}

/// Waits for what [`send`] sent: exactly `N` descriptors, in its order.
///
/// # Errors
/// [`SandboxError::Handoff`].
pub fn receive<const N: usize>(line: impl AsFd) -> Result<[OwnedFd; N], SandboxError> {
    let failed = |why: String| SandboxError::Handoff(why);
    let mut byte = [0; 1];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST))];
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
    match (received.bytes, <[OwnedFd; N]>::try_from(fds)) {
        (1, Ok(fds)) => Ok(fds),
        (bytes, _) => Err(failed(format!("{bytes} bytes with {count} descriptors instead of 1 with {N}"))),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn what_is_handed_arrives_whole_or_not_at_all() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        send(&ours, &[ours.as_fd(), theirs.as_fd()]).unwrap();
        receive::<2>(&theirs).unwrap();
        send(&ours, &[ours.as_fd()]).unwrap();
        assert!(matches!(receive::<2>(&theirs), Err(SandboxError::Handoff(why)) if why.contains("1 descriptors")));
        assert!(send(&ours, &[ours.as_fd(); MOST + 1]).is_err());
        drop(ours);
        assert!(receive::<2>(&theirs).is_err());
    }
}
