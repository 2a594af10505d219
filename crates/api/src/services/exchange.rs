//! A unix socket on which one side asks and the other answers, with a descriptor beside the bytes (`SCM_RIGHTS`).
//!
//! Somebody waits for the answer, so what counts is how often either side is woken. The reactor is asked for what comes and for
//! nothing else: of a socket that is to be written to as well, it hears whenever the other side has read, and each side was
//! woken twice for every question. Room to write needs no waiting for: what is under way is one small frame. Who goes on
//! asking and reads no answer is not one of ours.

use std::io::{self, IoSlice, IoSliceMut, Write as _};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream as StdStream;

use bytes::BytesMut;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::net::UnixStream;

use super::codec::{self, WireError};

/// Room for one read: most frames are far smaller.
const CHUNK: usize = 4096;

/// One end.
#[derive(Debug)]
pub(super) struct Exchange {
    socket: AsyncFd<StdStream>,
    buffer: BytesMut,
    most: usize,
}

impl Exchange {
    /// Takes a connection over, and the bytes that were read from it already. No frame of more than `most` bytes is
    /// accepted. Must run inside a tokio runtime.
    ///
    /// # Errors
    /// What the reactor says.
    pub(super) fn new(stream: UnixStream, buffer: BytesMut, most: usize) -> io::Result<Self> {
        Ok(Self { socket: quiet(stream.into_std()?)?, buffer, most })
    }

    /// Whether the other side is there. To be asked while it has nothing to say: anything readable is its end.
    pub(super) fn still_open(&self) -> bool {
        let peek = self.socket.try_io(Interest::READABLE, |stream| {
            let mut byte = [0; 1];
            Ok(rustix::net::recv(stream, &mut byte, RecvFlags::empty())?)
        });
        matches!(peek, Err(cause) if cause.kind() == io::ErrorKind::WouldBlock)
    }

    /// Sends one frame. Not with `sendmsg`: that could name an address, and is not for a host.
    ///
    /// # Errors
    /// Any [`WireError`]; the connection is of no more use then.
    pub(super) fn say(&self, what: &impl Serialize) -> Result<(), WireError> {
        let mut frame = BytesMut::new();
        codec::encode(what, &mut frame)?;
        Ok(self.socket.get_ref().write_all(&frame)?)
    }

    /// Sends one frame; the descriptor travels with the first of its bytes.
    ///
    /// # Errors
    /// As of [`Self::say`].
    pub(super) fn say_with_fd(&self, what: &impl Serialize, fd: Option<BorrowedFd<'_>>) -> Result<(), WireError> {
        let mut frame = BytesMut::new();
        codec::encode(what, &mut frame)?;
        let (mut fd, mut rest) = (fd, &*frame);
        while !rest.is_empty() {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
            let mut control = SendAncillaryBuffer::new(&mut space);
            let fds = fd.take().map(|fd| [fd]);
            if let Some(fds) = &fds
                && !control.push(SendAncillaryMessage::ScmRights(fds))
            {
                return Err(io::Error::other("no room for a descriptor").into());
            }
            let parts = [IoSlice::new(rest)];
            let sent = rustix::net::sendmsg(self.socket.get_ref(), &parts, &mut control, SendFlags::NOSIGNAL);
            rest = rest.get(sent.map_err(io::Error::from)?..).unwrap_or_default();
        }
        Ok(())
    }

    /// The next frame; `None` where the other side closed between frames. Descriptors that come with it are closed.
    ///
    /// # Errors
    /// As of [`Self::say`].
    pub(super) async fn next<T: DeserializeOwned>(&mut self) -> Result<Option<T>, WireError> {
        loop {
            if let Some(value) = self.ready()? {
                return Ok(Some(value));
            }
            let mut chunk = [0; CHUNK];
            let (count, _) = self.read(|stream| Ok(rustix::net::recv(stream, &mut chunk, RecvFlags::empty())?)).await?;
            match (count, self.buffer.is_empty()) {
                (0, true) => return Ok(None),
                (0, false) => return Err(WireError::Closed),
                _ => self.buffer.extend_from_slice(chunk.get(..count).unwrap_or_default()),
            }
        }
    }

    /// The next frame, and the descriptor that came with it.
    ///
    /// # Errors
    /// As of [`Self::say`], and [`WireError::Closed`] where the other side closed.
    pub(super) async fn next_with_fd<T: DeserializeOwned>(&mut self) -> Result<(T, Option<OwnedFd>), WireError> {
        let mut received = None;
        loop {
            if let Some(value) = self.ready()? {
                return Ok((value, received));
            }
            let mut chunk = [0; CHUNK];
            let (count, fd) = self.read(|stream| receive(stream, &mut chunk)).await?;
            if count == 0 {
                return Err(WireError::Closed);
            }
            self.buffer.extend_from_slice(chunk.get(..count).unwrap_or_default());
            received = fd.or(received);
        }
    }

