//! What the node knows about one tenant while it runs: which revisions its hosts are to have, which compiled code and
//! which addresses they may ask for. Everything a host asks is answered from here, never from what the host says.

mod prepared;
mod runs;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Instant;

use arc_swap::ArcSwap;
use model::egress::Policy;
use model::observed::Reason;
use model::tenant::{Quotas, Rate, TenantSettings};
use model::{AppName, Revision, TenantName};
use store::room::Room;
use tokio::sync::{OnceCell, Semaphore, watch};

use crate::connections::Connections;
pub use crate::flows::Flows;
use crate::ingress::{Gate, nanos};
use crate::named::Named;
use crate::pace::LineRate;
use crate::services::Share;

pub use prepared::Prepared;
use runs::Runs;

/// Connections of a tenant being made at once.
const DIALS_AT_ONCE: usize = 64;
/// Engines that hosts of a tenant may have had since the node started: one for each world, and some that replaced them.
const MAX_ENGINES: usize = 8;
/// The longest fingerprint of one, bytes.
const MAX_FINGERPRINT: usize = 128;
/// Connections a tenant may have open, TCP and UDP together.
const MAX_OPEN: usize = 1024;

/// What a tenant keeps on this node, and whether it was counted.
#[derive(Debug, Default)]
pub(crate) struct Kept {
    pub(crate) room: Arc<Room>,
    pub(crate) keys: OnceCell<()>,
    pub(crate) objects: OnceCell<()>,
    pub(crate) databases: OnceCell<()>,
}

/// How a tenant's hosts change in number, for those who have to know that all of them took part in something.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Size {
    /// How often it has changed.
    pub(crate) changes: u64,
    /// Hosts that get no more calls and end those they have.
    pub(crate) stopping: usize,
}

/// Hosts of a tenant that were ready, and then ended without being told to.
#[derive(Debug, Clone, Default)]
pub struct Ends {
    /// How many.
    pub count: u64,
    /// Why the last of them did.
    pub last: Option<Reason>,
}

/// One tenant on this node.
#[derive(Debug)]
pub struct Tenant {
    /// Its name.
    pub name: TenantName,
    /// Its outgoing connections.
    pub flows: Flows,
    /// Its hosts that ended and were started again.
    pub restarts: AtomicU64,
    /// Those of them that had answered.
    pub ends: watch::Sender<Ends>,
    /// One permit for each connection that is being made.
    pub dialing: Semaphore,
    /// One permit for each connection there is.
    pub(crate) room: Arc<Semaphore>,
    /// The connections there are.
    pub(crate) connections: Arc<Connections>,
    /// Apps whose calls wait while their data are moved, and the revision that is held: a host that is started again
    /// meanwhile holds them before it answers.
    pub held: tokio::sync::Mutex<BTreeMap<AppName, Revision>>,
    pub(crate) size: watch::Sender<Size>,
    /// Apps whose writes are noted because their data are moved: which copy it is, and [`Size::changes`] when it began.
    pub(crate) noted: Mutex<BTreeMap<AppName, (String, u64)>>,
    policy: ArcSwap<Policy>,
    runs: RwLock<Runs>,
    /// All its apps are suspended, also those of which nobody said so yet.
    suspended: AtomicBool,
    /// The engines that its hosts said they have.
    engines: Mutex<BTreeSet<String>>,
    /// Outgoing connections a second.
    dials: Metered,
    /// What the ingress takes of its requests.
    pub gate: Arc<Gate>,
    pub(crate) kept: Kept,
    /// What its hosts may speak of.
    pub(crate) named: Named,
    /// Held while they are asked how they are: for one asker after the other.
    pub(crate) asking: tokio::sync::Mutex<()>,
    /// What its hosts have of the node.
    pub(crate) share: Share,
    /// Lines of the node's log that its hosts bring about.
    said: Mutex<LineRate>,
}

impl Tenant {
    /// A tenant with nothing running and nothing granted.
    pub fn new(name: TenantName) -> Arc<Self> {
        Arc::new(Self {
            name,
            flows: Flows::default(),
            restarts: AtomicU64::new(0),
            ends: watch::Sender::default(),
            dialing: Semaphore::new(DIALS_AT_ONCE),
            room: Arc::new(Semaphore::new(MAX_OPEN)),
            connections: Arc::default(),
            held: tokio::sync::Mutex::default(),
            size: watch::Sender::default(),
            noted: Mutex::default(),
            policy: ArcSwap::default(),
            runs: RwLock::default(),
            suspended: AtomicBool::new(false),
            engines: Mutex::default(),
            dials: Metered::new(dial_rate(&Quotas::default())),
            gate: Arc::new(Gate::default()),
            kept: Kept::default(),
            named: Named::default(),
            asking: tokio::sync::Mutex::default(),
            share: Share::default(),
            said: Mutex::new(LineRate::of_tenant(Instant::now())),
        })
    }

