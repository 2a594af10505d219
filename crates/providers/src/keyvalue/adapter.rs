//! The one place where `wasi:keyvalue` meets a [`Backend`](super::Backend): checks sizes, finds the link, and turns
//! each backend's error into the contract's.

use std::sync::Arc;

use runtime::wasmtime::component::{HasData, Linker, Resource, ResourceTableError};
use runtime::{Capability, Ctx, LogStreamKind};

use super::cursor::Cursors;
use super::{BackendError, KeyValueLinks, Linked, check_batch, check_key, check_value};

mod bindings {
    wasmtime::component::bindgen!({
        path: "../../wit/keyvalue",
        world: "imports",
        imports: { default: async | trappable },
        with: { "wasi:keyvalue/store.bucket": super::Bucket },
        trappable_error_type: { "wasi:keyvalue/store.error" => super::Refusal },
    });
}
use bindings::wasi::keyvalue::store::{Error, KeyResponse};
use bindings::wasi::keyvalue::{atomics, batch, store};

/// A bucket a guest holds open.
#[allow(unreachable_pub, reason = "the generated module names it as public")]
pub struct Bucket {
    linked: Linked,
    cursors: Arc<Cursors>,
}

impl Bucket {
    /// A bucket as `open` gives it.
    pub(super) fn of(links: &KeyValueLinks, linked: Linked) -> Self {
        Self { linked, cursors: links.cursors.clone() }
    }
}

/// How a call ends without an answer.
#[allow(unreachable_pub, reason = "the generated module names it as public")]
pub enum Refusal {
    /// The guest is told.
    Error(Error),
    /// The guest broke the contract, for example its limit of handles.
    Trap(wasmtime::Error),
}

impl From<BackendError> for Refusal {
    fn from(error: BackendError) -> Self {
        Self::Error(match error {
            BackendError::Denied(_) => Error::AccessDenied,
            other => Error::Other(other.to_string()),
        })
    }
}

impl From<ResourceTableError> for Refusal {
    fn from(error: ResourceTableError) -> Self {
        Self::Trap(error.into())
    }
}

type Answer<T> = Result<T, Refusal>;

/// The contract, as a component names it that chooses among its links.
const CONTRACT: &str = "wasi:keyvalue";

/// The capability `wasi:keyvalue`. Which buckets a component has is in its [`KeyValueLinks`] binding.
#[derive(Debug, Clone, Copy, Default)]
pub struct KeyValue;

impl Capability for KeyValue {
    fn interfaces(&self) -> &'static [&'static str] {
        &["wasi:keyvalue/store@0.2.0-draft", "wasi:keyvalue/atomics@0.2.0-draft", "wasi:keyvalue/batch@0.2.0-draft"]
    }

    fn link(&self, linker: &mut Linker<Ctx>) -> wasmtime::Result<()> {
        store::add_to_linker::<_, Views>(linker, |ctx| View(ctx))?;
        atomics::add_to_linker::<_, Views>(linker, |ctx| View(ctx))?;
        batch::add_to_linker::<_, Views>(linker, |ctx| View(ctx))
    }
}

struct Views;

impl HasData for Views {
    type Data<'a> = View<'a>;
}

/// The store's data as the contract's functions see it.
struct View<'a>(&'a mut Ctx);

impl View<'_> {
    fn linked(&mut self, bucket: &Resource<Bucket>) -> Answer<Linked> {
        Ok(self.0.table().get(bucket)?.linked.clone())
    }
}

impl store::Host for View<'_> {
    async fn open(&mut self, identifier: String) -> Answer<Resource<Bucket>> {
        let links = self.0.binding::<KeyValueLinks>().cloned().unwrap_or_default();
        let Some(linked) = links.find(links.meant(&identifier, self.0.chosen_link(CONTRACT))) else {
            let remark = format!("no key-value link has the label `{}`; {}", identifier.escape_debug(), links.labels());
            self.0.log(LogStreamKind::Warn, "wasi:keyvalue", remark.as_bytes());
            return Err(Refusal::Error(Error::NoSuchStore));
        };
        let bucket = Bucket::of(&links, linked.clone());
        Ok(self.0.table().push(bucket)?)
    }

    fn convert_error(&mut self, refusal: Refusal) -> wasmtime::Result<Error> {
        match refusal {
            Refusal::Error(error) => Ok(error),
            Refusal::Trap(trap) => Err(trap),
        }
    }
}

