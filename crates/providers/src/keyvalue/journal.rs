//! Which keys were written while somebody copies a store: what a copy has to look at again before it is whole.
//!
//! A key is noted before its write begins and once more after it ended, so that whoever takes the notes in between
//! finds it in the next ones, and so that a write that was under way when the notes began is not missed. While nobody
//! copies, a write costs two looks at a flag.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures::FutureExt;

use super::{Answer, Backend, Page};

/// Keys noted at once; beyond it the copy has to begin again.
pub const MAX_NOTED: usize = 1 << 20;
/// Bytes of the keys noted at once, as they are answered: it is the memory of the host that serves the app, and an answer
/// of one round has all of them.
pub const MAX_NOTED_BYTES: usize = 16 << 20;

/// The notes of one provider.
#[derive(Debug, Default)]
pub struct Journal {
    open: AtomicBool,
    notes: Mutex<Notes>,
}

#[derive(Debug, Default)]
struct Notes {
    bucket: String,
    fresh: BTreeSet<String>,
    /// Those of the last round, until the next one is asked for.
    given: BTreeSet<String>,
    /// Of `fresh` and `given`, as JSON.
    bytes: usize,
    round: u64,
    overflowed: bool,
}

/// More was written than can be noted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "more than {MAX_NOTED} keys, or more than {} MiB of keys, were written during the copy",
    MAX_NOTED_BYTES >> 20
)]
pub struct Overflow;

/// The bytes of a key in an answer: quoted, escaped and with what stands between two.
pub fn size(key: &str) -> usize {
    let escaped = key.bytes().map(|byte| match byte {
        0..0x20 => 6,
        b'"' | b'\\' => 2,
        _ => 1,
    });
    escaped.sum::<usize>() + 3
}

impl Journal {
    fn notes(&self) -> MutexGuard<'_, Notes> {
        self.notes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins to note what is written to `bucket`, with nothing noted.
    pub fn begin(&self, bucket: &str) {
        *self.notes() = Notes { bucket: bucket.to_owned(), ..Notes::default() };
        self.open.store(true, SeqCst);
    }

    /// Notes nothing any more.
    pub fn end(&self) {
        self.open.store(false, SeqCst);
        *self.notes() = Notes::default();
    }

    /// What was noted since the round before. The rounds count from 1; a round asked for once more, because its answer
    /// was lost, gives again what it gave.
    ///
    /// # Errors
    /// [`Overflow`] where not everything could be noted.
    pub fn round(&self, round: u64) -> Result<Vec<String>, Overflow> {
        let notes = &mut *self.notes();
        if notes.overflowed {
            return Err(Overflow);
        }
        if round != notes.round {
            notes.given.clear();
            notes.round = round;
            notes.bytes = notes.fresh.iter().map(|key| size(key)).sum();
        }
        notes.given.append(&mut notes.fresh);
        Ok(notes.given.iter().cloned().collect())
    }

    /// Whether somebody copies.
    pub(crate) fn is_open(&self) -> bool {
        self.open.load(SeqCst)
    }

    pub(crate) fn note<'a>(&self, bucket: &str, keys: impl Iterator<Item = &'a str>) {
        if !self.is_open() {
            return;
        }
        let mut notes = self.notes();
        if notes.bucket != bucket {
            return;
        }
        for key in keys {
            if notes.fresh.contains(key) {
                continue;
            }
            notes.bytes += size(key);
            if notes.fresh.len() + notes.given.len() >= MAX_NOTED || notes.bytes > MAX_NOTED_BYTES {
                *notes = Notes { overflowed: true, ..Notes::default() };
                return;
            }
            notes.fresh.insert(key.to_owned());
        }
    }
}

/// A backend whose writes are noted.
pub struct Journaled {
    inner: Arc<dyn Backend>,
    journal: Arc<Journal>,
}

impl Journaled {
    /// Notes the writes to `inner` in `journal`.
    pub fn new(inner: Arc<dyn Backend>, journal: Arc<Journal>) -> Self {
        Self { inner, journal }
    }

    fn one<'a, T: 'a>(&'a self, bucket: &'a str, key: &'a str, write: Answer<'a, T>) -> Answer<'a, T> {
        async move {
            self.journal.note(bucket, std::iter::once(key));
            let result = write.await;
            self.journal.note(bucket, std::iter::once(key));
            result
        }
        .boxed()
    }

    fn many<'a, T: 'a>(&'a self, bucket: &'a str, keys: Vec<String>, write: Answer<'a, T>) -> Answer<'a, T> {
        async move {
            self.journal.note(bucket, keys.iter().map(String::as_str));
            let result = write.await;
            self.journal.note(bucket, keys.iter().map(String::as_str));
            result
        }
        .boxed()
    }
}

