//! The bytes read from a connection and not yet used: one allocation that grows when a message needs it.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, ReadBuf};

const SMALL: usize = 4 * 1024;
/// Larger than the largest head, so that one always fits whole.
pub(super) const LARGE: usize = 68 * 1024;

/// A read buffer.
#[derive(Debug)]
pub(super) struct Buffer {
    bytes: Vec<u8>,
    start: usize,
    end: usize,
}

impl Default for Buffer {
    fn default() -> Self {
        Self { bytes: vec![0; SMALL], start: 0, end: 0 }
    }
}

impl Buffer {
    /// What was read and not yet consumed.
    pub(super) fn data(&self) -> &[u8] {
        self.bytes.get(self.start..self.end).unwrap_or_default()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.start == self.end
    }

    /// No room for another byte.
    pub(super) fn is_full(&self) -> bool {
        self.end.saturating_sub(self.start) >= LARGE
    }

    pub(super) fn consume(&mut self, count: usize) {
        self.start = self.start.saturating_add(count).min(self.end);
        if self.start == self.end {
            self.start = 0;
            self.end = 0;
        }
    }

    /// Gives memory back that a large message needed; between messages.
    pub(super) fn shrink(&mut self) {
        if self.is_empty() && self.bytes.len() > 4 * SMALL {
            *self = Self::default();
        }
    }

    /// Reads more; `Ok(0)` is the end of the stream. The caller sees to it that the buffer is not full.
    pub(super) fn poll_fill<R: AsyncRead + Unpin>(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut R,
    ) -> Poll<io::Result<usize>> {
        self.make_room();
        let mut room = ReadBuf::new(self.bytes.get_mut(self.end..).unwrap_or_default());
        match Pin::new(from).poll_read(cx, &mut room) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            Poll::Ready(Ok(())) => {
                let count = room.filled().len();
                self.end = self.end.saturating_add(count);
                Poll::Ready(Ok(count))
            }
        }
    }

    /// [`Buffer::poll_fill`] as a future.
    pub(super) async fn fill<R: AsyncRead + Unpin>(&mut self, from: &mut R) -> io::Result<usize> {
        std::future::poll_fn(|cx| self.poll_fill(cx, from)).await
    }

    fn make_room(&mut self) {
        // A read should be worth its system call.
        if self.bytes.len().saturating_sub(self.end) >= SMALL / 2 {
            return;
        }
        if self.start > 0 {
            self.bytes.copy_within(self.start..self.end, 0);
            self.end = self.end.saturating_sub(self.start);
            self.start = 0;
        }
        if self.bytes.len().saturating_sub(self.end) < SMALL / 2 && self.bytes.len() < LARGE {
            let size = self.bytes.len().saturating_mul(4).clamp(SMALL, LARGE);
            self.bytes.resize(size, 0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn grows_to_its_bound_and_keeps_the_order() {
        let source: Vec<u8> = (0..LARGE * 3).map(|n| (n % 251) as u8).collect();
        let mut from = source.as_slice();
        let mut buffer = Buffer::default();
        let mut seen = Vec::new();
        while seen.len() < source.len() {
            while !buffer.is_full() && buffer.fill(&mut from).await.unwrap() > 0 {}
            assert!(buffer.data().len() <= LARGE);
            let take = buffer.data().len().div_ceil(2);
            seen.extend_from_slice(&buffer.data()[..take]);
            buffer.consume(take);
        }
        assert_eq!(seen, source);
        buffer.shrink();
        assert_eq!(buffer.bytes.len(), SMALL);
    }
}
