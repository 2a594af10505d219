//! Secrets in Vault or OpenBao: in a KV secrets engine of version 1 or 2, or from an engine that makes a credential for
//! whoever asks, such as `database`.
//!
//! Layout: `<mount>/[data/]<prefix>/<tenant>/[<app>/]<secret>`, for a dynamic engine `<mount>/<prefix>/<tenant>.[<app>.]<secret>`.
//! All of them are typed names, in which no text of a tenant can be a piece of a path or meet a pattern of a policy.
//!
//! What was read once is kept: the next call is answered from memory, and a task of its own asks Vault again, so that a
//! value that was changed there is told of. While Vault cannot be asked, or our login has run out, a value is used to the end
//! of its lease; where Vault answers that we may not have it, or that it is gone, it is wiped at once. So is one that nobody
//! holds any more, and a credential that was made for us is given back.

mod answer;
mod held;

use std::collections::BTreeMap;
use std::hash::{BuildHasher as _, RandomState};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use futures::FutureExt as _;
use futures::future::BoxFuture;
use futures::stream::{FuturesUnordered, StreamExt as _};
use http::Method;
use model::{AppName, ProviderName, SecretName, SecretRef, TenantName};
use serde::Serialize;
use tokio::sync::watch;
use zeroize::Zeroizing;

use super::{Hold, Resolver, Revealed, SecretError};
use crate::dial::Dialer;
use crate::http_json::{SettingsError, json_body};
use crate::meter::LinkMeter;
use crate::path::Segments;
use crate::vault::{self, Hidden, Vault, VaultError};
use answer::{Answer, Fields, Renewed};
use held::{Held, Lease, Slot};

/// How long a failure is repeated to whoever asks for the same, so that many calls do not become many requests.
const REPEATED: Duration = Duration::from_secs(1);

/// What is mounted in Vault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Engine {
    /// `kv` with versions.
    Kv2,
    /// `kv` without.
    Kv1,
    /// One that makes a credential for whoever asks, under a lease.
    Dynamic,
}

/// Whose a secret is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// Each app has its own.
    App,
    /// The apps of a tenant share them.
    Tenant,
}

/// Where the secrets are, and for how long one is good.
pub struct Settings<'a> {
    /// Which Vault, and as whom.
    pub vault: vault::Settings<'a>,
    /// Where the engine is mounted; `secret` where it is not given.
    pub mount: Option<&'a str>,
    /// The path below the mount; `sidereal` where it is not given, `creds` for a dynamic engine.
    pub prefix: Option<&'a str>,
    /// Which engine.
    pub engine: Engine,
    /// Whose the secrets are.
    pub scope: Scope,
    /// How long a value is used before Vault is asked again.
    pub refresh: Duration,
    /// How long a value of `kv` is used while Vault cannot be asked.
    pub lease: Duration,
}

/// The secrets of one app in one Vault.
pub struct VaultSecrets {
    vault: Arc<Vault>,
    engine: Engine,
    mount: Segments,
    /// The path of a secret without its name and without `/v1/`.
    base: String,
    refresh: Duration,
    lease: Duration,
    /// A slot is held by the map, by whoever names the secret, and by who asks for it now.
    slots: Mutex<BTreeMap<SecretName, Arc<Slot>>>,
    /// Every value that is new here has a number of its own.
    numbers: AtomicU64,
    changes: watch::Sender<u64>,
    keeping: std::sync::Once,
    jitter: RandomState,
    /// Of the links that are answered from memory while Vault is away.
    told: Mutex<Vec<Weak<LinkMeter>>>,
    own: Weak<Self>,
}

#[derive(Serialize)]
struct LeaseId<'a> {
    lease_id: &'a Hidden,
    #[serde(skip_serializing_if = "Option::is_none")]
    increment: Option<u64>,
}

