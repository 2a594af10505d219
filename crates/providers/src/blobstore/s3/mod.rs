//! Objects in a bucket of S3 or of what speaks like it, over connections that the `Dialer` makes.
//!
//! A container is a marker and the objects under its prefix. A small object is one request; a larger one goes up in parts,
//! and what it replaces stays until the last request.

mod answer;
mod http;
mod login;
mod names;
mod upload;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::{FutureExt, StreamExt, TryStreamExt};
use model::{AppName, ProviderName, TenantName};
use object_store::aws::{AmazonS3, AmazonS3Builder};
use object_store::path::Path;
use object_store::{
    BackoffConfig, GetOptions, GetRange, ObjectMeta, ObjectStore as _, ObjectStoreExt as _, PutMode, PutOptions,
    RetryConfig,
};
use tokio::sync::Semaphore;

use self::answer::{Failed, guarded, late, translate};
use self::http::Http;
use self::login::Keys;
use self::names::Prefix;
use self::upload::Sending;
use super::{
    Answer, Backend, BackendError, ContainerInfo, MAX_CONTAINERS, ObjectInfo, PAGE, Page, Reading, Upload, clamp,
};
use crate::breaker::{Breaker, Pauses};
use crate::dial::{Caller, Dialer};
use crate::http_json::{Server, SettingsError};
use crate::secrets::{Credentials, Made};
use crate::share::Later;

/// One operation, tries and all.
const TIMEOUT: Duration = Duration::from_secs(30);
/// Uploads of one provider at once; each holds at most one part in memory.
const MAX_UPLOADS: usize = 32;
/// Containers looked for side by side.
const LOOKS: usize = 16;
/// How often a range of an object is asked for that is replaced meanwhile.
const READS: usize = 2;
/// A server that does not answer twice is left alone for a moment.
const PAUSES: Pauses = Pauses { after: 2, least: Duration::from_millis(100), most: Duration::from_secs(2) };

/// One app's objects in one bucket.
pub struct S3 {
    store: AmazonS3,
    keys: Arc<Keys>,
    bucket: String,
    prefix: Prefix,
    breaker: Arc<Breaker<BackendError>>,
    uploads: Arc<Semaphore>,
}

impl S3 {
    /// The bucket that the provider's settings name, for one app. Nothing is connected before the first call.
    ///
    /// # Errors
    /// [`SettingsError`] where a setting is missing or wrong.
    pub fn new(
        tenant: &TenantName,
        app: &AppName,
        provider: &ProviderName,
        config: &BTreeMap<String, String>,
        secrets: Credentials,
        dialer: Arc<dyn Dialer>,
    ) -> Result<Self, SettingsError> {
        let needed = |name, example| config.get(name).ok_or(SettingsError::Missing { name, example });
        let url = needed("url", "https://s3.eu-central-1.amazonaws.com")?;
        let bucket = needed("bucket", "acme-objects")?;
        let server = Server::parse(url, config.get("ca").map(String::as_str))?;
        // The library reads it so for each request, and panics where it cannot.
        if url::Url::parse(url).is_err() {
            return Err(SettingsError::Url);
        }
        let caller = Caller::Provider(provider.clone());
        let backoff = BackoffConfig {
            init_backoff: Duration::from_millis(50),
            max_backoff: Duration::from_millis(500),
            base: 2.0,
        };
        let id = config.get("access-key-id").cloned();
        let keys = Arc::new(Keys { id, secrets, made: Made::default() });
        let mut builder = AmazonS3Builder::new()
            .with_endpoint(url.trim_end_matches('/'))
            .with_allow_http(true)
            .with_bucket_name(bucket)
            // Servers differ in what they answer where one of many keys is not there.
            .with_disable_bulk_delete(true)
            .with_credentials(keys.clone())
            .with_retry(RetryConfig { backoff, max_retries: 2, retry_timeout: TIMEOUT / 2 })
            .with_http_connector(Http::new(app.clone(), caller, server.tls(), dialer));
        if let Some(region) = config.get("region") {
            builder = builder.with_region(region);
        }
        let wrong = |cause: object_store::Error| SettingsError::Value { name: "bucket", why: cause.to_string() };
        Ok(Self {
            store: builder.build().map_err(wrong)?,
            keys,
            bucket: bucket.clone(),
            prefix: Prefix::new(tenant, app, provider),
            breaker: Arc::new(Breaker::new(PAUSES).or_silent(late())),
            uploads: Arc::new(Semaphore::new(MAX_UPLOADS)),
        })
    }

    /// Looks into the bucket: says early and with its reason what every call would say.
    ///
    /// # Errors
    /// What a call would answer.
    pub async fn check(&self) -> Result<(), BackendError> {
        let all = self.prefix.all()?;
        match self.call(async { self.store.list(Some(&all)).next().await.transpose() }).await {
            Err(Failed::Missing) => {
                Err(BackendError::Unavailable(format!("the bucket `{}` does not exist", self.bucket)))
            }
            // Nothing was asked that it may refuse: the settings do not fit it, and no call would be answered.
            Err(Failed::Other(BackendError::Misuse(why))) => Err(BackendError::Unavailable(why)),
            other => Ok(other.map(|_| ())?),
        }
    }

