//! A component that exports `wasi:keyvalue` as a store: a provider written like any other component, with links of its
//! own. Each operation is one call of it: open the bucket, do it, drop the bucket.

use std::sync::Arc;

use futures::FutureExt;
use futures::future::BoxFuture;
use runtime::wasmtime::component::{Instance, InstancePre, ResourceAny};
use runtime::wasmtime::{self, Store};
use runtime::{Callee, Ctx};

use super::{Answer, Backend, BackendError, Page};
use crate::exported::{Exported, Failed, Functions};
use bindings::exports::wasi::keyvalue::{atomics, batch, store};

mod bindings {
    wasmtime::component::bindgen!({
        path: "../../wit/keyvalue",
        inline: "
            package sidereal:exported;
            world provider {
                export wasi:keyvalue/store@0.2.0-draft;
                export wasi:keyvalue/atomics@0.2.0-draft;
                export wasi:keyvalue/batch@0.2.0-draft;
            }
        ",
        world: "sidereal:exported/provider",
        exports: { default: async },
        require_store_data_send: true,
    });
}

/// Where a component has the functions of the contract; of interfaces beside `store`, those it exports.
struct Indices {
    store: store::GuestIndices,
    atomics: Option<atomics::GuestIndices>,
    batch: Option<batch::GuestIndices>,
}

impl Functions for Indices {
    fn of(pre: &InstancePre<Ctx>) -> wasmtime::Result<Self> {
        Ok(Self {
            store: store::GuestIndices::new(pre)?,
            atomics: atomics::GuestIndices::new(pre).ok(),
            batch: batch::GuestIndices::new(pre).ok(),
        })
    }
}

/// One operation; everything owned, since it travels into the component's store.
enum Op {
    Get { key: String },
    Set { key: String, value: Vec<u8> },
    Delete { key: String },
    Exists { key: String },
    ListKeys { cursor: Option<u64> },
    Increment { key: String, delta: u64 },
    GetMany { keys: Vec<String> },
    SetMany { pairs: Vec<(String, Vec<u8>)> },
    DeleteMany { keys: Vec<String> },
}

/// What an operation answers.
enum Out {
    Done,
    Value(Option<Vec<u8>>),
    Found(bool),
    Keys(store::KeyResponse),
    Number(u64),
    Values(Vec<Option<(String, Vec<u8>)>>),
}

/// The error of the component, or the interface it does not export.
enum Refusal {
    Said(store::Error),
    Missing(&'static str),
}

impl From<store::Error> for Refusal {
    fn from(error: store::Error) -> Self {
        Self::Said(error)
    }
}

type Performed = Result<Out, Refusal>;

/// A component of the app as a store.
pub struct ComponentStore {
    exported: Exported<Indices>,
}

impl ComponentStore {
    /// The store that `callee` exports.
    pub fn new(callee: Arc<dyn Callee>) -> Self {
        Self { exported: Exported::new(callee) }
    }

    async fn call(&self, bucket: &str, op: Op) -> Result<Out, BackendError> {
        let bucket = bucket.to_owned();
        let called = self.exported.call(move |store, instance, indices| {
            Box::pin(async move { perform(store, instance, &indices, bucket, op).await })
        });
        called.await?.map_err(|refusal| match refusal {
            Refusal::Missing(interface) => {
                BackendError::Unsupported(format!("the component behind the link does not export {interface}"))
            }
            Refusal::Said(store::Error::AccessDenied) => {
                BackendError::Denied("the component behind the link says so".to_owned())
            }
            Refusal::Said(store::Error::NoSuchStore) => {
                BackendError::Unavailable("the component behind the link has no such bucket".to_owned())
            }
            Refusal::Said(store::Error::Other(text)) => BackendError::Unsupported(text),
        })
    }
}

impl From<Failed> for BackendError {
    fn from(failed: Failed) -> Self {
        match failed {
            Failed::TimedOut { ms } => Self::TimedOut { ms },
            Failed::TooLarge(why) => Self::TooLarge(why),
            Failed::Unavailable(why) => Self::Unavailable(why),
        }
    }
}

/// Opens the bucket, runs the operation and drops the bucket.
async fn perform(
    store: &mut Store<Ctx>,
    instance: Instance,
    indices: &Indices,
    bucket: String,
    op: Op,
) -> wasmtime::Result<Performed> {
    let guest = indices.store.load(&mut *store, &instance)?;
    let bucket = match guest.call_open(&mut *store, &bucket).await? {
        Ok(bucket) => bucket,
        Err(error) => return Ok(Err(error.into())),
    };
    let performed = on_bucket(store, &instance, indices, &guest, bucket, op).await?;
    bucket.resource_drop_async(&mut *store).await?;
    Ok(performed)
}

async fn on_bucket(
    s: &mut Store<Ctx>,
    instance: &Instance,
    indices: &Indices,
    guest: &store::Guest,
    b: ResourceAny,
    op: Op,
) -> wasmtime::Result<Performed> {
    let bucket = guest.bucket();
    let done = |answered: Result<(), store::Error>| answered.map(|()| Out::Done);
    let answered = match op {
        Op::Get { key } => bucket.call_get(&mut *s, b, &key).await?.map(Out::Value),
        Op::Set { key, value } => done(bucket.call_set(&mut *s, b, &key, &value).await?),
        Op::Delete { key } => done(bucket.call_delete(&mut *s, b, &key).await?),
        Op::Exists { key } => bucket.call_exists(&mut *s, b, &key).await?.map(Out::Found),
        Op::ListKeys { cursor } => bucket.call_list_keys(&mut *s, b, cursor).await?.map(Out::Keys),
        Op::Increment { key, delta } => {
            let Some(atomics) = &indices.atomics else { return Ok(Err(Refusal::Missing("wasi:keyvalue/atomics"))) };
            let atomics = atomics.load(&mut *s, instance)?;
            atomics.call_increment(&mut *s, b, &key, delta).await?.map(Out::Number)
        }
        Op::GetMany { .. } | Op::SetMany { .. } | Op::DeleteMany { .. } => {
            let Some(batch) = &indices.batch else { return Ok(Err(Refusal::Missing("wasi:keyvalue/batch"))) };
            let batch = batch.load(&mut *s, instance)?;
            match op {
                Op::GetMany { keys } => batch.call_get_many(&mut *s, b, &keys).await?.map(Out::Values),
                Op::SetMany { pairs } => done(batch.call_set_many(&mut *s, b, &pairs).await?),
                Op::DeleteMany { keys } => done(batch.call_delete_many(&mut *s, b, &keys).await?),
                _ => return Ok(Err(Refusal::Missing("wasi:keyvalue/batch"))),
            }
        }
    };
    Ok(answered.map_err(Refusal::Said))
}

fn answer<'a, T: Send + 'a>(
    called: impl Future<Output = Result<Out, BackendError>> + Send + 'a,
    take: impl FnOnce(Out) -> Option<T> + Send + 'a,
) -> BoxFuture<'a, Result<T, BackendError>> {
    let other = || BackendError::Unavailable("the component answered another question".to_owned());
    async move { take(called.await?).ok_or_else(other) }.boxed()
}

