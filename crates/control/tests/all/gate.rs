//! A store with a gate before one kind of key: who reads there, or writes, is counted, and waits while it is shut. It stands
//! for as much as takes for ever.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use store::Entry;
use store::redb::RedbStore;
use tokio::sync::watch;

use crate::between::{Asked, Between, Through};
use crate::rig::PATIENCE;

/// What passes the gate.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    Reads,
    Writes,
}

pub(crate) struct Gate {
    way: Way,
    prefix: String,
    pub(crate) open: watch::Sender<bool>,
    /// How often somebody came to it.
    pub(crate) came: AtomicUsize,
    /// Of those, how often not for the app `user`.
    pub(crate) others: AtomicUsize,
    inside: AtomicUsize,
    /// The most that were at it together.
    pub(crate) together: AtomicUsize,
}

impl Gate {
    /// Open.
    pub(crate) fn new(store: &Arc<RedbStore>, way: Way, prefix: String) -> Arc<Through<Self>> {
        let none = AtomicUsize::default;
        let (open, came, others) = (watch::Sender::new(true), none(), none());
        Through::new(store, Self { way, prefix, open, came, others, inside: none(), together: none() })
    }

    fn is_before(&self, way: Way, key: &str) -> bool {
        way == self.way && key.starts_with(&self.prefix)
    }

    async fn pass<T>(&self, key: &str, then: impl Future<Output = T>) -> T {
        self.came.fetch_add(1, SeqCst);
        if !key.starts_with(&format!("{}user/", self.prefix)) {
            self.others.fetch_add(1, SeqCst);
        }
        let inside = self.inside.fetch_add(1, SeqCst) + 1;
        self.together.fetch_max(inside, SeqCst);
        let mut open = self.open.subscribe();
        open.wait_for(|open| *open).await.unwrap();
        let done = then.await;
        self.inside.fetch_sub(1, SeqCst);
        done
    }

    /// Waits until somebody has come since it was so often.
    pub(crate) async fn more_than(&self, before: usize) {
        let more = async {
            while self.came.load(SeqCst) <= before {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(PATIENCE, more).await.expect("nobody comes to the gate");
    }
}

impl Between for Gate {
    fn get<'a>(&'a self, key: &'a str, asked: Asked<'a, Option<Entry>>) -> Asked<'a, Option<Entry>> {
        if self.is_before(Way::Reads, key) { Box::pin(self.pass(key, asked)) } else { asked }
    }
    fn put<'a>(&'a self, key: &'a str, asked: Asked<'a, u64>) -> Asked<'a, u64> {
        if self.is_before(Way::Writes, key) { Box::pin(self.pass(key, asked)) } else { asked }
    }
}
