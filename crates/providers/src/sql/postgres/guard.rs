//! A stream that ends where a server begins a message larger than any answer may be: nobody gathers it in memory first.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// The largest message, bytes: a row of the largest answer with room to spare.
const MAX_MESSAGE: usize = 2 * model::sql::MAX_ANSWER;
/// A message begins with its kind and its length, which counts itself.
const HEAD: usize = 5;

/// Whether the server went too far.
#[derive(Debug, Clone, Default)]
pub(super) struct Oversize(Arc<AtomicBool>);

impl Oversize {
    pub(super) fn is_so(&self) -> bool {
        self.0.load(Relaxed)
    }
}

/// A connection to a server.
pub(super) struct Guarded<S> {
    inner: S,
    head: [u8; HEAD],
    /// How much of the head was read.
    read: usize,
    /// Bytes of the message that are still to come.
    left: usize,
    oversize: Oversize,
}

impl<S> Guarded<S> {
    pub(super) fn new(inner: S) -> (Self, Oversize) {
        let oversize = Oversize::default();
        (Self { inner, head: [0; HEAD], read: 0, left: 0, oversize: oversize.clone() }, oversize)
    }

    /// Follows the messages.
    fn follow(&mut self, mut bytes: &[u8]) -> Result<(), Wrong> {
        while !bytes.is_empty() {
            let skipped = self.left.min(bytes.len());
            self.left -= skipped;
            bytes = bytes.get(skipped..).unwrap_or_default();
            if let (0, Some((first, rest)), Some(place)) =
                (self.left, bytes.split_first(), self.head.get_mut(self.read))
            {
                *place = *first;
                self.read += 1;
                bytes = rest;
                if self.read == HEAD {
                    let [kind, length @ ..] = self.head;
                    let length = u32::from_be_bytes(length) as usize;
                    self.read = 0;
                    let left = length.checked_sub(HEAD - 1).filter(|_| kind.is_ascii_alphanumeric());
                    self.left = left.ok_or(Wrong::NoMessage)?;
                    if self.left > MAX_MESSAGE {
                        return Err(Wrong::TooLarge);
                    }
                }
            }
        }
        Ok(())
    }
}

/// What no server says that is to be listened to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wrong {
    /// A message larger than any answer may be.
    TooLarge,
    /// Something that no message begins with.
    NoMessage,
}

impl<S: AsyncRead + Unpin> AsyncRead for Guarded<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        ready!(Pin::new(&mut this.inner).poll_read(cx, buf))?;
        let why = match this.follow(buf.filled().get(before..).unwrap_or_default()) {
            Ok(()) => return Poll::Ready(Ok(())),
            Err(Wrong::TooLarge) => {
                this.oversize.0.store(true, Relaxed);
                "a message is too large"
            }
            Err(Wrong::NoMessage) => "what answers there is no Postgres",
        };
        Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, why)))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Guarded<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().inner).poll_write(cx, buf)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(length: u32, body: usize) -> Vec<u8> {
        let mut bytes = vec![b'D'];
        bytes.extend(length.to_be_bytes());
        bytes.extend(vec![0; body]);
        bytes
    }

    #[test]
    fn messages_are_followed_however_they_are_cut() {
        let mut all = message(4, 0);
        all.extend(message(9, 5));
        all.extend(message(4 + MAX_MESSAGE as u32, MAX_MESSAGE));
        let large = message(5 + MAX_MESSAGE as u32, 0);
        for size in [1, 2, 3, 7, 4096, all.len()] {
            let (mut guarded, _) = Guarded::new(());
            assert_eq!(all.chunks(size).try_for_each(|chunk| guarded.follow(chunk)), Ok(()), "{size}");
            let wrong = large.chunks(size).try_for_each(|chunk| guarded.follow(chunk));
            assert_eq!(wrong, Err(Wrong::TooLarge), "{size}");
        }
        let (mut guarded, _) = Guarded::new(());
        assert_eq!(guarded.follow(&message(3, 0)), Err(Wrong::NoMessage));
        let (mut guarded, _) = Guarded::new(());
        assert_eq!(guarded.follow(b"\x16\x03nonsense"), Err(Wrong::NoMessage));
    }
}
