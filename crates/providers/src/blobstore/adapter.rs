//! The one place where `wasi:blobstore` meets a [`Backend`](super::Backend): checks names, finds the link, and turns
//! each backend's error into the contract's, which is a sentence.

use std::sync::Arc;

use runtime::wasmtime::component::{HasData, Linker, Resource, ResourceTableError};
use runtime::{Capability, Ctx, LogStreamKind};
use wasmtime_wasi::p2::{DynInputStream, DynOutputStream};

use super::incoming::Incoming;
use super::listing::Listing;
use super::outgoing::{Carried, Outgoing};
use super::{BackendError, BlobLinks, MAX_NAMES, Place, check_object, transfer};

mod bindings {
    wasmtime::component::bindgen!({
        path: ["../../wit/p2", "../../wit/blobstore"],
        world: "wasi:blobstore/imports",
        imports: { default: async | trappable },
        with: {
            "wasi:io": wasmtime_wasi::p2::bindings::io,
            "wasi:blobstore/types.outgoing-value": crate::blobstore::outgoing::Outgoing,
            "wasi:blobstore/types.incoming-value": crate::blobstore::incoming::Incoming,
            "wasi:blobstore/container.container": super::Container,
            "wasi:blobstore/container.stream-object-names": crate::blobstore::listing::Listing,
        },
    });
}
use bindings::wasi::blobstore::types::{ContainerMetadata, ObjectId, ObjectMetadata};
use bindings::wasi::blobstore::{blobstore, container, types};

/// A container a guest holds open.
#[allow(unreachable_pub, reason = "the generated module names it as public")]
pub struct Container(Place);

/// What a function of the contract gives back.
type Told<T> = wasmtime::Result<Result<T, String>>;

/// How a call ends without an answer.
enum Refusal {
    /// The guest is told.
    Error(BackendError),
    /// The guest broke the contract, for example its limit of handles.
    Trap(wasmtime::Error),
}

impl From<BackendError> for Refusal {
    fn from(error: BackendError) -> Self {
        Self::Error(error)
    }
}

impl From<ResourceTableError> for Refusal {
    fn from(error: ResourceTableError) -> Self {
        Self::Trap(error.into())
    }
}

fn told<T>(answer: Result<T, Refusal>) -> Told<T> {
    match answer {
        Ok(value) => Ok(Ok(value)),
        Err(Refusal::Error(error)) => Ok(Err(error.to_string())),
        Err(Refusal::Trap(trap)) => Err(trap),
    }
}

/// The capability `wasi:blobstore`. Which containers a component has is in its [`BlobLinks`] binding.
#[derive(Debug, Clone, Copy, Default)]
pub struct Blobstore;

impl Capability for Blobstore {
    fn interfaces(&self) -> &'static [&'static str] {
        &[
            "wasi:blobstore/types@0.2.0-draft",
            "wasi:blobstore/container@0.2.0-draft",
            "wasi:blobstore/blobstore@0.2.0-draft",
        ]
    }

    fn link(&self, linker: &mut Linker<Ctx>) -> wasmtime::Result<()> {
        types::add_to_linker::<_, Views>(linker, |ctx| View(ctx))?;
        container::add_to_linker::<_, Views>(linker, |ctx| View(ctx))?;
        blobstore::add_to_linker::<_, Views>(linker, |ctx| View(ctx))
    }
}

/// The contract, as a component names it that chooses among its links.
const CONTRACT: &str = "wasi:blobstore";

struct Views;

impl HasData for Views {
    type Data<'a> = View<'a>;
}

/// The store's data as the contract's functions see it.
struct View<'a>(&'a mut Ctx);

