//! What is not about one tenant: health, version, the document of this API, nodes, artifacts.

use std::sync::Arc;

use api::Problem;
use api::control::{ContractView, MAX_BLOB, NodeView, Version};
use api::problem::Code;
use axum::Extension;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::BytesMut;
use futures::StreamExt as _;
use model::{Digest, TenantName};
use store::blobs::BlobError;
use store::{Expect, keys};
use tokio::time::timeout;

use super::body::{IDLE, Stalled, patient};
use super::extract::{At, json};
use super::refusal::{Answer, Refusal};
use super::shares::Held;
use super::{Api, openapi};
use crate::clock;
use crate::sweep::Sent;
use crate::tokens::Caller;
use crate::writer;

/// That a tenant looked for an artifact is written down this often at most, milliseconds.
const WANTED_EVERY: u64 = 10_000;

/// The control plane answers.
#[utoipa::path(get, path = "/v1/healthz", security(()), responses((status = 200, description = "it answers", body = String)))]
pub(super) async fn healthz() -> &'static str {
    "ok\n"
}

/// Which product answers, and since when.
#[utoipa::path(get, path = "/v1/version", responses((status = 200, body = Version), (status = "default", body = Problem)))]
pub(super) async fn version(State(api): State<Arc<Api>>) -> Response {
    let ingress = api.state.lock().nodes.get(&api.node).map(|n| n.ingress.clone()).unwrap_or_default();
    json(&Version {
        version: api.version.clone(),
        api: vec!["v1".to_owned()],
        pid: std::process::id(),
        since_ms: api.since_ms,
        ingress,
    })
}

/// This document.
#[utoipa::path(get, path = "/v1/openapi.json", responses((status = 200, description = "OpenAPI 3.1", body = Object), (status = "default", body = Problem)))]
pub(super) async fn document() -> Response {
    ([(header::CONTENT_TYPE, "application/json")], openapi()).into_response()
}

/// The machines, with those that are lost and still have apps.
#[utoipa::path(get, path = "/v1/nodes", responses((status = 200, body = Vec<NodeView>), (status = "default", body = Problem)))]
pub(super) async fn nodes(State(api): State<Arc<Api>>) -> Response {
    let state = api.state.lock();
    let known = state.observed.nodes.iter().filter(|(_, place)| place.alive || !place.apps.is_empty());
    let views: Vec<NodeView> = known
        .map(|(name, place)| {
            let record = state.nodes.get(name);
            NodeView {
                name: name.clone(),
                alive: place.alive,
                ingress: record.map(|r| r.ingress.clone()).unwrap_or_default(),
                pid: record.map_or(0, |r| r.pid),
                since_ms: record.map_or(0, |r| r.since_ms),
                apps: place.apps.len() as u64,
                layers: record.map(|r| r.layers.clone()).unwrap_or_default(),
                waived: record.map(|r| r.waived.clone()).unwrap_or_default(),
                groups: record.and_then(|r| r.groups.clone()),
            }
        })
        .collect();
    json(&views)
}

/// What components may import here, by link or without, in which versions, and which provider types answer.
#[utoipa::path(get, path = "/v1/contracts", responses((status = 200, body = Vec<ContractView>), (status = "default", body = Problem)))]
pub(super) async fn contracts() -> Response {
    json(&api::control::contracts())
}

/// Whether the tenant has sent an artifact, and it is whole. One that is damaged counts as missing: sending it again replaces it.
#[utoipa::path(head, path = "/v1/tenants/{tenant}/blobs/{digest}", params(("tenant" = TenantName, Path), ("digest" = Digest, Path)),
    responses((status = 200, description = "it is there"), (status = 404, description = "it is not"), (status = "default", body = Problem)))]
pub(super) async fn has_blob(
    State(api): State<Arc<Api>>,
    At((tenant, digest)): At<(TenantName, Digest)>,
) -> Answer<StatusCode> {
    let key = keys::artifact(&tenant, &digest);
    let sent = api.store.get(&key).await?;
    let sent = sent.ok_or_else(|| Refusal::new(Code::NotFound, BlobError::Missing(digest).to_string()))?;
    let _look = api.looks.take(Some(&tenant)).await.ok_or_else(stopped)?;
    let blobs = api.blobs.clone();
    let looked = move || match blobs.check(&digest) {
        // Whoever asks will not send it: it has to be there when they deploy.
        Ok(()) if blobs.want(&digest) => Ok(()),
        Ok(()) => Err(BlobError::Missing(digest)),
        Err(cause) => Err(cause),
    };
    let read = tokio::task::spawn_blocking(looked).await;
    match read.map_err(|cause| Refusal::new(Code::Internal, format!("the artifact was not read: {cause}")))? {
        Ok(()) => {
            let now = clock::millis();
            // Reading must not cost a write each time.
            let sent = writer::decode::<Sent>(&sent)?;
            if now.saturating_sub(sent.wanted_ms) >= WANTED_EVERY {
                api.store.put(&key, writer::encode(&Sent { wanted_ms: now, ..sent })?, Expect::Any, None).await?;
            }
            Ok(StatusCode::OK)
        }
        Err(cause @ (BlobError::Missing(_) | BlobError::Damaged { .. })) => {
            Err(Refusal::new(Code::NotFound, cause.to_string()))
        }
        Err(cause) => Err(cause.into()),
    }
}

