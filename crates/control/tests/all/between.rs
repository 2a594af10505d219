//! A store with something between it and the control plane, which looks at what passes, holds it up, or lets it fail. All that
//! a test does not ask about passes as it is.

use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use store::redb::RedbStore;
use store::{Change, Entry, Expect, LeaseId, Snapshot, Store, StoreError};

/// What is asked of a store, and not done before it is awaited.
pub(crate) type Asked<'a, T> = BoxFuture<'a, Result<T, StoreError>>;

/// What stands between.
pub(crate) trait Between: Send + Sync + 'static {
    fn get<'a>(&'a self, _key: &'a str, asked: Asked<'a, Option<Entry>>) -> Asked<'a, Option<Entry>> {
        asked
    }
    fn list<'a>(&'a self, _prefix: &'a str, asked: Asked<'a, Snapshot>) -> Asked<'a, Snapshot> {
        asked
    }
    fn put<'a>(&'a self, _key: &'a str, asked: Asked<'a, u64>) -> Asked<'a, u64> {
        asked
    }
    fn delete<'a>(&'a self, _key: &'a str, asked: Asked<'a, u64>) -> Asked<'a, u64> {
        asked
    }
    fn watch(
        &self,
        _prefix: &str,
        changes: BoxStream<'static, Result<Change, StoreError>>,
    ) -> BoxStream<'static, Result<Change, StoreError>> {
        changes
    }
}

/// The store with it.
pub(crate) struct Through<B> {
    store: Arc<RedbStore>,
    between: B,
}

impl<B: Between> Through<B> {
    pub(crate) fn new(store: &Arc<RedbStore>, between: B) -> Arc<Self> {
        Arc::new(Self { store: store.clone(), between })
    }
}

impl<B> Deref for Through<B> {
    type Target = B;
    fn deref(&self) -> &B {
        &self.between
    }
}

impl<B: Between> Store for Through<B> {
    fn get<'a>(&'a self, key: &'a str) -> Asked<'a, Option<Entry>> {
        self.between.get(key, self.store.get(key))
    }
    fn list<'a>(&'a self, prefix: &'a str) -> Asked<'a, Snapshot> {
        self.between.list(prefix, self.store.list(prefix))
    }
    fn sizes<'a>(&'a self, prefix: &'a str) -> Asked<'a, Vec<(String, u64)>> {
        self.store.sizes(prefix)
    }
    fn put<'a>(&'a self, key: &'a str, value: Bytes, expect: Expect, lease: Option<LeaseId>) -> Asked<'a, u64> {
        self.between.put(key, self.store.put(key, value, expect, lease))
    }
    fn delete<'a>(&'a self, key: &'a str, expect: Expect) -> Asked<'a, u64> {
        self.between.delete(key, self.store.delete(key, expect))
    }
    fn watch(&self, prefix: &str, after: u64) -> BoxStream<'static, Result<Change, StoreError>> {
        self.between.watch(prefix, self.store.watch(prefix, after))
    }
    fn grant(&self, ttl: Duration) -> Asked<'_, LeaseId> {
        self.store.grant(ttl)
    }
    fn keep_alive(&self, lease: LeaseId) -> Asked<'_, ()> {
        self.store.keep_alive(lease)
    }
    fn revoke(&self, lease: LeaseId) -> Asked<'_, ()> {
        self.store.revoke(lease)
    }
}
