//! Providers that the operator offers to a tenant: apps name them without declaring them, so a change of one is a change of
//! every app that links there.

use std::collections::BTreeMap;

use api::client::Require;
use api::control::Origin;
use api::problem::Code;
use axum::http::StatusCode;
use model::app::{LockedApp, ProviderKind, ProviderSpec};
use model::plan::AppId;
use model::rules::provider::built_in;
use model::tenant::TenantSettings;
use model::{AppName, ProviderName, TenantName};
use store::keys::{self, RevisionRecord};

use super::{Cause, Current, SEES, SHOWN, Writer, and_more, decode};
use crate::http::{Answer, Refusal};
use crate::named::Thing;
use crate::trust::Seen;

impl Writer {
    /// What a crash kept [`Writer::put_tenant`] from doing.
    pub(crate) async fn follow_all(&self) -> Answer<()> {
        for entry in self.store.list(keys::TENANTS).await?.entries {
            let Some(name) = keys::parts(&entry.key).next().and_then(|name| name.parse().ok()) else { continue };
            self.follow(&name).await?;
        }
        Ok(())
    }

    /// Apps that link to a provider of the operator which is another now get a revision with it as it is now: the old
    /// address is granted to nobody any more. An app that could not be deployed as it is keeps what it has; the reason is
    /// in the log, and `deploy` tells it too. The turn is taken anew for each app: a tenant of thousands does not keep
    /// the others waiting.
    pub(super) async fn follow(&self, tenant: &TenantName) -> Answer<()> {
        let ids: Vec<AppId> = self.state.lock().apps_of(tenant).map(|(id, _)| id.clone()).collect();
        for id in ids {
            let mut tries = 0;
            loop {
                tries += 1;
                let seen = match self.outdated(&id).await {
                    Ok(Some((_, app))) => self.see(&id, &app).await,
                    // Nothing to change, and so nothing to wait for: whatever is deployed from now on has what is offered now.
                    Ok(None) => break,
                    Err(_) => Seen::default(),
                };
                let _turn = self.turn(None, tenant).await?;
                match self.follow_one(&id, &seen, tries >= SEES).await {
                    // Another revision came in between.
                    Err(refusal) if refusal.problem.code == Code::Busy => continue,
                    // Deleted meanwhile, or its tenant.
                    Err(refusal) if refusal.problem.code == Code::NotFound => {}
                    done => done?,
                }
                break;
            }
        }
        Ok(())
    }

    /// One app, by the settings as they are now. The caller holds the turn. But for the last time, [`Code::Busy`] says that
    /// there is more to see.
    async fn follow_one(&self, id: &AppId, seen: &Seen, last: bool) -> Answer<()> {
        let Some((record, app)) = self.outdated(id).await? else { return Ok(()) };
        let cause =
            Cause { origin: Origin::Provider, message: record.message, require: Require::Any, key: None, free: false };
        let head = self.head(id).await?;
        match self.append(id, head, app, cause, seen).await {
            Ok(accepted) => {
                let revision = accepted.revision;
                tracing::info!(tenant = %id.tenant, app = %id.app, %revision, "takes the operator's provider as it is now");
            }
            Err(refusal) if refusal.problem.code == Code::Busy && !last => return Err(refusal),
            Err(cause) => {
                tracing::warn!(tenant = %id.tenant, app = %id.app, cause = %cause.problem, "keeps an operator's provider as it was: the app cannot be deployed as it is");
            }
        }
        Ok(())
    }

    /// An app that links to a provider of the operator which is another now: as it is, and as it would be.
    async fn outdated(&self, id: &AppId) -> Answer<Option<(RevisionRecord, LockedApp)>> {
        let settings = self.tenant(&id.tenant).await?.settings;
        if settings.providers.is_empty() {
            return Ok(None);
        }
        let Current { record, .. } = self.current(id).await?;
        let app = refreshed(record.app.clone(), &settings);
        Ok((app != record.app).then_some((record, app)))
    }

    /// An operator's provider keeps its type while links go there: their data would be in another place of another
    /// kind without anybody having said so. Its address may change.
    pub(super) async fn kinds_kept(&self, name: &TenantName, settings: &TenantSettings) -> Answer<()> {
        let Some(entry) = self.store.get(&keys::tenant(name)).await? else { return Ok(()) };
        let old: TenantSettings = decode(&entry)?;
        // One that is new here may have been taken away a moment ago, under links that are still there.
        let turned: BTreeMap<_, _> = settings
            .providers
            .iter()
            .filter(|(provider, spec)| old.providers.get(*provider).is_none_or(|old| old.kind != spec.kind))
            .collect();
        if turned.is_empty() {
            return Ok(());
        }
        let mut links = Vec::new();
        for (provider, new) in turned {
            for kind in ProviderKind::ALL.into_iter().filter(|kind| *kind != new.kind) {
                let (apps, all) = {
                    let state = self.state.lock();
                    let users = state.users(name, Thing::Offered(provider.clone(), kind));
                    (users.first(SHOWN), users.count())
                };
                for app in &apps {
                    links.extend(self.links_to(name, app, provider, kind).await?);
                }
                links.extend(and_more(apps.len(), all));
            }
        }
        if links.is_empty() {
            return Ok(());
        }
        let text = format!("the type of a provider cannot change while links go there: {}", links.join(", "));
        // Not `conflict`: that means "read again and retry", and this stays so however often it is tried.
        Err(Refusal::new(Code::RequestInvalid, text)
            .status(StatusCode::CONFLICT)
            .help("offer the new one under another name, move the links there, then remove the old one"))
    }

    /// The links of an app to a provider of the operator that is of this type for it.
    async fn links_to(
        &self,
        tenant: &TenantName,
        app: &AppName,
        provider: &ProviderName,
        kind: ProviderKind,
    ) -> Answer<Vec<String>> {
        let id = AppId { tenant: tenant.clone(), app: app.clone() };
        let links = self.current(&id).await?.record.app.links;
        let there = links.into_iter().filter(|link| link.provider == *provider);
        let said = there.map(|link| {
            let at = format!("{app}/{} {} {}", link.component, link.contract, link.label);
            format!("{at} goes to `{provider}` of type {}", kind.as_str())
        });
        Ok(said.collect())
    }
}

/// The app with the operator's providers as they are now. One that is of another type now stays as it was: its data are
/// elsewhere, and whoever judges the app says so.
pub(super) fn refreshed(mut app: LockedApp, tenant: &TenantSettings) -> LockedApp {
    for (name, spec) in app.providers.iter_mut().filter(|(_, spec)| spec.operator) {
        if let Some(now) = tenant.providers.get(name).filter(|now| now.kind == spec.kind) {
            *spec = ProviderSpec { operator: true, ..now.clone() };
        }
    }
    app
}

/// A provider that an app need not declare.
pub(super) fn offered(name: &ProviderName, tenant: &TenantSettings) -> Option<ProviderSpec> {
    let operators = || tenant.providers.get(name).map(|spec| ProviderSpec { operator: true, ..spec.clone() });
    built_in(name.as_str()).or_else(operators)
}
