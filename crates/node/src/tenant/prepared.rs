//! One revision of an app, reduced to what the node needs of it again and again.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, PoisonError};

use api::metrics::LinkKey;
use bytes::{BufMut, Bytes, BytesMut};
use model::vouched::Vouched;
use model::{
    AppName, ComponentName, Digest, LockedApp, ProviderKind, ProviderName, ProviderSpec, Revision, Route, SecretName,
    TenantName, World,
};
use store::keys::RevisionRecord;

use crate::asks::{self, Asks};
use crate::external::{Externals, Lease};
use crate::messaging::{self, Declared};
use crate::probe::{self, Question};
use crate::schedules::{self, Planned};

/// One revision, reduced to what the node needs again and again.
#[derive(Debug)]
pub struct Prepared {
    /// The app.
    pub app: AppName,
    /// Its revision.
    pub revision: Revision,
    /// Has state in the memory of a host, so it runs on one shard only.
    pub pinned: bool,
    /// Every component: its name and its request body limit, bytes.
    pub components: Vec<(ComponentName, u64)>,
    /// Every link.
    pub links: Vec<LinkKey>,
    /// The component that is meant where none is named.
    pub main: Option<ComponentName>,
    /// Compiled code it needs.
    pub code: Vec<(Digest, World)>,
    /// What the ingress sends to it.
    pub routes: Vec<Route>,
    /// Secrets it names, and may have revealed.
    pub secrets: BTreeSet<SecretName>,
    /// Its key-value providers whose keys the node keeps.
    pub(crate) keys: BTreeSet<ProviderName>,
    /// Which connections its components and providers may ask for.
    pub asks: Asks,
    /// What it takes from the brokers of the node.
    pub messages: Vec<Declared>,
    /// Has a component that takes messages, from whichever broker, or is told of changes.
    pub takes: bool,
    /// What the clock calls of it.
    pub schedules: Arc<[Planned]>,
    /// Takes messages now: it serves, and is not suspended.
    pub taking: AtomicBool,
    /// Its external providers that a link names.
    pub externals: Vec<(ProviderName, ProviderSpec)>,
    /// What it stands on, for as long as calls of it are under way.
    pub(crate) vouched: Vouched,
    /// What its components are asked before it serves.
    pub(crate) health: Vec<Question>,
    /// Keeps their processes running, from when it is brought up until it is forgotten, but while it is suspended.
    pub leases: Mutex<Vec<Lease>>,
    /// The [`LockedApp`] as JSON: sent to every host that runs it, now and after each restart.
    json: Bytes,
}

impl Prepared {
    /// Reduces a revision that was recorded.
    ///
    /// # Errors
    /// When it cannot be written as JSON.
    pub fn recorded(revision: Revision, record: &RevisionRecord) -> Result<Self, serde_json::Error> {
        let vouched = Vouched::of(&record.app, &record.claims);
        Ok(Self { vouched, ..Self::of(revision, &record.app)? })
    }

    /// The same of one without a record, and so without a signer.
    ///
    /// # Errors
    /// When it cannot be written as JSON.
    pub fn of(revision: Revision, app: &LockedApp) -> Result<Self, serde_json::Error> {
        let in_memory = |link: &model::Link| {
            let declared = app.providers.get(&link.provider).map(|spec| spec.kind);
            let built_in = || ProviderKind::BUILT_IN.iter().find(|(name, _)| *name == link.provider.as_str());
            declared.or_else(|| built_in().map(|(_, kind)| *kind)) == Some(ProviderKind::KeyvalueMemory)
        };
        let mut code: Vec<_> = app.components.values().map(|c| (c.digest, c.world)).collect();
        code.sort_unstable();
        code.dedup();
        let serves_http = |component: &model::LockedComponent| {
            component.exports.iter().any(|export| export.to_string().starts_with("wasi:http/"))
        };
        let mut mains = app.components.iter().filter(|(_, c)| serves_http(c)).map(|(name, _)| name);
        let main = match (mains.next(), mains.next()) {
            (Some(name), None) => Some(name.clone()),
            _ => None,
        };
        Ok(Self {
            app: app.name.clone(),
            revision,
            pinned: app.links.iter().any(in_memory),
            components: app.components.iter().map(|(name, c)| (name.clone(), c.limits.request_body.0)).collect(),
            links: app.links.iter().map(|link| key(&app.name, link)).collect(),
            main,
            code,
            routes: app.routes.clone(),
            secrets: model::secret::names(app),
            keys: app
                .providers
                .iter()
                .filter(|(name, spec)| keeps_keys(name, spec))
                .map(|(name, _)| name.clone())
                .collect(),
            asks: Asks::of(app),
            messages: messaging::declared(app),
            takes: model::messaging::subscriptions(app).next().is_some() || model::watch::watches(app).next().is_some(),
            schedules: schedules::planned(app).into(),
            taking: AtomicBool::new(false),
            externals: externals(app),
            vouched: Vouched::of(app, &BTreeMap::new()),
            health: probe::questions(app),
            leases: Mutex::default(),
            json: serde_json::to_vec(app)?.into(),
        })
    }

