//! The first look after a start: what served when the node stopped serves again, before anything newer is tried.
//! Routes are there at once; requests wait the moment that the hosts need to be told their revisions.
//!
//! Where the node stopped while an app's data were moved and its link was about to follow, what served may no longer be
//! what the app's data are with. Its calls wait until whoever directs the move says with which revision they go on.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use api::copy::{CopyPhase, MoveRecord};
use futures::stream::StreamExt;
use model::{AppName, Revision, TenantName};
use store::keys::{self, RevisionRecord, Served};
use store::{Store, StoreError};
use tokio::sync::mpsc;

use super::Agent;
use super::wanted::{names, seconds};
use crate::converge::Verdict;
use crate::serving::Serving;
use crate::taking;
use crate::tenant::Prepared;
use crate::watch::Seen;

/// Revisions read at once.
const AT_ONCE: usize = 64;

impl Agent {
    /// Takes the first list of assignments and puts back what served.
    pub(super) async fn begin(&mut self, assigned: &mut mpsc::Receiver<Seen>) {
        let Some(seen) = assigned.recv().await else { return };
        let started = std::time::Instant::now();
        self.assigned(seen);
        let store = self.setup.store.clone();
        let prefix = keys::served_by(&self.setup.name);
        let (served, switching) = match futures::try_join!(served(store.as_ref(), &prefix), switching(store.as_ref())) {
            Ok(found) => found,
            Err(cause) => {
                // Every app is brought up as if it were new: slower, but the same in the end.
                tracing::warn!(%cause, "what served before the start cannot be read");
                Default::default()
            }
        };
        for (tenant, app) in switching {
            let revision = served.get(&(tenant.clone(), app.clone())).copied();
            self.hold(&tenant, &app, revision).await;
        }
        let mut wanted = Vec::new();
        for ((tenant, app), revision) in served {
            if self.accounts.get(&tenant).is_some_and(|account| account.apps.contains_key(&app)) {
                wanted.push((tenant, app, revision));
            } else {
                self.forget(&tenant, &app);
            }
        }
        let store = &store;
        let read = wanted.into_iter().map(|(tenant, app, revision)| async move {
            let prepared = read(store.as_ref(), &tenant, &app, revision).await;
            (tenant, app, prepared)
        });
        let found: Vec<_> = futures::stream::iter(read).buffer_unordered(AT_ONCE).collect().await;
        let count = found.len();
        for (tenant, app, prepared) in found {
            match prepared {
                Ok(prepared) => self.put_back(&tenant, &app, Arc::new(prepared)),
                Err(cause) => tracing::warn!(%tenant, %app, cause, "what served cannot be put back"),
            }
        }
        tracing::info!(apps = count, elapsed = ?started.elapsed(), "what served before the start is put back");
    }

    /// Lets the calls of an app wait from the first moment of its hosts on, those of what `served` and of what comes.
    async fn hold(&mut self, tenant: &TenantName, name: &AppName, served: Option<Revision>) {
        let Some(account) = self.accounts.get(tenant) else { return };
        let Some(wanted) = account.apps.get(name).and_then(|app| app.wanted.as_ref()) else { return };
        let (shared, hosts, revision) = (account.shared.clone(), account.refer(), served.unwrap_or(wanted.revision));
        shared.held.lock().await.insert(name.clone(), revision);
        // Whoever lets them go on finds the tenant, also where it has no host yet.
        self.setup.hosts.set(&shared, hosts);
        tracing::info!(%tenant, app = %name, "calls wait until a move of data goes on");
    }

    fn put_back(&mut self, tenant: &TenantName, name: &AppName, prepared: Arc<Prepared>) {
        let Some(account) = self.accounts.get_mut(tenant) else { return };
        let shards = account.shards();
        let barred = account.wanted(name).map(|wanted| wanted.verdict(prepared.revision, seconds()));
        let Some(app) = account.apps.get_mut(name) else { return };
        account.shared.add(prepared.clone());
        app.actual.serving = Some(prepared.revision);
        if let Some(Verdict::Barred(reason)) = barred {
            account.shared.bar(name, None);
            app.actual.suspended = Some(reason);
        } else {
            prepared.hold(tenant, &self.setup.services.externals);
        }
        let suspended = app.actual.suspended.is_some();
        let serving = Arc::new(Serving::new(&account.shared, prepared, &account.front, shards, suspended));
        app.serving = Some(serving.clone());
        self.setup.services.messaging.declare(tenant, name, &serving.prepared.messages);
        // Its hosts are only being started; each asks when it is ready.
        taking::set(&serving.prepared, !suspended);
        self.setup.index.set(tenant, name, Some(serving));
        self.setup.schedules.changed(tenant, name);
        self.routes_dirty = true;
    }
}

async fn served(store: &dyn Store, prefix: &str) -> Result<BTreeMap<(TenantName, AppName), Revision>, StoreError> {
    let entries = store.list(prefix).await?.entries.into_iter();
    let read = |entry: store::Entry| {
        let served: Served = serde_json::from_slice(&entry.value).ok()?;
        Some((names(&entry.key)?, served.revision))
    };
    Ok(entries.filter_map(read).collect())
}

/// The apps whose link was about to move, or had just moved.
async fn switching(store: &dyn Store) -> Result<BTreeSet<(TenantName, AppName)>, StoreError> {
    let entries = store.list(keys::COPIES).await?.entries.into_iter();
    let switching = |entry: store::Entry| {
        let record: MoveRecord = serde_json::from_slice(&entry.value).ok()?;
        let mut names = keys::parts(&entry.key);
        let app = (names.next()?.parse().ok()?, names.next()?.parse().ok()?);
        (record.view.phase == CopyPhase::Switching).then_some(app)
    };
    Ok(entries.filter_map(switching).collect())
}

async fn read(store: &dyn Store, tenant: &TenantName, app: &AppName, revision: Revision) -> Result<Prepared, String> {
    let entry = store.get(&keys::revision(tenant, app, revision)).await.map_err(|cause| cause.to_string())?;
    let entry = entry.ok_or_else(|| format!("revision {revision} is not in the store"))?;
    let record: RevisionRecord = serde_json::from_slice(&entry.value).map_err(|cause| cause.to_string())?;
    Prepared::recorded(revision, &record).map_err(|cause| cause.to_string())
}
