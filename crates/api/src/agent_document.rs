//! The OpenAPI document of the agent API. The host routes by hand (it is one small match), so the paths are described
//! here, beside the types they speak of.
#![expect(dead_code, reason = "each function only carries the description of one request")]

use utoipa::OpenApi as _;

use crate::Problem;
use crate::agent::{
    Called, DrainRequest, Drained, HostInfo, HostStatus, LogLine, ScheduledCall, StartRequest, TakingRequest,
};
use crate::copy::{CopyRequest, Cursor, Held, Keys, Release, Round, Step};
use crate::metrics::HostMetrics;
use crate::run::{RunEnd, RunRequest};

/// Who the host is.
#[utoipa::path(get, path = "/v1/info", responses((status = 200, body = HostInfo), (status = "default", body = Problem)))]
fn info() {}

/// Makes a revision answer; idempotent.
#[utoipa::path(put, path = "/v1/apps/{app}/revisions/{revision}",
    params(("app" = model::AppName, Path), ("revision" = model::Revision, Path)), request_body = StartRequest,
    responses((status = 200, description = "it answers, or will on its first call"), (status = "default", body = Problem)))]
fn start() {}

/// Finishes the revision's calls in flight, then forgets it.
#[utoipa::path(post, path = "/v1/apps/{app}/revisions/{revision}/drain",
    params(("app" = model::AppName, Path), ("revision" = model::Revision, Path)), request_body = DrainRequest,
    responses((status = 200, body = Drained), (status = "default", body = Problem)))]
fn drain_revision() {}

/// Lets new calls of the revision wait, and of those still to come, and those in flight end.
#[utoipa::path(post, path = "/v1/apps/{app}/revisions/{revision}/hold",
    params(("app" = model::AppName, Path), ("revision" = model::Revision, Path)), request_body = DrainRequest,
    responses((status = 200, body = Held), (status = "default", body = Problem)))]
fn hold() {}

/// Lets the waiting calls of an app go on, each on its revision or all on another.
#[utoipa::path(post, path = "/v1/apps/{app}/release",
    params(("app" = model::AppName, Path)), request_body = Release,
    responses((status = 200, description = "they go on"), (status = "default", body = Problem)))]
fn release() {}

/// Opens both providers of a copy and begins to note the keys that are written.
#[utoipa::path(put, path = "/v1/apps/{app}/copies/{id}",
    params(("app" = model::AppName, Path), ("id" = String, Path)), request_body = CopyRequest,
    responses((status = 200, description = "keys can be copied"), (status = "default", body = Problem)))]
fn copy_begin() {}

/// Copies one page of keys.
#[utoipa::path(post, path = "/v1/apps/{app}/copies/{id}/page",
    params(("app" = model::AppName, Path), ("id" = String, Path)), request_body = Cursor,
    responses((status = 200, body = Step), (status = "default", body = Problem)))]
fn copy_page() {}

/// Of one page of the target, the keys that the source does not have.
#[utoipa::path(post, path = "/v1/apps/{app}/copies/{id}/extra",
    params(("app" = model::AppName, Path), ("id" = String, Path)), request_body = Cursor,
    responses((status = 200, body = Keys), (status = "default", body = Problem)))]
fn copy_extra() {}

/// The keys written since the round before.
#[utoipa::path(post, path = "/v1/apps/{app}/copies/{id}/noted",
    params(("app" = model::AppName, Path), ("id" = String, Path)), request_body = Round,
    responses((status = 200, body = Keys), (status = "default", body = Problem)))]
fn copy_noted() {}

/// Makes these keys in the target what they are in the source.
#[utoipa::path(post, path = "/v1/apps/{app}/copies/{id}/keys",
    params(("app" = model::AppName, Path), ("id" = String, Path)), request_body = Keys,
    responses((status = 200, body = Step), (status = "default", body = Problem)))]
fn copy_keys() {}

