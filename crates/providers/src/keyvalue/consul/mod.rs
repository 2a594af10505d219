//! Key-value in Consul, over its HTTP API.
//!
//! Layout: `<prefix>/<tenant>/<app>/<bucket>/<key>`. Tenant and app are typed names; bucket and key are escaped, so that
//! no text of a tenant is ever a piece of a path. Reads ask for `consistent`: the default may answer with what an
//! earlier leader knew. A batch is one transaction, which Consul limits in entries and bytes.

mod access;
mod follow;

use std::collections::BTreeMap;
use std::sync::Arc;

use data_encoding::BASE64;
use futures::FutureExt;
use futures::future::BoxFuture;
use http::{HeaderValue, Method, StatusCode};
use model::{AppName, ProviderName, TenantName};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::count::{Counting, Found, Versioned};
use super::escape::{escape, unescape};
use super::{Answer, Backend, BackendError, Gathered, PAGE, Page, paged};
use crate::dial::{Caller, Dialer};
use crate::http_json::{Ask, HttpError, HttpJson, Server, SettingsError, Told, json_body};
use crate::path::Segments;
use crate::secrets::Credentials;
use access::Access;

/// The largest value, bytes: what a Consul with its defaults takes.
pub const MAX_VALUE: usize = 512 * 1024;
/// The most entries of a transaction.
pub const MAX_BATCH: usize = 64;
/// The most bytes of a transaction as it is sent.
const MAX_TXN: usize = 512 * 1024;
/// The most bytes of an answer: the names of a bucket's keys, all at once.
const MAX_LIST: usize = 16 << 20;
/// Values of one batch that are asked for at once.
const READS: usize = 16;
/// Of what a refusal says, this many characters are repeated.
const MAX_WORDS: usize = 200;

/// Where the keys are, and as whom.
pub struct Settings<'a> {
    /// The agent or server, for example `http://127.0.0.1:8500`.
    pub url: &'a str,
    /// Certificates in PEM to believe instead of the public authorities.
    pub ca: Option<&'a str>,
    /// The path that all keys are below; `sidereal` where it is not given.
    pub prefix: Option<&'a str>,
    /// The ACL token: the secret `token`, where it is named.
    pub credentials: Credentials,
}

/// One app's keys in one Consul.
pub struct Consul {
    http: HttpJson,
    access: Access,
    /// Without `/` at either end.
    base: String,
    counting: Counting,
}

/// One step of a transaction.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Op<'a> {
    #[serde(rename = "KV")]
    kv: Kv<'a>,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Kv<'a> {
    verb: &'static str,
    key: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    value: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    index: Option<u64>,
}

/// One key as it is told.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Entry {
    #[serde(default)]
    value: Option<String>,
    modify_index: u64,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Done {
    #[serde(default)]
    results: Option<Vec<DoneOne>>,
    #[serde(default)]
    errors: Option<Vec<Undone>>,
}

#[derive(Deserialize)]
struct DoneOne {
    #[serde(rename = "KV")]
    kv: Entry,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Undone {
    what: String,
}

/// How a transaction ended.
enum Outcome {
    Done(Vec<DoneOne>),
    /// Nothing was changed: a key is not as the transaction expects it.
    NotAsExpected,
}

impl Consul {
    /// The keys of one app. Nothing is connected before the first call.
    ///
    /// # Errors
    /// [`SettingsError`].
    pub fn new(
        tenant: &TenantName,
        app: &AppName,
        provider: &ProviderName,
        settings: &Settings<'_>,
        dialer: Arc<dyn Dialer>,
    ) -> Result<Self, SettingsError> {
        let server = Server::parse(settings.url, settings.ca)?;
        let prefix = Segments::setting("prefix", settings.prefix.unwrap_or("sidereal"))?;
        Ok(Self {
            http: HttpJson::new(server, app.clone(), Caller::Provider(provider.clone()), dialer),
            access: Access::new(settings.credentials.clone()),
            base: format!("{prefix}/{tenant}/{app}"),
            counting: Counting::default(),
        })
    }

    /// Asks for a key of the app's own: says early and with its reason what every call would say.
    ///
    /// # Errors
    /// What a call would answer.
    pub async fn check(&self) -> Result<(), BackendError> {
        self.value("", "").await.map(|_| ())
    }

