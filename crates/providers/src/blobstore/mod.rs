//! `wasi:blobstore` 0.2.0-draft: the [`Backend`] every object store implements, and the [`BlobLinks`] that say which of
//! them a component's containers are in.
//!
//! The limits here hold for every backend, so an app that works on one works on the others. An object is never whole in
//! memory: it goes through in chunks, and whoever is slow holds up the other end and nobody else.

mod adapter;
mod component;
pub mod conformance;
pub mod copy;
pub mod external;
mod incoming;
pub mod journal;
mod listing;
pub mod nats;
mod outgoing;
pub mod s3;

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::Arc;

pub use adapter::Blobstore;
use bytes::Bytes;
pub use component::ComponentBlobs;
use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::BoxStream;
pub use s3::S3;

use crate::meter::{ErrorKind, Kind, LinkMeter};
use crate::share::{Later, Share, Sharing};

/// The longest name of a container, bytes; the shortest has one.
pub const MAX_CONTAINER_NAME: usize = 256;
/// The longest name of an object, bytes; the shortest has one.
pub const MAX_OBJECT_NAME: usize = 512;
/// The largest object, bytes.
pub const MAX_OBJECT: u64 = 5 << 30;
/// The largest object that is handed to a guest in one piece, bytes; a larger one is read as a stream.
pub const MAX_WHOLE: u64 = 16 << 20;
/// The most containers that are told at once.
pub const MAX_CONTAINERS: usize = 10_000;
/// The most names in one `delete-objects`.
pub const MAX_NAMES: usize = 1000;
/// The most names one page of a listing has.
pub const PAGE: usize = 1000;
/// The largest chunk a backend is given, and about the size of those it should give, bytes.
pub const CHUNK: usize = 256 << 10;

/// A container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContainerInfo {
    /// Seconds since 1970.
    pub created_at: u64,
}

/// An object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObjectInfo {
    /// When it was written last, seconds since 1970.
    pub created_at: u64,
    /// Bytes.
    pub size: u64,
}

/// Names of objects and where to go on.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Page {
    /// The names, at most [`PAGE`].
    pub names: Vec<String>,
    /// Present where there may be more; means something only to the backend that gave it.
    pub cursor: Option<String>,
}

/// An object, or a part of one, that is being read. It goes on as it was when it was opened, whatever happens to its
/// name meanwhile.
pub struct Reading {
    /// How many bytes come.
    pub size: u64,
    /// They, in chunks of any size.
    pub chunks: BoxStream<'static, Result<Bytes, BackendError>>,
}

/// Why a backend refused or failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BackendError {
    /// There is no such container.
    #[error("there is no container `{0}`: create it with `create-container`")]
    NoContainer(String),
    /// The container to be created is there.
    #[error("the container `{0}` is there already: get it with `get-container`")]
    ContainerExists(String),
    /// There is no such object.
    #[error("there is no object `{object}` in the container `{container}`")]
    NoObject {
        /// Where it was looked for.
        container: String,
        /// Its name.
        object: String,
    },
    /// The range starts after the end of the object, or ends before it starts.
    #[error("the range from {start} to {end} is not within an object of {size} bytes")]
    Range {
        /// The first byte asked for.
        start: u64,
        /// The last byte asked for.
        end: u64,
        /// Bytes there are.
        size: u64,
    },
    /// A name, an object or a list above its limit.
    #[error("{0}")]
    TooLarge(String),
    /// A call that makes no sense.
    #[error("{0}")]
    Misuse(String),
    /// The backend refuses this app: credentials, policy.
    #[error("the object store denies access: {0}")]
    Denied(String),
    /// The backend cannot be reached or cannot do it now. Whether a write happened is not known.
    #[error("the object store is not available: {0}")]
    Unavailable(String),
    /// No answer in time. Whether a write happened is not known.
    #[error("the object store did not answer within {ms} ms")]
    TimedOut {
        /// The limit, milliseconds.
        ms: u64,
    },
    /// What is stored is not what was written.
    #[error("the object `{object}` is damaged: {why}")]
    Damaged {
        /// Its name.
        object: String,
        /// What is wrong with it.
        why: String,
    },
}

