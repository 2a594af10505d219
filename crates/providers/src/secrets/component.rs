//! A component that exports `wasmcloud:secrets` as a place where secrets are kept. Each use is one call of it: get, reveal,
//! drop. What it hands over is in memory that is wiped from here on; what it made of it within itself is its own.

use std::sync::Arc;

use futures::FutureExt as _;
use futures::future::BoxFuture;
use model::secret::MAX_SECRET;
use model::{AppName, SecretRef, SecretValue};
use runtime::wasmtime::component::{Instance, InstancePre};
use runtime::wasmtime::{self, Store};
use runtime::{Callee, Ctx};
use tokio::sync::watch;

use super::{Resolver, Revealed, SecretError};
use crate::exported::{Exported, Failed, Functions};
use bindings::exports::wasmcloud::secrets::{reveal, store};

mod bindings {
    wasmtime::component::bindgen!({
        path: "../../wit/secrets",
        inline: "
            package sidereal:exported;
            world provider {
                export wasmcloud:secrets/store@0.1.0-draft;
                export wasmcloud:secrets/reveal@0.1.0-draft;
            }
        ",
        world: "sidereal:exported/provider",
        exports: { default: async },
        require_store_data_send: true,
    });
}

/// Where a component has the functions of the contract.
struct Indices {
    store: store::GuestIndices,
    reveal: reveal::GuestIndices,
}

impl Functions for Indices {
    fn of(pre: &InstancePre<Ctx>) -> wasmtime::Result<Self> {
        Ok(Self { store: store::GuestIndices::new(pre)?, reveal: reveal::GuestIndices::new(pre)? })
    }
}

/// The secrets that a component of the app gives.
pub struct ComponentSecrets {
    name: String,
    exported: Exported<Indices>,
    /// Never told of anything: only what providers log in with is followed, and that comes from no component.
    changes: watch::Sender<u64>,
}

impl ComponentSecrets {
    /// Those that `callee` gives; `name` is its name, for people.
    pub fn new(name: String, callee: Arc<dyn Callee>) -> Self {
        Self { name, exported: Exported::new(callee), changes: watch::Sender::new(0) }
    }

    async fn revealed(&self, secret: &SecretRef) -> Result<Revealed, SecretError> {
        let key = secret.secret.to_string();
        let called = self
            .exported
            .call(move |store, instance, indices| Box::pin(async move { get(store, &instance, &indices, &key).await }));
        let name = || secret.secret.to_string();
        let said = called.await.map_err(|failed| match failed {
            Failed::TimedOut { ms } => SecretError::TimedOut { secret: name(), ms },
            Failed::TooLarge(cause) => SecretError::Unusable { secret: name(), cause },
            Failed::Unavailable(cause) => SecretError::Unavailable { secret: name(), cause },
        })?;
        match said {
            Ok(value) if value.expose().len() > MAX_SECRET => {
                Err(SecretError::Unusable { secret: name(), cause: format!("it has more than {MAX_SECRET} bytes") })
            }
            Ok(value) => Ok(Revealed { value, version: 0 }),
            Err(store::SecretsError::NotFound) => Err(SecretError::NotGiven { secret: name(), by: self.name.clone() }),
            Err(store::SecretsError::Upstream(cause)) => Err(SecretError::Denied { secret: name(), cause }),
            Err(store::SecretsError::Io(cause)) => Err(SecretError::Unavailable { secret: name(), cause }),
        }
    }
}

async fn get(
    s: &mut Store<Ctx>,
    instance: &Instance,
    indices: &Indices,
    key: &str,
) -> wasmtime::Result<Result<SecretValue, store::SecretsError>> {
    let (store, reveal) = (indices.store.load(&mut *s, instance)?, indices.reveal.load(&mut *s, instance)?);
    let secret = match store.call_get(&mut *s, key).await? {
        Ok(secret) => secret,
        Err(error) => return Ok(Err(error)),
    };
    // Taken over as it comes: no copy stays behind.
    let value = match reveal.call_reveal(&mut *s, secret).await? {
        store::SecretValue::String(text) => SecretValue::new(text.into_bytes()),
        store::SecretValue::Bytes(bytes) => SecretValue::new(bytes),
    };
    secret.resource_drop_async(&mut *s).await?;
    Ok(Ok(value))
}

impl Resolver for ComponentSecrets {
    fn reveal<'a>(&'a self, _app: &'a AppName, secret: &'a SecretRef) -> BoxFuture<'a, Result<Revealed, SecretError>> {
        self.revealed(secret).boxed()
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }
}
