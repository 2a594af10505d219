//! Key-value in NATS JetStream, laid out as the official clients lay out theirs: a bucket is the stream `KV_<bucket>`,
//! a key the subject `$KV.<bucket>.<key>`, a deleted key a marker. See [`names`](self) for the names.
//!
//! A write is answered when the stream has stored it. Reads go to the stream directly where it has one replica, and to
//! its leader where it has more, because a replica may be behind. Several keys are changed all or none by a server
//! that can (2.12 and later), and not at all by one that cannot.

mod batch;
mod bucket;
mod follow;
mod list;
pub(crate) mod names;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use data_encoding::BASE64;
use futures::FutureExt;
use futures::future::BoxFuture;
use model::{AppName, ProviderName, TenantName};
use serde::{Deserialize, Serialize};

use super::count::{Counting, Found, Versioned};
use super::{Answer, Backend, BackendError, Gathered, Page, check_length};
use crate::dial::Dialer;
use crate::http_out::Tls;
use crate::nats::jetstream::{JetStream, JetStreamError, NO_MESSAGE, NO_STREAM, WRONG_SEQUENCE};
use crate::nats::{Client, EndpointError, Headers, Login, NatsError, Options, Outgoing};
pub use batch::MAX_BATCH;
use bucket::Bucket;
pub use follow::Follower;

/// Values of one batch that are asked for at once.
const READS: usize = 8;
/// Before a call is tried once more because no stream listened: a new leader is chosen meanwhile.
const ELECTION: Duration = Duration::from_millis(250);
/// How long a server that can expire markers keeps one, seconds: watchers that were away see the deletion.
const MARKER_SECONDS: &str = "3600";
/// The most replicas of a stream.
const MAX_REPLICAS: u32 = 5;

/// Where the keys are, and as whom.
pub struct Settings<'a> {
    /// `nats://host[:port]` or `tls://host[:port]`.
    pub url: &'a str,
    /// Copies of a bucket that is made, 1 where it is not given.
    pub replicas: Option<&'a str>,
    /// The JetStream domain, where it is not the account's own.
    pub jetstream_domain: Option<&'a str>,
    /// Who we are.
    pub login: Login,
}

/// The settings of the provider are wrong.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SettingsError {
    /// `url`.
    #[error(transparent)]
    Url(#[from] EndpointError),
    /// `replicas`.
    #[error("the provider's `replicas` is not a number from 1 to {MAX_REPLICAS}")]
    Replicas,
    /// `jetstream_domain`.
    #[error("the provider's `jetstream_domain` is not letters, digits, `-` and `_`")]
    Domain,
}

/// One app's keys in one NATS.
pub struct Nats {
    tenant: TenantName,
    app: AppName,
    js: JetStream,
    replicas: u32,
    buckets: Mutex<HashMap<String, Arc<Bucket>>>,
    counting: Counting,
}

/// A message as the leader tells it.
#[derive(Deserialize)]
struct Stored {
    message: StoredMessage,
}

#[derive(Deserialize)]
struct StoredMessage {
    seq: u64,
    #[serde(default)]
    hdrs: String,
    #[serde(default)]
    data: String,
}

#[derive(Serialize)]
struct Last<'a> {
    last_by_subj: &'a str,
}

impl Nats {
    /// The keys of one app. Nothing is connected before the first call.
    ///
    /// # Errors
    /// [`SettingsError`].
    pub fn new(
        tenant: &TenantName,
        app: &AppName,
        provider: &ProviderName,
        settings: Settings<'_>,
        tls: Tls,
        dialer: Arc<dyn Dialer>,
    ) -> Result<Self, SettingsError> {
        let replicas = settings.replicas.map_or(Ok(1), |text| text.parse().map_err(|_| SettingsError::Replicas))?;
        if !(1..=MAX_REPLICAS).contains(&replicas) {
            return Err(SettingsError::Replicas);
        }
        let options = Options {
            tenant: tenant.clone(),
            app: app.clone(),
            provider: provider.clone(),
            endpoint: settings.url.parse()?,
            login: settings.login,
            tls,
        };
        let client = Client::new(options, dialer);
        let js = JetStream::new(client, settings.jetstream_domain).map_err(|_| SettingsError::Domain)?;
        let (tenant, app) = (tenant.clone(), app.clone());
        Ok(Self { tenant, app, js, replicas, buckets: Mutex::default(), counting: Counting::default() })
    }

    /// Connects and asks for JetStream: says early and with its reason what every call would say.
    ///
    /// # Errors
    /// What a call would answer.
    pub async fn check(&self) -> Result<(), BackendError> {
        self.js.check().await.map_err(failed)
    }

