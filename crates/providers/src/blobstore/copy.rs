//! Copying the containers and objects of one store to another, some at a time. Each object that is written is read back:
//! what was counted as copied is there, with its size and its digest. What is the same already is not written again.
//!
//! Objects, containers and what is to be looked at again go by one text each, a [`Key`].

use std::fmt;
use std::time::{Duration, Instant};

use futures::{StreamExt, TryStreamExt, stream};
use sha2::{Digest as _, Sha256};

use super::{Backend, BackendError, CHUNK, ObjectInfo, Reading};

/// Objects copied side by side: each holds a part of an upload in memory.
const AT_ONCE: usize = 4;
/// Objects looked for side by side.
const LOOKS: usize = 16;
/// A step of a listing that took longer is answered, and goes on with the next step: whoever directs the copy wants to
/// show how far it is. One large object may still take longer.
const STEP: Duration = Duration::from_secs(5);
/// How often an object is read that seems damaged.
const TRIES: u32 = 3;

/// A side of a copy.
#[derive(Clone, Copy)]
pub struct End<'a> {
    /// The store.
    pub backend: &'a dyn Backend,
}

/// Which containers are copied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Scope {
    /// One.
    One(String),
    /// Every one but these.
    AllBut(Vec<String>),
}

impl Scope {
    /// Whether it has the container.
    pub fn has(&self, container: &str) -> bool {
        match self {
            Self::One(one) => one == container,
            Self::AllBut(others) => !others.iter().any(|other| other == container),
        }
    }

    /// Its containers in a store, in the order of their names.
    async fn containers(&self, backend: &dyn Backend) -> Result<Vec<String>, BackendError> {
        let mut found = match self {
            Self::One(one) => {
                let there = backend.container(one).await?.is_some();
                Vec::from_iter(there.then(|| one.clone()))
            }
            Self::AllBut(_) => backend.containers().await?,
        };
        found.retain(|container| self.has(container));
        found.sort_unstable();
        Ok(found)
    }
}

/// What a copy makes the same. As a text: the container alone, or with a line break and the object after it; no name
/// holds one.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Key {
    /// Whether the container is there.
    Container(String),
    /// That the target has no objects that the source does not have.
    Whole(String),
    /// An object.
    Object(String, String),
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Container(container) => f.write_str(container),
            Self::Whole(container) => writeln!(f, "{container}"),
            Self::Object(container, object) => write!(f, "{container}\n{object}"),
        }
    }
}

impl Key {
    /// From its text.
    pub fn parse(text: &str) -> Self {
        match text.split_once('\n') {
            None => Self::Container(text.to_owned()),
            Some((container, "")) => Self::Whole(container.to_owned()),
            Some((container, object)) => Self::Object(container.to_owned(), object.to_owned()),
        }
    }

    /// Of which container.
    pub fn container(&self) -> &str {
        match self {
            Self::Container(container) | Self::Whole(container) | Self::Object(container, _) => container,
        }
    }
}

/// Where a listing is. Given from step to step by whoever directs the copy, as a text.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Place {
    container: String,
    cursor: Option<String>,
}

impl Place {
    fn parse(text: &str) -> Self {
        let (container, cursor) = text.split_once('\n').map_or((text, None), |(name, cursor)| (name, Some(cursor)));
        Self { container: container.to_owned(), cursor: cursor.map(str::to_owned) }
    }

    fn text(self) -> String {
        match self.cursor {
            Some(cursor) => format!("{}\n{cursor}", self.container),
            None => self.container,
        }
    }
}

/// What one step did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Copied {
    /// Containers and objects looked at.
    pub read: u64,
    /// Those written or removed, because the target had something else.
    pub written: u64,
    /// Bytes of the objects written.
    pub bytes: u64,
    /// Where to go on; `None` at the end.
    pub next: Option<String>,
}

impl Copied {
    fn add(&mut self, one: &Self) {
        self.read += one.read;
        self.written += one.written;
        self.bytes += one.bytes;
    }

    fn looked(written: bool, bytes: u64) -> Self {
        Self { read: 1, written: written.into(), bytes, next: None }
    }
}

/// Why a copy cannot go on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CopyError {
    /// Reading.
    #[error("reading from the present provider failed: {0}")]
    Source(BackendError),
    /// Writing, or reading back.
    #[error("writing to the new provider failed: {0}")]
    Target(BackendError),
    /// What was written is not what is read back.
    #[error("object `{object}` of container `{container}` reads back from the new provider as something else")]
    Differs {
        /// Its container.
        container: String,
        /// Its name.
        object: String,
    },
}

