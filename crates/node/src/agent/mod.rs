//! The node's one decider. It owns what is wanted and what is there, asks [`converge`](crate::converge) for the next
//! steps, and starts tasks that carry them out; they come back with news. It never waits for a host or the disk.

mod app;
mod hosts;
mod restore;
mod tenant;

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use model::observed::Phase;
use model::tenant::Quotas;
use model::{AppName, NodeName, Revision, TenantName};
use store::Store;
use store::keys::{self, Assignment, NodeRecord, Served};
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

use crate::artifacts::Artifacts;
use crate::bring::{Job, News, Progress, drain};
use crate::confine::Confinement;
use crate::converge::{self, Step, Wanted};
use crate::external::ExternalEvent;
use crate::ingress::{RouteTable, Routes};
use crate::logs::Logs;
use crate::metrics::Metrics;
use crate::otlp::Exporter;
use crate::publisher::Said;
use crate::schedules::Schedules;
use crate::services::Services;
use crate::serving::{Serving, ServingIndex};
use crate::supervisor::{Host, HostEvent, HostRef};
use crate::taking;
use crate::tenant::{Prepared, Tenant};
use crate::watch::{Seen, follow};
use tenant::Account;

/// How long calls to a revision that was replaced may go on: the longest wall time an app can have.
const DRAIN: Duration = Duration::from_secs(15 * 60);
/// How long calls that no longer come through the ingress may go on after that.
const LAST_CALLS: Duration = Duration::from_secs(1);
/// A swap of the route table may use a tenth of the time, when there are many one after the other.
const SWAP_SHARE: u32 = 10;

/// What the agent works with.
pub(crate) struct Setup {
    pub(crate) name: NodeName,
    pub(crate) exe: PathBuf,
    pub(crate) confinement: Arc<Confinement>,
    pub(crate) run_dir: PathBuf,
    pub(crate) env: Vec<(OsString, OsString)>,
    pub(crate) folders: Arc<[OwnedFd]>,
    pub(crate) store: Arc<dyn Store>,
    pub(crate) artifacts: Arc<Artifacts>,
    pub(crate) services: Arc<Services>,
    pub(crate) logs: Arc<Logs>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) exporter: Option<Arc<Exporter>>,
    pub(crate) routes: Arc<Routes>,
    pub(crate) index: Arc<ServingIndex>,
    pub(crate) hosts: Arc<HostIndex>,
    pub(crate) schedules: Arc<Schedules>,
    pub(crate) said: mpsc::UnboundedSender<Said>,
    pub(crate) record: NodeRecord,
    pub(crate) settled: watch::Sender<bool>,
}

/// A tenant and its hosts.
pub(crate) type Hosted = (Arc<Tenant>, Vec<HostRef>);

/// The hosts of every tenant, for those who ask them.
#[derive(Debug, Default)]
pub(crate) struct HostIndex(std::sync::RwLock<BTreeMap<TenantName, Hosted>>);

impl HostIndex {
    pub(crate) fn of(&self, tenant: &TenantName) -> Vec<HostRef> {
        let all = self.0.read().unwrap_or_else(std::sync::PoisonError::into_inner);
        all.get(tenant).map(|(_, hosts)| hosts.clone()).unwrap_or_default()
    }

    /// A tenant with its hosts; `None` where it has none.
    pub(crate) fn hosted(&self, tenant: &TenantName) -> Option<Hosted> {
        self.0.read().unwrap_or_else(std::sync::PoisonError::into_inner).get(tenant).cloned()
    }

    /// Every tenant with its hosts.
    pub(crate) fn all(&self) -> Vec<Hosted> {
        self.0.read().unwrap_or_else(std::sync::PoisonError::into_inner).values().cloned().collect()
    }

    fn set(&self, tenant: &Arc<Tenant>, hosts: Vec<HostRef>) {
        let mut all = self.0.write().unwrap_or_else(std::sync::PoisonError::into_inner);
        all.insert(tenant.name.clone(), (tenant.clone(), hosts));
    }
}

/// The agent's task. Ends when told to, and hands over the hosts that are still there.
pub(crate) async fn run(
    setup: Setup,
    externals: mpsc::UnboundedReceiver<ExternalEvent>,
    stop: oneshot::Receiver<()>,
) -> Vec<Host> {
    let (news_in, news) = mpsc::unbounded_channel();
    let (events_in, events) = mpsc::unbounded_channel();
    let confinement = setup.confinement.clone();
    let agent = Agent {
        setup,
        accounts: BTreeMap::new(),
        dirty: BTreeSet::new(),
        untold: BTreeSet::new(),
        news: news_in,
        events: events_in,
        limits: follow_limits(confinement),
        routes_dirty: false,
        next_swap: tokio::time::Instant::now(),
    };
    agent.run(news, events, externals, stop).await
}

