//! The bytes read from a connection and not yet used: one allocation that grows when a message needs it. What those of clients have
//! grown by is bounded for all of them together: each may be given a large head, byte by byte, for as long as a head may take.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, ReadBuf};

const SMALL: usize = 4 * 1024;
/// A buffer grows so far by itself: no ordinary head is refused for what others send.
const OWN: usize = 4 * SMALL;
/// Larger than the largest head, so that one always fits whole.
pub(super) const LARGE: usize = 68 * 1024;

/// What the buffers of all clients of an ingress may have together, beyond what each has of its own.
#[derive(Debug)]
pub(super) struct Heads {
    left: AtomicUsize,
}

impl Heads {
    /// So many bytes.
    pub(super) fn new(bytes: usize) -> Arc<Self> {
        Arc::new(Self { left: AtomicUsize::new(bytes) })
    }

    fn take(&self, bytes: usize) -> bool {
        self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(bytes)).is_ok()
    }

    fn give(&self, bytes: usize) {
        self.left.fetch_add(bytes, Ordering::Relaxed);
    }
}

/// A read buffer.
#[derive(Debug)]
pub(super) struct Buffer {
    bytes: Vec<u8>,
    start: usize,
    end: usize,
    /// Where what it grows by is counted, where it is.
    heads: Option<Arc<Heads>>,
}

impl Default for Buffer {
    fn default() -> Self {
        Self { bytes: vec![0; SMALL], start: 0, end: 0, heads: None }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        self.give_back();
    }
}

impl Buffer {
    /// One of a client.
    pub(super) fn within(heads: Arc<Heads>) -> Self {
        Self { bytes: vec![0; SMALL], start: 0, end: 0, heads: Some(heads) }
    }

    /// What it has grown by is anybody's again.
    fn give_back(&self) {
        if let Some(heads) = &self.heads {
            heads.give(self.bytes.len().saturating_sub(OWN));
        }
    }

    /// What was read and not yet consumed.
    pub(super) fn data(&self) -> &[u8] {
        self.bytes.get(self.start..self.end).unwrap_or_default()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.start == self.end
    }

    /// No room for another byte, and none to be had: it is as large as one gets, or all of them together are.
    pub(super) fn is_full(&mut self) -> bool {
        self.make_room();
        self.end >= self.bytes.len()
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
        if self.is_empty() && self.bytes.len() > OWN {
            self.give_back();
            (self.bytes, self.start, self.end) = (vec![0; SMALL], 0, 0);
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
            let more = size.saturating_sub(self.bytes.len().max(OWN));
            if self.heads.as_ref().is_none_or(|heads| heads.take(more)) {
                self.bytes.resize(size, 0);
            }
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

    /// Whoever has a large head in pieces takes nothing from those with small ones, and what he gives up is another one's.
    #[tokio::test]
    async fn all_of_them_together_have_a_bound() {
        let heads = Heads::new(LARGE - OWN + 2 * SMALL);
        let source = vec![7; LARGE];
        let fill = async |buffer: &mut Buffer| {
            let mut from = source.as_slice();
            while !buffer.is_full() {
                assert!(buffer.fill(&mut from).await.unwrap() > 0, "there is room for what is read");
            }
            buffer.data().len()
        };
        let (mut first, mut second) = (Buffer::within(heads.clone()), Buffer::within(heads.clone()));
        assert_eq!(fill(&mut first).await, LARGE);
        assert_eq!(fill(&mut second).await, OWN, "no more than is left");
        let mut third = Buffer::within(heads.clone());
        assert_eq!(fill(&mut third).await, OWN, "so much is each one's own");
        first.consume(LARGE);
        first.shrink();
        assert_eq!(fill(&mut second).await, LARGE, "another one needs it no more");
        drop((first, second, third));
        // A client that is answered and stays holds nothing.
        let mut idle = Buffer::within(heads.clone());
        let mut from = &source[..=OWN];
        while !from.is_empty() {
            idle.fill(&mut from).await.unwrap();
            assert!(!idle.is_full());
        }
        idle.consume(OWN + 1);
        idle.shrink();
        assert_eq!(heads.left.load(Ordering::Relaxed), LARGE - OWN + 2 * SMALL);
    }
}
