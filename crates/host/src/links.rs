//! From the links of a revision to the bindings of its components. A provider of an app is opened once and shared by
//! the app's components and revisions for as long as one of them holds it; no two apps share one.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use api::services::client::KvClient;
use model::{AppName, ComponentName, LockedApp, ProviderKind, ProviderName, ProviderSpec, TenantName};
use providers::config::ConfigValues;
use providers::dial::Dialer;
use providers::keyvalue::{Backend, KeyValueLinks, Memory, Redis};
use runtime::Bindings;

use crate::embedded::Embedded;
use crate::error::StartError;

/// What one provider of kind `keyvalue-memory` may hold, bytes.
const MEMORY: usize = 64 << 20;
/// The only contract that is linked in this version.
const KEYVALUE: &str = "wasi:keyvalue";

/// A provider of an app.
pub(crate) struct Opened {
    name: ProviderName,
    backend: Arc<dyn Backend>,
    redis: Option<Arc<Redis>>,
}

impl Opened {
    /// Fails where no call could succeed.
    pub(crate) async fn check(&self) -> Result<(), StartError> {
        let Some(redis) = &self.redis else { return Ok(()) };
        redis.check().await.map_err(|cause| StartError::Provider { provider: self.name.clone(), cause })
    }
}

type Known = HashMap<(AppName, ProviderName), (ProviderSpec, Weak<Opened>)>;

/// Every provider that is open in this host.
pub(crate) struct Providers {
    tenant: TenantName,
    store: Arc<KvClient>,
    dialer: Arc<dyn Dialer>,
    known: Mutex<Known>,
}

impl Providers {
    pub(crate) fn new(tenant: TenantName, store: Arc<KvClient>, dialer: Arc<dyn Dialer>) -> Self {
        Self { tenant, store, dialer, known: Mutex::default() }
    }

    /// The providers that the links of `app` name.
    pub(crate) fn open(&self, app: &LockedApp) -> Result<BTreeMap<ProviderName, Arc<Opened>>, StartError> {
        let mut opened = BTreeMap::new();
        for link in &app.links {
            let bad = |why| StartError::BadLink {
                component: link.component.clone(),
                contract: link.contract.clone(),
                label: link.label.clone(),
                provider: link.provider.clone(),
                why,
            };
            let spec = match app.providers.get(&link.provider) {
                Some(spec) => spec.clone(),
                None => built_in(&link.provider).ok_or_else(|| bad("which is not declared"))?,
            };
            if link.contract.to_string() != spec.kind.contract() || spec.kind.contract() != KEYVALUE {
                return Err(bad("which answers another contract"));
            }
            if !opened.contains_key(&link.provider) {
                opened.insert(link.provider.clone(), self.shared(&app.name, &link.provider, spec)?);
            }
        }
        Ok(opened)
    }

    fn shared(&self, app: &AppName, name: &ProviderName, spec: ProviderSpec) -> Result<Arc<Opened>, StartError> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (app.clone(), name.clone());
        if let Some(open) = known.get(&key).filter(|(as_was, _)| *as_was == spec).and_then(|(_, open)| open.upgrade()) {
            return Ok(open);
        }
        let (backend, redis): (Arc<dyn Backend>, _) = match spec.kind {
            ProviderKind::KeyvalueMemory => (Arc::new(Memory::new(MEMORY)), None),
            ProviderKind::KeyvalueEmbedded => {
                (Arc::new(Embedded::new(self.store.clone(), app.clone(), name.clone())), None)
            }
            ProviderKind::KeyvalueRedis => {
                let settings = |cause| StartError::Settings { provider: name.clone(), cause };
                let url = spec.config.get("url").ok_or(providers::keyvalue::redis::SettingsError::NoUrl);
                let redis = Redis::new(&self.tenant, app, name, url.map_err(settings)?, self.dialer.clone());
                let redis = Arc::new(redis.map_err(settings)?);
                (redis.clone(), Some(redis))
            }
        };
        let fresh = Arc::new(Opened { name: name.clone(), backend, redis });
        known.insert(key, (spec, Arc::downgrade(&fresh)));
        Ok(fresh)
    }

    /// Forgets what nobody holds any more.
    pub(crate) fn prune(&self) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.retain(|_, (_, open)| open.strong_count() > 0);
    }
}

fn built_in(name: &ProviderName) -> Option<ProviderSpec> {
    let (_, kind) = ProviderKind::BUILT_IN.iter().find(|(known, _)| *known == name.as_str())?;
    Some(ProviderSpec { kind: *kind, config: BTreeMap::new(), operator: false })
}

/// What one component is given.
pub(crate) fn bindings(
    app: &LockedApp,
    component: &ComponentName,
    config: &BTreeMap<String, String>,
    opened: &BTreeMap<ProviderName, Arc<Opened>>,
) -> Arc<Bindings> {
    let mut bindings = Bindings::new();
    if !config.is_empty() {
        bindings = bindings.with(Arc::new(ConfigValues(config.clone())));
    }
    let mut links = app.links.iter().filter(|link| link.component == *component).peekable();
    if links.peek().is_some() {
        let links = links.fold(KeyValueLinks::new(), |links, link| match opened.get(&link.provider) {
            Some(open) => {
                let bucket = link.config.get("bucket").map_or(link.label.as_str(), String::as_str);
                links.with(&link.label, open.backend.clone(), bucket)
            }
            None => links,
        });
        bindings = bindings.with(Arc::new(links));
    }
    Arc::new(bindings)
}
