//! Where a request can go: the hosts of a tenant, and which of them an app prefers.
//!
//! A [`Shard`] is one host process behind its data socket. An app prefers one shard (rendezvous hash), because there its
//! instance slots and its code are warm, and spills to another when the preferred one has [`SPILL`] calls more in flight.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};

use arc_swap::ArcSwap;
use http::HeaderValue;
use tokio::sync::Notify;

use super::gate::Gate;

/// A shard takes calls of an app that prefers it until it has this many more in flight than the least busy one.
pub const SPILL: u32 = 4;

/// One host process of a tenant, seen from the ingress.
#[derive(Debug)]
pub struct Shard {
    /// Unique in this process: what connection pools are keyed by.
    id: u64,
    number: u32,
    data_socket: PathBuf,
    in_flight: AtomicU32,
    healthy: AtomicBool,
}

impl Shard {
    /// A shard that starts healthy; `number` is its place among the tenant's hosts.
    pub fn new(number: u32, data_socket: impl Into<PathBuf>) -> Arc<Self> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Arc::new(Self {
            id: NEXT.fetch_add(1, Ordering::Relaxed),
            number,
            data_socket: data_socket.into(),
            in_flight: AtomicU32::new(0),
            healthy: AtomicBool::new(true),
        })
    }

    /// Its place among the tenant's hosts.
    pub fn number(&self) -> u32 {
        self.number
    }

    /// The unix socket requests go to.
    pub fn data_socket(&self) -> &Path {
        &self.data_socket
    }

    /// Calls the ingress waits for now.
    pub fn in_flight(&self) -> u32 {
        self.in_flight.load(Ordering::Relaxed)
    }

    /// Whether new calls may go here.
    pub fn is_healthy(&self) -> bool {
        self.healthy.load(Ordering::Acquire)
    }

    pub(super) fn id(&self) -> u64 {
        self.id
    }

    /// Counts one call until the guard is dropped.
    pub(super) fn enter(self: &Arc<Self>) -> InFlight {
        self.in_flight.fetch_add(1, Ordering::Relaxed);
        InFlight(Arc::clone(self))
    }
}

/// One call in flight on a shard.
#[derive(Debug)]
pub(super) struct InFlight(Arc<Shard>);

