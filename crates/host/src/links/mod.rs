//! From the links of a revision to the bindings of its components. A provider of an app is opened once and shared by
//! the app's components and revisions for as long as one of them holds it; no two apps share one.

mod blobstore;
mod keyvalue;
mod messaging;
mod secrets;
pub(crate) mod siblings;

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use api::services::client::{CallsClient, KvClient};
use api::services::messaging::BrokerKind;
use model::{
    AppName, ComponentName, Label, Link, LockedApp, ProviderKind, ProviderName, ProviderSpec, Revision, TenantName,
};
use providers::blobstore::BlobLinks;
use providers::config::ConfigValues;
use providers::dial::Dialer;
use providers::http_out::Tls;
use providers::keyvalue::{ComponentStore, KeyValueLinks};
use providers::messaging::MessagingLink;
use providers::meter::LinkMeter;
use providers::secrets::{Credentials, Resolver, SecretLinks};
use runtime::{Bindings, Peers};
use siblings::{Sibling, Siblings};

use crate::error::StartError;
use crate::taking::Taken;
use crate::totals::Totals;

/// A provider of an app.
pub(crate) struct Opened {
    name: ProviderName,
    kind: ProviderKind,
    backing: Backing,
}

/// What a provider is in this process, by contract. Each contract opens its own in a file of its own.
pub(crate) enum Backing {
    /// `wasi:keyvalue`.
    KeyValue(keyvalue::Store),
    /// `wasmcloud:secrets`.
    Secrets(secrets::Source),
    /// `wasi:blobstore`.
    Blobstore(blobstore::Store),
    /// `wasmcloud:messaging`.
    Messaging(messaging::Broker),
    /// Another component of the app.
    Component(ComponentName),
}

impl Opened {
    /// Its keys, where it is a key-value store.
    pub(crate) fn keyvalue(&self) -> Option<&keyvalue::Store> {
        match &self.backing {
            Backing::KeyValue(store) => Some(store),
            Backing::Blobstore(_) | Backing::Messaging(_) | Backing::Secrets(_) | Backing::Component(_) => None,
        }
    }

    /// Its objects, where it is an object store.
    pub(crate) fn blobstore(&self) -> Option<&blobstore::Store> {
        match &self.backing {
            Backing::Blobstore(store) => Some(store),
            Backing::KeyValue(_) | Backing::Messaging(_) | Backing::Secrets(_) | Backing::Component(_) => None,
        }
    }

    /// Fails where no call could succeed.
    pub(crate) async fn check(&self) -> Result<(), StartError> {
        match &self.backing {
            Backing::KeyValue(store) => store.check().await.map_err(|cause| cause.to_string()),
            Backing::Blobstore(store) => store.check().await.map_err(|cause| cause.to_string()),
            Backing::Messaging(broker) => broker.check().await.map_err(|cause| cause.to_string()),
            // Probed as every component of the revision is.
            Backing::Component(_) => Ok(()),
            Backing::Secrets(_) => Ok(()),
        }
        .map_err(|cause| StartError::Provider { provider: self.name.clone(), cause })
    }
}

/// What opening a provider may need.
pub(crate) struct Means {
    pub(crate) tenant: TenantName,
    pub(crate) store: Arc<KvClient>,
    /// Objects go over a line of their own: their chunks are large.
    pub(crate) blobs: Arc<CallsClient>,
    /// Every other service of the node.
    pub(crate) calls: Arc<CallsClient>,
    pub(crate) dialer: Arc<dyn Dialer>,
    pub(crate) secrets: Arc<dyn Resolver>,
    pub(crate) tls: Tls,
}

impl Means {
    /// What the provider's settings name as secrets.
    pub(crate) fn credentials(&self, wanted: &Wanted<'_>) -> Credentials {
        Credentials::new(wanted.app.clone(), wanted.spec.secrets.clone(), self.secrets.clone())
    }
}