impl VaultSecrets {
    /// The secrets of one app. Nothing is connected before the first is asked for.
    ///
    /// # Errors
    /// [`SettingsError`].
    pub fn new(
        tenant: &TenantName,
        app: &AppName,
        provider: &ProviderName,
        settings: &Settings<'_>,
        dialer: Arc<dyn Dialer>,
    ) -> Result<Arc<Self>, SettingsError> {
        let usual = if settings.engine == Engine::Dynamic { "creds" } else { "sidereal" };
        let mount = Segments::setting("mount", settings.mount.unwrap_or("secret"))?;
        let prefix = Segments::setting("prefix", settings.prefix.unwrap_or(usual))?;
        let data = if settings.engine == Engine::Kv2 { "data/" } else { "" };
        // A role of a dynamic engine is one name: a dot parts it, which no name of ours has.
        let part = if settings.engine == Engine::Dynamic { '.' } else { '/' };
        let base = match settings.scope {
            Scope::App => format!("{mount}/{data}{prefix}/{tenant}{part}{app}{part}"),
            Scope::Tenant => format!("{mount}/{data}{prefix}/{tenant}{part}"),
        };
        let vault = Vault::new(app, provider, &settings.vault, dialer)?;
        Ok(Arc::new_cyclic(|own| Self {
            vault,
            engine: settings.engine,
            mount,
            base,
            refresh: settings.refresh,
            lease: settings.lease,
            slots: Mutex::default(),
            numbers: AtomicU64::new(0),
            changes: watch::Sender::new(0),
            keeping: std::sync::Once::new(),
            jitter: RandomState::new(),
            told: Mutex::default(),
            own: own.clone(),
        }))
    }

    /// Tells the meter of a link when Vault cannot be asked, though calls over it are answered from memory.
    pub fn tell(&self, meter: &Arc<LinkMeter>) {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        told.retain(|known| known.strong_count() > 0);
        told.push(Arc::downgrade(meter));
    }

    fn stands(&self, found: Result<(), &SecretError>) {
        let told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        told.iter().filter_map(Weak::upgrade).for_each(|meter| meter.stands(found));
    }