/// Whether both sides reach the same objects: what is made through the one is found through the other. It is gone again
/// when this is answered.
///
/// # Errors
/// Any [`CopyError`].
pub async fn same(from: End<'_>, to: End<'_>, scope: &Scope) -> Result<bool, CopyError> {
    let marker = format!("sidereal-one-store-{:032x}", rand::random::<u128>());
    if let Scope::One(container) = scope
        && to.backend.container(container).await.map_err(CopyError::Target)?.is_some()
    {
        to.backend
            .write(container, &marker)
            .await
            .map_err(CopyError::Target)?
            .finish()
            .await
            .map_err(CopyError::Target)?;
        let found = gone(from.backend.object(container, &marker).await).map_err(CopyError::Source);
        gone(to.backend.remove(container, vec![marker]).await).map_err(CopyError::Target)?;
        return Ok(found?.flatten().is_some());
    }
    made(to, &marker).await?;
    let found = from.backend.container(&marker).await.map_err(CopyError::Source);
    to.backend.delete(&marker).await.map_err(CopyError::Target)?;
    Ok(found?.is_some())
}

/// The names of one page of the listing that are still to be copied, kept between two steps: a page may take longer than
/// one step may.
#[derive(Debug, Default)]
pub struct Rest(Option<(String, Vec<String>, Option<String>)>);

/// Copies some objects, beginning at `at`.
///
/// # Errors
/// Any [`CopyError`]; what was copied until then stays.
pub async fn page(
    from: End<'_>,
    to: End<'_>,
    scope: &Scope,
    at: Option<&str>,
    rest: &mut Rest,
) -> Result<Copied, CopyError> {
    let began = Instant::now();
    let mut sum = Copied::default();
    let containers = scope.containers(from.backend).await.map_err(CopyError::Source)?;
    let Some(place) = next(&containers, at) else { return Ok(sum) };
    let here = place.clone().text();
    let (mut names, then) = match rest.0.take().filter(|(known, _, _)| *known == here) {
        Some((_, names, then)) => (names, then),
        None => {
            if place.cursor.is_none() {
                sum.add(&one(from, to, &Key::Container(place.container.clone())).await?);
            }
            let listed = from.backend.list(&place.container, place.cursor.as_deref()).await;
            let listed = gone(listed).map_err(CopyError::Source)?.unwrap_or_default();
            let on = listed.cursor.map(|cursor| Place { container: place.container.clone(), cursor: Some(cursor) });
            let after = || containers.iter().find(|name| **name > place.container).cloned();
            (listed.names, on.map(Place::text).or_else(after))
        }
    };
    while !names.is_empty() {
        if began.elapsed() > STEP {
            *rest = Rest(Some((here.clone(), names, then)));
            sum.next = Some(here);
            return Ok(sum);
        }
        let few = names.split_off(names.len().saturating_sub(AT_ONCE * 4));
        let few = few.into_iter().map(|name| Key::Object(place.container.clone(), name)).collect();
        sum.add(&keys(from, to, few).await?);
    }
    sum.next = then;
    Ok(sum)
}

/// The place to begin at: `at`, or where its container is gone the next one.
fn next(containers: &[String], at: Option<&str>) -> Option<Place> {
    let Some(at) = at.map(Place::parse) else {
        return Some(Place { container: containers.first()?.clone(), cursor: None });
    };
    let container = containers.iter().find(|name| **name >= at.container)?.clone();
    let cursor = at.cursor.filter(|_| container == at.container);
    Some(Place { container, cursor })
}

/// Makes these in the target what they are in the source.
///
/// # Errors
/// Any [`CopyError`].
pub async fn keys(from: End<'_>, to: End<'_>, keys: Vec<Key>) -> Result<Copied, CopyError> {
    let mut sum = Copied::default();
    // Containers first, each by itself: objects need theirs.
    let (objects, whole): (Vec<Key>, Vec<Key>) = keys.into_iter().partition(|key| matches!(key, Key::Object(..)));
    for key in &whole {
        sum.add(&one(from, to, key).await?);
    }
    let mut done = stream::iter(objects).map(|key| async move { one(from, to, &key).await }).buffer_unordered(AT_ONCE);
    while let Some(copied) = done.try_next().await? {
        sum.add(&copied);
    }
    Ok(sum)
}

