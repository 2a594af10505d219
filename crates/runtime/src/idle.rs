//! Instances that wait for their next call: how many a workload may keep, and who gives way when the pool is full.
//!
//! A waiting instance holds a slot of its engine's pool. None may keep a slot from a call that needs one, so an engine
//! knows the shelves of all its workloads and drops what has waited longest when no slot is free.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

/// Part of the pool that waiting instances of one workload may hold, as its divisor.
const SHARE: u32 = 16;

struct Idle<T> {
    instance: T,
    since: Instant,
}

/// The waiting instances of one workload, the longest waiting first.
pub(crate) struct Shelf<T> {
    idle: Mutex<Vec<Idle<T>>>,
    most: usize,
}

impl<T> Shelf<T> {
    fn lock(&self) -> MutexGuard<'_, Vec<Idle<T>>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn len(&self) -> usize {
        self.lock().len()
    }

    /// Keeps an instance, unless the workload has as many as it may.
    pub(crate) fn put(&self, instance: T) {
        let mut idle = self.lock();
        if idle.len() < self.most {
            idle.push(Idle { instance, since: Instant::now() });
        }
    }

    /// The instance that waited least, where that was less than `age`.
    pub(crate) fn take(&self, age: Duration) -> Option<T> {
        let mut idle = self.lock();
        let newest = idle.pop()?;
        if newest.since.elapsed() < age {
            return Some(newest.instance);
        }
        // The others have waited longer still.
        let old = std::mem::take(&mut *idle);
        drop(idle);
        drop(old);
        None
    }

    /// Drops the instances that have waited for `age`; says when the next one will have, where one is left.
    pub(crate) fn expire(&self, age: Duration) -> Option<Instant> {
        let mut idle = self.lock();
        let expired = idle.partition_point(|waiting| waiting.since.elapsed() >= age);
        let old: Vec<_> = idle.drain(..expired).collect();
        let next = idle.first().map(|oldest| oldest.since + age);
        drop(idle);
        drop(old);
        next
    }

    fn since(&self) -> Vec<Instant> {
        self.lock().iter().map(|waiting| waiting.since).collect()
    }

    /// Takes those that wait since `last` or longer.
    fn take_since(&self, last: Instant) -> Vec<Idle<T>> {
        let mut idle = self.lock();
        let old = idle.partition_point(|waiting| waiting.since <= last);
        idle.drain(..old).collect()
    }
}

/// The shelves of one engine's workloads.
pub(crate) struct Shelves<T> {
    all: Mutex<Vec<Weak<Shelf<T>>>>,
    most: usize,
}

impl<T> Shelves<T> {
    /// For a pool of `instances` slots.
    pub(crate) fn new(instances: u32) -> Self {
        Self { all: Mutex::default(), most: (instances / SHARE).max(1) as usize }
    }

    /// The shelf of a new workload.
    pub(crate) fn shelf(&self) -> Arc<Shelf<T>> {
        let shelf = Arc::new(Shelf { idle: Mutex::default(), most: self.most });
        let mut all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|shelf| shelf.strong_count() > 0);
        all.push(Arc::downgrade(&shelf));
        shelf
    }

    /// Drops the half of all waiting instances that has waited longest, at least one. `false` where none waits.
    pub(crate) fn make_room(&self) -> bool {
        let shelves: Vec<_> =
            self.all.lock().unwrap_or_else(PoisonError::into_inner).iter().filter_map(Weak::upgrade).collect();
        let mut since: Vec<_> = shelves.iter().flat_map(|shelf| shelf.since()).collect();
        since.sort_unstable();
        let Some(last) = since.get(since.len().saturating_sub(1) / 2) else { return false };
        let old: Vec<_> = shelves.iter().flat_map(|shelf| shelf.take_since(*last)).collect();
        !old.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_workload_keeps_only_its_share() {
        let shelves = Shelves::new(64);
        let shelf = shelves.shelf();
        for n in 0..10 {
            shelf.put(n);
        }
        assert_eq!((shelf.len(), shelf.take(Duration::MAX)), (4, Some(3)));
        let least = Shelves::new(1).shelf();
        least.put(0);
        least.put(1);
        assert_eq!(least.len(), 1);
    }

    #[test]
    fn the_longest_waiting_give_way_across_workloads() {
        let shelves = Shelves::new(1000);
        let (one, two) = (shelves.shelf(), shelves.shelf());
        let next = || {
            // A clock that has not moved would let more go than half.
            let now = Instant::now();
            while Instant::now() == now {}
        };
        for (shelf, n) in [(&one, 1), (&two, 2), (&two, 3), (&one, 4)] {
            shelf.put(n);
            next();
        }
        assert!(shelves.make_room());
        assert_eq!((one.len(), two.len()), (1, 1));
        assert!(shelves.make_room() && shelves.make_room());
        assert!(!shelves.make_room(), "nothing waits any more");
        drop(one);
        assert_eq!(shelves.shelf().len(), 0);
        assert_eq!(shelves.all.lock().unwrap().len(), 2, "the shelf of a workload that is gone is forgotten");
    }

    #[test]
    fn age_ends_the_wait() {
        let shelf = Shelves::new(1000).shelf();
        shelf.put(1);
        assert!(shelf.expire(Duration::from_secs(3600)).is_some());
        assert_eq!(shelf.expire(Duration::ZERO), None);
        shelf.put(2);
        assert_eq!((shelf.take(Duration::ZERO), shelf.len()), (None, 0));
    }
}
