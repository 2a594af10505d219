//! The recent changes, and streams over them. A watcher holds only its place; one that falls behind what is kept is
//! told so and lists again. Nothing is ever skipped.

use std::collections::VecDeque;
use std::sync::{Arc, PoisonError, RwLock};

use futures::stream::BoxStream;
use tokio::sync::watch;

use crate::{Change, StoreError};

/// Changes kept for watchers.
const KEPT: usize = 65_536;
/// Bytes of keys and values kept for watchers.
const KEPT_BYTES: usize = 32 << 20;

/// Recent changes.
#[derive(Debug)]
pub(super) struct Feed {
    ring: RwLock<Ring>,
    /// The newest revision in the ring; its end is the store's.
    newest: watch::Sender<u64>,
}

#[derive(Debug)]
struct Ring {
    changes: VecDeque<Change>,
    bytes: usize,
    /// Changes up to this revision are no longer kept.
    floor: u64,
}

impl Feed {
    /// Empty: changes up to `revision` were before this process.
    pub(super) fn new(revision: u64) -> Self {
        let ring = Ring { changes: VecDeque::new(), bytes: 0, floor: revision };
        Self { ring: RwLock::new(ring), newest: watch::Sender::new(revision) }
    }

    /// Adds changes in the order of their revisions and wakes the watchers.
    pub(super) fn publish(&self, changes: Vec<Change>) {
        let Some(newest) = changes.last().map(|change| change.revision) else { return };
        let mut ring = self.ring.write().unwrap_or_else(PoisonError::into_inner);
        for change in changes {
            ring.bytes += size(&change);
            ring.changes.push_back(change);
        }
        while ring.changes.len() > KEPT || (ring.bytes > KEPT_BYTES && ring.changes.len() > 1) {
            let Some(gone) = ring.changes.pop_front() else { break };
            ring.bytes -= size(&gone);
            ring.floor = gone.revision;
        }
        drop(ring);
        self.newest.send_replace(newest);
    }

    /// Gives up everything up to `revision`: every watcher must list again.
    pub(super) fn forget(&self, revision: u64) {
        let mut ring = self.ring.write().unwrap_or_else(PoisonError::into_inner);
        *ring = Ring { changes: VecDeque::new(), bytes: 0, floor: revision };
        drop(ring);
        self.newest.send_replace(revision);
    }

    /// The next changes under `prefix` after `after`, and up to where that looked.
    fn next(&self, prefix: &str, after: u64) -> Result<(VecDeque<Change>, u64), StoreError> {
        /// One step's share, so that a watcher of little in much holds the lock shortly.
        const STEP: usize = 1024;
        let ring = self.ring.read().unwrap_or_else(PoisonError::into_inner);
        if after < ring.floor {
            return Err(StoreError::Compacted { asked: after, oldest: ring.floor });
        }
        let start = ring.changes.partition_point(|change| change.revision <= after);
        let step = ring.changes.iter().skip(start).take(STEP);
        let seen = step.clone().last().map_or(after, |change| change.revision);
        Ok((step.filter(|change| change.key.starts_with(prefix)).cloned().collect(), seen))
    }
}

fn size(change: &Change) -> usize {
    change.key.len() + change.value.as_ref().map_or(0, bytes::Bytes::len) + size_of::<Change>()
}

struct Place {
    feed: std::sync::Weak<Feed>,
    newest: watch::Receiver<u64>,
    prefix: String,
    after: u64,
    ready: VecDeque<Change>,
    ended: bool,
}

/// Every change under `prefix` after `after`.
pub(super) fn stream(feed: &Arc<Feed>, prefix: &str, after: u64) -> BoxStream<'static, Result<Change, StoreError>> {
    let place = Place {
        feed: Arc::downgrade(feed),
        newest: feed.newest.subscribe(),
        prefix: prefix.to_owned(),
        after,
        ready: VecDeque::new(),
        ended: false,
    };
    Box::pin(futures::stream::unfold(place, |mut place| async move {
        if place.ended {
            return None;
        }
        match place.step().await {
            Ok(change) => Some((Ok(change), place)),
            Err(error) => {
                place.ended = true;
                Some((Err(error), place))
            }
        }
    }))
}

impl Place {
    async fn step(&mut self) -> Result<Change, StoreError> {
        let closed = || StoreError::Unreachable("it was closed".into());
        loop {
            if let Some(change) = self.ready.pop_front() {
                return Ok(change);
            }
            let newest = *self.newest.borrow_and_update();
            let before = self.after;
            let feed = self.feed.upgrade().ok_or_else(closed)?;
            (self.ready, self.after) = feed.next(&self.prefix, before)?;
            drop(feed);
            if self.after == before && self.after >= newest {
                self.newest.changed().await.map_err(|_| closed())?;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::StreamExt as _;

    fn change(revision: u64, size: usize) -> Change {
        Change { key: format!("k/{}", revision % 2), value: Some(vec![0; size].into()), revision }
    }

    #[tokio::test]
    async fn what_is_no_longer_kept_is_said_and_the_rest_has_no_gap() {
        let feed = Arc::new(Feed::new(10));
        for first in (11..70_011).step_by(100) {
            feed.publish((first..first + 100).map(|revision| change(revision, 1)).collect());
        }
        let floor = 70_010 - KEPT as u64;
        let error = stream(&feed, "", floor - 1).next().await.unwrap().unwrap_err();
        assert!(matches!(error, StoreError::Compacted { asked, oldest } if asked == floor - 1 && oldest == floor));
        let seen: Vec<u64> = stream(&feed, "", floor).take(KEPT).map(|c| c.unwrap().revision).collect().await;
        assert!(seen.into_iter().eq(floor + 1..=70_010));
        let odd: Vec<u64> = stream(&feed, "k/1", floor).take(1000).map(|c| c.unwrap().revision).collect().await;
        assert!(odd.windows(2).all(|pair| pair[1] == pair[0] + 2));
    }

    #[tokio::test]
    async fn bytes_are_bounded_and_the_newest_change_is_always_kept() {
        let feed = Arc::new(Feed::new(0));
        feed.publish((1..=100).map(|revision| change(revision, 1 << 20)).collect());
        assert!(feed.ring.read().unwrap().bytes <= KEPT_BYTES);
        feed.publish(vec![change(101, KEPT_BYTES * 2)]);
        assert_eq!(stream(&feed, "", 100).next().await.unwrap().unwrap().revision, 101);
    }

    #[tokio::test]
    async fn the_end_of_the_store_ends_its_streams_with_an_error() {
        let feed = Arc::new(Feed::new(0));
        let mut watch = stream(&feed, "", 0);
        drop(feed);
        assert!(matches!(watch.next().await, Some(Err(StoreError::Unreachable(_)))));
        assert!(watch.next().await.is_none());
    }
}
