//! A component that exports `wasi:blobstore` as an object store. Each operation is one call of it. An object that is read
//! or written passes within one call as well: its chunks go by a channel between whoever has the other end and the
//! instance that holds the stream.

mod ask;
mod lent;
mod pass;

use std::sync::Arc;

use futures::FutureExt as _;
use futures::stream::{self, StreamExt as _};
use runtime::wasmtime::component::{Instance, InstancePre, ResourceAny};
use runtime::wasmtime::{self, Store};
use runtime::{Callee, Ctx};
use tokio::sync::{mpsc, oneshot};

use super::{Answer, Backend, BackendError, ContainerInfo, ObjectInfo, Page, Reading, Upload};
use crate::exported::{Exported, Failed, Functions};
use ask::{After, Op, Out, perform};
use bindings::exports::wasi::blobstore::{blobstore, container, types};

mod bindings {
    wasmtime::component::bindgen!({
        path: ["../../wit/p2", "../../wit/blobstore"],
        inline: "
            package sidereal:exported;
            world provider {
                export wasi:blobstore/types@0.2.0-draft;
                export wasi:blobstore/container@0.2.0-draft;
                export wasi:blobstore/blobstore@0.2.0-draft;
            }
        ",
        world: "sidereal:exported/provider",
        exports: { default: async },
        require_store_data_send: true,
        with: { "wasi:io": wasmtime_wasi::p2::bindings::io },
    });
}

/// Where a component has the functions of the contract: of all three interfaces, since they share their resources.
struct Indices {
    types: types::GuestIndices,
    container: container::GuestIndices,
    blobstore: blobstore::GuestIndices,
}

impl Functions for Indices {
    fn of(pre: &InstancePre<Ctx>) -> wasmtime::Result<Self> {
        Ok(Self {
            types: types::GuestIndices::new(pre)?,
            container: container::GuestIndices::new(pre)?,
            blobstore: blobstore::GuestIndices::new(pre)?,
        })
    }
}

/// What the component says: an answer, or its own words.
type Said<T> = Result<T, String>;

/// One instance at work.
struct Guest<'a> {
    store: &'a mut Store<Ctx>,
    types: types::Guest,
    container: container::Guest,
    blobstore: blobstore::Guest,
}

impl<'a> Guest<'a> {
    fn new(store: &'a mut Store<Ctx>, instance: &Instance, indices: &Indices) -> wasmtime::Result<Self> {
        let types = indices.types.load(&mut *store, instance)?;
        let container = indices.container.load(&mut *store, instance)?;
        let blobstore = indices.blobstore.load(&mut *store, instance)?;
        Ok(Self { store, types, container, blobstore })
    }

    async fn open(&mut self, name: String) -> wasmtime::Result<Said<ResourceAny>> {
        self.blobstore.call_get_container(&mut *self.store, &name).await
    }

    async fn close(&mut self, resource: ResourceAny) -> wasmtime::Result<()> {
        resource.resource_drop_async(&mut *self.store).await
    }
}

/// A component of the app as an object store.
pub struct ComponentBlobs {
    exported: Exported<Indices>,
}

impl ComponentBlobs {
    /// The object store that `callee` exports.
    pub fn new(callee: Arc<dyn Callee>) -> Self {
        Self { exported: Exported::new(callee) }
    }