/// Keeps an artifact for the tenant. The bytes must hash to the digest.
#[utoipa::path(put, path = "/v1/tenants/{tenant}/blobs/{digest}", params(("tenant" = TenantName, Path), ("digest" = Digest, Path)),
    request_body(content = Vec<u8>, content_type = "application/octet-stream"),
    responses((status = 204, description = "it is there"), (status = "default", body = Problem)))]
pub(super) async fn put_blob(
    State(api): State<Arc<Api>>,
    Extension(caller): Extension<Caller>,
    At((tenant, digest)): At<(TenantName, Digest)>,
    request: Request,
) -> Answer<StatusCode> {
    api.writer.tenant(&tenant).await?;
    // What announces its size is refused before a byte of it is read.
    if http_body::Body::size_hint(request.body()).lower() > MAX_BLOB as u64 {
        return Err(too_large());
    }
    let mut room = api.uploads.hold(&tenant);
    let bytes = receive(&mut room, request.into_body(), MAX_BLOB, "an artifact").await?;
    // What was sent may have taken a while.
    api.writer.may_still(&caller, &tenant).await?;
    // Before it is counted: what is written down says that the tenant had these bytes, to whoever asks and to the quota.
    let hashed = tokio::task::spawn_blocking(move || (Digest::of(&bytes), bytes)).await;
    let (actual, bytes) =
        hashed.map_err(|cause| Refusal::new(Code::Internal, format!("the artifact was not read: {cause}")))?;
    if actual != digest {
        return Err(BlobError::Mismatch { expected: digest, actual }.into());
    }
    // Counted before it is kept: however many are sent at once, together they are no more than the tenant may have.
    let new = count(&api, &tenant, &digest, bytes.len() as u64).await?;
    let blobs = api.blobs.clone();
    let put = tokio::task::spawn_blocking(move || blobs.put(&digest, &bytes)).await;
    let put = put.map_err(|cause| Refusal::new(Code::Internal, format!("the artifact was not kept: {cause}")));
    let kept = put.and_then(|put| put.map_err(Refusal::from));
    if let (Err(_), Some(at)) = (&kept, new)
        && let Err(cause) = api.store.delete(&keys::artifact(&tenant, &digest), Expect::Revision(at)).await
    {
        tracing::debug!(%digest, %cause, "what was not kept counts until it is swept");
    }
    kept?;
    Ok(StatusCode::NO_CONTENT)
}

/// Writes down that the tenant sends an artifact, whose bytes are what their digest says, where it may have it; where it had
/// not sent it, the store revision of that.
async fn count(api: &Api, tenant: &TenantName, digest: &Digest, size: u64) -> Answer<Option<u64>> {
    let key = keys::artifact(tenant, digest);
    let _one = api.counts.take(Some(tenant)).await.ok_or_else(stopped)?;
    let quota = api.writer.tenant(tenant).await?.settings.quotas.artifact_bytes;
    let (mut others, mut size, mut known) = (0u64, size, false);
    for entry in api.store.list(&keys::artifacts_of(tenant)).await?.entries {
        let counted = writer::decode::<Sent>(&entry)?.size;
        if entry.key == key {
            // What counts is never made less by sending it again.
            (known, size) = (true, size.max(counted));
        } else {
            others = others.saturating_add(counted);
        }
    }
    let total = others.saturating_add(size);
    if !known && total > quota.0 {
        let text = format!("the artifacts of tenant `{tenant}` would be {total} bytes and may be {quota}");
        return Err(Refusal::new(Code::QuotaExceeded, text).help(
            "delete apps that are not needed: what no revision names goes an hour after it was sent or looked for; or ask \
             your operator for more",
        ));
    }
    let sent = Sent { wanted_ms: clock::millis(), size };
    let at = api.store.put(&key, writer::encode(&sent)?, Expect::Any, None).await?;
    Ok((!known).then_some(at))
}

/// The whole of a body. Room is taken for what has arrived, never for what is only announced, and not waited for longer than
/// for the next piece: two halves cannot wait for each other for ever.
pub(super) async fn receive(room: &mut Held, body: Body, most: usize, what: &str) -> Answer<BytesMut> {
    let mut pieces = patient(body).into_data_stream();
    let mut bytes = BytesMut::new();
    while let Some(piece) = pieces.next().await {
        let piece = piece.map_err(|cause| match Stalled::behind(&cause) {
            Some(stalled) => stalled.into(),
            None => Refusal::new(Code::RequestInvalid, format!("{what} did not arrive whole: {cause}")),
        })?;
        let size = bytes.len().saturating_add(piece.len());
        let large = || Refusal::new(Code::TooLarge, format!("{what} has at most {most} bytes"));
        if size > most {
            return Err(large());
        }
        let busy = |_| Refusal::new(Code::Busy, "too much is being sent at once").help("try again in a moment");
        timeout(IDLE, room.more(piece.len())).await.map_err(busy)?;
        bytes.extend_from_slice(&piece);
    }
    Ok(bytes)
}

pub(crate) fn stopped() -> Refusal {
    Refusal::new(Code::Unreachable, "the control plane is stopping")
}

fn too_large() -> Refusal {
    Refusal::new(Code::TooLarge, format!("an artifact has at most {MAX_BLOB} bytes"))
}