    /// Has the processes of its external providers run, for as long as it is there.
    pub fn hold(&self, tenant: &TenantName, externals: &Externals) {
        let lease =
            |(name, spec): &(ProviderName, ProviderSpec)| externals.lease(tenant, &self.app, self.revision, name, spec);
        let leases = &mut *self.leases.lock().unwrap_or_else(PoisonError::into_inner);
        if leases.is_empty() {
            leases.extend(self.externals.iter().map(lease));
        }
    }

    /// The processes of its external providers end, where no other revision has them run.
    pub(crate) fn release(&self) {
        self.leases.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// The JSON text of the [`api::agent::StartRequest`] for this revision.
    pub fn start_request(&self, load: bool) -> Bytes {
        let mut text = BytesMut::with_capacity(self.json.len() + 32);
        text.put_slice(b"{\"app\":");
        text.put_slice(&self.json);
        text.put_slice(if load { b",\"load\":true}" } else { b",\"load\":false}" });
        text.freeze()
    }
}

fn key(app: &AppName, link: &model::Link) -> LinkKey {
    LinkKey {
        app: app.clone(),
        component: link.component.clone(),
        contract: link.contract.clone(),
        label: link.label.clone(),
        provider: link.provider.clone(),
    }
}

/// Whether the node keeps the keys of this provider. Under the other built-in names it keeps what is its own, as
/// messages under `durable`.
pub(super) fn keeps_keys(name: &ProviderName, spec: &ProviderSpec) -> bool {
    spec.kind == ProviderKind::KeyvalueEmbedded && !is_built_in_otherwise(name)
}

/// Whether it is the name of a built-in provider of another kind.
pub(super) fn is_built_in_otherwise(name: &ProviderName) -> bool {
    let other = |known: &str, kind: ProviderKind| known == name.as_str() && kind != ProviderKind::KeyvalueEmbedded;
    ProviderKind::BUILT_IN.into_iter().any(|(known, kind)| other(known, kind))
}

/// The external providers that a host of the app connects to.
fn externals(app: &LockedApp) -> Vec<(ProviderName, ProviderSpec)> {
    let used = asks::used(app);
    let external = app.providers.iter().filter(|(_, spec)| spec.kind == ProviderKind::External);
    let wanted = external.filter(|(name, _)| used.contains(name));
    wanted.map(|(name, spec)| (name.clone(), spec.clone())).collect()
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// With nothing but this code.
    pub(in crate::tenant) fn prepared(app: &str, revision: u64, code: u8) -> Arc<Prepared> {
        Arc::new(Prepared {
            app: app.parse().unwrap(),
            revision: Revision(revision),
            pinned: false,
            components: Vec::new(),
            links: Vec::new(),
            main: None,
            code: vec![(Digest::of(&[code]), World::P2)],
            routes: Vec::new(),
            secrets: BTreeSet::new(),
            keys: BTreeSet::new(),
            asks: Asks::default(),
            messages: Vec::new(),
            takes: false,
            schedules: Arc::new([]),
            taking: AtomicBool::new(false),
            externals: Vec::new(),
            vouched: Vouched::default(),
            health: Vec::new(),
            leases: Mutex::default(),
            json: Bytes::from_static(b"{}"),
        })
    }

    #[test]
    fn a_start_request_is_the_agent_api_s() {
        let app: LockedApp = serde_json::from_str(r#"{"name":"a","components":{}}"#).unwrap();
        let prepared = Prepared::of(Revision(1), &app).unwrap();
        for load in [true, false] {
            let request: api::agent::StartRequest = serde_json::from_slice(&prepared.start_request(load)).unwrap();
            assert_eq!(request, api::agent::StartRequest { app: app.clone(), load });
        }
    }
}
