//! Moving an app's data to another provider: begin, look, cancel.

use std::sync::Arc;

use api::Problem;
use api::control::MoveRequest;
use api::copy::CopyView;
use api::problem::Code;
use axum::Extension;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use model::plan::AppId;
use model::{AppName, TenantName};

use super::Api;
use super::extract::{At, Json, json};
use super::refusal::{Answer, Refusal};
use crate::tokens::Caller;

type Names = At<(TenantName, AppName)>;

fn none(id: &AppId) -> Refusal {
    Refusal::new(Code::NotFound, format!("no data of app `{}` were ever moved", id.app))
}

/// Begins to move the app's data to another provider; the link follows when they are there. Goes on when the caller
/// hangs up, and after a restart. Asked for again while it is under way, it is the one under way.
#[utoipa::path(post, path = "/v1/tenants/{tenant}/apps/{app}/copy", params(("tenant" = TenantName, Path), ("app" = AppName, Path)),
    request_body = MoveRequest, responses((status = 202, body = CopyView), (status = "default", body = Problem)))]
pub(super) async fn begin(
    State(api): State<Arc<Api>>,
    Extension(caller): Extension<Caller>,
    At((tenant, app)): Names,
    Json(request): Json<MoveRequest>,
) -> Answer<Response> {
    let view = api.mover.begin(&AppId { tenant, app }, request, &caller).await?;
    Ok((StatusCode::ACCEPTED, json(&view)).into_response())
}

/// How the last move of the app's data stands.
#[utoipa::path(get, path = "/v1/tenants/{tenant}/apps/{app}/copy", params(("tenant" = TenantName, Path), ("app" = AppName, Path)),
    responses((status = 200, body = CopyView), (status = "default", body = Problem)))]
pub(super) async fn read(State(api): State<Arc<Api>>, At((tenant, app)): Names) -> Answer<Response> {
    let id = AppId { tenant, app };
    api.mover.view(&id).map(|view| json(&view)).ok_or_else(|| none(&id))
}

/// Cancels a move that has not switched yet; nothing is moved then.
#[utoipa::path(delete, path = "/v1/tenants/{tenant}/apps/{app}/copy", params(("tenant" = TenantName, Path), ("app" = AppName, Path)),
    responses((status = 200, body = CopyView), (status = "default", body = Problem)))]
pub(super) async fn cancel(
    State(api): State<Arc<Api>>,
    Extension(caller): Extension<Caller>,
    At((tenant, app)): Names,
) -> Answer<Response> {
    let id = AppId { tenant, app };
    let _turn = api.writer.turn(Some(&caller), &id.tenant).await?;
    api.mover.cancel(&id).map(|view| json(&view)).ok_or_else(|| none(&id))
}
