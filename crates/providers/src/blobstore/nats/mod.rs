//! Objects in the object store of NATS, laid out as the official clients lay out theirs: a container is the bucket
//! `<tenant>_<app>_<provider>_<container>`, which is the stream `OBJ_<bucket>`; an object's content is the messages of
//! `$O.<bucket>.C.<id>`, its description the last message of `$O.<bucket>.M.<name in base64>`.
//!
//! An object is there from the moment its description is, which is written last and only in the place of the one that
//! was read before, so that of two writers at once each knows whose content its own replaces.

mod bucket;
mod meta;
mod names;
mod readers;
mod reading;
mod upload;

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::{FutureExt, StreamExt, TryStreamExt};
use model::{AppName, ProviderName, TenantName};
use tokio::sync::Semaphore;

use self::bucket::{Bucket, stream_of};
use self::meta::Meta;
use self::readers::Readers;
use super::{Answer, Backend, BackendError, ContainerInfo, ObjectInfo, PAGE, Page, Reading, Upload, busy, transfer};
use crate::nats::jetstream::{JetStream, JetStreamError, NO_STREAM, WRONG_SEQUENCE, Which};
use crate::nats::scan::Scan;
use crate::nats::{Client, Headers, NatsError};
use crate::share::Later;

/// Uploads of one provider at once; each holds at most about 1.25 MiB.
const MAX_UPLOADS: usize = 32;
/// How long a description whose acknowledgement did not come is looked for and written again.
const PATIENCE: Duration = Duration::from_secs(10);
/// Between two of these tries, and before a call is tried once more because no stream listened.
const PAUSE: Duration = Duration::from_millis(250);
/// Writers of one object that may come between before a write gives up.
const CONTENDERS: u32 = 32;
/// Descriptions that one page of a listing looks at: a bucket may hold nothing but those of deleted objects for long.
const LOOKED_AT: usize = 20 * PAGE;

/// One app's objects in one NATS.
#[derive(Clone)]
pub struct Nats(Arc<Inner>);

struct Inner {
    js: JetStream,
    tenant: TenantName,
    app: AppName,
    provider: ProviderName,
    replicas: u32,
    known: Mutex<HashMap<String, Arc<Bucket>>>,
    readers: Arc<Readers>,
    uploads: Arc<Semaphore>,
}

/// A description and where it is.
struct Described {
    seq: u64,
    /// Seconds since 1970.
    at: u64,
    meta: Meta,
}

/// What a failure means to a caller.
fn failed(cause: JetStreamError) -> BackendError {
    match cause {
        JetStreamError::Nats(NatsError::Denied(why)) => BackendError::Denied(why),
        JetStreamError::Nats(NatsError::TimedOut { ms }) => BackendError::TimedOut { ms },
        JetStreamError::Nats(NatsError::NoResponders(_)) => {
            BackendError::Unavailable("no JetStream stream listens for the bucket now".to_owned())
        }
        other => BackendError::Unavailable(other.to_string()),
    }
}

/// Whether no stream was there to do it, so that nothing was done.
fn unheard(cause: &JetStreamError) -> bool {
    matches!(
        cause,
        JetStreamError::Nats(NatsError::NoResponders(_)) | JetStreamError::Refused { err_code: NO_STREAM, .. }
    )
}

/// Seconds since 1970 of a time as servers write it.
fn seconds(time: &str) -> u64 {
    time.parse::<jiff::Timestamp>().map_or(0, |time| u64::try_from(time.as_second()).unwrap_or_default())
}

impl Nats {
    /// The objects of one provider of one app, behind `client`. A bucket that is made has `replicas` copies. Nothing is
    /// connected before the first call.
    ///
    /// # Errors
    /// [`BackendError::Misuse`] where `domain` is no name of a JetStream domain.
    pub fn new(
        client: Client,
        domain: Option<&str>,
        tenant: &TenantName,
        app: &AppName,
        provider: &ProviderName,
        replicas: u32,
    ) -> Result<Self, BackendError> {
        let js = JetStream::new(client, domain).map_err(|cause| BackendError::Misuse(cause.to_string()))?;
        let (tenant, app, provider) = (tenant.clone(), app.clone(), provider.clone());
        let readers = Readers::new(js.clone());
        let uploads = Arc::new(Semaphore::new(MAX_UPLOADS));
        Ok(Self(Arc::new(Inner { js, tenant, app, provider, replicas, known: Mutex::default(), readers, uploads })))
    }