impl Backend for Journaled {
    fn get<'a>(&'a self, bucket: &'a str, key: &'a str) -> Answer<'a, Option<Vec<u8>>> {
        self.inner.get(bucket, key)
    }

    fn set<'a>(&'a self, bucket: &'a str, key: &'a str, value: Vec<u8>) -> Answer<'a, ()> {
        self.one(bucket, key, self.inner.set(bucket, key, value))
    }

    fn delete<'a>(&'a self, bucket: &'a str, key: &'a str) -> Answer<'a, ()> {
        self.one(bucket, key, self.inner.delete(bucket, key))
    }

    fn exists<'a>(&'a self, bucket: &'a str, key: &'a str) -> Answer<'a, bool> {
        self.inner.exists(bucket, key)
    }

    fn list_keys<'a>(&'a self, bucket: &'a str, cursor: Option<&'a str>) -> Answer<'a, Page> {
        self.inner.list_keys(bucket, cursor)
    }

    fn increment<'a>(&'a self, bucket: &'a str, key: &'a str, delta: u64) -> Answer<'a, u64> {
        self.one(bucket, key, self.inner.increment(bucket, key, delta))
    }

    fn get_many<'a>(&'a self, bucket: &'a str, keys: Vec<String>) -> Answer<'a, Vec<(String, Option<Vec<u8>>)>> {
        self.inner.get_many(bucket, keys)
    }

    fn set_many<'a>(&'a self, bucket: &'a str, pairs: Vec<(String, Vec<u8>)>) -> Answer<'a, ()> {
        let keys = pairs.iter().map(|(key, _)| key.clone()).collect();
        self.many(bucket, keys, self.inner.set_many(bucket, pairs))
    }

    fn delete_many<'a>(&'a self, bucket: &'a str, keys: Vec<String>) -> Answer<'a, ()> {
        self.many(bucket, keys.clone(), self.inner.delete_many(bucket, keys))
    }
}

#[cfg(test)]
mod tests {
    use super::super::Memory;
    use super::*;

    fn keys(keys: &[&str]) -> Result<Vec<String>, Overflow> {
        Ok(keys.iter().map(|key| (*key).to_owned()).collect())
    }

    #[tokio::test]
    async fn writes_are_noted_while_somebody_copies() {
        let journal = Arc::new(Journal::default());
        let store = Journaled::new(Arc::new(Memory::new(1 << 20)), journal.clone());
        store.set("b", "before", vec![1]).await.unwrap();
        journal.begin("b");
        assert_eq!(journal.round(1), keys(&[]));
        store.set("b", "x", vec![1]).await.unwrap();
        store.increment("b", "n", 1).await.unwrap();
        store.delete("b", "x").await.unwrap();
        assert_eq!(journal.round(2), keys(&["n", "x"]));
        store.set_many("b", vec![("p".into(), vec![]), ("q".into(), vec![])]).await.unwrap();
        store.set("other", "o", vec![]).await.unwrap();
        assert_eq!(journal.round(2), keys(&["n", "p", "q", "x"]), "an answer that was lost is given again");
        assert_eq!(journal.round(3), keys(&[]));
        journal.end();
        store.set("b", "after", vec![1]).await.unwrap();
        assert_eq!(journal.round(4), keys(&[]));
    }

    #[tokio::test]
    async fn a_write_that_ends_after_the_notes_were_taken_is_in_the_next_ones() {
        let journal = Arc::new(Journal::default());
        let store = Journaled::new(Arc::new(Memory::new(1 << 20)), journal.clone());
        let (go, wait) = tokio::sync::oneshot::channel::<()>();
        let slow: Answer<'_, ()> = async move {
            drop(wait.await);
            Ok(())
        }
        .boxed();
        let mut write = store.one("b", "k", slow);
        assert!((&mut write).now_or_never().is_none());
        journal.begin("b");
        assert_eq!(journal.round(1), keys(&[]), "it began before the notes did");
        go.send(()).unwrap();
        write.await.unwrap();
        assert_eq!(journal.round(2), keys(&["k"]));
    }

    #[test]
    fn too_many_are_said() {
        let journal = Journal::default();
        journal.begin("b");
        journal.notes().fresh = (0..MAX_NOTED).map(|n| n.to_string()).collect();
        journal.note("b", std::iter::once("k"));
        assert_eq!(journal.round(1), Err(Overflow));
    }

    #[test]
    fn notes_are_bounded_in_bytes_and_a_round_makes_room() {
        let journal = Journal::default();
        journal.begin("b");
        let key = |n: usize| format!("{n:0>1024}");
        let fit = MAX_NOTED_BYTES / 1027;
        for n in 0..fit {
            journal.note("b", [key(n).as_str(), key(n).as_str()].into_iter());
        }
        assert_eq!(journal.round(1).map(|keys| keys.len()), Ok(fit), "the same key costs once");
        assert_eq!(journal.round(2), keys(&[]));
        for n in 0..fit {
            journal.note("b", std::iter::once(key(n).as_str()));
        }
        assert_eq!(journal.round(3).map(|keys| keys.len()), Ok(fit), "what was given is forgotten");
        journal.note("b", ["more", &key(fit)].into_iter());
        assert_eq!(journal.round(4), Err(Overflow));
        let kept = {
            let notes = journal.notes();
            notes.fresh.len() + notes.given.len()
        };
        assert_eq!(kept, 0);
        let controls: String = ['\u{1}'; 1000].into_iter().collect();
        assert_eq!(size(&controls) + size("a\"b\\"), serde_json::to_vec(&[&controls, "a\"b\\"]).unwrap().len() - 1);
    }
}