/// Which provider is opened, for whom.
pub(crate) struct Wanted<'a> {
    pub(crate) app: &'a AppName,
    pub(crate) name: &'a ProviderName,
    pub(crate) spec: &'a ProviderSpec,
}

type Known = HashMap<(AppName, ProviderName), (ProviderSpec, Weak<Opened>)>;

/// Every provider that is open in this host.
pub(crate) struct Providers {
    means: Means,
    known: Mutex<Known>,
}

impl Providers {
    pub(crate) fn new(means: Means) -> Self {
        Self { means, known: Mutex::default() }
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
            if !spec.kind.answers(&link.contract) {
                return Err(bad("which answers another contract"));
            }
            if spec.kind == ProviderKind::Component {
                let target = siblings::target(app, &link.provider);
                let target = target.ok_or_else(|| bad("a component that the app does not have"))?;
                let backing = Backing::Component(target);
                opened.insert(
                    link.provider.clone(),
                    Arc::new(Opened { name: link.provider.clone(), kind: spec.kind, backing }),
                );
                continue;
            }
            if !opened.contains_key(&link.provider) {
                opened.insert(link.provider.clone(), self.shared(&app.name, &link.provider, spec)?);
            }
        }
        Ok(opened)
    }

    /// One provider, opened as for a link to it.
    pub(crate) fn shared(
        &self,
        app: &AppName,
        name: &ProviderName,
        spec: ProviderSpec,
    ) -> Result<Arc<Opened>, StartError> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (app.clone(), name.clone());
        if let Some(open) = known.get(&key).filter(|(as_was, _)| *as_was == spec).and_then(|(_, open)| open.upgrade()) {
            return Ok(open);
        }
        let wanted = Wanted { app, name, spec: &spec };
        let backing = match spec.kind {
            ProviderKind::KeyvalueMemory
            | ProviderKind::KeyvalueEmbedded
            | ProviderKind::KeyvalueRedis
            | ProviderKind::KeyvalueVault
            | ProviderKind::KeyvalueConsul
            | ProviderKind::KeyvalueNats => Backing::KeyValue(keyvalue::open(&self.means, &wanted)?),
            // Opened with the revision it belongs to.
            ProviderKind::Component => return Err(another_contract(name, spec.kind)),
            ProviderKind::BlobstoreFolder | ProviderKind::BlobstoreS3 => {
                Backing::Blobstore(blobstore::open(&self.means, &wanted)?)
            }
            ProviderKind::MessagingLocal | ProviderKind::MessagingDurable | ProviderKind::MessagingNats => {
                Backing::Messaging(messaging::open(&self.means, &wanted)?)
            }
            ProviderKind::SecretsEmbedded => Backing::Secrets(secrets::open(&self.means, &wanted)),
        };
        let fresh = Arc::new(Opened { name: name.clone(), kind: spec.kind, backing });
        known.insert(key, (spec, Arc::downgrade(&fresh)));
        Ok(fresh)
    }

    /// The messages that the components of `app` take.
    pub(crate) fn taken(
        &self,
        app: &LockedApp,
        revision: Revision,
        opened: &BTreeMap<ProviderName, Arc<Opened>>,
        totals: &Totals,
    ) -> Vec<Taken> {
        let taken = model::messaging::subscriptions(app).filter_map(|(link, subscription)| {
            let open = opened.get(&link.provider)?;
            let Backing::Messaging(broker) = &open.backing else { return None };
            let kinds =
                [BrokerKind::Local, BrokerKind::Durable].into_iter().filter(|kind| broker.of_node != Some(*kind));
            Some(Taken {
                subscription: Arc::new(subscription),
                route: format!("{}/{revision}/{}", app.name, link.component).into(),
                backend: broker.backend.clone(),
                former: kinds.map(|kind| messaging::of_node(&self.means, &app.name, kind)).collect(),
                meter: totals.meter(&app.name, link, open.kind),
            })
        });
        taken.collect()
    }

    /// Forgets what nobody holds any more.
    pub(crate) fn prune(&self) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.retain(|_, (_, open)| open.strong_count() > 0);
    }
}

