//! Reads and writes with a bound on silence. The timer is made only where something has to be waited for, so the usual
//! case, where the bytes are there and the socket takes them, costs nothing.

use std::future::{Future, poll_fn};
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{Instant, Sleep, sleep, sleep_until};

use super::buffer::Buffer;

/// Writes everything; each wait for the other side to take bytes is bounded by `stall`.
pub(super) async fn write_all<W: AsyncWrite + Unpin>(to: &mut W, bytes: &[u8], stall: Duration) -> io::Result<()> {
    let mut rest = bytes;
    while !rest.is_empty() {
        let mut timer = None;
        let count = poll_fn(|cx| match Pin::new(&mut *to).poll_write(cx, rest) {
            Poll::Pending => poll_stall(&mut timer, stall, cx),
            ready => ready,
        })
        .await?;
        if count == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        rest = rest.get(count..).unwrap_or_default();
    }
    Ok(())
}

/// Reads some; the wait is bounded by `stall`. `Ok(0)` is the end of the stream.
pub(super) async fn fill<R: AsyncRead + Unpin>(
    from: &mut R,
    buffer: &mut Buffer,
    stall: Duration,
) -> io::Result<usize> {
    let mut timer = None;
    poll_fn(|cx| match buffer.poll_fill(cx, from) {
        Poll::Pending => poll_stall(&mut timer, stall, cx),
        ready => ready,
    })
    .await
}

fn poll_stall<T>(timer: &mut Option<Pin<Box<Sleep>>>, stall: Duration, cx: &mut Context<'_>) -> Poll<io::Result<T>> {
    let timer = timer.get_or_insert_with(|| Box::pin(sleep(stall)));
    timer.as_mut().poll(cx).map(|()| Err(io::ErrorKind::TimedOut.into()))
}

/// Writes a request head; on failure, how many bytes of it the other side may have seen.
pub(super) async fn send<W: AsyncWrite + Unpin>(to: &mut W, bytes: &[u8]) -> Result<(), usize> {
    let mut sent = 0usize;
    while sent < bytes.len() {
        let rest = bytes.get(sent..).unwrap_or_default();
        match poll_fn(|cx| Pin::new(&mut *to).poll_write(cx, rest)).await {
            Ok(count) if count > 0 => sent = sent.saturating_add(count),
            _ => return Err(sent),
        }
    }
    Ok(())
}

/// One timer for the whole life of a connection. Moving its deadline further away costs nothing: it fires early, sees
/// that there is time left, and sleeps on.
#[derive(Debug)]
pub(super) struct Timer(Pin<Box<Sleep>>);

impl Timer {
    pub(super) fn new(first: Instant) -> Self {
        Self(Box::pin(sleep_until(first)))
    }

    /// Resolves once `deadline` has passed.
    pub(super) fn poll_until(&mut self, cx: &mut Context<'_>, deadline: Instant) -> Poll<()> {
        if self.0.deadline() > deadline {
            self.0.as_mut().reset(deadline);
        }
        loop {
            if self.0.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
            if self.0.deadline() >= deadline {
                return Poll::Ready(());
            }
            self.0.as_mut().reset(deadline);
        }
    }

    /// [`Timer::poll_until`] as a future.
    pub(super) fn until(&mut self, deadline: Instant) -> impl Future<Output = ()> {
        poll_fn(move |cx| self.poll_until(cx, deadline))
    }
}