/// Sets the quotas of tenants one after the other: the kernel may take a while to get memory back.
fn follow_limits(confinement: Arc<Confinement>) -> mpsc::UnboundedSender<(TenantName, Quotas)> {
    let (tell, mut told) = mpsc::unbounded_channel::<(TenantName, Quotas)>();
    tokio::spawn(async move {
        while let Some((tenant, quotas)) = told.recv().await {
            confinement.limit(&tenant, &quotas).await;
        }
    });
    tell
}

struct Agent {
    setup: Setup,
    accounts: BTreeMap<TenantName, Account>,
    /// Apps to look at.
    dirty: BTreeSet<(TenantName, AppName)>,
    /// Apps of which there may be something to tell, once the routes are as the report will say.
    untold: BTreeSet<(TenantName, AppName)>,
    news: mpsc::UnboundedSender<News>,
    events: mpsc::UnboundedSender<HostEvent>,
    limits: mpsc::UnboundedSender<(TenantName, Quotas)>,
    routes_dirty: bool,
    next_swap: tokio::time::Instant,
}

impl Agent {
    async fn run(
        mut self,
        mut news: mpsc::UnboundedReceiver<News>,
        mut events: mpsc::UnboundedReceiver<HostEvent>,
        mut externals: mpsc::UnboundedReceiver<ExternalEvent>,
        mut stop: oneshot::Receiver<()>,
    ) -> Vec<Host> {
        self.say_record();
        let mut tenants = follow(self.setup.store.clone(), keys::TENANTS.to_owned());
        let mut assigned = follow(self.setup.store.clone(), keys::assigned_to(&self.setup.name));
        let mut begun = false;
        loop {
            tokio::select! {
                biased;
                _ = &mut stop => break,
                Some(seen) = tenants.recv() => {
                    self.tenants(seen).await;
                    if !begun {
                        begun = true;
                        tokio::select! {
                            _ = &mut stop => break,
                            () = self.begin(&mut assigned) => {}
                        }
                    }
                }
                Some(event) = events.recv() => {
                    self.host(event);
                    while let Ok(event) = events.try_recv() {
                        self.host(event);
                    }
                }
                Some(event) = externals.recv() => self.external(event),
                Some(one) = news.recv() => {
                    self.hear(one);
                    while let Ok(one) = news.try_recv() {
                        self.hear(one);
                    }
                }
                Some(seen) = assigned.recv(), if begun => {
                    self.assigned(seen);
                    while let Ok(seen) = assigned.try_recv() {
                        self.assigned(seen);
                    }
                }
                () = tokio::time::sleep_until(self.next_swap), if self.routes_dirty => {}
            }
            self.converge();
            self.swap();
            self.tell();
            self.settle();
        }
        for app in self.accounts.values().flat_map(|account| account.apps.values()) {
            if let Some(job) = &app.job {
                job.cancel();
            }
        }
        self.accounts.into_values().flat_map(|account| account.hosts.into_values()).collect()
    }

    fn account(&mut self, name: &TenantName) -> &mut Account {
        self.accounts.entry(name.clone()).or_insert_with(|| Account::new(name.clone()))
    }

    /// What the control plane wants.
    fn assigned(&mut self, seen: Seen) {
        match seen {
            Seen::All(entries) => {
                let mut gone: BTreeSet<_> = self
                    .accounts
                    .iter()
                    .flat_map(|(tenant, account)| account.apps.keys().map(|app| (tenant.clone(), app.clone())))
                    .collect();
                for entry in entries {
                    if let Some((tenant, app)) = self.want(&entry.key, Some(&entry.value)) {
                        gone.remove(&(tenant, app));
                    }
                }
                for (tenant, app) in gone {
                    self.set_wanted(&tenant, &app, None);
                }
            }
            Seen::One(change) => {
                self.want(&change.key, change.value.as_ref());
            }
        }
    }

    fn want(&mut self, key: &str, value: Option<&Bytes>) -> Option<(TenantName, AppName)> {
        let (tenant, app) = names(key)?;
        let wanted = match value {
            None => None,
            Some(value) => match serde_json::from_slice::<Assignment>(value) {
                Ok(assignment) => Some(Wanted { revision: assignment.revision, suspended: assignment.suspended }),
                Err(cause) => {
                    // Whatever runs goes on: an assignment nobody can read is no reason to end an app.
                    tracing::error!(key, %cause, "an assignment cannot be read");
                    return Some((tenant, app));
                }
            },
        };
        self.set_wanted(&tenant, &app, wanted);
        Some((tenant, app))
    }

