//! Hosts of routes that a tenant gave up, which the operator lets others have before their time.

use std::sync::Arc;

use api::Problem;
use axum::extract::State;
use axum::http::StatusCode;

use super::Api;
use super::extract::At;
use super::refusal::Answer;

/// Lets other tenants have a host that one gave up less than 24 hours ago, and every host that overlaps with it.
#[utoipa::path(delete, path = "/v1/route-hosts/{host}",
    params(("host" = String, Path, description = "a host name, or `*.suffix`")),
    responses((status = 204, description = "other tenants may have it"), (status = "default", body = Problem)))]
pub(super) async fn free(State(api): State<Arc<Api>>, At(host): At<String>) -> Answer<StatusCode> {
    api.writer.free_host(&host).await?;
    Ok(StatusCode::NO_CONTENT)
}
