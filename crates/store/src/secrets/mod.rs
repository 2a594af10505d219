//! The tenants' secrets: sealed in the store, each under its tenant's data key, which is itself sealed by the master
//! key of this machine. What lies on the disk, in a backup of the store or on the way to another node opens nothing
//! without the file of master keys.
//!
//! One engine owns them: the control plane sets and deletes through it, the node reveals through it. A secret has one
//! value; setting it again replaces the value for good.

mod crypto;
mod master;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt as _;
use model::secret::{MAX_SECRET, MAX_SECRETS};
use model::{Digest, SecretName, SecretValue, TenantName};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::sync::{RwLock, watch};

use crate::{Entry, Expect, Store, StoreError, keys};
use crypto::{Bound, Key};
use master::Masters;

/// How often a write without a condition is tried again when others write the same secret.
const TRIES: usize = 16;
/// How long a store that does not let itself be watched is left alone.
const PAUSE: Duration = Duration::from_secs(1);

/// What is kept of a secret beside its value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SecretInfo {
    /// Its name.
    pub name: SecretName,
    /// How often it was set since it was made; starts at 1.
    pub version: u64,
    /// When it was last set, milliseconds since 1970.
    pub updated_ms: u64,
    /// The store revision of its last write: for compare-and-set, and never the same for two values.
    pub etag: u64,
}

/// A secret's value, for whoever uses it now.
#[derive(Debug, Clone)]
pub struct Revealed {
    /// What is kept beside it.
    pub info: SecretInfo,
    /// Another one for every time it was set, also after it was deleted. It says nothing else: neither how often this one was
    /// set, nor, as the etag does, how much is written by others.
    pub mark: u64,
    /// The value.
    pub value: SecretValue,
}

/// What a change of the master key did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rotated {
    /// The id of the key that wraps from now on.
    pub key: String,
    /// Tenants whose data key was wrapped anew.
    pub tenants: u64,
}

/// Why a secret cannot be kept or revealed. Never holds a value.
#[derive(Debug, thiserror::Error)]
pub enum SecretsError {
    /// No bytes, or too many.
    #[error("a secret has 1 to {MAX_SECRET} bytes, this one has {0}")]
    Size(usize),
    /// The tenant has [`MAX_SECRETS`] already.
    #[error("a tenant has at most {MAX_SECRETS} secrets")]
    TooMany,
    /// The file of master keys cannot be used.
    #[error("the file of master keys {path} cannot be used: {cause}", path = .path.display())]
    Keys {
        /// Which file.
        path: PathBuf,
        /// Why.
        cause: String,
    },
    /// What the store holds does not open: changed, moved, or sealed under a key that is gone.
    #[error("`{0}` in the store does not open with this machine's keys")]
    Sealed(String),
    /// The store refused.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// A secret in the store.
#[derive(Serialize, Deserialize)]
struct Record {
    version: u64,
    updated_ms: u64,
    sealed: String,
}

/// A tenant's data key in the store.
#[derive(Serialize, Deserialize)]
struct Wrapped {
    master: String,
    sealed: String,
}

/// How often secrets of a tenant changed. Store revisions are not given out: they count everybody's writes.
#[derive(Debug, Default)]
struct Changes {
    /// How often changes may have been missed, anybody's.
    missed: u64,
    tenants: HashMap<TenantName, Changed>,
}

#[derive(Debug, Default)]
struct Changed {
    /// Of the last change, by store revision.
    at: u64,
    times: u64,
}

impl Changes {
    fn of(&self, tenant: &TenantName) -> u64 {
        self.tenants.get(tenant).map_or(0, |changed| changed.times) + self.missed
    }
}

/// The bytes that a secret of so many has in the store, about: no fewer than it has.
pub fn stored_size(bytes: usize) -> usize {
    // Sealed text, and what is written around it.
    crypto::sealed_size(bytes).saturating_add(96)
}

/// The engine.
pub struct Secrets {
    store: Arc<dyn Store>,
    masters: Mutex<Masters>,
    /// Taken to read by whoever makes a data key, to write by whoever changes the master key.
    wrapping: RwLock<()>,
    changes: watch::Sender<Changes>,
    watcher: tokio::task::JoinHandle<()>,
}

impl std::fmt::Debug for Secrets {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Secrets").finish_non_exhaustive()
    }
}

