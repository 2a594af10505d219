//! Objects in a process beside the platform that speaks wRPC: `wrpc:blobstore@0.2.0`, as providers of wasmCloud 1.x export it.
//!
//! The contract's errors are texts, so what a refusal means is found out by asking: whether the container is there, and the
//! object. Listings have an offset, by which a name is missed where another one is removed meanwhile; so a listing is read
//! from its start for each page, and the names that follow the last one are kept, as many as a page has.

use std::collections::BinaryHeap;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use futures::stream::{self, StreamExt};
use model::ProviderName;
use tokio::time::Instant;

use super::{
    Answer, Backend, BackendError, ContainerInfo, MAX_OBJECT_NAME, ObjectInfo, PAGE, Page, Reading, Upload, clamp,
};
use crate::external::open::Open;
use crate::external::{
    AT_FIRST, Answered, CALL, CallError, Connect, Function, Kind, Params, Patience, Process, SHORT, USUAL, words,
};

const STORE: &str = "wrpc:blobstore/blobstore@0.2.0";

/// The largest piece of an object, or of a listing, that is taken at once, bytes.
const PIECE: u64 = 4 << 20;
/// A process may take so long for one piece, and to put an object in its place.
const STEP: Duration = Duration::from_secs(30);
/// A change of a whole container, or a copy, may take so long.
const LARGE: Patience = Patience { connect: CALL, answer: Duration::from_secs(60) };
/// A listing may take so long, and have so many names.
const LISTING: Duration = Duration::from_secs(60);
const MAX_NAMES: usize = 1_000_000;

/// What a function answers.
type Said<T> = Result<T, String>;
/// A stream: what is there already, or nothing yet; and how it ended, likewise.
type Streamed<T> = Said<(Option<T>, Option<Said<()>>)>;

/// Where the parts of such an answer come.
const ROOT: &[usize] = &[];
const STREAM: &[usize] = &[0, 0];
const STREAM_END: &[usize] = &[0, 1];
const WRITTEN: &[usize] = &[0];
/// The parameter of a write that is a stream.
const DATA: u32 = 1;

/// One app's objects in one external process.
#[derive(Clone)]
pub struct External(Arc<Process>);

impl From<CallError> for BackendError {
    fn from(error: CallError) -> Self {
        match error {
            CallError::Away(why) => Self::Unavailable(why),
            CallError::TimedOut { ms } => Self::TimedOut { ms },
            CallError::TooLarge(why) => Self::TooLarge(why),
        }
    }
}

impl External {
    /// The objects behind `connect`. Nothing is connected before the first call.
    pub fn new(name: ProviderName, connect: Arc<dyn Connect>) -> Self {
        Self(Arc::new(Process::new(name, connect)))
    }

    /// Asks for a container that nobody has: says early and with its reason what every call would say.
    ///
    /// # Errors
    /// What a call would answer.
    pub async fn check(&self) -> Result<(), BackendError> {
        let asked: Said<bool> = self.call(AT_FIRST, "container-exists", Kind::Read, "sidereal-health").await?;
        // It answered; what, is of no matter.
        drop(asked);
        Ok(())
    }

    async fn call<P: Params + Clone, T: Answered>(
        &self,
        patience: Patience,
        name: &'static str,
        kind: Kind,
        params: P,
    ) -> Result<Said<T>, CallError> {
        self.0.call(patience, &Function(STORE, name, kind, SHORT), params).await
    }

    async fn is_there(&self, container: &str) -> Result<bool, BackendError> {
        let said: Said<bool> = self.call(USUAL, "container-exists", Kind::Read, container).await?;
        said.map_err(|text| refused(&text))
    }

    async fn has(&self, container: &str, object: &str) -> Result<bool, BackendError> {
        let said: Said<bool> = self.call(USUAL, "has-object", Kind::Read, (container, object)).await?;
        said.map_err(|text| refused(&text))
    }

    /// What a refusal means: that the container is not there, or the object that was to be read, or what it says.
    async fn meant(&self, text: String, container: &str, object: Option<&str>) -> BackendError {
        match self.is_there(container).await {
            Ok(true) => {}
            Ok(false) => return BackendError::NoContainer(container.to_owned()),
            Err(cause) => return cause,
        }
        if let Some(object) = object {
            match self.has(container, object).await {
                Ok(true) => {}
                Ok(false) => {
                    return BackendError::NoObject { container: container.to_owned(), object: object.to_owned() };
                }
                Err(cause) => return cause,
            }
        }
        refused(&text)
    }