    /// Connects and asks for JetStream: says early and with its reason what every call would say.
    ///
    /// # Errors
    /// What a call would answer.
    pub async fn check(&self) -> Result<(), BackendError> {
        self.0.js.check().await.map_err(failed)
    }

    fn known(&self) -> MutexGuard<'_, HashMap<String, Arc<Bucket>>> {
        self.0.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn name(&self, container: &str) -> Result<String, BackendError> {
        let Inner { tenant, app, provider, .. } = &*self.0;
        names::bucket(tenant, app, provider, container)
            .ok_or_else(|| BackendError::TooLarge("the name of the container is too long for NATS".to_owned()))
    }

    async fn bucket(&self, container: &str) -> Result<Arc<Bucket>, BackendError> {
        if let Some(known) = self.known().get(container).cloned() {
            return Ok(known);
        }
        let name = self.name(container)?;
        let Some(info) = self.0.js.find(&stream_of(&name)).await.map_err(failed)? else {
            return Err(BackendError::NoContainer(container.to_owned()));
        };
        let found = Arc::new(bucket::usable(&name, &info.config)?);
        self.known().insert(container.to_owned(), found.clone());
        Ok(found)
    }

    /// Does `call` on the bucket. Where no stream listens it looks for the bucket again and tries once more.
    async fn on<T, F>(&self, container: &str, call: impl Fn(Arc<Bucket>) -> F) -> Result<T, BackendError>
    where
        F: Future<Output = Result<T, JetStreamError>>,
    {
        let cause = match call(self.bucket(container).await?).await {
            Ok(done) => return Ok(done),
            Err(cause) => cause,
        };
        // An older server is silent where the stream was removed: the next call looks for it.
        if unheard(&cause) || matches!(cause, JetStreamError::Nats(NatsError::TimedOut { .. })) {
            self.known().remove(container);
        }
        if !unheard(&cause) {
            return Err(failed(cause));
        }
        let again = self.bucket(container).await?;
        tokio::time::sleep(PAUSE).await;
        call(again).await.map_err(failed)
    }

    /// The description of an object, also of one that was deleted.
    async fn described(&self, bucket: &Bucket, object: &str) -> Result<Option<Described>, JetStreamError> {
        let subject = format!("{}{}", bucket.metas, names::object(object));
        let found = self.0.js.message(&bucket.stream, bucket.direct, Which::Last(&subject)).await?;
        let Some(found) = found else { return Ok(None) };
        let meta: Meta = serde_json::from_slice(&found.payload).map_err(|cause| {
            JetStreamError::Garbage(format!("the description of `{}`: {cause}", object.escape_debug()))
        })?;
        Ok(Some(Described { seq: found.seq, at: seconds(&found.time), meta }))
    }

    /// An object that is there.
    async fn existing(&self, container: &str, object: &str) -> Result<Option<Described>, BackendError> {
        let found = self.on(container, |bucket| async move { self.described(&bucket, object).await }).await?;
        match found.filter(|found| !found.meta.deleted) {
            Some(found) if found.meta.is_link() => Err(BackendError::Unavailable(format!(
                "the object `{}` is a link that another client made, and links are not followed",
                object.escape_debug()
            ))),
            found => Ok(found),
        }
    }

