//! Tokens of a tenant, and whom the token of a request belongs to.

use std::sync::Arc;

use api::Problem;
use api::control::{TokenMade, TokenRequest, TokenView, WhoAmI};
use axum::Extension;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Response};
use model::TenantName;
use model::access::TokenId;

use super::Api;
use super::extract::{At, Json, json};
use super::guard::Said;
use super::refusal::Answer;
use crate::tokens::Caller;

/// Whom the token of the request belongs to.
#[utoipa::path(get, path = "/v1/whoami", responses((status = 200, body = WhoAmI), (status = "default", body = Problem)))]
pub(super) async fn whoami(Extension(caller): Extension<Caller>) -> Response {
    json(&match caller {
        Caller::Operator => WhoAmI { tenant: None, token: None, role: None },
        Caller::Member { tenant, id, role } => WhoAmI { tenant: Some(tenant), token: Some(id), role: Some(role) },
    })
}

/// The tenant's tokens without their secrets, oldest first; the last 500 that were revoked or expired stay in the list.
#[utoipa::path(get, path = "/v1/tenants/{tenant}/tokens", params(("tenant" = TenantName, Path)),
    responses((status = 200, body = Vec<TokenView>), (status = "default", body = Problem)))]
pub(super) async fn list(State(api): State<Arc<Api>>, At(tenant): At<TenantName>) -> Answer<Response> {
    api.writer.tenant(&tenant).await?;
    Ok(json(&api.tokens.list(&tenant).await?))
}

/// Makes a token. Its secret is in this answer and nowhere else.
#[utoipa::path(post, path = "/v1/tenants/{tenant}/tokens", params(("tenant" = TenantName, Path)),
    request_body = TokenRequest, responses((status = 201, body = TokenMade), (status = "default", body = Problem)))]
pub(super) async fn create(
    State(api): State<Arc<Api>>,
    Extension(caller): Extension<Caller>,
    At(tenant): At<TenantName>,
    Json(request): Json<TokenRequest>,
) -> Answer<Response> {
    // With it the caller is asked for again: a token that was revoked meanwhile must not live on in one it makes.
    let _turn = api.writer.turn(Some(&caller), &tenant).await?;
    api.writer.tenant(&tenant).await?;
    let made = api.tokens.create(&tenant, request, &caller).await?;
    let said = Said(format!("token {} of role {}", made.view.id, made.view.role));
    Ok((StatusCode::CREATED, Extension(said), json(&made)).into_response())
}

/// Ends a token, at once and for ever. Requests that were let in before are answered; what of them has not changed anything yet changes
/// nothing any more.
#[utoipa::path(delete, path = "/v1/tenants/{tenant}/tokens/{token}",
    params(("tenant" = TenantName, Path), ("token" = TokenId, Path)),
    responses((status = 200, body = TokenView), (status = "default", body = Problem)))]
pub(super) async fn revoke(
    State(api): State<Arc<Api>>,
    Extension(caller): Extension<Caller>,
    At((tenant, id)): At<(TenantName, TokenId)>,
) -> Answer<Response> {
    let _turn = api.writer.turn(Some(&caller), &tenant).await?;
    Ok(json(&api.tokens.revoke(&tenant, &id).await?))
}
