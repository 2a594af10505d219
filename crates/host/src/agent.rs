//! The agent API on `agent.sock`: what it takes to read a request strictly and to answer it.

use std::convert::Infallible;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use api::agent::{DrainRequest, HostInfo, StartRequest, TakingRequest};
use api::copy::{Held, Keys, Release, Round};
use api::{Code, Problem};
use bytes::{BufMut, Bytes, BytesMut};
use futures::{StreamExt as _, stream};
use http::header::CONTENT_TYPE;
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body::Frame;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, Limited, StreamBody};
use hyper::body::Incoming;
use model::{AppName, Revision, World};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio_util::sync::CancellationToken;

use crate::apps::{Apps, Identity};
use crate::{program, scheduled};

/// The largest body of a request, bytes: a locked app with every list at its limit is far smaller.
const MAX_BODY: usize = 16 << 20;

type Answer = Response<UnsyncBoxBody<Bytes, Infallible>>;

/// What the agent API acts on.
pub(crate) struct Agent {
    pub(crate) apps: Arc<Apps>,
    pub(crate) identity: Identity,
    /// Cancelled once the host is drained.
    pub(crate) done: CancellationToken,
    /// Made when first asked for: a fingerprint costs an engine.
    pub(crate) info: OnceLock<HostInfo>,
}

