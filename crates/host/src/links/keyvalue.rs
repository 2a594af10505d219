//! Opens the providers of `wasi:keyvalue` and gives their buckets to components.

use std::sync::Arc;

use model::watch::{Watch, bucket};
use model::{Link, ProviderKind};
use providers::keyvalue::journal::{Journal, Journaled};
use providers::keyvalue::redis::{Login, SettingsError};
use providers::keyvalue::watch::{Told, Watcher};
use providers::keyvalue::{
    Backend, BackendError, Consul, External, KeyValueLinks, Memory, Nats, Redis, VaultKv, consul, nats, vault,
};
use providers::messaging;
use providers::meter::LinkMeter;
use providers::vault::FromSecrets;

use super::{Means, Wanted};
use crate::embedded::Embedded;
use crate::error::StartError;
use crate::watches::Queue;

/// What one provider of kind `keyvalue-memory` may hold, bytes.
const MEMORY: usize = 64 << 20;
/// What all of them together may hold in one host, bytes: apps that no provider of theirs would stop fill no machine.
pub(crate) const ALL_MEMORY: usize = 256 << 20;

/// One key-value provider of an app.
pub(crate) struct Store {
    backend: Arc<dyn Backend>,
    journal: Arc<Journal>,
    /// The same where it has a server that can be asked whether it is there.
    server: Option<Server>,
    /// The same where the node has the keys, and tells of what is written.
    embedded: Option<Embedded>,
}

/// The providers that have one.
enum Server {
    Redis(Arc<Redis>),
    Vault(Arc<VaultKv>),
    Consul(Arc<Consul>),
    Nats(Arc<Nats>),
    External(Arc<External>),
}

impl Store {
    fn new(backend: Arc<dyn Backend>, server: Option<Server>) -> Self {
        let journal = Arc::new(Journal::default());
        Self { backend: Arc::new(Journaled::new(backend, journal.clone())), journal, server, embedded: None }
    }

    /// What components use.
    pub(crate) fn backend(&self) -> &dyn Backend {
        &*self.backend
    }

    /// What is written, for as long as somebody copies.
    pub(crate) fn journal(&self) -> &Journal {
        &self.journal
    }

    /// Fails where no call could succeed, or a link that is `watched` could not be told of changes.
    pub(super) async fn check(&self, watched: bool) -> Result<(), BackendError> {
        match &self.server {
            Some(Server::Redis(redis)) if watched => redis.check_notifications().await,
            Some(Server::Redis(redis)) => redis.check().await,
            Some(Server::Vault(vault)) => vault.check().await,
            Some(Server::Consul(consul)) => consul.check().await,
            Some(Server::Nats(nats)) => nats.check().await,
            Some(Server::External(external)) => external.check().await,
            None => Ok(()),
        }
    }

    /// Who says what changed in the watched bucket, where the provider's server does.
    pub(super) fn follow(&self, watch: &Watch<'_>) -> Option<Arc<dyn messaging::Backend>> {
        let (bucket, keys) = (bucket(watch.link), watch.keys.clone());
        Some(match self.server.as_ref()? {
            Server::Nats(nats) => Arc::new(nats.follow(bucket, keys)),
            Server::Redis(redis) => Arc::new(redis.follow(bucket, keys)),
            Server::Consul(consul) => Arc::new(consul.follow(bucket, keys)),
            Server::Vault(_) | Server::External(_) => return None,
        })
    }

    /// Adds what `link` gives: the bucket of its setting, or the one named like its label.
    /// What is written is told to `watchers`.
    pub(super) fn link(
        &self,
        links: KeyValueLinks,
        link: &Link,
        meter: Arc<LinkMeter>,
        watchers: Vec<Queue>,
    ) -> KeyValueLinks {
        let backend: Arc<dyn Backend> = match &self.embedded {
            _ if watchers.is_empty() => self.backend.clone(),
            Some(embedded) => {
                let telling = Arc::new(embedded.telling(bucket(link), watchers));
                Arc::new(Journaled::new(telling, self.journal.clone()))
            }
            None => {
                let watcher = |queue: Queue| Watcher { keys: queue.keys.clone(), listener: Arc::new(queue) };
                let watchers = watchers.into_iter().map(watcher).collect();
                Arc::new(Told::new(self.backend.clone(), bucket(link), watchers))
            }
        };
        links.with(&link.label, backend, bucket(link), meter)
    }
}

