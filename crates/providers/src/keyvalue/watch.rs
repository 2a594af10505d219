//! Watched buckets: [`Told`] tells of what is written, [`changed`] calls the component that watches.
//!
//! What waits in between is which key changed, not what it became: the component is given the value the key has when it
//! is called. So a change that is told twice, or late, is never told wrongly.

use std::sync::Arc;

use futures::FutureExt;
use futures::future::BoxFuture;
use model::watch::Keys;
use runtime::wasmtime::component::{Resource, TypedFunc};
use runtime::{Fault, Workload, wasmtime};

use super::adapter::Bucket;
use super::{Answer, Backend, BackendError, KeyValueLinks, Page};

/// Takes which keys changed.
pub trait Listener: Send + Sync + 'static {
    /// These keys were written. What cannot be kept is the listener's to count: the write has happened.
    fn changed(&self, keys: Vec<String>) -> BoxFuture<'_, ()>;
}

/// One who listens to some keys of a bucket.
#[derive(Clone)]
pub struct Watcher {
    /// To which.
    pub keys: Keys,
    /// Who.
    pub listener: Arc<dyn Listener>,
}

/// A backend that tells of what is written through it, before the write is acknowledged.
pub struct Told {
    inner: Arc<dyn Backend>,
    bucket: String,
    watchers: Vec<Watcher>,
}

impl Told {
    /// Tells `watchers` of what is written to `bucket` of `inner`.
    pub fn new(inner: Arc<dyn Backend>, bucket: &str, watchers: Vec<Watcher>) -> Self {
        Self { inner, bucket: bucket.to_owned(), watchers }
    }

    fn told<'a, T: Send + 'a>(&'a self, bucket: &'a str, keys: Vec<String>, write: Answer<'a, T>) -> Answer<'a, T> {
        async move {
            let written = write.await;
            // Of these it is not known whether the write happened.
            let perhaps = matches!(written, Err(BackendError::Unavailable(_) | BackendError::TimedOut { .. }));
            if bucket == self.bucket && (written.is_ok() || perhaps) {
                for watcher in &self.watchers {
                    let keys: Vec<String> = keys.iter().filter(|key| watcher.keys.has(key)).cloned().collect();
                    if !keys.is_empty() {
                        watcher.listener.changed(keys).await;
                    }
                }
            }
            written
        }
        .boxed()
    }
}

impl Backend for Told {
    fn get<'a>(&'a self, bucket: &'a str, key: &'a str) -> Answer<'a, Option<Vec<u8>>> {
        self.inner.get(bucket, key)
    }

    fn set<'a>(&'a self, bucket: &'a str, key: &'a str, value: Vec<u8>) -> Answer<'a, ()> {
        self.told(bucket, vec![key.to_owned()], self.inner.set(bucket, key, value))
    }

    fn delete<'a>(&'a self, bucket: &'a str, key: &'a str) -> Answer<'a, ()> {
        self.told(bucket, vec![key.to_owned()], self.inner.delete(bucket, key))
    }

    fn exists<'a>(&'a self, bucket: &'a str, key: &'a str) -> Answer<'a, bool> {
        self.inner.exists(bucket, key)
    }

    fn list_keys<'a>(&'a self, bucket: &'a str, cursor: Option<&'a str>) -> Answer<'a, Page> {
        self.inner.list_keys(bucket, cursor)
    }

    fn increment<'a>(&'a self, bucket: &'a str, key: &'a str, delta: i64) -> Answer<'a, i64> {
        self.told(bucket, vec![key.to_owned()], self.inner.increment(bucket, key, delta))
    }

    fn get_many<'a>(&'a self, bucket: &'a str, keys: Vec<String>) -> Answer<'a, Vec<(String, Option<Vec<u8>>)>> {
        self.inner.get_many(bucket, keys)
    }

    fn set_many<'a>(&'a self, bucket: &'a str, pairs: Vec<(String, Vec<u8>)>) -> Answer<'a, ()> {
        let keys = pairs.iter().map(|(key, _)| key.clone()).collect();
        self.told(bucket, keys, self.inner.set_many(bucket, pairs))
    }

    fn delete_many<'a>(&'a self, bucket: &'a str, keys: Vec<String>) -> Answer<'a, ()> {
        self.told(bucket, keys.clone(), self.inner.delete_many(bucket, keys))
    }
}

