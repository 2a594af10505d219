//! A host without a runtime: it speaks the agent API and answers requests with its revision, so that the node can be
//! tested on real processes. The node starts a script that runs this very test binary with [`run`] as its only test.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::io::Write;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use api::agent::{Drained, HostInfo, HostStatus, StartRequest};
use api::copy::Held;
use api::services::client::NodeWay;
use api::{Code, Problem};
use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use model::World;
use tokio::net::UnixListener;

/// Writes the program a node is to run: `host` is [`run`], `compile` copies.
pub(super) fn program(dir: &Path) -> PathBuf {
    let me = std::env::current_exe().unwrap();
    let path = dir.join("exe");
    let script = format!(
        "#!/bin/sh\ncase \"$1\" in\ncompile) exec /bin/cat ;;\nexternal) exec /usr/bin/env -i \"$5\" ;;\nhost) FAKE_TENANT=\"$3\" FAKE_SHARD=\"$5\" \
         exec {} --exact fake_host::run --ignored --nocapture ;;\nesac\n",
        me.display()
    );
    std::fs::write(&path, script).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o700)).unwrap();
    path
}

struct Fake {
    dir: PathBuf,
    info: HostInfo,
    revisions: Mutex<BTreeSet<String>>,
}

impl Fake {
    /// A file beside the hosts' directories that changes how all of them behave.
    fn told(&self, what: &str) -> bool {
        self.dir.parent().unwrap().join(what).exists()
    }

    fn note(&self, line: &str) {
        let path = self.dir.parent().unwrap().join("notes");
        let mut file = std::fs::OpenOptions::new().create(true).append(true).open(path).unwrap();
        // One write for the whole line: several hosts append to the file.
        let line = format!("{}.{} {line}\n", self.info.tenant, self.info.shard);
        file.write_all(line.as_bytes()).unwrap();
    }

    async fn agent(self: Arc<Self>, request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
        let (parts, body) = request.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        let path: Vec<&str> = parts.uri.path().split('/').skip(2).collect();
        Ok(match (&parts.method, path.as_slice()) {
            (&Method::GET, ["info"]) => json(StatusCode::OK, &self.info),
            (&Method::GET, ["status"]) => json(StatusCode::OK, &HostStatus { in_flight: 0, rss: 1, apps: Vec::new() }),
            (&Method::GET, ["logs"]) => Response::new(Full::default()),
            (&Method::PUT, ["apps", app, "revisions", number]) => {
                let start: StartRequest = serde_json::from_slice(&body).unwrap();
                self.note(&format!("start {app}/{number} load={}", start.load));
                match start.app.version.as_deref() {
                    Some("bad") if start.load => {
                        let problem = Problem::new(Code::LinkMissing, "nothing answers the import");
                        return Ok(json(StatusCode::UNPROCESSABLE_ENTITY, &problem));
                    }
                    Some("crash") if start.load => std::process::exit(3),
                    _ => {}
                }
                self.revisions.lock().unwrap().insert(format!("{app}/{number}"));
                Response::new(Full::default())
            }
            (&Method::POST, ["apps", app, "revisions", number, "drain"]) => {
                self.note(&format!("drain {app}/{number}"));
                self.revisions.lock().unwrap().remove(&format!("{app}/{number}"));
                json(StatusCode::OK, &Drained { ended: 0 })
            }
            (&Method::POST, ["apps", app, "revisions", number, "hold"]) => {
                self.note(&format!("hold {app}/{number}"));
                json(StatusCode::OK, &Held { in_flight: 0 })
            }
            (&Method::POST, ["apps", app, "release"]) => {
                self.note(&format!("release {app}"));
                json(StatusCode::OK, &serde_json::json!({}))
            }
            (&Method::PUT, ["apps", _, "revisions", _, "taking"]) => Response::new(Full::default()),
            (&Method::POST, ["drain"]) if self.told("stubborn") => std::future::pending().await,
            (&Method::POST, ["drain"]) => std::process::exit(0),
            _ => json(StatusCode::NOT_FOUND, &Problem::new(Code::NotFound, "no such thing")),
        })
    }