    fn key(&self, bucket: &str, key: &str) -> String {
        format!("{}/{}/{}", self.base, escape(bucket), escape(key))
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        body: Zeroizing<Vec<u8>>,
        limit: usize,
    ) -> Result<Told, BackendError> {
        let (headers, versions) = self.access.headers().await?;
        let ask = Ask { method: method.clone(), path, headers, body: body.clone(), limit };
        let token = access::token(&ask.headers);
        let told = self.http.send(ask).await.map_err(|cause| self.failed(cause))?;
        let unknown = is_unknown(&told);
        let told = withheld(told, token.as_ref());
        if !unknown {
            return Ok(told);
        }
        // Nothing was done. The token may have been set anew since it was asked for.
        self.access.forget();
        let (headers, now) = self.access.headers().await?;
        if now == versions {
            return Ok(told);
        }
        let token = access::token(&headers);
        let told = self.http.send(Ask { method, path, headers, body, limit }).await;
        told.map(|told| withheld(told, token.as_ref())).map_err(|cause| self.failed(cause))
    }

    fn failed(&self, cause: HttpError) -> BackendError {
        let place = self.http.place();
        match cause {
            HttpError::TimedOut { ms } => BackendError::TimedOut { ms },
            HttpError::Denied(why) => BackendError::Denied(why),
            HttpError::TooLarge { limit } => {
                BackendError::TooLarge(format!("Consul's answer has more than {limit} bytes"))
            }
            HttpError::Unreachable(why) => {
                BackendError::Unavailable(format!("Consul at {place} cannot be reached: {why}"))
            }
            HttpError::Garbage(why) => {
                BackendError::Unavailable(format!("what answers at {place} is not Consul: {why}"))
            }
            HttpError::Request(why) => BackendError::Unavailable(why),
        }
    }

    /// What a status says that is not the one of success.
    fn refused(&self, told: &Told) -> BackendError {
        let said: String = String::from_utf8_lossy(&told.body).chars().take(MAX_WORDS).collect();
        let said = said.trim().escape_debug().to_string();
        let place = self.http.place();
        match told.status {
            StatusCode::FORBIDDEN | StatusCode::UNAUTHORIZED => denied(&said),
            StatusCode::PAYLOAD_TOO_LARGE => BackendError::TooLarge(format!("Consul refuses it as too large: {said}")),
            StatusCode::TOO_MANY_REQUESTS => BackendError::Unavailable(
                "Consul answers no more requests of this client for now: its rate limit is reached".to_owned(),
            ),
            StatusCode::INTERNAL_SERVER_ERROR | StatusCode::SERVICE_UNAVAILABLE
                if said.to_ascii_lowercase().contains("leader") =>
            {
                BackendError::Unavailable("Consul has no leader now and can neither read nor write".to_owned())
            }
            status => {
                BackendError::Unavailable(format!("Consul at {place} answered with status {}: {said}", status.as_u16()))
            }
        }
    }

    async fn value(&self, bucket: &str, key: &str) -> Result<Option<Vec<u8>>, BackendError> {
        let path = format!("/v1/kv/{}?raw&consistent", self.key(bucket, key));
        let told = self.send(Method::GET, &path, Zeroizing::default(), super::MAX_VALUE).await?;
        match told.status {
            StatusCode::OK => Ok(Some(told.body.to_vec())),
            // An agent that knows no such path answers 404 as well, with words.
            StatusCode::NOT_FOUND if told.body.is_empty() => Ok(None),
            _ => Err(self.refused(&told)),
        }
    }

