//! The agent's part that deals with tenants' settings and hosts: how many there are, and what follows when one comes
//! or goes.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use api::{Code, Problem};
use model::observed::Reason;
use model::tenant::TenantSettings;
use model::{AppName, Revision, TenantName};
use store::keys;

use super::Agent;
use crate::bring::{News, Progress};
use crate::confine::Who;
use crate::converge;
use crate::supervisor::{Host, HostChange, HostEvent, HostPlan, HostRef};
use crate::tenant::Prepared;
use crate::watch::Seen;

/// How long a tenant that has nothing to run keeps its hosts: somebody who deletes an app may deploy the next one.
const IDLE: Duration = Duration::from_secs(30);
/// How long a host that is no longer wanted may finish its calls.
pub(crate) const STOP: Duration = Duration::from_secs(60);
/// The same where the tenant is suspended: nobody waits for what they say.
const HALT: Duration = Duration::from_secs(2);

impl Agent {
    /// What the operator decided.
    pub(super) async fn tenants(&mut self, seen: Seen) {
        match seen {
            Seen::All(entries) => {
                let mut gone: BTreeSet<TenantName> = self
                    .accounts
                    .iter()
                    .filter(|(_, account)| account.settings.is_some())
                    .map(|(n, _)| n.clone())
                    .collect();
                for entry in entries {
                    if let Some(name) = self.tenant(&entry.key, Some(&entry.value)) {
                        gone.remove(&name);
                    }
                }
                for name in gone {
                    self.deleted(&name);
                }
            }
            Seen::One(change) => {
                self.tenant(&change.key, change.value.as_deref());
            }
        }
    }

    fn tenant(&mut self, key: &str, value: Option<&[u8]>) -> Option<TenantName> {
        let name = keys::parts(key).next()?.parse::<TenantName>().ok()?;
        match value.map(serde_json::from_slice::<TenantSettings>) {
            None => self.deleted(&name),
            Some(Ok(settings)) => {
                self.account(&name).settings = Some(settings.clone());
                self.apply(&name, settings);
            }
            Some(Err(cause)) => {
                tracing::error!(key, %cause, "the settings of a tenant cannot be read; the last ones stay in force");
            }
        }
        Some(name)
    }

    /// A tenant is gone. Until all of it has ended it is held to its last quotas, and nothing of it runs.
    fn deleted(&mut self, name: &TenantName) {
        let Some(account) = self.accounts.get_mut(name) else { return };
        let last = account.settings.take().unwrap_or_default();
        let settings = TenantSettings {
            egress: Vec::new(),
            providers: BTreeMap::new(),
            suspended: Some("it was deleted".to_owned()),
            ..last
        };
        self.apply(name, settings);
        self.depart(name);
    }

    fn apply(&mut self, name: &TenantName, settings: TenantSettings) {
        let account = self.account(name);
        account.shared.apply(&settings);
        self.setup.logs.limit(name, &settings.quotas);
        self.setup.services.externals.limit(name, settings.quotas.store_bytes);
        drop(self.limits.send((name.clone(), Some(settings.quotas.clone()))));
        let Some(account) = self.accounts.get_mut(name) else { return };
        account.shards.store(settings.shards.clamp(1, converge::MAX_SHARDS), Ordering::Release);
        let suspended = settings.suspended.as_deref().map(suspended);
        let mut changed = Vec::new();
        if account.suspended != suspended {
            account.suspended = suspended;
            changed.extend(account.apps.keys().map(|app| (name.clone(), app.clone())));
        }
        // Of these nobody else says whether they may go on.
        let leaving = account.apps.iter().filter(|(_, app)| !app.leaving.is_empty());
        changed.extend(leaving.map(|(app, _)| (name.clone(), app.clone())));
        let tenant = account.shared.clone();
        self.dirty.extend(changed);
        self.setup.services.dialer.recheck(&tenant);
        self.scale(name);
    }

