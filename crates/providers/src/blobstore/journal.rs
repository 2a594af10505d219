//! Which objects and containers were written while somebody copies a store; see [`crate::keyvalue::journal`], whose
//! notes these are, too: before each write and after it.

use std::sync::Arc;

use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;

use super::copy::Key;
use super::{Answer, Backend, ContainerInfo, ObjectInfo, Page, Reading, Upload};
use crate::keyvalue::journal::Journal;

/// The notes of every container are together: what is of no interest is left out when they are read.
pub const ALL: &str = "";

/// A backend whose writes are noted.
pub struct Journaled {
    inner: Arc<dyn Backend>,
    journal: Arc<Journal>,
}

impl Journaled {
    /// Notes the writes to `inner` in `journal`.
    pub fn new(inner: Arc<dyn Backend>, journal: Arc<Journal>) -> Self {
        Self { inner, journal }
    }

    fn noted<'a, T: 'a>(&'a self, keys: Vec<Key>, write: Answer<'a, T>) -> Answer<'a, T> {
        async move {
            note(&self.journal, &keys);
            let result = write.await;
            note(&self.journal, &keys);
            result
        }
        .boxed()
    }
}

fn note(journal: &Journal, keys: &[Key]) {
    if journal.is_open() {
        let texts: Vec<String> = keys.iter().map(Key::to_string).collect();
        journal.note(ALL, texts.iter().map(String::as_str));
    }
}

fn object(container: &str, object: &str) -> Key {
    Key::Object(container.to_owned(), object.to_owned())
}

/// A container that was removed may be made again before anybody looks: both are looked at then.
fn emptied(container: &str) -> Vec<Key> {
    vec![Key::Container(container.to_owned()), Key::Whole(container.to_owned())]
}

impl Backend for Journaled {
    fn create<'a>(&'a self, container: &'a str) -> Answer<'a, ()> {
        self.noted(vec![Key::Container(container.to_owned())], self.inner.create(container))
    }

    fn container<'a>(&'a self, container: &'a str) -> Answer<'a, Option<ContainerInfo>> {
        self.inner.container(container)
    }

    fn containers(&self) -> Answer<'_, Vec<String>> {
        self.inner.containers()
    }

    fn delete<'a>(&'a self, container: &'a str) -> Answer<'a, ()> {
        self.noted(emptied(container), self.inner.delete(container))
    }

    fn clear<'a>(&'a self, container: &'a str) -> Answer<'a, ()> {
        self.noted(emptied(container), self.inner.clear(container))
    }

    fn object<'a>(&'a self, container: &'a str, object: &'a str) -> Answer<'a, Option<ObjectInfo>> {
        self.inner.object(container, object)
    }

    fn read<'a>(&'a self, container: &'a str, object: &'a str, start: u64, end: u64) -> Answer<'a, Reading> {
        self.inner.read(container, object, start, end)
    }

    fn uploads(&self) -> Option<usize> {
        self.inner.uploads()
    }

    fn write<'a>(&'a self, container: &'a str, name: &'a str) -> Answer<'a, Box<dyn Upload>> {
        async move {
            let inner = self.inner.write(container, name).await?;
            let key = object(container, name);
            let upload: Box<dyn Upload> = Box::new(Sending { inner, key, journal: self.journal.clone() });
            Ok(upload)
        }
        .boxed()
    }

    fn list<'a>(&'a self, container: &'a str, cursor: Option<&'a str>) -> Answer<'a, Page> {
        self.inner.list(container, cursor)
    }

    fn remove<'a>(&'a self, container: &'a str, objects: Vec<String>) -> Answer<'a, ()> {
        let keys = objects.iter().map(|name| object(container, name)).collect();
        self.noted(keys, self.inner.remove(container, objects))
    }

    fn copy<'a>(&'a self, from: (&'a str, &'a str), to: (&'a str, &'a str)) -> Answer<'a, ()> {
        self.noted(vec![object(to.0, to.1)], self.inner.copy(from, to))
    }
}

/// An object on its way: nobody sees any of it before it is whole.
struct Sending {
    inner: Box<dyn Upload>,
    key: Key,
    journal: Arc<Journal>,
}

impl Upload for Sending {
    fn write(&mut self, chunk: Bytes) -> Answer<'_, ()> {
        self.inner.write(chunk)
    }

    fn finish(self: Box<Self>) -> Answer<'static, ()> {
        let Self { inner, key, journal } = *self;
        async move {
            let keys = [key];
            note(&journal, &keys);
            let result = inner.finish().await;
            note(&journal, &keys);
            result
        }
        .boxed()
    }

    fn abandon(self: Box<Self>) -> BoxFuture<'static, ()> {
        self.inner.abandon()
    }
}
