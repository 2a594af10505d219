//! Moves the routes from one revision to the next; what was replaced leaves the hosts when its calls are done.

use std::sync::Arc;
use std::time::Duration;

use model::{AppName, TenantName};
use store::keys::{self, Served};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::app::Leaving;
use super::{Agent, HostIndex};
use crate::bring::{News, Progress, drain};
use crate::ingress::RouteTable;
use crate::publisher::Said;
use crate::serving::Serving;
use crate::taking;
use crate::tenant::{Prepared, Tenant};

/// How long calls to a revision that was replaced may go on: the longest wall time an app can have.
const DRAIN: Duration = Duration::from_secs(15 * 60);
/// How long a revision that was replaced goes on taking messages while those that follow it begin to.
const TAKEN_OVER: Duration = Duration::from_secs(10);
/// How long calls that no longer come through the ingress may go on after that.
pub(super) const LAST_CALLS: Duration = Duration::from_secs(1);
/// A swap of the route table may use a tenth of the time, when there are many one after the other.
const SWAP_SHARE: u32 = 10;

impl Agent {
    /// Moves the routes to a revision that the hosts have and that may run.
    pub(super) fn serve(&mut self, tenant: &TenantName, name: &AppName, prepared: Arc<Prepared>) {
        let revision = prepared.revision;
        let Some(account) = self.accounts.get_mut(tenant) else { return };
        let shards = account.shards();
        let (front, shared) = (account.front.clone(), account.shared.clone());
        let Some(app) = account.apps.get_mut(name) else { return };
        let before = app.actual.serving.replace(revision);
        // Where the app was suspended, it was what served until now.
        app.actual.suspended = None;
        shared.unbar(name, revision);
        let serving = Serving::new(&shared, prepared, &front, shards, false);
        self.replace(tenant, name, Some(Arc::new(serving)));
        if let Ok(value) = serde_json::to_vec(&Served { revision, before }) {
            self.say(Said::Keep(keys::served(&self.setup.name, tenant, name), Some(value.into())));
        }
    }

    /// Makes the targets of what serves anew: it was suspended or resumed, or its shard is another one.
    pub(super) fn reroute(&mut self, tenant: &TenantName, name: &AppName) {
        let Some(account) = self.accounts.get(tenant) else { return };
        let Some(app) = account.apps.get(name) else { return };
        let Some(old) = &app.serving else { return };
        let suspended = app.actual.suspended.is_some() || app.resuming > 0;
        let shared = &account.shared;
        let serving = Serving::new(shared, old.prepared.clone(), &account.front, account.shards(), suspended);
        self.replace(tenant, name, Some(Arc::new(serving)));
    }

    /// Puts `new` where the routes of an app point; what was there leaves the hosts when its calls are done.
    pub(super) fn replace(&mut self, tenant: &TenantName, name: &AppName, new: Option<Arc<Serving>>) {
        let Some(account) = self.accounts.get_mut(tenant) else { return };
        let shared = account.shared.clone();
        let Some(app) = account.apps.get_mut(name) else { return };
        let revision = new.as_ref().map(|serving| serving.prepared.revision);
        let old = std::mem::replace(&mut app.serving, new.clone());
        self.setup.index.set(tenant, name, new.clone());
        self.setup.schedules.changed(tenant, name);
        self.routes_dirty = true;
        let taken_over = new.map(|new| {
            self.setup.services.messaging.declare(tenant, name, &new.prepared.messages);
            taking::set(&new.prepared, !new.suspended);
            tokio::spawn(taking::tell(new.prepared.clone(), self.setup.hosts.of(tenant)))
        });
        let Some(old) = old.filter(|old| Some(old.prepared.revision) != revision) else { return };
        taking::set(&old.prepared, false);
        let patience = CancellationToken::new();
        let leaving = Leaving { prepared: old.prepared.clone(), patience: patience.clone() };
        app.leaving.insert(old.prepared.revision, leaving);
        // The table that still names it goes with the swap that follows; until then it is not idle.
        tokio::spawn(leave(shared, self.setup.hosts.clone(), old, taken_over, patience, self.news.clone()));
    }

    /// Swaps the route table, whole. At once, unless swaps come so fast that they would take the processor.
    pub(super) fn swap(&mut self) {
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
}

/// Waits until the calls to a revision that was replaced are done, then takes it off the hosts.
async fn leave(
    tenant: Arc<Tenant>,
    hosts: Arc<HostIndex>,
    old: Arc<Serving>,
    taken_over: Option<tokio::task::JoinHandle<()>>,
    patience: CancellationToken,
    news: mpsc::UnboundedSender<News>,
) {
    let (app, revision) = (old.prepared.app.clone(), old.prepared.revision);
    let prepared = old.prepared.clone();
    let handlers = async {
        // A broker that keeps no message loses those that come while nobody takes them.
        if let Some(taken_over) = taken_over {
            drop(tokio::time::timeout(TAKEN_OVER, taken_over).await);
        }
        taking::tell(prepared, hosts.of(&tenant.name)).await;
    };
    let idle = async {
        futures::join!(old.idle(DRAIN), handlers);
    };
    tokio::select! {
        () = idle => {}
        () = patience.cancelled() => {}
    }
    let leaving = tenant.part(&app, revision);
    drain(&hosts.of(&tenant.name), &app, revision, LAST_CALLS).await;
    drop(leaving);
    drop(news.send(News { tenant, app, revision, what: Progress::Drained }));
}
