//! The hosts of every tenant that are there now, for those who ask them.

use std::collections::BTreeMap;
use std::sync::Arc;

use model::TenantName;

use crate::supervisor::HostRef;
use crate::tenant::Tenant;

/// A tenant and its hosts.
pub(crate) type Hosted = (Arc<Tenant>, Vec<HostRef>);

/// The hosts of every tenant, for those who ask them.
#[derive(Debug, Default)]
pub(crate) struct HostIndex(std::sync::RwLock<BTreeMap<TenantName, Hosted>>);

impl HostIndex {
    pub(crate) fn of(&self, tenant: &TenantName) -> Vec<HostRef> {
        let all = self.0.read().unwrap_or_else(std::sync::PoisonError::into_inner);
        all.get(tenant).map(|(_, hosts)| hosts.clone()).unwrap_or_default()
    }

    /// A tenant with its hosts; `None` where it has none.
    pub(crate) fn hosted(&self, tenant: &TenantName) -> Option<Hosted> {
        self.0.read().unwrap_or_else(std::sync::PoisonError::into_inner).get(tenant).cloned()
    }

    /// Every tenant with its hosts.
    pub(crate) fn all(&self) -> Vec<Hosted> {
        self.0.read().unwrap_or_else(std::sync::PoisonError::into_inner).values().cloned().collect()
    }

    pub(super) fn remove(&self, tenant: &TenantName) {
        self.0.write().unwrap_or_else(std::sync::PoisonError::into_inner).remove(tenant);
    }

    pub(super) fn set(&self, tenant: &Arc<Tenant>, hosts: Vec<HostRef>) {
        let mut all = self.0.write().unwrap_or_else(std::sync::PoisonError::into_inner);
        all.insert(tenant.name.clone(), (tenant.clone(), hosts));
    }
}