impl View<'_> {
    fn place(&mut self, container: &Resource<Container>) -> Result<Place, Refusal> {
        Ok(self.0.table().get(container)?.0.clone())
    }

    fn find(&mut self, name: &str) -> Result<Place, Refusal> {
        let chosen = self.0.chosen_link(CONTRACT);
        let found = match self.0.binding::<BlobLinks>() {
            Some(links) => links.find(name, chosen),
            None => BlobLinks::new().find(name, chosen),
        };
        if let Err(BackendError::Misuse(remark)) = &found {
            let remark = remark.clone();
            self.0.log(LogStreamKind::Warn, "wasi:blobstore", remark.as_bytes());
        }
        Ok(found?)
    }

    async fn create(&mut self, name: &str) -> Result<Resource<Container>, Refusal> {
        let place = self.find(name)?;
        place.meter.call("create-container", place.backend.create(&place.container)).await?;
        Ok(self.0.table().push(Container(place))?)
    }

    async fn open(&mut self, name: &str) -> Result<Resource<Container>, Refusal> {
        let place = self.find(name)?;
        match place.meter.call("get-container", place.backend.container(&place.container)).await? {
            Some(_) => Ok(self.0.table().push(Container(place))?),
            None => Err(BackendError::NoContainer(place.called.to_string()).into()),
        }
    }

    /// Copies, and where `moves` removes what was copied. Both names may mean one object: by two labels, too.
    async fn copy(&mut self, from: &ObjectId, to: &ObjectId, moves: bool) -> Result<(), Refusal> {
        check_object(&from.object)?;
        check_object(&to.object)?;
        let (source, target) = (self.find(&from.container)?, self.find(&to.container)?);
        let one_backend = Arc::ptr_eq(&source.backend, &target.backend);
        let (old, new) = ((&*source.container, &*from.object), (&*target.container, &*to.object));
        if one_backend && old == new {
            let there = source.meter.call("object-info", source.backend.object(old.0, old.1)).await?;
            let missing = || BackendError::NoObject { container: from.container.clone(), object: from.object.clone() };
            return there.map(|_| ()).ok_or_else(|| missing().into());
        }
        let copied = async {
            match one_backend {
                true => source.backend.copy(old, new).await,
                false => transfer((&*source.backend, old.0, old.1), (&*target.backend, new.0, new.1)).await,
            }
        };
        target.meter.call("copy-object", copied).await?;
        if moves {
            source.meter.call("delete-object", source.backend.remove(old.0, vec![from.object.clone()])).await?;
        }
        Ok(())
    }

    async fn write(
        &mut self,
        container: &Resource<Container>,
        name: &str,
        data: &Resource<Outgoing>,
    ) -> Result<(), Refusal> {
        check_object(name)?;
        let place = self.place(container)?;
        if self.0.table().get(data)?.is_carried() {
            return Err(BackendError::Misuse("this value is being written to an object already".into()).into());
        }
        let upload = place.meter.call("write-data", place.write(name)).await?;
        self.0.table().get_mut(data)?.carry(upload, place.meter);
        Ok(())
    }

    async fn read(
        &mut self,
        container: &Resource<Container>,
        name: String,
        start: u64,
        end: u64,
    ) -> Result<Resource<Incoming>, Refusal> {
        check_object(&name)?;
        let place = self.place(container)?;
        let reading = place.meter.call("get-data", place.backend.read(&place.container, &name, start, end)).await?;
        Ok(self.0.table().push(Incoming::new(name, reading, place.meter))?)
    }

    async fn remove(&mut self, container: &Resource<Container>, names: Vec<String>) -> Result<(), Refusal> {
        names.iter().try_for_each(|name| check_object(name))?;
        if names.len() > MAX_NAMES {
            let why = format!("at most {MAX_NAMES} objects are deleted at once, these are {}", names.len());
            return Err(BackendError::TooLarge(why).into());
        }
        let place = self.place(container)?;
        Ok(place.meter.call("delete-objects", place.backend.remove(&place.container, names)).await?)
    }

    async fn object(&mut self, container: &Resource<Container>, name: &str) -> Result<Option<ObjectMetadata>, Refusal> {
        check_object(name)?;
        let place = self.place(container)?;
        let found = place.meter.call("object-info", place.backend.object(&place.container, name)).await?;
        Ok(found.map(|info| ObjectMetadata {
            name: name.to_owned(),
            container: place.called.to_string(),
            created_at: info.created_at,
            size: info.size,
        }))
    }
}

impl types::Host for View<'_> {}

impl types::HostOutgoingValue for View<'_> {
    async fn new_outgoing_value(&mut self) -> wasmtime::Result<Resource<Outgoing>> {
        Ok(self.0.table().push(Outgoing::new())?)
    }

    async fn outgoing_value_write_body(
        &mut self,
        value: Resource<Outgoing>,
    ) -> wasmtime::Result<Result<Resource<DynOutputStream>, ()>> {
        let Some(body) = self.0.table().get_mut(&value)?.body() else { return Ok(Err(())) };
        let body: DynOutputStream = Box::new(body);
        Ok(Ok(self.0.table().push_child(body, &value)?))
    }

    async fn finish(&mut self, value: Resource<Outgoing>) -> Told<()> {
        let Some(Carried { task, meter }) = self.0.table().delete(value)?.finish() else {
            let misuse = "the value was finished before it was given to a container: call write-data first";
            return Ok(Err(misuse.to_owned()));
        };
        let stored = async {
            match task.await {
                Ok(stored) => stored,
                Err(cause) => Err(BackendError::Unavailable(format!("the upload ended: {cause}"))),
            }
        };
        told(meter.call("finish", stored).await.map_err(Refusal::from))
    }

    async fn drop(&mut self, value: Resource<Outgoing>) -> wasmtime::Result<()> {
        let value = self.0.table().delete(value)?;
        if value.is_carried() {
            let remark = b"an outgoing-value was dropped before finish: nothing was stored";
            self.0.log(LogStreamKind::Warn, "wasi:blobstore", remark);
        }
        Ok(())
    }
}

