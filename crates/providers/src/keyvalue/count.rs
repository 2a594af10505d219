//! Atomic increments over a server that has check-and-set and no increment: read, add, and write only if nobody wrote
//! in between. Calls of this host for one key take turns, so that they do not fail each other; where the server never uses a
//! version twice, what the last one wrote is remembered for a moment, and the read is spared.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use futures::future::BoxFuture;
use model::number::{add, incremented};
use tokio::time::Instant;

use super::BackendError;

/// All tries of one increment together.
pub(super) const TIMEOUT: Duration = Duration::from_secs(5);
/// Keys remembered before those nobody waits for are forgotten.
const FORGET_AT: usize = 1024;
/// What a key was seen to hold is believed for so long, where it is remembered.
const REMEMBERED: Duration = Duration::from_secs(1);

/// What check-and-set needs. A version means something to its server only; `None` is that of a key that is not there.
pub(super) trait Versioned: Sync {
    /// Whether no two values of a key ever have the same version, also where it was deleted in between: then one that was
    /// seen may be compared with later on.
    fn never_repeats(&self) -> bool {
        false
    }
    /// The value and its version. The version may be there without a value, where the server remembers deleted keys.
    fn read<'a>(&'a self, bucket: &'a str, key: &'a str) -> BoxFuture<'a, Result<Found, BackendError>>;
    /// Writes where the version still is `version`; the version after that, or `None` where it was another.
    fn swap<'a>(
        &'a self,
        bucket: &'a str,
        key: &'a str,
        value: String,
        version: u64,
    ) -> BoxFuture<'a, Result<Option<u64>, BackendError>>;
}

/// What a key holds.
pub(super) struct Found {
    pub(super) value: Option<Vec<u8>>,
    /// 0 for a key that never was.
    pub(super) version: u64,
}

/// The number a key was seen to hold, its version, and when.
type Seen = Option<(u64, u64, Instant)>;
type Turn = tokio::sync::Mutex<Seen>;

/// One key: whose turn it is, for as long as somebody has one or what was seen is remembered.
#[derive(Default)]
struct Place {
    turn: Weak<Turn>,
    remembered: Option<Arc<Turn>>,
}

/// Whose turn it is, by bucket and key.
#[derive(Default)]
pub(super) struct Counting {
    turns: Mutex<HashMap<(String, String), Place>>,
    jitter: RandomState,
}

impl Counting {
    /// Adds `delta` to what `key` holds.
    pub(super) async fn increment(
        &self,
        store: &dyn Versioned,
        bucket: &str,
        key: &str,
        delta: u64,
    ) -> Result<u64, BackendError> {
        let late = || BackendError::TimedOut { ms: TIMEOUT.as_millis() as u64 };
        let deadline = Instant::now() + TIMEOUT;
        let turn = self.turn(bucket, key, store.never_repeats());
        let mut seen = tokio::time::timeout_at(deadline, turn.lock()).await.map_err(|_| late())?;
        let mut tries = 0_u32;
        loop {
            // Taken: whoever gives up in the middle leaves nothing behind that may be wrong.
            let remembered = seen
                .take()
                .filter(|(_, _, since)| since.elapsed() < REMEMBERED)
                .and_then(|(number, version, _)| Some((add(i64::try_from(number).ok()?, delta)?, version)));
            let (sum, version) = match remembered {
                Some((sum, version)) => (Some(sum), version),
                // Nothing is refused for what others may have written over.
                None => {
                    let Found { value, version } = store.read(bucket, key).await?;
                    (incremented(value.as_deref(), delta), version)
                }
            };
            let sum = sum.ok_or_else(|| BackendError::NotANumber(key.to_owned()))?;
            if let Some(version) = store.swap(bucket, key, sum.to_string(), version).await? {
                // Where others write the key too, the next call reads what they wrote.
                *seen = (tries == 0).then(|| (sum, version, Instant::now()));
                return Ok(sum);
            }
            tries += 1;
            let pause = Duration::from_millis(u64::from(tries.min(50)));
            let random = self.jitter.hash_one(tries);
            tokio::time::sleep(crate::breaker::pause(0, pause, pause, random)).await;
            if Instant::now() >= deadline {
                return Err(BackendError::Unavailable(format!(
                    "others wrote the same key between {tries} reads and writes of this increment; it did not happen"
                )));
            }
        }
    }

    /// Whoever locks it may write the key; no other call of this host does meanwhile.
    pub(super) fn turn(&self, bucket: &str, key: &str, remember: bool) -> Arc<Turn> {
        let mut turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
        if turns.len() >= FORGET_AT {
            turns.retain(|_, place| {
                place.remembered = None;
                place.turn.strong_count() > 0
            });
        }
        let place = turns.entry((bucket.to_owned(), key.to_owned())).or_default();
        let turn = place.turn.upgrade().unwrap_or_else(|| {
            let fresh = Arc::new(Turn::default());
            place.turn = Arc::downgrade(&fresh);
            fresh
        });
        place.remembered = remember.then(|| turn.clone());
        turn
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering::SeqCst};

    use futures::FutureExt;
    use futures::future::join_all;

    use super::*;

    /// A key that others write too: every `meddle`-th swap finds another version.
    struct Contested {
        at: Mutex<(u64, u64)>,
        reads: AtomicU32,
        swaps: AtomicU32,
        meddle: u32,
        never_repeats: bool,
    }

