//! Cases about leases.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::watches::next;
use super::{Outcome, conflict, holds, ok, same};
use crate::{Expect, LeaseId, Store, StoreError};

/// Longer than a case takes.
const LONG: Duration = Duration::from_secs(600);

async fn put(store: &Arc<dyn Store>, key: &str, lease: Option<LeaseId>) -> Result<u64, String> {
    ok("put", store.put(key, Bytes::from_static(b"v"), Expect::Any, lease).await)
}

fn ended<T: std::fmt::Debug>(what: &str, lease: LeaseId, result: Result<T, StoreError>) -> Outcome {
    match result {
        Err(StoreError::LeaseEnded(named)) => same("the lease named", &named, &lease),
        other => Err(format!("{what} on an ended lease: {other:?}")),
    }
}

pub(super) async fn leased_keys_are_seen_like_others_and_end_with_their_lease(
    store: &Arc<dyn Store>,
    prefix: &str,
) -> Outcome {
    let (leased, other, plain) = (format!("{prefix}a"), format!("{prefix}b"), format!("{prefix}c"));
    let lease = ok("grant", store.grant(LONG).await)?;
    let second = ok("grant", store.grant(LONG).await)?;
    holds(lease != second, || "two leases have one number".into())?;
    let revision = put(store, &leased, Some(lease)).await?;
    put(store, &other, Some(second)).await?;
    put(store, &plain, None).await?;
    let lost = store.put(&leased, Bytes::new(), Expect::Absent, Some(lease)).await;
    same("a conflict at a leased key", &conflict("put if absent", lost)?, &Some(revision))?;
    let again = ok("put", store.put(&leased, Bytes::new(), Expect::Revision(revision), Some(lease)).await)?;
    let listed = ok("list", store.list(prefix).await)?;
    let keys: Vec<&str> = listed.entries.iter().map(|entry| entry.key.as_str()).collect();
    same("the list", &keys, &vec![&*leased, &*other, &*plain])?;
    same("the listed revision", &listed.entries.first().map(|entry| entry.revision), &Some(again))?;
    let mut watch = store.watch(prefix, listed.revision);
    ok("revoke", store.revoke(lease).await)?;
    let change = next(&mut watch).await?;
    same("the change", &(change.key, change.value), &(leased.clone(), None))?;
    same("a key of an ended lease", &ok("get", store.get(&leased).await)?, &None)?;
    for kept in [&other, &plain] {
        holds(ok("get", store.get(kept).await)?.is_some(), || format!("{kept} went with a lease not its own"))?;
    }
    ok("revoke", store.revoke(second).await)
}

pub(super) async fn a_lease_that_is_not_kept_alive_ends(store: &Arc<dyn Store>, prefix: &str) -> Outcome {
    let key = format!("{prefix}k");
    let ttl = Duration::from_millis(300);
    let mut watch = store.watch(prefix, ok("list", store.list(prefix).await)?.revision);
    let before = Instant::now();
    let lease = ok("grant", store.grant(ttl).await)?;
    put(store, &key, Some(lease)).await?;
    holds(next(&mut watch).await?.value.is_some(), || "the key was gone at once".into())?;
    let change = next(&mut watch).await?;
    same("the change", &(change.key, change.value), &(key.clone(), None))?;
    let lived = before.elapsed();
    holds(lived >= ttl, || format!("a lease of {ttl:?} ended after {lived:?}"))?;
    same("its key", &ok("get", store.get(&key).await)?, &None)?;
    ended("keep_alive", lease, store.keep_alive(lease).await)
}

pub(super) async fn a_lease_that_is_kept_alive_stays(store: &Arc<dyn Store>, prefix: &str) -> Outcome {
    let key = format!("{prefix}k");
    let lease = ok("grant", store.grant(Duration::from_secs(2)).await)?;
    put(store, &key, Some(lease)).await?;
    for _ in 0..8 {
        tokio::time::sleep(Duration::from_millis(400)).await;
        ok("keep_alive", store.keep_alive(lease).await)?;
        holds(ok("get", store.get(&key).await)?.is_some(), || "a key went while its lease was kept alive".into())?;
    }
    ok("revoke", store.revoke(lease).await)
}

pub(super) async fn an_ended_lease_takes_no_more_keys(store: &Arc<dyn Store>, prefix: &str) -> Outcome {
    let key = format!("{prefix}k");
    let lease = ok("grant", store.grant(LONG).await)?;
    ok("revoke", store.revoke(lease).await)?;
    ended("put", lease, store.put(&key, Bytes::new(), Expect::Any, Some(lease)).await)?;
    ended("keep_alive", lease, store.keep_alive(lease).await)?;
    ended("revoke", lease, store.revoke(lease).await)?;
    let unknown = LeaseId(u64::MAX);
    ended("put", unknown, store.put(&key, Bytes::new(), Expect::Any, Some(unknown)).await)?;
    same("the key refused", &ok("get", store.get(&key).await)?, &None)
}

pub(super) async fn a_key_belongs_to_its_last_writer(store: &Arc<dyn Store>, prefix: &str) -> Outcome {
    let (to_plain, to_other, from_plain) = (format!("{prefix}a"), format!("{prefix}b"), format!("{prefix}c"));
    let first = ok("grant", store.grant(LONG).await)?;
    let second = ok("grant", store.grant(LONG).await)?;
    put(store, &to_plain, Some(first)).await?;
    put(store, &to_other, Some(first)).await?;
    put(store, &from_plain, None).await?;
    put(store, &to_plain, None).await?;
    put(store, &to_other, Some(second)).await?;
    put(store, &from_plain, Some(first)).await?;
    ok("revoke", store.revoke(first).await)?;
    for kept in [&to_plain, &to_other] {
        holds(ok("get", store.get(kept).await)?.is_some(), || format!("{kept} went with its former lease"))?;
    }
    same("a key that took a lease", &ok("get", store.get(&from_plain).await)?, &None)?;
    ok("revoke", store.revoke(second).await)?;
    same("a key of the second lease", &ok("get", store.get(&to_other).await)?, &None)?;
    holds(ok("get", store.get(&to_plain).await)?.is_some(), || "a plain key went with a lease".into())
}
