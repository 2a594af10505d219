//! The draft's cursor is a number, a backend's is a position in its own words: the number given to a guest is a name for
//! the position, which the host that gave it out remembers. Anywhere else, as after a restart or on another shard, it
//! is refused: a position that is found again by counting skips keys where others were deleted meanwhile.

use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasher, RandomState};
use std::sync::{Mutex, PoisonError};

use super::{Backend, BackendError, Page};

/// Positions remembered per revision and component.
const REMEMBERED: usize = 4096;

#[derive(Default)]
pub(super) struct Cursors {
    inner: Mutex<Inner>,
    random: RandomState,
}

#[derive(Default)]
struct Inner {
    issued: u64,
    positions: HashMap<u64, Position>,
    oldest: VecDeque<u64>,
}

#[derive(Clone)]
struct Position {
    bucket: Box<str>,
    after: String,
}

impl Cursors {
    /// One page from `cursor` on, and the cursor of the next.
    pub(super) async fn list(
        &self,
        backend: &dyn Backend,
        bucket: &str,
        cursor: Option<u64>,
    ) -> Result<(Vec<String>, Option<u64>), BackendError> {
        let unknown = || {
            let why =
                "this host does not know the cursor: another one gave it out, or it is too old; list from the start";
            BackendError::Unsupported(why.to_owned())
        };
        let position = cursor.map(|cursor| self.remembered(bucket, cursor).ok_or_else(unknown)).transpose()?;
        let Page { keys, cursor } = backend.list_keys(bucket, position.as_deref()).await?;
        let next = cursor.map(|after| self.remember(bucket, after));
        Ok((keys, next))
    }

    fn remembered(&self, bucket: &str, cursor: u64) -> Option<String> {
        let inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        inner.positions.get(&cursor).filter(|position| *position.bucket == *bucket).map(|found| found.after.clone())
    }

    fn remember(&self, bucket: &str, after: String) -> u64 {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        inner.issued += 1;
        // No other host gives out the same.
        let cursor = self.random.hash_one(inner.issued);
        if inner.positions.insert(cursor, Position { bucket: bucket.into(), after }).is_none() {
            inner.oldest.push_back(cursor);
        }
        if inner.oldest.len() > REMEMBERED
            && let Some(forgotten) = inner.oldest.pop_front()
        {
            inner.positions.remove(&forgotten);
        }
        cursor
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keyvalue::{Memory, PAGE};

    async fn filled(count: u32) -> Memory {
        let memory = Memory::new(1 << 20);
        for n in 0..count {
            memory.set("b", &format!("{n:05}"), vec![]).await.unwrap();
        }
        memory
    }

    #[tokio::test]
    async fn another_host_says_that_it_does_not_know_the_cursor_and_skips_nothing() {
        let memory = filled(PAGE * 2 + 5).await;
        let (first, next) = Cursors::default().list(&memory, "b", None).await.unwrap();
        memory.delete_many("b", first).await.unwrap();
        let refused = Cursors::default().list(&memory, "b", next).await.unwrap_err();
        assert!(matches!(&refused, BackendError::Unsupported(why) if why.contains("cursor")), "{refused}");
    }

    #[tokio::test]
    async fn pages_follow_one_another() {
        let memory = filled(PAGE * 2 + 5).await;
        let (cursors, mut keys, mut cursor) = (Cursors::default(), Vec::new(), None);
        loop {
            let (page, next) = cursors.list(&memory, "b", cursor).await.unwrap();
            keys.extend(page);
            match next {
                Some(next) => cursor = Some(next),
                None => break,
            }
        }
        assert_eq!(keys, (0..PAGE * 2 + 5).map(|n| format!("{n:05}")).collect::<Vec<_>>());
    }

    #[tokio::test]
    async fn a_remembered_cursor_is_exact_when_keys_before_it_vanish() {
        let memory = filled(PAGE + 5).await;
        let cursors = Cursors::default();
        let (first, next) = cursors.list(&memory, "b", None).await.unwrap();
        memory.delete_many("b", first).await.unwrap();
        let (rest, end) = cursors.list(&memory, "b", next).await.unwrap();
        assert_eq!((rest.len(), end), (5, None));
    }

    #[tokio::test]
    async fn a_made_up_cursor_is_refused_and_memory_stays_bounded() {
        let memory = filled(PAGE + 1).await;
        let cursors = Cursors::default();
        assert!(cursors.list(&memory, "b", Some(u64::MAX)).await.is_err());
        for _ in 0..REMEMBERED * 2 {
            cursors.list(&memory, "b", None).await.unwrap();
        }
        let inner = cursors.inner.lock().unwrap();
        assert!(inner.positions.len() <= REMEMBERED && inner.oldest.len() <= REMEMBERED);
    }
}