    async fn call<T>(&self, work: impl Future<Output = object_store::Result<T>>) -> Result<T, Failed> {
        let answer = guarded(&self.breaker, work).await;
        if matches!(answer, Err(Failed::Other(BackendError::Denied(_)))) {
            // The next request asks for the secrets again, whether a change of them was told of or not.
            self.keys.made.forget();
        }
        answer
    }

    async fn head(&self, path: &Path) -> Result<Option<ObjectMeta>, BackendError> {
        match self.call(self.store.head(path)).await {
            Ok(meta) => Ok(Some(meta)),
            Err(Failed::Missing) => Ok(None),
            Err(Failed::Other(cause)) => Err(cause),
        }
    }

    /// Fails where the container is not there.
    async fn existing(&self, container: &str) -> Result<(), BackendError> {
        match self.head(&self.prefix.marker(container)?).await? {
            Some(_) => Ok(()),
            None => Err(BackendError::NoContainer(container.to_owned())),
        }
    }

    /// The reason why an object is not there.
    async fn missing(&self, container: &str, object: &str) -> BackendError {
        match self.existing(container).await {
            Ok(()) => BackendError::NoObject { container: container.to_owned(), object: object.to_owned() },
            Err(cause) => cause,
        }
    }

    /// Keys of a container after `after`, at most [`PAGE`].
    async fn keys(&self, container: &str, after: Option<&Path>) -> Result<Vec<Path>, BackendError> {
        let objects = self.prefix.objects(container)?;
        let found = match after {
            Some(after) => self.store.list_with_offset(Some(&objects), after),
            None => self.store.list(Some(&objects)),
        };
        let keys = found.map_ok(|meta| meta.location).take(PAGE).try_collect::<Vec<_>>();
        self.call(keys).await.map_err(|failed| match failed {
            Failed::Missing => BackendError::Unavailable(format!("the bucket `{}` does not exist", self.bucket)),
            Failed::Other(cause) => cause,
        })
    }

    async fn remove_keys(&self, keys: Vec<Path>) -> Result<(), BackendError> {
        let keys = futures::stream::iter(keys.into_iter().map(Ok)).boxed();
        let mut removed = self.store.delete_stream(keys);
        loop {
            match self.call(async { removed.next().await.transpose() }).await {
                Ok(None) => return Ok(()),
                // What is not there needs no removal.
                Ok(Some(_)) | Err(Failed::Missing) => {}
                Err(Failed::Other(cause)) => return Err(cause),
            }
        }
    }

    async fn empty(&self, container: &str) -> Result<(), BackendError> {
        let mut after = None;
        loop {
            let keys = self.keys(container, after.as_ref()).await?;
            let Some(last) = keys.last().cloned() else { return Ok(()) };
            self.remove_keys(keys).await?;
            after = Some(last);
        }
    }
}

fn seconds(meta: &ObjectMeta) -> u64 {
    u64::try_from(meta.last_modified.timestamp()).unwrap_or_default()
}

impl Backend for S3 {
    fn create<'a>(&'a self, container: &'a str) -> Answer<'a, ()> {
        async move {
            let marker = self.prefix.marker(container)?;
            let exists = || BackendError::ContainerExists(container.to_owned());
            // Not every server knows the condition of the next request.
            if self.head(&marker).await?.is_some() {
                return Err(exists());
            }
            let options = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
            let made = async {
                match self.store.put_opts(&marker, Bytes::from_static(b"container").into(), options).await {
                    Ok(_) => Ok(true),
                    Err(object_store::Error::AlreadyExists { .. }) => Ok(false),
                    Err(cause) => Err(cause),
                }
            };
            if self.call(made).await? { Ok(()) } else { Err(exists()) }
        }
        .boxed()
    }

    fn container<'a>(&'a self, container: &'a str) -> Answer<'a, Option<ContainerInfo>> {
        async move {
            let found = self.head(&self.prefix.marker(container)?).await?;
            Ok(found.map(|meta| ContainerInfo { created_at: seconds(&meta) }))
        }
        .boxed()
    }

