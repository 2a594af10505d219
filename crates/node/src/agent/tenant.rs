//! One tenant in the agent's books: its settings, its hosts and its apps.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use model::observed::Reason;
use model::tenant::TenantSettings;
use model::{AppName, TenantName};

use super::app::App;
use crate::converge::{self, Hosts, Wanted};
use crate::front::Front;
use crate::supervisor::{Host, HostRef};
use crate::tenant::Tenant;

/// One tenant.
#[derive(Debug)]
pub(super) struct Account {
    pub(super) shared: Arc<Tenant>,
    pub(super) front: Arc<Front>,
    /// How many hosts it is to have.
    pub(super) shards: Arc<AtomicU32>,
    pub(super) hosts: BTreeMap<u32, Host>,
    /// Shards whose old host still finishes its calls: their directory is not free yet.
    pub(super) stopping: BTreeSet<u32>,
    /// Its last host has ended, and what they had together is being given back: a host that came now would be in a
    /// control group that nobody knows any more.
    pub(super) releasing: bool,
    /// Somebody looks again later whether the tenant still has nothing to run.
    pub(super) idle_check: bool,
    /// What the operator decided last; none where it was never told, or the tenant is gone.
    pub(super) settings: Option<TenantSettings>,
    /// Why nothing of it may run, where that is so: it has no hosts then.
    pub(super) suspended: Option<Reason>,
    pub(super) degraded: BTreeMap<u32, Reason>,
    /// A host of it was ready.
    pub(super) was_ready: bool,
    pub(super) apps: BTreeMap<AppName, App>,
}

impl Account {
    pub(super) fn new(name: TenantName) -> Self {
        Self {
            shared: Tenant::new(name),
            front: Front::new(),
            shards: Arc::new(AtomicU32::new(TenantSettings::default().shards)),
            hosts: BTreeMap::new(),
            stopping: BTreeSet::new(),
            releasing: false,
            idle_check: false,
            settings: None,
            suspended: None,
            degraded: BTreeMap::new(),
            was_ready: false,
            apps: BTreeMap::new(),
        }
    }

    pub(super) fn shards(&self) -> u32 {
        self.shards.load(Ordering::Acquire).clamp(1, converge::MAX_SHARDS)
    }

    pub(super) fn refer(&self) -> Vec<HostRef> {
        self.hosts.iter().map(|(shard, host)| host.refer(*shard)).collect()
    }

    /// What is wanted of one of its apps: where the tenant is suspended, that nothing of it runs.
    pub(super) fn wanted(&self, name: &AppName) -> Option<Wanted> {
        let wanted = self.apps.get(name)?.wanted.clone()?;
        Some(wanted.suspended_with(self.suspended.as_ref()))
    }

    /// How its hosts stand, as apps report it.
    pub(super) fn health(&self) -> Hosts {
        let first = self.degraded.values().next();
        match first {
            Some(reason) if self.degraded.len() >= self.hosts.len() => Hosts::Degraded(reason.clone()),
            _ if self.was_ready => Hosts::Up,
            _ => Hosts::Starting,
        }
    }

    /// Nothing is wanted and nothing is left.
    pub(super) fn is_settled(&self) -> bool {
        // One that failed and is tried again has come to something.
        let on_its_way = |app: &App| (app.actual.bringing.is_some() && app.tries == 0) || app.is_compiling();
        let nothing = self.apps.is_empty() || self.suspended.is_some();
        nothing || (self.health() != Hosts::Starting && !self.apps.values().any(on_its_way))
    }
}
