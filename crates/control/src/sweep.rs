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
use model::{ComponentName, Digest, TenantName};
use serde::{Deserialize, Serialize};
use store::blobs::{BlobError, Blobs};
use store::{Entry, Expect, Store, StoreError, keys};
use tokio_util::sync::CancellationToken;

use crate::clock;
use crate::load::app_id;

/// How often it looks, at least and at most.
const EVERY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(600));
/// Apps whose history is read at once, one revision of each.
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

/// What is kept of an artifact that a tenant has sent.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Sent {
    /// When the tenant sent it or looked for it last, milliseconds since 1970.
    #[serde(default)]
    pub(crate) wanted_ms: u64,
    /// How large it is, bytes; 0 where it was sent before sizes were kept.
    #[serde(default)]
    pub(crate) size: u64,
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
    /// What was seen last, and how often.
    seen: (Seen, u32),
}

/// What a round depends on: heads (key and store revision), old artifacts, and old records of who sent which.
#[derive(PartialEq, Eq, Default)]
struct Seen {
    heads: Vec<(String, u64)>,
    artifacts: Vec<Digest>,
    sent: Vec<String>,
}

impl Sweeper {
    /// `keep`: how long an artifact that no revision names stays.
    pub(crate) fn new(store: Arc<dyn Store>, blobs: Blobs, nodes: Arc<dyn NodeApi>, keep: Duration) -> Self {
        Self { store, blobs, nodes, keep, seen: (Seen::default(), 0) }
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
        let sent = self.sent_before(clock::millis().saturating_sub(millis(self.keep))).await?;
        let heads = self.store.list(keys::APPS).await?.entries;
        let seen = Seen {
            heads: heads.iter().map(|head| (head.key.clone(), head.revision)).collect(),
            artifacts: old.clone(),
            sent: sent.iter().map(|entry| entry.key.clone()).collect(),
        };
        let times = if self.seen.0 == seen { self.seen.1.saturating_add(1) } else { 0 };
        if times >= ROUNDS {
            return Ok(());
        }
        let named = self.named(heads).await?;
        self.forget_sent(sent, &named).await?;
        let named: BTreeSet<Digest> = named.into_iter().map(|(_, digest)| digest).collect();
        let unnamed: Vec<Digest> = old.into_iter().filter(|digest| !named.contains(digest)).collect();
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
        self.seen = (seen, times);
        Ok(())
    }

    /// Records of artifacts that their tenants have neither sent nor looked for since.
    async fn sent_before(&self, before_ms: u64) -> Result<Vec<Entry>, Stop> {
        let mut found = Vec::new();
        for entry in self.store.list(keys::ARTIFACTS).await?.entries {
            let sent: Sent = serde_json::from_slice(&entry.value)
                .map_err(|cause| Stop::Unreadable { key: entry.key.clone(), cause })?;
            if sent.wanted_ms < before_ms {
                found.push(entry);
            }
        }
        Ok(found)
    }

    /// What a tenant sent and none of its own revisions names is not there for it any more, whatever others have: nobody
    /// is to find out by it.
    async fn forget_sent(&self, sent: Vec<Entry>, named: &BTreeSet<(TenantName, Digest)>) -> Result<(), Stop> {
        for entry in sent {
            let mut parts = keys::parts(&entry.key);
            let (Some(Ok(tenant)), Some(Ok(digest))) = (parts.next().map(str::parse), parts.next().map(str::parse))
            else {
                continue;
            };
            if named.contains(&(tenant, digest)) {
                continue;
            }
            match self.store.delete(&entry.key, Expect::Revision(entry.revision)).await {
                // Sent again in this moment.
                Ok(_) | Err(StoreError::Conflict { .. }) => {}
                Err(cause) => return Err(cause.into()),
            }
        }
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

    /// Every artifact that a record of these apps names, and whose app; deleted ones whose history is still there among
    /// them.
    async fn named(&self, heads: Vec<Entry>) -> Result<BTreeSet<(TenantName, Digest)>, Stop> {
        let read = |head: Entry| async move {
            let Some(id) = app_id(&head.key) else { return Ok(BTreeSet::new()) };
            let mut digests = BTreeSet::new();
            for (key, _) in self.store.sizes(&keys::revisions_of(&id.tenant, &id.app)).await? {
                // One after the other: a whole history is more than is to be held. One that went meanwhile names nothing.
                let Some(entry) = self.store.get(&key).await? else { continue };
                let record: Named = serde_json::from_slice(&entry.value)
                    .map_err(|cause| Stop::Unreadable { key: entry.key.clone(), cause })?;
                let components = record.app.components.into_values();
                digests.extend(components.map(|component| (id.tenant.clone(), component.digest)));
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

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
