//! What this host answers for: revisions by name, their components by route; and the places of calls among them.
//!
//! The host has one thread, so the table behind its lock is never waited for; a revision's routes appear together and
//! vanish together.

mod drain;
mod leave;
mod start;
mod status;
mod switch;

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, Weak};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use api::{Code, Problem};
use model::{AppName, Digest, ProviderName, Revision, TenantName};
use providers::http_out::Tls;
use runtime::Workload;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use self::drain::Drain;
use crate::code::CodeStore;
use crate::copies::Copies;
use crate::dialer::NodeDialer;
use crate::entry::Entry;
use crate::error::StartError;
use crate::hold::Holds;
use crate::links::{Opened, Providers};
use crate::logs::Logs;
use crate::spans::Spans;
use crate::taking::Taking;
use crate::totals::Totals;

/// How long the messages of a revision may take to come to it.
const BEGUN: Duration = Duration::from_secs(5);

/// One revision of an app.
struct Running {
    /// Of what it was started with: the same again is no change.
    request: Digest,
    entries: Vec<Arc<Entry>>,
    /// Held open for as long as the revision is here.
    _providers: BTreeMap<ProviderName, Arc<Opened>>,
    /// The messages its components take.
    taking: Taking,
    draining: AtomicBool,
    drain: Drain,
}

/// Everything that runs.
pub(crate) struct Apps {
    me: Weak<Self>,
    code: CodeStore,
    providers: Providers,
    dialer: Arc<NodeDialer>,
    tls: Tls,
    logs: Arc<Logs>,
    totals: Totals,
    spans: Arc<Spans>,
    since_us: u64,
    /// How much code stays loaded: components and bytes.
    budget: (usize, u64),
    routes: RwLock<HashMap<Box<str>, Arc<Entry>>>,
    revisions: Mutex<BTreeMap<(AppName, Revision), Arc<Running>>>,
    /// Counts calls: the clock of [`Entry::idle_since`].
    clock: AtomicU64,
    in_flight: AtomicU32,
    closed: AtomicBool,
    /// The host takes no calls any more.
    ending: CancellationToken,
    /// Drains under way; only then is the end of a call worth telling.
    drains: AtomicUsize,
    holds: Holds,
    copies: Copies,
    left: Notify,
}

/// A call's place: among those of its component, and of the host.
pub(crate) struct Place {
    apps: Arc<Apps>,
    entry: Arc<Entry>,
}

impl Place {
    pub(crate) fn entry(&self) -> &Arc<Entry> {
        &self.entry
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.entry.leave();
        self.apps.in_flight.fetch_sub(1, Relaxed);
        if self.apps.drains.load(Relaxed) > 0 {
            self.apps.left.notify_waiters();
        }
    }
}

