//! Everything under a prefix of the store, and every change to it, for as long as anybody listens. Whoever loses the
//! store keeps what was seen last.

use std::sync::Arc;
use std::time::Duration;

use futures::stream::StreamExt;
use store::{Change, Entry, Store, StoreError};
use tokio::sync::mpsc;

/// The pause before the store is asked again after it failed.
const AGAIN: Duration = Duration::from_millis(500);
/// Changes that may wait for the listener.
const ROOM: usize = 1024;

/// What was seen.
#[derive(Debug)]
pub(crate) enum Seen {
    /// All there is now; what is not in it is gone.
    All(Vec<Entry>),
    /// One change after that.
    One(Change),
}

/// Follows `prefix`. The first message is [`Seen::All`].
pub(crate) fn follow(store: Arc<dyn Store>, prefix: String) -> mpsc::Receiver<Seen> {
    let (tell, seen) = mpsc::channel(ROOM);
    tokio::spawn(async move {
        while !tell.is_closed() {
            match round(store.as_ref(), &prefix, &tell).await {
                // Too far behind: the next listing is complete.
                Err(StoreError::Compacted { .. }) | Ok(()) => {}
                Err(cause) => {
                    tracing::warn!(prefix, %cause, "the store is lost; what was seen last stays in force");
                    tokio::time::sleep(AGAIN).await;
                }
            }
        }
    });
    seen
}

async fn round(store: &dyn Store, prefix: &str, tell: &mpsc::Sender<Seen>) -> Result<(), StoreError> {
    let snapshot = store.list(prefix).await?;
    if tell.send(Seen::All(snapshot.entries)).await.is_err() {
        return Ok(());
    }
    let mut changes = store.watch(prefix, snapshot.revision);
    loop {
        tokio::select! {
            change = changes.next() => match change {
                Some(change) => {
                    if tell.send(Seen::One(change?)).await.is_err() {
                        return Ok(());
                    }
                }
                None => return Err(StoreError::Unreachable("the watch ended".into())),
            },
            () = tell.closed() => return Ok(()),
        }
    }
}