impl Drop for Secrets {
    fn drop(&mut self) {
        self.watcher.abort();
    }
}

impl Secrets {
    /// Opens the secrets of `store` with the master keys in `folder`, which are made where there never was a secret. Ends
    /// a change of the master key that was interrupted.
    ///
    /// # Errors
    /// [`SecretsError::Keys`] where there are secrets and their keys are gone or damaged; nothing is changed then.
    pub async fn open(store: Arc<dyn Store>, folder: &Path) -> Result<Arc<Self>, SecretsError> {
        let keys = |cause: String| SecretsError::Keys { path: Masters::path(folder), cause };
        let wrapped = store.list(keys::SECRET_KEYS).await?;
        let masters = match Masters::read(folder).map_err(|cause| keys(cause.to_string()))? {
            Some(masters) => masters,
            None if wrapped.entries.is_empty() => {
                let first = Masters::first(folder);
                first.write().map_err(|cause| keys(cause.to_string()))?;
                first
            }
            None => return Err(keys("it is gone, and there are secrets; restore it from a backup".to_owned())),
        };
        for entry in &wrapped.entries {
            let wrapped: Wrapped = decode(entry)?;
            if masters.key(&wrapped.master).is_none() {
                return Err(keys(format!("it lacks the key `{}` that `{}` needs", wrapped.master, entry.key)));
            }
        }
        let listed = store.list(keys::SECRETS).await?;
        let mut changes = Changes::default();
        for entry in &listed.entries {
            note(&mut changes, &entry.key, entry.revision);
        }
        let (unfinished, changes) = (masters.count() > 1, watch::Sender::new(changes));
        let watcher = tokio::spawn(follow(store.clone(), changes.clone(), listed.revision));
        let masters = Mutex::new(masters);
        let secrets = Arc::new(Self { store, masters, wrapping: RwLock::new(()), changes, watcher });
        if unfinished {
            let _alone = secrets.wrapping.write().await;
            secrets.rewrap().await?;
        }
        Ok(secrets)
    }

    /// Sets a secret.
    ///
    /// # Errors
    /// [`SecretsError::Size`], [`SecretsError::TooMany`], a [`StoreError::Conflict`] where `expect` does not hold.
    pub async fn set(
        &self,
        tenant: &TenantName,
        name: &SecretName,
        value: &SecretValue,
        expect: Expect,
    ) -> Result<SecretInfo, SecretsError> {
        let size = value.expose().len();
        if size == 0 || size > MAX_SECRET {
            return Err(SecretsError::Size(size));
        }
        let key = self.data_key(tenant).await?;
        let path = keys::secret(tenant, name);
        for last in (0..TRIES).rev() {
            let found = self.store.get(&path).await?;
            let at = match (expect, &found) {
                (Expect::Any, Some(entry)) => Expect::Revision(entry.revision),
                (Expect::Any, None) => Expect::Absent,
                (expect, _) => expect,
            };
            let version = match &found {
                Some(entry) => decode::<Record>(entry)?.version.saturating_add(1),
                None if self.store.list(&keys::secrets_of(tenant)).await?.entries.len() >= MAX_SECRETS => {
                    return Err(SecretsError::TooMany);
                }
                None => 1,
            };
            let bound = Bound::Secret { tenant, name, version };
            let sealed = key.seal(bound, value.expose()).ok_or(SecretsError::Size(size))?;
            let updated_ms = u64::try_from(jiff::Timestamp::now().as_millisecond()).unwrap_or_default();
            let record = Record { version, updated_ms, sealed };
            match self.store.put(&path, encode(&path, &record)?, at, None).await {
                Ok(etag) => return Ok(SecretInfo { name: name.clone(), version, updated_ms, etag }),
                Err(StoreError::Conflict { .. }) if expect == Expect::Any && last > 0 => {}
                Err(other) => return Err(other.into()),
            }
        }
        Err(StoreError::Conflict { key: path, current: None }.into())
    }