    fn containers(&self) -> Answer<'_, Vec<String>> {
        async move {
            let all = self.prefix.all()?;
            let found = match self.call(self.store.list_with_delimiter(Some(&all))).await {
                Ok(found) => found.common_prefixes,
                Err(Failed::Missing) => Vec::new(),
                Err(Failed::Other(cause)) => return Err(cause),
            };
            if found.len() > MAX_CONTAINERS {
                let why = format!("there are more than {MAX_CONTAINERS} containers");
                return Err(BackendError::TooLarge(why));
            }
            let names = found.iter().filter_map(|place| self.prefix.container(place));
            // What a removal left half done has objects and no marker.
            let marked = futures::stream::iter(names.collect::<Vec<_>>()).map(|name| async move {
                let there = self.head(&self.prefix.marker(&name)?).await?.is_some();
                Ok(there.then_some(name))
            });
            marked.buffer_unordered(LOOKS).try_filter_map(|name| async move { Ok(name) }).try_collect().await
        }
        .boxed()
    }

    fn delete<'a>(&'a self, container: &'a str) -> Answer<'a, ()> {
        async move {
            // The marker last: what a failure leaves is a container that can be deleted again.
            self.empty(container).await?;
            self.remove_keys(vec![self.prefix.marker(container)?]).await
        }
        .boxed()
    }

    fn clear<'a>(&'a self, container: &'a str) -> Answer<'a, ()> {
        async move {
            self.existing(container).await?;
            self.empty(container).await
        }
        .boxed()
    }

    fn object<'a>(&'a self, container: &'a str, object: &'a str) -> Answer<'a, Option<ObjectInfo>> {
        async move {
            match self.head(&self.prefix.object(container, object)?).await? {
                Some(meta) => Ok(Some(ObjectInfo { created_at: seconds(&meta), size: meta.size })),
                None => self.existing(container).await.map(|()| None),
            }
        }
        .boxed()
    }

    fn read<'a>(&'a self, container: &'a str, object: &'a str, start: u64, end: u64) -> Answer<'a, Reading> {
        async move {
            let path = self.prefix.object(container, object)?;
            for _ in 0..READS {
                let mut options = GetOptions::default();
                if (start, end) != (0, u64::MAX) {
                    let Some(meta) = self.head(&path).await? else { return Err(self.missing(container, object).await) };
                    let (start, size) = clamp(start, end, meta.size)?;
                    if size == 0 {
                        return Ok(Reading { size, chunks: futures::stream::empty().boxed() });
                    }
                    options.range = Some(GetRange::Bounded(start..start + size));
                    // Replaced between the two requests it would be a range of something else.
                    options.if_match = meta.e_tag;
                }
                let found = async {
                    match self.store.get_opts(&path, options).await {
                        Err(object_store::Error::Precondition { .. }) => Ok(None),
                        other => other.map(Some),
                    }
                };
                match self.call(found).await {
                    Ok(Some(found)) => {
                        let size = found.range.end - found.range.start;
                        let chunks = found.into_stream().map_err(|cause| BackendError::from(translate(cause)));
                        return Ok(Reading { size, chunks: chunks.boxed() });
                    }
                    // It was replaced: the new one is as good.
                    Ok(None) => {}
                    Err(Failed::Missing) => return Err(self.missing(container, object).await),
                    Err(Failed::Other(cause)) => return Err(cause),
                }
            }
            Err(BackendError::Unavailable("the object is replaced faster than it is read; read it again".to_owned()))
        }
        .boxed()
    }

    fn uploads(&self) -> Option<usize> {
        Some(MAX_UPLOADS)
    }

    fn write<'a>(&'a self, container: &'a str, object: &'a str) -> Answer<'a, Box<dyn Upload>> {
        async move {
            let path = self.prefix.object(container, object)?;
            self.existing(container).await?;
            let sending = Sending {
                store: self.store.clone(),
                breaker: self.breaker.clone(),
                path,
                part: BytesMut::new(),
                parts: None,
                place: Later::new(self.uploads.clone()),
            };
            let upload: Box<dyn Upload> = Box::new(sending);
            Ok(upload)
        }
        .boxed()
    }

    fn list<'a>(&'a self, container: &'a str, cursor: Option<&'a str>) -> Answer<'a, Page> {
        async move {
            let after = cursor.map(|last| self.prefix.key(container, last)).transpose()?;
            let keys = self.keys(container, after.as_ref()).await?;
            if keys.is_empty() && cursor.is_none() {
                self.existing(container).await?;
            }
            // Behind a full page may be more, whoever wrote the keys of this one.
            let last = keys.last().filter(|_| keys.len() == PAGE);
            let cursor = last.and_then(|key| self.prefix.cursor(container, key)).map(str::to_owned);
            Ok(Page { names: keys.iter().filter_map(|key| self.prefix.name(container, key)).collect(), cursor })
        }
        .boxed()
    }

    fn remove<'a>(&'a self, container: &'a str, objects: Vec<String>) -> Answer<'a, ()> {
        async move {
            self.existing(container).await?;
            let keys: Result<std::collections::BTreeSet<Path>, _> =
                objects.iter().map(|object| self.prefix.object(container, object)).collect();
            self.remove_keys(keys?.into_iter().collect()).await
        }
        .boxed()
    }

    fn copy<'a>(&'a self, from: (&'a str, &'a str), to: (&'a str, &'a str)) -> Answer<'a, ()> {
        async move {
            let (old, new) = (self.prefix.object(from.0, from.1)?, self.prefix.object(to.0, to.1)?);
            self.existing(to.0).await?;
            if self.head(&old).await?.is_none() {
                return Err(self.missing(from.0, from.1).await);
            }
            Ok(self.call(self.store.copy(&old, &new)).await?)
        }
        .boxed()
    }
}