impl InFlight {
    pub(super) fn shard(&self) -> &Arc<Shard> {
        &self.0
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The hosts of one tenant (or the one host an app is pinned to). Swapped whole; readers never wait.
#[derive(Debug)]
pub struct ShardSet {
    shards: ArcSwap<Vec<Arc<Shard>>>,
    changed: Notify,
    /// Requests that wait for one of them to be there.
    pub(super) waiters: AtomicUsize,
    closed: bool,
}

impl ShardSet {
    /// A set with these shards.
    pub fn new(shards: Vec<Arc<Shard>>) -> Arc<Self> {
        let (changed, waiters) = (Notify::new(), AtomicUsize::new(0));
        Arc::new(Self { shards: ArcSwap::from_pointee(shards), changed, waiters, closed: false })
    }

    /// A set that answers nothing: the app is suspended. The gateway refuses at once (503, `sidereal-fault: suspended`).
    pub fn suspended() -> Arc<Self> {
        let (changed, waiters) = (Notify::new(), AtomicUsize::new(0));
        Arc::new(Self { shards: ArcSwap::default(), changed, waiters, closed: true })
    }

    /// Whether the set stands for a suspended app.
    pub fn is_suspended(&self) -> bool {
        self.closed
    }

    /// The number of the shard an app with this `preference` goes to while nothing is busy.
    pub fn preferred(&self, preference: u64) -> Option<u32> {
        self.shards.load().iter().map(|shard| shard.number).max_by_key(|number| rendezvous(preference, *number))
    }

    /// Replaces the shards; calls in flight stay where they are.
    pub fn replace(&self, shards: Vec<Arc<Shard>>) {
        self.shards.store(Arc::new(shards));
        self.changed.notify_waiters();
    }

    /// The shards as they are now.
    pub fn shards(&self) -> Arc<Vec<Arc<Shard>>> {
        self.shards.load_full()
    }

    /// Says whether new calls may go to the shard with this number. Calls that wait for a shard wake up.
    pub fn set_healthy(&self, number: u32, healthy: bool) {
        for shard in self.shards.load().iter().filter(|shard| shard.number == number) {
            shard.healthy.store(healthy, Ordering::Release);
        }
        if healthy {
            self.changed.notify_waiters();
        }
    }

    /// Requests that wait for one of the shards to be there.
    pub fn waiting(&self) -> usize {
        self.waiters.load(Ordering::Relaxed)
    }

    /// Resolves at the next change; register (`enable`) before the state is read.
    pub(super) fn changed(&self) -> tokio::sync::futures::Notified<'_> {
        self.changed.notified()
    }

    /// The shard the next call of an app with this `preference` goes to, or none. `tried` are ids to leave out.
    pub(super) fn choose(&self, preference: u64, tried: &[u64]) -> Option<InFlight> {
        let shards = self.shards.load();
        let open = || shards.iter().filter(|shard| shard.is_healthy() && !tried.contains(&shard.id));
        let least = open().map(|shard| shard.in_flight()).min()?;
        open()
            .filter(|shard| shard.in_flight() < least.saturating_add(SPILL))
            .max_by_key(|shard| rendezvous(preference, shard.number))
            .map(Shard::enter)
    }
}

/// The weight of a shard for an app: the highest wins, and a shard more or less moves only the apps it wins or loses.
fn rendezvous(preference: u64, number: u32) -> u64 {
    // splitmix64: every bit of both inputs reaches every bit of the result.
    let mut x = preference ^ u64::from(number).wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// Where the requests of a route go: one component of one revision, on a tenant's shards. Made once per revision.
#[derive(Debug)]
pub struct Target {
    /// The value of [`api::agent::ROUTE_HEADER`]: `app/revision/component`.
    pub header: HeaderValue,
    /// The hosts that can answer.
    pub shards: Arc<ShardSet>,
    /// The app's hash for the shard preference; the same for all revisions of an app.
    pub preference: u64,
    /// Largest request body, bytes.
    pub request_body: u64,
    /// How many requests the tenant may have.
    pub gate: Arc<Gate>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(count: u32) -> Arc<ShardSet> {
        ShardSet::new((0..count).map(|n| Shard::new(n, format!("{n}.sock"))).collect())
    }

    #[test]
    fn an_app_stays_on_its_shard_until_it_is_busier_by_spill() {
        let set = set(2);
        let first = set.choose(7, &[]).unwrap();
        let home = first.shard().number();
        let mut held = vec![first];
        for _ in 1..SPILL {
            let next = set.choose(7, &[]).unwrap();
            assert_eq!(next.shard().number(), home);
            held.push(next);
        }
        let spilled = set.choose(7, &[]).unwrap();
        assert_ne!(spilled.shard().number(), home);
        drop(held);
        assert_eq!(set.choose(7, &[]).unwrap().shard().number(), home);
    }

    #[test]
    fn apps_spread_and_only_those_of_a_lost_shard_move() {
        let before = set(4);
        let after = set(3);
        let mut per_shard = [0u32; 4];
        for app in 0..4000u64 {
            let a = before.choose(app, &[]).unwrap().shard().number();
            let b = after.choose(app, &[]).unwrap().shard().number();
            per_shard[a as usize] += 1;
            assert!(a == b || a == 3, "app {app} moved from {a} to {b} though {a} is still there");
        }
        assert!(per_shard.iter().all(|&n| (800..1200).contains(&n)), "{per_shard:?}");
    }

    #[test]
    fn unhealthy_and_tried_shards_are_left_out() {
        let set = set(2);
        let first = set.choose(1, &[]).unwrap().shard().clone();
        let second = set.choose(1, &[first.id()]).unwrap().shard().clone();
        assert_ne!(first.number(), second.number());
        set.set_healthy(first.number(), false);
        assert_eq!(set.choose(1, &[]).unwrap().shard().number(), second.number());
        set.set_healthy(second.number(), false);
        assert!(set.choose(1, &[]).is_none());
        set.set_healthy(first.number(), true);
        assert_eq!(set.choose(1, &[]).unwrap().shard().number(), first.number());
        assert_eq!(first.in_flight(), 0);
    }
}