    /// Logs in and looks at the mount: says early and with its reason what every call would say.
    ///
    /// # Errors
    /// What a call would answer, in the words of Vault's client.
    pub async fn check(&self) -> Result<(), VaultError> {
        self.vault.check().await?;
        let Some(mounted) = self.vault.mounted(&self.mount).await? else { return Ok(()) };
        let is = match (mounted.is_kv(), mounted.is_versioned()) {
            (true, true) => Engine::Kv2,
            (true, false) => Engine::Kv1,
            (false, _) => Engine::Dynamic,
        };
        match is == self.engine {
            true => Ok(()),
            false => Err(VaultError::OtherEngine {
                mount: self.mount.to_string(),
                is: mounted.kind.clone(),
                set: match is {
                    Engine::Kv2 => "kv-2",
                    Engine::Kv1 => "kv-1",
                    Engine::Dynamic => "dynamic",
                },
            }),
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<SecretName, Arc<Slot>>> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn slot(&self, name: &SecretName) -> Arc<Slot> {
        self.lock().entry(name.clone()).or_default().clone()
    }

    /// What a secret holds: from memory, or asked for now, by one for all who want it.
    async fn held(&self, name: &SecretName) -> Result<Held, SecretError> {
        let slot = self.slot(name);
        if let Some(known) = slot.known() {
            return known;
        }
        let _one = slot.asking.lock().await;
        if let Some(known) = slot.known() {
            return known;
        }
        self.keeping.call_once(|| {
            tokio::spawn(keep(self.own.clone()));
        });
        self.ask(name, &slot, slot.held()).await
    }

    /// Asks Vault, and keeps what it says. The caller holds `slot.asking`.
    async fn ask(&self, name: &SecretName, slot: &Slot, before: Option<Held>) -> Result<Held, SecretError> {
        if self.engine == Engine::Dynamic
            && let Err(cause) = self.vault.check().await
        {
            return Err(self.failed(slot, before, refused(name, cause)));
        }
        let asked = Instant::now();
        let random = self.jitter.hash_one((name, asked));
        // A lease that is taken for one of an earlier token is asked for once too often; the other way round it would end
        // unseen.
        let login = self.vault.login_now();
        let (fields, lease) = match self.read(name).await {
            Ok(Answer { data, lease_id, lease_duration, renewable }) => {
                let length = Duration::from_secs(lease_duration);
                // Whether a lease that has no end was given, or none at all: nothing has to be done for it.
                let lease = lease_id.filter(|id| !id.expose().is_empty() && !length.is_zero());
                (data, lease.map(|id| Lease { id, began: asked, length, full: length, renewable, login, random }))
            }
            Err(cause) => return Err(self.failed(slot, before, cause)),
        };
        self.stands(Ok(()));
        let (fields, was_there) = (Arc::new(fields), before.is_some());
        let same = before.filter(|before| before.fields == fields).map(|before| before.number);
        let number = same.unwrap_or_else(|| self.numbers.fetch_add(1, Relaxed) + 1);
        let fresh = Held::new(fields, number, lease, asked, (self.refresh, self.lease), random);
        slot.keep(fresh.clone());
        if was_there && same.is_none() {
            self.changes.send_modify(|n| *n += 1);
        }
        Ok(fresh)
    }

    /// What is left of a secret that was asked for in vain.
    fn failed(&self, slot: &Slot, before: Option<Held>, cause: SecretError) -> SecretError {
        let holds =
            |before: &Held| before.is_good() && (cause.is_away() || (ran_out(&cause) && before.lease.is_none()));
        match before {
            Some(before) if holds(&before) => {
                slot.keep(before.again_later(self.refresh));
                self.stands(Err(&cause));
            }
            before => {
                slot.fail(cause.clone(), Instant::now() + REPEATED);
                if before.is_some() {
                    tracing::warn!(%cause, "a secret is not used any more");
                    self.changes.send_modify(|n| *n += 1);
                }
            }
        }
        cause
    }

    async fn read(&self, name: &SecretName) -> Result<Answer, SecretError> {
        let path = format!("/v1/{}{name}", self.base);
        let told = self.vault.call(Method::GET, &path, Zeroizing::default()).await;
        let told = told.map_err(|cause| refused(name, cause))?;
        let absent = || SecretError::Absent { secret: name.to_string(), place: format!("{}{name}", self.base) };
        if told.status != http::StatusCode::OK {
            return Err(absent());
        }
        let read = match self.engine {
            Engine::Kv2 => self.vault.read::<answer::Versioned>(&told).map(Answer::from_versioned),
            Engine::Kv1 | Engine::Dynamic => self.vault.read::<answer::Plain>(&told).map(Answer::from_plain),
        };
        read.map_err(|cause| refused(name, cause))?.ok_or_else(absent)
    }

    /// Sees to one secret that is due.
    async fn see_to(&self, name: &SecretName, slot: &Slot) {
        let _one = slot.asking.lock().await;
        let Some(held) = slot.held() else { return };
        if held.lease.as_ref().is_some_and(|lease| lease.login != self.vault.login_now()) {
            // A token in doubt may be good, and then a credential that was made with it lives: what Vault answers tells.
            drop(self.vault.check().await);
        }
        match &held.lease {
            // With the token that it was made with, a credential ends.
            Some(lease) if lease.login != self.vault.login_now() => {}
            Some(lease) if !lease.is_due(Instant::now()) => {
                slot.keep(held.clone().again_later(self.refresh));
                return;
            }
            Some(lease) if lease.renewable => match self.renew(lease).await {
                Ok(Some(renewed)) => {
                    slot.keep(held.clone().renewed(renewed, self.refresh));
                    self.stands(Ok(()));
                    return;
                }
                Ok(None) => {}
                Err(cause) => tracing::warn!(%cause, secret = %name, "the lease of a secret is not renewed"),
            },
            _ => {}
        }
        if let Err(cause) = self.ask(name, slot, Some(held)).await {
            tracing::debug!(%cause, secret = %name, "a secret is not read anew");
        }
    }

    /// Makes a lease longer; `None` where a new credential is better than what is left of it.
    async fn renew(&self, lease: &Lease) -> Result<Option<Lease>, VaultError> {
        let began = Instant::now();
        let body = LeaseId { lease_id: &lease.id, increment: Some(lease.full.as_secs()) };
        let body = json_body(&body).map_err(|cause| VaultError::TooLarge(cause.to_string()))?;
        let told = self.vault.call(Method::PUT, "/v1/sys/leases/renew", body).await?;
        if told.status != http::StatusCode::OK {
            return Ok(None);
        }
        let renewed: Renewed = self.vault.read(&told)?;
        let length = Duration::from_secs(renewed.lease_duration);
        let lives_on = length * 2 >= lease.full;
        let random = self.jitter.hash_one(began);
        Ok(lives_on.then(|| Lease { began, length, renewable: renewed.renewable, random, ..lease.clone() }))
    }

    /// When the secret is due that is due first.
    fn due(&self) -> Option<Instant> {
        self.lock().values().filter_map(|slot| slot.due()).min()
    }

    /// Forgets what nobody holds any more.
    fn let_go(&self) {
        let left: Vec<Arc<Slot>> =
            self.lock().extract_if(.., |_, slot| Arc::strong_count(slot) == 1).map(|(_, slot)| slot).collect();
        self.give_back(&left);
    }

    /// Revokes the leases of secrets that are not used any more.
    fn give_back<'a>(&self, slots: impl IntoIterator<Item = &'a Arc<Slot>>) {
        let leases: Vec<Lease> = slots.into_iter().filter_map(|slot| slot.held()?.lease).collect();
        // Where the process ends with it, the leases end by themselves.
        if let (false, Ok(runtime)) = (leases.is_empty(), tokio::runtime::Handle::try_current()) {
            let vault = self.vault.clone();
            runtime.spawn(async move {
                for lease in leases {
                    let Ok(body) = json_body(&LeaseId { lease_id: &lease.id, increment: None }) else { continue };
                    if let Err(cause) = vault.call(Method::PUT, "/v1/sys/leases/revoke", body).await {
                        tracing::info!(%cause, "the lease of a secret is not revoked and ends by itself");
                    }
                }
            });
        }
    }
}

impl Drop for VaultSecrets {
    fn drop(&mut self) {
        let slots = std::mem::take(&mut *self.lock());
        self.give_back(slots.values());
    }
}

impl Resolver for VaultSecrets {
    fn reveal<'a>(&'a self, _: &'a AppName, secret: &'a SecretRef) -> BoxFuture<'a, Result<Revealed, SecretError>> {
        async move {
            let held = self.held(&secret.secret).await?;
            let value = held.fields.pick(secret)?;
            Ok(Revealed { value, version: held.number })
        }
        .boxed()
    }

    fn hold(&self, secret: &SecretRef) -> Hold {
        Some(self.slot(&secret.secret))
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }
}