    /// Whether its hosts may have engines of these fingerprints. A platform that is replaced while it runs brings new ones;
    /// a host that was taken over says what it likes.
    pub fn engines_of<'a>(&self, fingerprints: impl Iterator<Item = &'a String>) -> bool {
        let known = &mut *self.engines.lock().unwrap_or_else(PoisonError::into_inner);
        for fingerprint in fingerprints {
            let one = (1..=MAX_FINGERPRINT).contains(&fingerprint.len());
            if !one || !fingerprint.bytes().all(|byte| byte.is_ascii_hexdigit()) {
                return false;
            }
            if !known.contains(fingerprint) && known.len() >= MAX_ENGINES {
                return false;
            }
            known.insert(fingerprint.clone());
        }
        true
    }

    /// Connections its hosts have open.
    pub fn open_connections(&self) -> usize {
        self.connections.count()
    }

    /// Applies what the operator decided about connections, from the next dial on; [`crate::dialer::Dialer::recheck`]
    /// applies it to those that are open.
    pub fn apply(&self, settings: &TenantSettings) {
        let (policy, errors) = Policy::of(settings);
        for cause in errors {
            tracing::warn!(tenant = %self.name, %cause, "an egress range of the tenant is ignored");
        }
        self.policy.store(Arc::new(policy));
        self.suspended.store(settings.suspended.is_some(), Ordering::SeqCst);
        self.dials.set(dial_rate(&settings.quotas));
        self.gate.set(&settings.quotas);
        self.kept.room.set(settings.quotas.store_bytes.map(|bytes| bytes.0));
    }

    /// What its connections may reach.
    pub fn policy(&self) -> Arc<Policy> {
        self.policy.load_full()
    }

    /// Takes one connection from the tenant's rate; false where it is used up.
    pub fn may_dial(&self, now: Instant) -> bool {
        self.dials.take(now, 1)
    }

    /// Leave for one line of the node's log that a host brings about, with the number of those that had none before it.
    pub(crate) fn may_say(&self) -> Option<u64> {
        self.said.lock().unwrap_or_else(PoisonError::into_inner).take(Instant::now())
    }

    /// Counts one more.
    pub fn count(counter: &AtomicU64) {
        counter.fetch_add(1, Ordering::Relaxed);
    }
}

/// A rate and its state. Its lock is held for a few instructions.
#[derive(Debug)]
struct Metered(Mutex<(Rate, u64)>);

impl Metered {
    fn new(rate: Rate) -> Self {
        Self(Mutex::new((rate, 0)))
    }

    fn set(&self, rate: Rate) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).0 = rate;
    }

    fn take(&self, now: Instant, units: u64) -> bool {
        let state = &mut *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match state.0.take(state.1, nanos(now), units) {
            Ok(paid) => {
                state.1 = paid;
                true
            }
            Err(_) => false,
        }
    }
}

fn dial_rate(quotas: &Quotas) -> Rate {
    let rate = u64::from(quotas.connections_per_second);
    Rate::new(rate, rate * 2)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn hosts_have_so_many_engines_and_no_more() {
        let tenant = Tenant::new("t".parse().unwrap());
        let may = |fingerprint: &str| tenant.engines_of([fingerprint.to_owned()].iter());
        assert!((0..100).all(|_| may("ab12")));
        assert_eq!((0..100).filter(|n| may(&format!("{n:04}"))).count(), MAX_ENGINES - 1);
        assert!(may("ab12") && !may("../x") && !may(""));
    }

    #[test]
    fn dials_are_bounded_by_burst_and_rate() {
        let tenant = Tenant::new("t".parse().unwrap());
        let start = Instant::now();
        let burst = (0..1000).filter(|_| tenant.may_dial(start)).count();
        assert_eq!(burst, 400);
        let second = (0..1000).filter(|_| tenant.may_dial(start + Duration::from_secs(1))).count();
        assert_eq!(second, 200);
    }
}