impl Kind for BackendError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::NoContainer(_)
            | Self::ContainerExists(_)
            | Self::NoObject { .. }
            | Self::Range { .. }
            | Self::TooLarge(_)
            | Self::Misuse(_) => ErrorKind::Refused,
            Self::Denied(_) => ErrorKind::Denied,
            Self::Unavailable(_) | Self::Damaged { .. } => ErrorKind::Unavailable,
            Self::TimedOut { .. } => ErrorKind::TimedOut,
        }
    }
}

/// An answer that may take a while.
pub type Answer<'a, T> = BoxFuture<'a, Result<T, BackendError>>;

/// One object store, already narrowed to one provider of one app of one tenant. A write that was answered is as durable
/// as the backend promises. Names arrive checked.
pub trait Backend: Send + Sync + 'static {
    /// Makes an empty container; [`BackendError::ContainerExists`] where there is one.
    fn create<'a>(&'a self, container: &'a str) -> Answer<'a, ()>;
    /// The container, where there is one.
    fn container<'a>(&'a self, container: &'a str) -> Answer<'a, Option<ContainerInfo>>;
    /// The names of all containers, at most [`MAX_CONTAINERS`], in any order. Only copies of data ask: a backend without
    /// an answer cannot be copied as a whole.
    fn containers(&self) -> Answer<'_, Vec<String>> {
        let why = "this provider cannot say which containers it has: give the link a `container`";
        Box::pin(std::future::ready(Err(BackendError::Misuse(why.to_owned()))))
    }
    /// Removes a container and all its objects; no error where it is not there.
    fn delete<'a>(&'a self, container: &'a str) -> Answer<'a, ()>;
    /// Removes all objects of a container.
    fn clear<'a>(&'a self, container: &'a str) -> Answer<'a, ()>;
    /// The object, where there is one.
    fn object<'a>(&'a self, container: &'a str, object: &'a str) -> Answer<'a, Option<ObjectInfo>>;
    /// Opens the bytes `start..=end` of an object; an `end` past the last byte is the last byte ([`clamp`]).
    fn read<'a>(&'a self, container: &'a str, object: &'a str, start: u64, end: u64) -> Answer<'a, Reading>;
    /// How many objects it takes at once, where that is bounded; an [`Upload`] that finds no place refuses its first bytes.
    fn uploads(&self) -> Option<usize> {
        None
    }
    /// Begins to write an object. Until [`Upload::finish`] is answered nobody sees any of it.
    fn write<'a>(&'a self, container: &'a str, object: &'a str) -> Answer<'a, Box<dyn Upload>>;
    /// Some names. Going on from cursor to cursor names every object that was there all the time exactly once.
    fn list<'a>(&'a self, container: &'a str, cursor: Option<&'a str>) -> Answer<'a, Page>;
    /// Removes objects; no error for one that is not there.
    fn remove<'a>(&'a self, container: &'a str, objects: Vec<String>) -> Answer<'a, ()>;
    /// Copies an object, replacing what has the other name. A backend that cannot by itself calls [`transfer`].
    fn copy<'a>(&'a self, from: (&'a str, &'a str), to: (&'a str, &'a str)) -> Answer<'a, ()>;
}

/// An object that is being written.
pub trait Upload: Send {
    /// The next bytes, at most [`CHUNK`].
    fn write(&mut self, chunk: Bytes) -> Answer<'_, ()>;
    /// Puts the object in its place, whole, durably, at once.
    fn finish(self: Box<Self>) -> Answer<'static, ()>;
    /// Gives up: nothing of it stays.
    fn abandon(self: Box<Self>) -> BoxFuture<'static, ()>;
}

