//! Gets a request a connection to one of its shards: the preferred one, another one where that fails, or, for a bounded
//! time and a bounded number of requests, the first one that comes back.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::time::Instant;

use super::line::{Lines, Waiting as OnLine};
use super::pool::{Pool, Upstream};
use super::shard::{InFlight, Shard, Target};

/// A shard can be back before anybody said so; while requests wait they try by themselves this often.
const RETRY: Duration = Duration::from_millis(25);

/// No shard could be reached in time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("no host of this app can be reached")]
pub(super) struct Unreachable;

/// One request's search for a connection.
#[derive(Debug, Default)]
pub(super) struct Attempt {
    /// Shards that could not be reached.
    tried: Vec<u64>,
    /// Take no pooled connection and no line: one has just turned out to be dead.
    pub(super) fresh: bool,
    /// When the search began to wait.
    waiting_since: Option<Instant>,
}

/// A connection, for one request.
#[derive(Debug)]
pub(super) struct Lease {
    pub(super) upstream: Upstream,
    /// It served other requests before, so it may have been closed meanwhile.
    pub(super) pooled: bool,
    in_flight: InFlight,
}

impl Lease {
    /// The connection, and what keeps the shard's count of calls in flight.
    pub(super) fn into_parts(self) -> (Upstream, InFlight) {
        (self.upstream, self.in_flight)
    }
}

/// How a request gets to its shard.
#[derive(Debug)]
pub(super) enum Way {
    /// It is on its way, with others.
    Line(OnLine, InFlight),
    /// A connection of its own.
    Connection(Lease),
}

/// Connections of one worker, and the rules for getting one.
#[derive(Debug)]
pub(super) struct Gateway {
    pool: Pool,
    lines: Arc<Lines>,
    wait: Duration,
    /// For each set of shards: a tenant whose hosts are gone takes no place of another's.
    max_waiters: usize,
}

impl Gateway {
    pub(super) fn new(wait: Duration, max_waiters: usize) -> Self {
        Self { pool: Pool::default(), lines: Arc::default(), wait, max_waiters }
    }

    /// A connection to the best shard that can be reached.
    pub(super) async fn lease(&self, target: &Target, attempt: &mut Attempt) -> Result<Lease, Unreachable> {
        loop {
            let in_flight = self.choose(target, attempt).await?;
            if let Some(lease) = self.connect(in_flight, attempt).await {
                return Ok(lease);
            }
        }
    }

    /// As [`Self::lease`], for a request that is whole: it goes on the line to that shard, where there is one.
    pub(super) async fn send(
        &self,
        target: &Target,
        attempt: &mut Attempt,
        request: &[u8],
    ) -> Result<Way, Unreachable> {
        loop {
            let in_flight = self.choose(target, attempt).await?;
            if !attempt.fresh
                && let Some(waiting) = self.lines.call(in_flight.shard(), request)
            {
                return Ok(Way::Line(waiting, in_flight));
            }
            if let Some(lease) = self.connect(in_flight, attempt).await {
                return Ok(Way::Connection(lease));
            }
        }
    }

    /// The shard a request goes to.
    async fn choose(&self, target: &Target, attempt: &mut Attempt) -> Result<InFlight, Unreachable> {
        loop {
            match target.shards.choose(target.preference, &attempt.tried) {
                Some(in_flight) => return Ok(in_flight),
                None => {
                    self.wait_for_change(target, attempt).await?;
                    attempt.tried.clear();
                }
            }
        }
    }

    /// A connection to this shard; one that cannot be reached is noted.
    pub(super) async fn connect(&self, in_flight: InFlight, attempt: &mut Attempt) -> Option<Lease> {
        let shard = in_flight.shard();
        if !attempt.fresh
            && let Some(upstream) = self.pool.take(shard)
        {
            return Some(Lease { upstream, pooled: true, in_flight });
        }
        match Upstream::connect(shard).await {
            Ok(upstream) => Some(Lease { upstream, pooled: false, in_flight }),
            Err(error) => {
                tracing::debug!(socket = %shard.data_socket().display(), %error, "a host cannot be reached");
                attempt.tried.push(shard.id());
                None
            }
        }
    }

    /// Ends a request: its connection serves the next one.
    pub(super) fn give_back(&self, lease: Lease) {
        self.pool.put(lease.in_flight.shard(), lease.upstream);
    }

    /// Keeps a connection whose last response was read to its end.
    pub(super) fn put(&self, shard: &Shard, upstream: Upstream) {
        self.pool.put(shard, upstream);
    }

    /// Closes connections that were not used for so long, and lines that were not used since the last time.
    pub(super) fn sweep(&self, age: Duration) {
        self.pool.sweep(age);
        self.lines.sweep();
    }

    async fn wait_for_change(&self, target: &Target, attempt: &mut Attempt) -> Result<(), Unreachable> {
        if target.shards.is_suspended() {
            return Err(Unreachable);
        }
        let now = Instant::now();
        let since = *attempt.waiting_since.get_or_insert(now);
        let left =
            self.wait.checked_sub(now.duration_since(since)).filter(|left| !left.is_zero()).ok_or(Unreachable)?;
        let waiting = Waiting::new(&target.shards.waiters);
        if waiting.place >= self.max_waiters {
            return Err(Unreachable);
        }
        let mut changed = std::pin::pin!(target.shards.changed());
        // A change between the look at the shards and here is not lost.
        changed.as_mut().enable();
        if attempt.tried.is_empty()
            && let Some(in_flight) = target.shards.choose(target.preference, &[])
        {
            drop(in_flight);
            return Ok(());
        }
        // The end of the time is no error: it is found at the next look.
        let _ = tokio::time::timeout(left.min(RETRY), changed).await;
        Ok(())
    }
}

/// Counts a waiter until it is dropped.
struct Waiting<'a> {
    waiters: &'a AtomicUsize,
    place: usize,
}

impl<'a> Waiting<'a> {
    fn new(waiters: &'a AtomicUsize) -> Self {
        Self { waiters, place: waiters.fetch_add(1, Ordering::Relaxed) }
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.waiters.fetch_sub(1, Ordering::Relaxed);
    }
}
