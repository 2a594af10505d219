//! Key-value in this process: gone with it, and as fast as it gets. Bounded, because it is the host's own memory.

use std::collections::{BTreeMap, HashMap};
use std::ops::Bound;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures::FutureExt;
use futures::future::ready;
use model::number::incremented;

use super::{Answer, Backend, BackendError, Gathered, PAGE, Page};

/// What one key costs beside its bytes, about.
const OVERHEAD: usize = 128;

/// What all stores in memory of one process may hold together: it is one tenant's, and may have any number of apps.
#[derive(Debug)]
pub struct Room {
    most: usize,
    used: AtomicUsize,
}

impl Room {
    /// For at most about so many bytes.
    pub fn new(most: usize) -> Arc<Self> {
        Arc::new(Self { most, used: AtomicUsize::new(0) })
    }

    fn take(&self, bytes: usize) -> bool {
        let more = |used: usize| used.checked_add(bytes).filter(|used| *used <= self.most);
        self.used.fetch_update(Relaxed, Relaxed, more).is_ok()
    }

    fn give(&self, bytes: usize) {
        let less = |used: usize| Some(used.saturating_sub(bytes));
        // Never refused.
        let _ = self.used.fetch_update(Relaxed, Relaxed, less);
    }
}

/// A store in memory.
#[derive(Debug)]
pub struct Memory {
    max_bytes: usize,
    room: Arc<Room>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    used: usize,
    buckets: HashMap<Box<str>, BTreeMap<Box<str>, Vec<u8>>>,
}

impl Memory {
    /// A store of at most about `max_bytes` bytes, all buckets together.
    pub fn new(max_bytes: usize) -> Self {
        Self::within(max_bytes, Room::new(max_bytes))
    }

    /// The same, and no more than `room` has left, which is shared with others.
    pub fn within(max_bytes: usize, room: Arc<Room>) -> Self {
        Self { max_bytes, room, state: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes `pairs`, all or none. Of a key that is there twice the last value counts.
    fn put(&self, state: &mut State, bucket: &str, pairs: Vec<(String, Vec<u8>)>) -> Result<(), BackendError> {
        let pairs: BTreeMap<String, Vec<u8>> = pairs.into_iter().collect();
        let before = state.used;
        let after = pairs.iter().fold(before, |used, (key, value)| {
            (used + cost(key, value)).saturating_sub(state.get(bucket, key).map_or(0, |old| cost(key, old)))
        });
        let most = self.max_bytes;
        if after > most {
            return Err(BackendError::TooLarge(format!("the memory store is full: it holds at most {most} bytes")));
        }
        let taken = after.saturating_sub(before);
        if !self.room.take(taken) {
            let most = self.room.most;
            return Err(BackendError::TooLarge(format!(
                "the memory stores of all apps of this tenant are full: together they hold at most {most} bytes on a host"
            )));
        }
        for (key, value) in pairs {
            state.set(bucket, &key, value);
        }
        self.room.give((before + taken).saturating_sub(state.used));
        Ok(())
    }

    fn remove(&self, state: &mut State, bucket: &str, key: &str) {
        let before = state.used;
        state.delete(bucket, key);
        self.room.give(before - state.used);
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        let used = self.lock().used;
        self.room.give(used);
    }
}

fn cost(key: &str, value: &[u8]) -> usize {
    OVERHEAD + key.len() + value.len()
}

impl State {
    fn get(&self, bucket: &str, key: &str) -> Option<&Vec<u8>> {
        self.buckets.get(bucket)?.get(key)
    }

    fn set(&mut self, bucket: &str, key: &str, value: Vec<u8>) {
        self.used += cost(key, &value);
        if !self.buckets.contains_key(bucket) {
            self.buckets.insert(bucket.into(), BTreeMap::new());
        }
        let old = self.buckets.get_mut(bucket).and_then(|keys| keys.insert(key.into(), value));
        if let Some(old) = old {
            self.used -= cost(key, &old);
        }
    }

    fn delete(&mut self, bucket: &str, key: &str) {
        let Some(keys) = self.buckets.get_mut(bucket) else { return };
        if let Some(old) = keys.remove(key) {
            self.used -= cost(key, &old);
        }
        if keys.is_empty() {
            self.buckets.remove(bucket);
        }
    }
}

impl Backend for Memory {
    fn get<'a>(&'a self, bucket: &'a str, key: &'a str) -> Answer<'a, Option<Vec<u8>>> {
        ready(Ok(self.lock().get(bucket, key).cloned())).boxed()
    }