    async fn done<P: Params + Clone>(
        &self,
        patience: Patience,
        name: &'static str,
        params: P,
        container: &str,
    ) -> Result<(), BackendError> {
        let said: Said<()> = self.call(patience, name, Kind::Write, params).await?;
        match said {
            Ok(()) => Ok(()),
            Err(text) => Err(self.meant(text, container, None).await),
        }
    }

    /// The first names after `after`, one more than a page has where there are more.
    async fn names(&self, container: &str, after: Option<&str>) -> Result<Vec<String>, BackendError> {
        let function = Function(STORE, "list-container-objects", Kind::Read, PIECE);
        let mut open = self.0.open(&function, (container, None::<u64>, None::<u64>)).await?;
        let (first, mut ended) = match self.0.next::<Streamed<Vec<String>>>(&mut open, ROOT, CALL).await? {
            Ok(streamed) => streamed,
            Err(text) => {
                drop(open);
                return Err(self.meant(text, container, None).await);
            }
        };
        let mut found = Names { after, smallest: BinaryHeap::new(), seen: 0 };
        match first {
            Some(names) => found.add(names)?,
            None => loop {
                let names: Vec<String> = self.0.next(&mut open, STREAM, STEP).await?;
                if names.is_empty() {
                    break;
                }
                found.add(names)?;
            },
        }
        if ended.is_none() {
            ended = Some(self.0.next(&mut open, STREAM_END, STEP).await?);
        }
        match ended {
            Some(Err(text)) => {
                Err(BackendError::Unavailable(self.0.garbage(&format!("half a listing: {}", words(&text)))))
            }
            _ => Ok(found.smallest.into_sorted_vec()),
        }
    }
}

/// The first names of a listing that has them in any order.
struct Names<'a> {
    after: Option<&'a str>,
    smallest: BinaryHeap<String>,
    seen: usize,
}

impl Names<'_> {
    fn add(&mut self, names: Vec<String>) -> Result<(), BackendError> {
        self.seen += names.len();
        if self.seen > MAX_NAMES {
            let why = format!(
                "an external provider's listing is read to its end, and this one has more than {MAX_NAMES} names"
            );
            return Err(BackendError::TooLarge(why));
        }
        // A name that no object of ours has is somebody else's, and could not be used.
        for name in names.into_iter().filter(|name| (1..=MAX_OBJECT_NAME).contains(&name.len())) {
            if self.after.is_some_and(|after| name.as_str() <= after) {
                continue;
            }
            if self.smallest.len() <= PAGE {
                self.smallest.push(name);
            } else if self.smallest.peek().is_some_and(|largest| name < *largest) {
                self.smallest.pop();
                self.smallest.push(name);
            }
        }
        Ok(())
    }
}

fn refused(text: &str) -> BackendError {
    BackendError::Misuse(words(text))
}

impl Backend for External {
    fn create<'a>(&'a self, container: &'a str) -> Answer<'a, ()> {
        async move {
            let said: Said<()> = self.call(USUAL, "create-container", Kind::Write, container).await?;
            match said {
                Ok(()) => Ok(()),
                Err(text) => match self.is_there(container).await? {
                    true => Err(BackendError::ContainerExists(container.to_owned())),
                    false => Err(refused(&text)),
                },
            }
        }
        .boxed()
    }

    fn container<'a>(&'a self, container: &'a str) -> Answer<'a, Option<ContainerInfo>> {
        async move {
            let said: Said<u64> = self.call(USUAL, "get-container-info", Kind::Read, container).await?;
            match said {
                Ok(created_at) => Ok(Some(ContainerInfo { created_at })),
                Err(text) => match self.meant(text, container, None).await {
                    BackendError::NoContainer(_) => Ok(None),
                    other => Err(other),
                },
            }
        }
        .boxed()
    }

    fn delete<'a>(&'a self, container: &'a str) -> Answer<'a, ()> {
        async move {
            match self.done(LARGE, "delete-container", container, container).await {
                Err(BackendError::NoContainer(_)) => Ok(()),
                other => other,
            }
        }
        .boxed()
    }