/// Of one step of the target's listing, what the source does not have; and where to go on.
///
/// # Errors
/// Any [`CopyError`].
pub async fn extra(
    from: End<'_>,
    to: End<'_>,
    scope: &Scope,
    at: Option<&str>,
) -> Result<(Vec<Key>, Option<String>), CopyError> {
    let containers = scope.containers(to.backend).await.map_err(CopyError::Target)?;
    let Some(Place { container, cursor }) = next(&containers, at) else { return Ok((Vec::new(), None)) };
    let after = containers.iter().find(|name| **name > container).cloned();
    if from.backend.container(&container).await.map_err(CopyError::Source)?.is_none() {
        return Ok((vec![Key::Container(container)], after));
    }
    let listed = to.backend.list(&container, cursor.as_deref()).await;
    let listed = gone(listed).map_err(CopyError::Target)?.unwrap_or_default();
    let extra = missing(from, &container, listed.names).await?;
    let on = listed.cursor.map(|cursor| Place { container: container.clone(), cursor: Some(cursor) });
    let extra = extra.into_iter().map(|name| Key::Object(container.clone(), name)).collect();
    Ok((extra, on.map(Place::text).or(after)))
}

/// Those of `names` that the source does not have.
async fn missing(from: End<'_>, container: &str, names: Vec<String>) -> Result<Vec<String>, CopyError> {
    let looks = stream::iter(names).map(|name| async move {
        let found = gone(from.backend.object(container, &name).await).map_err(CopyError::Source)?.flatten();
        Ok((name, found.is_some()))
    });
    let looked: Vec<(String, bool)> = looks.buffer_unordered(LOOKS).try_collect().await?;
    Ok(looked.into_iter().filter(|(_, there)| !there).map(|(name, _)| name).collect())
}

/// `None` for what is in no container, or is not there.
fn gone<T>(answer: Result<T, BackendError>) -> Result<Option<T>, BackendError> {
    match answer {
        Err(BackendError::NoContainer(_) | BackendError::NoObject { .. }) => Ok(None),
        other => other.map(Some),
    }
}

async fn one(from: End<'_>, to: End<'_>, key: &Key) -> Result<Copied, CopyError> {
    match key {
        Key::Container(name) => {
            let wanted = from.backend.container(name).await.map_err(CopyError::Source)?.is_some();
            let there = to.backend.container(name).await.map_err(CopyError::Target)?.is_some();
            match (wanted, there) {
                (true, false) => made(to, name).await?,
                (false, true) => to.backend.delete(name).await.map_err(CopyError::Target)?,
                _ => {}
            }
            Ok(Copied::looked(wanted != there, 0))
        }
        Key::Whole(name) => whole(from, to, name).await,
        Key::Object(container, object) => copied(from, to, container, object).await,
    }
}

async fn made(to: End<'_>, container: &str) -> Result<(), CopyError> {
    match to.backend.create(container).await {
        Err(BackendError::ContainerExists(_)) => Ok(()),
        other => other.map_err(CopyError::Target),
    }
}

/// After a container was emptied, and perhaps filled again.
async fn whole(from: End<'_>, to: End<'_>, container: &str) -> Result<Copied, CopyError> {
    let mut sum = Copied::default();
    let mut cursor: Option<String> = None;
    loop {
        let listed = to.backend.list(container, cursor.as_deref()).await;
        let listed = gone(listed).map_err(CopyError::Target)?.unwrap_or_default();
        sum.read += listed.names.len() as u64;
        let extra = missing(from, container, listed.names).await?;
        sum.written += extra.len() as u64;
        if !extra.is_empty() {
            gone(to.backend.remove(container, extra).await).map_err(CopyError::Target)?;
        }
        cursor = listed.cursor;
        if cursor.is_none() {
            return Ok(sum);
        }
    }
}

/// An object of the source may be replaced while it is read, by another host: some stores then have no more of what it was,
/// and say that it is damaged. Whoever replaced it has noted that, so a later round copies what it is by then.
async fn copied(from: End<'_>, to: End<'_>, container: &str, object: &str) -> Result<Copied, CopyError> {
    let mut tries = 1;
    loop {
        let wanted = described(from, container, object).await?;
        match became(from, to, container, object, wanted.as_ref()).await {
            Err(CopyError::Source(BackendError::Damaged { .. }))
                if described(from, container, object).await? != wanted =>
            {
                return Ok(Copied::looked(false, 0));
            }
            // Replaced within one second by one of the same size, perhaps.
            Err(CopyError::Source(BackendError::Damaged { .. })) if tries < TRIES => tries += 1,
            other => return other,
        }
    }
}

async fn described(from: End<'_>, container: &str, object: &str) -> Result<Option<ObjectInfo>, CopyError> {
    Ok(gone(from.backend.object(container, object).await).map_err(CopyError::Source)?.flatten())
}