    async fn data(self: Arc<Self>, request: Request<Incoming>) -> Result<Response<Piecewise>, Infallible> {
        let route = request.headers().get(api::agent::ROUTE_HEADER).unwrap().to_str().unwrap().to_owned();
        let revision = route.rsplit_once('/').unwrap().0.to_owned();
        let path = request.uri().path().to_owned();
        if path.starts_with("/slow") {
            self.note(&format!("slow {revision}"));
            tokio::time::sleep(std::time::Duration::from_millis(600)).await;
        }
        if path.starts_with("/stream") {
            self.note(&format!("stream {revision}"));
            return Ok(Response::new(self.stream(revision)));
        }
        if path.starts_with("/upload") {
            self.note(&format!("upload {revision}"));
            let Ok(body) = request.into_body().collect().await else { return Ok(self.gone(&revision)) };
            let text = format!("{route} took {}", body.to_bytes().len());
            return Ok(if self.has(&revision) { Response::new(whole(text)) } else { self.gone(&revision) });
        }
        if path.starts_with("/ill") {
            let host = request.headers().get("host").unwrap().to_str().unwrap();
            self.note(&format!("ill {revision} {host}"));
            let mut ill = Response::new(whole("not yet".into()));
            *ill.status_mut() = if self.told("well") { StatusCode::OK } else { StatusCode::INTERNAL_SERVER_ERROR };
            return Ok(ill);
        }
        if !self.has(&revision) {
            return Ok(self.gone(&revision));
        }
        Ok(Response::new(whole(format!("{route} pid={}", std::process::id()))))
    }

    fn has(&self, revision: &str) -> bool {
        self.revisions.lock().unwrap().contains(revision)
    }

    fn gone(&self, revision: &str) -> Response<Piecewise> {
        let mut gone = Response::new(whole(format!("no revision {revision}")));
        *gone.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
        gone
    }

    /// Pieces until the test says that it is enough; cut off where the revision leaves before.
    fn stream(self: Arc<Self>, revision: String) -> Piecewise {
        let pieces = futures::stream::unfold(Some(self), move |fake| {
            let revision = revision.clone();
            async move {
                let fake = fake?;
                tokio::time::sleep(std::time::Duration::from_millis(20)).await;
                let piece = |text: &'static str| Ok(Frame::data(Bytes::from_static(text.as_bytes())));
                Some(match (fake.has(&revision), fake.told("enough")) {
                    (false, _) => (Err(std::io::ErrorKind::BrokenPipe.into()), None),
                    (true, false) => (piece("more "), Some(fake)),
                    (true, true) => (piece("end"), None),
                })
            }
        });
        BodyExt::boxed(StreamBody::new(pieces))
    }
}

/// A body that may come in pieces.
type Piecewise = BoxBody<Bytes, std::io::Error>;

fn whole(text: String) -> Piecewise {
    Full::from(text).map_err(|never| match never {}).boxed()
}

fn json<T: serde::Serialize>(status: StatusCode, value: &T) -> Response<Full<Bytes>> {
    let mut answer = Response::new(Full::from(serde_json::to_vec(value).unwrap()));
    *answer.status_mut() = status;
    answer
}

/// The fake host itself. Runs only when a node starts it.
#[test]
#[ignore = "the body of a child process of the node's tests"]
fn run() {
    let Ok(tenant) = std::env::var("FAKE_TENANT") else { return };
    let shard = std::env::var("FAKE_SHARD").unwrap().parse().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async move {
        let info = HostInfo {
            pid: std::process::id(),
            version: "fake".into(),
            tenant: tenant.parse().unwrap(),
            shard,
            fingerprints: [(World::P2, "aa".to_owned()), (World::P3, "bb".to_owned())].into(),
            interfaces: vec!["fake:thing/one".into()],
        };
        let [agent, data, line, node, _code]: [OwnedFd; api::agent::HANDED] =
            sandbox::handoff::receive(std::io::stdin().as_fd()).unwrap();
        // It has no line: whoever asks for one is told so.
        drop(line);
        let alive = NodeWay::handed(node.into()).unwrap().alive().await.unwrap();
        let listener = |fd: OwnedFd| {
            let listener = std::os::unix::net::UnixListener::from(fd);
            listener.set_nonblocking(true).unwrap();
            UnixListener::from_std(listener).unwrap()
        };
        let (agent, data) = (listener(agent), listener(data));
        let socket = agent.local_addr().unwrap();
        let dir = socket.as_pathname().unwrap().parent().unwrap().to_owned();
        let fake = Arc::new(Fake { dir, info, revisions: Mutex::default() });
        fake.note(&format!("up pid={}", std::process::id()));
        if fake.told("broken") {
            eprintln!("this host is broken");
            std::process::exit(1);
        }
        tokio::pin!(alive);
        loop {
            let fake = fake.clone();
            tokio::select! {
                () = &mut alive => std::process::exit(0),
                accepted = agent.accept() => {
                    let io = TokioIo::new(accepted.unwrap().0);
                    tokio::spawn(async move {
                        let service = service_fn(move |request| fake.clone().agent(request));
                        drop(hyper::server::conn::http1::Builder::new().serve_connection(io, service).await);
                    });
                }
                accepted = data.accept() => {
                    let io = TokioIo::new(accepted.unwrap().0);
                    tokio::spawn(async move {
                        let service = service_fn(move |request| fake.clone().data(request));
                        drop(hyper::server::conn::http1::Builder::new().serve_connection(io, service).await);
                    });
                }
            }
        }
    });
}
