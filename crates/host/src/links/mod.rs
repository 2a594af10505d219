//! From the links of a revision to the bindings of its components. A provider of an app is opened once and shared by
//! the app's components and revisions for as long as one of them holds it; no two apps share one.

mod blobstore;
mod component;
mod keyvalue;
mod messaging;
mod nats;
pub(crate) mod secrets;
pub(crate) mod siblings;
mod sql;

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use api::services::client::{CallsClient, FilesClient, KvClient};
use api::services::messaging::BrokerKind;
use model::messaging::Subscription;
use model::{AppName, ComponentName, Link, LockedApp, ProviderKind, ProviderName, ProviderSpec, Revision, TenantName};
use providers::blobstore::{BlobLinks, ComponentBlobs};
use providers::bus::LinkLabels;
use providers::config::ConfigValues;
use providers::dial::Dialer;
use providers::http_out::Tls;
use providers::keyvalue::{KeyValueLinks, Room};
use providers::messaging::MessagingLinks;
use providers::meter::LinkMeter;
use providers::secrets::{Credentials, Resolver, SecretLinks, Sources};
use providers::share::Sharing;
use providers::sql::{PostgresLink, SqlLinks};
use runtime::{Bindings, Peers};
use siblings::Siblings;

pub(crate) use keyvalue::ALL_MEMORY;

use crate::broker::NodeBroker;
use crate::error::StartError;
use crate::external::NodeConnect;
use crate::taking::{Taken, What};
use crate::totals::Totals;
use crate::untried::Untried;
use crate::watches::{self, Queue};

/// A provider of an app.
pub(crate) struct Opened {
    name: ProviderName,
    kind: ProviderKind,
    backing: Backing,
    /// What its secrets come from, open for as long as it is.
    _sources: Vec<Arc<Opened>>,
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
    /// `sidereal:sql`, and what else the same database answers.
    Sql(sql::Store),
    /// Another component of the app.
    Component(ComponentName),
}

impl Opened {
    /// Its keys, where it is a key-value store.
    pub(crate) fn keyvalue(&self) -> Option<&keyvalue::Store> {
        match &self.backing {
            Backing::KeyValue(store) => Some(store),
            Backing::Blobstore(_)
            | Backing::Messaging(_)
            | Backing::Secrets(_)
            | Backing::Sql(_)
            | Backing::Component(_) => None,
        }
    }

    /// Its objects, where it is an object store.
    pub(crate) fn blobstore(&self) -> Option<&blobstore::Store> {
        match &self.backing {
            Backing::Blobstore(store) => Some(store),
            Backing::KeyValue(_)
            | Backing::Messaging(_)
            | Backing::Sql(_)
            | Backing::Secrets(_)
            | Backing::Component(_) => None,
        }
    }

    /// Fails where no call could succeed that one of these links carries.
    pub(crate) async fn check(&self, links: &[Link], app: &AppName) -> Result<(), StartError> {
        match &self.backing {
            Backing::KeyValue(store) => {
                let own = |link: &Link| link.provider == self.name && link.config.contains_key(model::watch::SETTING);
                store.check(links.iter().any(own)).await.map_err(|cause| cause.to_string())
            }
            Backing::Blobstore(store) => store.check().await.map_err(|cause| cause.to_string()),
            Backing::Messaging(broker) => {
                broker.check(&self.subscriptions(links, app)).await.map_err(|cause| cause.to_string())
            }
            Backing::Sql(store) => store.check().await.map_err(|cause| cause.to_string()),
            // Probed as every component of the revision is.
            Backing::Component(_) => Ok(()),
            Backing::Secrets(source) => source.check().await,
        }
        .map_err(|cause| StartError::Provider { provider: self.name.clone(), cause })
    }

    /// What the links take of this provider.
    fn subscriptions(&self, links: &[Link], app: &AppName) -> Vec<Subscription> {
        let own = links.iter().filter(|link| link.provider == self.name);
        own.filter_map(|link| Subscription::of(app, link).ok().flatten()).collect()
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
    /// Connections to external providers.
    pub(crate) files: Arc<FilesClient>,
    pub(crate) dialer: Arc<dyn Dialer>,
    pub(crate) secrets: Arc<dyn Resolver>,
    pub(crate) tls: Tls,
    /// What the stores in memory of all apps share.
    pub(crate) memory: Arc<Room>,
}

impl Means {
    /// The way to the process of an external provider.
    pub(crate) fn connect(&self, wanted: &Wanted<'_>) -> Arc<NodeConnect> {
        let (app, name, spec) = (wanted.app.clone(), wanted.name.clone(), wanted.spec.fingerprint());
        Arc::new(NodeConnect::new(self.files.clone(), app, name, spec))
    }

