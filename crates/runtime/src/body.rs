//! The body of a response, whole or still being written by its guest, and the cap on request bodies.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use model::unit::ByteSize;
use tokio::sync::oneshot;
use tokio::task::AbortHandle;

use crate::call::Call;
use crate::fault::Fault;
use crate::few::Few;
use crate::outbound::{HttpBody, HttpBodyError};

/// A response body. Dropping it before its end ends the guest that writes it.
///
/// A body that ends without an error is whole: one whose guest failed ends with that [`Fault`].
pub struct ResponseBody {
    /// Frames already here.
    frames: Few<Frame<Bytes>>,
    /// Where further ones come from.
    rest: Option<Rest>,
    /// The guest, where it goes on.
    guest: Option<GoesOn>,
}

/// A guest that goes on after the head of its answer, and perhaps after its body was read to the end.
pub struct GoesOn {
    task: AbortHandle,
    hold: oneshot::Sender<Box<dyn Send>>,
}

impl fmt::Debug for GoesOn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GoesOn").field("ended", &self.task.is_finished()).finish_non_exhaustive()
    }
}

impl GoesOn {
    /// `hold` hands the guest's task what it drops when it ends.
    pub(crate) fn new(task: AbortHandle, hold: oneshot::Sender<Box<dyn Send>>) -> Self {
        Self { task, hold }
    }

    /// What ends it.
    pub fn task(&self) -> &AbortHandle {
        &self.task
    }

    /// Has it hold something until it ends, however it does.
    pub fn hold(self, what: impl Send + 'static) {
        // One that has ended meanwhile holds nothing: what comes back is dropped here.
        drop(self.hold.send(Box::new(what)));
    }
}

struct Rest {
    body: HttpBody,
    call: Arc<Call>,
    guest: Option<AbortHandle>,
    left: u64,
    limit: ByteSize,
}

/// What [`ResponseBody::pull`] found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pulled {
    /// The end: the body is whole.
    End,
    /// Something new, and more to come.
    Some,
    /// Nothing new.
    None,
}

/// Bytes gathered before a body that is still being written is handed on as a stream.
const GATHER: usize = 64 * 1024;

fn length(frame: &Frame<Bytes>) -> usize {
    frame.data_ref().map_or(0, Bytes::len)
}

impl ResponseBody {
    pub(crate) fn new(body: HttpBody, call: Arc<Call>, limit: ByteSize) -> Self {
        let rest = Rest { body, call, guest: None, left: limit.0, limit };
        Self { frames: Few::default(), rest: Some(rest), guest: None }
    }

    /// The guest's task, to be ended with this body where that is dropped before its end.
    pub(crate) fn driven_by(&mut self, guest: GoesOn) {
        if let Some(rest) = &mut self.rest {
            rest.guest = Some(guest.task.clone());
        }
        self.guest = Some(guest);
    }

    /// The guest, where it has not ended with the head of its answer. Given once.
    pub fn goes_on(&mut self) -> Option<GoesOn> {
        self.guest.take()
    }

    /// Takes what the guest has written so far, until [`GATHER`] bytes are here.
    pub(crate) fn pull(&mut self, cx: &mut Context<'_>) -> Result<Pulled, Fault> {
        let mut pulled = Pulled::None;
        let mut gathered: usize = self.frames.iter().map(length).sum();
        while gathered < GATHER {
            match self.poll_rest(cx) {
                Poll::Pending => return Ok(pulled),
                Poll::Ready(None) => return Ok(Pulled::End),
                Poll::Ready(Some(frame)) => {
                    let frame = frame?;
                    gathered += length(&frame);
                    self.frames.push(frame);
                    pulled = Pulled::Some;
                }
            }
        }
        Ok(pulled)
    }