    fn clear<'a>(&'a self, container: &'a str) -> Answer<'a, ()> {
        self.done(LARGE, "clear-container", container, container).boxed()
    }

    fn object<'a>(&'a self, container: &'a str, object: &'a str) -> Answer<'a, Option<ObjectInfo>> {
        async move {
            let said: Said<(u64, u64)> = self.call(USUAL, "get-object-info", Kind::Read, (container, object)).await?;
            match said {
                Ok((created_at, size)) => Ok(Some(ObjectInfo { created_at, size })),
                Err(text) => match self.meant(text, container, Some(object)).await {
                    BackendError::NoObject { .. } => Ok(None),
                    other => Err(other),
                },
            }
        }
        .boxed()
    }

    /// The range is found from the size the object has, and then opened: where it is replaced by one of another size in
    /// between, reading it fails.
    fn read<'a>(&'a self, container: &'a str, object: &'a str, start: u64, end: u64) -> Answer<'a, Reading> {
        async move {
            let none = || BackendError::NoObject { container: container.to_owned(), object: object.to_owned() };
            let info = self.object(container, object).await?.ok_or_else(none)?;
            let (start, size) = clamp(start, end, info.size)?;
            if size == 0 {
                return Ok(Reading { size, chunks: stream::empty().boxed() });
            }
            let function = Function(STORE, "get-container-data", Kind::Read, PIECE);
            let mut open = self.0.open(&function, ((container, object), start, start + size - 1)).await?;
            let (first, ended) = match self.0.next::<Streamed<Bytes>>(&mut open, ROOT, CALL).await? {
                Ok(streamed) => streamed,
                Err(text) => {
                    drop(open);
                    return Err(self.meant(text, container, Some(object)).await);
                }
            };
            let pieces = Pieces { process: self.0.clone(), object: object.to_owned(), open, first, ended, over: false };
            let chunks = stream::try_unfold(pieces, |mut pieces| async move {
                Ok(pieces.next().await?.map(|piece| (piece, pieces)))
            });
            Ok(Reading { size, chunks: chunks.boxed() })
        }
        .boxed()
    }

    fn write<'a>(&'a self, container: &'a str, object: &'a str) -> Answer<'a, Box<dyn Upload>> {
        async move {
            let function = Function(STORE, "write-container-data", Kind::Write, SHORT);
            // A stream that is to follow is written like a truth that is none.
            let mut open = self.0.open(&function, ((container, object), false)).await?;
            match self.0.next::<Said<Option<Said<()>>>>(&mut open, ROOT, CALL).await? {
                Ok(written) => {
                    let (store, container) = (self.clone(), container.to_owned());
                    Ok(Box::new(Sending { store, container, open, written }) as Box<dyn Upload>)
                }
                Err(text) => {
                    drop(open);
                    Err(self.meant(text, container, None).await)
                }
            }
        }
        .boxed()
    }

    fn list<'a>(&'a self, container: &'a str, cursor: Option<&'a str>) -> Answer<'a, Page> {
        async move {
            let began = Instant::now();
            let names = tokio::time::timeout_at(began + LISTING, self.names(container, cursor)).await;
            let mut names = names.unwrap_or(Err(BackendError::TimedOut { ms: LISTING.as_millis() as u64 }))?;
            let more = names.len() > PAGE;
            names.truncate(PAGE);
            Ok(Page { cursor: names.last().filter(|_| more).cloned(), names })
        }
        .boxed()
    }

    fn remove<'a>(&'a self, container: &'a str, objects: Vec<String>) -> Answer<'a, ()> {
        async move { self.done(USUAL, "delete-objects", (container, objects), container).await }.boxed()
    }

    fn copy<'a>(&'a self, from: (&'a str, &'a str), to: (&'a str, &'a str)) -> Answer<'a, ()> {
        async move {
            let said: Said<()> = self.call(LARGE, "copy-object", Kind::Write, (from, to)).await?;
            let Err(text) = said else { return Ok(()) };
            match self.meant(text, from.0, Some(from.1)).await {
                BackendError::Misuse(text) => Err(self.meant(text, to.0, None).await),
                other => Err(other),
            }
        }
        .boxed()
    }
}

