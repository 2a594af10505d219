//! Key-value in this process: gone with it, and as fast as it gets. Bounded, because it is the host's own memory.

use std::collections::{BTreeMap, HashMap};
use std::ops::Bound;
use std::sync::{Mutex, MutexGuard, PoisonError};

use futures::FutureExt;
use futures::future::ready;

use super::{Answer, Backend, BackendError, Gathered, PAGE, Page};

/// What one key costs beside its bytes, about.
const OVERHEAD: usize = 128;

/// A store in memory.
#[derive(Debug)]
pub struct Memory {
    max_bytes: usize,
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
        Self { max_bytes, state: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn full(&self) -> BackendError {
        BackendError::TooLarge(format!("the memory store is full: it holds at most {} bytes", self.max_bytes))
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

    /// What is used once `pairs` are set, counting each as new unless it replaces a stored one.
    fn used_with<'a>(&self, bucket: &str, pairs: impl Iterator<Item = (&'a str, &'a [u8])>) -> usize {
        pairs.fold(self.used, |used, (key, value)| {
            (used + cost(key, value)).saturating_sub(self.get(bucket, key).map_or(0, |old| cost(key, old)))
        })
    }
}

impl Backend for Memory {
    fn get<'a>(&'a self, bucket: &'a str, key: &'a str) -> Answer<'a, Option<Vec<u8>>> {
        ready(Ok(self.lock().get(bucket, key).cloned())).boxed()
    }

    fn set<'a>(&'a self, bucket: &'a str, key: &'a str, value: Vec<u8>) -> Answer<'a, ()> {
        let mut state = self.lock();
        let fits = state.used_with(bucket, [(key, value.as_slice())].into_iter()) <= self.max_bytes;
        if fits {
            state.set(bucket, key, value);
        }
        ready(if fits { Ok(()) } else { Err(self.full()) }).boxed()
    }

    fn delete<'a>(&'a self, bucket: &'a str, key: &'a str) -> Answer<'a, ()> {
        self.lock().delete(bucket, key);
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

    fn increment<'a>(&'a self, bucket: &'a str, key: &'a str, delta: i64) -> Answer<'a, i64> {
        let mut state = self.lock();
        let now = match state.get(bucket, key) {
            None => Some(0),
            Some(value) => std::str::from_utf8(value).ok().and_then(|text| text.parse::<i64>().ok()),
        };
        let result = match now.and_then(|now| now.checked_add(delta)) {
            None => Err(BackendError::NotANumber(key.to_owned())),
            Some(sum) => {
                let text = sum.to_string().into_bytes();
                if state.used_with(bucket, [(key, text.as_slice())].into_iter()) > self.max_bytes {
                    Err(self.full())
                } else {
                    state.set(bucket, key, text);
                    Ok(sum)
                }
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
        let mut state = self.lock();
        let fits = state.used_with(bucket, pairs.iter().map(|(key, value)| (key.as_str(), value.as_slice())))
            <= self.max_bytes;
        if fits {
            for (key, value) in pairs {
                state.set(bucket, &key, value);
            }
        }
        ready(if fits { Ok(()) } else { Err(self.full()) }).boxed()
    }

    fn delete_many<'a>(&'a self, bucket: &'a str, keys: Vec<String>) -> Answer<'a, ()> {
        let mut state = self.lock();
        for key in keys {
            state.delete(bucket, &key);
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
}
