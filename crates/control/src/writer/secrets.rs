//! Setting and deleting secrets, in turn with deploys: an app whose secret was there when it was judged has it when it
//! is recorded. Values pass through and are kept by the secret store alone.

use api::client::Require;
use api::control::{KeyRotated, SecretView};
use api::problem::Code;
use model::plan::AppId;
use model::{SecretName, SecretValue, TenantName};
use store::Expect;
use store::secrets::SecretInfo;

use super::Writer;
use crate::http::{Answer, Refusal};

impl Writer {
    /// The tenant's secrets and what names each.
    pub(crate) async fn secrets(&self, tenant: &TenantName) -> Answer<Vec<SecretView>> {
        self.tenant(tenant).await?;
        let uses = self.uses(tenant).await?;
        let infos = self.secrets.list(tenant).await?;
        Ok(infos.into_iter().map(|info| view(info, &uses)).collect())
    }

    /// One secret and what names it.
    pub(crate) async fn secret(&self, tenant: &TenantName, name: &SecretName) -> Answer<SecretView> {
        self.tenant(tenant).await?;
        let info = self.secrets.get(tenant, name).await?.ok_or_else(|| none(tenant, name))?;
        Ok(view(info, &self.uses(tenant).await?))
    }

    /// Sets a secret; whoever uses it gets the new value from its next use on.
    pub(crate) async fn set_secret(
        &self,
        tenant: &TenantName,
        name: &SecretName,
        value: &SecretValue,
        require: Require,
    ) -> Answer<SecretView> {
        let _turn = self.turn.lock().await;
        self.tenant(tenant).await?;
        let expect = match require {
            Require::Any => Expect::Any,
            Require::Absent => Expect::Absent,
            Require::At(etag) => Expect::Revision(etag),
            Require::Exists => match self.secrets.get(tenant, name).await? {
                Some(info) => Expect::Revision(info.etag),
                None => return Err(Refusal::new(Code::Conflict, format!("there is no secret `{name}` to replace"))),
            },
        };
        let info = self.set_counted(tenant, name, value, expect).await?;
        Ok(view(info, &self.uses(tenant).await?))
    }

    /// Deletes a secret. One that something names is kept unless `force`: then its users fail when they next need it.
    pub(crate) async fn delete_secret(
        &self,
        tenant: &TenantName,
        name: &SecretName,
        force: bool,
        require: Require,
    ) -> Answer<()> {
        let _turn = self.turn.lock().await;
        self.tenant(tenant).await?;
        let info = self.secrets.get(tenant, name).await?.ok_or_else(|| none(tenant, name))?;
        let expect = match require {
            Require::At(etag) => Expect::Revision(etag),
            Require::Any | Require::Exists => Expect::Revision(info.etag),
            Require::Absent => return Err(Refusal::new(Code::Conflict, format!("there is a secret `{name}`"))),
        };
        let used_by = view(info, &self.uses(tenant).await?).used_by;
        if !force && !used_by.is_empty() {
            let mut refusal =
                Refusal::new(Code::Conflict, format!("the secret `{name}` is in use: {}", used_by.join(", ")))
                    .help("deploy without it first, or delete it all the same with `--force`");
            refusal.problem.findings = used_by;
            return Err(refusal);
        }
        self.delete_counted(tenant, name, expect).await
    }

    /// Changes the master key; secrets are read and set meanwhile.
    pub(crate) async fn rotate_secrets_key(&self) -> Answer<KeyRotated> {
        let rotated = self.secrets.rotate_key().await?;
        Ok(KeyRotated { key: rotated.key, tenants: rotated.tenants })
    }

    /// Every secret that something of the tenant names, and what does.
    async fn uses(&self, tenant: &TenantName) -> Answer<Vec<(SecretName, String)>> {
        let ids: Vec<AppId> = self.state.lock().apps_of(tenant).map(|(id, _, _)| id.clone()).collect();
        let mut uses = Vec::new();
        for id in ids {
            let app = match self.current(&id).await {
                Ok(current) => current.record.app,
                // Deleted a moment ago.
                Err(refusal) if refusal.problem.code == Code::NotFound => continue,
                Err(refusal) => return Err(refusal),
            };
            let of_app = model::secret::uses(&app);
            uses.extend(of_app.into_iter().map(|used| (used.secret, format!("app `{}`, {}", id.app, used.by))));
        }
        for (provider, spec) in &self.tenant(tenant).await?.settings.providers {
            for (key, reference) in spec.secrets.iter().filter(|(_, reference)| reference.is_own()) {
                uses.push((reference.secret.clone(), format!("the `{key}` of the operator's provider `{provider}`")));
            }
        }
        Ok(uses)
    }
}

fn view(info: SecretInfo, uses: &[(SecretName, String)]) -> SecretView {
    let SecretInfo { name, version, updated_ms, etag } = info;
    let used_by = uses.iter().filter(|(secret, _)| *secret == name).map(|(_, by)| by.clone()).collect();
    SecretView { name, version, updated_ms, etag, used_by }
}

fn none(tenant: &TenantName, name: &SecretName) -> Refusal {
    Refusal::new(Code::NotFound, format!("tenant `{tenant}` has no secret `{name}`"))
        .help("`sidereal secret list` shows those there are")
}