/// The refusal of an upload that found no place.
fn busy(most: usize) -> BackendError {
    BackendError::Unavailable(format!("{most} uploads are under way already; try again"))
}

/// An upload that has a place among those of its link too.
struct Placed {
    upload: Box<dyn Upload>,
    place: Later,
    most: usize,
}

impl Upload for Placed {
    fn write(&mut self, chunk: Bytes) -> Answer<'_, ()> {
        match self.place.take() {
            true => self.upload.write(chunk),
            false => Box::pin(std::future::ready(Err(busy(self.most)))),
        }
    }

    fn finish(self: Box<Self>) -> Answer<'static, ()> {
        let Self { upload, place, .. } = *self;
        let finished = upload.finish();
        Box::pin(async move {
            let result = finished.await;
            drop(place);
            result
        })
    }

    fn abandon(self: Box<Self>) -> BoxFuture<'static, ()> {
        self.upload.abandon()
    }
}

/// The first byte and the number of bytes that `start..=end` means for an object of `size` bytes. The whole of an empty
/// object is nothing.
///
/// # Errors
/// [`BackendError::Range`].
pub fn clamp(start: u64, end: u64, size: u64) -> Result<(u64, u64), BackendError> {
    if size == 0 && start == 0 {
        return Ok((0, 0));
    }
    if start > end || start >= size {
        return Err(BackendError::Range { start, end, size });
    }
    Ok((start, end.min(size - 1) - start + 1))
}

/// Copies an object by reading it from one backend and writing it to another.
///
/// # Errors
/// What either answers; nothing is written then.
pub async fn transfer(from: (&dyn Backend, &str, &str), to: (&dyn Backend, &str, &str)) -> Result<(), BackendError> {
    let Reading { size, mut chunks } = from.0.read(from.1, from.2, 0, u64::MAX).await?;
    let mut upload = to.0.write(to.1, to.2).await?;
    let mut left = size;
    while let Some(chunk) = chunks.next().await {
        let written = async {
            let mut chunk = chunk?;
            left = left.saturating_sub(chunk.len() as u64);
            while !chunk.is_empty() {
                upload.write(chunk.split_to(chunk.len().min(CHUNK))).await?;
            }
            Ok(())
        };
        if let Err(cause) = written.await {
            upload.abandon().await;
            return Err(cause);
        }
    }
    if left > 0 {
        upload.abandon().await;
        return Err(cut(from.2, left));
    }
    upload.finish().await
}

/// The error of an object that ended before its size.
fn cut(object: &str, left: u64) -> BackendError {
    BackendError::Damaged { object: object.to_owned(), why: format!("it ended {left} bytes before its size") }
}

/// What one component of one revision may open: a binding, immutable. Another link is another revision.
#[derive(Default)]
pub struct BlobLinks {
    by_label: HashMap<String, Linked>,
}

/// Containers of a backend, shared with every instance that opens one.
#[derive(Clone)]
struct Linked {
    backend: Arc<dyn Backend>,
    /// The container's name in the backend; the name the component says where absent.
    container: Option<Arc<str>>,
    meter: Arc<LinkMeter>,
    share: Share,
}

/// A container of a backend under the name the component calls it by.
#[derive(Clone)]
struct Place {
    backend: Arc<dyn Backend>,
    container: Arc<str>,
    called: Arc<str>,
    meter: Arc<LinkMeter>,
    share: Share,
}

impl Place {
    async fn write(&self, object: &str) -> Result<Box<dyn Upload>, BackendError> {
        let upload = self.backend.write(&self.container, object).await?;
        Ok(match self.share.later() {
            Some(place) => Box::new(Placed { upload, place, most: self.share.most() }),
            None => upload,
        })
    }
}

/// The label whose link answers for every name that no other link has.
const DEFAULT_LABEL: &str = "default";

