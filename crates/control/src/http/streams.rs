//! The answers without an end: events, logs and flows. They stop when the server does, and when the token they were asked
//! for with ends.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use api::Problem;
use api::agent::LogLevel;
use api::control::Event;
use api::flows::{FlowQuery, Verdict};
use api::node::{LogQuery, MAX_INSTANCE, Since};
use api::problem::Code;
use axum::Extension;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderMap, header};
use axum::response::{IntoResponse, Response};
use futures::stream::{BoxStream, Stream, StreamExt as _};
use model::plan::AppId;
use model::{AppName, ComponentName, TenantName};
use serde::{Deserialize, Serialize};

use super::Api;
use super::access::no_such_tenant;
use super::extract::{Asked, At};
use super::refusal::{Answer, Refusal};
use crate::events::{Filter, Reads};
use crate::tokens::Caller;
use crate::writer::no_app;

/// Log lines that one request reads from the past at most.
const MAX_LAST: usize = 10_000;
/// An idle log stream gets a blank line this often, so that a dead connection is noticed.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

#[derive(Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(super) struct EventsQuery {
    /// Only of this tenant; a token of a tenant gets only its own in any case.
    tenant: Option<TenantName>,
    /// Only of this app; needs a tenant.
    app: Option<AppName>,
    /// Also what the tenant's components and links have counted, so often: 250 to 60000 milliseconds. Needs a tenant.
    metrics: Option<u64>,
}

/// How often counters can be asked for, milliseconds.
const EVERY: std::ops::RangeInclusive<u64> = 250..=60_000;

fn endless(
    api: &Api,
    caller: &Caller,
    kind: &'static str,
    chunks: impl Stream<Item = Bytes> + Send + 'static,
) -> Answer<Response> {
    let place = api.bounds.stream(caller)?;
    let (stop, ended) = (api.stop.clone().cancelled_owned(), api.tokens.ended(caller));
    let over = async move {
        tokio::select! {
            () = stop => {}
            () = ended => {}
        }
    };
    let chunks = chunks.take_until(Box::pin(over)).map(move |chunk| {
        let _until_it_ends = &place;
        Ok::<_, Infallible>(chunk)
    });
    Ok(([(header::CONTENT_TYPE, kind)], Body::from_stream(chunks)).into_response())
}

/// Server-sent events, each a CloudEvent; the last ones are kept for those who come back: 4096 of everything for the operator, 512 of
/// its own for a tenant, numbered apart. With `metrics`, also counters,
/// which are read from the hosts only while somebody watches.
#[utoipa::path(get, path = "/v1/events",
    params(EventsQuery, ("last-event-id" = Option<String>, Header, description = "go on after this event")),
    responses((status = 200, description = "an endless stream", body = Event, content_type = "text/event-stream"), (status = "default", body = Problem)))]
pub(super) async fn events(
    State(api): State<Arc<Api>>,
    Extension(caller): Extension<Caller>,
    Asked(mut query): Asked<EventsQuery>,
    headers: HeaderMap,
) -> Answer<Response> {
    let reads = match caller.clone() {
        Caller::Operator => Reads::All(query.tenant.clone()),
        Caller::Member { tenant: own, .. } => {
            if *query.tenant.get_or_insert_with(|| own.clone()) != own {
                return Err(no_such_tenant());
            }
            Reads::Own(own)
        }
    };
    if query.app.is_some() && query.tenant.is_none() {
        return Err(Refusal::new(Code::RequestInvalid, "`app` needs a `tenant`"));
    }
    let every = query.metrics.map(|ms| match (&query.tenant, EVERY.contains(&ms)) {
        (Some(tenant), true) => Ok((tenant.clone(), Duration::from_millis(ms))),
        (None, _) => Err(Refusal::new(Code::RequestInvalid, "`metrics` needs a `tenant`")),
        (_, false) => Err(Refusal::new(Code::RequestInvalid, "`metrics` is 250 to 60000 milliseconds")),
    });
    let every = every.transpose()?;
    if let Some((tenant, _)) = &every {
        api.writer.tenant(tenant).await?;
    }
    let bad = || Refusal::new(Code::RequestInvalid, "`Last-Event-ID` is not the id of an event");
    let after = headers.get("last-event-id").map(|v| v.to_str().ok().and_then(after_event).ok_or_else(bad));
    let filter = Filter { reads: reads.clone(), app: query.app.clone() };
    let events = api.events.stream(filter, after.transpose()?);
    match every {
        None => endless(&api, &caller, "text/event-stream", events),
        Some((tenant, every)) => {
            let readings = readings(api.clone(), reads, tenant, query.app, every);
            endless(&api, &caller, "text/event-stream", futures::stream::select(events, readings))
        }
    }
}

/// The event to go on after; of a reading, the one before it.
fn after_event(id: &str) -> Option<u64> {
    id.split_once('-').map_or(id, |(event, _)| event).parse().ok()
}

