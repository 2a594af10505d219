//! The API over HTTP: which handler answers what, and what every request passes on its way there.

mod access;
mod answers;
mod apps;
mod audit;
mod body;
mod bounds;
mod configs;
mod copies;
mod extract;
mod guard;
mod hosts;
mod refusal;
mod revisions;
mod schedules;
mod secrets;
mod serve;
mod streams;
mod system;
mod tenants;
mod tokens;

use std::sync::Arc;

use api::control::{MAX_CALL_BODY, MAX_JSON};
use api::node::NodeApi;
use api::problem::Code;
use api::shares;
use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::http::StatusCode;
use axum::middleware;
use model::NodeName;
use store::Store;
use store::blobs::Blobs;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use utoipa::OpenApi as _;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::audit::Audit;
use crate::etags::Etags;
use crate::events::Events;
use crate::mover::Mover;
use crate::reconcile::Settled;
use crate::state::Shared;
use crate::tokens::Tokens;
use crate::turns::Turns;
use crate::writer::Writer;
pub(crate) use answers::ANSWERS;
pub(crate) use bounds::Bounds;
pub(crate) use guard::Guard;
pub(crate) use refusal::{Answer, Refusal};
pub(crate) use serve::serve;
pub(crate) use shares::Shares;
pub(crate) use system::stopped;

/// Bytes of artifacts that are held in memory while they are received, all uploads together and shared between tenants. Only
/// what has arrived counts: one that does not send takes nothing from the others.
pub(crate) const UPLOADS: usize = 4 * api::control::MAX_BLOB;

/// Bytes of calls that are held in memory, all calls together: what was sent, and after it what was answered.
pub(crate) const CALLS: usize = 16 * MAX_CALL;
/// Requests that read much from the disk at once, artifacts as well as the audit log and all apps of a tenant, and those of one tenant among them; the
/// others wait for them.
pub(crate) const LOOKS: (usize, usize) = (2, 1);

/// Uploads at once of which is counted whether their tenants may have them, and those of one tenant among them: two would count without each other.
pub(crate) const COUNTS: (usize, usize) = (8, 1);

/// What handlers work with.
pub(crate) struct Api {
    pub(crate) guard: Guard,
    pub(crate) tokens: Tokens,
    pub(crate) etags: Etags,
    pub(crate) audit: Arc<Audit>,
    pub(crate) writer: Arc<Writer>,
    pub(crate) mover: Arc<Mover>,
    pub(crate) store: Arc<dyn Store>,
    pub(crate) blobs: Blobs,
    pub(crate) nodes: Arc<dyn NodeApi>,
    pub(crate) node: NodeName,
    pub(crate) state: Arc<Shared>,
    pub(crate) events: Events,
    pub(crate) settled: watch::Receiver<Settled>,
    pub(crate) uploads: Arc<Shares>,
    /// Whoever has one counts what a tenant has sent.
    pub(crate) counts: Arc<Turns>,
    pub(crate) calls: Arc<Shares>,
    pub(crate) answers: Arc<Shares>,
    pub(crate) bounds: Arc<Bounds>,
    pub(crate) looks: Arc<Turns>,
    pub(crate) stop: CancellationToken,
    pub(crate) version: String,
    pub(crate) since_ms: u64,
}

/// The largest [`api::control::CallRequest`]: its body in base64, and room for its head.
pub(crate) const MAX_CALL: usize = MAX_CALL_BODY / 3 * 4 + (256 << 10);

#[derive(utoipa::OpenApi)]
#[openapi(
    info(
        title = "Sidereal control API",
        description = "What the command line and the canvas speak. Every request but `GET /v1/healthz` carries \
                       `Authorization: Bearer <token>`: the operator's, or one of a tenant, which sees nothing of \
                       other tenants. Every refusal is a problem document (RFC 9457) with a stable \
                       `code`. Fields and query parameters that are not listed here are refused, not ignored.",
        license(name = "Apache-2.0", identifier = "Apache-2.0"),
    ),
    components(schemas(api::control::Event, api::agent::LogLine, api::flows::FlowRecord, api::Problem)),
    security(("token" = [])),
    modifiers(&Token)
)]
struct Document;

/// The bearer token, as OpenAPI says it.
struct Token;

impl utoipa::Modify for Token {
    fn modify(&self, document: &mut utoipa::openapi::OpenApi) {
        use utoipa::openapi::security::{Http, HttpAuthScheme, SecurityScheme};
        let scheme = SecurityScheme::Http(Http::new(HttpAuthScheme::Bearer));
        document.components.get_or_insert_default().add_security_scheme("token", scheme);
        // The document speaks of the API, not of a build of it: it changes when the API does.
        document.info.version = "v1".to_owned();
    }
}

fn routes() -> OpenApiRouter<Arc<Api>> {
    OpenApiRouter::with_openapi(Document::openapi())
        .routes(routes!(system::healthz))
        .routes(routes!(system::version))
        .routes(routes!(system::document))
        .routes(routes!(system::nodes))
        .routes(routes!(system::contracts))
        .routes(routes!(tenants::list))
        .routes(routes!(tenants::read, tenants::write, tenants::delete))
        .routes(routes!(tenants::providers))
        .routes(routes!(tenants::routes))
        .routes(routes!(tenants::hosts))
        .routes(routes!(tenants::metrics))
        .routes(routes!(hosts::free))
        .routes(routes!(audit::list))
        .routes(routes!(audit::verify))
        .routes(routes!(audit::of_tenant))
        .routes(routes!(tokens::whoami))
        .routes(routes!(tokens::list, tokens::create))
        .routes(routes!(tokens::revoke))
        .routes(routes!(system::has_blob, system::put_blob))
        .routes(routes!(apps::list))
        .routes(routes!(apps::read, apps::delete))
        .routes(routes!(revisions::plan))
        .routes(routes!(revisions::list, revisions::deploy))
        .routes(routes!(revisions::read))
        .routes(routes!(revisions::rollback))
        .routes(routes!(revisions::link))
        .routes(routes!(copies::begin, copies::read, copies::cancel))
        .routes(routes!(schedules::list))
        .routes(routes!(schedules::run))
        .routes(routes!(apps::call))
        .routes(routes!(secrets::list))
        .merge(
            OpenApiRouter::new()
                .routes(routes!(secrets::read, secrets::write, secrets::delete))
                .layer(DefaultBodyLimit::max(model::secret::MAX_SECRET)),
        )
        .routes(routes!(secrets::rotate_key))
        .routes(routes!(configs::list))
        .routes(routes!(configs::read, configs::write, configs::delete))
        .routes(routes!(streams::logs))
        .routes(routes!(streams::flows))
        .routes(routes!(streams::events))
}

/// The OpenAPI document of the control API, pretty JSON with a line end.
pub fn openapi() -> String {
    let (_, document) = routes().split_for_parts();
    document.to_pretty_json().map(|text| text + "\n").unwrap_or_default()
}

/// Everything that answers.
pub(crate) fn router(api: Arc<Api>) -> Router {
    let (router, _) = routes().split_for_parts();
    router
        .fallback(|| async { Refusal::new(Code::NotFound, "this API has no such path") })
        .method_not_allowed_fallback(|| async {
            Refusal::new(Code::RequestInvalid, "this path takes other methods").status(StatusCode::METHOD_NOT_ALLOWED)
        })
        .layer(DefaultBodyLimit::max(MAX_JSON))
        .layer(middleware::from_fn_with_state(api.clone(), guard::guard))
        .with_state(api)
}