fn built_in(name: &ProviderName) -> Option<ProviderSpec> {
    let (_, kind) = ProviderKind::BUILT_IN.iter().find(|(known, _)| *known == name.as_str())?;
    Some(ProviderSpec::new(*kind))
}

/// The answer of a contract's `open` to a kind that is not its own.
fn another_contract(name: &ProviderName, kind: ProviderKind) -> StartError {
    StartError::Settings { provider: name.clone(), cause: format!("`{}` answers another contract", kind.as_str()) }
}

/// What one component is given.
pub(crate) fn bindings(
    app: &LockedApp,
    component: &ComponentName,
    config: &BTreeMap<String, String>,
    opened: &BTreeMap<ProviderName, Arc<Opened>>,
    totals: &Totals,
    siblings: &Arc<Siblings>,
) -> Arc<Bindings> {
    let mut bindings = Bindings::new();
    if !config.is_empty() {
        bindings = bindings.with(Arc::new(ConfigValues(config.clone())));
    }
    let mut links = Given::default();
    for link in app.links.iter().filter(|link| link.component == *component) {
        if let Some(open) = opened.get(&link.provider) {
            links.add(link, open, totals.meter(&app.name, link, open.kind), siblings);
        }
    }
    let peers =
        siblings::peers(app, component, siblings, |link| totals.meter(&app.name, link, ProviderKind::Component));
    if !peers.is_empty() {
        bindings = bindings.with(Arc::new(Peers(peers)));
    }
    Arc::new(links.bind(bindings))
}

/// The links of one component, by contract, while its bindings are made.
#[derive(Default)]
struct Given {
    keyvalue: Option<KeyValueLinks>,
    blobstore: Option<BlobLinks>,
    messaging: Option<MessagingLink>,
    secrets: Option<SecretLinks>,
}

impl Given {
    fn add(&mut self, link: &Link, open: &Opened, meter: Arc<LinkMeter>, siblings: &Arc<Siblings>) {
        match &open.backing {
            Backing::KeyValue(store) => {
                let links = self.keyvalue.take().unwrap_or_default();
                self.keyvalue = Some(store.link(links, link, meter));
            }
            Backing::Blobstore(store) => {
                let links = self.blobstore.take().unwrap_or_default();
                self.blobstore = Some(store.link(links, link, meter));
            }
            // The contract has no name for a broker: a component sends by the link with the label `default`.
            Backing::Messaging(broker) if link.label == Label::default_label() => {
                self.messaging = Some(broker.link(meter));
            }
            Backing::Messaging(_) => {}
            Backing::Component(name) if link.contract.to_string() == "wasi:keyvalue" => {
                let links = self.keyvalue.take().unwrap_or_default();
                let store = Arc::new(ComponentStore::new(Sibling::new(siblings, name, None)));
                self.keyvalue = Some(links.with(&link.label, store, keyvalue::bucket(link), meter));
            }
            // Forwarded as it is: among the peers.
            Backing::Component(_) => {}
            Backing::Secrets(source) => {
                let links = self.secrets.take().unwrap_or_default();
                self.secrets = Some(source.link(links, link, meter));
            }
        }
    }

    fn bind(self, mut bindings: Bindings) -> Bindings {
        if let Some(links) = self.keyvalue {
            bindings = bindings.with(Arc::new(links));
        }
        if let Some(links) = self.blobstore {
            bindings = bindings.with(Arc::new(links));
        }
        if let Some(link) = self.messaging {
            bindings = bindings.with(Arc::new(link));
        }
        if let Some(links) = self.secrets {
            bindings = bindings.with(Arc::new(links));
        }
        bindings
    }
}