/// Why a call has no place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NoPlace {
    /// No such route here.
    Unknown,
    /// The component has all the calls it may have.
    Busy,
    /// The revision is held, or was until a moment ago: the call may wait for its turn ([`Apps::enter_later`]).
    Held,
    /// The host is ending.
    Closed,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Apps {
    pub(crate) fn new(
        code: CodeStore,
        providers: Providers,
        dialer: Arc<NodeDialer>,
        tls: Tls,
        logs: Arc<Logs>,
        budget: (usize, u64),
    ) -> Arc<Self> {
        Arc::new_cyclic(|me| Self {
            me: me.clone(),
            code,
            providers,
            dialer,
            tls,
            logs,
            totals: Totals::default(),
            spans: Arc::default(),
            since_us: now_us(),
            budget,
            routes: RwLock::default(),
            revisions: Mutex::default(),
            clock: AtomicU64::new(0),
            in_flight: AtomicU32::new(0),
            closed: AtomicBool::new(false),
            ending: CancellationToken::new(),
            drains: AtomicUsize::new(0),
            holds: Holds::default(),
            copies: Copies::default(),
            left: Notify::new(),
        })
    }

    pub(crate) fn code(&self) -> &CodeStore {
        &self.code
    }

    pub(crate) fn logs(&self) -> &Arc<Logs> {
        &self.logs
    }

    /// Cancelled when the host takes no calls any more.
    pub(crate) fn ending(&self) -> &CancellationToken {
        &self.ending
    }

    pub(crate) fn spans(&self) -> &Arc<Spans> {
        &self.spans
    }

    /// A place for a call of the component behind `route`.
    pub(crate) fn enter(self: &Arc<Self>, route: &str) -> Result<Place, NoPlace> {
        if self.closed.load(Relaxed) {
            return Err(NoPlace::Closed);
        }
        let entry = self.routed(route)?;
        if entry.is_held() {
            return Err(NoPlace::Held);
        }
        let now = self.clock.fetch_add(1, Relaxed);
        let entered = match entry.line().is_open() {
            false => entry.enter(now).then_some(()).ok_or(NoPlace::Busy),
            true if entry.line().has_waiting() => Err(NoPlace::Held),
            true => entry.enter_if_free(now).then_some(()).ok_or(NoPlace::Held),
        };
        entered.map(|()| self.entered(entry))
    }

    fn routed(&self, route: &str) -> Result<Arc<Entry>, NoPlace> {
        let routes = self.routes.read().unwrap_or_else(PoisonError::into_inner);
        routes.get(route).cloned().ok_or(NoPlace::Unknown)
    }

    fn entered(self: &Arc<Self>, entry: Arc<Entry>) -> Place {
        self.in_flight.fetch_add(1, Relaxed);
        Place { apps: self.clone(), entry }
    }

    /// Copies between providers.
    pub(crate) fn copies(&self) -> &Copies {
        &self.copies
    }

    /// Opens a provider for a copy.
    pub(crate) fn providers(&self) -> &Providers {
        &self.providers
    }

    /// As [`Apps::enter`], and waits for a place where there is none; not where none comes free within `patience`, or
    /// none ever will.
    pub(crate) async fn enter_when_free(self: &Arc<Self>, route: &str, patience: Duration) -> Result<Place, NoPlace> {
        match self.enter(route) {
            Err(NoPlace::Busy) => {}
            other => return other,
        }
        let _told = Told::new(&self.drains);
        let free = async {
            loop {
                let mut left = std::pin::pin!(self.left.notified());
                left.as_mut().enable();
                match self.enter(route) {
                    Err(NoPlace::Busy) => left.await,
                    other => return other,
                }
            }
        };
        tokio::time::timeout(patience, free).await.unwrap_or(Err(NoPlace::Busy))
    }

    /// The component, ready to be called; its code is brought where it is not in memory.
    pub(crate) async fn ready(&self, entry: &Entry) -> Result<Arc<Workload>, StartError> {
        if let Some(workload) = entry.live() {
            return Ok(workload);
        }
        let workload = entry.load(&self.code).await?;
        self.trim();
        Ok(workload)
    }

    /// Makes a revision take messages, or take no more. The former returns when they come to it, or cannot yet; the
    /// latter when no handler of it is under way.
    pub(crate) async fn set_taking(
        self: &Arc<Self>,
        app: &AppName,
        revision: Revision,
        taking: bool,
    ) -> Result<(), Problem> {
        let running = self.running(app, revision).filter(|running| !running.draining.load(Relaxed));
        let running = running.ok_or_else(|| {
            Problem::new(Code::NotFound, format!("this host does not have revision {revision} of `{app}`"))
        })?;
        if taking {
            // A broker that does not answer is not waited for: whoever asks has more to do.
            drop(tokio::time::timeout(BEGUN, running.taking.begin(self)).await);
        } else {
            running.taking.end().await;
        }
        Ok(())
    }

    /// A place for a call that another component of the same revision makes.
    pub(crate) fn enter_from_inside(&self, entry: &Entry) -> bool {
        let entered = entry.enter(self.clock.fetch_add(1, Relaxed));
        self.in_flight.fetch_add(u32::from(entered), Relaxed);
        entered
    }

    /// Gives the place back; the component may have gone.
    pub(crate) fn leave_from_inside(&self, entry: Option<&Entry>) {
        if let Some(entry) = entry {
            entry.leave();
        }
        self.in_flight.fetch_sub(1, Relaxed);
        if self.drains.load(Relaxed) > 0 {
            self.left.notify_waiters();
        }
    }

    fn running(&self, app: &AppName, revision: Revision) -> Option<Arc<Running>> {
        lock(&self.revisions).get(&(app.clone(), revision)).cloned()
    }

    /// Unloads what was idle longest until the code in memory is within its budget, and a little more, so that not
    /// every load pays for a search.
    pub(crate) fn trim(&self) {
        let within = |(count, bytes): (usize, u64)| self.code.count() <= count && self.code.bytes() <= bytes;
        if within(self.budget) {
            return;
        }
        let (count, bytes) = self.budget;
        let goal = (count - count / 32, bytes - bytes / 32);
        let mut idle: Vec<(u64, Arc<Entry>)> = {
            let routes = self.routes.read().unwrap_or_else(PoisonError::into_inner);
            routes.values().filter_map(|entry| Some((entry.idle_since()?, entry.clone()))).collect()
        };
        idle.sort_unstable_by_key(|(since, _)| *since);
        for (_, entry) in idle {
            if within(goal) {
                break;
            }
            entry.unload();
        }
    }
}

/// The text of [`api::agent::ROUTE_HEADER`].
fn route(app: &AppName, revision: Revision, entry: &Entry) -> Box<str> {
    format!("{app}/{revision}/{}", entry.component()).into_boxed_str()
}

/// Counts a drain for as long as it lasts.
struct Told<'a>(&'a AtomicUsize);

impl<'a> Told<'a> {
    fn new(drains: &'a AtomicUsize) -> Self {
        drains.fetch_add(1, Relaxed);
        Self(drains)
    }
}

impl Drop for Told<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

fn now_us() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
}

/// Who a host is, for those it has to tell.
pub(crate) struct Identity {
    pub(crate) tenant: TenantName,
    pub(crate) shard: u32,
}
