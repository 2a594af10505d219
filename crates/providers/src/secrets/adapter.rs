//! `wasmcloud:secrets` 0.1.0-draft: a component gets the secrets that its links name, by the keys the links give them,
//! and no others. A value is held in memory that is wiped for as long as the component holds its handle.

use std::collections::HashMap;
use std::sync::Arc;

use model::{AppName, SecretRef};
use runtime::wasmtime::StoreContextMut;
use runtime::wasmtime::component::{ComponentType, HasData, Linker, Lower, Resource, ResourceTableError};
use runtime::{Capability, Ctx, LogStreamKind};
use zeroize::Zeroize as _;

use super::{Hold, Resolver, SecretError};
use crate::meter::{ErrorKind, Kind as _, LinkMeter};

mod bindings {
    wasmtime::component::bindgen!({
        path: "../../wit/secrets",
        world: "store-only",
        imports: { default: async | trappable },
        with: { "wasmcloud:secrets/store.secret": super::Secret },
        trappable_error_type: { "wasmcloud:secrets/store.secrets-error" => super::Refusal },
    });
}
use bindings::wasmcloud::secrets::store::{self, SecretsError};

/// The interface whose one function hands values to guests.
const REVEAL: &str = "wasmcloud:secrets/reveal@0.1.0-draft";

/// One secret a component may see.
#[derive(Clone)]
pub struct LinkedSecret {
    /// On whose behalf.
    pub app: AppName,
    /// Which.
    pub secret: SecretRef,
    /// Who reveals it.
    pub source: Arc<dyn Resolver>,
    /// Counts.
    pub meter: Arc<LinkMeter>,
    _held: Hold,
}

impl LinkedSecret {
    /// The secret `secret` of `app`, which is held at `source` from here on.
    pub fn new(app: AppName, secret: SecretRef, source: Arc<dyn Resolver>, meter: Arc<LinkMeter>) -> Self {
        let held = source.hold(&secret);
        Self { app, secret, source, meter, _held: held }
    }
}

/// The secrets a component may see, by the key it asks for.
#[derive(Clone, Default)]
pub struct SecretLinks(HashMap<String, LinkedSecret>);

impl SecretLinks {
    /// Adds one.
    #[must_use]
    pub fn with(mut self, key: &str, linked: LinkedSecret) -> Self {
        self.0.insert(key.to_owned(), linked);
        self
    }

    /// The keys, for people.
    fn keys(&self) -> String {
        let mut keys: Vec<String> = self.0.keys().map(|key| format!("`{}`", key.escape_debug())).collect();
        keys.sort_unstable();
        if keys.is_empty() { "its links name none".to_owned() } else { format!("its links name {}", keys.join(", ")) }
    }
}

/// A value as the guest gets it. `Arc`, so that the copy made to be handed over is the one that is wiped.
#[derive(Clone, ComponentType, Lower)]
#[component(variant)]
enum Held {
    /// Text.
    #[component(name = "string")]
    String(Arc<str>),
    /// Anything else.
    #[component(name = "bytes")]
    Bytes(Arc<[u8]>),
}

/// A secret a guest holds.
#[allow(unreachable_pub, reason = "the generated module names it as public")]
pub struct Secret(Held);

impl Drop for Secret {
    fn drop(&mut self) {
        // What was handed over was copied into the guest at once: nobody else holds it.
        match &mut self.0 {
            Held::String(text) => drop(Arc::get_mut(text).map(str::zeroize)),
            Held::Bytes(bytes) => drop(Arc::get_mut(bytes).map(|bytes| bytes.zeroize())),
        }
    }
}

/// How a call ends without an answer.
#[allow(unreachable_pub, reason = "the generated module names it as public")]
pub enum Refusal {
    /// The guest is told.
    Error(SecretsError),
    /// The guest broke the contract, for example its limit of handles.
    Trap(wasmtime::Error),
}

impl From<SecretError> for Refusal {
    fn from(error: SecretError) -> Self {
        Self::Error(match (&error, error.kind()) {
            (
                SecretError::Missing(_)
                | SecretError::Absent { .. }
                | SecretError::NotKept { .. }
                | SecretError::NotGiven { .. },
                _,
            ) => SecretsError::NotFound,
            (_, ErrorKind::Unavailable | ErrorKind::TimedOut | ErrorKind::Cancelled) => {
                SecretsError::Io(error.to_string())
            }
            (_, ErrorKind::Denied | ErrorKind::Refused) => SecretsError::Upstream(error.to_string()),
        })
    }
}

impl From<ResourceTableError> for Refusal {
    fn from(error: ResourceTableError) -> Self {
        Self::Trap(error.into())
    }
}

/// The capability `wasmcloud:secrets`. Which secrets a component may see is in its [`SecretLinks`] binding.
#[derive(Debug, Clone, Copy, Default)]
pub struct Secrets;

impl Capability for Secrets {
    fn interfaces(&self) -> &'static [&'static str] {
        &["wasmcloud:secrets/store@0.1.0-draft", REVEAL]
    }

    fn link(&self, linker: &mut Linker<Ctx>) -> wasmtime::Result<()> {
        store::add_to_linker::<_, Views>(linker, |ctx| View(ctx))?;
        linker.instance(REVEAL)?.func_wrap(
            "reveal",
            |mut ctx: StoreContextMut<'_, Ctx>, (secret,): (Resource<Secret>,)| {
                Ok((ctx.data_mut().table().get(&secret)?.0.clone(),))
            },
        )
    }
}

struct Views;

impl HasData for Views {
    type Data<'a> = View<'a>;
}

/// The store's data as the contract's functions see it.
struct View<'a>(&'a mut Ctx);

impl store::Host for View<'_> {
    async fn get(&mut self, key: String) -> Result<Resource<Secret>, Refusal> {
        let links = self.0.binding::<SecretLinks>().cloned().unwrap_or_default();
        let Some(linked) = links.0.get(&key) else {
            let key = key.chars().take(80).collect::<String>();
            let remark = format!("no link names a secret for the key `{}`; {}", key.escape_debug(), links.keys());
            self.0.log(LogStreamKind::Warn, "wasmcloud:secrets", remark.as_bytes());
            return Err(Refusal::Error(SecretsError::NotFound));
        };
        let revealed = linked.meter.call("get", linked.source.reveal(&linked.app, &linked.secret)).await;
        let remark = match &revealed {
            Err(SecretError::Missing(_)) => Some(format!("the secret `{}` does not exist", linked.secret.secret)),
            Err(absent @ (SecretError::Absent { .. } | SecretError::NotKept { .. } | SecretError::NotGiven { .. })) => {
                Some(absent.to_string())
            }
            _ => None,
        };
        if let Some(remark) = remark {
            self.0.log(LogStreamKind::Warn, "wasmcloud:secrets", remark.as_bytes());
        }
        let value = revealed?.value;
        let held = match value.expose_text() {
            Some(text) => Held::String(text.into()),
            None => Held::Bytes(value.expose().into()),
        };
        Ok(self.0.table().push(Secret(held))?)
    }

    fn convert_secrets_error(&mut self, refusal: Refusal) -> wasmtime::Result<SecretsError> {
        match refusal {
            Refusal::Error(error) => Ok(error),
            Refusal::Trap(trap) => Err(trap),
        }
    }
}

impl store::HostSecret for View<'_> {
    async fn drop(&mut self, secret: Resource<Secret>) -> wasmtime::Result<()> {
        self.0.table().delete(secret)?;
        Ok(())
    }
}
