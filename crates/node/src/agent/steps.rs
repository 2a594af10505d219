//! Carries out the next step of every app, and hears what has come of those that take time.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use model::observed::Phase;
use model::{AppName, Revision, TenantName};
use store::keys;
use tokio_util::sync::CancellationToken;

use super::Agent;
use super::wanted::seconds;
use crate::bring::{Again, Job, News, Progress, drain, given_up};
use crate::converge::{self, Step};
use crate::external::ExternalEvent;
use crate::publisher::Said;
use crate::tenant::Tenant;

impl Agent {
    /// Carries out the next step of every app that changed, and starts and stops hosts.
    pub(super) fn converge(&mut self) {
        let dirty = std::mem::take(&mut self.dirty);
        let mut touched = BTreeSet::new();
        for (tenant, name) in dirty {
            touched.insert(tenant.clone());
            // A step may make the next one possible at once.
            while self.step(&tenant, &name) {}
            self.cut_short(&tenant, &name);
            self.untold.insert((tenant, name));
        }
        for tenant in touched {
            self.scale(&tenant);
            self.depart(&tenant);
        }
    }

    /// Carries out one step; true where another may follow.
    fn step(&mut self, tenant: &TenantName, name: &AppName) -> bool {
        let Some(account) = self.accounts.get_mut(tenant) else { return false };
        let wanted = account.wanted(name);
        let Some(app) = account.apps.get_mut(name) else { return false };
        match converge::step(wanted.as_ref(), &app.actual, seconds()) {
            None => {
                if app.is_gone() {
                    account.apps.remove(name);
                    account.shared.unbar_all(name);
                    account.shared.named.forget(name);
                    self.setup.logs.forget(tenant, name);
                    self.setup.metrics.forget(tenant, name);
                    // Where nothing of it was ever up, only this is left of it.
                    self.say(Said::Withdraw(keys::observed(&self.setup.name, tenant, name)));
                }
                false
            }
            Some(Step::Cancel(revision)) => {
                // It may be that it must not run; in any case it is to have nothing more.
                account.shared.bar_one(name, revision);
                // The job says when it is done.
                if let Some(job) = &app.job {
                    job.cancel();
                }
                false
            }
            Some(Step::Bring(revision)) => {
                account.shared.unbar(name, revision);
                app.actual.bringing = Some(revision);
                app.actual.failed = None;
                app.phase = Phase::Fetching;
                self.bring(tenant, name, revision);
                false
            }
            Some(Step::Suspend(reason)) => {
                self.suspend(tenant, name, reason);
                true
            }
            Some(Step::Resume) => {
                self.resume(tenant, name);
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
    pub(super) fn forget(&mut self, tenant: &TenantName, name: &AppName) {
        let cleared = self.setup.services.messaging.forget(tenant, name);
        // What it left behind is no reason to have it in the books.
        let shared =
            self.accounts.get(tenant).map_or_else(|| Tenant::new(tenant.clone()), |known| known.shared.clone());
        let news = self.news.clone();
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
        let front = account.front.clone();
        let preferred = front.all().preferred(converge::preference(name));
        let Some(app) = account.apps.get_mut(name) else { return };
        let cancel = CancellationToken::new();
        app.job = Some(cancel.clone());
        // A revision that is leaving and is wanted again leaves first, at once.
        let leaving = app.leaving.get(&revision).map(|leaving| leaving.patience.clone());
        let job = Job {
            tenant: shared,
            app: name.clone(),
            revision,
            store: self.setup.store.clone(),
            artifacts: self.setup.artifacts.clone(),
            externals: self.setup.services.externals.clone(),
            hosts,
            front,
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

    /// What came up in the moment that it was given up leaves the hosts again, as if it had been given up before.
    fn turn_away(&self, shared: Arc<Tenant>, app: AppName, revision: Revision) {
        shared.remove(&app, revision);
        let (hosts, news) = (self.setup.hosts.of(&shared.name), self.news.clone());
        tokio::spawn(async move {
            drain(&hosts, &app, revision, Duration::ZERO).await;
            drop(news.send(News { tenant: shared, app, revision, what: Progress::Cancelled }));
        });
    }

    /// An external provider of an app ails, or is well again.
    pub(super) fn external(&mut self, event: ExternalEvent) {
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
    pub(super) fn hear(&mut self, news: News) {
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
        let Some(account) = self.accounts.get_mut(&tenant) else { return };
        let wanted = account.wanted(&name).filter(|wanted| wanted.revision == revision);
        let may_serve = wanted.is_some_and(|wanted| wanted.barred(seconds()).is_none());
        let Some(app) = account.apps.get_mut(&name) else { return };
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
            Progress::Resumed => self.resumed(&tenant, &name),
            Progress::Compiled(made) => self.recompiled(&tenant, &name, revision, made),
            // Of a job that was replaced meanwhile there is no news.
            _ if app.actual.bringing != Some(revision) => {}
            Progress::Phase(phase) => app.phase = phase,
            // Of what is wanted no longer nobody says any more whether it may run.
            Progress::Up(_) if !may_serve => self.turn_away(shared, name.clone(), revision),
            Progress::Up(prepared) => {
                app.actual.bringing = None;
                app.job = None;
                app.failure = None;
                app.tries = 0;
                app.odd = None;
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
                let (reason, again) = match again {
                    Again::Yes => (reason, true),
                    Again::Few if app.may_try(revision) => (reason, true),
                    Again::Few => (given_up(reason), false),
                    Again::No => (reason, false),
                };
                app.failure = Some(reason);
                if again {
                    let seconds = app.try_again();
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
}
