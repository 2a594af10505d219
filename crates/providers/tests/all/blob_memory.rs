//! Objects in memory, as simple as they can be: what the suite and the adapter are tried on before any real store.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

use bytes::{Bytes, BytesMut};
use futures::FutureExt;
use futures::StreamExt;
use futures::future::{BoxFuture, ready};
use providers::blobstore::{
    Answer, Backend, BackendError, CHUNK, ContainerInfo, ObjectInfo, PAGE, Page, Reading, Upload, clamp,
};

type Objects = BTreeMap<String, Bytes>;

/// A store of the test's own.
#[derive(Default, Clone)]
pub(crate) struct Memory {
    pub(crate) containers: Arc<Mutex<BTreeMap<String, Objects>>>,
    /// What every write and every finish answers instead, where there is something.
    pub(crate) refuse: Arc<Mutex<Option<BackendError>>>,
    /// Objects whose content is gone, until they are written again.
    pub(crate) damaged: Arc<Mutex<BTreeSet<String>>>,
    /// What objects become while somebody reads them: whoever does gets the first chunk, and hears that they are damaged.
    pub(crate) replaced: Arc<Mutex<BTreeMap<String, Bytes>>>,
}

impl Memory {
    fn within<T>(&self, container: &str, work: impl FnOnce(&mut Objects) -> T) -> Result<T, BackendError> {
        let mut containers = self.containers.lock().unwrap();
        containers.get_mut(container).map(work).ok_or_else(|| BackendError::NoContainer(container.to_owned()))
    }

    fn get(&self, container: &str, object: &str) -> Result<Bytes, BackendError> {
        let missing = || BackendError::NoObject { container: container.to_owned(), object: object.to_owned() };
        self.within(container, |objects| objects.get(object).cloned())?.ok_or_else(missing)
    }
}

fn now<'a, T: Send + 'a>(answer: Result<T, BackendError>) -> Answer<'a, T> {
    ready(answer).boxed()
}

impl Backend for Memory {
    fn create<'a>(&'a self, container: &'a str) -> Answer<'a, ()> {
        let mut containers = self.containers.lock().unwrap();
        if containers.contains_key(container) {
            return now(Err(BackendError::ContainerExists(container.to_owned())));
        }
        containers.insert(container.to_owned(), Objects::new());
        now(Ok(()))
    }
    fn container<'a>(&'a self, container: &'a str) -> Answer<'a, Option<ContainerInfo>> {
        let there = self.containers.lock().unwrap().contains_key(container);
        now(Ok(there.then_some(ContainerInfo { created_at: 1_700_000_000 })))
    }
    fn containers(&self) -> Answer<'_, Vec<String>> {
        now(Ok(self.containers.lock().unwrap().keys().cloned().collect()))
    }
    fn delete<'a>(&'a self, container: &'a str) -> Answer<'a, ()> {
        self.containers.lock().unwrap().remove(container);
        now(Ok(()))
    }
    fn clear<'a>(&'a self, container: &'a str) -> Answer<'a, ()> {
        now(self.within(container, Objects::clear))
    }
    fn object<'a>(&'a self, container: &'a str, object: &'a str) -> Answer<'a, Option<ObjectInfo>> {
        let info = |bytes: &Bytes| ObjectInfo { created_at: 1_700_000_000, size: bytes.len() as u64 };
        now(self.within(container, |objects| objects.get(object).map(info)))
    }
    fn read<'a>(&'a self, container: &'a str, object: &'a str, start: u64, end: u64) -> Answer<'a, Reading> {
        let damaged = self.damaged.lock().unwrap().contains(object);
        let reading = self.get(container, object).and_then(|bytes| {
            let (start, size) = clamp(start, end, bytes.len() as u64)?;
            let bytes = bytes.slice(start as usize..(start + size) as usize);
            let mut chunks: Vec<_> = bytes.chunks(CHUNK).map(|chunk| Ok(bytes.slice_ref(chunk))).collect();
            if damaged {
                chunks = vec![Err(BackendError::Damaged { object: object.to_owned(), why: "it is gone".into() })];
            }
            if let Some(next) = self.replaced.lock().unwrap().remove(object) {
                self.within(container, |objects| objects.insert(object.to_owned(), next))?;
                chunks.truncate(1);
                chunks.push(Err(BackendError::Damaged { object: object.to_owned(), why: "it was replaced".into() }));
            }
            Ok(Reading { size, chunks: futures::stream::iter(chunks).boxed() })
        });
        now(reading)
    }
    fn write<'a>(&'a self, container: &'a str, object: &'a str) -> Answer<'a, Box<dyn Upload>> {
        let upload = self.within(container, |_| {
            let place = (container.to_owned(), object.to_owned());
            let upload: Box<dyn Upload> = Box::new(Writing { memory: self.clone(), place, bytes: BytesMut::new() });
            upload
        });
        now(upload)
    }
    fn list<'a>(&'a self, container: &'a str, cursor: Option<&'a str>) -> Answer<'a, Page> {
        let after = cursor.unwrap_or_default().to_owned();
        now(self.within(container, |objects| {
            let mut rest = objects.keys().filter(|name| **name > after).cloned();
            let names: Vec<_> = rest.by_ref().take(PAGE).collect();
            let cursor = rest.next().and(names.last().cloned());
            Page { names, cursor }
        }))
    }
    fn remove<'a>(&'a self, container: &'a str, names: Vec<String>) -> Answer<'a, ()> {
        now(self.within(container, |objects| objects.retain(|name, _| !names.contains(name))))
    }
    fn copy<'a>(&'a self, from: (&'a str, &'a str), to: (&'a str, &'a str)) -> Answer<'a, ()> {
        let bytes = self.get(from.0, from.1);
        now(bytes.and_then(|bytes| self.within(to.0, |objects| drop(objects.insert(to.1.to_owned(), bytes)))))
    }
}

struct Writing {
    memory: Memory,
    place: (String, String),
    bytes: BytesMut,
}

impl Upload for Writing {
    fn write(&mut self, chunk: Bytes) -> Answer<'_, ()> {
        assert!(!chunk.is_empty() && chunk.len() <= CHUNK, "a chunk of {} bytes", chunk.len());
        self.bytes.extend_from_slice(&chunk);
        now(self.memory.refuse.lock().unwrap().clone().map_or(Ok(()), Err))
    }
    fn finish(self: Box<Self>) -> Answer<'static, ()> {
        let Self { memory, place, bytes } = *self;
        if let Some(refused) = memory.refuse.lock().unwrap().clone() {
            return now(Err(refused));
        }
        memory.damaged.lock().unwrap().remove(&place.1);
        now(memory.within(&place.0, |objects| drop(objects.insert(place.1, bytes.freeze()))))
    }
    fn abandon(self: Box<Self>) -> BoxFuture<'static, ()> {
        ready(()).boxed()
    }
}
