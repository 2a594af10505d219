//! The flow records of one tenant: the last ones, and those to come. A reader that is too slow misses some and is told
//! how many; nobody waits for a reader.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use api::flows::{FlowQuery, FlowRecord, Verdict};
use futures::stream::{BoxStream, StreamExt};
use tokio::sync::broadcast;
use tokio::sync::broadcast::error::RecvError;

/// Records kept of one tenant.
const KEPT: usize = 1000;
/// Records a follower may be behind before it misses some.
const BEHIND: usize = 1024;

/// A tenant's outgoing connections: counted by verdict, and remembered.
#[derive(Debug, Default)]
pub struct Flows {
    counted: [AtomicU64; Verdict::ALL.len()],
    recent: Mutex<Recent>,
}

#[derive(Debug, Default)]
struct Recent {
    records: VecDeque<Arc<FlowRecord>>,
    follow: Option<broadcast::Sender<Arc<FlowRecord>>>,
}

/// Milliseconds since 1970.
pub(crate) fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

impl Flows {
    fn lock(&self) -> MutexGuard<'_, Recent> {
        self.recent.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts and keeps a record.
    pub(crate) fn record(&self, record: Arc<FlowRecord>) {
        if let Some(counter) = self.counted.get(record.verdict as usize) {
            counter.fetch_add(1, Relaxed);
        }
        let mut recent = self.lock();
        if let Some(follow) = &recent.follow
            && follow.send(record.clone()).is_err()
        {
            // The last follower left.
            recent.follow = None;
        }
        if recent.records.len() >= KEPT {
            recent.records.pop_front();
        }
        recent.records.push_back(record);
    }

    /// How many there were with this verdict, since the node started.
    pub fn count(&self, verdict: Verdict) -> u64 {
        self.counted.get(verdict as usize).map_or(0, |counter| counter.load(Relaxed))
    }

    /// Past records, then coming ones if asked.
    pub fn query(&self, query: FlowQuery) -> BoxStream<'static, FlowRecord> {
        let since = query.since.map_or(0, |since| since.at(now_ms()));
        let mut recent = self.lock();
        let fitting = recent.records.iter().rev().filter(|record| record.time_ms >= since && query.fits(record));
        let mut past: Vec<FlowRecord> = fitting.take(query.last).map(|record| record.as_ref().clone()).collect();
        past.reverse();
        let past = futures::stream::iter(past);
        if !query.follow {
            return past.boxed();
        }
        let receiver = recent.follow.get_or_insert_with(|| broadcast::channel(BEHIND).0).subscribe();
        let coming = futures::stream::unfold((receiver, query), |(mut receiver, query)| async move {
            let mut missed = 0;
            loop {
                match receiver.recv().await {
                    Ok(record) if query.fits(&record) => {
                        let record = FlowRecord { missed, ..record.as_ref().clone() };
                        return Some((record, (receiver, query)));
                    }
                    Ok(_) => {}
                    Err(RecvError::Lagged(count)) => missed += count,
                    Err(RecvError::Closed) => return None,
                }
            }
        });
        past.chain(coming).boxed()
    }
}