    /// Writes a description in the place of the one that is there, if `wanted` has one for it, and removes the content
    /// that was described before. `false` where there is nothing to write.
    async fn describe(
        &self,
        bucket: &Bucket,
        object: &str,
        wanted: impl Fn(Option<&Meta>) -> Option<Meta>,
    ) -> Result<bool, JetStreamError> {
        let subject = format!("{}{}", bucket.metas, names::object(object));
        let began = Instant::now();
        let mut contenders = 0;
        let mut sent: Option<Meta> = None;
        let mut replaced = String::new();
        loop {
            let looked = self.described(bucket, object).await;
            let former = match looked {
                Ok(former) => former,
                Err(JetStreamError::Nats(cause)) if sent.is_some() && began.elapsed() < PATIENCE => {
                    tracing::debug!(%cause, "whether a description was written cannot be seen yet");
                    tokio::time::sleep(PAUSE).await;
                    continue;
                }
                Err(cause) => return Err(cause),
            };
            // It was written, and only the word of it was lost.
            if let Some(sent) = &sent
                && former.as_ref().is_some_and(|former| former.meta == *sent)
            {
                self.let_go(bucket, sent, &replaced).await;
                return Ok(true);
            }
            let Some(meta) = wanted(former.as_ref().map(|former| &former.meta)) else { return Ok(false) };
            let seq = former.as_ref().map_or(0, |former| former.seq);
            let headers = Headers::new().with("Nats-Rollup", "sub")?;
            let headers = headers.with("Nats-Expected-Last-Subject-Sequence", &seq.to_string())?;
            let json = serde_json::to_vec(&meta).map_err(|cause| NatsError::Invalid(cause.to_string()))?;
            replaced = former.map(|former| former.meta.nuid).unwrap_or_default();
            let meta = sent.insert(meta);
            match self.0.js.store(&subject, headers, Bytes::from(json)).await {
                Ok(_) => {
                    self.let_go(bucket, meta, &replaced).await;
                    return Ok(true);
                }
                Err(JetStreamError::Refused { err_code, .. })
                    if WRONG_SEQUENCE.contains(&err_code) && contenders < CONTENDERS =>
                {
                    contenders += 1;
                }
                Err(JetStreamError::Nats(NatsError::Lost(_) | NatsError::TimedOut { .. }))
                    if began.elapsed() < PATIENCE =>
                {
                    tokio::time::sleep(PAUSE).await;
                }
                Err(cause) => return Err(cause),
            }
        }
    }

    /// Removes the content that `meta` has taken the place of.
    async fn let_go(&self, bucket: &Bucket, meta: &Meta, replaced: &str) {
        if !replaced.is_empty() && (meta.deleted || meta.nuid != replaced) {
            self.0.readers.release(bucket, &format!("{}{replaced}", bucket.chunks)).await;
        }
    }

    async fn remove_one(&self, container: &str, object: &str) -> Result<(), BackendError> {
        let deleted = |former: Option<&Meta>| {
            let former = former.filter(|former| !former.deleted)?;
            let Meta { name, bucket, nuid, .. } = former.clone();
            Some(Meta { name, bucket, nuid, mtime: now(), deleted: true, ..Meta::default() })
        };
        let removed = self.on(container, |bucket| async move { self.describe(&bucket, object, deleted).await });
        removed.await.map(drop)
    }

    async fn page(&self, bucket: &Bucket, start: u64) -> Result<Page, JetStreamError> {
        let mut scan = Scan::open(&self.0.js, &bucket.stream, &format!("{}>", bucket.metas), start, false).await?;
        let (mut page, mut seen, mut looked_at) = (Page::default(), HashSet::new(), 0);
        while let Some((message, place)) = scan.next().await? {
            let meta = serde_json::from_slice::<Meta>(&message.payload).ok();
            let own = |meta: &Meta| {
                !meta.deleted && message.subject.strip_prefix(&bucket.metas) == Some(&*names::object(&meta.name))
            };
            if let Some(meta) = meta.filter(own)
                && seen.insert(meta.name.clone())
            {
                page.names.push(meta.name);
            }
            looked_at += 1;
            if place.pending > 0 && (page.names.len() >= PAGE || looked_at >= LOOKED_AT) {
                page.cursor = Some(place.seq.saturating_add(1).to_string());
                break;
            }
        }
        Ok(page)
    }
}