    /// What the provider's settings name as secrets.
    pub(crate) fn credentials(&self, wanted: &Wanted<'_>) -> Credentials {
        let own = wanted.spec.secrets.values().filter(|secret| secret.is_own()).count();
        let resolver: Arc<dyn Resolver> = if own == wanted.spec.secrets.len() {
            self.secrets.clone()
        } else {
            let named = wanted.sources.iter().filter_map(|source| match &source.backing {
                Backing::Secrets(secrets) => Some((source.name.clone(), secrets.resolver())),
                _ => None,
            });
            Arc::new(Sources::new(self.secrets.clone(), own > 0, named.collect()))
        };
        Credentials::new(wanted.app.clone(), wanted.spec.secrets.clone(), resolver)
    }
}

/// Which provider is opened, for whom.
pub(crate) struct Wanted<'a> {
    pub(crate) app: &'a AppName,
    pub(crate) name: &'a ProviderName,
    pub(crate) spec: &'a ProviderSpec,
    /// What its secrets come from, beside the tenant's own store.
    pub(crate) sources: &'a [Arc<Opened>],
}

/// What a provider is opened from: its own settings, and those of the providers its secrets come from.
type Recipe = (ProviderSpec, BTreeMap<ProviderName, ProviderSpec>);

/// One name has several where a revision that ends has it with other settings than the next one.
type Known = HashMap<(AppName, ProviderName), Vec<(Recipe, Weak<Opened>)>>;

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
            if !spec.answers(&link.contract) {
                return Err(bad("which answers another contract"));
            }
            if spec.kind == ProviderKind::Component {
                let target = siblings::target(app, &link.provider);
                let target = target.ok_or_else(|| bad("a component that the app does not have"))?;
                let backing = Backing::Component(target);
                opened.insert(
                    link.provider.clone(),
                    Arc::new(Opened { name: link.provider.clone(), kind: spec.kind, backing, _sources: Vec::new() }),
                );
                continue;
            }
            if !opened.contains_key(&link.provider) {
                let sources = model::secret::sources(app, &spec);
                opened.insert(link.provider.clone(), self.shared(&app.name, &link.provider, spec, sources)?);
            }
        }
        Ok(opened)
    }

    /// One provider, opened as for a link to it. `known` are providers that its secrets may come from.
    pub(crate) fn shared(
        &self,
        app: &AppName,
        name: &ProviderName,
        spec: ProviderSpec,
        mut sources: BTreeMap<ProviderName, ProviderSpec>,
    ) -> Result<Arc<Opened>, StartError> {
        sources.retain(|source, _| spec.secrets.values().any(|secret| secret.from.as_ref() == Some(source)));
        // What they log in with is in the tenant's own store: they have no sources themselves.
        let open = |(name, spec): (&ProviderName, &ProviderSpec)| self.shared(app, name, spec.clone(), BTreeMap::new());
        let opened_sources = sources.iter().map(open).collect::<Result<Vec<_>, _>>()?;
        let recipe = (spec, sources);
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let known = known.entry((app.clone(), name.clone())).or_default();
        known.retain(|(_, open)| open.strong_count() > 0);
        let same = known.iter().find(|(as_was, _)| *as_was == recipe);
        if let Some(open) = same.and_then(|(_, open)| open.upgrade()) {
            return Ok(open);
        }
        let spec = &recipe.0;
        let wanted = Wanted { app, name, spec, sources: &opened_sources };
        let backing = match spec.kind {
            ProviderKind::KeyvalueMemory
            | ProviderKind::KeyvalueEmbedded
            | ProviderKind::KeyvalueRedis
            | ProviderKind::KeyvalueVault
            | ProviderKind::KeyvalueConsul
            | ProviderKind::KeyvalueNats => Backing::KeyValue(keyvalue::open(&self.means, &wanted)?),
            ProviderKind::External => external(&self.means, &wanted)?,
            // Opened with the revision it belongs to.
            ProviderKind::Component => return Err(another_contract(name, spec.kind)),
            ProviderKind::BlobstoreFolder | ProviderKind::BlobstoreS3 | ProviderKind::BlobstoreNats => {
                Backing::Blobstore(blobstore::open(&self.means, &wanted)?)
            }
            ProviderKind::MessagingLocal
            | ProviderKind::MessagingDurable
            | ProviderKind::MessagingNats
            | ProviderKind::MessagingJetstream => Backing::Messaging(messaging::open(&self.means, &wanted)?),
            ProviderKind::SqlSqlite | ProviderKind::SqlPostgres => Backing::Sql(sql::open(&self.means, &wanted)?),
            ProviderKind::SecretsEmbedded | ProviderKind::SecretsVault => {
                Backing::Secrets(secrets::open(&self.means, &wanted)?)
            }
        };
        let (name, kind) = (name.clone(), spec.kind);
        let fresh = Arc::new(Opened { name, kind, backing, _sources: opened_sources });
        known.push((recipe, Arc::downgrade(&fresh)));
        Ok(fresh)
    }

    /// Every provider of this name that is open, with whichever settings.
    pub(crate) fn named(&self, app: &AppName, name: &ProviderName) -> Vec<Arc<Opened>> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let named = known.get(&(app.clone(), name.clone()));
        named.into_iter().flatten().filter_map(|(_, open)| open.upgrade()).collect()
    }

    /// The messages that the components of `app` take, and the changes they are told.
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
            let node = || NodeBroker::new(self.means.calls.clone(), app.name.clone(), BrokerKind::Local);
            let untried = Untried::of(&broker.backend, node);
            let left = untried.is_none().then(|| Untried::left(&broker.backend, node()));
            let former = kinds.map(|kind| messaging::of_node(&self.means, &app.name, kind));
            Some(Taken {
                subscription: Arc::new(subscription),
                route: format!("{}/{revision}/{}", app.name, link.component).into(),
                untried,
                backend: broker.backend.clone(),
                former: former.chain(left).collect(),
                meter: totals.meter(&app.name, link, open.kind),
                what: What::Messages,
            })
        });
        taken.chain(self.changes(app, revision, opened, totals)).collect()
    }

    /// Who is told of what `link` writes.
    fn watchers(&self, app: &LockedApp, link: &Link, totals: &Totals) -> Vec<Queue> {
        let hearing = model::watch::watches(app).filter(|watch| watch.hears(link));
        let watcher = hearing.filter_map(|watch| {
            let kind = watches::broker(watch.kept)?;
            let broker = NodeBroker::new(self.means.calls.clone(), app.name.clone(), kind);
            let group = watch.subscription(&app.name).group.name;
            let meter = totals.meter(&app.name, watch.link, watch.kind);
            Some(Queue { keys: watch.keys, broker, group, meter })
        });
        watcher.collect()
    }

    /// The changes that the components of `app` are told.
    fn changes(
        &self,
        app: &LockedApp,
        revision: Revision,
        opened: &BTreeMap<ProviderName, Arc<Opened>>,
        totals: &Totals,
    ) -> Vec<Taken> {
        let all = [BrokerKind::Local, BrokerKind::Durable];
        let taken = model::watch::watches(app).filter_map(|watch| {
            let kind = watches::broker(watch.kept);
            let former = all.into_iter().filter(|former| Some(*former) != kind);
            let backend = match kind {
                Some(kind) => messaging::of_node(&self.means, &app.name, kind),
                None => opened.get(&watch.link.provider)?.keyvalue()?.follow(&watch)?,
            };
            Some(Taken {
                subscription: Arc::new(watch.subscription(&app.name)),
                route: format!("{}/{revision}/{}", app.name, watch.link.component).into(),
                backend,
                former: former.map(|kind| messaging::of_node(&self.means, &app.name, kind)).collect(),
                untried: None,
                meter: totals.meter(&app.name, watch.link, watch.kind),
                what: What::Changes(watch.link.label.as_str().into()),
            })
        });
        taken.collect()
    }

    /// Forgets what nobody holds any more.
    pub(crate) fn prune(&self) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.retain(|_, all| {
            all.retain(|(_, open)| open.strong_count() > 0);
            !all.is_empty()
        });
    }
}