    /// Forgets a tenant that is gone, once nothing of it is left.
    pub(super) fn depart(&mut self, name: &TenantName) {
        let Some(account) = self.accounts.get(name) else { return };
        let left = account.settings.is_some() || !account.apps.is_empty();
        if left || !account.hosts.is_empty() || !account.stopping.is_empty() || account.releasing {
            return;
        }
        self.accounts.remove(name);
        self.setup.hosts.remove(name);
        self.setup.metrics.forget_tenant(name);
        self.setup.logs.forget_tenant(name);
        self.setup.services.externals.forget(name);
        drop(self.limits.send((name.clone(), None)));
    }

    /// Starts and stops hosts of a tenant until there are as many as its settings say.
    pub(super) fn scale(&mut self, name: &TenantName) {
        let Some(account) = self.accounts.get_mut(name) else { return };
        let running: Vec<u32> = account.hosts.keys().copied().collect();
        if account.suspended.is_some() {
            account.was_ready = false;
            self.resize(name, 0, &running);
            return;
        }
        if account.apps.is_empty() && !running.is_empty() && !account.idle_check {
            account.idle_check = true;
            self.later(name, IDLE, HostChange::Idle);
            return;
        }
        let Some(account) = self.accounts.get_mut(name) else { return };
        // Until the check comes round, the tenant counts as having something to run.
        let apps = if account.idle_check { account.apps.len().max(1) } else { account.apps.len() };
        self.resize(name, apps, &running);
    }

    fn resize(&mut self, name: &TenantName, apps: usize, running: &[u32]) {
        let Some(account) = self.accounts.get_mut(name) else { return };
        if account.releasing {
            // There are none, and those that are wanted start afterwards.
            return;
        }
        let (start, stop) = converge::hosts(apps, account.shards(), running);
        if start.is_empty() && stop.is_empty() {
            return;
        }
        for shard in start {
            if account.stopping.contains(&shard) {
                continue;
            }
            let plan = HostPlan {
                exe: self.setup.exe.clone(),
                confinement: self.setup.confinement.clone(),
                run_dir: self.setup.run_dir.clone(),
                env: self.setup.env.clone(),
                folders: self.setup.folders.clone(),
                tenant: account.shared.clone(),
                shards: account.shards.clone(),
                services: self.setup.services.clone(),
                logs: self.setup.logs.clone(),
                exporter: self.setup.exporter.clone(),
                events: self.events.clone(),
                front: account.front.clone(),
            };
            account.hosts.insert(shard, Host::start(plan, shard));
        }
        let stopped: Vec<_> = stop.iter().filter_map(|shard| Some((*shard, account.hosts.remove(shard)?))).collect();
        if !stopped.is_empty() {
            account.stopping.extend(stop.iter().copied());
            account.shared.size.send_modify(|size| size.stopping = account.stopping.len());
            for shard in &stop {
                account.degraded.remove(shard);
            }
            let shards = account.shards();
            let moving = account.apps.values().filter_map(|app| app.serving.as_ref());
            let moving = moving.filter(|serving| serving.home.is_some_and(|home| stop.contains(&home)));
            let moving: Vec<_> = moving
                .filter_map(|serving| {
                    let home = converge::home(&serving.prepared.app, shards);
                    Some((serving.prepared.clone(), account.hosts.get(&home)?.refer(home)))
                })
                .collect();
            let patience = if account.suspended.is_some() { HALT } else { STOP };
            let (tenant, news, events) = (account.shared.clone(), self.news.clone(), self.events.clone());
            tokio::spawn(async move {
                for (prepared, host) in moving {
                    give(&host, &prepared).await;
                    let (app, revision) = (prepared.app.clone(), prepared.revision);
                    drop(news.send(News { tenant: tenant.clone(), app, revision, what: Progress::Moved }));
                }
                let stops = stopped.into_iter().map(|(shard, host)| {
                    let (events, tenant) = (events.clone(), tenant.name.clone());
                    async move {
                        host.stop(patience).await;
                        drop(events.send(HostEvent { tenant, shard, what: HostChange::Stopped }));
                    }
                });
                futures::future::join_all(stops).await;
            });
        }
        self.setup.hosts.set(&account.shared, account.refer());
        // Last: whoever knows the number has the hosts that it means, or finds out.
        account.shared.size.send_modify(|size| size.changes += 1);
    }

