//! Which apps name what is kept beside them: secrets, shared configs, the operator's providers. A change of one of these asks
//! here under the turn of all changes, and reads no app: how many a tenant has makes the changes of others take no longer.

use std::collections::{BTreeMap, BTreeSet};

use model::app::{LockedApp, ProviderKind};
use model::plan::AppId;
use model::{AppName, ConfigName, ProviderName, SecretName, TenantName, config, secret};

/// What an app names, as it is wanted and as it still serves.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Thing {
    /// A secret of the tenant's own store.
    Secret(SecretName),
    /// A shared config, or the operator's environment.
    Config(ConfigName),
    /// A provider of the operator that a link goes to, and its type there.
    Offered(ProviderName, ProviderKind),
}

impl Thing {
    /// All that an app names.
    pub(crate) fn of(app: &LockedApp) -> BTreeSet<Self> {
        let secrets = secret::names(app).into_iter().map(Self::Secret);
        let configs = config::names(app).into_iter().map(Self::Config);
        let offered = app.links.iter().filter_map(|link| {
            let spec = app.providers.get(&link.provider).filter(|spec| spec.operator)?;
            Some(Self::Offered(link.provider.clone(), spec.kind))
        });
        secrets.chain(configs).chain(offered).collect()
    }
}

/// The apps by what they name.
#[derive(Default)]
pub(crate) struct Named(BTreeMap<(TenantName, Thing), BTreeSet<AppName>>);

impl Named {
    pub(crate) fn add(&mut self, id: &AppId, things: &BTreeSet<Thing>) {
        for thing in things {
            self.0.entry((id.tenant.clone(), thing.clone())).or_default().insert(id.app.clone());
        }
    }

    pub(crate) fn remove(&mut self, id: &AppId, things: &BTreeSet<Thing>) {
        for thing in things {
            let key = (id.tenant.clone(), thing.clone());
            if let Some(apps) = self.0.get_mut(&key) {
                apps.remove(&id.app);
                if apps.is_empty() {
                    self.0.remove(&key);
                }
            }
        }
    }

    /// The tenant's apps that name it, in order.
    pub(crate) fn by(&self, tenant: &TenantName, thing: Thing) -> Users<'_> {
        Users(self.0.get(&(tenant.clone(), thing)))
    }
}

/// Who names a thing.
pub(crate) struct Users<'a>(Option<&'a BTreeSet<AppName>>);

impl Users<'_> {
    /// How many there are.
    pub(crate) fn count(&self) -> usize {
        self.0.map_or(0, BTreeSet::len)
    }

    /// The first ones.
    pub(crate) fn first(&self, count: usize) -> Vec<AppName> {
        self.0.into_iter().flatten().take(count).cloned().collect()
    }
}
