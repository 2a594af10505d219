//! Setting and deleting secrets, in turn with deploys: an app whose secret was there when it was judged has it when it
//! is recorded. Values pass through and are kept by the secret store alone.

use std::collections::BTreeSet;

use api::client::Require;
use api::control::{KeyRotated, SecretView};
use api::problem::Code;
use model::plan::AppId;
use model::tenant::TenantSettings;
use model::{AppName, SecretName, SecretValue, TenantName};
use store::Expect;
use store::secrets::SecretInfo;

use super::{SHOWN, Writer, and_more};
use crate::http::{Answer, Refusal, stopped};
use crate::named::Thing;
use crate::tokens::Caller;

impl Writer {
    /// The tenant's secrets and what names each.
    pub(crate) async fn secrets(&self, tenant: &TenantName) -> Answer<Vec<SecretView>> {
        let settings = self.tenant(tenant).await?.settings;
        let infos = self.secrets.list(tenant).await?;
        let apps: BTreeSet<AppName> = {
            let state = self.state.lock();
            infos.iter().flat_map(|info| state.users(tenant, named(&info.name)).first(usize::MAX)).collect()
        };
        let mut uses = self.uses(tenant, apps).await?;
        uses.extend(of_operator(&settings));
        Ok(infos.into_iter().map(|info| view(info, &uses)).collect())
    }

    /// One secret and what names it.
    pub(crate) async fn secret(&self, tenant: &TenantName, name: &SecretName) -> Answer<SecretView> {
        self.tenant(tenant).await?;
        let info = self.secrets.get(tenant, name).await?.ok_or_else(|| none(tenant, name))?;
        self.shown(tenant, info).await
    }

    /// Sets a secret; whoever uses it gets the new value from its next use on. What [`Writer::shown`] shows of it is read
    /// when others may change something again.
    pub(crate) async fn set_secret(
        &self,
        tenant: &TenantName,
        name: &SecretName,
        value: &SecretValue,
        require: Require,
        by: &Caller,
    ) -> Answer<SecretInfo> {
        let _turn = self.turn(Some(by), tenant).await?;
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
        self.set_counted(tenant, name, value, expect).await
    }

    /// A secret with what names it. Reads every app that does.
    pub(crate) async fn shown(&self, tenant: &TenantName, info: SecretInfo) -> Answer<SecretView> {
        let apps = self.state.lock().users(tenant, named(&info.name)).first(usize::MAX);
        let mut uses = self.uses(tenant, apps).await?;
        uses.extend(of_operator(&self.tenant(tenant).await?.settings));
        Ok(view(info, &uses))
    }

    /// Deletes a secret. One that something names is kept unless `force`: then its users fail when they next need it.
    pub(crate) async fn delete_secret(
        &self,
        tenant: &TenantName,
        name: &SecretName,
        force: bool,
        require: Require,
        by: &Caller,
    ) -> Answer<()> {
        let turn = self.turn(Some(by), tenant).await?;
        let settings = self.tenant(tenant).await?.settings;
        let info = self.secrets.get(tenant, name).await?.ok_or_else(|| none(tenant, name))?;
        let expect = match require {
            Require::At(etag) => Expect::Revision(etag),
            Require::Any | Require::Exists => Expect::Revision(info.etag),
            Require::Absent => return Err(Refusal::new(Code::Conflict, format!("there is a secret `{name}`"))),
        };
        let (apps, all) = {
            let state = self.state.lock();
            let users = state.users(tenant, named(name));
            (users.first(SHOWN), users.count())
        };
        let offered = of_operator(&settings).any(|(secret, _)| secret == *name);
        if force || all == 0 && !offered {
            return self.delete_counted(tenant, name, expect).await;
        }
        drop(turn);
        let _look = self.looks.take(Some(tenant)).await.ok_or_else(stopped)?;
        let mut used_by: Vec<String> = Vec::new();
        for app in &apps {
            let uses = self.uses(tenant, [app.clone()]).await?;
            let of_app: Vec<String> = uses.into_iter().filter(|(secret, _)| secret == name).map(|(_, by)| by).collect();
            // Changed a moment ago: it was so when it was asked.
            used_by.extend(if of_app.is_empty() { vec![format!("app `{app}`")] } else { of_app });
        }
        used_by.extend(and_more(apps.len(), all));
        used_by.extend(of_operator(&settings).filter(|(secret, _)| secret == name).map(|(_, by)| by));
        let mut refusal =
            Refusal::new(Code::Conflict, format!("the secret `{name}` is in use: {}", used_by.join(", ")))
                .help("deploy without it first, or delete it all the same with `--force`");
        refusal.problem.findings = used_by;
        Err(refusal)
    }

    /// Changes the master key; secrets are read and set meanwhile.
    pub(crate) async fn rotate_secrets_key(&self) -> Answer<KeyRotated> {
        let rotated = self.secrets.rotate_key().await?;
        Ok(KeyRotated { key: rotated.key, tenants: rotated.tenants })
    }

    /// Every secret that these apps name, and what does.
    async fn uses(
        &self,
        tenant: &TenantName,
        apps: impl IntoIterator<Item = AppName>,
    ) -> Answer<Vec<(SecretName, String)>> {
        let mut uses = Vec::new();
        for app in apps {
            let id = AppId { tenant: tenant.clone(), app };
            let app = match self.current(&id).await {
                Ok(current) => current.record.app,
                // Deleted a moment ago.
                Err(refusal) if refusal.problem.code == Code::NotFound => continue,
                Err(refusal) => return Err(refusal),
            };
            let of_app = model::secret::uses(&app);
            uses.extend(of_app.into_iter().map(|used| (used.secret, format!("app `{}`, {}", id.app, used.by))));
        }
        Ok(uses)
    }
}

/// The tenant's secrets that the operator's providers name, and what does.
fn of_operator(settings: &TenantSettings) -> impl Iterator<Item = (SecretName, String)> {
    settings.providers.iter().flat_map(|(provider, spec)| {
        let own = spec.secrets.iter().filter(|(_, reference)| reference.is_own());
        own.map(move |(key, reference)| {
            (reference.secret.clone(), format!("the `{key}` of the operator's provider `{provider}`"))
        })
    })
}

fn named(name: &SecretName) -> Thing {
    Thing::Secret(name.clone())
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
