//! Changing what is wanted: plan, deploy, rollback, link; and the history of all that.

use std::sync::Arc;

use api::Problem;
use api::control::{Accepted, DeployRequest, LinkRequest, Origin, Plan, RevisionView, RollbackRequest};
use api::problem::Code;
use axum::Extension;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use futures::stream::{self, StreamExt as _};
use model::app::Revision;
use model::diff::diff;
use model::plan::AppId;
use model::{AppName, TenantName};
use store::keys::RevisionRecord;

use super::Api;
use super::answers::{self, Room};
use super::apps::view;
use super::extract::{At, Condition, Json, Key, json};
use super::refusal::Answer;
use crate::tokens::Caller;
use crate::writer::{Cause, counted, whole};

type Names = At<(TenantName, AppName)>;

/// The longest message of a revision, bytes.
const MAX_MESSAGE: usize = 1024;

fn accepted(accepted: &Accepted) -> Response {
    let status = if accepted.unchanged { StatusCode::OK } else { StatusCode::CREATED };
    (status, json(accepted)).into_response()
}

/// What a deploy would change and why it would be refused. Changes nothing.
#[utoipa::path(post, path = "/v1/tenants/{tenant}/apps/{app}/plan", params(("tenant" = TenantName, Path), ("app" = AppName, Path)),
    request_body = DeployRequest, responses((status = 200, body = Plan), (status = "default", body = Problem)))]
pub(super) async fn plan(
    State(api): State<Arc<Api>>,
    At((tenant, app)): Names,
    Json(mut request): Json<DeployRequest>,
) -> Answer<Response> {
    let id = AppId { tenant, app };
    let tenant = api.writer.tenant(&id.tenant).await?;
    let current = match api.writer.current(&id).await {
        Ok(current) => Some(current.record),
        Err(refusal) if refusal.problem.code == Code::NotFound => None,
        Err(refusal) => return Err(refusal),
    };
    let many = counted(&request.app);
    if !many.is_empty() {
        // Nothing is compared with what has no end: only that it has none is said.
        return Ok(json(&planned(current.as_ref(), Vec::new(), &many)));
    }
    let foreign = api.writer.foreign(&id, &request.app).await?;
    if !foreign.is_empty() {
        return json_plan(current, &request, &foreign);
    }
    let missing = api.writer.fill(&id.tenant, &mut request.app).await?.unwrap_or_default();
    let judged = api.writer.judge(&id, &request.app, &tenant, None).await;
    let last = current.as_ref().map_or(Revision(0), |record| record.revision);
    let unkept = match current.as_ref().is_some_and(|record| record.app == request.app) {
        true => None,
        false => {
            let made = (&request.app, judged.as_ref().ok());
            api.writer.unkept_plan(&id, last, made, &tenant.settings).await?
        }
    };
    let mut problems = judged.err().unwrap_or_default();
    problems.extend(missing);
    problems.extend(unkept);
    json_plan(current, &request, &problems)
}

fn json_plan(current: Option<RevisionRecord>, request: &DeployRequest, problems: &[Problem]) -> Answer<Response> {
    let changes = diff(current.as_ref().map(|record| &record.app), &request.app);
    Ok(json(&planned(current.as_ref(), changes, problems)))
}

fn planned(current: Option<&RevisionRecord>, changes: Vec<String>, problems: &[Problem]) -> Plan {
    Plan { current: current.map(|record| record.revision), changes, problems: problems.iter().map(whole).collect() }
}

/// Records a revision and makes it the wanted one. It is not serving yet: follow the events.
#[utoipa::path(post, path = "/v1/tenants/{tenant}/apps/{app}/revisions",
    params(("tenant" = TenantName, Path), ("app" = AppName, Path),
        ("if-match" = Option<String>, Header, description = "the current revision, or `*`"),
        ("if-none-match" = Option<String>, Header, description = "`*`"),
        ("idempotency-key" = Option<String>, Header, description = "makes the request safe to repeat")),
    request_body = DeployRequest,
    responses((status = 201, body = Accepted), (status = 200, description = "nothing differed", body = Accepted), (status = "default", body = Problem)))]
