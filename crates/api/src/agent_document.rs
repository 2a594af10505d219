//! The OpenAPI document of the agent API. The host routes by hand (it is one small match), so the paths are described
//! here, beside the types they speak of.
#![expect(dead_code, reason = "each function only carries the description of one request")]

use utoipa::OpenApi as _;

use crate::Problem;
use crate::agent::{DrainRequest, Drained, HostInfo, HostStatus, LogLine, StartRequest};
use crate::metrics::HostMetrics;

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
    paths(info, start, drain_revision, status, metrics, logs, drain)
)]
struct Document;

/// The OpenAPI document of the agent API, pretty JSON with a line end.
pub fn openapi() -> String {
    Document::openapi().to_pretty_json().map(|text| text + "\n").unwrap_or_default()
}
