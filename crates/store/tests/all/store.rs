//! The suite over redb, and what is redb's own: what a restart keeps.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use store::redb::RedbStore;
use store::{Expect, Store, StoreError, conformance};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redb_does_what_every_backend_must() {
    let dir = tempfile::tempdir().unwrap();
    let store = RedbStore::open(dir.path().join("store.redb")).unwrap();
    conformance::run(store).await.unwrap();
}

#[tokio::test]
async fn a_restart_keeps_durable_keys_and_revisions_and_drops_leased_ones() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store.redb");
    let store = RedbStore::open(&path).unwrap();
    let lease = store.grant(Duration::from_secs(600)).await.unwrap();
    let kept = store.put("a", Bytes::from_static(b"1"), Expect::Any, None).await.unwrap();
    let leased = store.put("b", Bytes::from_static(b"2"), Expect::Any, Some(lease)).await.unwrap();
    // A durable key that became leased must not come back either.
    store.put("c", Bytes::from_static(b"3"), Expect::Any, None).await.unwrap();
    let last = store.put("c", Bytes::from_static(b"4"), Expect::Any, Some(lease)).await.unwrap();
    assert!(matches!(RedbStore::open(&path), Err(StoreError::InUse { .. })));
    drop(store);

    let store = RedbStore::open(&path).unwrap();
    let listed = store.list("").await.unwrap();
    let seen: Vec<_> = listed.entries.iter().map(|entry| (entry.key.as_str(), entry.revision)).collect();
    assert_eq!(seen, [("a", kept)]);
    assert!(listed.revision >= last, "{} after {last}", listed.revision);
    assert!(matches!(store.keep_alive(lease).await, Err(StoreError::LeaseEnded(_))));
    let fresh = store.grant(Duration::from_secs(600)).await.unwrap();
    assert_ne!(fresh, lease);
    let next = store.put("b", Bytes::new(), Expect::Absent, None).await.unwrap();
    assert!(next > leased && next > last);
    store.put("a", Bytes::new(), Expect::Revision(kept), None).await.unwrap();
}

#[tokio::test]
async fn a_store_of_ten_thousand_apps_opens_and_lists_quickly() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store.redb");
    let store = RedbStore::open(&path).unwrap();
    let value = Bytes::from(vec![7; 1500]);
    let puts = (0..10_000).map(|n| {
        let (store, value) = (Arc::clone(&store), value.clone());
        async move { store.put(&format!("revisions/t/app-{n:05}/1"), value, Expect::Absent, None).await.unwrap() }
    });
    futures::future::join_all(puts).await;
    drop(store);
    let before = std::time::Instant::now();
    let store = RedbStore::open(&path).unwrap();
    let opened = before.elapsed();
    assert_eq!(store.list("revisions/").await.unwrap().entries.len(), 10_000);
    println!("open {opened:?}, open and list of 10,000 {:?}", before.elapsed());
    assert!(opened < Duration::from_secs(5), "{opened:?}");
}