/// Ends a copy.
#[utoipa::path(delete, path = "/v1/apps/{app}/copies/{id}",
    params(("app" = model::AppName, Path), ("id" = String, Path)),
    responses((status = 200, description = "it is ended"), (status = "default", body = Problem)))]
fn copy_end() {}

/// Makes the revision take messages, or take no more; the latter answers when no handler of it is under way.
#[utoipa::path(put, path = "/v1/apps/{app}/revisions/{revision}/taking",
    params(("app" = model::AppName, Path), ("revision" = model::Revision, Path)), request_body = TakingRequest,
    responses((status = 200, description = "it does"), (status = "default", body = Problem)))]
fn set_taking() {}

/// Calls a component for one due time of a schedule; not to be repeated where the answer was lost.
#[utoipa::path(post, path = "/v1/apps/{app}/revisions/{revision}/scheduled",
    params(("app" = model::AppName, Path), ("revision" = model::Revision, Path)), request_body = ScheduledCall,
    responses((status = 200, body = Called), (status = "default", body = Problem)))]
fn scheduled() {}

/// Runs a program once: frames of what it writes, and a last one with how it ended (see `RunEnd`). Hanging up ends the run.
#[utoipa::path(post, path = "/v1/apps/{app}/revisions/{revision}/run",
    params(("app" = model::AppName, Path), ("revision" = model::Revision, Path)), request_body = RunRequest,
    responses((status = 200, description = "frames: kind (1 stdout, 2 stderr, 0 the end), length in 4 bytes, the rest", body = RunEnd, content_type = "application/octet-stream"), (status = "default", body = Problem)))]
fn run() {}

/// Everything the host has.
#[utoipa::path(get, path = "/v1/status", responses((status = 200, body = HostStatus), (status = "default", body = Problem)))]
fn status() {}

/// Everything the host counted, over all revisions.
#[utoipa::path(get, path = "/v1/metrics", responses((status = 200, body = HostMetrics), (status = "default", body = Problem)))]
fn metrics() {}

/// Log lines from now on, newline-delimited JSON, until the caller hangs up.
#[utoipa::path(get, path = "/v1/logs",
    responses((status = 200, description = "lines of JSON", body = LogLine, content_type = "application/x-ndjson"), (status = "default", body = Problem)))]
fn logs() {}

/// Spans that end from now on, newline-delimited JSON of `{spans, dropped}`, until the caller hangs up.
#[utoipa::path(get, path = "/v1/spans",
    params(("roots" = Option<f64>, Query, description = "the part of the traces that begin at the host which is recorded, 0 to 1; 1 where absent")),
    responses((status = 200, description = "lines of JSON", body = Object, content_type = "application/x-ndjson"), (status = "default", body = Problem)))]
fn spans() {}

/// Refuses new calls, finishes those in flight, exits.
#[utoipa::path(post, path = "/v1/drain", request_body = DrainRequest,
    responses((status = 200, body = Drained), (status = "default", body = Problem)))]
fn drain() {}

#[derive(utoipa::OpenApi)]
#[openapi(
    info(
        title = "Sidereal agent API",
        version = "v1",
        description = "The only way into a host: HTTP/1.1 and JSON over the unix socket `agent.sock` in its folder. \
                       Whoever can open the socket may use it.",
        license(name = "Apache-2.0", identifier = "Apache-2.0"),
    ),
    paths(
        info,
        start,
        drain_revision,
        set_taking,
        scheduled,
        run,
        hold,
        release,
        copy_begin,
        copy_page,
        copy_extra,
        copy_noted,
        copy_keys,
        copy_end,
        status,
        metrics,
        logs,
        spans,
        drain
    )
)]
struct Document;

/// The OpenAPI document of the agent API, pretty JSON with a line end.
pub fn openapi() -> String {
    Document::openapi().to_pretty_json().map(|text| text + "\n").unwrap_or_default()
}