/// What a tenant's hosts counted, now and then every so often, for as long as somebody reads it.
fn readings(
    api: Arc<Api>,
    reads: Reads,
    tenant: TenantName,
    app: Option<AppName>,
    every: Duration,
) -> impl Stream<Item = Bytes> + Send + 'static {
    let mut tick = tokio::time::interval(every);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    futures::stream::unfold((api, tick), move |(api, mut tick)| {
        let (reads, tenant, app) = (reads.clone(), tenant.clone(), app.clone());
        async move {
            tick.tick().await;
            let metrics = api.nodes.metrics(&tenant).await;
            Some((api.events.reading(&reads, &metrics, app.as_ref()), (api, tick)))
        }
    })
}

#[derive(Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(super) struct LogsQuery {
    /// Go on with new lines.
    #[serde(default)]
    follow: bool,
    /// At most this many past lines, up to 10000; 100 where absent.
    #[serde(default = "default_last")]
    last: usize,
    /// Only of this component.
    component: Option<ComponentName>,
    /// Only of this instance, as the lines name it.
    instance: Option<String>,
    /// Only lines of this level or above; `stdout` and `stderr` count as `info`, the platform's own lines as `warn`.
    level: Option<LogLevel>,
    /// Only past lines that are not older: a duration such as `10m`, or milliseconds since 1970.
    since: Option<String>,
}

fn default_last() -> usize {
    100
}

/// An app's log, newline-delimited JSON.
#[utoipa::path(get, path = "/v1/tenants/{tenant}/apps/{app}/logs",
    params(("tenant" = TenantName, Path), ("app" = AppName, Path), LogsQuery),
    responses((status = 200, description = "lines of JSON", body = api::agent::LogLine, content_type = "application/x-ndjson"), (status = "default", body = Problem)))]
pub(super) async fn logs(
    State(api): State<Arc<Api>>,
    Extension(caller): Extension<Caller>,
    At((tenant, app)): At<(TenantName, AppName)>,
    Asked(query): Asked<LogsQuery>,
) -> Answer<Response> {
    let id = AppId { tenant, app };
    if api.state.lock().revision(&id).is_none() {
        return Err(no_app(&id));
    }
    let since = since(query.since.as_deref())?;
    if query.instance.as_ref().is_some_and(|instance| instance.len() > MAX_INSTANCE) {
        return Err(Refusal::new(Code::RequestInvalid, "`instance` is the name of none: it is too long"));
    }
    let query = LogQuery {
        component: query.component,
        instance: query.instance,
        level: query.level,
        since,
        last: query.last.min(MAX_LAST),
        follow: query.follow,
    };
    ndjson(&api, &caller, api.nodes.logs(&id.tenant, &id.app, query))
}

#[derive(Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(super) struct FlowsQuery {
    /// Go on with new records.
    #[serde(default)]
    follow: bool,
    /// At most this many past records; 100 where absent. A node keeps the last 1000 of a tenant.
    #[serde(default = "default_last")]
    last: usize,
    /// Only of this app.
    app: Option<AppName>,
    /// Only with this verdict.
    verdict: Option<Verdict>,
    /// Only past records that are not older: a duration such as `10m`, or milliseconds since 1970.
    since: Option<String>,
}

/// What was decided about a tenant's outgoing connections, newline-delimited JSON.
#[utoipa::path(get, path = "/v1/tenants/{tenant}/flows",
    params(("tenant" = TenantName, Path), FlowsQuery),
    responses((status = 200, description = "lines of JSON", body = api::flows::FlowRecord, content_type = "application/x-ndjson"), (status = "default", body = Problem)))]
pub(super) async fn flows(
    State(api): State<Arc<Api>>,
    Extension(caller): Extension<Caller>,
    At(tenant): At<TenantName>,
    Asked(query): Asked<FlowsQuery>,
) -> Answer<Response> {
    api.writer.tenant(&tenant).await?;
    let query = FlowQuery {
        app: query.app,
        verdict: query.verdict,
        since: since(query.since.as_deref())?,
        last: query.last.min(MAX_LAST),
        follow: query.follow,
    };
    ndjson(&api, &caller, api.nodes.flows(&tenant, query))
}

fn since(text: Option<&str>) -> Answer<Option<Since>> {
    let since = text.map(str::parse).transpose();
    since.map_err(|cause| Refusal::new(Code::RequestInvalid, format!("`since`: {cause}")))
}

/// One line of JSON for each item.
fn ndjson<T: Serialize + Send + 'static>(api: &Api, caller: &Caller, items: BoxStream<'static, T>) -> Answer<Response> {
    let lines = items.map(|item| {
        let mut text = serde_json::to_vec(&item).unwrap_or_default();
        text.push(b'\n');
        Bytes::from(text)
    });
    let lines = futures::stream::unfold(lines, |mut lines| async move {
        let next = tokio::time::timeout(KEEP_ALIVE, lines.next()).await;
        next.unwrap_or(Some(Bytes::from_static(b"\n"))).map(|line| (line, lines))
    });
    endless(api, caller, "application/x-ndjson", lines)
}