/// An object on its way from a process.
struct Pieces {
    process: Arc<Process>,
    object: String,
    open: Open,
    /// All of it, where it came with the answer.
    first: Option<Bytes>,
    ended: Option<Said<()>>,
    over: bool,
}

impl Pieces {
    async fn next(&mut self) -> Result<Option<Bytes>, BackendError> {
        if self.over {
            return Ok(None);
        }
        if let Some(all) = self.first.take().filter(|all| !all.is_empty()) {
            self.over = true;
            return Ok(Some(all));
        }
        let piece: Bytes = self.process.next(&mut self.open, STREAM, STEP).await?;
        if !piece.is_empty() {
            return Ok(Some(piece));
        }
        self.over = true;
        let ended = match self.ended.take() {
            Some(ended) => ended,
            None => self.process.next(&mut self.open, STREAM_END, STEP).await?,
        };
        let damaged = |text: String| BackendError::Damaged { object: self.object.clone(), why: words(&text) };
        ended.map(|()| None).map_err(damaged)
    }
}

/// An object on its way to a process. Where it is dropped the connection ends before the stream does, and with that the
/// process knows that it is not to be kept.
struct Sending {
    store: External,
    container: String,
    open: Open,
    /// What became of it, where that is said already.
    written: Option<Said<()>>,
}

impl Sending {
    /// Why the process takes no more, if it says so.
    async fn why(&mut self, cause: io::Error) -> BackendError {
        let process = self.store.0.clone();
        match process.next::<Said<()>>(&mut self.open, WRITTEN, CALL).await {
            Ok(Err(text)) => self.store.meant(text, &self.container, None).await,
            _ => {
                let name = process.name();
                BackendError::Unavailable(format!("external provider `{name}` hung up on an object: {cause}"))
            }
        }
    }
}

impl Upload for Sending {
    fn write(&mut self, chunk: Bytes) -> Answer<'_, ()> {
        async move {
            // None would end the stream.
            if chunk.is_empty() {
                return Ok(());
            }
            let late = BackendError::TimedOut { ms: STEP.as_millis() as u64 };
            match tokio::time::timeout(STEP, self.open.send(DATA, &chunk)).await {
                Ok(Ok(())) => Ok(()),
                Ok(Err(cause)) => Err(self.why(cause).await),
                Err(_) => Err(late),
            }
        }
        .boxed()
    }

    fn finish(mut self: Box<Self>) -> Answer<'static, ()> {
        async move {
            if let Err(cause) = self.open.send(DATA, &Bytes::new()).await {
                return Err(self.why(cause).await);
            }
            drop(self.open.close());
            let process = self.store.0.clone();
            let written = match self.written.take() {
                Some(written) => written,
                None => process.next(&mut self.open, WRITTEN, STEP).await?,
            };
            match written {
                Ok(()) => Ok(()),
                Err(text) => Err(self.store.meant(text, &self.container, None).await),
            }
        }
        .boxed()
    }

    fn abandon(self: Box<Self>) -> BoxFuture<'static, ()> {
        drop(self);
        std::future::ready(()).boxed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_of_an_unordered_listing_name_everything_once() {
        let all: Vec<String> = (0..PAGE * 2 + 5).map(|n| format!("{:05}", (n * 7919) % 100_000)).collect();
        let (mut named, mut after) = (Vec::new(), None::<String>);
        loop {
            let mut found = Names { after: after.as_deref(), smallest: BinaryHeap::new(), seen: 0 };
            for piece in all.chunks(64) {
                found.add(piece.to_vec()).unwrap();
            }
            let mut page = found.smallest.into_sorted_vec();
            let more = page.len() > PAGE;
            page.truncate(PAGE);
            after = page.last().cloned();
            named.extend(page);
            if !more {
                break;
            }
        }
        let mut sorted = all.clone();
        sorted.sort_unstable();
        assert_eq!(named, sorted);
    }

    #[test]
    fn a_listing_without_an_end_is_given_up() {
        let mut found = Names { after: None, smallest: BinaryHeap::new(), seen: MAX_NAMES - 1 };
        assert!(found.add(vec!["a".to_owned()]).is_ok());
        assert!(matches!(found.add(vec!["b".to_owned()]), Err(BackendError::TooLarge(_))));
    }
}