impl BlobLinks {
    /// No links.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds what the container `label` is: `container` of `backend`, or where that is not said the container of the
    /// same name. The link with the label `default` that does not say it answers for every other name too.
    #[must_use]
    pub fn with(
        mut self,
        label: &model::Label,
        backend: Arc<dyn Backend>,
        container: Option<&str>,
        meter: Arc<LinkMeter>,
        sharing: Sharing,
    ) -> Self {
        let share = Share::new(backend.uploads(), sharing);
        let linked = Linked { backend, container: container.map(Into::into), meter, share };
        self.by_label.insert(label.as_str().to_owned(), linked);
        self
    }

    /// Where the container that a component calls `name` is, after it chose the link labelled `chosen`, if it did.
    fn find(&self, name: &str, chosen: Option<&str>) -> Result<Place, BackendError> {
        let chosen = chosen.unwrap_or(DEFAULT_LABEL);
        let name = if name.is_empty() || name == DEFAULT_LABEL { chosen } else { name };
        check_name("a container", name, MAX_CONTAINER_NAME)?;
        let any = || self.by_label.get(chosen).filter(|linked| linked.container.is_none());
        let Some(linked) = self.by_label.get(name).or_else(any) else {
            return Err(BackendError::Misuse(format!(
                "no blobstore link has the label `{}`; {}",
                name.escape_debug(),
                self.labels()
            )));
        };
        Ok(Place {
            backend: linked.backend.clone(),
            container: linked.container.clone().unwrap_or_else(|| name.into()),
            called: name.into(),
            meter: linked.meter.clone(),
            share: linked.share.clone(),
        })
    }

    /// The labels, for the message that one is missing.
    fn labels(&self) -> Cow<'static, str> {
        let mut labels: Vec<_> = self.by_label.keys().map(String::as_str).collect();
        labels.sort_unstable();
        if labels.is_empty() { "nothing is linked".into() } else { format!("linked: {}", labels.join(", ")).into() }
    }
}

/// Refuses a name that no backend takes.
fn check_name(what: &str, name: &str, max: usize) -> Result<(), BackendError> {
    match name.len() {
        0 => Err(BackendError::Misuse(format!("the name of {what} has at least one character"))),
        n if n > max => {
            Err(BackendError::TooLarge(format!("the name of {what} has at most {max} bytes, this one has {n}")))
        }
        _ if name.chars().any(char::is_control) => {
            Err(BackendError::Misuse(format!("the name of {what} has no control characters")))
        }
        _ => Ok(()),
    }
}

fn check_object(name: &str) -> Result<(), BackendError> {
    check_name("an object", name, MAX_OBJECT_NAME)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_inclusive_and_end_with_the_object() {
        for ((start, end, size), expected) in [
            ((0, 0, 1), Some((0, 1))),
            ((0, u64::MAX, 0), Some((0, 0))),
            ((0, u64::MAX, 7), Some((0, 7))),
            ((0, 7, 7), Some((0, 7))),
            ((6, 6, 7), Some((6, 1))),
            ((2, 4, 7), Some((2, 3))),
            ((7, 7, 7), None),
            ((1, 1, 0), None),
            ((4, 3, 7), None),
            ((0, u64::MAX, u64::MAX), Some((0, u64::MAX))),
        ] {
            assert_eq!(clamp(start, end, size).ok(), expected, "{start}..={end} of {size}");
        }
    }

    #[test]
    fn names_are_bounded_and_say_why() {
        assert!(check_object(&"x".repeat(MAX_OBJECT_NAME)).is_ok());
        assert!(matches!(check_object(&"x".repeat(MAX_OBJECT_NAME + 1)), Err(BackendError::TooLarge(_))));
        for bad in ["", "a\nb", "\0", "\u{85}"] {
            assert!(matches!(check_object(bad), Err(BackendError::Misuse(_))), "{bad:?}");
        }
        for odd in ["..", "/", "a//b", "ü", "\\", "%"] {
            assert!(check_object(odd).is_ok(), "{odd:?}");
        }
    }
}