/// Why a component was not told.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WatchError {
    /// The key could not be read.
    #[error(transparent)]
    Backend(#[from] BackendError),
    /// The call failed.
    #[error(transparent)]
    Fault(#[from] Fault),
}

/// The interface by which a component is told.
const WATCHER: &str = "wasi:keyvalue/watcher@0.2.0-draft";

/// Tells a component what `key` is now in the bucket behind its link `label`: `on-set` with its value, or `on-delete`
/// where it is not there. Within the limits of a call.
///
/// # Errors
/// Why it was not told.
pub async fn changed(work: &Arc<Workload>, label: String, key: String) -> Result<(), WatchError> {
    let told = work
        .invoke(move |store, instance| {
            Box::pin(async move {
                let links = store.data().binding::<KeyValueLinks>().cloned().unwrap_or_default();
                let missing = || wasmtime::format_err!("no key-value link has the label `{label}`");
                let linked = links.find(&label).ok_or_else(missing)?.clone();
                let value = match linked.meter.call("get", linked.backend.get(&linked.bucket, &key)).await {
                    Ok(value) => value,
                    Err(cause) => return Ok(Err(cause)),
                };
                let bucket: Resource<Bucket> = store.data_mut().table().push(Bucket::of(&links, linked))?;
                let name = if value.is_some() { "on-set" } else { "on-delete" };
                let missing = || wasmtime::format_err!("the component exports no `{name}` in {WATCHER}");
                let outer = instance.get_export_index(&mut *store, None, WATCHER).ok_or_else(missing)?;
                let inner = instance.get_export_index(&mut *store, Some(&outer), name).ok_or_else(missing)?;
                match value {
                    Some(value) => {
                        let on_set: TypedFunc<(Resource<Bucket>, String, Vec<u8>), ()> =
                            instance.get_typed_func(&mut *store, inner)?;
                        on_set.call_async(store, (bucket, key, value)).await?;
                    }
                    None => {
                        let on_delete: TypedFunc<(Resource<Bucket>, String), ()> =
                            instance.get_typed_func(&mut *store, inner)?;
                        on_delete.call_async(store, (bucket, key)).await?;
                    }
                }
                Ok(Ok(()))
            })
        })
        .await?;
    Ok(told?)
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::super::Memory;
    use super::*;

    #[derive(Default)]
    struct Heard(Mutex<Vec<String>>);

    impl Listener for Heard {
        fn changed(&self, keys: Vec<String>) -> BoxFuture<'_, ()> {
            self.0.lock().unwrap().extend(keys);
            futures::future::ready(()).boxed()
        }
    }

    #[tokio::test]
    async fn what_is_written_is_told_before_it_is_acknowledged() {
        let heard = Arc::new(Heard::default());
        let watcher = Watcher { keys: Keys::of("a*"), listener: heard.clone() };
        let store = Told::new(Arc::new(Memory::new(4096)), "b", vec![watcher]);
        store.set("b", "a1", vec![1]).await.unwrap();
        store.set("b", "x", vec![1]).await.unwrap();
        store.set("other", "a2", vec![1]).await.unwrap();
        store.increment("b", "a3", 1).await.unwrap();
        store.delete("b", "a1").await.unwrap();
        store.set_many("b", vec![("a4".into(), vec![]), ("y".into(), vec![])]).await.unwrap();
        store.delete_many("b", vec!["a4".into(), "a5".into()]).await.unwrap();
        assert!(store.increment("b", "a6", i64::MAX).await.is_ok());
        assert!(store.increment("b", "a6", 1).await.is_err(), "what was refused is not told");
        assert!(store.get("b", "a3").await.unwrap().is_some());
        assert_eq!(*heard.0.lock().unwrap(), ["a1", "a3", "a1", "a4", "a4", "a5", "a6"]);
    }
}
