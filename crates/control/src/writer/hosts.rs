//! The hosts of routes, as they come to apps and leave them: which ones a tenant may have, and that one which is given up is
//! nobody else's for a while.

use std::collections::BTreeSet;
use std::sync::{MutexGuard, PoisonError};
use std::time::Duration;

use api::problem::Code;
use model::TenantName;
use model::app::LockedApp;
use model::hosts;
use model::plan::AppId;
use model::rules::route::check_host;
use model::rules::{self, MAX_ROUTES, Violation};
use model::tenant::TenantSettings;
use store::{Expect, keys};
use tokio_util::sync::CancellationToken;

use super::{Writer, decode, encode};
use crate::clock;
use crate::http::{Answer, Refusal};
use crate::left::{Hosts, Left, SERVES};

/// The pause before what the store did not take is tried again.
const AGAIN: Duration = Duration::from_secs(1);

impl Writer {
    fn left(&self) -> MutexGuard<'_, Left> {
        // Nothing in there is half made when something ends in the middle of it.
        self.left.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What keeps an app from hosts that it does not have yet. Those that it has it keeps, whatever the settings are now.
    pub(super) fn unfit_hosts(&self, id: &AppId, app: &LockedApp, tenant: &TenantSettings) -> Vec<Violation> {
        let had = self.state.lock().hosts_of(id);
        // What is no host at all is refused by its own rule.
        let named = app.routes.iter().take(MAX_ROUTES).map(|route| route.host.as_str());
        let new: BTreeSet<&str> = named.filter(|host| !had.contains(*host) && check_host(host).is_ok()).collect();
        let mut unfit = hosts::check(new.iter().copied(), &id.tenant, tenant);
        let (mut left, now) = (self.left(), clock::millis());
        unfit.extend(new.into_iter().filter(|host| left.bars(&id.tenant, host, now)).map(left_by_another));
        unfit
    }

    /// Writes down which hosts an app gives up by becoming `next`, or by its end. Before it does: after a crash in between
    /// the tenant has them still, and nobody else could have had them. Where what serves goes on serving on one of them until
    /// `next` does, it is given up then, and [`Writer::follow_hosts`] writes that down.
    pub(super) async fn give_up_hosts(&self, id: &AppId, next: Option<&LockedApp>) -> Answer<()> {
        let (mut gone, serves) = {
            let state = self.state.lock();
            (state.hosts_of(id), next.map(|_| state.hosts_served(id)).unwrap_or_default())
        };
        for route in next.iter().flat_map(|app| &app.routes) {
            gone.remove(&route.host);
        }
        if gone.is_empty() {
            return Ok(());
        }
        let now = clock::millis();
        let at = |host: String| {
            let at = if serves.contains(&host) { SERVES } else { now };
            (host, at)
        };
        let kept = self.left().take_in(&id.tenant, gone.into_iter().map(at), now);
        self.put_left(&id.tenant, &kept).await
    }

    /// Begins the time of hosts that were given up while a revision from before served on them, as it ends: until told to
    /// stop.
    pub(crate) async fn follow_hosts(&self, stop: &CancellationToken) {
        let told = self.state.lock().ended.told();
        let work = async {
            loop {
                let ended = self.state.lock().ended.take();
                let mut failed = BTreeSet::new();
                for tenant in ended {
                    if let Err(cause) = self.begin_time(&tenant).await {
                        tracing::warn!(%tenant, cause = %cause.problem, "that a host serves no more cannot be written; trying again");
                        failed.insert(tenant);
                    }
                }
                if !failed.is_empty() {
                    tokio::time::sleep(AGAIN).await;
                    self.state.lock().ended.add(failed);
                }
                told.notified().await;
            }
        };
        stop.run_until_cancelled(work).await;
    }

    async fn begin_time(&self, tenant: &TenantName) -> Answer<()> {
        // Looked at first: nearly always there is none, and nobody's turn is taken for that.
        if self.left().serving(tenant).is_empty() {
            return Ok(());
        }
        let _turn = self.turn(None, tenant).await?;
        let mut over = self.left().serving(tenant);
        {
            let state = self.state.lock();
            over.retain(|host| !state.routes_host(tenant, host));
        }
        if over.is_empty() {
            return Ok(());
        }
        let now = clock::millis();
        // Memory last: where the store does not take it, it is tried again.
        let mut next = self.left().of(tenant);
        next.extend(over.iter().map(|host| (host.clone(), now)));
        self.put_left(tenant, &next).await?;
        self.left().take_in(tenant, over.into_iter().map(|host| (host, now)), now);
        Ok(())
    }

    /// Lets every tenant have a host, and those that overlap with it, whoever gave them up. Of each tenant it is written
    /// first and then so: what the store did not take can be asked for again.
    pub(crate) async fn free_host(&self, host: &str) -> Answer<()> {
        check_host(host).map_err(|bad| {
            let refusal = Refusal::new(Code::RequestInvalid, bad.message);
            bad.help.into_iter().fold(refusal, Refusal::help)
        })?;
        let _turn = self.next(None).await?;
        let freed = self.left().without(host);
        if freed.is_empty() {
            let text = format!("no tenant gave up `{host}`, or a host that overlaps with it, in the last 24 hours");
            return Err(Refusal::new(Code::NotFound, text).help(
                "a tenant may have it that was given it with `sidereal tenant set NAME --host`, unless another has it",
            ));
        }
        for (tenant, kept) in &freed {
            self.put_left(tenant, kept).await?;
            self.left().free(tenant, host);
        }
        Ok(())
    }

    /// What was given up before this start.
    pub(crate) async fn resume_hosts(&self) -> Answer<()> {
        for entry in self.store.list(keys::LEFT).await?.entries {
            let Some(Ok(tenant)) = keys::parts(&entry.key).next().map(str::parse::<TenantName>) else { continue };
            let kept = self.left().take_in(&tenant, decode::<Hosts>(&entry)?, clock::millis());
            if kept.is_empty() {
                self.put_left(&tenant, &kept).await?;
            }
        }
        Ok(())
    }

    async fn put_left(&self, tenant: &TenantName, kept: &Hosts) -> Answer<()> {
        let key = keys::left(tenant);
        if kept.is_empty() {
            return self.remove(&key).await;
        }
        self.store.put(&key, encode(kept)?, Expect::Any, None).await?;
        Ok(())
    }
}

/// Who had it is not said: who else is here is nobody's business.
fn left_by_another(host: &str) -> Violation {
    let message = format!("host `{host}` is, or overlaps with, one that another tenant gave up less than 24 hours ago");
    Violation::new(rules::Code::RouteHostLeft, message).help(format!(
        "choose another host, deploy again tomorrow, or ask your operator: `sidereal route free '{host}'`"
    ))
}