    fn known(&self) -> MutexGuard<'_, HashMap<String, Arc<Bucket>>> {
        self.buckets.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn bucket(&self, bucket: &str) -> Result<Arc<Bucket>, BackendError> {
        if let Some(known) = self.known().get(bucket).cloned() {
            return Ok(known);
        }
        let name = names::bucket(&self.tenant, &self.app, bucket)
            .ok_or_else(|| BackendError::TooLarge("the name of the bucket is too long for NATS".to_owned()))?;
        let found = Arc::new(bucket::ensure(&self.js, &name, self.replicas).await?);
        self.known().insert(bucket.to_owned(), found.clone());
        Ok(found)
    }

    /// Does `call` on the bucket. Where no stream listens, which means that nothing was done, it looks for the bucket
    /// again and tries once more.
    async fn on<T, F>(
        &self,
        bucket: &str,
        call: impl Fn(Arc<Bucket>) -> F,
    ) -> Result<Result<T, JetStreamError>, BackendError>
    where
        F: Future<Output = Result<T, JetStreamError>>,
    {
        let first = call(self.bucket(bucket).await?).await;
        if matches!(first, Err(JetStreamError::Nats(NatsError::TimedOut { .. }))) {
            // An older server is silent where the stream was removed: the next call looks for it.
            self.known().remove(bucket);
        }
        let gone = matches!(
            first,
            Err(JetStreamError::Nats(NatsError::NoResponders(_)) | JetStreamError::Refused { err_code: NO_STREAM, .. })
        );
        if !gone {
            return Ok(first);
        }
        self.known().remove(bucket);
        tokio::time::sleep(ELECTION).await;
        Ok(call(self.bucket(bucket).await?).await)
    }

    async fn found(&self, bucket: &str, key: &str) -> Result<Found, BackendError> {
        let name = names::encode(key);
        let found = self.on(bucket, |bucket| {
            let subject = format!("{}{name}", bucket.prefix);
            async move {
                match bucket.direct {
                    true => self.direct(&bucket.stream, &subject).await,
                    false => self.by_leader(&bucket.stream, &subject).await,
                }
            }
        });
        let found = found.await?.map_err(failed)?;
        check_length(found.value.as_ref().map_or(0, Vec::len))?;
        Ok(found)
    }

    async fn direct(&self, stream: &str, subject: &str) -> Result<Found, JetStreamError> {
        let ask = Outgoing::new(self.js.subject(&format!("DIRECT.GET.{stream}.{subject}")), "");
        let answer = self.js.ask(ask).await?;
        match answer.headers.status() {
            None => {}
            Some((404, _)) => return Ok(Found { value: None, version: 0 }),
            Some((code, words)) => return Err(JetStreamError::Garbage(format!("{code} {words}"))),
        }
        let seq = answer.headers.get("Nats-Sequence").and_then(|seq| seq.parse().ok());
        let version = seq.ok_or_else(|| JetStreamError::Garbage("a message without its sequence".to_owned()))?;
        let value = (!marker(&answer.headers)).then(|| answer.payload.to_vec());
        Ok(Found { value, version })
    }

    async fn by_leader(&self, stream: &str, subject: &str) -> Result<Found, JetStreamError> {
        let asked = self.js.call(&format!("STREAM.MSG.GET.{stream}"), &Last { last_by_subj: subject }).await;
        let Stored { message } = match asked {
            Err(JetStreamError::Refused { err_code: NO_MESSAGE, .. }) => return Ok(Found { value: None, version: 0 }),
            answer => answer?,
        };
        let bytes = |text: &str| {
            BASE64.decode(text.as_bytes()).map_err(|_| JetStreamError::Garbage("a value that is not Base64".to_owned()))
        };
        let deleted = Headers::read(&bytes(&message.hdrs)?).is_some_and(|headers| marker(&headers));
        let value = if deleted { None } else { Some(bytes(&message.data)?) };
        Ok(Found { value, version: message.seq })
    }

    /// Writes one key; the sequence it has then.
    async fn put(
        &self,
        bucket: &str,
        key: &str,
        change: Change,
        headers: Headers,
    ) -> Result<Result<u64, JetStreamError>, BackendError> {
        let name = names::encode(key);
        let told = self.on(bucket, |bucket| {
            let headers = change.headers(headers.clone(), &bucket);
            let payload = change.payload();
            let subject = format!("{}{name}", bucket.prefix);
            async move { self.js.publish(&subject, headers?, payload).await.map(|ack| ack.seq) }
        });
        told.await
    }
}

/// What becomes of a key.
enum Change {
    Set(Bytes),
    Delete,
}

impl Change {
    fn payload(&self) -> Bytes {
        match self {
            Self::Set(value) => value.clone(),
            Self::Delete => Bytes::new(),
        }
    }

    fn headers(&self, mut headers: Headers, bucket: &Bucket) -> Result<Headers, NatsError> {
        if matches!(self, Self::Delete) {
            headers.add(OPERATION, "DEL")?;
            if bucket.expiring {
                headers.add("Nats-TTL", MARKER_SECONDS)?;
            }
        }
        Ok(headers)
    }
}