    fn set_wanted(&mut self, tenant: &TenantName, app: &AppName, wanted: Option<Wanted>) {
        let known = self.account(tenant).apps.entry(app.clone()).or_default();
        if known.wanted == wanted && known.told.is_some() {
            return;
        }
        let same_revision = known.wanted.as_ref().map(|w| w.revision) == wanted.as_ref().map(|w| w.revision);
        if !same_revision {
            known.tries = 0;
        }
        known.wanted = wanted;
        self.dirty.insert((tenant.clone(), app.clone()));
    }

    /// Carries out the next step of every app that changed, and starts and stops hosts.
    fn converge(&mut self) {
        let dirty = std::mem::take(&mut self.dirty);
        let mut touched = BTreeSet::new();
        for (tenant, name) in dirty {
            touched.insert(tenant.clone());
            // A step may make the next one possible at once.
            while self.step(&tenant, &name) {}
            self.untold.insert((tenant, name));
        }
        for tenant in touched {
            self.scale(&tenant);
        }
    }

    /// Carries out one step; true where another may follow.
    fn step(&mut self, tenant: &TenantName, name: &AppName) -> bool {
        let Some(account) = self.accounts.get_mut(tenant) else { return false };
        let Some(app) = account.apps.get_mut(name) else { return false };
        match converge::step(app.wanted.as_ref(), &app.actual) {
            None => {
                if app.is_gone() {
                    account.apps.remove(name);
                    self.setup.logs.forget(tenant, name);
                    self.setup.metrics.forget(tenant, name);
                }
                false
            }
            Some(Step::Cancel(_)) => {
                // The job says when it is done.
                if let Some(job) = &app.job {
                    job.cancel();
                }
                false
            }
            Some(Step::Bring(revision)) => {
                app.actual.bringing = Some(revision);
                app.actual.failed = None;
                app.phase = Phase::Fetching;
                self.bring(tenant, name, revision);
                false
            }
            Some(Step::Suspend(reason)) => {
                app.actual.suspended = Some(reason);
                self.reroute(tenant, name);
                true
            }
            Some(Step::Resume) => {
                app.actual.suspended = None;
                self.reroute(tenant, name);
                true
            }
            Some(Step::Remove(_)) => {
                app.actual = converge::Actual::default();
                app.failure = None;
                self.say(Said::Withdraw(keys::observed(&self.setup.name, tenant, name)));
                self.replace(tenant, name, None);
                self.forget(tenant, name);
                true
            }
        }
    }

    /// Removes what was kept for an app that is gone; what is told of it as served goes last, so that the next start
    /// finishes this.
    fn forget(&mut self, tenant: &TenantName, name: &AppName) {
        let cleared = self.setup.services.messaging.forget(tenant, name);
        let (shared, news) = (self.account(tenant).shared.clone(), self.news.clone());
        let told = News { tenant: shared, app: name.clone(), revision: Revision(0), what: Progress::Forgotten };
        tokio::spawn(async move {
            cleared.await;
            drop(news.send(told));
        });
    }

