//! Key-value in Vault or OpenBao: one secret per key, in a KV secrets engine of version 1 or 2.
//!
//! Layout: `<mount>/[data/]<prefix>/<tenant>/<app>/<bucket>/<key>`. Tenant and app are typed names; bucket and key are
//! escaped, so that no text of a tenant is ever a piece of a path or meets a pattern of a policy. A value is the field
//! `text` where it is plain text, and `base64` where it is not.
//!
//! Version 2 has check-and-set, on which increments stand, and may ask for it with every write. Neither version can change
//! several keys at once, and version 1 cannot add: what they have no way to do is refused and not imitated.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use data_encoding::BASE64;
use futures::FutureExt;
use futures::future::BoxFuture;
use http::Method;
use model::{AppName, ProviderName, TenantName};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;
use zeroize::Zeroizing;

use super::count::{Counting, Found, TIMEOUT, Versioned};
use super::escape::{escape, unescape};
use super::{Answer, Backend, BackendError, Gathered, PAGE, Page, check_length, paged};
use crate::dial::Dialer;
use crate::http_json::{SettingsError, Told, json_body};
use crate::meter::{ErrorKind, Kind as _};
use crate::path::Segments;
use crate::vault::{self, Hidden, VaultError};

/// The largest value, bytes: Vault's own storage takes entries of 1 MiB, and what is stored is base64.
pub const MAX_VALUE: usize = 512 * 1024;
/// The longest value that is stored as text, so that people can read it in Vault, bytes.
const MAX_TEXT: usize = 64 * 1024;
/// Between two tries to write a key that others write.
const AGAIN: Duration = Duration::from_millis(5);
/// Values of one batch that are asked for at once.
const READS: usize = 16;

/// Which of the two KV engines is mounted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    /// Without versions of a key.
    V1,
    /// With versions and check-and-set.
    V2,
}

impl Version {
    /// The version in the setting `version`; 2 where it is not given.
    ///
    /// # Errors
    /// [`SettingsError::Value`].
    pub fn setting(text: Option<&str>) -> Result<Self, SettingsError> {
        match text {
            Some("1") => Ok(Self::V1),
            Some("2") | None => Ok(Self::V2),
            Some(_) => Err(SettingsError::Value { name: "version", why: "is `1` or `2`".to_owned() }),
        }
    }
}

/// Where the keys are.
pub struct Settings<'a> {
    /// Which Vault, and as whom.
    pub vault: vault::Settings<'a>,
    /// Where the engine is mounted; `secret` where it is not given.
    pub mount: Option<&'a str>,
    /// The path below the mount that all keys are below; `sidereal` where it is not given.
    pub prefix: Option<&'a str>,
    /// Which engine.
    pub version: Version,
}

/// One app's keys in one Vault.
pub struct VaultKv {
    vault: Arc<vault::Vault>,
    version: Version,
    mount: Segments,
    base: String,
    counting: Counting,
    /// Whether Vault asked for the version that a write replaces.
    versions_needed: AtomicBool,
}

/// What is stored for one key.
#[derive(Serialize)]
struct Stored {
    #[serde(skip_serializing_if = "Option::is_none")]
    text: Option<Hidden>,
    #[serde(skip_serializing_if = "Option::is_none")]
    base64: Option<Hidden>,
}

/// The same as it is read, or one that a person set: `vault kv put … value=…`.
#[derive(Deserialize)]
struct Kept {
    text: Option<Hidden>,
    base64: Option<Hidden>,
    value: Option<Hidden>,
}

#[derive(Serialize)]
struct Put2 {
    data: Stored,
    #[serde(skip_serializing_if = "Option::is_none")]
    options: Option<Options>,
}

#[derive(Serialize)]
struct Options {
    cas: u64,
}

#[derive(Deserialize)]
struct Got<T> {
    data: Option<T>,
}

#[derive(Deserialize)]
struct Got2 {
    data: Option<Kept>,
    metadata: Metadata,
}

/// The same where only the version matters, whatever the value is.
#[derive(Deserialize)]
struct Known {
    metadata: Metadata,
}

#[derive(Deserialize)]
struct Metadata {
    version: u64,
}

#[derive(Deserialize)]
struct Listed {
    /// OpenBao leaves it out where version 1 had names and has none any more.
    #[serde(default)]
    keys: Vec<String>,
}