    /// One operation that needs no stream.
    async fn ask(&self, op: Op) -> Result<Out, BackendError> {
        let called = self.exported.call(move |store, instance, indices| {
            Box::pin(async move { perform(&mut Guest::new(store, &instance, &indices)?, op).await })
        });
        said(called.await)
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

/// The component's words are the caller's error, as they are.
fn said<T>(called: Result<Said<T>, Failed>) -> Result<T, BackendError> {
    called?.map_err(BackendError::Misuse)
}

fn another() -> BackendError {
    BackendError::Unavailable("the component behind the link answered another question".to_owned())
}

fn done(out: Out) -> Result<(), BackendError> {
    match out {
        Out::Done => Ok(()),
        _ => Err(another()),
    }
}

fn own((container, object): (&str, &str)) -> (String, String) {
    (container.to_owned(), object.to_owned())
}

impl Backend for ComponentBlobs {
    fn create<'a>(&'a self, container: &'a str) -> Answer<'a, ()> {
        async move { done(self.ask(Op::Create { container: container.to_owned() }).await?) }.boxed()
    }

    fn container<'a>(&'a self, container: &'a str) -> Answer<'a, Option<ContainerInfo>> {
        async move {
            match self.ask(Op::Container { container: container.to_owned() }).await? {
                Out::Container(found) => Ok(found),
                _ => Err(another()),
            }
        }
        .boxed()
    }

    fn delete<'a>(&'a self, container: &'a str) -> Answer<'a, ()> {
        async move { done(self.ask(Op::Delete { container: container.to_owned() }).await?) }.boxed()
    }

    fn clear<'a>(&'a self, container: &'a str) -> Answer<'a, ()> {
        async move { done(self.ask(Op::Clear { container: container.to_owned() }).await?) }.boxed()
    }

    fn object<'a>(&'a self, container: &'a str, object: &'a str) -> Answer<'a, Option<ObjectInfo>> {
        let (container, object) = own((container, object));
        async move {
            match self.ask(Op::Object { container, object }).await? {
                Out::Object(found) => Ok(found),
                _ => Err(another()),
            }
        }
        .boxed()
    }

    fn read<'a>(&'a self, container: &'a str, object: &'a str, start: u64, end: u64) -> Answer<'a, Reading> {
        let at = own((container, object));
        async move {
            let (parts, coming) = mpsc::channel(1);
            let call = self.exported.call(move |store, instance, indices| {
                Box::pin(async move {
                    pass::give(&mut Guest::new(store, &instance, &indices)?, at, (start, end), parts).await
                })
            });
            let (size, giving) = pass::Giving::new(coming, call.boxed()).begun().await?;
            Ok(Reading { size, chunks: stream::try_unfold(giving, pass::Giving::bytes).boxed() })
        }
        .boxed()
    }

    fn write<'a>(&'a self, container: &'a str, object: &'a str) -> Answer<'a, Box<dyn Upload>> {
        let at = own((container, object));
        async move {
            let (ready, begun) = oneshot::channel();
            let (chunks, coming) = mpsc::channel(1);
            let call = self.exported.call(move |store, instance, indices| {
                Box::pin(
                    async move { pass::take(&mut Guest::new(store, &instance, &indices)?, at, ready, coming).await },
                )
            });
            let taking = pass::Taking::new(chunks, call.boxed()).begun(begun).await?;
            Ok(Box::new(taking) as Box<dyn Upload>)
        }
        .boxed()
    }

    fn list<'a>(&'a self, container: &'a str, cursor: Option<&'a str>) -> Answer<'a, Page> {
        async move {
            let after = match cursor.map(After::parse) {
                None => None,
                Some(Some(after)) => Some(after),
                Some(None) => {
                    return Err(BackendError::Misuse("the cursor is not one of this object store".to_owned()));
                }
            };
            match self.ask(Op::List { container: container.to_owned(), after }).await? {
                Out::Page(page) => Ok(page),
                _ => Err(another()),
            }
        }
        .boxed()
    }

    fn remove<'a>(&'a self, container: &'a str, objects: Vec<String>) -> Answer<'a, ()> {
        async move { done(self.ask(Op::Remove { container: container.to_owned(), objects }).await?) }.boxed()
    }

    fn copy<'a>(&'a self, from: (&'a str, &'a str), to: (&'a str, &'a str)) -> Answer<'a, ()> {
        async move { done(self.ask(Op::Copy { from: own(from), to: own(to) }).await?) }.boxed()
    }
}