/// The values of the keys that were asked for; `None` where they are of others, or in another order.
fn answered(asked: Vec<String>, values: Vec<Option<(String, Vec<u8>)>>) -> Option<Vec<(String, Option<Vec<u8>>)>> {
    let same = |(key, value): (&String, &Option<(String, Vec<u8>)>)| value.as_ref().is_none_or(|(of, _)| of == key);
    if values.len() != asked.len() || !asked.iter().zip(&values).all(same) {
        return None;
    }
    Some(asked.into_iter().zip(values).map(|(key, value)| (key, value.map(|(_, value)| value))).collect())
}

fn done(out: Out) -> Option<()> {
    matches!(out, Out::Done).then_some(())
}

impl Backend for ComponentStore {
    fn get<'a>(&'a self, bucket: &'a str, key: &'a str) -> Answer<'a, Option<Vec<u8>>> {
        answer(self.call(bucket, Op::Get { key: key.to_owned() }), |out| match out {
            Out::Value(value) => Some(value),
            _ => None,
        })
    }

    fn set<'a>(&'a self, bucket: &'a str, key: &'a str, value: Vec<u8>) -> Answer<'a, ()> {
        answer(self.call(bucket, Op::Set { key: key.to_owned(), value }), done)
    }

    fn delete<'a>(&'a self, bucket: &'a str, key: &'a str) -> Answer<'a, ()> {
        answer(self.call(bucket, Op::Delete { key: key.to_owned() }), done)
    }

    fn exists<'a>(&'a self, bucket: &'a str, key: &'a str) -> Answer<'a, bool> {
        answer(self.call(bucket, Op::Exists { key: key.to_owned() }), |out| match out {
            Out::Found(found) => Some(found),
            _ => None,
        })
    }

    fn list_keys<'a>(&'a self, bucket: &'a str, cursor: Option<&'a str>) -> Answer<'a, Page> {
        let cursor = match cursor.map(str::parse::<u64>) {
            None => None,
            Some(Ok(cursor)) => Some(cursor),
            Some(Err(_)) => {
                let error = BackendError::Unsupported("the cursor is not one of this store".to_owned());
                return async { Err(error) }.boxed();
            }
        };
        answer(self.call(bucket, Op::ListKeys { cursor }), |out| match out {
            Out::Keys(page) => Some(Page { keys: page.keys, cursor: page.cursor.map(|cursor| cursor.to_string()) }),
            _ => None,
        })
    }

    fn increment<'a>(&'a self, bucket: &'a str, key: &'a str, delta: u64) -> Answer<'a, u64> {
        answer(self.call(bucket, Op::Increment { key: key.to_owned(), delta }), |out| match out {
            Out::Number(number) => Some(number),
            _ => None,
        })
    }

    fn get_many<'a>(&'a self, bucket: &'a str, keys: Vec<String>) -> Answer<'a, Vec<(String, Option<Vec<u8>>)>> {
        let asked = keys.clone();
        answer(self.call(bucket, Op::GetMany { keys }), move |out| match out {
            Out::Values(values) => answered(asked, values),
            _ => None,
        })
    }

    fn set_many<'a>(&'a self, bucket: &'a str, pairs: Vec<(String, Vec<u8>)>) -> Answer<'a, ()> {
        answer(self.call(bucket, Op::SetMany { pairs }), done)
    }

    fn delete_many<'a>(&'a self, bucket: &'a str, keys: Vec<String>) -> Answer<'a, ()> {
        answer(self.call(bucket, Op::DeleteMany { keys }), done)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_of_other_keys_are_no_answer() {
        let pair = |key: &str| Some((key.to_owned(), key.as_bytes().to_vec()));
        let asked = || vec!["a".to_owned(), "b".to_owned()];
        let found = answered(asked(), vec![None, pair("b")]);
        assert_eq!(found, Some(vec![("a".to_owned(), None), ("b".to_owned(), Some(b"b".to_vec()))]));
        for wrong in [vec![pair("b"), pair("a")], vec![pair("a")], vec![pair("a"), pair("c")]] {
            assert_eq!(answered(asked(), wrong.clone()), None, "{wrong:?}");
        }
    }
}
