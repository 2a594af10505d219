//! The first look after a start: what served when the node stopped serves again, before anything newer is tried.
//! Routes are there at once; requests wait the moment that the hosts need to be told their revisions.

use std::collections::BTreeMap;
use std::sync::Arc;

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
        let served = match served(self.setup.store.as_ref(), &keys::served_by(&self.setup.name)).await {
            Ok(served) => served,
            Err(cause) => {
                // Every app is brought up as if it were new: slower, but the same in the end.
                tracing::warn!(%cause, "what served before the start cannot be read");
                BTreeMap::new()
            }
        };
        let mut wanted = Vec::new();
        for ((tenant, app), revision) in served {
            if self.accounts.get(&tenant).is_some_and(|account| account.apps.contains_key(&app)) {
                wanted.push((tenant, app, revision));
            } else {
                self.forget(&tenant, &app);
            }
        }
        let store = &self.setup.store;
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

async fn read(store: &dyn Store, tenant: &TenantName, app: &AppName, revision: Revision) -> Result<Prepared, String> {
    let entry = store.get(&keys::revision(tenant, app, revision)).await.map_err(|cause| cause.to_string())?;
    let entry = entry.ok_or_else(|| format!("revision {revision} is not in the store"))?;
    let record: RevisionRecord = serde_json::from_slice(&entry.value).map_err(|cause| cause.to_string())?;
    Prepared::of(revision, &record.app).map_err(|cause| cause.to_string())
}
