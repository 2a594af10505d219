//! The store of one machine: a redb file owned by one writer thread.
//!
//! Durable keys are in the file; leased keys only in memory, because their writers are gone when this process is.
//! Readers look at a snapshot that is swapped after each batch of writes, so they never wait for the disk's sync.

mod feed;
mod state;
#[cfg(test)]
mod tests;
mod writer;

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use tokio::sync::{mpsc, oneshot, watch};

use crate::disk::{self, Disk, Fail, Kind, META};
use crate::{Change, Entry, Expect, LeaseId, Snapshot, Store, StoreError};
use feed::Feed;
use state::{ENTRIES, State};
use writer::{Done, Job, Op, REVISION, Writer};

const KIND: Kind = Kind {
    // "sdrlst" and the version.
    format: 0x7364_726c_7374_0001,
    cache: 32 << 20,
    verify_up_to: u64::MAX,
    prepare: |txn| {
        txn.open_table(ENTRIES)?;
        txn.open_table(META)?.insert(REVISION, 0)?;
        Ok(())
    },
    check: |txn| {
        txn.open_table(ENTRIES)?;
        Ok(())
    },
};

/// Looks whether the file can be used, without changing it; fine where there never was one.
///
/// # Errors
/// [`StoreError::Damaged`] as opening it would say, also where the file is gone; [`StoreError::CannotWrite`] where it
/// cannot be written; [`StoreError::InUse`] where a process has it open.
pub fn check(path: impl AsRef<Path>) -> Result<(), StoreError> {
    disk::check(path.as_ref(), KIND)
}

/// The embedded store. Use it within a tokio runtime with time; dropping it closes the file.
#[derive(Debug)]
pub struct RedbStore {
    state: Arc<State>,
    feed: Arc<Feed>,
    queue: Option<mpsc::UnboundedSender<Job>>,
    writer: Option<JoinHandle<()>>,
}

impl RedbStore {
    /// Opens the file or makes it. A file that is damaged, of another version or in use is refused and not touched.
    pub fn open(path: impl AsRef<Path>) -> Result<Arc<Self>, StoreError> {
        let path = path.as_ref();
        let disk = Disk::open(path, KIND)?;
        Self::start(disk).map(Arc::new).map_err(|fail| fail.explain(path))
    }

    fn start(disk: Disk) -> Result<Self, Fail> {
        let state = Arc::new(State::new(disk)?);
        let revision = state.stored(REVISION)?;
        state.publish(revision, BTreeMap::new(), false);
        let feed = Arc::new(Feed::new(revision));
        let (queue, jobs) = mpsc::unbounded_channel();
        let writer = Writer {
            state: state.clone(),
            feed: feed.clone(),
            leases: HashMap::new(),
            // Lease numbers of another life of this file stay unknown.
            next_lease: (revision << 20) + 1,
            ceiling: revision,
        };
        let writer = std::thread::Builder::new().name("store-writer".into()).spawn(move || writer.run(jobs))?;
        Ok(Self { state, feed, queue: Some(queue), writer: Some(writer) })
    }

    async fn ask(&self, op: Op) -> Result<Done, StoreError> {
        let closed = || StoreError::Unreachable("it was closed".into());
        let (reply, answer) = oneshot::channel();
        self.queue.as_ref().ok_or_else(closed)?.send(Job { op, reply }).map_err(|_| closed())?;
        answer.await.map_err(|_| closed())?
    }

    async fn revision_of(&self, op: Op) -> Result<u64, StoreError> {
        match self.ask(op).await? {
            Done::Revision(revision) => Ok(revision),
            Done::Granted(..) => Err(StoreError::Unreachable("it answered another question".into())),
        }
    }
}

impl Drop for RedbStore {
    fn drop(&mut self) {
        // The writer ends with its queue; the file is free to be opened again when it has.
        self.queue = None;
        if let Some(writer) = self.writer.take() {
            let _ = writer.join();
        }
    }
}

/// Asks for the lease's end whenever its time passes without being kept alive.
async fn expire(
    lease: LeaseId,
    ttl: Duration,
    mut generations: watch::Receiver<u64>,
    queue: mpsc::WeakUnboundedSender<Job>,
) {
    loop {
        let generation = *generations.borrow_and_update();
        let kept = tokio::time::timeout(ttl, generations.changed()).await;
        match kept {
            Ok(Ok(())) => {}
            // It was revoked, or the store is closed.
            Ok(Err(_)) => return,
            Err(_) => {
                let Some(queue) = queue.upgrade() else { return };
                let (reply, done) = oneshot::channel();
                if queue.send(Job { op: Op::Expire(lease, generation), reply }).is_err() {
                    return;
                }
                drop(queue);
                let _ = done.await;
            }
        }
    }
}

impl Store for RedbStore {
    fn get<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Option<Entry>, StoreError>> {
        Box::pin(async move { self.state.get(key) })
    }

    fn list<'a>(&'a self, prefix: &'a str) -> BoxFuture<'a, Result<Snapshot, StoreError>> {
        Box::pin(async move {
            let (state, prefix) = (self.state.clone(), prefix.to_owned());
            tokio::task::spawn_blocking(move || state.list(&prefix))
                .await
                .map_err(|e| StoreError::Unreachable(e.to_string()))?
        })
    }

    fn sizes<'a>(&'a self, prefix: &'a str) -> BoxFuture<'a, Result<Vec<(String, u64)>, StoreError>> {
        Box::pin(async move {
            let (state, prefix) = (self.state.clone(), prefix.to_owned());
            tokio::task::spawn_blocking(move || state.sizes(&prefix))
                .await
                .map_err(|e| StoreError::Unreachable(e.to_string()))?
        })
    }

    fn put<'a>(
        &'a self,
        key: &'a str,
        value: Bytes,
        expect: Expect,
        lease: Option<LeaseId>,
    ) -> BoxFuture<'a, Result<u64, StoreError>> {
        Box::pin(self.revision_of(Op::Put { key: key.into(), value, expect, lease }))
    }

    fn delete<'a>(&'a self, key: &'a str, expect: Expect) -> BoxFuture<'a, Result<u64, StoreError>> {
        Box::pin(self.revision_of(Op::Delete { key: key.into(), expect }))
    }

    fn watch(&self, prefix: &str, after: u64) -> BoxStream<'static, Result<Change, StoreError>> {
        feed::stream(&self.feed, prefix, after)
    }

    fn grant(&self, ttl: Duration) -> BoxFuture<'_, Result<LeaseId, StoreError>> {
        Box::pin(async move {
            match self.ask(Op::Grant).await? {
                Done::Granted(lease, generations) => {
                    let queue = self.queue.as_ref().map(mpsc::UnboundedSender::downgrade);
                    let queue = queue.ok_or_else(|| StoreError::Unreachable("it was closed".into()))?;
                    tokio::spawn(expire(lease, ttl, generations, queue));
                    Ok(lease)
                }
                Done::Revision(_) => Err(StoreError::Unreachable("it answered another question".into())),
            }
        })
    }

    fn keep_alive(&self, lease: LeaseId) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(async move { self.revision_of(Op::KeepAlive(lease)).await.map(drop) })
    }

    fn revoke(&self, lease: LeaseId) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(async move { self.revision_of(Op::Revoke(lease)).await.map(drop) })
    }
}