/// Makes an object in the target what it is in the source, where it is as `wanted` says.
async fn became(
    from: End<'_>,
    to: End<'_>,
    container: &str,
    object: &str,
    wanted: Option<&ObjectInfo>,
) -> Result<Copied, CopyError> {
    let there = gone(to.backend.object(container, object).await).map_err(CopyError::Target)?.flatten();
    let reading = match wanted {
        Some(_) => gone(from.backend.read(container, object, 0, u64::MAX).await).map_err(CopyError::Source)?,
        None => None,
    };
    let Some(reading) = reading else {
        if there.is_some() {
            let objects = vec![object.to_owned()];
            gone(to.backend.remove(container, objects).await).map_err(CopyError::Target)?;
        }
        return Ok(Copied::looked(there.is_some(), 0));
    };
    let size = reading.size;
    if there.is_some_and(|there| there.size == size) {
        let wanted = digest(reading).await.map_err(CopyError::Source)?;
        if back(to, container, object).await? == Some((size, wanted)) {
            return Ok(Copied::looked(false, 0));
        }
        return rewritten(from, to, container, object).await;
    }
    written(reading, to, container, object).await
}

/// Opened anew: what was read to compare it is used up.
async fn rewritten(from: End<'_>, to: End<'_>, container: &str, object: &str) -> Result<Copied, CopyError> {
    match gone(from.backend.read(container, object, 0, u64::MAX).await).map_err(CopyError::Source)? {
        Some(reading) => written(reading, to, container, object).await,
        // Removed meanwhile, which is noted: the next round removes it.
        None => Ok(Copied::looked(false, 0)),
    }
}

async fn written(mut reading: Reading, to: End<'_>, container: &str, object: &str) -> Result<Copied, CopyError> {
    let size = reading.size;
    let upload = match to.backend.write(container, object).await {
        Err(BackendError::NoContainer(_)) => {
            made(to, container).await?;
            to.backend.write(container, object).await
        }
        other => other,
    };
    let mut upload = upload.map_err(CopyError::Target)?;
    let (mut hash, mut left) = (Sha256::new(), size);
    while let Some(chunk) = reading.chunks.next().await {
        let result = async {
            let mut chunk = chunk.map_err(CopyError::Source)?;
            hash.update(&chunk);
            left = left.saturating_sub(chunk.len() as u64);
            while !chunk.is_empty() {
                upload.write(chunk.split_to(chunk.len().min(CHUNK))).await.map_err(CopyError::Target)?;
            }
            Ok(())
        };
        if let Err(cause) = result.await {
            upload.abandon().await;
            return Err(cause);
        }
    }
    if left > 0 {
        upload.abandon().await;
        return Err(CopyError::Source(super::cut(object, left)));
    }
    upload.finish().await.map_err(CopyError::Target)?;
    if back(to, container, object).await? != Some((size, hash.finalize().into())) {
        return Err(CopyError::Differs { container: container.to_owned(), object: object.to_owned() });
    }
    Ok(Copied::looked(true, size))
}

/// Size and digest of what the target has. One that is damaged is none: it is written again like what differs.
async fn back(to: End<'_>, container: &str, object: &str) -> Result<Option<(u64, [u8; 32])>, CopyError> {
    let found = async {
        let Some(reading) = gone(to.backend.read(container, object, 0, u64::MAX).await)? else { return Ok(None) };
        Ok(Some((reading.size, digest(reading).await?)))
    };
    match found.await {
        Err(BackendError::Damaged { .. }) => Ok(None),
        other => other.map_err(CopyError::Target),
    }
}

async fn digest(mut reading: Reading) -> Result<[u8; 32], BackendError> {
    let mut hash = Sha256::new();
    while let Some(chunk) = reading.chunks.next().await {
        hash.update(&chunk?);
    }
    Ok(hash.finalize().into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_and_places_come_back_from_their_texts() {
        let name = || "c".to_owned();
        for key in [Key::Container(name()), Key::Whole(name()), Key::Object(name(), "a/b \\ ü".to_owned())] {
            assert_eq!(Key::parse(&key.to_string()), key);
        }
        for cursor in [None, Some("x\ny".to_owned())] {
            let place = Place { container: name(), cursor };
            assert_eq!(Place::parse(&place.clone().text()), place);
        }
    }

    #[test]
    fn a_listing_goes_on_past_containers_that_went() {
        let containers = ["a", "c"].map(str::to_owned);
        let at = |at: Option<&str>| next(&containers, at).map(Place::text);
        assert_eq!(at(None).as_deref(), Some("a"));
        assert_eq!(at(Some("a\n7")).as_deref(), Some("a\n7"));
        assert_eq!(at(Some("b\n7")).as_deref(), Some("c"), "the cursor was of another container");
        assert_eq!(at(Some("d")), None);
    }
}
