//! How long a request's body is waited for. Whoever announces a body and does not send it holds a connection, and for
//! seconds only.

use std::error::Error;
use std::time::Duration;

use axum::BoxError;
use axum::body::Body;
use futures::stream::{self, StreamExt as _};
use tokio::time::{Instant, timeout_at};

/// The longest pause between two pieces of a body.
pub(crate) const IDLE: Duration = Duration::from_secs(10);
/// The longest time in which a whole body arrives.
pub(crate) const TOTAL: Duration = Duration::from_secs(60);

/// Why a body was not waited for any longer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Stalled {
    /// Nothing came for [`IDLE`].
    #[error("the body stopped coming: nothing for {} s", IDLE.as_secs())]
    Idle,
    /// It came, too slowly for [`TOTAL`].
    #[error("the body did not arrive within {} s", TOTAL.as_secs())]
    Late,
}

impl Stalled {
    /// Whether that is what is behind an error.
    pub(crate) fn behind(error: &(dyn Error + 'static)) -> Option<Self> {
        let mut chain = std::iter::successors(Some(error), |error: &&(dyn Error + 'static)| (*error).source());
        chain.find_map(|error| error.downcast_ref::<Self>().copied())
    }
}

/// The same body, which ends with [`Stalled`] where it does not come in time.
pub(crate) fn patient(body: Body) -> Body {
    let end = Instant::now() + TOTAL;
    let pieces = stream::try_unfold(body.into_data_stream(), move |mut pieces| async move {
        let until = end.min(Instant::now() + IDLE);
        match timeout_at(until, pieces.next()).await {
            Ok(Some(piece)) => Ok(Some((piece?, pieces))),
            Ok(None) => Ok(None),
            Err(_) if until == end => Err(BoxError::from(Stalled::Late)),
            Err(_) => Err(BoxError::from(Stalled::Idle)),
        }
    });
    Body::from_stream(pieces)
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use bytes::Bytes;

    use super::*;

    /// A body of `count` pieces with a pause before each, read whole.
    async fn read(count: u32, pause: Duration) -> (Result<Bytes, Option<Stalled>>, Duration) {
        let start = Instant::now();
        let pieces = stream::iter(0..count).then(move |_| async move {
            tokio::time::sleep(pause).await;
            Ok::<_, Infallible>("x")
        });
        let read = axum::body::to_bytes(patient(Body::from_stream(pieces)), 1000).await;
        (read.map_err(|error| Stalled::behind(&error)), start.elapsed())
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_may_be_slow_but_not_forever() {
        let (read_whole, _) = read(5, Duration::from_secs(9)).await;
        assert_eq!(read_whole.unwrap(), "xxxxx");
        let (stalled, after) = read(1, Duration::from_secs(3600)).await;
        assert_eq!((stalled, after.as_secs()), (Err(Some(Stalled::Idle)), IDLE.as_secs()));
        let (dripped, after) = read(1000, Duration::from_secs(1)).await;
        assert_eq!((dripped, after.as_secs()), (Err(Some(Stalled::Late)), TOTAL.as_secs()));
    }
}
