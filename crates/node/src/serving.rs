//! A revision that answers requests, as the ingress needs it: made once when the revision starts to serve, read from
//! then on.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use http::HeaderValue;
use model::{AppName, ComponentName, TenantName};

use crate::converge;
use crate::front::Front;
use crate::ingress::{RouteEntry, ShardSet, Target};
use crate::tenant::{Prepared, Tenant};

/// A revision with its targets.
#[derive(Debug)]
pub(crate) struct Serving {
    pub(crate) prepared: Arc<Prepared>,
    /// Routes answer 503: the app is suspended.
    pub(crate) suspended: bool,
    /// The one shard it runs on, if it is pinned.
    pub(crate) home: Option<u32>,
    targets: BTreeMap<ComponentName, Arc<Target>>,
    entries: Vec<RouteEntry>,
}

impl Serving {
    /// The targets of a revision on the hosts behind `front`, of which there are `shards`.
    pub(crate) fn new(tenant: &Tenant, prepared: Arc<Prepared>, front: &Front, shards: u32, suspended: bool) -> Self {
        let home = prepared.pinned.then(|| converge::home(&prepared.app, shards));
        let set = match (suspended, home) {
            (true, _) => ShardSet::suspended(),
            (false, Some(home)) => front.only(home),
            (false, None) => front.all(),
        };
        let targets: BTreeMap<_, _> = prepared
            .components
            .iter()
            .filter_map(|(name, _)| Some((name.clone(), Arc::new(target(tenant, &prepared, name, set.clone())?))))
            .collect();
        let entry = |route: &model::Route| {
            Some(RouteEntry {
                tenant: tenant.name.clone(),
                app: prepared.app.clone(),
                revision: prepared.revision,
                route: route.clone(),
                target: targets.get(&route.component)?.clone(),
            })
        };
        let entries = prepared.routes.iter().filter_map(entry).collect();
        Self { prepared, suspended, home, targets, entries }
    }

    /// What the route table says of it.
    pub(crate) fn entries(&self) -> &[RouteEntry] {
        &self.entries
    }

    /// The target of a component, or of the one that is meant where none is named.
    pub(crate) fn target(&self, component: Option<&ComponentName>) -> Option<Arc<Target>> {
        self.targets.get(component.or(self.prepared.main.as_ref())?).cloned()
    }

    /// Resolves when no request that was routed here is under way any more, or after `patience`. To be called after
    /// the route table was swapped, with the last reference to this revision.
    pub(crate) async fn idle(self: Arc<Self>, patience: Duration) {
        let targets: Vec<_> = self.targets.values().map(Arc::downgrade).collect();
        drop(self);
        let idle = async {
            // Every reader of the old table and every request under way holds its target. Nobody tells when the last
            // one goes; looking costs nothing.
            while targets.iter().any(|target| target.strong_count() > 0) {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        if tokio::time::timeout(patience, idle).await.is_err() {
            tracing::debug!(?patience, "requests to a revision that was replaced are still under way");
        }
    }
}

/// Where requests to a component of a revision go. Names have no character that a header cannot have, so every component
/// of the revision has one.
pub(crate) fn target(
    tenant: &Tenant,
    prepared: &Prepared,
    component: &ComponentName,
    shards: Arc<ShardSet>,
) -> Option<Target> {
    let (_, request_body) = prepared.components.iter().find(|(name, _)| name == component)?;
    let header = HeaderValue::try_from(format!("{}/{}/{component}", prepared.app, prepared.revision)).ok()?;
    let preference = converge::preference(&prepared.app);
    Some(Target { header, shards, preference, request_body: *request_body, gate: tenant.gate.clone() })
}

/// What serves now, for calls that do not come through the ingress.
#[derive(Debug, Default)]
pub(crate) struct ServingIndex(RwLock<HashMap<(TenantName, AppName), Arc<Serving>>>);

impl ServingIndex {
    pub(crate) fn get(&self, tenant: &TenantName, app: &AppName) -> Option<Arc<Serving>> {
        let all = self.0.read().unwrap_or_else(PoisonError::into_inner);
        all.get(&(tenant.clone(), app.clone())).cloned()
    }

    /// Apps that serve.
    pub(crate) fn len(&self) -> u64 {
        self.0.read().unwrap_or_else(PoisonError::into_inner).len() as u64
    }

    pub(crate) fn set(&self, tenant: &TenantName, app: &AppName, serving: Option<Arc<Serving>>) {
        let mut all = self.0.write().unwrap_or_else(PoisonError::into_inner);
        match serving {
            Some(serving) => all.insert((tenant.clone(), app.clone()), serving),
            None => all.remove(&(tenant.clone(), app.clone())),
        };
    }
}
