//! Configs that apps share: read, set and deleted here. Setting one makes new revisions of the apps that name it.

use std::sync::Arc;

use api::Problem;
use api::control::{ConfigRequest, ConfigSet, ConfigView, event};
use axum::Extension;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Response};
use model::{ConfigName, TenantName};
use serde_json::json;

use super::Api;
use super::answers::Room;
use super::extract::{At, Condition, Json, json as answer};
use super::refusal::Answer;
use super::system::stopped;
use crate::events::Subject;
use crate::tokens::Caller;

/// With the etag that is seen outside.
fn shown(api: &Api, view: ConfigView) -> ConfigView {
    ConfigView { etag: api.etags.of(view.etag), ..view }
}

/// The configs that apps of the tenant share, and `env`, where the operator offers something of the environment.
#[utoipa::path(get, path = "/v1/tenants/{tenant}/configs", params(("tenant" = TenantName, Path)),
    responses((status = 200, body = Vec<ConfigView>), (status = "default", body = Problem)))]
pub(super) async fn list(State(api): State<Arc<Api>>, At(tenant): At<TenantName>) -> Answer<Response> {
    let room = Room::whole(&api.answers, &tenant).await?;
    let views = {
        // All apps are read: what names each of the configs.
        let _look = api.looks.take(Some(&tenant)).await.ok_or_else(stopped)?;
        api.writer.configs(&tenant).await?
    };
    room.json(&views.into_iter().map(|view| shown(&api, view)).collect::<Vec<_>>()).await
}

/// One config and the apps that name it.
#[utoipa::path(get, path = "/v1/tenants/{tenant}/configs/{config}",
    params(("tenant" = TenantName, Path), ("config" = ConfigName, Path)),
    responses((status = 200, body = ConfigView), (status = "default", body = Problem)))]
pub(super) async fn read(
    State(api): State<Arc<Api>>,
    At((tenant, name)): At<(TenantName, ConfigName)>,
) -> Answer<Response> {
    let room = Room::take(&api.answers, &tenant).await?;
    let view = {
        let _look = api.looks.take(Some(&tenant)).await.ok_or_else(stopped)?;
        api.writer.config(&tenant, &name).await?
    };
    room.json(&shown(&api, view)).await
}

/// Sets a config whole. Every app that names it gets a new revision that differs in configuration only; the answer says
/// which. They are not serving yet: follow the events.
#[utoipa::path(put, path = "/v1/tenants/{tenant}/configs/{config}",
    params(("tenant" = TenantName, Path), ("config" = ConfigName, Path),
        ("if-match" = Option<String>, Header, description = "the etag, or `*`"),
        ("if-none-match" = Option<String>, Header, description = "`*`: a new config")),
    request_body = ConfigRequest,
    responses((status = 200, body = ConfigSet), (status = "default", body = Problem)))]
pub(super) async fn write(
    State(api): State<Arc<Api>>,
    Extension(caller): Extension<Caller>,
    At((tenant, name)): At<(TenantName, ConfigName)>,
    Condition(require): Condition,
    Json(request): Json<ConfigRequest>,
) -> Answer<Response> {
    let set = api.writer.set_config(&tenant, &name, request, api.etags.require(require), &caller).await?;
    if !set.unchanged {
        let data = json!({ "config": name, "version": set.config.version });
        api.events.control(event::CONFIG_SET, Subject::Tenant(tenant), &data);
    }
    Ok(answer(&ConfigSet { config: shown(&api, set.config), ..set }))
}

/// Deletes a config that no app names.
#[utoipa::path(delete, path = "/v1/tenants/{tenant}/configs/{config}",
    params(("tenant" = TenantName, Path), ("config" = ConfigName, Path),
        ("if-match" = Option<String>, Header, description = "the etag, or `*`")),
    responses((status = 204), (status = "default", body = Problem)))]
pub(super) async fn delete(
    State(api): State<Arc<Api>>,
    Extension(caller): Extension<Caller>,
    At((tenant, name)): At<(TenantName, ConfigName)>,
    Condition(require): Condition,
) -> Answer<Response> {
    api.writer.delete_config(&tenant, &name, api.etags.require(require), &caller).await?;
    api.events.control(event::CONFIG_DELETED, Subject::Tenant(tenant), &json!({ "config": name }));
    Ok(StatusCode::NO_CONTENT.into_response())
}
