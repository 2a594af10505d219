//! The node's one decider. It owns what is wanted and what is there, asks [`converge`](crate::converge) for the next
//! steps, and starts tasks that carry them out; they come back with news. It never waits for a host or the disk.

mod app;
mod hosts;
mod index;
mod recompile;
mod restore;
mod routes;
mod steps;
mod suspend;
mod tenant;
mod told;
mod wanted;

pub(crate) use hosts::STOP;
pub(crate) use index::{HostIndex, Hosted};

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;

use model::tenant::Quotas;
use model::{AppName, NodeName, TenantName};
use store::Store;
use store::keys::{self, NodeRecord};
use tokio::sync::{mpsc, oneshot, watch};

use crate::artifacts::Artifacts;
use crate::bring::News;
use crate::confine::Confinement;
use crate::external::ExternalEvent;
use crate::ingress::Routes;
use crate::logs::Logs;
use crate::metrics::Metrics;
use crate::otlp::Exporter;
use crate::publisher::Said;
use crate::schedules::Schedules;
use crate::services::Services;
use crate::serving::ServingIndex;
use crate::supervisor::{Host, HostEvent};
use crate::watch::follow;
use tenant::Account;

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
    /// Says once that what served before the start is put back.
    pub(crate) begun: watch::Sender<bool>,
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
        expiries: BTreeSet::new(),
        news: news_in,
        events: events_in,
        limits: follow_limits(confinement),
        routes_dirty: false,
        next_swap: tokio::time::Instant::now(),
    };
    agent.run(news, events, externals, stop).await
}

/// What a tenant may use from now on; `None` where it is gone.
type Limit = (TenantName, Option<Quotas>);

/// Sets the quotas of tenants one after the other: the kernel may take a while to get memory back. Those of one that is gone
/// are forgotten after the last ones were set.
fn follow_limits(confinement: Arc<Confinement>) -> mpsc::UnboundedSender<Limit> {
    let (tell, mut told) = mpsc::unbounded_channel::<Limit>();
    tokio::spawn(async move {
        while let Some((tenant, quotas)) = told.recv().await {
            match quotas {
                Some(quotas) => confinement.limit(&tenant, &quotas).await,
                None => confinement.forget(&tenant),
            }
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
    /// When the claims of which apps end, seconds since 1970.
    expiries: BTreeSet<(u64, TenantName, AppName)>,
    news: mpsc::UnboundedSender<News>,
    events: mpsc::UnboundedSender<HostEvent>,
    limits: mpsc::UnboundedSender<Limit>,
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
            let expiry = self.next_expiry();
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
                        self.setup.begun.send_replace(true);
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
                () = tokio::time::sleep(expiry.unwrap_or_default()), if expiry.is_some() => self.expire(),
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
}
