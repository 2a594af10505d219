//! Watched buckets: [`Told`] tells of what is written, [`changed`] calls the component that watches.
//!
//! What waits in between is which key changed, not what it became: the component is given the value the key has when it
//! is called. So a change that is told twice, or late, is never told wrongly.

use std::sync::Arc;

use futures::FutureExt;
use futures::future::BoxFuture;
use model::watch::Keys;
use runtime::trace::{CallTrace, within};
use runtime::wasmtime::component::{Resource, TypedFunc};
use runtime::{Fault, Workload, wasmtime};

use super::adapter::Bucket;
use super::{Answer, Backend, BackendError, KeyValueLinks, Page};
use crate::per_link::LinkId;

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
    watchers: Arc<[Watcher]>,
}

impl Told {
    /// Tells `watchers` of what is written to `bucket` of `inner`.
    pub fn new(inner: Arc<dyn Backend>, bucket: &str, watchers: Vec<Watcher>) -> Self {
        Self { inner, bucket: bucket.to_owned(), watchers: watchers.into() }
    }

    /// Writes with `write` and tells. To a watched bucket that is one task of its own: whoever asked may be gone, at the
    /// end of its time, when what it wrote is there and nobody was told.
    fn told<'a, T: Send + 'static>(
        &'a self,
        bucket: &'a str,
        keys: Vec<String>,
        write: impl for<'b> FnOnce(&'b dyn Backend, &'b str) -> Answer<'b, T> + Send + 'static,
    ) -> Answer<'a, T> {
        if bucket != self.bucket {
            return write(&*self.inner, bucket);
        }
        let (inner, bucket, watchers) = (self.inner.clone(), self.bucket.clone(), self.watchers.clone());
        let work = async move {
            let written = write(&*inner, &bucket).await;
            // Of these it is not known whether the write happened.
            let perhaps = matches!(written, Err(BackendError::Unavailable(_) | BackendError::TimedOut { .. }));
            if written.is_ok() || perhaps {
                for watcher in &*watchers {
                    let keys: Vec<String> = keys.iter().filter(|key| watcher.keys.has(key)).cloned().collect();
                    if !keys.is_empty() {
                        watcher.listener.changed(keys).await;
                    }
                }
            }
            written
        };
        async move {
            let task = tokio::spawn(within(CallTrace::current(), LinkId::carried(LinkId::calling(), work)));
            task.await.unwrap_or_else(|cause| Err(BackendError::Unavailable(cause.to_string())))
        }
        .boxed()
    }
}

impl Backend for Told {
    fn get<'a>(&'a self, bucket: &'a str, key: &'a str) -> Answer<'a, Option<Vec<u8>>> {
        self.inner.get(bucket, key)
    }

    fn set<'a>(&'a self, bucket: &'a str, key: &'a str, value: Vec<u8>) -> Answer<'a, ()> {
        let key = key.to_owned();
        self.told(bucket, vec![key.clone()], move |inner, bucket| {
            async move { inner.set(bucket, &key, value).await }.boxed()
        })
    }

    fn delete<'a>(&'a self, bucket: &'a str, key: &'a str) -> Answer<'a, ()> {
        let key = key.to_owned();
        self.told(bucket, vec![key.clone()], move |inner, bucket| {
            async move { inner.delete(bucket, &key).await }.boxed()
        })
    }

    fn exists<'a>(&'a self, bucket: &'a str, key: &'a str) -> Answer<'a, bool> {
        self.inner.exists(bucket, key)
    }

    fn list_keys<'a>(&'a self, bucket: &'a str, cursor: Option<&'a str>) -> Answer<'a, Page> {
        self.inner.list_keys(bucket, cursor)
    }

    fn increment<'a>(&'a self, bucket: &'a str, key: &'a str, delta: u64) -> Answer<'a, u64> {
        let key = key.to_owned();
        self.told(bucket, vec![key.clone()], move |inner, bucket| {
            async move { inner.increment(bucket, &key, delta).await }.boxed()
        })
    }

    fn get_many<'a>(&'a self, bucket: &'a str, keys: Vec<String>) -> Answer<'a, Vec<(String, Option<Vec<u8>>)>> {
        self.inner.get_many(bucket, keys)
    }

    fn set_many<'a>(&'a self, bucket: &'a str, pairs: Vec<(String, Vec<u8>)>) -> Answer<'a, ()> {
        let keys = pairs.iter().map(|(key, _)| key.clone()).collect();
        self.told(bucket, keys, move |inner, bucket| inner.set_many(bucket, pairs))
    }

    fn delete_many<'a>(&'a self, bucket: &'a str, keys: Vec<String>) -> Answer<'a, ()> {
        self.told(bucket, keys.clone(), move |inner, bucket| inner.delete_many(bucket, keys))
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
        assert!(store.increment("b", "a6", i64::MAX.unsigned_abs()).await.is_ok());
        assert!(store.increment("b", "a6", 1).await.is_err(), "what was refused is not told");
        assert!(store.get("b", "a3").await.unwrap().is_some());
        assert_eq!(*heard.0.lock().unwrap(), ["a1", "a3", "a1", "a4", "a4", "a5", "a6"]);
    }

    /// Hears when it is let.
    #[derive(Default)]
    struct Slow(Heard, tokio::sync::Notify);

    impl Listener for Slow {
        fn changed(&self, keys: Vec<String>) -> BoxFuture<'_, ()> {
            async move {
                self.1.notified().await;
                self.0.changed(keys).await;
            }
            .boxed()
        }
    }

    #[tokio::test]
    async fn what_was_written_is_told_though_its_writer_met_its_deadline() {
        let slow = Arc::new(Slow::default());
        let store = Arc::new(Memory::new(4096));
        let told = Told::new(store.clone(), "b", vec![Watcher { keys: Keys::of("*"), listener: slow.clone() }]);
        let soon = std::time::Duration::from_millis(50);
        assert!(tokio::time::timeout(soon, told.set("b", "k", vec![1])).await.is_err(), "it is told first");
        assert!(store.exists("b", "k").await.unwrap());
        slow.1.notify_one();
        while slow.0.0.lock().unwrap().is_empty() {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
        assert_eq!(*slow.0.0.lock().unwrap(), ["k"]);
    }
}
