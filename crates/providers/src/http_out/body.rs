//! Bodies that are watched while they move: one that stands still too long breaks off.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use runtime::{HttpBody, HttpBodyError};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, Sleep, sleep_until};

/// When a request last moved: it got its connection, or a piece of its body was sent.
#[derive(Clone)]
pub(super) struct Progress {
    start: Instant,
    moved_ms: Arc<AtomicU64>,
}

impl Progress {
    pub(super) fn new() -> Self {
        Self { start: Instant::now(), moved_ms: Arc::default() }
    }

    /// It moves now.
    pub(super) fn moved(&self) {
        self.moved_ms.store(self.start.elapsed().as_millis() as u64, Relaxed);
    }

    /// Ends when nothing has moved for `limit`.
    pub(super) async fn stalled(&self, limit: Duration) {
        loop {
            let deadline = self.start + Duration::from_millis(self.moved_ms.load(Relaxed)) + limit;
            if deadline <= Instant::now() {
                return;
            }
            sleep_until(deadline).await;
        }
    }
}

/// A body on its way out or in.
pub(super) struct Watched {
    inner: HttpBody,
    watch: Watch,
}

enum Watch {
    /// Tells the progress of a request.
    Request(Progress),
    /// Ends a response that pauses too long; holds the place of the request among those under way.
    Response { limit: Duration, timer: Option<Pin<Box<Sleep>>>, _permit: OwnedSemaphorePermit },
}

impl Watched {
    pub(super) fn request(inner: HttpBody, progress: Progress) -> Self {
        Self { inner, watch: Watch::Request(progress) }
    }

    pub(super) fn response(inner: HttpBody, limit: Duration, permit: OwnedSemaphorePermit) -> Self {
        Self { inner, watch: Watch::Response { limit, timer: None, _permit: permit } }
    }
}

impl Body for Watched {
    type Data = Bytes;
    type Error = HttpBodyError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, HttpBodyError>>> {
        let this = self.get_mut();
        let polled = Pin::new(&mut this.inner).poll_frame(cx);
        match &mut this.watch {
            Watch::Request(progress) => {
                if polled.is_ready() {
                    progress.moved();
                }
                polled
            }
            Watch::Response { timer, .. } if polled.is_ready() => {
                *timer = None;
                polled
            }
            Watch::Response { timer, limit, .. } => {
                let timer = timer.get_or_insert_with(|| Box::pin(tokio::time::sleep(*limit)));
                match timer.as_mut().poll(cx) {
                    Poll::Ready(()) => Poll::Ready(Some(Err(HttpBodyError::ConnectionReadTimeout))),
                    Poll::Pending => Poll::Pending,
                }
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}