impl VaultKv {
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
        let mount = Segments::setting("mount", settings.mount.unwrap_or("secret"))?;
        let prefix = Segments::setting("prefix", settings.prefix.unwrap_or("sidereal"))?;
        Ok(Self {
            vault: vault::Vault::new(app, provider, &settings.vault, dialer)?,
            version: settings.version,
            mount,
            base: format!("{prefix}/{tenant}/{app}"),
            counting: Counting::default(),
            versions_needed: AtomicBool::new(false),
        })
    }

    /// Logs in and looks at the mount: says early and with its reason what every call would say.
    ///
    /// # Errors
    /// What a call would answer.
    pub async fn check(&self) -> Result<(), BackendError> {
        self.vault.check().await.map_err(translate)?;
        let Some(mounted) = self.vault.mounted(&self.mount).await.map_err(translate)? else { return Ok(()) };
        let mount = &self.mount;
        if !mounted.is_kv() {
            let kind = &mounted.kind;
            let why = format!("what Vault has mounted at `{mount}` is `{kind}` and not `kv`; correct `mount`");
            return Err(BackendError::Unavailable(why));
        }
        let is_two = mounted.is_versioned();
        if is_two != (self.version == Version::V2) {
            let is = if is_two { 2 } else { 1 };
            let why = format!("the `kv` that Vault has mounted at `{mount}` is version {is}; set `version = \"{is}\"`");
            return Err(BackendError::Unavailable(why));
        }
        Ok(())
    }

    /// The path of a bucket or of a key: version 2 has one for values and one for what is known about them.
    fn path(&self, of: &'static str, bucket: &str, key: Option<&str>) -> String {
        let Self { mount, base, .. } = self;
        let of = if self.version == Version::V2 { of } else { "" };
        let key = key.map(escape).unwrap_or_default();
        format!("/v1/{mount}/{of}{base}/{}/{key}", escape(bucket))
    }

    async fn call(&self, method: Method, path: &str, body: Zeroizing<Vec<u8>>) -> Result<Told, VaultError> {
        self.vault.call(method, path, body).await
    }

    fn read<T: serde::de::DeserializeOwned>(&self, told: &Told) -> Result<T, BackendError> {
        self.vault.read(told).map_err(translate)
    }

    async fn found(&self, bucket: &str, key: &str) -> Result<Found, BackendError> {
        let path = self.path("data/", bucket, Some(key));
        let told = self.call(Method::GET, &path, Zeroizing::default()).await.map_err(translate)?;
        let none = Found { value: None, version: 0 };
        match (self.version, told.status.as_u16()) {
            (Version::V1, 200) => {
                let Got { data } = self.read::<Got<Kept>>(&told)?;
                Ok(Found { value: data.map(value_of).transpose()?, version: 0 })
            }
            (Version::V2, 200) => {
                let Some(Got2 { data, metadata }) = self.read::<Got<Got2>>(&told)?.data else { return Ok(none) };
                Ok(Found { value: data.map(value_of).transpose()?, version: metadata.version })
            }
            // A key whose last version was deleted by somebody else is told with its version.
            (Version::V2, 404) => Ok(Found { value: None, version: version(&told) }),
            _ => Ok(none),
        }
    }

    /// Writes a value; with `cas` only over that version. The version after it, where there is one.
    async fn put(&self, bucket: &str, key: &str, value: &[u8], cas: Option<u64>) -> Result<u64, VaultError> {
        let data = stored(value);
        let body = match self.version {
            Version::V1 => json_body(&data),
            Version::V2 => json_body(&Put2 { data, options: cas.map(|cas| Options { cas }) }),
        };
        let body = body.map_err(|cause| VaultError::TooLarge(cause.to_string()))?;
        let told = self.call(Method::POST, &self.path("data/", bucket, Some(key)), body).await?;
        match (self.version, told.status.as_u16()) {
            (Version::V1, 200 | 204) => Ok(0),
            (Version::V2, 200) => {
                let got: Got<Metadata> = self.vault.read(&told)?;
                got.data.map(|data| data.version).ok_or_else(|| self.no_such(&told))
            }
            _ => Err(self.no_such(&told)),
        }
    }

    /// Writes a value over whatever is there.
    async fn write(&self, bucket: &str, key: &str, value: &[u8]) -> Result<(), BackendError> {
        if !self.versions_needed.load(Relaxed) {
            match self.put(bucket, key, value, None).await {
                Err(VaultError::VersionNeeded) => self.versions_needed.store(true, Relaxed),
                other => return other.map(|_| ()).map_err(translate),
            }
        }
        let deadline = Instant::now() + TIMEOUT;
        let late = |_| BackendError::TimedOut { ms: TIMEOUT.as_millis() as u64 };
        let turn = self.counting.turn(bucket, key, false);
        let _mine = tokio::time::timeout_at(deadline, turn.lock()).await.map_err(late)?;
        let path = self.path("data/", bucket, Some(key));
        loop {
            let told = self.call(Method::GET, &path, Zeroizing::default()).await.map_err(translate)?;
            match self.put(bucket, key, value, Some(version(&told))).await {
                // Somebody else wrote in between: this write is the later one.
                Err(VaultError::Conflict) if Instant::now() < deadline => tokio::time::sleep(AGAIN).await,
                other => return other.map(|_| ()).map_err(translate),
            }
        }
    }

    fn no_such(&self, told: &Told) -> VaultError {
        let cause = format!("a write was answered with status {}", told.status.as_u16());
        VaultError::Garbage { place: self.vault.place().to_owned(), cause }
    }

    /// Removes a key with all its versions.
    async fn remove(&self, bucket: &str, key: &str) -> Result<(), BackendError> {
        let path = self.path("metadata/", bucket, Some(key));
        self.call(Method::DELETE, &path, Zeroizing::default()).await.map(|_| ()).map_err(translate)
    }
}

