//! Of whom a revision from before has ended to serve: what was promised for as long as it did is over, and whoever keeps that
//! promise is told.

use std::collections::BTreeSet;
use std::sync::Arc;

use model::TenantName;
use tokio::sync::Notify;

/// See the module. One task takes them.
#[derive(Default)]
pub(crate) struct Ended {
    of: BTreeSet<TenantName>,
    told: Arc<Notify>,
}

impl Ended {
    /// Something of these tenants may have ended.
    pub(crate) fn add(&mut self, tenants: impl IntoIterator<Item = TenantName>) {
        self.of.extend(tenants);
        self.told.notify_one();
    }

    /// All there are, each once.
    pub(crate) fn take(&mut self) -> BTreeSet<TenantName> {
        std::mem::take(&mut self.of)
    }

    /// Who is told when there are more.
    pub(crate) fn told(&self) -> Arc<Notify> {
        self.told.clone()
    }
}
