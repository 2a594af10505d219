//! Apps as they are: reading, deleting, and calling them without the ingress.

use std::sync::Arc;
use std::time::Duration;

use api::Problem;
use api::control::{AppView, CallRequest, CallResponse, MAX_CALL_BODY, RevisionView};
use api::problem::Code;
use axum::Extension;
use axum::body::Bytes;
use axum::extract::{Request, State};
use axum::http::{self, HeaderName, HeaderValue, StatusCode};
use axum::response::{IntoResponse as _, Response};
use data_encoding::BASE64;
use futures::stream::{self, StreamExt as _};
use model::plan::AppId;
use model::{AppName, TenantName};
use serde::Deserialize;
use store::keys::{self, RevisionRecord};
use tokio::time::timeout;

use super::answers::{self, Room};
use super::body::IDLE;
use super::extract::{Asked, At, Condition, only_json, strict};
use super::refusal::{Answer, Refusal};
use super::shares::{Held, Shares};
use super::system::receive;
use super::{Api, MAX_CALL};
use crate::clock;
use crate::tokens::Caller;
use crate::writer::no_app;

/// How long a deletion waits for the data to be gone.
const PURGED: Duration = Duration::from_secs(10);

/// A record as the API shows it.
pub(super) fn view(record: RevisionRecord) -> Answer<RevisionView> {
    let bad = |cause| Refusal::new(Code::Internal, format!("a revision's origin cannot be read: {cause}"));
    Ok(RevisionView {
        revision: record.revision,
        created_ms: record.created_ms,
        origin: serde_json::from_value(record.origin).map_err(bad)?,
        message: record.message,
        app: record.app,
    })
}

async fn app_view(api: Arc<Api>, id: AppId) -> Answer<Option<AppView>> {
    let record = match api.writer.current(&id).await {
        Ok(current) => current.record,
        Err(refusal) if refusal.problem.code == Code::NotFound => return Ok(None),
        Err(refusal) => return Err(refusal),
    };
    let desired = view(record)?;
    let (tenant, name) = (id.tenant.clone(), id.app.clone());
    let mut view =
        AppView { tenant, name, desired, nodes: std::collections::BTreeMap::new(), urls: Vec::new(), reason: None };
    api.state.lock().complete(&mut view, &id, clock::seconds());
    Ok(Some(view))
}

/// A tenant's apps.
#[utoipa::path(get, path = "/v1/tenants/{tenant}/apps", params(("tenant" = TenantName, Path)),
    responses((status = 200, body = Vec<AppView>), (status = "default", body = Problem)))]
pub(super) async fn list(State(api): State<Arc<Api>>, At(tenant): At<TenantName>) -> Answer<Response> {
    api.writer.tenant(&tenant).await?;
    let ids: Vec<AppId> = api.state.lock().apps_of(&tenant).map(|(id, _)| id.clone()).collect();
    let of = api.clone();
    let views = stream::iter(ids).then(move |id| app_view(of.clone(), id));
    // One that was deleted a moment ago is left out.
    let views = views.filter_map(|view| async move { view.transpose() });
    answers::list(api, tenant, views.boxed()).await
}

/// One app.
#[utoipa::path(get, path = "/v1/tenants/{tenant}/apps/{app}", params(("tenant" = TenantName, Path), ("app" = AppName, Path)),
    responses((status = 200, body = AppView), (status = "default", body = Problem)))]
pub(super) async fn read(
    State(api): State<Arc<Api>>,
    At((tenant, app)): At<(TenantName, AppName)>,
) -> Answer<Response> {
    let id = AppId { tenant, app };
    let room = Room::take(&api.answers, &id.tenant).await?;
    let view = app_view(api, id.clone()).await?.ok_or_else(|| no_app(&id))?;
    room.json(&view).await
}

/// How an app is deleted.
#[derive(Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(super) struct Delete {
    /// Its data on the nodes goes too: embedded keys, objects in folders, kept messages. What it kept on servers
    /// elsewhere stays there. Does so also for an app that was deleted before.
    #[serde(default, rename = "purge-data")]
    purge_data: bool,
}

/// Deletes an app: routes, assignments and history. Its data stays unless `purge-data`; revisions go on counting.
#[utoipa::path(delete, path = "/v1/tenants/{tenant}/apps/{app}",
    params(("tenant" = TenantName, Path), ("app" = AppName, Path), Delete,
        ("if-match" = Option<String>, Header, description = "the current revision, or `*`")),
    responses((status = 204, description = "it is gone"),
        (status = 202, description = "it is gone; its data goes when the last calls have ended"),
        (status = "default", body = Problem)))]