    fn bring(&mut self, tenant: &TenantName, name: &AppName, revision: Revision) {
        // The hosts may be about to be started for this very app.
        self.scale(tenant);
        let Some(account) = self.accounts.get_mut(tenant) else { return };
        let (hosts, shards) = (account.refer(), account.shards());
        let shared = account.shared.clone();
        let preferred = account.front.all().preferred(converge::preference(name));
        let Some(app) = account.apps.get_mut(name) else { return };
        let cancel = CancellationToken::new();
        app.job = Some(cancel.clone());
        // A revision that is leaving and is wanted again leaves first, at once.
        let leaving = app.leaving.get(&revision).cloned();
        let job = Job {
            tenant: shared,
            app: name.clone(),
            revision,
            store: self.setup.store.clone(),
            artifacts: self.setup.artifacts.clone(),
            externals: self.setup.services.externals.clone(),
            hosts,
            shards,
            preferred,
            tell: self.news.clone(),
            cancel,
        };
        tokio::spawn(async move {
            if let Some(leaving) = leaving {
                leaving.cancel();
                let tenant = job.tenant.clone();
                while tenant.has(&job.app, revision) && !job.cancel.is_cancelled() {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
            }
            job.run().await;
        });
    }

    /// An external provider of an app ails, or is well again.
    fn external(&mut self, event: ExternalEvent) {
        let ExternalEvent { tenant, app: name, provider, ailing } = event;
        let Some(app) = self.accounts.get_mut(&tenant).and_then(|account| account.apps.get_mut(&name)) else { return };
        let before = app.ailing.len();
        match ailing {
            Some(reason) => drop(app.ailing.insert(provider, reason)),
            None => drop(app.ailing.remove(&provider)),
        }
        if before + app.ailing.len() > 0 {
            self.untold.insert((tenant, name));
        }
    }

    /// What a job has come to.
    fn hear(&mut self, news: News) {
        let News { tenant: shared, app: name, revision, what } = news;
        let tenant = shared.name.clone();
        if matches!(what, Progress::Drained | Progress::Forgotten) {
            // What only the revision that left was granted.
            self.setup.services.dialer.recheck(&shared);
        }
        if matches!(what, Progress::Forgotten) {
            let known = self.accounts.get(&tenant).and_then(|account| account.apps.get(&name));
            // The next app of that name may serve already: what is told is then of that one.
            if known.is_none_or(|app| app.serving.is_none()) {
                self.say(Said::Keep(keys::served(&self.setup.name, &tenant, &name), None));
            }
            return;
        }
        let Some(app) = self.accounts.get_mut(&tenant).and_then(|account| account.apps.get_mut(&name)) else { return };
        match what {
            Progress::Drained => {
                app.leaving.remove(&revision);
            }
            Progress::Retry => {
                if app.actual.failed == Some(revision) {
                    app.actual.failed = None;
                }
            }
            // Said above.
            Progress::Forgotten => {}
            Progress::Moved => self.reroute(&tenant, &name),
            // Of a job that was replaced meanwhile there is no news.
            _ if app.actual.bringing != Some(revision) => {}
            Progress::Phase(phase) => app.phase = phase,
            Progress::Up(prepared) => {
                app.actual.bringing = None;
                app.job = None;
                app.failure = None;
                app.tries = 0;
                self.serve(&tenant, &name, prepared);
            }
            Progress::Cancelled => {
                app.actual.bringing = None;
                app.job = None;
            }
            Progress::Failed { reason, again } => {
                tracing::warn!(%tenant, app = %name, %revision, reason = %reason.message, "a revision does not start");
                app.actual.bringing = None;
                app.job = None;
                app.actual.failed = Some(revision);
                app.failure = Some(reason);
                if again && let Some(seconds) = app.try_again() {
                    let (news, name) = (self.news.clone(), name.clone());
                    let retry = News { tenant: shared, app: name, revision, what: Progress::Retry };
                    tokio::spawn(async move {
                        tokio::time::sleep(Duration::from_secs(seconds)).await;
                        drop(news.send(retry));
                    });
                }
            }
        }
        self.dirty.insert((tenant, name));
    }

    /// Moves the routes to a revision the hosts have.
    fn serve(&mut self, tenant: &TenantName, name: &AppName, prepared: Arc<Prepared>) {
        let revision = prepared.revision;
        let Some(account) = self.accounts.get_mut(tenant) else { return };
        let shards = account.shards();
        let (front, shared) = (account.front.clone(), account.shared.clone());
        let Some(app) = account.apps.get_mut(name) else { return };
        app.actual.serving = Some(revision);
        let serving = Serving::new(&shared, prepared, &front, shards, app.actual.suspended.is_some());
        self.replace(tenant, name, Some(Arc::new(serving)));
        if let Ok(value) = serde_json::to_vec(&Served { revision }) {
            self.say(Said::Keep(keys::served(&self.setup.name, tenant, name), Some(value.into())));
        }
    }

    /// Makes the targets of what serves anew: it was suspended or resumed, or its shard is another one.
    fn reroute(&mut self, tenant: &TenantName, name: &AppName) {
        let Some(account) = self.accounts.get(tenant) else { return };
        let Some(app) = account.apps.get(name) else { return };
        let Some(old) = &app.serving else { return };
        let suspended = app.actual.suspended.is_some();
        let shared = &account.shared;
        let serving = Serving::new(shared, old.prepared.clone(), &account.front, account.shards(), suspended);
        self.replace(tenant, name, Some(Arc::new(serving)));
    }

    /// Puts `new` where the routes of an app point; what was there leaves the hosts when its calls are done.
    fn replace(&mut self, tenant: &TenantName, name: &AppName, new: Option<Arc<Serving>>) {
        let Some(account) = self.accounts.get_mut(tenant) else { return };
        let shared = account.shared.clone();
        let Some(app) = account.apps.get_mut(name) else { return };
        let revision = new.as_ref().map(|serving| serving.prepared.revision);
        let old = std::mem::replace(&mut app.serving, new.clone());
        self.setup.index.set(tenant, name, new.clone());
        self.setup.schedules.changed(tenant, name);
        self.routes_dirty = true;
        if let Some(new) = new {
            self.setup.services.messaging.declare(tenant, name, &new.prepared.messages);
            taking::set(&new.prepared, !new.suspended);
            tokio::spawn(taking::tell(new.prepared.clone(), self.setup.hosts.of(tenant)));
        }
        let Some(old) = old.filter(|old| Some(old.prepared.revision) != revision) else { return };
        taking::set(&old.prepared, false);
        let patience = CancellationToken::new();
        app.leaving.insert(old.prepared.revision, patience.clone());
        // The table that still names it goes with the swap that follows; until then it is not idle.
        tokio::spawn(leave(shared, self.setup.hosts.clone(), old, patience, self.news.clone()));
    }

    /// Swaps the route table, whole. At once, unless swaps come so fast that they would take the processor.
    fn swap(&mut self) {
        let now = tokio::time::Instant::now();
        if !self.routes_dirty || now < self.next_swap {
            return;
        }
        let apps = self.accounts.values().flat_map(|account| account.apps.values());
        let entries = apps.filter_map(|app| app.serving.as_ref()).flat_map(|serving| serving.entries().iter().cloned());
        self.setup.routes.store(RouteTable::build(entries.collect()));
        self.routes_dirty = false;
        let cost = now.elapsed();
        // One swap in a while is never delayed; this is for thousands in a row.
        self.next_swap = if cost < Duration::from_millis(1) { now } else { now + cost * SWAP_SHARE };
    }

    /// Tells the control plane what is new, after the routes say so too.
    fn tell(&mut self) {
        if self.routes_dirty {
            return;
        }
        for (tenant, name) in std::mem::take(&mut self.untold) {
            let Some(account) = self.accounts.get_mut(&tenant) else { continue };
            let health = account.health();
            let Some(seen) = account.apps.get_mut(&name).and_then(|app| app.news(&health)) else { continue };
            match serde_json::to_vec(&seen) {
                Ok(value) => {
                    let key = keys::observed(&self.setup.name, &tenant, &name);
                    self.say(Said::Report(key, value.into()));
                }
                Err(cause) => tracing::error!(%cause, "a report cannot be written"),
            }
        }
    }

    fn say(&self, said: Said) {
        if self.setup.said.send(said).is_err() {
            tracing::debug!("the publisher has ended");
        }
    }

    fn say_record(&self) {
        match serde_json::to_vec(&self.setup.record) {
            Ok(value) => self.say(Said::Report(keys::node(&self.setup.name), value.into())),
            Err(cause) => tracing::error!(%cause, "the node's record cannot be written"),
        }
    }

    /// Says, once, that everything that was wanted at the start is there or has failed.
    fn settle(&mut self) {
        if *self.setup.settled.borrow() || self.routes_dirty {
            return;
        }
        if self.accounts.values().all(Account::is_settled) {
            self.setup.settled.send_replace(true);
        }
    }
}

/// Waits until the calls to a revision that was replaced are done, then takes it off the hosts.
async fn leave(
    tenant: Arc<Tenant>,
    hosts: Arc<HostIndex>,
    old: Arc<Serving>,
    patience: CancellationToken,
    news: mpsc::UnboundedSender<News>,
) {
    let (app, revision) = (old.prepared.app.clone(), old.prepared.revision);
    let handlers = taking::tell(old.prepared.clone(), hosts.of(&tenant.name));
    let idle = async {
        futures::join!(old.idle(DRAIN), handlers);
    };
    tokio::select! {
        () = idle => {}
        () = patience.cancelled() => {}
    }
    tenant.remove(&app, revision);
    drain(&hosts.of(&tenant.name), &app, revision, LAST_CALLS).await;
    drop(news.send(News { tenant, app, revision, what: Progress::Drained }));
}

/// The tenant and the app in a key such as `assigned/<node>/<tenant>/<app>`.
fn names(key: &str) -> Option<(TenantName, AppName)> {
    let mut parts = keys::parts(key).skip(1);
    let names = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
    parts.next().is_none().then_some(names)
}