    fn set<'a>(&'a self, bucket: &'a str, key: &'a str, value: Vec<u8>) -> Answer<'a, ()> {
        ready(self.put(&mut self.lock(), bucket, vec![(key.to_owned(), value)])).boxed()
    }

    fn delete<'a>(&'a self, bucket: &'a str, key: &'a str) -> Answer<'a, ()> {
        self.remove(&mut self.lock(), bucket, key);
        ready(Ok(())).boxed()
    }

    fn exists<'a>(&'a self, bucket: &'a str, key: &'a str) -> Answer<'a, bool> {
        ready(Ok(self.lock().get(bucket, key).is_some())).boxed()
    }

    fn list_keys<'a>(&'a self, bucket: &'a str, cursor: Option<&'a str>) -> Answer<'a, Page> {
        let state = self.lock();
        let from = cursor.map_or(Bound::Unbounded, Bound::Excluded);
        let mut rest =
            state.buckets.get(bucket).into_iter().flat_map(|keys| keys.range::<str, _>((from, Bound::Unbounded)));
        let keys: Vec<String> = rest.by_ref().take(PAGE as usize).map(|(key, _)| key.to_string()).collect();
        let cursor = rest.next().and(keys.last().cloned());
        ready(Ok(Page { keys, cursor })).boxed()
    }

    fn increment<'a>(&'a self, bucket: &'a str, key: &'a str, delta: u64) -> Answer<'a, u64> {
        let mut state = self.lock();
        let sum = incremented(state.get(bucket, key).map(Vec::as_slice), delta);
        let result = match sum {
            None => Err(BackendError::NotANumber(key.to_owned())),
            Some(sum) => {
                let pair = (key.to_owned(), sum.to_string().into_bytes());
                self.put(&mut state, bucket, vec![pair]).map(|()| sum)
            }
        };
        ready(result).boxed()
    }

    fn get_many<'a>(&'a self, bucket: &'a str, keys: Vec<String>) -> Answer<'a, Vec<(String, Option<Vec<u8>>)>> {
        let state = self.lock();
        let mut found = Gathered::default();
        let all = keys.into_iter().try_for_each(|key| {
            let value = state.get(bucket, &key);
            found.push(key, value)
        });
        ready(all.map(|()| found.values)).boxed()
    }

    fn set_many<'a>(&'a self, bucket: &'a str, pairs: Vec<(String, Vec<u8>)>) -> Answer<'a, ()> {
        ready(self.put(&mut self.lock(), bucket, pairs)).boxed()
    }

    fn delete_many<'a>(&'a self, bucket: &'a str, keys: Vec<String>) -> Answer<'a, ()> {
        let mut state = self.lock();
        for key in keys {
            self.remove(&mut state, bucket, &key);
        }
        ready(Ok(())).boxed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn it_is_bounded_and_gives_back_what_is_deleted() {
        let memory = Memory::new(1000);
        memory.set("b", "k", vec![0; 700]).await.unwrap();
        assert!(matches!(memory.set("b", "l", vec![0; 700]).await, Err(BackendError::TooLarge(_))));
        memory.set("b", "k", vec![1; 800]).await.unwrap();
        let pairs = vec![("m".to_owned(), vec![0; 10]), ("n".to_owned(), vec![0; 10])];
        assert!(memory.set_many("b", pairs).await.is_err());
        assert!(!memory.exists("b", "m").await.unwrap(), "all or none");
        memory.delete("b", "k").await.unwrap();
        assert_eq!(memory.lock().used, 0);
        assert!(memory.lock().buckets.is_empty());
    }

    #[tokio::test]
    async fn a_key_twice_in_a_batch_counts_once_also_where_it_replaces_one() {
        let room = Room::new(1000);
        let (one, two) = (Memory::within(1000, room.clone()), Memory::within(1000, room.clone()));
        one.set("b", "k", vec![0; 100]).await.unwrap();
        let twice = vec![("k".to_owned(), vec![0; 10]), ("k".to_owned(), vec![1; 150])];
        one.set_many("b", twice).await.unwrap();
        assert_eq!(one.get("b", "k").await, Ok(Some(vec![1; 150])), "the last one");
        assert_eq!(room.used.load(Relaxed), cost("k", &[0; 150]));
        one.delete("b", "k").await.unwrap();
        assert_eq!((one.lock().used, room.used.load(Relaxed)), (0, 0));
        two.set("b", "k", vec![0; 500]).await.unwrap();
    }

    #[tokio::test]
    async fn stores_of_one_tenant_share_what_they_may_hold() {
        let room = Room::new(1000);
        let (one, two) = (Memory::within(700, room.clone()), Memory::within(700, room.clone()));
        one.set("b", "k", vec![0; 500]).await.unwrap();
        let full = two.set("b", "k", vec![0; 500]).await.unwrap_err();
        assert!(matches!(&full, BackendError::TooLarge(why) if why.contains("all apps of this tenant")), "{full}");
        // The same key twice counts once.
        let twice = vec![("k".to_owned(), vec![0; 20]), ("k".to_owned(), vec![0; 10])];
        two.set_many("b", twice).await.unwrap();
        assert_eq!(room.used.load(Relaxed), cost("k", &[0; 500]) + cost("k", &[0; 10]));
        assert_eq!(two.increment("b", "n", 7).await, Ok(7));
        two.delete_many("b", vec!["k".to_owned(), "n".to_owned(), "none".to_owned()]).await.unwrap();
        one.set("b", "k", vec![0; 100]).await.unwrap();
        assert_eq!(room.used.load(Relaxed), cost("k", &[0; 100]), "a smaller value gives back the rest");
        drop(one);
        assert_eq!(room.used.load(Relaxed), 0, "a store that is gone gives back everything");
        two.set("b", "k", vec![0; 500]).await.unwrap();
    }
}