impl types::HostIncomingValue for View<'_> {
    async fn incoming_value_consume_sync(&mut self, value: Resource<Incoming>) -> Told<Vec<u8>> {
        let value = self.0.table().delete(value)?;
        told(value.whole().await.map_err(Refusal::from))
    }

    async fn incoming_value_consume_async(&mut self, value: Resource<Incoming>) -> Told<Resource<DynInputStream>> {
        let stream: DynInputStream = Box::new(self.0.table().delete(value)?);
        Ok(Ok(self.0.table().push(stream)?))
    }

    async fn size(&mut self, value: Resource<Incoming>) -> wasmtime::Result<u64> {
        Ok(self.0.table().get(&value)?.size())
    }

    async fn drop(&mut self, value: Resource<Incoming>) -> wasmtime::Result<()> {
        self.0.table().delete(value)?;
        Ok(())
    }
}

impl container::Host for View<'_> {}

impl container::HostContainer for View<'_> {
    async fn name(&mut self, container: Resource<Container>) -> Told<String> {
        told(self.place(&container).map(|place| place.called.to_string()))
    }

    async fn info(&mut self, container: Resource<Container>) -> Told<ContainerMetadata> {
        let place = self.0.table().get(&container)?.0.clone();
        let found = place.meter.call("container-info", place.backend.container(&place.container)).await;
        told(match found {
            Ok(Some(info)) => Ok(ContainerMetadata { name: place.called.to_string(), created_at: info.created_at }),
            Ok(None) => Err(BackendError::NoContainer(place.called.to_string()).into()),
            Err(cause) => Err(cause.into()),
        })
    }

    async fn get_data(
        &mut self,
        container: Resource<Container>,
        name: String,
        start: u64,
        end: u64,
    ) -> Told<Resource<Incoming>> {
        told(self.read(&container, name, start, end).await)
    }

    async fn write_data(&mut self, container: Resource<Container>, name: String, data: Resource<Outgoing>) -> Told<()> {
        told(self.write(&container, &name, &data).await)
    }

    async fn list_objects(&mut self, container: Resource<Container>) -> Told<Resource<Listing>> {
        let place = self.0.table().get(&container)?.0.clone();
        Ok(Ok(self.0.table().push(Listing::new(place))?))
    }

    async fn delete_object(&mut self, container: Resource<Container>, name: String) -> Told<()> {
        told(self.remove(&container, vec![name]).await)
    }

    async fn delete_objects(&mut self, container: Resource<Container>, names: Vec<String>) -> Told<()> {
        told(self.remove(&container, names).await)
    }

    async fn has_object(&mut self, container: Resource<Container>, name: String) -> Told<bool> {
        told(self.object(&container, &name).await.map(|found| found.is_some()))
    }

    async fn object_info(&mut self, container: Resource<Container>, name: String) -> Told<ObjectMetadata> {
        let called = self.0.table().get(&container)?.0.called.to_string();
        told(match self.object(&container, &name).await {
            Ok(Some(found)) => Ok(found),
            Ok(None) => Err(BackendError::NoObject { container: called, object: name }.into()),
            Err(refusal) => Err(refusal),
        })
    }

    async fn clear(&mut self, container: Resource<Container>) -> Told<()> {
        let place = self.0.table().get(&container)?.0.clone();
        told(place.meter.call("clear", place.backend.clear(&place.container)).await.map_err(Refusal::from))
    }

    async fn drop(&mut self, container: Resource<Container>) -> wasmtime::Result<()> {
        self.0.table().delete(container)?;
        Ok(())
    }
}

impl container::HostStreamObjectNames for View<'_> {
    async fn read_stream_object_names(&mut self, names: Resource<Listing>, count: u64) -> Told<(Vec<String>, bool)> {
        told(self.0.table().get_mut(&names)?.read(count).await.map_err(Refusal::from))
    }

    async fn skip_stream_object_names(&mut self, names: Resource<Listing>, count: u64) -> Told<(u64, bool)> {
        told(self.0.table().get_mut(&names)?.skip(count).await.map_err(Refusal::from))
    }

    async fn drop(&mut self, names: Resource<Listing>) -> wasmtime::Result<()> {
        self.0.table().delete(names)?;
        Ok(())
    }
}

impl blobstore::Host for View<'_> {
    async fn create_container(&mut self, name: String) -> Told<Resource<Container>> {
        told(self.create(&name).await)
    }

    async fn get_container(&mut self, name: String) -> Told<Resource<Container>> {
        told(self.open(&name).await)
    }

    async fn delete_container(&mut self, name: String) -> Told<()> {
        told(match self.find(&name) {
            Ok(place) => place
                .meter
                .call("delete-container", place.backend.delete(&place.container))
                .await
                .map_err(Refusal::from),
            Err(refusal) => Err(refusal),
        })
    }

    async fn container_exists(&mut self, name: String) -> Told<bool> {
        told(match self.find(&name) {
            Ok(place) => {
                let found = place.meter.call("container-info", place.backend.container(&place.container)).await;
                found.map(|found| found.is_some()).map_err(Refusal::from)
            }
            Err(refusal) => Err(refusal),
        })
    }

    async fn copy_object(&mut self, from: ObjectId, to: ObjectId) -> Told<()> {
        told(self.copy(&from, &to, false).await)
    }

    async fn move_object(&mut self, from: ObjectId, to: ObjectId) -> Told<()> {
        told(self.copy(&from, &to, true).await)
    }
}
