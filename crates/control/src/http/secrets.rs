//! Secrets: set, listed and deleted here, and never read. No answer and no event holds a value.

use std::sync::Arc;

use api::Problem;
use api::control::{KeyRotated, SecretView, event};
use axum::Extension;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Response};
use model::{SecretName, SecretValue, TenantName};
use serde::Deserialize;
use serde_json::json;

use super::Api;
use super::answers::Room;
use super::extract::{Asked, At, Condition, Whole, json as answer};
use super::refusal::Answer;
use super::system::stopped;
use crate::events::Subject;
use crate::tokens::Caller;

/// With the etag that is seen outside.
fn shown(api: &Api, view: SecretView) -> SecretView {
    SecretView { etag: api.etags.of(view.etag), ..view }
}

/// The tenant's secrets without their values, and what names each.
#[utoipa::path(get, path = "/v1/tenants/{tenant}/secrets", params(("tenant" = TenantName, Path)),
    responses((status = 200, body = Vec<SecretView>), (status = "default", body = Problem)))]
pub(super) async fn list(State(api): State<Arc<Api>>, At(tenant): At<TenantName>) -> Answer<Response> {
    let room = Room::whole(&api.answers, &tenant).await?;
    let views = {
        // All apps that name one are read.
        let _look = api.looks.take(Some(&tenant)).await.ok_or_else(stopped)?;
        api.writer.secrets(&tenant).await?
    };
    room.json(&views.into_iter().map(|view| shown(&api, view)).collect::<Vec<_>>()).await
}

/// One secret without its value.
#[utoipa::path(get, path = "/v1/tenants/{tenant}/secrets/{secret}",
    params(("tenant" = TenantName, Path), ("secret" = SecretName, Path)),
    responses((status = 200, body = SecretView), (status = "default", body = Problem)))]
pub(super) async fn read(
    State(api): State<Arc<Api>>,
    At((tenant, name)): At<(TenantName, SecretName)>,
) -> Answer<Response> {
    let _look = api.looks.take(Some(&tenant)).await.ok_or_else(stopped)?;
    Ok(answer(&shown(&api, api.writer.secret(&tenant, &name).await?)))
}

/// Sets a secret to the bytes of the body. Running apps use the new value from their next use on; no revision is made.
#[utoipa::path(put, path = "/v1/tenants/{tenant}/secrets/{secret}",
    params(("tenant" = TenantName, Path), ("secret" = SecretName, Path),
        ("if-match" = Option<String>, Header, description = "the etag, or `*`"),
        ("if-none-match" = Option<String>, Header, description = "`*`: a new secret")),
    request_body(content = Vec<u8>, content_type = "application/octet-stream"),
    responses((status = 200, body = SecretView), (status = "default", body = Problem)))]
pub(super) async fn write(
    State(api): State<Arc<Api>>,
    Extension(caller): Extension<Caller>,
    At((tenant, name)): At<(TenantName, SecretName)>,
    Condition(require): Condition,
    Whole(body): Whole,
) -> Answer<Response> {
    let value = SecretValue::new(body.to_vec());
    // The body's own memory is wiped too, where nobody else holds it.
    if let Ok(mut body) = body.try_into_mut() {
        body.fill(0);
        std::hint::black_box(&body);
    }
    let info = api.writer.set_secret(&tenant, &name, &value, api.etags.require(require), &caller).await?;
    let data = json!({ "secret": info.name, "version": info.version });
    api.events.control(event::SECRET_SET, Subject::Tenant(tenant.clone()), &data);
    let _look = api.looks.take(Some(&tenant)).await.ok_or_else(stopped)?;
    Ok(answer(&shown(&api, api.writer.shown(&tenant, info).await?)))
}

/// How a secret is deleted.
#[derive(Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
pub(super) struct Delete {
    /// Delete it although something names it.
    #[serde(default)]
    force: bool,
}

/// Deletes a secret. One that a deployed app or a provider of the operator names is kept unless `force`.
#[utoipa::path(delete, path = "/v1/tenants/{tenant}/secrets/{secret}",
    params(("tenant" = TenantName, Path), ("secret" = SecretName, Path), Delete,
        ("if-match" = Option<String>, Header, description = "the etag, or `*`")),
    responses((status = 204), (status = "default", body = Problem)))]
pub(super) async fn delete(
    State(api): State<Arc<Api>>,
    Extension(caller): Extension<Caller>,
    At((tenant, name)): At<(TenantName, SecretName)>,
    Asked(Delete { force }): Asked<Delete>,
    Condition(require): Condition,
) -> Answer<Response> {
    api.writer.delete_secret(&tenant, &name, force, api.etags.require(require), &caller).await?;
    api.events.control(event::SECRET_DELETED, Subject::Tenant(tenant), &json!({ "secret": name }));
    Ok(StatusCode::NO_CONTENT.into_response())
}

/// Makes a new master key and wraps every tenant's data key with it; the old one is forgotten. Nothing stops meanwhile.
#[utoipa::path(post, path = "/v1/secrets/rotate-key",
    responses((status = 200, body = KeyRotated), (status = "default", body = Problem)))]
pub(super) async fn rotate_key(State(api): State<Arc<Api>>) -> Answer<Response> {
    let rotated = api.writer.rotate_secrets_key().await?;
    api.events.control(event::SECRETS_KEY_ROTATED, Subject::None, &rotated);
    Ok(answer(&rotated))
}
