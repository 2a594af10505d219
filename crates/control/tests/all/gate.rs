//! A store with a gate before one kind of key: who reads there, or writes, is counted, and waits while it is shut. It stands
//! for as much as takes for ever.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use store::redb::RedbStore;
use store::{Change, Entry, Expect, LeaseId, Snapshot, Store, StoreError};
use tokio::sync::watch;

use crate::rig::PATIENCE;

/// What passes the gate.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    Reads,
    Writes,
}

pub(crate) struct Gate {
    store: Arc<RedbStore>,
    way: Way,
    prefix: String,
    pub(crate) open: watch::Sender<bool>,
    /// How often somebody came to it.
    pub(crate) came: AtomicUsize,
    /// Of those, how often not for the app `user`.
    pub(crate) others: AtomicUsize,
    inside: AtomicUsize,
    /// The most that were at it together.
    pub(crate) together: AtomicUsize,
}

impl Gate {
    /// Open.
    pub(crate) fn new(store: &Arc<RedbStore>, way: Way, prefix: String) -> Arc<Self> {
        let none = AtomicUsize::default;
        Arc::new(Self {
            store: store.clone(),
            way,
            prefix,
            open: watch::Sender::new(true),
            came: none(),
            others: none(),
            inside: none(),
            together: none(),
        })
    }

    fn is_before(&self, way: Way, key: &str) -> bool {
        way == self.way && key.starts_with(&self.prefix)
    }

    async fn pass<T>(&self, key: &str, then: impl Future<Output = T>) -> T {
        self.came.fetch_add(1, SeqCst);
        if !key.starts_with(&format!("{}user/", self.prefix)) {
            self.others.fetch_add(1, SeqCst);
        }
        let inside = self.inside.fetch_add(1, SeqCst) + 1;
        self.together.fetch_max(inside, SeqCst);
        let mut open = self.open.subscribe();
        open.wait_for(|open| *open).await.unwrap();
        let done = then.await;
        self.inside.fetch_sub(1, SeqCst);
        done
    }

    /// Waits until somebody has come since it was so often.
    pub(crate) async fn more_than(&self, before: usize) {
        let more = async {
            while self.came.load(SeqCst) <= before {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(PATIENCE, more).await.expect("nobody comes to the gate");
    }
}

impl Store for Gate {
    fn get<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Option<Entry>, StoreError>> {
        match self.is_before(Way::Reads, key) {
            true => Box::pin(self.pass(key, self.store.get(key))),
            false => self.store.get(key),
        }
    }
    fn list<'a>(&'a self, prefix: &'a str) -> BoxFuture<'a, Result<Snapshot, StoreError>> {
        self.store.list(prefix)
    }
    fn put<'a>(
        &'a self,
        key: &'a str,
        value: Bytes,
        expect: Expect,
        lease: Option<LeaseId>,
    ) -> BoxFuture<'a, Result<u64, StoreError>> {
        let put = self.store.put(key, value, expect, lease);
        match self.is_before(Way::Writes, key) {
            true => Box::pin(self.pass(key, put)),
            false => put,
        }
    }
    fn delete<'a>(&'a self, key: &'a str, expect: Expect) -> BoxFuture<'a, Result<u64, StoreError>> {
        self.store.delete(key, expect)
    }
    fn watch(&self, prefix: &str, after: u64) -> BoxStream<'static, Result<Change, StoreError>> {
        self.store.watch(prefix, after)
    }
    fn grant(&self, ttl: Duration) -> BoxFuture<'_, Result<LeaseId, StoreError>> {
        self.store.grant(ttl)
    }
    fn keep_alive(&self, lease: LeaseId) -> BoxFuture<'_, Result<(), StoreError>> {
        self.store.keep_alive(lease)
    }
    fn revoke(&self, lease: LeaseId) -> BoxFuture<'_, Result<(), StoreError>> {
        self.store.revoke(lease)
    }
}