/// Whether our login ended in its own time, and nothing was taken from us: what is in a `kv` may still be used, and a
/// credential ended with the token it was made with.
fn ran_out(cause: &SecretError) -> bool {
    matches!(cause, SecretError::Vault { cause, .. } if matches!(**cause, VaultError::RanOut(_)))
}

fn refused(name: &SecretName, cause: VaultError) -> SecretError {
    SecretError::Vault { secret: name.to_string(), cause: Box::new(cause) }
}

/// Between two looks at what is due.
const LOOK: Duration = Duration::from_millis(500);

/// Reads everything that is kept anew when it is due, and lets go what nobody holds, for as long as somebody holds the
/// provider.
async fn keep(secrets: Weak<VaultSecrets>) {
    loop {
        let Some(due) = secrets.upgrade().map(|secrets| secrets.due()) else { return };
        // Never for longer than this without a look whether anybody still holds the provider.
        let latest = Instant::now() + LOOK;
        tokio::time::sleep_until(due.map_or(latest, |due| due.min(latest)).into()).await;
        let Some(secrets) = secrets.upgrade() else { return };
        secrets.let_go();
        let now = Instant::now();
        let slots: Vec<(SecretName, Arc<Slot>)> =
            secrets.lock().iter().map(|(name, slot)| (name.clone(), slot.clone())).collect();
        let due = slots.iter().filter(|(_, slot)| slot.due().is_some_and(|due| due <= now));
        let mut asked: FuturesUnordered<_> = due.map(|(name, slot)| secrets.see_to(name, slot)).collect();
        while asked.next().await.is_some() {}
    }
}