    /// Deletes a secret; nothing is left of it but what the disk has not reused, which is sealed.
    ///
    /// # Errors
    /// A [`StoreError::Conflict`] where `expect` does not hold.
    pub async fn delete(&self, tenant: &TenantName, name: &SecretName, expect: Expect) -> Result<(), SecretsError> {
        self.store.delete(&keys::secret(tenant, name), expect).await?;
        Ok(())
    }

    /// The tenant's secrets, by name.
    ///
    /// # Errors
    /// Where the store cannot be read.
    pub async fn list(&self, tenant: &TenantName) -> Result<Vec<SecretInfo>, SecretsError> {
        self.store.list(&keys::secrets_of(tenant)).await?.entries.iter().map(|entry| Ok(info(entry)?.0)).collect()
    }

    /// One secret without its value.
    ///
    /// # Errors
    /// Where the store cannot be read.
    pub async fn get(&self, tenant: &TenantName, name: &SecretName) -> Result<Option<SecretInfo>, SecretsError> {
        let entry = self.store.get(&keys::secret(tenant, name)).await?;
        entry.map(|entry| Ok(info(&entry)?.0)).transpose()
    }

    /// One secret with its value; `None` where there is none.
    ///
    /// # Errors
    /// [`SecretsError::Sealed`] where what is kept does not open.
    pub async fn reveal(&self, tenant: &TenantName, name: &SecretName) -> Result<Option<Revealed>, SecretsError> {
        let Some(entry) = self.store.get(&keys::secret(tenant, name)).await? else { return Ok(None) };
        let (info, sealed) = info(&entry)?;
        let wrapped = self.store.get(&keys::secret_key(tenant)).await?;
        let key = self.unwrap(tenant, &wrapped.ok_or_else(|| SecretsError::Sealed(entry.key.clone()))?)?;
        let bound = Bound::Secret { tenant, name, version: info.version };
        let mut plain = key.open(bound, &sealed).ok_or(SecretsError::Sealed(entry.key))?;
        // The nonce in it is new whenever something is sealed.
        let digest = Digest::of(sealed.as_bytes());
        let mark = digest.as_bytes().iter().take(8).fold(0, |sum: u64, byte| sum << 8 | u64::from(*byte));
        Ok(Some(Revealed { info, mark, value: SecretValue::new(std::mem::take(&mut plain)) }))
    }

    /// Waits until something of the tenant's secrets is newer than `after`; answers with a number to go on from, which
    /// means nothing else.
    pub async fn changed(&self, tenant: &TenantName, after: u64) -> u64 {
        let mut changes = self.changes.subscribe();
        match changes.wait_for(|changes| changes.of(tenant) > after).await {
            Ok(changes) => changes.of(tenant),
            // The sender is ours.
            Err(_) => after,
        }
    }

    /// Makes a new master key and wraps every data key with it, while secrets are read and set. The old key is gone
    /// when this returns; one that is interrupted is ended by the next [`Secrets::open`].
    ///
    /// # Errors
    /// Where the file or the store cannot be written. The old key is kept as long as something needs it.
    pub async fn rotate_key(&self) -> Result<Rotated, SecretsError> {
        let _alone = self.wrapping.write().await;
        let mut masters = self.masters();
        masters.renew();
        self.keep(masters)?;
        self.rewrap().await
    }

    /// Wraps with the current master key what is wrapped with others, then forgets those.
    async fn rewrap(&self) -> Result<Rotated, SecretsError> {
        let mut masters = self.masters();
        let mut tenants = 0;
        for entry in self.store.list(keys::SECRET_KEYS).await?.entries {
            let damaged = || SecretsError::Sealed(entry.key.clone());
            if decode::<Wrapped>(&entry)?.master == masters.current() {
                continue;
            }
            let tenant: TenantName =
                keys::parts(&entry.key).next().and_then(|name| name.parse().ok()).ok_or_else(damaged)?;
            let key = self.unwrap(&tenant, &entry)?;
            let wrapped = wrap(&masters, &tenant, &key).ok_or_else(damaged)?;
            let expect = Expect::Revision(entry.revision);
            self.store.put(&entry.key, encode(&entry.key, &wrapped)?, expect, None).await?;
            tenants += 1;
        }
        masters.retire();
        let key = masters.current().to_owned();
        self.keep(masters)?;
        Ok(Rotated { key, tenants })
    }

