//! The task API on `task.sock`: where the task stands, and the wish that it stop.

use std::convert::Infallible;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use api::agent::DrainRequest;
use api::task::{SOCKET, TaskPhase, TaskStatus};
use api::{Code, Problem};
use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::UnixListener;
use tokio::sync::watch;

/// The largest body of a request, bytes.
const MAX_BODY: usize = 4096;

/// What the API acts on.
pub struct Control {
    /// Where the task stands.
    pub status: watch::Sender<TaskStatus>,
    /// How long calls may still take, once it is to stop.
    pub stop: watch::Sender<Option<Duration>>,
}

impl Control {
    /// Listens in the directory of the task.
    ///
    /// # Errors
    /// When the socket cannot be bound.
    pub fn listen(self: &Arc<Self>, dir: &Path) -> anyhow::Result<()> {
        let path = dir.join(SOCKET);
        if let Err(cause) = std::fs::remove_file(&path)
            && cause.kind() != std::io::ErrorKind::NotFound
        {
            return Err(cause).with_context(|| format!("cannot replace {}", path.display()));
        }
        let listener = UnixListener::bind(&path).with_context(|| format!("cannot listen at {}", path.display()))?;
        let control = self.clone();
        tokio::spawn(async move {
            loop {
                match listener.accept().await {
                    Ok((stream, _)) => {
                        let control = control.clone();
                        let service = service_fn(move |request| control.clone().answer(request));
                        tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
                    }
                    Err(cause) => {
                        tracing::warn!(%cause, "the task API cannot accept a connection");
                        tokio::time::sleep(Duration::from_millis(100)).await;
                    }
                }
            }
        });
        Ok(())
    }

    async fn answer(self: Arc<Self>, request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
        let (status, text) = match self.route(request).await {
            Ok(status) => (StatusCode::OK, serde_json::to_vec(&status)),
            Err(problem) => {
                let code = StatusCode::from_u16(problem.code.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
                (code, serde_json::to_vec(&problem))
            }
        };
        let mut response = Response::new(Full::new(Bytes::from(text.unwrap_or_default())));
        *response.status_mut() = status;
        Ok(response)
    }

    async fn route(&self, request: Request<Incoming>) -> Result<TaskStatus, Problem> {
        match (request.method(), request.uri().path()) {
            (&Method::GET, "/v1/task/started") => {
                let mut status = self.status.subscribe();
                let seen = status.wait_for(|status| status.phase != TaskPhase::Starting).await;
                seen.map(|status| status.clone()).map_err(|cause| Problem::new(Code::Internal, cause.to_string()))
            }
            (&Method::POST, "/v1/task/stop") => {
                let body = Limited::new(request.into_body(), MAX_BODY).collect().await;
                let body = body.map_err(|cause| Problem::new(Code::RequestInvalid, cause.to_string()))?.to_bytes();
                let DrainRequest { deadline_ms } = serde_json::from_slice(&body)
                    .map_err(|cause| Problem::new(Code::RequestInvalid, cause.to_string()))?;
                self.stop.send_if_modified(|stop| stop.replace(Duration::from_millis(deadline_ms)).is_none());
                Ok(self.now())
            }
            (method, path) => Err(Problem::new(Code::NotFound, format!("the task API has no {method} {path}"))),
        }
    }

    fn now(&self) -> TaskStatus {
        self.status.borrow().clone()
    }
}
