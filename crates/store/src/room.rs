//! How many bytes one tenant keeps on this node and may keep: keys, messages that wait on disk, objects and databases
//! together. Whoever is about to keep more takes it from here first, so that all of them together never have more.
//!
//! A tenant without a quota is not counted: it costs nothing. With one, each engine is asked once what there is
//! (`track`), and from that moment on says what it adds and removes.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering::Relaxed};

use model::unit::ByteSize;

/// Stands for "no quota".
const ANY: i64 = i64::MAX;

/// What one tenant keeps and may keep.
#[derive(Debug)]
pub struct Room {
    most: AtomicI64,
    /// Below 0 for a moment, where something goes before it was counted.
    used: AtomicI64,
    refused: AtomicU64,
}

impl Default for Room {
    fn default() -> Self {
        Self { most: AtomicI64::new(ANY), used: AtomicI64::new(0), refused: AtomicU64::new(0) }
    }
}

/// There is no room for more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "over quota: the tenant keeps {} of the {} it may keep on this node, and {asked} bytes more have no room; \
     remove something, or ask the operator for more",
    ByteSize(*used), ByteSize(*most)
)]
pub struct Full {
    /// Bytes it keeps.
    pub used: u64,
    /// Bytes it may keep.
    pub most: u64,
    /// Bytes more it wanted to.
    pub asked: u64,
}

fn signed(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

impl Room {
    /// What the tenant may keep from now on; `None`: anything. What is there stays, also where that is more.
    pub fn set(&self, most: Option<u64>) {
        self.most.store(most.map_or(ANY, signed), Relaxed);
    }

    /// What it may keep, if there is a quota.
    pub fn most(&self) -> Option<u64> {
        let most = self.most.load(Relaxed);
        (most != ANY).then_some(most.unsigned_abs())
    }

    /// What it keeps, as far as it was counted.
    pub fn used(&self) -> u64 {
        u64::try_from(self.used.load(Relaxed)).unwrap_or(0)
    }

    /// What it may keep beyond that.
    pub fn left(&self) -> u64 {
        u64::try_from(self.most.load(Relaxed).saturating_sub(self.used.load(Relaxed).max(0))).unwrap_or(0)
    }

    /// Takes room for `bytes` more, or for none of them.
    ///
    /// # Errors
    /// [`Full`].
    pub fn take(&self, bytes: u64) -> Result<(), Full> {
        if bytes == 0 {
            return Ok(());
        }
        let mut used = self.used.load(Relaxed);
        loop {
            let after = used.saturating_add(signed(bytes));
            let most = self.most.load(Relaxed);
            if after > most {
                self.refused.fetch_add(1, Relaxed);
                let (used, most) = (used.max(0).unsigned_abs(), most.unsigned_abs());
                return Err(Full { used, most, asked: bytes });
            }
            match self.used.compare_exchange_weak(used, after, Relaxed, Relaxed) {
                Ok(_) => return Ok(()),
                Err(meanwhile) => used = meanwhile,
            }
        }
    }

    /// Something is there that nobody took room for: it was before anybody counted.
    pub(crate) fn found(&self, bytes: u64) {
        self.used.fetch_add(signed(bytes), Relaxed);
    }

    /// So many bytes are gone.
    pub(crate) fn give(&self, bytes: u64) {
        self.used.fetch_sub(signed(bytes), Relaxed);
    }

    /// How often there was no room.
    pub fn refused(&self) -> u64 {
        self.refused.load(Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_is_taken_than_there_is_by_all_together() {
        let room = Room::default();
        room.take(u64::MAX).unwrap();
        let room = Room::default();
        room.set(Some(1000));
        let granted: usize = std::thread::scope(|scope| {
            let lanes: Vec<_> =
                (0..4).map(|_| scope.spawn(|| (0..1000).filter(|_| room.take(3).is_ok()).count())).collect();
            lanes.into_iter().map(|lane| lane.join().unwrap()).sum()
        });
        assert_eq!((granted, room.used(), room.left()), (333, 999, 1));
        let full = room.take(2).unwrap_err();
        assert_eq!((full.used, full.most, full.asked), (999, 1000, 2));
        assert!(full.to_string().starts_with("over quota: the tenant keeps 999"), "{full}");
        room.take(1).unwrap();
        room.take(0).unwrap();
        room.give(500);
        assert_eq!(room.left(), 500);
        // What was there before the quota is counted, and nothing is added to it.
        room.found(2000);
        assert_eq!(room.left(), 0);
        assert!(room.take(1).is_err() && room.take(0).is_ok());
        assert_eq!(room.refused(), 4 * 1000 - 333 + 2);
        room.set(None);
        room.take(1 << 40).unwrap();
    }
}
