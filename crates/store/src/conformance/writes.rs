//! Cases about keys, revisions, compare-and-set and lists.

use std::sync::Arc;

use bytes::Bytes;

use super::{Outcome, conflict, holds, joined, ok, same};
use crate::{Expect, Store};

pub(super) async fn a_key_is_what_was_last_written(store: &Arc<dyn Store>, prefix: &str) -> Outcome {
    let key = format!("{prefix}k");
    same("a key before its first write", &ok("get", store.get(&key).await)?, &None)?;
    for value in [Bytes::from_static(b"one"), Bytes::new(), Bytes::from(vec![0xff; 100_000])] {
        let revision = ok("put", store.put(&key, value.clone(), Expect::Any, None).await)?;
        let entry = ok("get", store.get(&key).await)?.ok_or("a written key is not there")?;
        same("the value", &entry.value, &value)?;
        same("the key", &entry.key, &key)?;
        same("the revision", &entry.revision, &revision)?;
    }
    ok("delete", store.delete(&key, Expect::Any).await)?;
    same("a deleted key", &ok("get", store.get(&key).await)?, &None)?;
    ok("delete of nothing", store.delete(&key, Expect::Any).await).map(drop)
}

pub(super) async fn compare_and_set_lets_exactly_the_expected_through(store: &Arc<dyn Store>, prefix: &str) -> Outcome {
    let key = &format!("{prefix}k");
    let put = |expect| store.put(key, Bytes::from_static(b"v"), expect, None);
    same("conflict at an absent key", &conflict("put", put(Expect::Revision(1)).await)?, &None)?;
    same("conflict at an absent key", &conflict("delete", store.delete(key, Expect::Revision(1)).await)?, &None)?;
    let first = ok("put if absent", put(Expect::Absent).await)?;
    same("conflict at a present key", &conflict("put if absent", put(Expect::Absent).await)?, &Some(first))?;
    let second = ok("put at its revision", put(Expect::Revision(first)).await)?;
    for wrong in [first, second + 1, 0] {
        same("conflict", &conflict("put", put(Expect::Revision(wrong)).await)?, &Some(second))?;
        same("conflict", &conflict("delete", store.delete(key, Expect::Revision(wrong)).await)?, &Some(second))?;
    }
    let entry = ok("get", store.get(key).await)?.ok_or("a conflict removed the key")?;
    same("the revision after conflicts", &entry.revision, &second)?;
    ok("delete at its revision", store.delete(key, Expect::Revision(second)).await)?;
    ok("put if absent after a delete", put(Expect::Absent).await).map(drop)
}

pub(super) async fn sizes_are_those_of_the_list(store: &Arc<dyn Store>, prefix: &str) -> Outcome {
    let lease = ok("grant", store.grant(std::time::Duration::from_secs(600)).await)?;
    for (name, size, lease) in [("b", 70_000, None), ("a", 0, None), ("c", 3, Some(lease)), ("a/1", 1, None)] {
        ok("put", store.put(&format!("{prefix}{name}"), Bytes::from(vec![b'x'; size]), Expect::Any, lease).await)?;
    }
    for under in [prefix.to_owned(), format!("{prefix}a"), format!("{prefix}none")] {
        let listed = ok("list", store.list(&under).await)?.entries.into_iter();
        let listed: Vec<(String, u64)> = listed.map(|entry| (entry.key, entry.value.len() as u64)).collect();
        same("the sizes", &ok("sizes", store.sizes(&under).await)?, &listed)?;
    }
    same("what was written", &ok("sizes", store.sizes(prefix).await)?.len(), &4)
}

pub(super) async fn revisions_grow_and_name_the_last_write(store: &Arc<dyn Store>, prefix: &str) -> Outcome {
    let mut last = ok("list", store.list(prefix).await)?.revision;
    for turn in 0..10 {
        let key = format!("{prefix}{}", turn % 3);
        let revision = ok("put", store.put(&key, Bytes::new(), Expect::Any, None).await)?;
        holds(revision > last, || format!("revision {revision} came after {last}"))?;
        let deleted = ok("delete", store.delete(&key, Expect::Any).await)?;
        holds(deleted > revision, || format!("a delete at {deleted} came after {revision}"))?;
        last = deleted;
    }
    let now = ok("list", store.list(prefix).await)?.revision;
    holds(now >= last, || format!("a list at {now} came after {last}"))
}