pub(super) async fn delete(
    State(api): State<Arc<Api>>,
    Extension(caller): Extension<Caller>,
    At((tenant, app)): At<(TenantName, AppName)>,
    Asked(Delete { purge_data }): Asked<Delete>,
    Condition(require): Condition,
) -> Answer<StatusCode> {
    let id = AppId { tenant, app };
    let at = api.writer.delete(&id, require, purge_data, &caller).await?;
    api.mover.forget(|moved| *moved == id).await;
    if purge_data && tokio::time::timeout(PURGED, purged(&api, &id, at)).await.is_err() {
        return Ok(StatusCode::ACCEPTED);
    }
    Ok(StatusCode::NO_CONTENT)
}

/// Waits until the data of a deleted app is gone.
async fn purged(api: &Api, id: &AppId, at: u64) {
    let key = keys::purge(&id.tenant, &id.app);
    let mut changes = api.store.watch(&key, at);
    while let Some(change) = changes.next().await {
        match change {
            Ok(change) if change.key == key && change.value.is_none() => return,
            Ok(_) => {}
            Err(cause) => {
                tracing::debug!(%cause, "whether data is removed cannot be followed");
                return std::future::pending().await;
            }
        }
    }
}

/// Sends a request to a component of the serving revision, without the ingress.
#[utoipa::path(post, path = "/v1/tenants/{tenant}/apps/{app}/call", params(("tenant" = TenantName, Path), ("app" = AppName, Path)),
    request_body = CallRequest, responses((status = 200, body = CallResponse), (status = "default", body = Problem)))]
pub(super) async fn call(
    State(api): State<Arc<Api>>,
    At((tenant, app)): At<(TenantName, AppName)>,
    request: Request,
) -> Answer<Response> {
    only_json(request.headers())?;
    let mut sent = api.calls.hold(&tenant);
    let text = receive(&mut sent, request.into_body(), MAX_CALL, "a call").await?;
    let id = AppId { tenant, app };
    if api.state.lock().revision(&id).is_none() {
        return Err(no_app(&id));
    }
    let call: CallRequest = strict(&text)?;
    drop(text);
    let (request, component) = (to_request(&call)?, call.component.clone());
    drop(call);
    let answer = api.nodes.call(&id.tenant, &id.app, component.as_ref(), request).await?;
    let (head, body) = answer.into_parts();
    if body.len() > MAX_CALL_BODY {
        return Err(Refusal::new(Code::TooLarge, format!("the component answered more than {MAX_CALL_BODY} bytes"))
            .help("call it through its route"));
    }
    let text = |value: &HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
    let headers = head.headers.iter().map(|(name, value)| (name.to_string(), text(value))).collect();
    // What was sent is not needed any more. The answer keeps its room until the caller has read it.
    drop(sent);
    let room = room_for(&api.calls, &id.tenant, body.len() / 3 * 4 + HEAD).await?;
    let answer = CallResponse { status: head.status.as_u16(), headers, body: BASE64.encode(&body) };
    drop(body);
    let text = serde_json::to_vec(&answer);
    let text = text.map_err(|cause| Refusal::new(Code::Internal, format!("the answer cannot be written: {cause}")))?;
    let text = Bytes::from_owner(Answered { text, _room: room });
    Ok(([(http::header::CONTENT_TYPE, "application/json")], text).into_response())
}

/// What the head of an answer takes, about.
const HEAD: usize = 16 << 10;

/// An answer, and the room it takes in memory for as long as it is there.
struct Answered {
    text: Vec<u8>,
    _room: Held,
}

impl AsRef<[u8]> for Answered {
    fn as_ref(&self) -> &[u8] {
        &self.text
    }
}

async fn room_for(room: &Arc<Shares>, tenant: &TenantName, size: usize) -> Answer<Held> {
    let busy = |_| Refusal::new(Code::Busy, "too many answers are being read at once").help("try again in a moment");
    let mut held = room.hold(tenant);
    timeout(IDLE, held.more(size)).await.map_err(busy)?;
    Ok(held)
}

fn to_request(call: &CallRequest) -> Answer<http::Request<Bytes>> {
    let invalid = |what: &str| Refusal::new(Code::RequestInvalid, format!("`{what}` is not one"));
    let body = BASE64.decode(call.body.as_bytes());
    let body = body.map_err(|_| Refusal::new(Code::RequestInvalid, "`body` is not base64"))?;
    if body.len() > MAX_CALL_BODY {
        return Err(Refusal::new(Code::TooLarge, format!("the body of a call has at most {MAX_CALL_BODY} bytes")));
    }
    if !call.path.starts_with('/') {
        return Err(Refusal::new(Code::RequestInvalid, "`path` starts with `/`"));
    }
    let mut request = http::Request::new(Bytes::from(body));
    *request.method_mut() = call.method.parse().map_err(|_| invalid("method"))?;
    *request.uri_mut() = call.path.parse().map_err(|_| invalid("path"))?;
    for (name, value) in &call.headers {
        let name: HeaderName = name.parse().map_err(|_| invalid("header name"))?;
        let value = HeaderValue::from_str(value).map_err(|_| invalid("header value"))?;
        request.headers_mut().append(name, value);
    }
    Ok(request)
}