/// The version that a key has, as Vault told when it was asked for it; 0 where it never was.
fn version(told: &Told) -> u64 {
    told.json::<Got<Known>>().ok().and_then(|got| got.data).map_or(0, |known| known.metadata.version)
}

/// The method by which names are listed.
fn list() -> Method {
    Method::from_bytes(b"LIST").unwrap_or(Method::GET)
}

/// A name in a query.
fn query(name: &str) -> String {
    url::form_urlencoded::byte_serialize(name.as_bytes()).collect()
}

fn stored(value: &[u8]) -> Stored {
    // Characters that JSON escapes would grow beyond what Vault stores.
    let plain = |text: &&str| text.len() <= MAX_TEXT && !text.chars().any(char::is_control);
    match std::str::from_utf8(value).ok().filter(plain) {
        Some(text) => Stored { text: Some(Hidden::new(text.to_owned())), base64: None },
        None => Stored { text: None, base64: Some(Hidden::new(BASE64.encode(value))) },
    }
}

fn value_of(kept: Kept) -> Result<Vec<u8>, BackendError> {
    let foreign = || {
        let why = "the key holds a secret that is no value: it has none of the fields `text`, `base64` and `value`";
        BackendError::Unavailable(why.to_owned())
    };
    let value = match kept {
        Kept { base64: Some(base64), .. } => BASE64.decode(base64.expose().as_bytes()).map_err(|_| foreign())?,
        Kept { text: Some(text), .. } | Kept { value: Some(text), .. } => text.expose().as_bytes().to_vec(),
        _ => return Err(foreign()),
    };
    check_length(value.len()).map(|()| value)
}

fn translate(cause: VaultError) -> BackendError {
    match (&cause, cause.kind()) {
        (VaultError::Slow { ms, .. }, _) => BackendError::TimedOut { ms: *ms },
        (VaultError::TooLarge(_), _) => BackendError::TooLarge(cause.to_string()),
        (_, ErrorKind::Denied) => BackendError::Denied(cause.to_string()),
        _ => BackendError::Unavailable(cause.to_string()),
    }
}

fn no_batches() -> BackendError {
    BackendError::Unsupported(
        "Vault cannot change several keys at once, all or none: set or delete them one by one".to_owned(),
    )
}

impl Versioned for VaultKv {
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
            let value = Zeroizing::new(value);
            match self.put(bucket, key, value.as_bytes(), Some(version)).await {
                Ok(version) => Ok(Some(version)),
                Err(VaultError::Conflict) => Ok(None),
                Err(cause) => Err(translate(cause)),
            }
        }
        .boxed()
    }
}