    /// Changes keys, all or none.
    async fn transact(&self, ops: &[Op<'_>]) -> Result<Outcome, BackendError> {
        if ops.len() > MAX_BATCH {
            let n = ops.len();
            return Err(BackendError::TooLarge(format!(
                "Consul changes at most {MAX_BATCH} keys at once, all or none; this batch has {n}"
            )));
        }
        let body = json_body(&ops).map_err(|cause| self.failed(cause))?;
        if body.len() > MAX_TXN {
            let n = body.len();
            return Err(BackendError::TooLarge(format!(
                "Consul takes at most {MAX_TXN} bytes of keys and values at once; this batch has {n} as it is sent"
            )));
        }
        let told = self.send(Method::PUT, "/v1/txn", body, MAX_LIST).await?;
        if !matches!(told.status, StatusCode::OK | StatusCode::CONFLICT) {
            return Err(self.refused(&told));
        }
        let done: Done = told.json().map_err(|cause| self.failed(cause))?;
        match done.errors.as_deref() {
            None | Some([]) => Ok(Outcome::Done(done.results.unwrap_or_default())),
            Some(errors) => {
                let refusal = errors.iter().find(|error| is_refusal(&error.what));
                refusal.map_or(Ok(Outcome::NotAsExpected), |error| Err(denied(&error.what)))
            }
        }
    }

    /// [`transact`](Self::transact) where nothing is expected of the keys.
    async fn change(&self, ops: &[Op<'_>]) -> Result<(), BackendError> {
        match self.transact(ops).await? {
            Outcome::Done(_) => Ok(()),
            Outcome::NotAsExpected => Err(BackendError::Unavailable("Consul undid the change".to_owned())),
        }
    }

    /// What is at a path, and its version.
    async fn read_at(&self, key: &str) -> Result<Found, BackendError> {
        let path = format!("/v1/kv/{key}?consistent");
        let told = self.send(Method::GET, &path, Zeroizing::default(), super::MAX_VALUE * 2).await?;
        match told.status {
            StatusCode::OK => {}
            StatusCode::NOT_FOUND if told.body.is_empty() => return Ok(Found { value: None, version: 0 }),
            _ => return Err(self.refused(&told)),
        }
        let entries: Vec<Entry> = told.json().map_err(|cause| self.failed(cause))?;
        let not_one = || self.failed(HttpError::Garbage("a key has no value".to_owned()));
        let entry = entries.into_iter().next().ok_or_else(not_one)?;
        // An empty value is told as none.
        let value = entry.value.unwrap_or_default();
        let value = BASE64.decode(value.as_bytes()).map_err(|_| not_one())?;
        Ok(Found { value: Some(value), version: entry.modify_index })
    }

    /// Writes where the version at the path still is `version`; the version after that.
    async fn swap_at(&self, key: &str, value: String, version: u64) -> Result<Option<u64>, BackendError> {
        match self.transact(&[op("cas", key, Some(value.as_bytes()), Some(version))]).await? {
            Outcome::NotAsExpected => Ok(None),
            Outcome::Done(results) => {
                let told = || self.failed(HttpError::Garbage("a write has no result".to_owned()));
                results.first().map(|one| Some(one.kv.modify_index)).ok_or_else(told)
            }
        }
    }
}

/// Whether Consul says that it does not know the token.
fn is_unknown(told: &Told) -> bool {
    const WORDS: &[u8] = b"ACL not found";
    !told.status.is_success() && told.body.len() < 1024 && told.body.windows(WORDS.len()).any(|part| part == WORDS)
}

/// The answer without its words, where it refuses and they repeat the token: whatever stands between may say them.
fn withheld(mut told: Told, token: Option<&HeaderValue>) -> Told {
    let repeats = |token: &[u8]| !token.is_empty() && told.body.windows(token.len()).any(|part| part == token);
    if !told.status.is_success() && token.is_some_and(|token| repeats(token.as_bytes())) {
        told.body = Zeroizing::new(b"(its words are withheld: they repeat the token)".to_vec());
    }
    told
}

/// The words of a token that may not, or is none.
fn is_refusal(what: &str) -> bool {
    what.contains("Permission denied") || what.contains("ACL not found")
}

fn denied(said: &str) -> BackendError {
    BackendError::Denied(match said.contains("ACL not found") {
        true => "Consul does not know the token: it is expired, deleted or of another cluster".to_owned(),
        false => format!("the token may not do this in Consul: {said}"),
    })
}

fn op<'a>(verb: &'static str, key: &'a str, value: Option<&[u8]>, index: Option<u64>) -> Op<'a> {
    Op { kv: Kv { verb, key, value: value.map(|value| BASE64.encode(value)), index } }
}

fn check_size(value: &[u8]) -> Result<(), BackendError> {
    match value.len() {
        0..=MAX_VALUE => Ok(()),
        n => Err(BackendError::TooLarge(format!("a value in Consul has at most {MAX_VALUE} bytes, this one has {n}"))),
    }
}

impl Versioned for Consul {
    fn read<'a>(&'a self, bucket: &'a str, key: &'a str) -> BoxFuture<'a, Result<Found, BackendError>> {
        async move { self.read_at(&self.key(bucket, key)).await }.boxed()
    }