fn built_in(name: &ProviderName) -> Option<ProviderSpec> {
    let (_, kind) = ProviderKind::BUILT_IN.iter().find(|(known, _)| *known == name.as_str())?;
    Some(ProviderSpec::new(*kind))
}

/// Opens an external provider for the contract that it says it answers.
fn external(means: &Means, wanted: &Wanted<'_>) -> Result<Backing, StartError> {
    match wanted.spec.contracts() {
        ["wasi:keyvalue"] => Ok(Backing::KeyValue(keyvalue::open(means, wanted)?)),
        ["wasi:blobstore"] => Ok(Backing::Blobstore(blobstore::open(means, wanted)?)),
        [model::messaging::CONTRACT] => Ok(Backing::Messaging(messaging::open(means, wanted)?)),
        [model::sql::CONTRACT] => Ok(Backing::Sql(sql::open(means, wanted)?)),
        [model::secret::CONTRACT] => Ok(Backing::Secrets(secrets::open(means, wanted)?)),
        _ => Err(another_contract(wanted.name, wanted.spec.kind)),
    }
}

/// The answer of a contract's `open` to a kind that is not its own.
fn another_contract(name: &ProviderName, kind: ProviderKind) -> StartError {
    StartError::Settings { provider: name.clone(), cause: format!("`{}` answers another contract", kind.as_str()) }
}