    /// Whether nothing came after the last frame.
    pub(super) fn is_drained(&self) -> bool {
        self.buffer.is_empty()
    }

    fn ready<T: DeserializeOwned>(&mut self) -> Result<Option<T>, WireError> {
        codec::size_within(&self.buffer, self.most)?;
        codec::decode(&mut self.buffer)
    }

    /// Reads what there is, or waits for it. Whoever always has more to read gives way, as everywhere.
    async fn read<T>(&self, mut read: impl FnMut(&StdStream) -> io::Result<T>) -> io::Result<T> {
        loop {
            let mut ready = std::future::poll_fn(|cx| self.socket.poll_read_ready(cx)).await?;
            if let Ok(done) = ready.try_io(|socket| read(socket.get_ref())) {
                return done;
            }
        }
    }
}

#[expect(
    deprecated,
    reason = "its successor is unsafe for the sake of descriptors that change; that of a stream does not"
)]
fn quiet(stream: StdStream) -> io::Result<AsyncFd<StdStream>> {
    AsyncFd::with_interest(stream, Interest::READABLE)
}

/// Reads some bytes, and the descriptor that came with them. A second descriptor does not fit the control buffer: the kernel
/// closes it. Any that did fit is kept once.
fn receive(stream: &StdStream, chunk: &mut [u8]) -> io::Result<(usize, Option<OwnedFd>)> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let parts = &mut [IoSliceMut::new(chunk)];
    let message = rustix::net::recvmsg(stream, parts, &mut control, RecvFlags::CMSG_CLOEXEC)?;
    let mut fd = None;
    for part in control.drain() {
        if let RecvAncillaryMessage::ScmRights(fds) = part {
            fd = fds.last().or(fd);
        }
    }
    Ok((message.bytes, fd))
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

    use super::*;

    fn pair(most: usize) -> (Exchange, Exchange) {
        let (one, other) = UnixStream::pair().unwrap();
        let end = |stream| Exchange::new(stream, BytesMut::new(), most).unwrap();
        (end(one), end(other))
    }

    #[tokio::test]
    async fn the_reactor_hears_of_what_comes_and_not_of_room_to_write() {
        let (mut asks, mut answers) = pair(100);
        for n in 0..10_u8 {
            asks.say(&n).unwrap();
            assert_eq!(answers.next().await.unwrap(), Some(n));
            answers.say(&n).unwrap();
            assert_eq!(asks.next().await.unwrap(), Some(n));
            for end in [&asks, &answers] {
                assert!(end.socket.writable().now_or_never().is_none());
            }
        }
    }

    #[tokio::test]
    async fn frames_of_any_cut_come_whole_and_one_above_the_limit_does_not() {
        let (mut reads, writes) = pair(10_000);
        let long = "x".repeat(9_000);
        let mut wire = BytesMut::new();
        for text in ["", &long, "a"] {
            codec::encode(text, &mut wire).unwrap();
        }
        let reading = async {
            for text in ["", &long, "a"] {
                assert_eq!(reads.next::<String>().await.unwrap().as_deref(), Some(text));
            }
            assert!(reads.is_drained());
            reads
        };
        let writing = async {
            for part in wire.chunks(700) {
                writes.socket.get_ref().write_all(part).unwrap();
                tokio::task::yield_now().await;
            }
        };
        let (mut reads, ()) = tokio::join!(reading, writing);
        writes.say(&"y".repeat(10_000)).unwrap();
        assert!(matches!(reads.next::<String>().await, Err(WireError::TooLarge(_))));
    }

    #[tokio::test]
    async fn an_end_between_frames_is_none_and_inside_of_one_an_error() {
        let (mut reads, writes) = pair(100);
        assert!(reads.still_open());
        writes.say(&1_u8).unwrap();
        drop(writes);
        assert_eq!((reads.next::<u8>().await.unwrap(), reads.next::<u8>().await.unwrap()), (Some(1), None));
        assert!(!reads.still_open());
        let (mut reads, writes) = pair(100);
        writes.socket.get_ref().write_all(&[9, 0]).unwrap();
        drop(writes);
        assert!(matches!(reads.next::<u8>().await, Err(WireError::Closed)));
    }

    #[tokio::test]
    async fn who_asks_on_and_reads_no_answer_is_not_waited_for() {
        let (reads, writes) = pair(100);
        let said = (0..1_000_000).map(|n: u32| writes.say_with_fd(&n, None)).find_map(Result::err).unwrap();
        assert!(matches!(&said, WireError::Io(cause) if cause.kind() == io::ErrorKind::WouldBlock), "{said}");
        drop(reads);
    }
}