    fn swap<'a>(
        &'a self,
        bucket: &'a str,
        key: &'a str,
        value: String,
        version: u64,
    ) -> BoxFuture<'a, Result<Option<u64>, BackendError>> {
        async move { self.swap_at(&self.key(bucket, key), value, version).await }.boxed()
    }
}

impl Backend for Consul {
    fn get<'a>(&'a self, bucket: &'a str, key: &'a str) -> Answer<'a, Option<Vec<u8>>> {
        self.value(bucket, key).boxed()
    }

    fn set<'a>(&'a self, bucket: &'a str, key: &'a str, value: Vec<u8>) -> Answer<'a, ()> {
        async move {
            let value = Zeroizing::new(value);
            check_size(&value)?;
            let path = format!("/v1/kv/{}", self.key(bucket, key));
            let told = self.send(Method::PUT, &path, value, MAX_LIST).await?;
            match told.status {
                StatusCode::OK if told.body.trim_ascii() == b"true" => Ok(()),
                StatusCode::OK => Err(self.failed(HttpError::Garbage("a write was neither done nor refused".into()))),
                _ => Err(self.refused(&told)),
            }
        }
        .boxed()
    }

    fn delete<'a>(&'a self, bucket: &'a str, key: &'a str) -> Answer<'a, ()> {
        async move {
            let key = self.key(bucket, key);
            self.change(&[op("delete", &key, None, None)]).await
        }
        .boxed()
    }

    fn exists<'a>(&'a self, bucket: &'a str, key: &'a str) -> Answer<'a, bool> {
        self.value(bucket, key).map(|found| found.map(|value| value.is_some())).boxed()
    }

    /// In the order of the escaped names. Consul tells all names of a bucket at once, however few are asked for.
    fn list_keys<'a>(&'a self, bucket: &'a str, cursor: Option<&'a str>) -> Answer<'a, Page> {
        async move {
            let folder = format!("{}/{}/", self.base, escape(bucket));
            let path = format!("/v1/kv/{folder}?keys&consistent");
            let told = self.send(Method::GET, &path, Zeroizing::default(), MAX_LIST).await?;
            let names: Vec<String> = match told.status {
                StatusCode::OK => told.json().map_err(|cause| self.failed(cause))?,
                StatusCode::NOT_FOUND if told.body.is_empty() => Vec::new(),
                _ => return Err(self.refused(&told)),
            };
            let names = names.into_iter().filter_map(|name| name.strip_prefix(&folder).map(str::to_owned));
            Ok(paged(names.collect(), cursor, (PAGE as usize, None), unescape))
        }
        .boxed()
    }

    fn increment<'a>(&'a self, bucket: &'a str, key: &'a str, delta: u64) -> Answer<'a, u64> {
        self.counting.increment(self, bucket, key, delta).boxed()
    }

    /// Each key on its own: a batch may see some keys before and some after a change of another.
    fn get_many<'a>(&'a self, bucket: &'a str, keys: Vec<String>) -> Answer<'a, Vec<(String, Option<Vec<u8>>)>> {
        Gathered::each(keys, move |key| async move { self.value(bucket, &key).await }, READS).boxed()
    }

    fn set_many<'a>(&'a self, bucket: &'a str, pairs: Vec<(String, Vec<u8>)>) -> Answer<'a, ()> {
        async move {
            let mut last: BTreeMap<String, Vec<u8>> = BTreeMap::new();
            for (key, value) in pairs {
                check_size(&value)?;
                last.insert(self.key(bucket, &key), value);
            }
            if last.is_empty() {
                return Ok(());
            }
            let ops: Vec<_> = last.iter().map(|(key, value)| op("set", key, Some(value), None)).collect();
            self.change(&ops).await
        }
        .boxed()
    }

    fn delete_many<'a>(&'a self, bucket: &'a str, keys: Vec<String>) -> Answer<'a, ()> {
        async move {
            let keys: std::collections::BTreeSet<String> = keys.iter().map(|key| self.key(bucket, key)).collect();
            if keys.is_empty() {
                return Ok(());
            }
            let ops: Vec<_> = keys.iter().map(|key| op("delete", key, None, None)).collect();
            self.change(&ops).await
        }
        .boxed()
    }
}