pub(super) async fn deploy(
    State(api): State<Arc<Api>>,
    Extension(caller): Extension<Caller>,
    At((tenant, app)): Names,
    Condition(require): Condition,
    Key(key): Key,
    Json(request): Json<DeployRequest>,
) -> Answer<Response> {
    let message = request.message;
    if message.as_ref().is_some_and(|m| m.len() > MAX_MESSAGE || m.chars().any(char::is_control)) {
        let text = format!("`message` has at most {MAX_MESSAGE} bytes and no control characters");
        return Err(super::Refusal::new(Code::RequestInvalid, text));
    }
    let cause = Cause { origin: Origin::Deploy, message, require, key, free: false };
    api.writer.deploy(&AppId { tenant, app }, request.app, cause, &caller).await.map(|a| accepted(&a))
}

/// The app's history, newest first; the last 50 revisions are kept.
#[utoipa::path(get, path = "/v1/tenants/{tenant}/apps/{app}/revisions", params(("tenant" = TenantName, Path), ("app" = AppName, Path)),
    responses((status = 200, body = Vec<RevisionView>), (status = "default", body = Problem)))]
pub(super) async fn list(State(api): State<Arc<Api>>, At((tenant, app)): Names) -> Answer<Response> {
    let id = AppId { tenant: tenant.clone(), app };
    let newest = api.writer.newest(&id).await?;
    let of = api.clone();
    let history = stream::try_unfold(Some(newest), move |next| {
        let (api, id) = (of.clone(), id.clone());
        async move {
            let Some(next) = next else { return Answer::Ok(None) };
            match api.writer.recorded(&id, next).await? {
                Some(record) => {
                    let previous = record.previous;
                    Ok(Some((view(record)?, previous)))
                }
                // Too old to be kept.
                None => Ok(None),
            }
        }
    });
    answers::list(api, tenant, history.boxed()).await
}

/// One revision.
#[utoipa::path(get, path = "/v1/tenants/{tenant}/apps/{app}/revisions/{revision}",
    params(("tenant" = TenantName, Path), ("app" = AppName, Path), ("revision" = Revision, Path)),
    responses((status = 200, body = RevisionView), (status = "default", body = Problem)))]
pub(super) async fn read(
    State(api): State<Arc<Api>>,
    At((tenant, app, revision)): At<(TenantName, AppName, Revision)>,
) -> Answer<Response> {
    let room = Room::take(&api.answers, &tenant).await?;
    let record = api.writer.past(&AppId { tenant, app }, revision).await?;
    room.json(&view(record)?).await
}

/// A new revision with the content of an earlier one.
#[utoipa::path(post, path = "/v1/tenants/{tenant}/apps/{app}/rollback",
    params(("tenant" = TenantName, Path), ("app" = AppName, Path),
        ("if-match" = Option<String>, Header, description = "the current revision, or `*`")),
    request_body = RollbackRequest,
    responses((status = 201, body = Accepted), (status = 200, description = "nothing differed", body = Accepted), (status = "default", body = Problem)))]
pub(super) async fn rollback(
    State(api): State<Arc<Api>>,
    Extension(caller): Extension<Caller>,
    At((tenant, app)): Names,
    Condition(require): Condition,
    Json(request): Json<RollbackRequest>,
) -> Answer<Response> {
    api.writer.rollback(&AppId { tenant, app }, request.to, require, Some(&caller)).await.map(|a| accepted(&a))
}

/// A new revision that differs only in one link's provider.
#[utoipa::path(post, path = "/v1/tenants/{tenant}/apps/{app}/links",
    params(("tenant" = TenantName, Path), ("app" = AppName, Path),
        ("if-match" = Option<String>, Header, description = "the current revision, or `*`")),
    request_body = LinkRequest,
    responses((status = 201, body = Accepted), (status = 200, description = "nothing differed", body = Accepted), (status = "default", body = Problem)))]
pub(super) async fn link(
    State(api): State<Arc<Api>>,
    Extension(caller): Extension<Caller>,
    At((tenant, app)): Names,
    Condition(require): Condition,
    Json(request): Json<LinkRequest>,
) -> Answer<Response> {
    api.writer.link(&AppId { tenant, app }, &request, require, &caller).await.map(|a| accepted(&a))
}