    fn later(&self, tenant: &TenantName, wait: Duration, what: HostChange) {
        let (events, tenant) = (self.events.clone(), tenant.clone());
        tokio::spawn(async move {
            tokio::time::sleep(wait).await;
            drop(events.send(HostEvent { tenant, shard: 0, what }));
        });
    }

    /// Something happened to a host.
    pub(super) fn host(&mut self, event: HostEvent) {
        let HostEvent { tenant: name, shard, what } = event;
        let Some(account) = self.accounts.get_mut(&name) else { return };
        let before = account.health();
        match what {
            HostChange::Ready { refused, uncompiled } => {
                account.was_ready = true;
                account.degraded.remove(&shard);
                for (app, revision, problem) in refused {
                    self.refused(&name, &app, revision, &problem);
                }
                self.recompile(&name, uncompiled);
                self.settle_pinned(&name, shard);
            }
            HostChange::Ended(_) => {}
            HostChange::Degraded(reason) => {
                account.degraded.insert(shard, reason);
            }
            HostChange::Stopped => {
                account.stopping.remove(&shard);
                account.shared.size.send_modify(|size| size.stopping = account.stopping.len());
                if account.hosts.is_empty() && account.stopping.is_empty() {
                    account.releasing = true;
                    let (confinement, events) = (self.setup.confinement.clone(), self.events.clone());
                    let (sql, tenant) = (self.setup.services.sql.clone(), name.clone());
                    tokio::spawn(async move {
                        sql.end(&tenant).await;
                        confinement.release(Who::Tenant(&tenant)).await;
                        drop(events.send(HostEvent { tenant, shard, what: HostChange::Released }));
                    });
                }
                self.scale(&name);
                self.depart(&name);
            }
            HostChange::Released => {
                account.releasing = false;
                self.scale(&name);
                self.depart(&name);
            }
            HostChange::Idle => {
                account.idle_check = false;
                if account.apps.is_empty() {
                    let running: Vec<u32> = account.hosts.keys().copied().collect();
                    account.was_ready = false;
                    self.resize(&name, 0, &running);
                }
            }
        }
        let Some(account) = self.accounts.get(&name) else { return };
        if account.health() != before {
            self.untold.extend(account.apps.keys().map(|app| (name.clone(), app.clone())));
        }
    }

    /// A host that was started does not take a revision that served before, or has no code of it: the machine has changed under it.
    pub(super) fn refused(&mut self, tenant: &TenantName, name: &AppName, revision: Revision, problem: &Problem) {
        tracing::warn!(%tenant, app = %name, %revision, cause = %problem.detail, "a revision that served cannot serve here");
        let Some(app) = self.accounts.get_mut(tenant).and_then(|account| account.apps.get_mut(name)) else { return };
        if app.actual.serving != Some(revision) {
            return;
        }
        app.actual.serving = None;
        app.actual.failed = Some(revision);
        app.failure = Some(problem.reason());
        self.replace(tenant, name, None);
        self.dirty.insert((tenant.clone(), name.clone()));
    }

    /// Apps that belong on this shard alone and were on another one: it has them since it is ready.
    fn settle_pinned(&mut self, tenant: &TenantName, shard: u32) {
        let Some(account) = self.accounts.get(tenant) else { return };
        let shards = account.shards();
        let moved = account.apps.iter().filter(|(name, app)| {
            let home = app.serving.as_ref().and_then(|serving| serving.home);
            home.is_some_and(|home| home != shard) && converge::home(name, shards) == shard
        });
        let moved: Vec<AppName> = moved.map(|(name, _)| name.clone()).collect();
        for name in moved {
            self.reroute(tenant, &name);
        }
    }
}

/// Why nothing of a tenant may run, as the control plane says it too.
fn suspended(why: &str) -> Reason {
    Problem::new(Code::Suspended, format!("the tenant is suspended by the operator: {why}"))
        .help("everything it has is kept; the operator ends this with `sidereal tenant resume`")
        .reason()
}

pub(super) async fn give(host: &HostRef, prepared: &Arc<Prepared>) {
    let request = prepared.start_request(false);
    if let Err(cause) = host.client.start_encoded(&prepared.app, prepared.revision, request).await {
        tracing::warn!(app = %prepared.app, shard = host.shard, %cause, "an app cannot move to another shard");
    }
}