impl store::HostBucket for View<'_> {
    async fn get(&mut self, bucket: Resource<Bucket>, key: String) -> Answer<Option<Vec<u8>>> {
        check_key(&key)?;
        let Linked { backend, bucket, meter } = self.linked(&bucket)?;
        Ok(meter.call("get", backend.get(&bucket, &key)).await?)
    }

    async fn set(&mut self, bucket: Resource<Bucket>, key: String, value: Vec<u8>) -> Answer<()> {
        check_key(&key)?;
        check_value(&value)?;
        let Linked { backend, bucket, meter } = self.linked(&bucket)?;
        Ok(meter.call("set", backend.set(&bucket, &key, value)).await?)
    }

    async fn delete(&mut self, bucket: Resource<Bucket>, key: String) -> Answer<()> {
        check_key(&key)?;
        let Linked { backend, bucket, meter } = self.linked(&bucket)?;
        Ok(meter.call("delete", backend.delete(&bucket, &key)).await?)
    }

    async fn exists(&mut self, bucket: Resource<Bucket>, key: String) -> Answer<bool> {
        check_key(&key)?;
        let Linked { backend, bucket, meter } = self.linked(&bucket)?;
        Ok(meter.call("exists", backend.exists(&bucket, &key)).await?)
    }

    async fn list_keys(&mut self, bucket: Resource<Bucket>, cursor: Option<u64>) -> Answer<KeyResponse> {
        let cursors = self.0.table().get(&bucket)?.cursors.clone();
        let Linked { backend, bucket, meter } = self.linked(&bucket)?;
        let (keys, cursor) = meter.call("list-keys", cursors.list(&*backend, &bucket, cursor)).await?;
        Ok(KeyResponse { keys, cursor })
    }

    async fn drop(&mut self, bucket: Resource<Bucket>) -> wasmtime::Result<()> {
        self.0.table().delete(bucket)?;
        Ok(())
    }
}

impl atomics::Host for View<'_> {
    async fn increment(&mut self, bucket: Resource<Bucket>, key: String, delta: u64) -> Answer<u64> {
        check_key(&key)?;
        let Linked { backend, bucket, meter } = self.linked(&bucket)?;
        Ok(meter.call("increment", backend.increment(&bucket, &key, delta)).await?)
    }
}

impl batch::Host for View<'_> {
    async fn get_many(
        &mut self,
        bucket: Resource<Bucket>,
        keys: Vec<String>,
    ) -> Answer<Vec<Option<(String, Vec<u8>)>>> {
        check_keys(&keys)?;
        let Linked { backend, bucket, meter } = self.linked(&bucket)?;
        let found = meter.call("get-many", backend.get_many(&bucket, keys)).await?;
        Ok(found.into_iter().map(|(key, value)| value.map(|value| (key, value))).collect())
    }

    async fn set_many(&mut self, bucket: Resource<Bucket>, pairs: Vec<(String, Vec<u8>)>) -> Answer<()> {
        for (key, value) in &pairs {
            check_key(key)?;
            check_value(value)?;
        }
        check_batch(pairs.len(), pairs.iter().map(|(key, value)| key.len() + value.len()).sum())?;
        let Linked { backend, bucket, meter } = self.linked(&bucket)?;
        Ok(meter.call("set-many", backend.set_many(&bucket, pairs)).await?)
    }

    async fn delete_many(&mut self, bucket: Resource<Bucket>, keys: Vec<String>) -> Answer<()> {
        check_keys(&keys)?;
        let Linked { backend, bucket, meter } = self.linked(&bucket)?;
        Ok(meter.call("delete-many", backend.delete_many(&bucket, keys)).await?)
    }
}

fn check_keys(keys: &[String]) -> Answer<()> {
    keys.iter().try_for_each(|key| check_key(key))?;
    Ok(check_batch(keys.len(), keys.iter().map(String::len).sum())?)
}
