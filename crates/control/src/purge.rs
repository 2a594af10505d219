//! The data of deleted apps, where that was asked for: the one task that has the nodes remove it. What is to go is
//! written down in the store first, so that it goes also when this process ends in between, and so that no new app of
//! that name is deployed over it meanwhile.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use api::node::NodeApi;
use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use model::TenantName;
use model::plan::AppId;
use store::{Entry, Expect, Store, keys};
use tokio_util::sync::CancellationToken;

use crate::load::app_id;
use crate::state::Shared;

/// The pause before what could not be removed yet is tried again.
const AGAIN: Duration = Duration::from_millis(500);
/// Tenants whose data are removed at once. Of each it is one app after the other: whoever has much waits for himself.
const AT_ONCE: usize = 16;

/// The task's own things.
pub(crate) struct Purger {
    pub(crate) store: Arc<dyn Store>,
    pub(crate) nodes: Arc<dyn NodeApi>,
    pub(crate) state: Arc<Shared>,
}

impl Purger {
    /// Runs until told to stop.
    pub(crate) async fn run(self, stop: CancellationToken) {
        let (mut rounds, mut row) = (FuturesUnordered::new(), Row::default());
        loop {
            let listed = self.store.list(keys::PURGES).await;
            let mut seen = None;
            match listed {
                Ok(snapshot) => {
                    seen = Some(snapshot.revision);
                    rounds.extend(row.next(by_tenant(&snapshot.entries)).into_iter().map(|of| self.round(of)));
                }
                Err(cause) => tracing::warn!(%cause, "which data is to be removed cannot be read; trying again"),
            }
            tokio::select! {
                () = stop.cancelled() => return,
                Some(tenant) = rounds.next() => row.ended(&tenant),
                () = self.more(seen, &row) => {}
            }
        }
    }

    /// Waits for something to do for a tenant of which nothing is being removed.
    async fn more(&self, seen: Option<u64>, row: &Row) {
        if let Some(seen) = seen {
            let mut changes = self.store.watch(keys::PURGES, seen);
            while let Some(Ok(change)) = changes.next().await {
                let waits = |id: AppId| !row.under_way.contains(&id.tenant);
                if change.value.is_some() && app_id(&change.key).is_some_and(waits) {
                    return;
                }
            }
        }
        tokio::time::sleep(AGAIN).await;
    }

    /// Has removed what can be of a tenant; answers with its name.
    async fn round(&self, (tenant, apps): (TenantName, Vec<AppId>)) -> TenantName {
        let mut left = false;
        for id in &apps {
            left |= !self.purge(id).await;
        }
        if left {
            tokio::time::sleep(AGAIN).await;
        }
        tenant
    }

    async fn purge(&self, id: &AppId) -> bool {
        // A node that has not been told yet would start the app again, for example after a restart.
        let assigned = self.state.lock().observed.nodes.values().any(|node| node.apps.contains_key(id));
        if assigned {
            return false;
        }
        if let Err(problem) = self.nodes.purge(&id.tenant, &id.app).await {
            tracing::debug!(tenant = %id.tenant, app = %id.app, %problem, "data of a deleted app stays for now");
            return false;
        }
        match self.store.delete(&keys::purge(&id.tenant, &id.app), Expect::Any).await {
            Ok(_) => {
                tracing::info!(tenant = %id.tenant, app = %id.app, "the data of a deleted app is removed");
                true
            }
            Err(cause) => {
                tracing::warn!(tenant = %id.tenant, app = %id.app, %cause, "that data is removed cannot be written; trying again");
                false
            }
        }
    }
}

fn by_tenant(entries: &[Entry]) -> BTreeMap<TenantName, Vec<AppId>> {
    let mut all = BTreeMap::<TenantName, Vec<AppId>>::new();
    for id in entries.iter().filter_map(|entry| app_id(&entry.key)) {
        all.entry(id.tenant.clone()).or_default().push(id);
    }
    all
}

/// Whose turn it is: of all tenants in a circle, so that none comes again before the others.
#[derive(Default)]
struct Row {
    under_way: BTreeSet<TenantName>,
    last: Option<TenantName>,
}

impl Row {
    /// Takes those who are next, as many as there is room for.
    fn next(&mut self, all: BTreeMap<TenantName, Vec<AppId>>) -> Vec<(TenantName, Vec<AppId>)> {
        let is_later = |tenant: &TenantName| self.last.as_ref().is_none_or(|last| tenant > last);
        let (later, again): (Vec<_>, Vec<_>) = all.into_iter().partition(|(tenant, _)| is_later(tenant));
        let mut next = Vec::new();
        for (tenant, apps) in later.into_iter().chain(again) {
            if self.under_way.len() < AT_ONCE && self.under_way.insert(tenant.clone()) {
                self.last = Some(tenant.clone());
                next.push((tenant, apps));
            }
        }
        next
    }

    fn ended(&mut self, tenant: &TenantName) {
        self.under_way.remove(tenant);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tenants_come_in_a_circle_and_each_once_at_a_time() {
        let all = |count: usize| {
            let of = |n: usize| -> (TenantName, Vec<AppId>) { (format!("t{n:02}").parse().unwrap(), Vec::new()) };
            (0..count).map(of).collect::<BTreeMap<_, _>>()
        };
        let names = |next: Vec<(TenantName, Vec<AppId>)>| -> Vec<String> {
            next.into_iter().map(|(tenant, _)| tenant.to_string()).collect()
        };
        let mut row = Row::default();
        assert_eq!(row.next(all(AT_ONCE + 2)).len(), AT_ONCE);
        assert!(row.next(all(AT_ONCE + 2)).is_empty(), "no room");
        // Who had a turn has more: those who had none go before him.
        for (ended, next) in [("t00", "t16"), ("t01", "t17"), ("t02", "t00"), ("t03", "t01")] {
            row.ended(&ended.parse().unwrap());
            assert_eq!(names(row.next(all(AT_ONCE + 2))), [next]);
        }
        let mut few = Row::default();
        assert_eq!(names(few.next(all(2))), ["t00", "t01"]);
        assert!(few.next(all(2)).is_empty(), "both are under way");
    }
}