pub(super) fn open(means: &Means, wanted: &Wanted<'_>) -> Result<Store, StartError> {
    let (app, name) = (wanted.app, wanted.name);
    let text = |setting: &str| wanted.spec.config.get(setting).map(String::as_str);
    let bad = |cause: &dyn std::fmt::Display| StartError::Settings { provider: name.clone(), cause: cause.to_string() };
    let local = |backend: Arc<dyn Backend>| Store::new(backend, None);
    Ok(match wanted.spec.kind {
        ProviderKind::KeyvalueMemory => local(Arc::new(Memory::within(MEMORY, means.memory.clone()))),
        ProviderKind::KeyvalueEmbedded => {
            let embedded = Embedded::new(means.store.clone(), app.clone(), name.clone());
            Store { embedded: Some(embedded.clone()), ..local(Arc::new(embedded)) }
        }
        ProviderKind::KeyvalueRedis => {
            let settings = |cause: SettingsError| bad(&cause);
            let url = wanted.spec.config.get("url").ok_or(SettingsError::NoUrl);
            let login =
                Login { username: wanted.spec.config.get("username").cloned(), secrets: means.credentials(wanted) };
            let (url, ca) = (url.map_err(settings)?, text("ca"));
            let redis = Redis::new(&means.tenant, app, name, url, ca, login, means.dialer.clone());
            let redis = Arc::new(redis.map_err(settings)?);
            Store::new(redis.clone(), Some(Server::Redis(redis)))
        }
        ProviderKind::KeyvalueVault => {
            let login = FromSecrets::new(means.credentials(wanted), text("role").map(str::to_owned));
            let settings = vault::Settings {
                vault: providers::vault::Settings {
                    url: text("url").unwrap_or_default(),
                    ca: text("ca"),
                    namespace: text("namespace"),
                    auth_mount: text("auth_mount"),
                    login: Arc::new(login),
                },
                mount: text("mount"),
                prefix: text("prefix"),
                version: vault::Version::setting(text("version")).map_err(|cause| bad(&cause))?,
            };
            let vault = VaultKv::new(&means.tenant, app, name, &settings, means.dialer.clone());
            let vault = Arc::new(vault.map_err(|cause| bad(&cause))?);
            Store::new(vault.clone(), Some(Server::Vault(vault)))
        }
        ProviderKind::KeyvalueConsul => {
            let settings = consul::Settings {
                url: text("url").unwrap_or_default(),
                ca: text("ca"),
                prefix: text("prefix"),
                credentials: means.credentials(wanted),
            };
            let consul = Consul::new(&means.tenant, app, name, &settings, means.dialer.clone());
            let consul = Arc::new(consul.map_err(|cause| bad(&cause))?);
            Store::new(consul.clone(), Some(Server::Consul(consul)))
        }
        ProviderKind::KeyvalueNats => {
            let settings = nats::Settings {
                url: text("url").unwrap_or_default(),
                replicas: text("replicas"),
                jetstream_domain: text("jetstream_domain"),
                login: providers::nats::Login::Secrets {
                    username: text("username").map(str::to_owned),
                    secrets: means.credentials(wanted),
                },
            };
            let nats = Nats::new(&means.tenant, app, name, settings, means.tls.clone(), means.dialer.clone());
            let nats = Arc::new(nats.map_err(|cause| bad(&cause))?);
            Store::new(nats.clone(), Some(Server::Nats(nats)))
        }
        ProviderKind::External => {
            let external = Arc::new(External::new(name.clone(), means.connect(wanted)));
            Store::new(external.clone(), Some(Server::External(external)))
        }
        other => return Err(super::another_contract(name, other)),
    })
}