/// The time, as descriptions say it.
fn now() -> String {
    jiff::Timestamp::now().to_string()
}

impl Backend for Nats {
    fn create<'a>(&'a self, container: &'a str) -> Answer<'a, ()> {
        async move {
            match bucket::make(&self.0.js, &self.name(container)?, self.0.replicas).await? {
                true => Ok(()),
                false => Err(BackendError::ContainerExists(container.to_owned())),
            }
        }
        .boxed()
    }

    fn container<'a>(&'a self, container: &'a str) -> Answer<'a, Option<ContainerInfo>> {
        async move {
            let found = self.0.js.stream(&stream_of(&self.name(container)?)).await.map_err(failed)?;
            Ok(found.map(|info| ContainerInfo { created_at: seconds(&info.created) }))
        }
        .boxed()
    }

    fn delete<'a>(&'a self, container: &'a str) -> Answer<'a, ()> {
        async move {
            let call = format!("STREAM.DELETE.{}", stream_of(&self.name(container)?));
            self.known().remove(container);
            match self.0.js.call::<serde_json::Value>(&call, &()).await {
                Ok(_) | Err(JetStreamError::Refused { err_code: NO_STREAM, .. }) => Ok(()),
                Err(cause) => Err(failed(cause)),
            }
        }
        .boxed()
    }

    fn clear<'a>(&'a self, container: &'a str) -> Answer<'a, ()> {
        async move {
            let purge = async |bucket: Arc<Bucket>| {
                let call = format!("STREAM.PURGE.{}", bucket.stream);
                self.0.js.call::<serde_json::Value>(&call, &()).await.map(drop)
            };
            self.on(container, purge).await
        }
        .boxed()
    }

    fn object<'a>(&'a self, container: &'a str, object: &'a str) -> Answer<'a, Option<ObjectInfo>> {
        async move {
            let found = self.existing(container, object).await?;
            Ok(found.map(|found| ObjectInfo { created_at: found.at, size: found.meta.size }))
        }
        .boxed()
    }

    fn read<'a>(&'a self, container: &'a str, object: &'a str, start: u64, end: u64) -> Answer<'a, Reading> {
        self.open(container, object, start, end).boxed()
    }

    fn uploads(&self) -> Option<usize> {
        Some(MAX_UPLOADS)
    }

    fn write<'a>(&'a self, container: &'a str, object: &'a str) -> Answer<'a, Box<dyn Upload>> {
        async move {
            // Looked for anew: chunks for a bucket that is gone would reach nobody.
            self.known().remove(container);
            let bucket = self.bucket(container).await?;
            let place = Later::new(self.0.uploads.clone());
            let upload: Box<dyn Upload> =
                Box::new(upload::Sending::new(self.clone(), bucket, container, object, place));
            Ok(upload)
        }
        .boxed()
    }

    fn list<'a>(&'a self, container: &'a str, cursor: Option<&'a str>) -> Answer<'a, Page> {
        async move {
            let bad = |_| BackendError::Unavailable("the cursor of the listing is none of a NATS bucket".to_owned());
            let start = cursor.map_or(Ok(1), |cursor| cursor.parse::<u64>().map_err(bad))?;
            self.on(container, |bucket| async move { self.page(&bucket, start).await }).await
        }
        .boxed()
    }

    fn remove<'a>(&'a self, container: &'a str, objects: Vec<String>) -> Answer<'a, ()> {
        async move {
            self.bucket(container).await?;
            let objects: BTreeSet<String> = objects.into_iter().collect();
            let removals = futures::stream::iter(objects)
                .map(|object| async move { self.remove_one(container, &object).await })
                .buffer_unordered(8);
            removals.try_collect::<()>().await
        }
        .boxed()
    }

    fn copy<'a>(&'a self, from: (&'a str, &'a str), to: (&'a str, &'a str)) -> Answer<'a, ()> {
        transfer((self, from.0, from.1), (self, to.0, to.1)).boxed()
    }
}