/// What one component is given.
pub(crate) fn bindings(
    app: &LockedApp,
    component: &ComponentName,
    config: BTreeMap<String, String>,
    opened: &BTreeMap<ProviderName, Arc<Opened>>,
    totals: &Totals,
    siblings: &Arc<Siblings>,
    providers: &Providers,
) -> Arc<Bindings> {
    let mut bindings = Bindings::new();
    if let Some(environment) = crate::environment::granted(&config) {
        bindings = bindings.with(Arc::new(environment));
    }
    if !config.is_empty() {
        bindings = bindings.with(Arc::new(ConfigValues(config)));
    }
    let labels = LinkLabels::of(app.links.iter().filter(|link| link.component == *component));
    if !labels.is_empty() {
        bindings = bindings.with(Arc::new(labels));
    }
    let mut links = Given::default();
    for link in app.links.iter().filter(|link| link.component == *component) {
        if let Some(open) = opened.get(&link.provider) {
            let watchers = providers.watchers(app, link, totals);
            let sharing = Sharing::among(app.links.iter().filter(|other| other.provider == link.provider).count());
            links.add(&app.name, link, open, totals.meter(&app.name, link, open.kind), siblings, (watchers, sharing));
        }
    }
    let peers =
        siblings::peers(app, component, siblings, |link| totals.meter(&app.name, link, ProviderKind::Component));
    if !peers.is_empty() {
        bindings = bindings.with(Arc::new(Peers(peers)));
    }
    if let Some(folders) = crate::folders::granted() {
        bindings = bindings.with(folders);
    }
    Arc::new(links.bind(bindings))
}

/// The links of one component, by contract, while its bindings are made.
#[derive(Default)]
struct Given {
    keyvalue: Option<KeyValueLinks>,
    blobstore: Option<BlobLinks>,
    /// The components behind links of `blobstore`.
    objects: BTreeMap<ComponentName, Arc<ComponentBlobs>>,
    messaging: Option<MessagingLinks>,
    secrets: Option<SecretLinks>,
    sql: Option<SqlLinks>,
    postgres: Option<PostgresLink>,
}

impl Given {
    fn add(
        &mut self,
        app: &AppName,
        link: &Link,
        open: &Opened,
        meter: Arc<LinkMeter>,
        siblings: &Arc<Siblings>,
        (watchers, sharing): (Vec<Queue>, Sharing),
    ) {
        match &open.backing {
            Backing::KeyValue(store) => {
                let links = self.keyvalue.take().unwrap_or_default();
                self.keyvalue = Some(store.link(links, link, meter, watchers));
            }
            Backing::Blobstore(store) => {
                let links = self.blobstore.take().unwrap_or_default();
                self.blobstore = Some(store.link(links, link, meter, sharing));
            }
            // The contract has no name for a broker: a component sends by the link with the label `default`, or by
            // the one it chose.
            Backing::Messaging(broker) => {
                let links = self.messaging.take().unwrap_or_default();
                self.messaging = Some(links.with(link.label.clone(), broker.link(meter)));
            }
            // The contract has no name for a database: a component asks the one with the label `default`.
            Backing::Sql(store) if link.contract.to_string() == model::sql::POSTGRES => {
                if link.label == model::Label::default_label() {
                    self.postgres = store.postgres(meter, sharing);
                }
            }
            Backing::Sql(store) => {
                let links = self.sql.take().unwrap_or_default();
                self.sql = Some(store.link(links, link, meter, sharing));
            }
            Backing::Component(name) => self.component(app, link, name, meter, siblings, sharing),
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
        if let Some(links) = self.messaging {
            bindings = bindings.with(Arc::new(links));
        }
        if let Some(links) = self.secrets {
            bindings = bindings.with(Arc::new(links));
        }
        if let Some(links) = self.sql {
            bindings = bindings.with(Arc::new(links));
        }
        if let Some(link) = self.postgres {
            bindings = bindings.with(Arc::new(link));
        }
        bindings
    }
}