impl Backend for VaultKv {
    fn get<'a>(&'a self, bucket: &'a str, key: &'a str) -> Answer<'a, Option<Vec<u8>>> {
        self.found(bucket, key).map(|found| found.map(|found| found.value)).boxed()
    }

    fn set<'a>(&'a self, bucket: &'a str, key: &'a str, value: Vec<u8>) -> Answer<'a, ()> {
        async move {
            let value = Zeroizing::new(value);
            if value.len() > MAX_VALUE {
                let n = value.len();
                let why = format!("a value in Vault has at most {MAX_VALUE} bytes, this one has {n}");
                return Err(BackendError::TooLarge(why));
            }
            self.write(bucket, key, &value).await
        }
        .boxed()
    }

    fn delete<'a>(&'a self, bucket: &'a str, key: &'a str) -> Answer<'a, ()> {
        self.remove(bucket, key).boxed()
    }

    fn exists<'a>(&'a self, bucket: &'a str, key: &'a str) -> Answer<'a, bool> {
        self.found(bucket, key).map(|found| found.map(|found| found.value.is_some())).boxed()
    }

    /// In the order of the escaped names. OpenBao tells a page of them, Vault all names of a bucket at once.
    fn list_keys<'a>(&'a self, bucket: &'a str, cursor: Option<&'a str>) -> Answer<'a, Page> {
        async move {
            let folder = self.path("metadata/", bucket, None);
            // A name as it is told, which need not be one of ours: people write keys by hand, and folders.
            let after = cursor.map(|name| format!("&after={}", query(name))).unwrap_or_default();
            let most = PAGE as usize + 1;
            let path = format!("{folder}?limit={most}{after}");
            let told = self.call(list(), &path, Zeroizing::default()).await.map_err(translate)?;
            let names = match told.status.as_u16() {
                200 => self.read::<Got<Listed>>(&told)?.data.map(|listed| listed.keys).unwrap_or_default(),
                _ => Vec::new(),
            };
            Ok(paged(names, cursor, (PAGE as usize, Some(most)), unescape))
        }
        .boxed()
    }

    fn increment<'a>(&'a self, bucket: &'a str, key: &'a str, delta: u64) -> Answer<'a, u64> {
        async move {
            match self.version {
                Version::V2 => self.counting.increment(self, bucket, key, delta).await,
                Version::V1 => Err(BackendError::Unsupported(
                    "a `kv` of version 1 in Vault has no check-and-set, so nothing can be incremented in it: use version 2"
                        .to_owned(),
                )),
            }
        }
        .boxed()
    }

    /// Each key on its own: a batch may see some keys before and some after a change of another.
    fn get_many<'a>(&'a self, bucket: &'a str, keys: Vec<String>) -> Answer<'a, Vec<(String, Option<Vec<u8>>)>> {
        Gathered::each(keys, move |key| async move { Ok(self.found(bucket, &key).await?.value) }, READS).boxed()
    }

    /// One key, or the same key several times; more are refused.
    fn set_many<'a>(&'a self, bucket: &'a str, pairs: Vec<(String, Vec<u8>)>) -> Answer<'a, ()> {
        async move {
            let mut last: BTreeMap<String, Vec<u8>> = pairs.into_iter().collect();
            match (last.pop_first(), last.is_empty()) {
                (None, _) => Ok(()),
                (Some((key, value)), true) => self.set(bucket, &key, value).await,
                _ => Err(no_batches()),
            }
        }
        .boxed()
    }

    /// One key, or the same key several times; more are refused.
    fn delete_many<'a>(&'a self, bucket: &'a str, keys: Vec<String>) -> Answer<'a, ()> {
        async move {
            let mut unique: BTreeSet<String> = keys.into_iter().collect();
            match (unique.pop_first(), unique.is_empty()) {
                (None, _) => Ok(()),
                (Some(key), true) => self.remove(bucket, &key).await,
                _ => Err(no_batches()),
            }
        }
        .boxed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_come_back_and_text_stays_readable() {
        let all: Vec<u8> = (0..=255).collect();
        let long = "x".repeat(MAX_TEXT + 1);
        let readable = ["", "hello", "ключ", "{\"a\":1}", "~"].map(str::as_bytes);
        let encoded = [b"a\nb", &b"\0"[..], &all, &[0xff, 0xfe], long.as_bytes()];
        for (as_text, value) in readable.map(|v| (true, v)).into_iter().chain(encoded.map(|v| (false, v))) {
            let data = stored(value);
            assert_eq!(data.text.is_some(), as_text);
            let json = json_body(&data).unwrap();
            let kept: Kept = serde_json::from_slice(&json).unwrap();
            assert_eq!(value_of(kept).unwrap(), value);
        }
    }

    #[test]
    fn what_a_person_set_is_read_and_what_is_no_value_is_said_to_be_none() {
        let kept = |json: &str| value_of(serde_json::from_str::<Kept>(json).unwrap());
        assert_eq!(kept(r#"{"value":"hello","note":"by hand"}"#).unwrap(), b"hello");
        assert!(kept(r#"{"password":"hunter2"}"#).unwrap_err().to_string().contains("no value"));
        assert!(kept(r#"{"base64":"not base64"}"#).is_err());
    }
}