    fn masters(&self) -> Masters {
        self.masters.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// On disk first: what is wrapped with a key that only memory knows is lost with it.
    fn keep(&self, masters: Masters) -> Result<(), SecretsError> {
        masters
            .write()
            .map_err(|cause| SecretsError::Keys { path: masters.file().to_owned(), cause: cause.to_string() })?;
        *self.masters.lock().unwrap_or_else(PoisonError::into_inner) = masters;
        Ok(())
    }

    fn unwrap(&self, tenant: &TenantName, entry: &Entry) -> Result<Key, SecretsError> {
        let Wrapped { master, sealed } = decode(entry)?;
        let key = self.masters.lock().unwrap_or_else(PoisonError::into_inner).key(&master).cloned();
        let opened = key.and_then(|key| key.open(Bound::DataKey { tenant, master: &master }, &sealed));
        opened.and_then(|bytes| Key::of(&bytes)).ok_or_else(|| SecretsError::Sealed(entry.key.clone()))
    }

    /// The tenant's data key; made on first use.
    async fn data_key(&self, tenant: &TenantName) -> Result<Key, SecretsError> {
        let _shared = self.wrapping.read().await;
        let path = keys::secret_key(tenant);
        if let Some(entry) = self.store.get(&path).await? {
            return self.unwrap(tenant, &entry);
        }
        let key = Key::random();
        let wrapped = wrap(&self.masters(), tenant, &key).ok_or_else(|| SecretsError::Sealed(path.clone()))?;
        match self.store.put(&path, encode(&path, &wrapped)?, Expect::Absent, None).await {
            Ok(_) => Ok(key),
            // Somebody else was first: theirs counts.
            Err(StoreError::Conflict { .. }) => match self.store.get(&path).await? {
                Some(entry) => self.unwrap(tenant, &entry),
                None => Err(SecretsError::Sealed(path)),
            },
            Err(other) => Err(other.into()),
        }
    }
}

fn wrap(masters: &Masters, tenant: &TenantName, key: &Key) -> Option<Wrapped> {
    let master = masters.current();
    let sealed = masters.key(master)?.seal(Bound::DataKey { tenant, master }, key.expose())?;
    Some(Wrapped { master: master.to_owned(), sealed })
}

fn info(entry: &Entry) -> Result<(SecretInfo, String), SecretsError> {
    let Record { version, updated_ms, sealed } = decode(entry)?;
    let name = keys::parts(&entry.key).nth(1).and_then(|name| name.parse().ok());
    let name = name.ok_or_else(|| SecretsError::Sealed(entry.key.clone()))?;
    Ok((SecretInfo { name, version, updated_ms, etag: entry.revision }, sealed))
}

fn decode<T: DeserializeOwned>(entry: &Entry) -> Result<T, SecretsError> {
    serde_json::from_slice(&entry.value).map_err(|_| SecretsError::Sealed(entry.key.clone()))
}

fn encode(path: &str, value: &impl Serialize) -> Result<Bytes, SecretsError> {
    serde_json::to_vec(value).map(Bytes::from).map_err(|_| SecretsError::Sealed(path.to_owned()))
}

fn note(changes: &mut Changes, key: &str, revision: u64) {
    if let Some(tenant) = keys::parts(key).next().and_then(|name| name.parse().ok()) {
        let changed = changes.tenants.entry(tenant).or_default();
        if revision > changed.at {
            *changed = Changed { at: revision, times: changed.times + 1 };
        }
    }
}

/// Notes every change in the store, whoever made it.
async fn follow(store: Arc<dyn Store>, changes: watch::Sender<Changes>, mut after: u64) {
    loop {
        let mut watch = store.watch(keys::SECRETS, after);
        while let Some(change) = watch.next().await {
            match change {
                Ok(change) => {
                    after = change.revision;
                    changes.send_modify(|changes| note(changes, &change.key, change.revision));
                }
                Err(cause) => {
                    tracing::warn!(%cause, "the store's secrets are not watched for a moment");
                    break;
                }
            }
        }
        tokio::time::sleep(PAUSE).await;
        // What was missed may have been anybody's.
        if let Ok(listed) = store.list(keys::SECRETS).await {
            after = listed.revision;
            changes.send_modify(|changes| changes.missed += 1);
        }
    }
}