    /// The pieces of a body that is here to its end, of at most so many bytes; otherwise the body as it was. Trailers are
    /// left out.
    ///
    /// # Errors
    /// The body, where more is to come or it is larger.
    #[allow(clippy::result_large_err, reason = "a body that goes on is moved once, and was no allocation before")]
    pub fn whole(self, most: usize) -> Result<Few<Bytes>, Self> {
        if self.rest.is_some() || self.frames.iter().map(length).sum::<usize>() > most {
            return Err(self);
        }
        Ok(self.frames.into_iter().filter_map(|frame| frame.into_data().ok()).collect())
    }

    /// Why the body will not come to its end, where that is certain already: its guest has failed. It can be asked before
    /// the head is sent: afterwards all that is left is to break off.
    pub fn failed(&mut self) -> Option<Fault> {
        if let Some(fault) = self.rest.as_ref().and_then(|rest| rest.call.fault()) {
            return Some(fault);
        }
        // Whoever reads on asks again, with a waker.
        self.pull(&mut Context::from_waker(Waker::noop())).err()
    }

    /// The next frame from the guest. After the end or an error there is nothing left to poll.
    fn poll_rest(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Fault>>> {
        let Some(rest) = &mut self.rest else {
            return Poll::Ready(None);
        };
        let fault = match Pin::new(&mut rest.body).poll_frame(cx) {
            Poll::Pending => match rest.call.fault_or_wake(cx) {
                None => return Poll::Pending,
                fault => fault,
            },
            Poll::Ready(Some(Ok(frame))) => match rest.left.checked_sub(length(&frame) as u64) {
                Some(left) => {
                    rest.left = left;
                    return Poll::Ready(Some(Ok(frame)));
                }
                None => Some(Fault::ResponseTooLarge { limit: rest.limit }),
            },
            Poll::Ready(Some(Err(error))) => {
                Some(rest.call.fault().unwrap_or_else(|| Fault::BodyBroken { message: error.to_string() }))
            }
            Poll::Ready(None) => rest.call.fault(),
        };
        match fault {
            Some(fault) => {
                rest.call.fail(&fault);
                self.rest = None; // ends the guest
                Poll::Ready(Some(Err(fault)))
            }
            None => {
                // The guest may go on with what it does after its answer.
                rest.guest = None;
                self.rest = None;
                Poll::Ready(None)
            }
        }
    }
}

impl Drop for Rest {
    fn drop(&mut self) {
        self.call.body_read();
        if let Some(guest) = &self.guest {
            guest.abort();
        }
    }
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = Fault;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Fault>>> {
        match self.frames.pop() {
            Some(frame) => Poll::Ready(Some(Ok(frame))),
            None => self.poll_rest(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.frames.is_empty() && self.rest.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        let here: u64 = self.frames.iter().map(|frame| length(frame) as u64).sum();
        match &self.rest {
            None => SizeHint::with_exact(here),
            Some(rest) => match rest.body.size_hint().exact() {
                Some(more) => SizeHint::with_exact(here.saturating_add(more)),
                None => SizeHint::default(),
            },
        }
    }
}

impl fmt::Debug for ResponseBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseBody")
            .field("frames", &self.frames.iter().count())
            .field("whole", &self.rest.is_none())
            .finish()
    }
}

/// A request body whose length is not known beforehand: ends with an error once it is longer than allowed.
pub(crate) struct Capped {
    pub(crate) body: HttpBody,
    pub(crate) call: Arc<Call>,
    pub(crate) left: u64,
    pub(crate) limit: ByteSize,
}

impl Body for Capped {
    type Data = Bytes;
    type Error = HttpBodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, HttpBodyError>>> {
        let polled = Pin::new(&mut self.body).poll_frame(cx);
        if let Poll::Ready(Some(Ok(frame))) = &polled {
            match self.left.checked_sub(length(frame) as u64) {
                Some(left) => self.left = left,
                None => {
                    self.call.fail(&Fault::RequestTooLarge { limit: self.limit });
                    let size = HttpBodyError::HttpRequestBodySize(Some(self.limit.0));
                    return Poll::Ready(Some(Err(size)));
                }
            }
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }
}
