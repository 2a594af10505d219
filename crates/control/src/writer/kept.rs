//! What the platform keeps of what a tenant's tokens send it: revisions, configs and secrets, counted in bytes as they are stored, so that one
//! tenant does not fill the disk that all need. Counted where it is written and removed, and from the store at the start; the disk says nothing of
//! whose it is.

use api::control::Origin;
use api::problem::{Code, Problem};
use bytes::Bytes;
use model::app::{LockedApp, Revision};
use model::plan::AppId;
use model::rules::MAX_REVISION;
use model::tenant::TenantSettings;
use model::{SecretName, SecretValue, TenantName, config, rules};
use store::keys;
use store::secrets::{SecretInfo, stored_size};
use store::{Expect, StoreError};

use super::{Writer, judge};
use crate::http::Answer;
use crate::reconcile::HISTORY;
use crate::trust::Vetted;

/// What a record has beside its app and its claims, about: numbers, times, its origin and its message.
const BESIDE: usize = 1280;

/// Whose share a key counts to; nobody's where it is not kept for a tenant's tokens.
pub(crate) fn counted(key: &str) -> Option<TenantName> {
    let counts = [keys::REVISIONS, keys::CONFIGS, keys::SECRETS].iter().any(|kind| key.starts_with(kind));
    counts.then(|| keys::parts(key).next()?.parse().ok()).flatten()
}

/// Whether a revision is the operator's doing: what he takes back is taken back, whatever the tenant has filled its quota with.
pub(super) fn is_operators(origin: &Origin) -> bool {
    match origin {
        Origin::Provider => true,
        Origin::Config { name, .. } => config::is_env(name),
        _ => false,
    }
}

impl Writer {
    async fn size_at(&self, key: &str) -> Result<u64, StoreError> {
        Ok(self.store.get(key).await?.map_or(0, |entry| entry.value.len() as u64))
    }

    /// Writes what may count.
    pub(super) async fn keep(&self, key: &str, value: Bytes, expect: Expect) -> Result<u64, StoreError> {
        let Some(tenant) = counted(key) else { return self.store.put(key, value, expect, None).await };
        let (before, after) = (self.size_at(key).await?, value.len() as u64);
        let at = self.store.put(key, value, expect, None).await?;
        self.state.lock().count(&tenant, before, after);
        Ok(at)
    }

    /// Removes what may count.
    pub(super) async fn let_go(&self, key: &str, expect: Expect) -> Result<u64, StoreError> {
        let Some(tenant) = counted(key) else { return self.store.delete(key, expect).await };
        let before = self.size_at(key).await?;
        let at = self.store.delete(key, expect).await?;
        self.state.lock().count(&tenant, before, 0);
        Ok(at)
    }

    /// Why a tenant may not have `more` bytes in the place of `less`. What makes room is never refused.
    fn over(&self, tenant: &TenantName, settings: &TenantSettings, more: u64, less: u64) -> Option<Problem> {
        let (kept, quota) = (self.state.lock().kept(tenant), settings.quotas.record_bytes);
        let would = kept.saturating_sub(less).saturating_add(more);
        (more > less && would > quota.0).then(|| {
            let text = format!(
                "revisions, configs and secrets of tenant `{tenant}` would be {would} bytes, are {kept} and may be {} (`record_bytes`)",
                quota.0
            );
            Problem::new(Code::QuotaExceeded, text).help(
                "delete apps, configs or secrets that are not needed (an app's last 50 revisions are kept), or ask your operator for more",
            )
        })
    }

    /// Whether a tenant may have so many bytes under a key.
    pub(super) async fn admit(&self, tenant: &TenantName, key: &str, bytes: usize) -> Answer<()> {
        let settings = self.tenant(tenant).await?.settings;
        let before = self.size_at(key).await?;
        self.over(tenant, &settings, bytes as u64, before).map_or(Ok(()), |problem| Err(problem.into()))
    }

    /// What keeps a revision of so many bytes from being recorded after the one that was `last`.
    pub(super) async fn unkept(
        &self,
        id: &AppId,
        last: Revision,
        bytes: usize,
        settings: &TenantSettings,
    ) -> Answer<Option<Problem>> {
        if bytes > MAX_REVISION {
            return Ok(Some(judge::problem(rules::revision_too_large(&id.app, bytes))));
        }
        // The oldest one goes with it.
        let less = match last.0.checked_sub(HISTORY - 1).filter(|oldest| *oldest > 0) {
            Some(oldest) => self.size_at(&keys::revision(&id.tenant, &id.app, Revision(oldest))).await?,
            None => 0,
        };
        Ok(self.over(&id.tenant, settings, bytes as u64, less))
    }

    /// The same of one that is only planned.
    pub(crate) async fn unkept_plan(
        &self,
        id: &AppId,
        last: Revision,
        (app, vetted): (&LockedApp, Option<&Vetted>),
        settings: &TenantSettings,
    ) -> Answer<Option<Problem>> {
        let size = rules::size(app);
        if size > MAX_REVISION {
            // That is said already.
            return Ok(None);
        }
        let claims = vetted.map(|vetted| super::encode(&vetted.claims)).transpose()?.map_or(0, |text| text.len());
        self.unkept(id, last, size.saturating_add(claims).saturating_add(BESIDE), settings).await
    }

    /// Sets a secret, where there is room for it.
    pub(super) async fn set_counted(
        &self,
        tenant: &TenantName,
        name: &SecretName,
        value: &SecretValue,
        expect: Expect,
    ) -> Answer<SecretInfo> {
        let key = keys::secret(tenant, name);
        self.admit(tenant, &key, stored_size(value.expose().len())).await?;
        let before = self.size_at(&key).await?;
        let info = self.secrets.set(tenant, name, value, expect).await?;
        let after = self.size_at(&key).await?;
        self.state.lock().count(tenant, before, after);
        Ok(info)
    }

    /// Deletes a secret.
    pub(super) async fn delete_counted(&self, tenant: &TenantName, name: &SecretName, expect: Expect) -> Answer<()> {
        let before = self.size_at(&keys::secret(tenant, name)).await?;
        self.secrets.delete(tenant, name, expect).await?;
        self.state.lock().count(tenant, before, 0);
        Ok(())
    }
}
