//! What this host answers for: revisions by name, their components by route.
//!
//! The host has one thread, so the table behind its lock is never waited for; a revision's routes appear together and
//! vanish together.

mod drain;
mod switch;

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, Weak};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use api::agent::{AppOnHost, Drained, HostStatus, StartRequest};
use api::metrics::{ComponentCounts, ComponentMetrics, Counts as _, HostMetrics};
use api::{Code, Problem};
use futures::future::join_all;
use model::trace::SpanOrigin;
use model::{AppName, ComponentName, Digest, LockedApp, ProviderName, Revision, TenantName};
use providers::http_out::{HttpOut, Tls};
use runtime::{Outbound, Sockets, Workload};
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use self::drain::{Drain, Until};
use crate::code::CodeStore;
use crate::copies::Copies;
use crate::dialer::NodeDialer;
use crate::entry::{Entry, Spec};
use crate::error::StartError;
use crate::hold::Holds;
use crate::links::siblings::{self, Siblings};
use crate::links::{self, Opened, Providers};
use crate::logs::{Logs, Origin};
use crate::memory;
use crate::sockets::{self, ComponentSockets};
use crate::spans::Spans;
use crate::taking::Taking;
use crate::totals::{self, Totals};

/// After a drain is asked for, calls that were sent before the sender knew of it are still taken.
const LATE: Duration = Duration::from_millis(250);
/// How long the messages of a revision may take to come to it.
const BEGUN: Duration = Duration::from_secs(5);
/// How long ended calls may take to be gone.
const ENDED: Duration = Duration::from_secs(1);
/// How long it may take then to say what becomes of their messages.
const TOLD: Duration = Duration::from_millis(500);

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

    /// Makes a revision answer. The same again changes nothing.
    pub(crate) async fn start(&self, app: &AppName, revision: Revision, request: StartRequest) -> Result<(), Problem> {
        let started = self.bring(app, revision, request).await;
        if started.is_err() {
            self.forget_if_gone(app);
        }
        started
    }

    async fn bring(&self, app: &AppName, revision: Revision, request: StartRequest) -> Result<(), Problem> {
        if request.app.name != *app {
            let detail = format!("the path names app `{app}`, the body `{}`", request.app.name);
            return Err(Problem::new(Code::RequestInvalid, detail));
        }
        let encoded = serde_json::to_vec(&request.app);
        let digest = Digest::of(&encoded.map_err(|cause| Problem::new(Code::Internal, cause.to_string()))?);
        let running = match self.running(app, revision) {
            Some(running) if running.request != digest => {
                let detail = format!("revision {revision} of `{app}` is here already, and is another one");
                return Err(Problem::new(Code::Conflict, detail));
            }
            Some(running) if !running.draining.load(Relaxed) => running,
            _ => Arc::new(self.build(&request.app, revision, digest)?),
        };
        if request.load {
            for provider in running._providers.values() {
                provider.check(&request.app.links, app).await?;
            }
            links::secrets::are_there(&request.app, &running._providers).await?;
            for entry in &running.entries {
                entry.probe(&self.code).await?;
                self.trim();
            }
            siblings::agree(&request.app, &running.entries)?;
        }
        let mut revisions = lock(&self.revisions);
        let known = revisions.get(&(app.clone(), revision)).filter(|known| !known.draining.load(Relaxed));
        if known.is_none() {
            let mut routes = self.routes.write().unwrap_or_else(PoisonError::into_inner);
            let held = self.holds.comes(app, revision);
            for entry in &running.entries {
                entry.set_held(held);
                routes.insert(route(app, revision, entry), entry.clone());
            }
            revisions.insert((app.clone(), revision), running);
        }
        Ok(())
    }

    fn build(&self, app: &LockedApp, revision: Revision, request: Digest) -> Result<Running, StartError> {
        let siblings = Siblings::new(self.me.clone());
        let opened = self.providers.open(app)?;
        let line = self.holds.line(&app.name);
        let mut entries = Vec::with_capacity(app.components.len());
        for (name, component) in &app.components {
            let origin = Origin { app: app.name.clone(), revision, component: name.clone() };
            let sockets = ComponentSockets::new(&app.name, name, &component.allow_hosts, &self.dialer);
            let (_, web) = sockets::split(&component.allow_hosts);
            let outbound: Option<Arc<dyn Outbound>> = if web.is_empty() {
                None
            } else {
                let out = HttpOut::new(app.name.clone(), name.clone(), &web, self.tls.clone(), self.dialer.clone());
                Some(Arc::new(out.map_err(|cause| StartError::Http { component: name.clone(), cause })?))
            };
            entries.push(Arc::new(Entry::new(Spec {
                component: name.clone(),
                digest: component.digest,
                world: component.world,
                imports: self.code.share_imports(&component.imports),
                forwarded: self.code.share_imports(&siblings::forwarded(app, name)),
                limits: component.limits,
                reuse: component.reuse,
                bindings: links::bindings(
                    app,
                    name,
                    component.answers(),
                    &opened,
                    &self.totals,
                    &siblings,
                    &self.providers,
                ),
                outbound,
                sockets: sockets.map(|sockets| Arc::new(sockets) as Arc<dyn Sockets>),
                origin: Arc::new(SpanOrigin { app: app.name.clone(), revision, component: name.clone() }),
                log: self.logs.component(origin, component.limits.log_rate),
                line: line.clone(),
            })));
        }
        let taking = Taking::new(self.providers.taken(app, revision, &opened, &self.totals));
        siblings.are(&entries);
        Ok(Running {
            request,
            entries,
            _providers: opened,
            taking,
            draining: AtomicBool::new(false),
            drain: Drain::default(),
        })
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

    /// Ends a revision: late calls are taken for a moment, those in flight may finish until `deadline`. One that is
    /// not here is ended already; one that is being ended already is waited for.
    pub(crate) async fn drain_revision(
        self: &Arc<Self>,
        app: &AppName,
        revision: Revision,
        deadline: Duration,
    ) -> Drained {
        let Some(running) = self.running(app, revision) else { return Drained { ended: 0 } };
        running.draining.store(true, Relaxed);
        let done = Drain::of(self, app, revision, &running, Instant::now() + deadline);
        drop(running);
        done.await
    }

    async fn end_revision(&self, app: &AppName, revision: Revision, running: Arc<Running>, mut until: Until) -> u64 {
        // No more messages. Those that are here already still find their component.
        let messages = running.taking.end();
        let ended = {
            let _told = Told::new(&self.drains);
            drop(tokio::time::timeout(LATE, until.passed()).await);
            tokio::select! {
                biased;
                () = messages => {}
                () = until.passed() => {}
            }
            {
                let mut routes = self.routes.write().unwrap_or_else(PoisonError::into_inner);
                for entry in &running.entries {
                    let route = route(app, revision, entry);
                    if routes.get(&route).is_some_and(|routed| Arc::ptr_eq(routed, entry)) {
                        routes.remove(&route);
                    }
                }
            }
            self.finish(&running.entries, until).await
        };
        {
            let mut revisions = lock(&self.revisions);
            let key = (app.clone(), revision);
            if revisions.get(&key).is_some_and(|known| Arc::ptr_eq(known, &running)) {
                revisions.remove(&key);
                self.holds.forget(app, revision);
                for entry in &running.entries {
                    self.totals.keep(app, entry.component(), &totals::counts(&entry.status()));
                }
            }
        }
        drop(running);
        self.forget_if_gone(app);
        self.providers.prune();
        self.code.prune();
        ended
    }

    /// Ends the host's work: as [`Apps::drain_revision`], for everything.
    pub(crate) async fn drain(&self, deadline: Duration) -> Drained {
        let _told = Told::new(&self.drains);
        let until = Instant::now() + deadline;
        let messages: Vec<_> = lock(&self.revisions).values().map(|running| running.taking.end()).collect();
        if self.in_flight.load(Relaxed) > 0 || !lock(&self.revisions).is_empty() {
            tokio::time::sleep(LATE.min(deadline)).await;
        }
        self.closed.store(true, Relaxed);
        self.ending.cancel();
        self.holds.close();
        self.left.notify_waiters();
        // Those that wait here go to others; that takes a word to their broker, or to the node.
        let mut messages = std::pin::pin!(join_all(messages));
        let told = tokio::time::timeout_at(until, messages.as_mut()).await.is_ok();
        let all: Vec<Arc<Entry>> = lock(&self.revisions).values().flat_map(|running| running.entries.clone()).collect();
        let drained = Drained { ended: self.finish(&all, until.into()).await };
        if !told && tokio::time::timeout(TOLD, messages).await.is_err() {
            for ((app, revision), running) in &*lock(&self.revisions) {
                let messages = running.taking.under_way();
                if messages > 0 {
                    tracing::warn!(%app, %revision, messages, "the host ends and could not say of messages what becomes of them; those of a broker that keeps none are lost");
                }
            }
        }
        drained
    }

    /// Waits for the calls of `entries` until `until`, then ends them; how many.
    async fn finish(&self, entries: &[Arc<Entry>], mut until: Until) -> u64 {
        let calls = || entries.iter().map(|entry| u64::from(entry.in_flight())).sum::<u64>();
        tokio::select! {
            biased;
            () = self.none_left(&calls) => return 0,
            () = until.passed() => {}
        }
        let ended = calls();
        for entry in entries {
            entry.ended().cancel();
        }
        if tokio::time::timeout(ENDED, self.none_left(&calls)).await.is_err() {
            tracing::warn!(calls = calls(), "calls are still there after they were ended");
        }
        ended
    }

    async fn none_left(&self, calls: &impl Fn() -> u64) {
        loop {
            let mut left = std::pin::pin!(self.left.notified());
            left.as_mut().enable();
            if calls() == 0 {
                return;
            }
            left.await;
        }
    }

    /// An app without a revision here has nothing to count.
    fn forget_if_gone(&self, app: &AppName) {
        let revisions = lock(&self.revisions);
        if !revisions.keys().any(|(known, _)| known == app) {
            self.totals.forget(app);
        }
    }

    /// Every counter, over all revisions.
    pub(crate) fn metrics(&self) -> HostMetrics {
        let mut sums: BTreeMap<(AppName, ComponentName), ComponentCounts> = BTreeMap::new();
        {
            // Held until both are added up: no revision is counted twice, or not at all, while it leaves.
            let revisions = lock(&self.revisions);
            for ((app, _), running) in &*revisions {
                for entry in &running.entries {
                    let counts = totals::counts(&entry.status());
                    let sum = sums.entry((app.clone(), entry.component().clone())).or_default();
                    sum.add(&counts);
                    sum.in_flight += counts.in_flight;
                }
            }
            self.totals.add_past(&mut sums);
        }
        let components = sums.into_iter().map(|((app, component), counts)| ComponentMetrics { app, component, counts });
        HostMetrics {
            since_us: self.since_us,
            in_flight: self.in_flight.load(Relaxed),
            rss: memory::resident(),
            components: components.collect(),
            links: self.totals.links(),
        }
    }

    pub(crate) fn status(&self) -> HostStatus {
        let revisions = lock(&self.revisions);
        let apps = revisions.iter().map(|((app, revision), running)| AppOnHost {
            app: app.clone(),
            revision: *revision,
            draining: running.draining.load(Relaxed),
            components: running.entries.iter().map(|entry| (entry.component().clone(), entry.status())).collect(),
            troubles: self.totals.troubles(app),
        });
        HostStatus { in_flight: self.in_flight.load(Relaxed), rss: memory::resident(), apps: apps.collect() }
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
