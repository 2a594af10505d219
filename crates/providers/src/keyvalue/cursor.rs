//! The draft's cursor is a number, a backend's is a position in its own words. The number given to a guest holds how
//! many keys were listed so far and a random tag: on the host that gave it out the exact position is remembered;
//! anywhere else, as after a restart or on another shard, the position is found again by counting from the start.

use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasher, RandomState};
use std::sync::{Mutex, PoisonError};

use super::{Backend, BackendError, Page};

/// Positions remembered per revision and component.
const REMEMBERED: usize = 1024;
/// Low bits of a cursor that tell apart two listings that stand at the same count.
const TAG_BITS: u32 = 16;

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
        let mut listed = cursor.map_or(0, |cursor| cursor >> TAG_BITS);
        let position = match cursor.map(|cursor| (self.remembered(bucket, cursor), listed)) {
            None => None,
            Some((Some(after), _)) => Some(after),
            Some((None, count)) => match count_again(backend, bucket, count).await? {
                Some(after) => Some(after),
                None => return Ok((Vec::new(), None)),
            },
        };
        let Page { keys, cursor } = backend.list_keys(bucket, position.as_deref()).await?;
        listed += keys.len() as u64;
        let next = cursor.map(|after| self.remember(bucket, after, listed));
        Ok((keys, next))
    }

    fn remembered(&self, bucket: &str, cursor: u64) -> Option<String> {
        let inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        inner.positions.get(&cursor).filter(|position| *position.bucket == *bucket).map(|found| found.after.clone())
    }

    fn remember(&self, bucket: &str, after: String, listed: u64) -> u64 {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        inner.issued += 1;
        let tag = self.random.hash_one(inner.issued) & ((1 << TAG_BITS) - 1);
        let cursor = listed << TAG_BITS | tag;
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

/// The backend's position after at least `count` keys; `None` where the bucket ends before.
async fn count_again(backend: &dyn Backend, bucket: &str, count: u64) -> Result<Option<String>, BackendError> {
    let mut seen = 0;
    let mut position: Option<String> = None;
    loop {
        let page = backend.list_keys(bucket, position.as_deref()).await?;
        seen += page.keys.len() as u64;
        match page.cursor {
            Some(after) if seen >= count => return Ok(Some(after)),
            Some(after) => position = Some(after),
            None => return Ok(None),
        }
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
    async fn another_host_goes_on_where_the_first_one_stopped() {
        let memory = filled(PAGE * 2 + 5).await;
        let mut keys = Vec::new();
        let mut cursor = None;
        loop {
            let (page, next) = Cursors::default().list(&memory, "b", cursor).await.unwrap();
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
    async fn a_made_up_cursor_ends_the_listing_and_memory_stays_bounded() {
        let memory = filled(PAGE + 1).await;
        let cursors = Cursors::default();
        assert_eq!(cursors.list(&memory, "b", Some(u64::MAX)).await.unwrap(), (vec![], None));
        for _ in 0..REMEMBERED * 2 {
            cursors.list(&memory, "b", None).await.unwrap();
        }
        let inner = cursors.inner.lock().unwrap();
        assert!(inner.positions.len() <= REMEMBERED && inner.oldest.len() <= REMEMBERED);
    }
}
