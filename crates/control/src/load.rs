//! Reading the whole state from the store: at start, and when a watch lost its place. Revisions are read one by one and
//! forgotten again, so that ten thousand apps take a few megabytes.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use api::problem::Code;
use futures::stream::{self, StreamExt as _};
use model::app::{LockedApp, Revision};
use model::observed::{AppObserved, Reason, Served};
use model::plan::{AppId, Assigned, Wanted};
use model::tenant::TenantSettings;
use model::{NodeName, ScheduleName, TenantName};
use serde::de::DeserializeOwned;
use store::keys::{self, Assignment, Head, NodeRecord, RevisionRecord};
use store::{Entry, Snapshot, Store, StoreError};

use crate::config::ControlError;
use crate::state::State;
use crate::writer::kept_for;
use crate::{clock, trust};

/// Records that are read at once.
const AT_ONCE: usize = 64;

/// The state, and how far each prefix has been read.
pub(crate) struct Loaded {
    pub(crate) state: State,
    pub(crate) tenants: BTreeMap<TenantName, Arc<TenantSettings>>,
    /// Deleted apps, whose history may still be there.
    pub(crate) deleted: Vec<(AppId, Head)>,
    /// A change of a key under the prefix counts only after this store revision.
    pub(crate) floors: [(&'static str, u64); 5],
}

/// Reads everything.
pub(crate) async fn load(store: &Arc<dyn Store>) -> Result<Loaded, ControlError> {
    let tenants_read = store.list(keys::TENANTS).await?;
    let heads = store.list(keys::APPS).await?;
    let nodes = store.list(keys::NODES).await?;
    let observed = store.list(keys::OBSERVED).await?;
    let assigned = store.list(keys::ASSIGNED).await?;
    let served = store.list(keys::SERVED).await?;
    let floor = |snapshot: &Snapshot| snapshot.revision;
    let floors = [
        (keys::TENANTS, floor(&tenants_read)),
        (keys::APPS, floor(&heads)),
        (keys::NODES, floor(&nodes)),
        (keys::OBSERVED, floor(&observed)),
        (keys::SERVED, floor(&served)),
    ];
    let mut loaded = Loaded { state: State::default(), tenants: BTreeMap::new(), deleted: Vec::new(), floors };
    for entry in &tenants_read.entries {
        if let Some(name) = keys::parts(&entry.key).next().and_then(|n| n.parse().ok()) {
            loaded.tenants.insert(name, Arc::new(decode(entry)?));
        }
    }
    apps(store, heads.entries, &mut loaded).await?;
    kept(store, &mut loaded).await?;
    for entry in &nodes.entries {
        if let Some(name) = keys::parts(&entry.key).next().and_then(|n| n.parse::<NodeName>().ok()) {
            loaded.state.node(&name).alive = true;
            loaded.state.nodes.extend(reported::<NodeRecord>(entry).map(|record| (name, record)));
        }
    }
    for entry in &observed.entries {
        if let Some((node, id)) = node_and_app(&entry.key) {
            let report = reported::<AppObserved>(entry);
            loaded.state.reports.entry(node).or_default().extend(report.map(|report| (id, report)));
        }
    }
    for entry in &assigned.entries {
        if let Some((node, id)) = node_and_app(&entry.key) {
            let Assignment { revision, suspended, expiry, older } = decode(entry)?;
            let (suspended, expiry) = (suspended.map(Box::new), expiry.map(Box::new));
            let assigned = Assigned { revision, suspended, expiry, older: older.map(Box::new) };
            loaded.state.node(&node).apps.insert(id, assigned);
        }
    }
    let mut serving = BTreeSet::new();
    for entry in &served.entries {
        if let Some((node, id)) = node_and_app(&entry.key)
            && let Some(served) = reported::<Served>(entry)
        {
            loaded.state.serves(&node, &id, Some(served));
            serving.insert(id);
        }
    }
    for id in serving {
        for revision in loaded.state.unjudged(&id) {
            let settings = loaded.tenants.get(&id.tenant).cloned().unwrap_or_default();
            let (app, judged) = older(store, &id, revision, &settings).await?;
            loaded.state.stands(&id, app.as_ref(), judged);
        }
    }
    Ok(loaded)
}

/// What is judged of a revision that a node serves in the place of the wanted one, and what it is. One that is not in the
/// app's history must not run: nobody knows any more who vouched for it, or it is of a deleted app of that name.
pub(crate) async fn older(
    store: &Arc<dyn Store>,
    id: &AppId,
    revision: Revision,
    settings: &TenantSettings,
) -> Result<(Option<LockedApp>, Wanted), StoreError> {
    // What was recorded next says whether this one was wanted.
    let next = recorded(store, id, Revision(revision.0.saturating_add(1))).await?;
    let was_wanted = next.is_some_and(|next| next.previous == Some(revision));
    let record = recorded(store, id, revision).await?.filter(|_| was_wanted);
    Ok(match record {
        Some(record) => {
            let judged = trust::wanted(&record, settings, clock::seconds());
            (Some(record.app), judged)
        }
        None => {
            let denied = Reason {
                code: Code::NotFound.as_str().to_owned(),
                message: format!("app `{}` has no revision {revision} any more", id.app),
                help: Some("deploy one that starts".to_owned()),
            };
            (None, Wanted { revision, denied: Some(Box::new(denied)), expiry: None })
        }
    })
}

async fn apps(store: &Arc<dyn Store>, heads: Vec<Entry>, loaded: &mut Loaded) -> Result<(), ControlError> {
    let read = |entry: Entry| async move {
        let Some(id) = app_id(&entry.key) else { return Ok(None) };
        let head: Head = decode(&entry)?;
        if head.deleted {
            return Ok(Some((id, entry.revision, head, None)));
        }
        let key = keys::revision(&id.tenant, &id.app, head.revision);
        let record = store.get(&key).await?;
        let missing = || ControlError::Unreadable { key, cause: "it is missing, and its app wants it".to_owned() };
        let record: RevisionRecord = decode(&record.ok_or_else(missing)?)?;
        Ok::<_, ControlError>(Some((id, entry.revision, head, Some(record))))
    };
    let now = clock::seconds();
    let mut records = stream::iter(heads).map(read).buffer_unordered(AT_ONCE);
    while let Some(found) = records.next().await {
        match found? {
            Some((id, at, _, Some(record))) => {
                let none = TenantSettings::default();
                let settings = loaded.tenants.get(&id.tenant).map_or(&none, |t| t);
                loaded.state.want(&id, at, &record.app, trust::wanted(&record, settings, now));
            }
            Some((id, _, head, None)) => loaded.deleted.push((id, head)),
            None => {}
        }
    }
    Ok(())
}

/// Counts what is kept of each tenant; nothing of it is read. Apps that are gone may still have something.
async fn kept(store: &Arc<dyn Store>, loaded: &mut Loaded) -> Result<(), ControlError> {
    for kind in [keys::REVISIONS, keys::CONFIGS, keys::SECRETS] {
        for (key, size) in store.sizes(kind).await? {
            if let Some(tenant) = kept_for(&key) {
                loaded.state.count(&tenant, 0, size);
            }
        }
    }
    Ok(())
}

/// A revision, where it is there and can be read.
async fn recorded(
    store: &Arc<dyn Store>,
    id: &AppId,
    revision: Revision,
) -> Result<Option<RevisionRecord>, StoreError> {
    let entry = store.get(&keys::revision(&id.tenant, &id.app, revision)).await?;
    Ok(entry.and_then(|entry| decode(&entry).ok()))
}

/// The app of `apps/<t>/<a>`.
pub(crate) fn app_id(key: &str) -> Option<AppId> {
    let mut parts = keys::parts(key);
    let (Some(tenant), Some(app), None) = (parts.next(), parts.next(), parts.next()) else { return None };
    Some(AppId { tenant: tenant.parse().ok()?, app: app.parse().ok()? })
}

/// Node and app of `assigned/<n>/<t>/<a>` or `observed/<n>/<t>/<a>`.
pub(crate) fn node_and_app(key: &str) -> Option<(NodeName, AppId)> {
    let mut parts = keys::parts(key);
    let (Some(node), Some(tenant), Some(app), None) = (parts.next(), parts.next(), parts.next(), parts.next()) else {
        return None;
    };
    Some((node.parse().ok()?, AppId { tenant: tenant.parse().ok()?, app: app.parse().ok()? }))
}

/// The app and the schedule of `schedules/<t>/<a>/<name>`.
pub(crate) fn schedule_of(key: &str) -> Option<(AppId, ScheduleName)> {
    let mut parts = keys::parts(key);
    let (Some(tenant), Some(app), Some(name), None) = (parts.next(), parts.next(), parts.next(), parts.next()) else {
        return None;
    };
    Some((AppId { tenant: tenant.parse().ok()?, app: app.parse().ok()? }, name.parse().ok()?))
}

/// What a node said. One that cannot be understood must not stop the others.
pub(crate) fn reported<T: DeserializeOwned>(entry: &Entry) -> Option<T> {
    decode(entry).inspect_err(|cause| tracing::error!(%cause, "a node's report is ignored")).ok()
}

fn decode<T: DeserializeOwned>(entry: &Entry) -> Result<T, ControlError> {
    serde_json::from_slice(&entry.value)
        .map_err(|cause| ControlError::Unreadable { key: entry.key.clone(), cause: cause.to_string() })
}
