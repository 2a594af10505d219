//! What nobody names any more goes: artifacts that no recorded revision has, and their compiled code. History is cut by
//! the reconciler; what only old history needed would otherwise stay on the disk for ever.
//!
//! Nothing is removed on a guess. An artifact goes only after every record was read, no revision that still runs needs
//! it, and nobody sent it or looked for it for a while: a deploy wants its artifacts again before it writes its record.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use api::node::NodeApi;
use futures::stream::{self, StreamExt as _, TryStreamExt as _};
use model::{ComponentName, Digest};
use serde::Deserialize;
use store::blobs::{BlobError, Blobs};
use store::{Entry, Expect, Store, StoreError, keys};
use tokio_util::sync::CancellationToken;

use crate::load::app_id;

/// How often it looks, at least and at most.
const EVERY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(600));
/// Apps whose history is read at once.
const AT_ONCE: usize = 8;
/// Rounds over the same heads and artifacts after which there is nothing new to find: the history of a head is cut
/// after the head moved.
const ROUNDS: u32 = 2;

/// Why a round was given up. Nothing is removed then.
#[derive(Debug, thiserror::Error)]
enum Stop {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Blobs(#[from] BlobError),
    #[error("`{key}` in the store cannot be read: {cause}")]
    Unreadable { key: String, cause: serde_json::Error },
    #[error("the look at the artifacts was interrupted")]
    Interrupted,
}

/// Of a record, what it takes to know which artifacts it names.
#[derive(Deserialize)]
struct Named {
    app: NamedApp,
}

#[derive(Deserialize)]
struct NamedApp {
    components: std::collections::BTreeMap<ComponentName, NamedComponent>,
}

#[derive(Deserialize)]
struct NamedComponent {
    digest: Digest,
}

/// The task's own things.
pub(crate) struct Sweeper {
    store: Arc<dyn Store>,
    blobs: Blobs,
    nodes: Arc<dyn NodeApi>,
    keep: Duration,
    /// Heads (key and store revision) and old artifacts as they were seen last, and how often.
    seen: (Vec<(String, u64)>, Vec<Digest>, u32),
}

impl Sweeper {
    /// `keep`: how long an artifact that no revision names stays.
    pub(crate) fn new(store: Arc<dyn Store>, blobs: Blobs, nodes: Arc<dyn NodeApi>, keep: Duration) -> Self {
        Self { store, blobs, nodes, keep, seen: (Vec::new(), Vec::new(), 0) }
    }

    /// Looks again and again until told to stop.
    pub(crate) async fn run(mut self, stop: CancellationToken) {
        let every = (self.keep / 6).clamp(EVERY.0, EVERY.1);
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(every) => {}
            }
            let round = self.round();
            tokio::select! {
                () = stop.cancelled() => return,
                done = round => if let Err(cause) = done {
                    tracing::warn!(%cause, "what nobody names is not removed; looking again later");
                }
            }
        }
    }

    async fn round(&mut self) -> Result<(), Stop> {
        let before = SystemTime::now().checked_sub(self.keep).ok_or(Stop::Interrupted)?;
        let old = self.blocking(move |blobs| blobs.unwanted_since(before)).await?;
        let heads = self.store.list(keys::APPS).await?.entries;
        let marks: Vec<_> = heads.iter().map(|head| (head.key.clone(), head.revision)).collect();
        let times = if (&self.seen.0, &self.seen.1) == (&marks, &old) { self.seen.2.saturating_add(1) } else { 0 };
        if times >= ROUNDS {
            return Ok(());
        }
        let named = self.named(heads).await?;
        let unnamed: Vec<Digest> = old.iter().filter(|digest| !named.contains(digest)).copied().collect();
        // The code first: were it last, a crash in between would leave code that no artifact leads to.
        let running: BTreeSet<Digest> = self.nodes.tidy(unnamed.clone()).await.into_iter().collect();
        let gone: Vec<Digest> = unnamed.into_iter().filter(|digest| !running.contains(digest)).collect();
        let removed = self
            .blocking(move |blobs| {
                let mut removed = BTreeSet::new();
                for digest in gone {
                    if blobs.remove_unwanted(&digest, before)? {
                        tracing::info!(%digest, "removed an artifact that no revision names");
                        removed.insert(digest.to_string());
                    }
                }
                Ok(removed)
            })
            .await?;
        self.forget(&removed).await?;
        // What still runs is looked at again when it has ended.
        let times = if running.is_empty() { times } else { 0 };
        self.seen = (marks, old, times);
        Ok(())
    }

    /// Nobody has sent these: whoever sends one again says so anew. One that was sent again in this moment is sent once
    /// more.
    async fn forget(&self, removed: &BTreeSet<String>) -> Result<(), Stop> {
        if removed.is_empty() {
            return Ok(());
        }
        for entry in self.store.list(keys::ARTIFACTS).await?.entries {
            if keys::parts(&entry.key).nth(1).is_some_and(|digest| removed.contains(digest)) {
                self.store.delete(&entry.key, Expect::Any).await?;
            }
        }
        Ok(())
    }

    /// Every artifact that a record of these apps names, deleted ones whose history is still there among them.
    async fn named(&self, heads: Vec<Entry>) -> Result<BTreeSet<Digest>, Stop> {
        let read = |head: Entry| async move {
            let Some(id) = app_id(&head.key) else { return Ok(Vec::new()) };
            let records = self.store.list(&keys::revisions_of(&id.tenant, &id.app)).await?.entries;
            let mut digests = Vec::new();
            for entry in records {
                let record: Named = serde_json::from_slice(&entry.value)
                    .map_err(|cause| Stop::Unreadable { key: entry.key.clone(), cause })?;
                digests.extend(record.app.components.into_values().map(|component| component.digest));
            }
            Ok::<_, Stop>(digests)
        };
        let all = stream::iter(heads).map(read).buffer_unordered(AT_ONCE);
        all.try_fold(BTreeSet::new(), |mut named, digests| async {
            named.extend(digests);
            Ok(named)
        })
        .await
    }

    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(Blobs) -> Result<T, BlobError> + Send + 'static,
    ) -> Result<T, Stop> {
        let blobs = self.blobs.clone();
        let done = tokio::task::spawn_blocking(move || work(blobs)).await;
        done.map_err(|_| Stop::Interrupted)?.map_err(Stop::from)
    }
}
