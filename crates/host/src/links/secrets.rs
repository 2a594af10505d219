//! Opens the providers of `wasmcloud:secrets` and gives components the secrets that their links name.

use std::sync::Arc;

use model::{AppName, Link};
use providers::meter::LinkMeter;
use providers::secrets::{LinkedSecret, Resolver, SecretLinks};

use super::{Means, Wanted};

/// One provider of secrets of an app.
pub(crate) struct Source {
    app: AppName,
    resolver: Arc<dyn Resolver>,
}

impl Source {
    /// Adds what `link` gives: one secret under the key that the component asks for.
    pub(super) fn link(&self, links: SecretLinks, link: &Link, meter: Arc<LinkMeter>) -> SecretLinks {
        // The control plane has checked the name; a link that names none gives none.
        let Some((key, secret)) = model::secret::of_link(link) else { return links };
        let linked = LinkedSecret { app: self.app.clone(), secret, source: self.resolver.clone(), meter };
        links.with(key, linked)
    }
}

/// The tenant's own secret store, by way of the node.
pub(super) fn open(means: &Means, wanted: &Wanted<'_>) -> Source {
    Source { app: wanted.app.clone(), resolver: means.secrets.clone() }
}
