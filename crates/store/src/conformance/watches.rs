//! Cases about watches.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt as _;
use futures::stream::BoxStream;

use super::{Outcome, holds, joined, ok, same};
use crate::{Change, Expect, Store, StoreError};

/// Longer than any backend takes to tell of a change.
const SOON: Duration = Duration::from_secs(20);

pub(super) async fn next(watch: &mut BoxStream<'static, Result<Change, StoreError>>) -> Result<Change, String> {
    match tokio::time::timeout(SOON, watch.next()).await {
        Ok(Some(change)) => ok("a watch", change),
        Ok(None) => Err("a watch ended without an error".into()),
        Err(_) => Err("a watch did not tell of a change".into()),
    }
}

async fn put(store: &Arc<dyn Store>, key: &str, value: &str) -> Result<u64, String> {
    ok("put", store.put(key, Bytes::copy_from_slice(value.as_bytes()), Expect::Any, None).await)
}

pub(super) async fn a_watch_first_gives_what_happened_then_what_happens(
    store: &Arc<dyn Store>,
    prefix: &str,
) -> Outcome {
    let key = format!("{prefix}k");
    let before = put(store, &key, "0").await?;
    let first = put(store, &key, "1").await?;
    let second = ok("delete", store.delete(&key, Expect::Any).await)?;
    let mut watch = store.watch(prefix, before);
    let mut later = store.watch(prefix, second);
    let change = |value: Option<&'static str>, revision| Change {
        key: key.clone(),
        value: value.map(|value| Bytes::from_static(value.as_bytes())),
        revision,
    };
    same("the first change", &next(&mut watch).await?, &change(Some("1"), first))?;
    same("the second change", &next(&mut watch).await?, &change(None, second))?;
    let third = put(store, &key, "3").await?;
    same("the live change", &next(&mut watch).await?, &change(Some("3"), third))?;
    same("the live change of a later watch", &next(&mut later).await?, &change(Some("3"), third))
}

pub(super) async fn a_watch_sees_its_prefix_in_order_without_gaps(store: &Arc<dyn Store>, prefix: &str) -> Outcome {
    let start = ok("list", store.list(prefix).await)?.revision;
    let mut watch = store.watch(&format!("{prefix}in/"), start);
    let tasks = (0..4).map(|task| {
        let (store, prefix) = (store.clone(), prefix.to_owned());
        tokio::spawn(async move {
            let mut done = Vec::new();
            for turn in 0..50 {
                let key = format!("{prefix}in/{}", (task + turn) % 5);
                if turn % 7 == 6 {
                    ok("delete", store.delete(&key, Expect::Any).await)?;
                } else {
                    done.push((put(&store, &key, &format!("{task}.{turn}")).await?, format!("{task}.{turn}")));
                }
                put(&store, &format!("{prefix}out"), "not asked for").await?;
            }
            Ok(done)
        })
    });
    let mut expected: Vec<(u64, String)> = joined(tasks.collect()).await?.into_iter().flatten().collect();
    expected.sort_unstable();
    let end = put(store, &format!("{prefix}in/end"), "").await?;
    let mut seen = Vec::new();
    let mut last = start;
    loop {
        let change = next(&mut watch).await?;
        holds(change.key.starts_with(&format!("{prefix}in/")), || format!("not asked for: {}", change.key))?;
        holds(change.revision > last, || format!("revision {} came after {last}", change.revision))?;
        last = change.revision;
        if change.revision == end {
            break;
        }
        if let Some(value) = change.value {
            seen.push((change.revision, String::from_utf8_lossy(&value).into_owned()));
        }
    }
    same("the puts seen", &seen, &expected)
}

pub(super) async fn list_then_watch_rebuilds_the_same_state(store: &Arc<dyn Store>, prefix: &str) -> Outcome {
    let writer = {
        let (store, prefix) = (store.clone(), prefix.to_owned());
        tokio::spawn(async move {
            for turn in 0..200 {
                let key = format!("{prefix}{}", turn * 7 % 10);
                if turn % 3 == 0 {
                    ok("delete", store.delete(&key, Expect::Any).await)?;
                } else {
                    put(&store, &key, &turn.to_string()).await?;
                }
            }
            put(&store, &format!("{prefix}end"), "").await
        })
    };
    for _ in 0..5 {
        let listed = ok("list", store.list(prefix).await)?;
        let mut state: BTreeMap<String, Bytes> = listed.entries.into_iter().map(|e| (e.key, e.value)).collect();
        let mut watch = store.watch(prefix, listed.revision);
        while !state.contains_key(&format!("{prefix}end")) {
            let change = next(&mut watch).await?;
            match change.value {
                Some(value) => state.insert(change.key, value),
                None => state.remove(&change.key),
            };
        }
        let whole = ok("list", store.list(prefix).await)?.entries;
        same("the state rebuilt", &state, &whole.into_iter().map(|e| (e.key, e.value)).collect())?;
    }
    joined(vec![writer]).await.map(drop)
}

pub(super) async fn a_key_read_after_its_change_is_at_least_as_new(store: &Arc<dyn Store>, prefix: &str) -> Outcome {
    let key = format!("{prefix}k");
    let mut watch = store.watch(prefix, ok("list", store.list(prefix).await)?.revision);
    let writer = {
        let (store, key) = (store.clone(), key.clone());
        tokio::spawn(async move {
            for turn in 0..50 {
                put(&store, &key, &turn.to_string()).await?;
            }
            Ok(())
        })
    };
    for _ in 0..50 {
        let change = next(&mut watch).await?;
        let entry = ok("get", store.get(&key).await)?.ok_or("a changed key is not there")?;
        holds(entry.revision >= change.revision, || {
            format!("read revision {} after a change at {}", entry.revision, change.revision)
        })?;
    }
    joined(vec![writer]).await.map(drop)
}

pub(super) async fn a_watch_from_too_long_ago_says_so(store: &Arc<dyn Store>, prefix: &str) -> Outcome {
    const MOST: usize = 4096;
    let key = format!("{prefix}k");
    let old = put(store, &key, "old").await?;
    // Leased, so that a backend need not sync each of them.
    let lease = ok("grant", store.grant(Duration::from_secs(600)).await)?;
    let big = Bytes::from(vec![1; 64 << 10]);
    for turn in 0..MOST {
        ok("put", store.put(&format!("{prefix}big"), big.clone(), Expect::Any, Some(lease)).await)?;
        if turn % 64 != 0 {
            continue;
        }
        // What is kept must start right after `old`; what is not must say so and end.
        let mut watch = store.watch(prefix, old);
        match tokio::time::timeout(SOON, watch.next()).await {
            Ok(Some(Err(StoreError::Compacted { asked, oldest }))) => {
                same("the revision asked for", &asked, &old)?;
                holds(oldest > old, || format!("{oldest} is said to be kept, but not what came after {old}"))?;
                holds(watch.next().await.is_none(), || "a watch went on after its error".into())?;
                let listed = ok("list", store.list(prefix).await)?;
                let fresh = put(store, &key, "new").await?;
                let mut watch = store.watch(prefix, listed.revision);
                same("the change after a new list", &next(&mut watch).await?.revision, &fresh)?;
                return ok("revoke", store.revoke(lease).await);
            }
            Ok(Some(Ok(change))) => {
                same("the first change kept", &change.key, &format!("{prefix}big"))?;
                holds(change.revision > old, || "an old change came again".into())?;
            }
            other => return Err(format!("a watch from long ago: {other:?}")),
        }
    }
    Err(format!("{MOST} changes of 64 KiB are all kept: history has no bound"))
}
