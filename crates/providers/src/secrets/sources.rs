//! One resolver over several: a provider may have one secret from the tenant's own store and another from Vault, and asks
//! for both in the same way.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures::FutureExt as _;
use futures::future::BoxFuture;
use model::{AppName, ProviderName, SecretRef};
use tokio::sync::watch;

use super::{Hold, Resolver, Revealed, SecretError};

/// The tenant's own store and the providers that keep secrets, by name.
pub struct Sources {
    own: Arc<dyn Resolver>,
    /// Whether changes in the own store concern whoever asks here.
    own_is_used: bool,
    named: BTreeMap<ProviderName, Arc<dyn Resolver>>,
}

impl Sources {
    /// `own` for references without a source, `named` for the others; `own_is_used` where there are any of the first.
    pub fn new(own: Arc<dyn Resolver>, own_is_used: bool, named: BTreeMap<ProviderName, Arc<dyn Resolver>>) -> Self {
        Self { own, own_is_used, named }
    }

    /// Who keeps it.
    fn of(&self, secret: &SecretRef) -> Option<&Arc<dyn Resolver>> {
        match &secret.from {
            Some(from) if !secret.is_own() => self.named.get(from),
            _ => Some(&self.own),
        }
    }
}

impl Resolver for Sources {
    fn reveal<'a>(&'a self, app: &'a AppName, secret: &'a SecretRef) -> BoxFuture<'a, Result<Revealed, SecretError>> {
        match self.of(secret) {
            Some(source) => source.reveal(app, secret),
            None => {
                let from = secret.from.as_ref().map(ToString::to_string).unwrap_or_default();
                let cause = format!("the provider `{from}` that keeps it is not open");
                let secret = secret.secret.to_string();
                std::future::ready(Err(SecretError::Unavailable { secret, cause })).boxed()
            }
        }
    }

    fn hold(&self, secret: &SecretRef) -> Hold {
        self.of(secret)?.hold(secret)
    }

    fn changes(&self) -> watch::Receiver<u64> {
        let own = self.own_is_used.then_some(&self.own);
        let mut sources = own.into_iter().chain(self.named.values());
        if let (Some(only), None) = (sources.next(), sources.next()) {
            return only.changes();
        }
        let (told, seen) = watch::channel(0_u64);
        for source in own.into_iter().chain(self.named.values()) {
            let (told, mut changes) = (told.clone(), source.changes());
            // It ends with whoever wanted to know, or with the source.
            tokio::spawn(async move {
                loop {
                    tokio::select! {
                        () = told.closed() => return,
                        changed = changes.changed() => match changed {
                            Ok(()) => told.send_modify(|n| *n += 1),
                            Err(_) => return,
                        },
                    }
                }
            });
        }
        seen
    }
}
