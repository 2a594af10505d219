//! The agent's part that suspends apps and resumes them. From the moment an app is suspended its code gets nothing of the
//! node, whatever the host makes of that; its open connections end, its hosts end the calls under way and forget it, and
//! the processes of its external providers end. Its routes stay, and say so, until it may run again or a revision that may
//! run takes its place: that one is brought up beside it, and has of the node what it names itself. What was replaced before
//! and has calls under way is held to the same by the node alone: the control plane speaks of it no more.

use std::sync::Arc;
use std::time::Duration;

use model::observed::Reason;
use model::{AppName, TenantName};

use super::app::App;
use super::hosts::give;
use super::routes::LAST_CALLS;
use super::wanted::seconds;
use super::{Agent, HostIndex};
use crate::bring::{News, Progress, drain};
use crate::converge;
use crate::supervisor::HostState;
use crate::tenant::{Prepared, Tenant};

/// How long an app that is resumed waits for a host that is being started.
const HOST_WAIT: Duration = Duration::from_secs(40);

impl Agent {
    /// Nothing of the app may run any more, but for the revision that is being brought up where that one may.
    pub(super) fn suspend(&mut self, tenant: &TenantName, name: &AppName, reason: Reason) {
        let Some(account) = self.accounts.get_mut(tenant) else { return };
        let shared = account.shared.clone();
        let next = account.wanted(name).filter(|wanted| wanted.barred(seconds()).is_none());
        let Some(app) = account.apps.get_mut(name) else { return };
        app.actual.suspended = Some(reason);
        shared.bar(name, next.map(|wanted| wanted.revision).filter(|next| app.actual.bringing == Some(*next)));
        for leaving in app.leaving.values() {
            leaving.patience.cancel();
        }
        if let Some(prepared) = app.serving.as_ref().map(|serving| serving.prepared.clone()) {
            prepared.release();
            let (hosts, name) = (self.setup.hosts.of(tenant), name.clone());
            after(app, async move { drain(&hosts, &name, prepared.revision, LAST_CALLS).await });
        }
        self.reroute(tenant, name);
        self.setup.services.dialer.recheck(&shared);
    }

    /// What was promised of what runs holds of the last calls of a revision that was replaced, too: those of one that must not
    /// run any more get nothing of the node from now on, and end as the calls of one that serves do.
    pub(super) fn cut_short(&mut self, tenant: &TenantName, name: &AppName) {
        let Some(account) = self.accounts.get_mut(tenant) else { return };
        let (Some(settings), Some(app)) = (&account.settings, account.apps.get(name)) else { return };
        let now = seconds();
        let (mut cut, mut next) = (false, None::<u64>);
        for (revision, leaving) in app.leaving.iter().filter(|(_, leaving)| !leaving.patience.is_cancelled()) {
            let judged = leaving.prepared.vouched.judge(*revision, settings, now);
            match judged.barred(now) {
                Some(reason) => {
                    tracing::warn!(%tenant, app = %name, %revision, reason = %reason.message, "the last calls of a revision are ended");
                    account.shared.bar_one(name, *revision);
                    leaving.patience.cancel();
                    cut = true;
                }
                None => next = next.into_iter().chain(judged.expiry.map(|expiry| expiry.at)).min(),
            }
        }
        self.expiries.extend(next.map(|at| (at, tenant.clone(), name.clone())));
        if cut {
            self.setup.services.dialer.recheck(&account.shared);
        }
    }

    /// The app may run again: what served serves as soon as a host has it back.
    pub(super) fn resume(&mut self, tenant: &TenantName, name: &AppName) {
        let Some(account) = self.accounts.get_mut(tenant) else { return };
        let (shared, shards) = (account.shared.clone(), account.shards());
        let Some(app) = account.apps.get_mut(name) else { return };
        app.actual.suspended = None;
        if let Some(serving) = app.actual.serving {
            shared.unbar(name, serving);
        }
        let Some(prepared) = app.serving.as_ref().map(|serving| serving.prepared.clone()) else { return };
        prepared.hold(tenant, &self.setup.services.externals);
        app.resuming += 1;
        let (hosts, news) = (self.setup.hosts.clone(), self.news.clone());
        after(app, async move {
            give_back(&hosts, &shared, &prepared, shards).await;
            let (app, revision) = (prepared.app.clone(), prepared.revision);
            drop(news.send(News { tenant: shared, app, revision, what: Progress::Resumed }));
        });
    }

    /// Its hosts have what served.
    pub(super) fn resumed(&mut self, tenant: &TenantName, name: &AppName) {
        let app = self.accounts.get_mut(tenant).and_then(|account| account.apps.get_mut(name));
        let Some(app) = app else { return };
        app.resuming = app.resuming.saturating_sub(1);
        if app.resuming == 0 {
            self.reroute(tenant, name);
        }
    }
}

/// Does something with the hosts of an app when what was begun before has been done.
fn after(app: &mut App, work: impl Future<Output = ()> + Send + 'static) {
    let before = app.turn.take();
    app.turn = Some(tokio::spawn(async move {
        if let Some(before) = before {
            drop(before.await);
        }
        work.await;
    }));
}

/// Gives a revision to the hosts that are up, as soon as one is; the others get it when they start.
async fn give_back(hosts: &HostIndex, tenant: &Tenant, prepared: &Arc<Prepared>, shards: u32) {
    let until = tokio::time::Instant::now() + HOST_WAIT;
    // It may be replaced or deleted meanwhile.
    while tenant.has(&prepared.app, prepared.revision) {
        let home = converge::home(&prepared.app, shards);
        let here = hosts.of(&tenant.name).into_iter().filter(|host| !prepared.pinned || host.shard == home);
        let up: Vec<_> = here.filter(|host| *host.state.borrow() == HostState::Ready).collect();
        if !up.is_empty() {
            futures::future::join_all(up.iter().map(|host| give(host, prepared))).await;
            return;
        }
        // Where it is suspended again there may never be one.
        if tenant.is_barred(&prepared.app) || tokio::time::Instant::now() >= until {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