/// The header of a message that is no value.
const OPERATION: &str = "KV-Operation";

/// Whether a message marks its key as deleted: by a client, or by the server, which has its own header for that.
fn marker(headers: &Headers) -> bool {
    matches!(headers.get(OPERATION), Some("DEL" | "PURGE")) || headers.get("Nats-Marker-Reason").is_some()
}

/// What a failure means to a caller.
fn failed(cause: JetStreamError) -> BackendError {
    match cause {
        JetStreamError::Nats(NatsError::Denied(why)) => BackendError::Denied(why),
        JetStreamError::Nats(NatsError::TimedOut { ms }) => BackendError::TimedOut { ms },
        JetStreamError::Nats(NatsError::TooLarge { bytes, limit }) => BackendError::TooLarge(format!(
            "the NATS server takes messages of at most {limit} bytes and this one has {bytes}; \
             raise `max_payload` in its configuration, to `9MB` for values of every size"
        )),
        JetStreamError::Nats(NatsError::NoResponders(_)) => {
            BackendError::Unavailable("no JetStream stream listens for the bucket now".to_owned())
        }
        other => BackendError::Unavailable(other.to_string()),
    }
}

impl Versioned for Nats {
    /// A version is the number of a message in the stream, and that of a marker where the key was deleted.
    fn never_repeats(&self) -> bool {
        true
    }

    fn read<'a>(&'a self, bucket: &'a str, key: &'a str) -> BoxFuture<'a, Result<Found, BackendError>> {
        self.found(bucket, key).boxed()
    }

    fn swap<'a>(
        &'a self,
        bucket: &'a str,
        key: &'a str,
        value: String,
        version: u64,
    ) -> BoxFuture<'a, Result<Option<u64>, BackendError>> {
        async move {
            let headers = Headers::new().with("Nats-Expected-Last-Subject-Sequence", &version.to_string());
            let headers = headers.map_err(|cause| failed(cause.into()))?;
            match self.put(bucket, key, Change::Set(value.into()), headers).await? {
                Ok(seq) => Ok(Some(seq)),
                Err(JetStreamError::Refused { err_code, .. }) if WRONG_SEQUENCE.contains(&err_code) => Ok(None),
                Err(cause) => Err(failed(cause)),
            }
        }
        .boxed()
    }
}

impl Backend for Nats {
    fn get<'a>(&'a self, bucket: &'a str, key: &'a str) -> Answer<'a, Option<Vec<u8>>> {
        async move { Ok(self.found(bucket, key).await?.value) }.boxed()
    }

    fn set<'a>(&'a self, bucket: &'a str, key: &'a str, value: Vec<u8>) -> Answer<'a, ()> {
        async move { self.put(bucket, key, Change::Set(value.into()), Headers::new()).await?.map(drop).map_err(failed) }
            .boxed()
    }

    fn delete<'a>(&'a self, bucket: &'a str, key: &'a str) -> Answer<'a, ()> {
        async move {
            // No marker for what is not there.
            if self.found(bucket, key).await?.value.is_none() {
                return Ok(());
            }
            self.put(bucket, key, Change::Delete, Headers::new()).await?.map(drop).map_err(failed)
        }
        .boxed()
    }

    fn exists<'a>(&'a self, bucket: &'a str, key: &'a str) -> Answer<'a, bool> {
        async move { Ok(self.found(bucket, key).await?.value.is_some()) }.boxed()
    }

    /// In the order of the last change; a key that changes meanwhile may come twice.
    fn list_keys<'a>(&'a self, bucket: &'a str, cursor: Option<&'a str>) -> Answer<'a, Page> {
        async move { list::page(&self.js, &*self.bucket(bucket).await?, cursor).await }.boxed()
    }

    fn increment<'a>(&'a self, bucket: &'a str, key: &'a str, delta: u64) -> Answer<'a, u64> {
        self.counting.increment(self, bucket, key, delta).boxed()
    }

    /// Each key on its own: a batch may see some keys before and some after a change of another.
    fn get_many<'a>(&'a self, bucket: &'a str, keys: Vec<String>) -> Answer<'a, Vec<(String, Option<Vec<u8>>)>> {
        let ask = move |key: String| async move { Ok(self.found(bucket, &key).await?.value) };
        Gathered::each(keys, ask, READS).boxed()
    }

    fn set_many<'a>(&'a self, bucket: &'a str, pairs: Vec<(String, Vec<u8>)>) -> Answer<'a, ()> {
        let changes = pairs.into_iter().map(|(key, value)| (key, Change::Set(value.into())));
        self.change(bucket, changes.collect()).boxed()
    }

    fn delete_many<'a>(&'a self, bucket: &'a str, keys: Vec<String>) -> Answer<'a, ()> {
        self.change(bucket, keys.into_iter().map(|key| (key, Change::Delete)).collect()).boxed()
    }
}
