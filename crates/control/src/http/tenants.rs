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
use futures::stream::{self, StreamExt as _};
use model::app::{LockedApp, ProviderKind, ProviderSpec, Route};
use model::plan::AppId;
use model::tenant::TenantSettings;
use model::{ProviderName, TenantName};
use store::{StoreError, keys};

use super::Api;
use super::answers::{self, Room};
use super::extract::{At, Condition, Json, json};
use super::guard::Said;
use super::refusal::Answer;
use super::system::stopped;
use crate::tokens::Caller;
use crate::writer;

/// How long a deletion waits for the data to be gone, and how often it looks.
const PURGED: Duration = Duration::from_secs(10);
const LOOK: Duration = Duration::from_millis(50);
/// How long the answer to a write of settings waits until they are acted on; then it says that they are not yet.
const ACT: Duration = Duration::from_secs(5);

/// The tenants that the caller may see: the operator all of them, anybody else its own.
#[utoipa::path(get, path = "/v1/tenants", responses((status = 200, body = Vec<TenantView>), (status = "default", body = Problem)))]
pub(super) async fn list(State(api): State<Arc<Api>>, Extension(caller): Extension<Caller>) -> Answer<Response> {
    let listed = api.store.list(keys::TENANTS).await?;
    let mut views = Vec::new();
    for entry in &listed.entries {
        let name = keys::parts(&entry.key).next().and_then(|n| n.parse().ok());
        if let Some(name) = name.filter(|name| caller.sees(name)) {
            views.push(view(&api, name, writer::decode(entry)?, entry.revision));
        }
    }
    Ok(json(&views))
}

/// A tenant's settings as they were written at a store revision.
fn view(api: &Api, name: TenantName, settings: TenantSettings, at: u64) -> TenantView {
    let pending = !api.settled.borrow().is(&name, at);
    TenantView { name, settings, etag: api.etags.of(at), pending }
}

/// One tenant. Where not everything that runs follows its settings yet, it says so (`pending`).
#[utoipa::path(get, path = "/v1/tenants/{tenant}", params(("tenant" = TenantName, Path)),
    responses((status = 200, body = TenantView), (status = "default", body = Problem)))]
pub(super) async fn read(State(api): State<Arc<Api>>, At(name): At<TenantName>) -> Answer<Response> {
    let tenant = api.writer.tenant(&name).await?;
    Ok(json(&view(&api, name, (*tenant.settings).clone(), tenant.etag)))
}

/// Writes a tenant's settings whole; makes the tenant where there is none. Needs a condition: settings are replaced only by
/// somebody who has seen them. An owner changes whom the tenant trusts and nothing else. Answers 200 once running apps are
/// judged by them and what must not run is told to stop, and 202 where that takes longer than 5 seconds: they are written, and
/// carried out soon, and until then the tenant is `pending`.
#[utoipa::path(put, path = "/v1/tenants/{tenant}",
    params(("tenant" = TenantName, Path), ("if-match" = Option<String>, Header, description = "the etag, or `*`; this or `if-none-match` must be there"),
        ("if-none-match" = Option<String>, Header, description = "`*`: a new tenant")),
    request_body = TenantSettings,
    responses((status = 200, description = "they are carried out", body = TenantView),
        (status = 202, description = "they are written, and not yet carried out: `pending` is true until they are", body = TenantView),
        (status = "default", body = Problem)))]
pub(super) async fn write(
    State(api): State<Arc<Api>>,
    Extension(caller): Extension<Caller>,
    At(name): At<TenantName>,
    Condition(require): Condition,
    Json(settings): Json<TenantSettings>,
) -> Answer<Response> {
    let require = api.etags.require(require);
    let (at, changed) = api.writer.put_tenant(&name, &settings, require, &caller).await?;
    // It is written whatever happens now; a store that does not take assignments must not hide that.
    let mut settled = api.settled.clone();
    let acted = tokio::time::timeout(ACT, settled.wait_for(|settled| settled.is(&name, at))).await;
    let (status, pending) = match acted.is_ok_and(|seen| seen.is_ok()) {
        true => (StatusCode::OK, false),
        false => (StatusCode::ACCEPTED, true),
    };
    if pending {
        tracing::warn!(tenant = %name, "settings are written and not acted on yet");
    }
    let said = Said(if changed.is_empty() { "nothing differs".to_owned() } else { changed.join(", ") });
    let view = TenantView { name, settings, etag: api.etags.of(at), pending };
    Ok((status, Extension(said), json(&view)).into_response())
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
        let ids: Vec<AppId> = api.state.lock().apps_of(&name).map(|(id, _)| id.clone()).collect();
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
    let ids: Vec<AppId> = api.state.lock().apps_of(&name).map(|(id, _)| id.clone()).collect();
    let of = api.clone();
    // An app has hundreds of them at most, and a tenant has thousands of apps: they are looked up as they are read.
    let views = stream::iter(ids).flat_map(move |id| stream::iter(routes_of(&of, &id)).map(Ok));
    answers::list(api, name, views.boxed()).await
}

/// Those of one app; none where it was deleted a moment ago.
fn routes_of(api: &Api, id: &AppId) -> Vec<RouteView> {
    let state = api.state.lock();
    let Some((revision, routes)) = state.routes_of(id) else { return Vec::new() };
    let view =
        |route: &Route| RouteView { app: id.app.clone(), revision, urls: state.urls(route), route: route.clone() };
    routes.iter().map(view).collect()
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
