//! Tenants, and what their apps can link to and answer.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use api::Problem;
use api::agent::HostStatus;
use api::control::{ProviderView, RouteView, TenantView};
use api::metrics::TenantMetrics;
use api::problem::Code;
use axum::Extension;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Response};
use model::app::{LockedApp, ProviderKind, ProviderSpec};
use model::plan::AppId;
use model::tenant::TenantSettings;
use model::{ProviderName, TenantName};
use store::{StoreError, keys};

use super::Api;
use super::answers::Room;
use super::extract::{At, Condition, Json, json};
use super::guard::Said;
use super::refusal::Answer;
use super::system::stopped;
use crate::tokens::Caller;
use crate::writer;

/// How long a deletion waits for the data to be gone, and how often it looks.
const PURGED: Duration = Duration::from_secs(10);
const LOOK: Duration = Duration::from_millis(50);
/// How long a write of settings waits until they are acted on.
const ACT: Duration = Duration::from_secs(5);

/// The tenants that the caller may see: the operator all of them, anybody else its own.
#[utoipa::path(get, path = "/v1/tenants", responses((status = 200, body = Vec<TenantView>), (status = "default", body = Problem)))]
pub(super) async fn list(State(api): State<Arc<Api>>, Extension(caller): Extension<Caller>) -> Answer<Response> {
    let listed = api.store.list(keys::TENANTS).await?;
    let mut views = Vec::new();
    for entry in &listed.entries {
        let name = keys::parts(&entry.key).next().and_then(|n| n.parse().ok());
        if let Some(name) = name.filter(|name| caller.sees(name)) {
            views.push(TenantView { name, settings: writer::decode(entry)?, etag: api.etags.of(entry.revision) });
        }
    }
    Ok(json(&views))
}

/// One tenant.
#[utoipa::path(get, path = "/v1/tenants/{tenant}", params(("tenant" = TenantName, Path)),
    responses((status = 200, body = TenantView), (status = "default", body = Problem)))]
pub(super) async fn read(State(api): State<Arc<Api>>, At(name): At<TenantName>) -> Answer<Response> {
    let tenant = api.writer.tenant(&name).await?;
    Ok(json(&TenantView { name, settings: (*tenant.settings).clone(), etag: api.etags.of(tenant.etag) }))
}

/// Writes a tenant's settings whole; makes the tenant where there is none. Needs a condition: settings are replaced only by
/// somebody who has seen them. An owner changes whom the tenant trusts and nothing else. Answers once running apps are
/// judged by them.
#[utoipa::path(put, path = "/v1/tenants/{tenant}",
    params(("tenant" = TenantName, Path), ("if-match" = Option<String>, Header, description = "the etag, or `*`; this or `if-none-match` must be there"),
        ("if-none-match" = Option<String>, Header, description = "`*`: a new tenant")),
    request_body = TenantSettings, responses((status = 200, body = TenantView), (status = "default", body = Problem)))]
pub(super) async fn write(
    State(api): State<Arc<Api>>,
    Extension(caller): Extension<Caller>,
    At(name): At<TenantName>,
    Condition(require): Condition,
    Json(settings): Json<TenantSettings>,
) -> Answer<Response> {
    api.tokens.still(&caller).await?;
    let require = api.etags.require(require);
    let (at, changed) = api.writer.put_tenant(&name, &settings, require, caller == Caller::Operator).await?;
    // It is written whatever happens now; a store that does not take assignments must not hide that.
    let mut settled = api.settled.clone();
    if tokio::time::timeout(ACT, settled.wait_for(|seen| *seen >= at)).await.is_err() {
        tracing::warn!(tenant = %name, "settings are written and not acted on yet");
    }
    let said = Said(if changed.is_empty() { "nothing differs".to_owned() } else { changed.join(", ") });
    Ok((Extension(said), json(&TenantView { name, settings, etag: api.etags.of(at) })).into_response())
}

/// Deletes a tenant: its apps, their data, its secrets, configs and tokens. Its name is never used again. Needs a condition,
/// as writing does.
#[utoipa::path(delete, path = "/v1/tenants/{tenant}",
    params(("tenant" = TenantName, Path), ("if-match" = Option<String>, Header, description = "the etag, or `*`; must be there")),
    responses((status = 204, description = "it is gone, and its data with it"),
        (status = 202, description = "it is gone; its data goes when the last calls have ended"),
        (status = "default", body = Problem)))]
pub(super) async fn delete(
    State(api): State<Arc<Api>>,
    At(name): At<TenantName>,
    Condition(require): Condition,
) -> Answer<StatusCode> {
    api.writer.delete_tenant(&name, api.etags.require(require)).await?;
    api.mover.forget(|moved| moved.tenant == name).await;
    api.bounds.forget(&name);
    api.audit.forget(&name);
    api.tokens.forget(&name);
    let purged = async {
        while !api.store.list(&keys::purges_of(&name)).await?.entries.is_empty() {
            tokio::time::sleep(LOOK).await;
        }
        Ok::<_, StoreError>(())
    };
    match tokio::time::timeout(PURGED, purged).await {
        Ok(Ok(())) => Ok(StatusCode::NO_CONTENT),
        Ok(Err(_)) | Err(_) => Ok(StatusCode::ACCEPTED),
    }
}

/// The providers that apps of the tenant can link to, and which of its links go there.
#[utoipa::path(get, path = "/v1/tenants/{tenant}/providers", params(("tenant" = TenantName, Path)),
    responses((status = 200, body = Vec<ProviderView>), (status = "default", body = Problem)))]