    impl Versioned for Contested {
        fn never_repeats(&self) -> bool {
            self.never_repeats
        }

        fn read<'a>(&'a self, _: &'a str, _: &'a str) -> BoxFuture<'a, Result<Found, BackendError>> {
            self.reads.fetch_add(1, SeqCst);
            let (number, version) = *self.at.lock().unwrap();
            let value = (version > 0).then(|| number.to_string().into_bytes());
            async move {
                tokio::task::yield_now().await;
                Ok(Found { value, version })
            }
            .boxed()
        }

        fn swap<'a>(
            &'a self,
            _: &'a str,
            _: &'a str,
            value: String,
            version: u64,
        ) -> BoxFuture<'a, Result<Option<u64>, BackendError>> {
            async move {
                tokio::task::yield_now().await;
                let mut at = self.at.lock().unwrap();
                if self.swaps.fetch_add(1, SeqCst) % self.meddle == self.meddle - 1 {
                    at.0 += 1000;
                    at.1 += 1;
                }
                if at.1 != version {
                    return Ok(None);
                }
                *at = (value.parse().unwrap(), version + 1);
                Ok(Some(version + 1))
            }
            .boxed()
        }
    }

    fn contested(meddle: u32) -> Contested {
        Contested {
            at: Mutex::default(),
            reads: AtomicU32::new(0),
            swaps: AtomicU32::new(0),
            meddle,
            never_repeats: false,
        }
    }

    #[tokio::test]
    async fn increments_at_once_read_once_and_all_count() {
        let (store, counting) = (contested(u32::MAX), Counting::default());
        let mut sums = join_all((0..100).map(|_| counting.increment(&store, "b", "k", 1))).await;
        sums.sort_by_key(|sum| *sum.as_ref().unwrap());
        assert!(sums.into_iter().map(Result::unwrap).eq(1..=100));
        assert_eq!(store.reads.load(SeqCst), 1);
    }

    #[tokio::test]
    async fn what_others_write_in_between_is_kept() {
        let (store, counting) = (contested(3), Counting::default());
        for sum in join_all((0..20).map(|_| counting.increment(&store, "b", "k", 1))).await {
            sum.unwrap();
        }
        let meddled = u64::from(store.swaps.load(SeqCst) / 3);
        assert!(meddled > 0);
        assert_eq!(store.at.lock().unwrap().0, 20 + 1000 * meddled);
    }

    #[tokio::test]
    async fn a_call_that_is_dropped_leaves_no_number_behind() {
        let (store, counting) = (contested(u32::MAX), Counting::default());
        let other = counting.turn("b", "k", false);
        counting.increment(&store, "b", "k", 1).await.unwrap();
        let half_way = counting.increment(&store, "b", "k", 1).now_or_never();
        assert!(half_way.is_none());
        assert_eq!(*other.lock().await, None);
        *store.at.lock().unwrap() = (50, 9);
        assert_eq!(counting.increment(&store, "b", "k", 1).await.unwrap(), 51);
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_written_is_remembered_for_a_moment_and_compared_with() {
        let store = Contested { never_repeats: true, ..contested(u32::MAX) };
        let counting = Counting::default();
        for sum in 1..=5 {
            assert_eq!(counting.increment(&store, "b", "k", 1).await, Ok(sum));
        }
        assert_eq!((store.reads.load(SeqCst), store.swaps.load(SeqCst)), (1, 5), "one step each after the first");
        // Somebody else wrote: the comparison finds out, and the next call reads first.
        *store.at.lock().unwrap() = (100, 50);
        assert_eq!(counting.increment(&store, "b", "k", 1).await, Ok(101));
        assert_eq!((store.reads.load(SeqCst), store.swaps.load(SeqCst)), (2, 7));
        assert_eq!(counting.increment(&store, "b", "k", 1).await, Ok(102));
        assert_eq!(store.reads.load(SeqCst), 3);
        tokio::time::advance(REMEMBERED).await;
        assert_eq!(counting.increment(&store, "b", "k", 1).await, Ok(103));
        assert_eq!(store.reads.load(SeqCst), 4, "not for longer than a moment");
        let store = contested(u32::MAX);
        for sum in 1..=2 {
            assert_eq!(counting.increment(&store, "b", "other", 1).await, Ok(sum));
        }
        assert_eq!(store.reads.load(SeqCst), 2, "and not where a version may come twice");
    }

    #[tokio::test(start_paused = true)]
    async fn a_key_that_is_always_written_by_others_ends_in_an_error() {
        let (store, counting) = (contested(1), Counting::default());
        let refused = counting.increment(&store, "b", "k", 1).await.unwrap_err();
        assert!(matches!(refused, BackendError::Unavailable(_)), "{refused:?}");
    }

    #[test]
    fn keys_nobody_waits_for_are_forgotten() {
        let counting = Counting::default();
        let held = counting.turn("b", "held", false);
        for n in 0..FORGET_AT * 2 {
            counting.turn("b", &n.to_string(), n % 2 == 0);
        }
        assert!(counting.turns.lock().unwrap().len() <= FORGET_AT);
        assert!(Arc::ptr_eq(&held, &counting.turn("b", "held", false)));
    }
}
