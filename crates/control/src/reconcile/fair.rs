//! That no tenant holds up the others in the one task that serves all of them. Judging its apps anew reads each of their
//! records, and its owner may ask for that again and again: so it is done beside what is done for the others, once at a time
//! for each tenant. Of what is to be written down each round has so much of every tenant's.

use std::collections::{BTreeMap, BTreeSet};
use std::future::pending;
use std::sync::Arc;

use futures::future::{BoxFuture, FutureExt as _};
use futures::stream::{FuturesUnordered, StreamExt as _};
use model::TenantName;
use model::app::Revision;
use model::plan::{Action, AppId, Wanted};
use model::tenant::TenantSettings;
use store::Store;
use store::keys::{self, RevisionRecord};

use super::Reconciler;
use crate::http::Answer;
use crate::{clock, load, trust, writer};

/// What one round writes down for each tenant, assignments.
pub(super) const SHARE: usize = 256;

/// How far the store was followed.
#[derive(Debug, Clone, Default)]
pub(crate) struct Settled {
    /// The store revision up to which everything was seen.
    pub(crate) seen: u64,
    /// Tenants of which not everything was judged, or not everything told to their nodes.
    pub(crate) behind: BTreeSet<TenantName>,
}

impl Settled {
    /// Whether what was written for a tenant at store revision `at` is carried out.
    pub(crate) fn is(&self, tenant: &TenantName, at: u64) -> bool {
        self.seen >= at && !self.behind.contains(tenant)
    }
}

/// What of a round was not carried out.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Left {
    /// Something failed: it is tried again after a pause.
    pub(super) failed: bool,
    /// There was more than one round does.
    pub(super) more: bool,
}

/// What this round does, at most `most` actions of each tenant, and the apps whose turn is in a later one.
pub(super) fn share(actions: Vec<Action>, most: usize) -> (Vec<Action>, BTreeSet<AppId>) {
    let mut counts = BTreeMap::<TenantName, usize>::new();
    let (mut now, mut later) = (Vec::new(), BTreeSet::new());
    for action in actions {
        let (_, app) = action.target();
        let count = counts.entry(app.tenant.clone()).or_default();
        if *count < most {
            *count += 1;
            now.push(action);
        } else {
            later.insert(app.clone());
        }
    }
    (now, later)
}

/// What is to be judged of a tenant's apps.
pub(super) struct Revisions {
    /// What is wanted of each.
    wanted: Vec<(AppId, Revision)>,
    /// What serves in the place of that.
    older: Vec<(AppId, Revision)>,
}

/// The apps of a tenant, judged again.
pub(super) struct Judged {
    pub(super) tenant: TenantName,
    pub(super) apps: Answer<Vec<(AppId, Wanted)>>,
}

/// The tenants whose apps are being judged again.
#[derive(Default)]
pub(super) struct Reviews {
    of: BTreeSet<TenantName>,
    running: FuturesUnordered<BoxFuture<'static, Judged>>,
}

impl Reviews {
    /// Those whose apps are being judged.
    pub(super) fn of(&self) -> &BTreeSet<TenantName> {
        &self.of
    }

    /// Begins with a tenant of which nobody is judged now.
    pub(super) fn begin(
        &mut self,
        store: Arc<dyn Store>,
        tenant: TenantName,
        settings: Arc<TenantSettings>,
        revisions: Revisions,
    ) {
        self.of.insert(tenant.clone());
        let judging = async move {
            let apps = judge(&store, &settings, revisions).await;
            Judged { tenant, apps }
        };
        self.running.push(judging.boxed());
    }

    /// The next tenant whose apps are all judged.
    pub(super) async fn next(&mut self) -> Judged {
        match self.running.next().await {
            Some(judged) => {
                self.of.remove(&judged.tenant);
                judged
            }
            None => pending().await,
        }
    }
}

async fn judge(
    store: &Arc<dyn Store>,
    settings: &TenantSettings,
    Revisions { wanted, older }: Revisions,
) -> Answer<Vec<(AppId, Wanted)>> {
    let mut judged = Vec::new();
    for (id, revision) in wanted {
        let entry = store.get(&keys::revision(&id.tenant, &id.app, revision)).await?;
        let record = entry.map(|entry| writer::decode::<RevisionRecord>(&entry)).transpose()?;
        // What is known of the app is kept, and not the app. One that is gone has no record any more.
        judged.extend(record.map(|record| (id, trust::wanted(&record, settings, clock::seconds()))));
        // This thread is everybody's.
        tokio::task::yield_now().await;
    }
    for (id, revision) in older {
        let (_, of_older) = load::older(store, &id, revision, settings).await?;
        judged.push((id, of_older));
        tokio::task::yield_now().await;
    }
    Ok(judged)
}

impl Reconciler {
    /// Begins to judge apps again, of every tenant where that is to be done and is not under way.
    pub(super) fn review(&mut self, reviews: &mut Reviews) {
        let begin: Vec<TenantName> = self.stale.difference(reviews.of()).cloned().collect();
        for tenant in begin {
            self.stale.remove(&tenant);
            let settings = self.tenants.get(&tenant).cloned().unwrap_or_default();
            let own = |(id, revision): (&AppId, Revision)| (id.clone(), revision);
            let revisions = {
                let state = self.state.lock();
                let (wanted, older) = (state.apps_of(&tenant).map(own), state.older_of(&tenant).map(own));
                Revisions { wanted: wanted.collect(), older: older.collect() }
            };
            reviews.begin(self.store.clone(), tenant, settings, revisions);
        }
    }

    /// Takes in what came of it. Where the settings have changed meanwhile, only that an app must not run counts: what may is
    /// said when all were judged by those of now.
    pub(super) fn judged(&mut self, Judged { tenant, apps }: Judged) -> Answer<()> {
        let outdated = self.stale.contains(&tenant);
        let mut state = self.state.lock();
        for (id, judged) in apps? {
            // The head may have moved meanwhile; the change that says so was judged by the new settings.
            if (judged.denied.is_some() || !outdated) && state.rejudge(&id, judged) {
                self.dirty.insert(id);
            }
        }
        Ok(())
    }

    /// Tells whoever waits for it how far all is.
    pub(super) fn settle(&self, seen: u64, reviews: &Reviews) {
        let acting = self.dirty.iter().map(|id| &id.tenant);
        let behind = acting.chain(&self.stale).chain(reviews.of()).cloned().collect();
        self.settled.send_replace(Settled { seen, behind });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_round_has_so_much_of_every_tenant_and_the_rest_comes_later() {
        let id =
            |tenant: &str, n: usize| AppId { tenant: tenant.parse().unwrap(), app: format!("a{n}").parse().unwrap() };
        let unassign = |app: AppId| Action::Unassign { node: "n".parse().unwrap(), app };
        let many = (0..5).map(|n| id("a", n));
        let few = (0..2).map(|n| id("b", n));
        let (now, later) = share(many.chain(few).map(unassign).collect(), 2);
        let now: Vec<&AppId> = now.iter().map(|action| action.target().1).collect();
        assert_eq!(now, [&id("a", 0), &id("a", 1), &id("b", 0), &id("b", 1)]);
        assert_eq!(later, BTreeSet::from([id("a", 2), id("a", 3), id("a", 4)]));
    }

    #[test]
    fn whoever_waits_for_a_tenant_does_not_wait_for_another() {
        let settled = Settled { seen: 7, behind: ["slow".parse().unwrap()].into() };
        let is = |tenant: &str, at| settled.is(&tenant.parse().unwrap(), at);
        assert_eq!((is("quick", 7), is("quick", 8), is("slow", 7)), (true, false, false));
    }
}