/// Answers one request.
pub(crate) async fn answer(agent: Arc<Agent>, request: Request<Incoming>) -> Result<Answer, Infallible> {
    Ok(agent.route(request).await.unwrap_or_else(|problem| {
        let status = StatusCode::from_u16(problem.code.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        json(status, "application/problem+json", &problem)
    }))
}

fn json<T: Serialize>(status: StatusCode, kind: &'static str, value: &T) -> Answer {
    let (status, body) = match serde_json::to_vec(value) {
        Ok(body) => (status, body),
        Err(cause) => (StatusCode::INTERNAL_SERVER_ERROR, cause.to_string().into_bytes()),
    };
    let mut response = Response::new(Full::new(Bytes::from(body)).boxed_unsync());
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}

fn ok<T: Serialize>(value: &T) -> Result<Answer, Problem> {
    Ok(json(StatusCode::OK, "application/json", value))
}

/// Which part of the traces that begin here is recorded, says the follower of spans; all where it says nothing.
fn roots(query: Option<&str>) -> Result<f64, Problem> {
    let Some(query) = query else { return Ok(1.0) };
    let part = query.strip_prefix("roots=").and_then(|part| part.parse().ok());
    part.filter(|part| (0.0..=1.0).contains(part))
        .ok_or_else(|| Problem::new(Code::RequestInvalid, "the query is `roots=` with a number from 0 to 1"))
}

impl Agent {
    async fn route(&self, request: Request<Incoming>) -> Result<Answer, Problem> {
        let path = request.uri().path().to_owned();
        let mut parts = path.trim_start_matches('/').split('/');
        let parts: [Option<&str>; 7] = std::array::from_fn(|_| parts.next());
        match (request.method(), parts) {
            (&Method::GET, [Some("v1"), Some("info"), None, ..]) => ok(self.info()?),
            (&Method::GET, [Some("v1"), Some("status"), None, ..]) => ok(&self.apps.status()),
            (&Method::GET, [Some("v1"), Some("metrics"), None, ..]) => ok(&self.apps.metrics()),
            (&Method::GET, [Some("v1"), Some("spans"), None, ..]) => Ok(self.spans(roots(request.uri().query())?)),
            (&Method::GET, [Some("v1"), Some("logs"), None, ..]) => Ok(self.logs()),
            (&Method::POST, [Some("v1"), Some("drain"), None, ..]) => {
                let drain: DrainRequest = read(request).await?;
                let drained = self.apps.drain(Duration::from_millis(drain.deadline_ms)).await;
                self.done.cancel();
                ok(&drained)
            }
            (&Method::PUT, [Some("v1"), Some("apps"), Some(app), Some("revisions"), Some(revision), None, ..]) => {
                let (app, revision) = revision_of(app, revision)?;
                let start: StartRequest = read(request).await?;
                self.apps.start(&app, revision, start).await?;
                ok(&serde_json::json!({}))
            }
            (
                &Method::PUT,
                [Some("v1"), Some("apps"), Some(app), Some("revisions"), Some(revision), Some("taking"), None],
            ) => {
                let (app, revision) = revision_of(app, revision)?;
                let TakingRequest { taking } = read(request).await?;
                self.apps.set_taking(&app, revision, taking).await?;
                ok(&serde_json::json!({}))
            }
            (
                &Method::POST,
                [Some("v1"), Some("apps"), Some(app), Some("revisions"), Some(revision), Some("scheduled"), None],
            ) => {
                let (app, revision) = revision_of(app, revision)?;
                ok(&scheduled::call(&self.apps, &app, revision, read(request).await?).await?)
            }
            (
                &Method::POST,
                [Some("v1"), Some("apps"), Some(app), Some("revisions"), Some(revision), Some("run"), None],
            ) => {
                let (app, revision) = revision_of(app, revision)?;
                let frames = program::run(&self.apps, &app, revision, read(request).await?).await?;
                let frames = frames.map(|frame| Ok::<_, Infallible>(Frame::data(frame)));
                let mut response = Response::new(StreamBody::new(frames).boxed_unsync());
                response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
                Ok(response)
            }
            (
                &Method::POST,
                [Some("v1"), Some("apps"), Some(app), Some("revisions"), Some(revision), Some("drain"), None],
            ) => {
                let (app, revision) = revision_of(app, revision)?;
                let drain: DrainRequest = read(request).await?;
                let deadline = Duration::from_millis(drain.deadline_ms);
                ok(&self.apps.drain_revision(&app, revision, deadline).await)
            }
            (
                &Method::POST,
                [Some("v1"), Some("apps"), Some(app), Some("revisions"), Some(revision), Some("hold"), None],
            ) => {
                let (app, revision) = revision_of(app, revision)?;
                let hold: DrainRequest = read(request).await?;
                let in_flight = self.apps.hold(&app, revision, Duration::from_millis(hold.deadline_ms)).await;
                ok(&Held { in_flight })
            }
            (&Method::POST, [Some("v1"), Some("apps"), Some(app), Some("release"), None, ..]) => {
                let app = app_of(app)?;
                let release: Release = read(request).await?;
                self.apps.release(&app, release.to);
                ok(&serde_json::json!({}))
            }
            (_, [Some("v1"), Some("apps"), Some(app), Some("copies"), Some(id), step, None]) => {
                let (app, id, step) = (app_of(app)?, id.to_owned(), step.map(str::to_owned));
                self.copy(&app, &id, step.as_deref(), request).await
            }
            (method, _) => Err(Problem::new(Code::NotFound, format!("the agent API has no {method} {path}"))),
        }
    }

    /// Copies of data; see [`api::copy`].
    async fn copy(
        &self,
        app: &AppName,
        id: &str,
        step: Option<&str>,
        request: Request<Incoming>,
    ) -> Result<Answer, Problem> {
        let copies = self.apps.copies();
        match (request.method(), step) {
            (&Method::PUT, None) => {
                copies.begin(self.apps.providers(), app, id, read(request).await?).await?;
                ok(&serde_json::json!({}))
            }
            (&Method::DELETE, None) => {
                copies.end(app, id);
                ok(&serde_json::json!({}))
            }
            (&Method::POST, Some("page")) => ok(&copies.find(app, id)?.page(&read(request).await?).await?),
            (&Method::POST, Some("extra")) => ok(&copies.find(app, id)?.extra(&read(request).await?).await?),
            (&Method::POST, Some("noted")) => {
                let Round { round } = read(request).await?;
                ok(&copies.find(app, id)?.noted(round)?)
            }
            (&Method::POST, Some("keys")) => {
                let Keys { keys, .. } = read(request).await?;
                ok(&copies.find(app, id)?.keys(keys).await?)
            }
            (method, _) => Err(Problem::new(Code::NotFound, format!("a copy has no such step for {method}"))),
        }
    }

    fn info(&self) -> Result<&HostInfo, Problem> {
        if let Some(info) = self.info.get() {
            return Ok(info);
        }
        let runtime = self.apps.code().runtime();
        let fingerprint = |world| {
            let text = runtime.fingerprint(world).map_err(|cause| Problem::new(Code::Internal, cause.to_string()))?;
            Ok((world, text))
        };
        let info = HostInfo {
            pid: std::process::id(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            tenant: self.identity.tenant.clone(),
            shard: self.identity.shard,
            fingerprints: [World::P2, World::P3].into_iter().map(fingerprint).collect::<Result<_, Problem>>()?,
            interfaces: runtime.interfaces().map(str::to_owned).collect(),
        };
        Ok(self.info.get_or_init(|| info))
    }

    /// Ends when the reader hangs up, or has all there is when the host ends.
    fn spans(&self, roots: f64) -> Answer {
        let done = self.done.clone();
        let batches = stream::unfold(self.apps.spans().follow(roots), move |mut follower| {
            let done = done.clone();
            async move {
                let batch = tokio::select! {
                    biased;
                    batch = follower.next() => batch,
                    () = done.cancelled() => return None,
                };
                let mut bytes = serde_json::to_vec(&batch).unwrap_or_default();
                bytes.push(b'\n');
                Some((Ok(Frame::data(bytes.into())), follower))
            }
        });
        let mut response = Response::new(StreamBody::new(batches).boxed_unsync());
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/x-ndjson"));
        response
    }

    /// Ends when the reader hangs up, or has all there is when the host ends.
    fn logs(&self) -> Answer {
        let done = self.done.clone();
        let lines = stream::unfold(self.apps.logs().reader(), move |mut reader| {
            let done = done.clone();
            async move {
                let lines = tokio::select! {
                    biased;
                    lines = reader.next() => lines,
                    () = done.cancelled() => return None,
                };
                let mut bytes = BytesMut::new();
                for line in &lines {
                    // A line is plain data: writing it to memory cannot fail.
                    if serde_json::to_writer((&mut bytes).writer(), line).is_ok() {
                        bytes.put_u8(b'\n');
                    }
                }
                Some((Ok(Frame::data(bytes.freeze())), reader))
            }
        });
        let mut response = Response::new(StreamBody::new(lines).boxed_unsync());
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/x-ndjson"));
        response
    }
}

fn app_of(app: &str) -> Result<AppName, Problem> {
    app.parse().map_err(|cause| Problem::new(Code::RequestInvalid, format!("the app in the path: {cause}")))
}

fn revision_of(app: &str, revision: &str) -> Result<(AppName, Revision), Problem> {
    let invalid = |detail: String| Problem::new(Code::RequestInvalid, detail);
    let number = revision.parse().map_err(|_| invalid(format!("`{}` is not a revision", revision.escape_debug())))?;
    Ok((app_of(app)?, Revision(number)))
}

async fn read<T: DeserializeOwned>(request: Request<Incoming>) -> Result<T, Problem> {
    let body = Limited::new(request.into_body(), MAX_BODY).collect().await.map_err(|cause| {
        let code = match cause.downcast_ref::<http_body_util::LengthLimitError>() {
            Some(_) => Code::TooLarge,
            None => Code::RequestInvalid,
        };
        Problem::new(code, format!("the request's body cannot be read: {cause}"))
    })?;
    serde_json::from_slice(&body.to_bytes()).map_err(|cause| {
        Problem::new(Code::RequestInvalid, format!("the request's body is not what it should be: {cause}"))
    })
}