pub(super) async fn a_list_is_whole_ordered_and_of_its_prefix_only(store: &Arc<dyn Store>, prefix: &str) -> Outcome {
    // Names that sort around the separator, and neighbours of the prefix.
    let inner = ["a/", "a/1", "a/10", "a/2", "a/b/c", "a/~"];
    for key in inner.iter().chain(&["a", "a-b", "a0", "b/1"]) {
        let key = format!("{prefix}{key}");
        ok("put", store.put(&key, Bytes::from(key.clone()), Expect::Any, None).await)?;
    }
    let listed = ok("list", store.list(&format!("{prefix}a/")).await)?;
    let keys: Vec<String> = listed.entries.iter().map(|entry| entry.key.clone()).collect();
    same("the list", &keys, &inner.iter().map(|key| format!("{prefix}{key}")).collect())?;
    for entry in &listed.entries {
        same("a listed value", &entry.value, &Bytes::from(entry.key.clone()))?;
        same("a listed entry", &ok("get", store.get(&entry.key).await)?.as_ref(), &Some(entry))?;
        holds(entry.revision <= listed.revision, || "an entry is newer than its list".into())?;
    }
    same("a list of nothing", &ok("list", store.list(&format!("{prefix}zz")).await)?.entries.len(), &0)
}

pub(super) async fn a_list_shows_one_moment(store: &Arc<dyn Store>, prefix: &str) -> Outcome {
    // One writer moves two keys in turn: at every moment they are equal, or the first is one ahead.
    let (first, second) = (format!("{prefix}a"), format!("{prefix}b"));
    let writer = {
        let store = store.clone();
        tokio::spawn(async move {
            for turn in 0..100u32 {
                for key in [&first, &second] {
                    let value = Bytes::copy_from_slice(&turn.to_be_bytes());
                    ok("put", store.put(key, value, Expect::Any, None).await)?;
                }
            }
            Ok(())
        })
    };
    while !writer.is_finished() {
        let listed = ok("list", store.list(prefix).await)?;
        let numbers: Vec<u32> = listed.entries.iter().filter_map(|entry| number(&entry.value)).collect();
        let one_moment = match numbers.as_slice() {
            [] => true,
            [a] => *a == 0,
            [a, b, ..] => a == b || *a == b + 1,
        };
        holds(one_moment, || format!("a list mixed two moments: {numbers:?}"))?;
    }
    joined(vec![writer]).await.map(drop)
}

fn number(value: &Bytes) -> Option<u32> {
    value.as_ref().try_into().ok().map(u32::from_be_bytes)
}

pub(super) async fn concurrent_compare_and_set_is_linear(store: &Arc<dyn Store>, prefix: &str) -> Outcome {
    const TASKS: u32 = 8;
    const EACH: u32 = 25;
    let key = format!("{prefix}counter");
    let tasks = (0..TASKS).map(|_| {
        let (store, key) = (store.clone(), key.clone());
        tokio::spawn(async move {
            let mut won = Vec::new();
            while won.len() < EACH as usize {
                let entry = ok("get", store.get(&key).await)?;
                let (count, expect) = match &entry {
                    None => (0, Expect::Absent),
                    Some(entry) => (number(&entry.value).ok_or("not a counter")?, Expect::Revision(entry.revision)),
                };
                let value = Bytes::copy_from_slice(&(count + 1).to_be_bytes());
                match store.put(&key, value, expect, None).await {
                    Ok(_) => won.push(count + 1),
                    lost => drop(conflict("a lost race", lost)?),
                }
            }
            Ok(won)
        })
    });
    let mut won: Vec<u32> = joined(tasks.collect()).await?.into_iter().flatten().collect();
    won.sort_unstable();
    same("the numbers won", &won, &(1..=TASKS * EACH).collect())
}

pub(super) async fn one_of_many_creators_wins(store: &Arc<dyn Store>, prefix: &str) -> Outcome {
    for round in 0..10 {
        let key = format!("{prefix}{round}");
        let tasks = (0..8u8).map(|me| {
            let (store, key) = (store.clone(), key.clone());
            tokio::spawn(async move {
                match store.put(&key, Bytes::copy_from_slice(&[me]), Expect::Absent, None).await {
                    Ok(_) => Ok(Some(me)),
                    lost => conflict("a lost race", lost).map(|_| None),
                }
            })
        });
        let winners: Vec<u8> = joined(tasks.collect()).await?.into_iter().flatten().collect();
        let entry = ok("get", store.get(&key).await)?.ok_or("nobody created the key")?;
        same("the winners", &winners.as_slice(), &entry.value.as_ref())?;
    }
    Ok(())
}
