//! Where the reads of one tenant are made. One of a small value is over before another thread would have begun it, so it
//! is made on the thread that asks, which serves other tenants too. How large a value is shows only when it is there: who
//! has read much on that thread reads on others for a while, at most so many at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Instant;

use tokio::sync::Semaphore;

use super::op::{Answer, Op};

/// Reads of more keys than this are made on a thread that may wait: each of them may have its own place on the disk.
const FEW: usize = 16;
/// A page of more keys is such a read: they lie together.
const FEW_LISTED: u32 = 64;
/// A value is small below this, bytes.
const SMALL: usize = 64 << 10;
/// For each [`SMALL`] bytes that were read on the thread that asks, so long nothing is, microseconds: a large multiple of
/// what it takes to read them.
const PAUSE: u64 = 4000;

/// The reads of one tenant.
#[derive(Debug)]
pub struct Reads {
    threads: Arc<Semaphore>,
    began: Instant,
    /// Until when nothing is read on the thread that asks, microseconds after it began.
    until: AtomicU64,
}

impl Reads {
    /// Large reads take one of `threads` each.
    pub fn new(threads: Arc<Semaphore>) -> Self {
        Self { threads, began: Instant::now(), until: AtomicU64::new(0) }
    }

    pub(super) fn threads(&self) -> Arc<Semaphore> {
        self.threads.clone()
    }

    /// Whether the thread that asks may do it.
    pub(super) fn may_be_here(&self, op: &Op) -> bool {
        !has_many(op) && (self.until.load(Relaxed) == 0 || self.now() >= self.until.load(Relaxed))
    }

    /// What it has done.
    pub(super) fn was_here(&self, answer: &Answer) {
        let parts = u64::try_from(size(answer) / SMALL).unwrap_or(u64::MAX);
        if parts > 0 {
            self.until.fetch_max(self.now().saturating_add(parts.saturating_mul(PAUSE)), Relaxed);
        }
    }

    fn now(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_micros()).unwrap_or(u64::MAX)
    }
}

/// Whether a read is long whatever it finds: many keys, or a large page.
pub(super) fn has_many(op: &Op) -> bool {
    match op {
        Op::GetMany { keys } => keys.len() > FEW,
        Op::ListKeys { limit, .. } => *limit > FEW_LISTED,
        _ => false,
    }
}

/// Bytes of values in an answer.
fn size(answer: &Answer) -> usize {
    match answer {
        Answer::Value(value) => value.as_ref().map_or(0, Vec::len),
        Answer::Values(found) => found.iter().filter_map(|(_, value)| value.as_ref()).map(Vec::len).sum(),
        Answer::Keys { .. } | Answer::Done | Answer::Bool(_) | Answer::Number(_) => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_has_read_much_reads_elsewhere_and_who_reads_little_never_does() {
        let reads = Reads::new(Arc::new(Semaphore::new(1)));
        let get = Op::Get { key: "k".into() };
        let value = |size| Answer::Value(Some(vec![0; size]));
        assert!((0..1000).all(|_| {
            reads.was_here(&value(SMALL - 1));
            reads.may_be_here(&get)
        }));
        // Nobody waits for the end of it: that it is far away, in a machine that is slow too, is what is looked at.
        reads.was_here(&Answer::Values(vec![("k".into(), Some(vec![0; 16 << 20]))]));
        let until = reads.until.load(Relaxed);
        assert!(until >= 256 * PAUSE, "{until}");
        reads.was_here(&value(SMALL));
        assert!(reads.until.load(Relaxed) >= until, "a smaller one ends nothing");
        reads.until.store(u64::MAX, Relaxed);
        assert!(!reads.may_be_here(&get));
        reads.until.store(1, Relaxed);
        assert!(reads.may_be_here(&get), "it is over");
        let keys = |count| Op::GetMany { keys: vec![String::new(); count] };
        assert!(reads.may_be_here(&keys(FEW)) && !reads.may_be_here(&keys(FEW + 1)));
    }
}