pub(super) async fn providers(State(api): State<Arc<Api>>, At(name): At<TenantName>) -> Answer<Response> {
    let tenant = api.writer.tenant(&name).await?;
    let room = Room::whole(&api.answers, &name).await?;
    let mut found = Found::of(&tenant.settings);
    {
        // All its apps are read, one after the other; nothing is kept of them but what is said.
        let _look = api.looks.take(Some(&name)).await.ok_or_else(stopped)?;
        let ids: Vec<AppId> = api.state.lock().apps_of(&name).map(|(id, _, _)| id.clone()).collect();
        for id in ids {
            match api.writer.current(&id).await {
                Ok(current) => found.take(&current.record.app),
                // Deleted a moment ago.
                Err(refusal) if refusal.problem.code == Code::NotFound => {}
                Err(refusal) => return Err(refusal),
            }
        }
    }
    room.json(&found.views()).await
}

/// The providers found so far, by where each is from, then by its name: an app's own belongs to that app alone. Beside each what gets its
/// secrets there, which is said after its links.
struct Found(BTreeMap<(String, ProviderName), (ProviderView, Vec<String>)>);

impl Found {
    /// What there is before any app.
    fn of(tenant: &TenantSettings) -> Self {
        let mut found = Self(BTreeMap::new());
        for (name, kind) in ProviderKind::BUILT_IN {
            if let Ok(name) = name.parse() {
                found.add("built-in", &name, &ProviderSpec::new(kind));
            }
        }
        for (name, spec) in &tenant.providers {
            found.add("operator", name, spec);
        }
        found
    }

    fn add(&mut self, from: &str, name: &ProviderName, spec: &ProviderSpec) {
        let new = || ProviderView {
            name: name.clone(),
            kind: spec.kind,
            contract: spec.contracts().join(", "),
            from: from.to_owned(),
            links: Vec::new(),
        };
        self.0.entry((from.to_owned(), name.clone())).or_insert_with(|| (new(), Vec::new()));
    }

    /// One app's own providers, and where its links go.
    fn take(&mut self, app: &LockedApp) {
        let from_of = |name: &ProviderName| {
            app.providers.get(name).map_or_else(|| "built-in".to_owned(), |spec| from(app, name, spec))
        };
        for (name, spec) in &app.providers {
            self.add(&from(app, name, spec), name, spec);
        }
        for link in &app.links {
            if let Some((view, _)) = self.0.get_mut(&(from_of(&link.provider), link.provider.clone())) {
                view.links.push(format!("{}/{} {} {}", app.name, link.component, link.contract, link.label));
            }
        }
        for (by, spec) in &app.providers {
            for (key, source) in spec.secrets.iter().filter_map(|(key, secret)| Some((key, secret.from.as_ref()?))) {
                if let Some((_, secrets)) = self.0.get_mut(&(from_of(source), source.clone())) {
                    secrets.push(format!("{} the `{key}` of provider `{by}`", app.name));
                }
            }
        }
    }

    fn views(self) -> Vec<ProviderView> {
        let whole = |(mut view, secrets): (ProviderView, Vec<String>)| {
            view.links.extend(secrets);
            view
        };
        self.0.into_values().map(whole).collect()
    }
}

fn from(app: &LockedApp, name: &ProviderName, spec: &ProviderSpec) -> String {
    match (model::rules::provider::built_in(name.as_str()), spec.operator) {
        (Some(_), _) => "built-in".to_owned(),
        (None, true) => "operator".to_owned(),
        (None, false) => format!("app {}", app.name),
    }
}

/// The routes of the tenant's apps.
#[utoipa::path(get, path = "/v1/tenants/{tenant}/routes", params(("tenant" = TenantName, Path)),
    responses((status = 200, body = Vec<RouteView>), (status = "default", body = Problem)))]
pub(super) async fn routes(State(api): State<Arc<Api>>, At(name): At<TenantName>) -> Answer<Response> {
    api.writer.tenant(&name).await?;
    let state = api.state.lock();
    let mut views: Vec<RouteView> = Vec::new();
    for (id, revision, routes) in state.apps_of(&name) {
        views.extend(routes.iter().map(|route| RouteView {
            app: id.app.clone(),
            revision,
            urls: state.urls(route),
            route: route.clone(),
        }));
    }
    Ok(json(&views))
}

/// What is counted of the tenant's components and links, over all shards and revisions. Asking is what costs: nothing is
/// read from the hosts while nobody asks.
#[utoipa::path(get, path = "/v1/tenants/{tenant}/metrics", params(("tenant" = TenantName, Path)),
    responses((status = 200, body = TenantMetrics), (status = "default", body = Problem)))]
pub(super) async fn metrics(State(api): State<Arc<Api>>, At(name): At<TenantName>) -> Answer<Response> {
    api.writer.tenant(&name).await?;
    Ok(json(&*api.nodes.metrics(&name).await))
}

/// What the tenant's hosts report now, in shard order; one that does not answer in time is left out.
#[utoipa::path(get, path = "/v1/tenants/{tenant}/hosts", params(("tenant" = TenantName, Path)),
    responses((status = 200, body = Vec<HostStatus>), (status = "default", body = Problem)))]
pub(super) async fn hosts(State(api): State<Arc<Api>>, At(name): At<TenantName>) -> Answer<Response> {
    api.writer.tenant(&name).await?;
    Ok(json(&api.nodes.status(&name).await))
}
