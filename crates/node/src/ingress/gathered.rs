//! The body of a request of HTTP/2 as far as it is here when the request is routed. One that is whole can be sent again,
//! to another host, as one of HTTP/1 can that came with its head.

use std::collections::VecDeque;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use http_body::{Body, Frame};

/// More than this is not kept to be sent again, bytes.
const MOST: usize = 64 * 1024;

/// A request body, and what was read of it ahead. Its trailers end here.
pub(super) struct Gathered<B: Body> {
    here: VecDeque<Bytes>,
    /// What comes after `here`; `None` where that is all.
    rest: Option<B>,
    failed: Option<B::Error>,
}

impl<B: Body<Data = Bytes> + Unpin> Gathered<B> {
    /// Takes what is here of a body, without waiting for more.
    pub(super) fn of(body: B) -> Self {
        let mut this = Self { here: VecDeque::new(), rest: Some(body), failed: None };
        // Whoever reads on asks again, with a waker.
        let mut cx = Context::from_waker(Waker::noop());
        let mut size = 0usize;
        while size < MOST
            && let Poll::Ready(next) = this.poll_rest(&mut cx)
        {
            match next {
                Some(Ok(data)) => {
                    size = size.saturating_add(data.len());
                    this.here.push_back(data);
                }
                Some(Err(error)) => {
                    this.failed = Some(error);
                    break;
                }
                None => break,
            }
        }
        this
    }

    /// The same body once more, where all of it is here.
    pub(super) fn again(&self) -> Option<Self> {
        let whole = self.rest.is_none() && self.failed.is_none();
        whole.then(|| Self { here: self.here.clone(), rest: None, failed: None })
    }

    /// The next piece; after its end or its error nothing is left to poll.
    fn poll_rest(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, B::Error>>> {
        while let Some(rest) = &mut self.rest {
            match std::task::ready!(Pin::new(rest).poll_frame(cx)) {
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        return Poll::Ready(Some(Ok(data)));
                    }
                }
                ended => {
                    self.rest = None;
                    return Poll::Ready(ended.and_then(Result::err).map(Err));
                }
            }
        }
        Poll::Ready(None)
    }
}

impl<B: Body<Data = Bytes, Error: Unpin> + Unpin> Body for Gathered<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        if let Some(data) = self.here.pop_front() {
            return Poll::Ready(Some(Ok(Frame::data(data))));
        }
        if let Some(error) = self.failed.take() {
            return Poll::Ready(Some(Err(error)));
        }
        self.poll_rest(cx).map_ok(Frame::data)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::{FutureExt as _, StreamExt as _, stream};
    use http_body_util::{BodyExt as _, Full, StreamBody};

    type Piece = Result<Frame<Bytes>, std::io::Error>;

    fn data(text: &'static str) -> Piece {
        Ok(Frame::data(Bytes::from_static(text.as_bytes())))
    }

    async fn read<B: Body<Data = Bytes, Error: Unpin> + Unpin>(body: Gathered<B>) -> Result<Bytes, B::Error> {
        body.collect().await.map(http_body_util::Collected::to_bytes)
    }

    #[tokio::test]
    async fn what_is_here_to_its_end_can_be_sent_again_and_nothing_else() {
        let whole = Gathered::of(StreamBody::new(stream::iter([data("a"), data("b")])));
        let again = whole.again().unwrap();
        assert!(again.again().is_some());
        assert_eq!((read(whole).await.unwrap(), read(again).await.unwrap()), ("ab".into(), "ab".into()));
        assert!(Gathered::of(Full::new(Bytes::new())).again().is_some());

        let (more, later) = futures::channel::oneshot::channel();
        let body = stream::iter([data("a")]).chain(later.map(|_| data("b")).into_stream());
        let begun = Gathered::of(StreamBody::new(body));
        assert!(begun.again().is_none());
        more.send(()).unwrap();
        assert_eq!(read(begun).await.unwrap(), "ab");

        let broken = Gathered::of(StreamBody::new(stream::iter([data("a"), Err(std::io::ErrorKind::Other.into())])));
        assert!(broken.again().is_none());
        read(broken).await.unwrap_err();
    }

    #[tokio::test]
    async fn no_more_is_kept_than_so_much() {
        let piece = Bytes::from(vec![b'x'; MOST / 2]);
        let pieces = |count| {
            let piece = piece.clone();
            StreamBody::new(stream::iter((0..count).map(move |_| Ok::<_, std::io::Error>(Frame::data(piece.clone())))))
        };
        let large = Gathered::of(pieces(40));
        assert!(large.here.len() == 2 && large.again().is_none());
        assert_eq!(read(large).await.unwrap().len(), 20 * MOST);
    }
}
