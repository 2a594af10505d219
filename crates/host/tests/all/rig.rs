//! A host on a thread of its own, its directory, and the requests the tests send it.

use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use api::agent::{AGENT_SOCKET, ComponentStatus, DATA_SOCKET, LogLine, ROUTE_HEADER, StartRequest};
use api::agent_client::HostClient;
use api::{Code, Problem};
use bytes::Bytes;
use futures::StreamExt as _;
use futures::stream::BoxStream;
use host::{Handed, HostArgs, HostError, HostSettings, RuntimeSettings};
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use model::{Digest, InterfaceId, Limits, LockedApp, LockedComponent, Revision, World};
use runtime::wasmtime::Engine;
use runtime::wasmtime::component::Component;
use tokio::net::UnixStream;

use crate::node::Node;

/// The bytes of a guest; fails with what to do where it is not built.
pub(crate) fn guest(name: &str) -> Vec<u8> {
    let dir = std::env::var_os("SIDEREAL_GUESTS")
        .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../target/guests"), PathBuf::from);
    let path = dir.join(format!("{name}.wasm"));
    std::fs::read(&path)
        .unwrap_or_else(|e| panic!("{}: {e}. Run `cargo xtask guests` or set SIDEREAL_GUESTS.", path.display()))
}

fn imports(name: &str) -> Vec<InterfaceId> {
    let engine = Engine::default();
    let component = Component::new(&engine, guest(name)).unwrap();
    component.component_type().imports(&engine).map(|(name, _)| name.parse().unwrap()).collect()
}

pub(crate) struct Rig {
    pub(crate) node: Arc<Node>,
    pub(crate) agent: HostClient,
    pub(crate) dir: tempfile::TempDir,
    host: Option<JoinHandle<Result<(), HostError>>>,
}

impl Rig {
    pub(crate) async fn new() -> Self {
        Self::with(|_| {}).await
    }

    pub(crate) async fn with(change: impl FnOnce(&mut HostSettings)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (node, first) = Node::start();
        let listen = |name: &str| UnixListener::bind(dir.path().join(name)).unwrap();
        let line = UnixListener::bind(api::data_line::socket(&dir.path().join(DATA_SOCKET))).unwrap();
        let handed = Handed { agent: listen(AGENT_SOCKET), data: listen(DATA_SOCKET), line, node: first };
        let runtime = RuntimeSettings { instances: 64, ..RuntimeSettings::default() };
        let mut settings = HostSettings { runtime, ..HostSettings::default() };
        change(&mut settings);
        let args = HostArgs { tenant: "acme".parse().unwrap(), shard: 1 };
        let host = std::thread::spawn(move || host::run_with(args, handed, settings, || Ok::<(), String>(())));
        let agent = HostClient::new(dir.path().join(AGENT_SOCKET));
        let rig = Self { node, agent, dir, host: Some(host) };
        let start = Instant::now();
        while rig.agent.info().await.is_err() {
            assert!(start.elapsed() < Duration::from_secs(60), "the host does not answer");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        rig
    }

    /// One component `main` from a guest.
    pub(crate) fn app(&self, app: &str, name: &str) -> LockedApp {
        self.app_in(app, name, World::P2)
    }

    pub(crate) fn app_in(&self, app: &str, name: &str, world: World) -> LockedApp {
        let digest = self.node.offer(name, world);
        let main = LockedComponent {
            digest,
            size: 1,
            world,
            imports: imports(name),
            exports: Vec::new(),
            config: Default::default(),
            limits: Limits::default(),
            reuse: None,
            config_from: Vec::new(),
            allow_hosts: Vec::new(),
            health: None,
        };
        LockedApp {
            name: app.parse().unwrap(),
            version: None,
            components: [("main".parse().unwrap(), main)].into(),
            providers: Default::default(),
            links: Vec::new(),
            routes: Vec::new(),
            schedules: Default::default(),
        }
    }

    pub(crate) async fn start(&self, app: &LockedApp, revision: u64, load: bool) -> Result<(), Problem> {
        self.agent.start(&app.name, Revision(revision), &StartRequest { app: app.clone(), load }).await
    }

    /// Starts revision 1 of an app and expects it to go well.
    pub(crate) async fn run(&self, app: &LockedApp) {
        self.start(app, 1, true).await.unwrap();
    }

    pub(crate) async fn drain(&self, app: &str, revision: u64, deadline: Duration) -> u64 {
        self.agent.drain_revision(&app.parse().unwrap(), Revision(revision), deadline).await.unwrap().ended
    }

    /// One request on a connection of its own.
    pub(crate) async fn send(&self, request: Request<Full<Bytes>>) -> Result<Response<Incoming>, hyper::Error> {
        let stream = UnixStream::connect(self.dir.path().join(DATA_SOCKET)).await.unwrap();
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        sender.send_request(request).await
    }

    pub(crate) async fn get(&self, route: &str, target: &str) -> Answer {
        self.answer(request(route, target)).await
    }

    pub(crate) async fn answer(&self, request: Request<Full<Bytes>>) -> Answer {
        Answer::of(self.send(request).await.unwrap()).await
    }

    pub(crate) async fn status(&self, app: &str) -> ComponentStatus {
        let status = self.agent.status(1 << 20).await.unwrap();
        let found = status.apps.into_iter().find(|on_host| on_host.app.as_str() == app).expect("the app is here");
        found.components.into_values().next().unwrap()
    }

    pub(crate) async fn logs(&self) -> BoxStream<'static, LogLine> {
        self.agent.logs(|_| None).await.unwrap()
    }

    /// How the host ended.
    pub(crate) async fn ended(&mut self) -> Result<(), HostError> {
        let host = self.host.take().unwrap();
        let joined = tokio::task::spawn_blocking(move || host.join().unwrap());
        tokio::time::timeout(Duration::from_secs(60), joined).await.expect("the host does not end").unwrap()
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        self.node.end();
        if let Some(host) = self.host.take() {
            drop(host.join());
        }
    }
}

pub(crate) fn request(route: &str, target: &str) -> Request<Full<Bytes>> {
    Request::get(target).header("host", "app.localhost:8080").header(ROUTE_HEADER, route).body(Full::default()).unwrap()
}

/// A whole response.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) fault: Option<String>,
    pub(crate) text: String,
}

impl Answer {
    pub(crate) async fn of(response: Response<Incoming>) -> Self {
        let status = response.status().as_u16();
        let fault = response.headers().get("sidereal-fault").map(|fault| fault.to_str().unwrap().to_owned());
        let body = response.into_body().collect().await.unwrap().to_bytes();
        Self { status, fault, text: String::from_utf8_lossy(&body).into_owned() }
    }

    pub(crate) fn ok(text: &str) -> Self {
        Self { status: 200, fault: None, text: text.to_owned() }
    }

    pub(crate) fn fault(&self) -> (u16, &str) {
        (self.status, self.fault.as_deref().unwrap_or_default())
    }
}

/// The next line that `wanted` accepts.
pub(crate) async fn line(logs: &mut BoxStream<'static, LogLine>, wanted: impl Fn(&LogLine) -> bool) -> LogLine {
    let found = async {
        loop {
            let line = logs.next().await.expect("the log goes on");
            if wanted(&line) {
                return line;
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(60), found).await.expect("the line never came")
}

/// Waits for what other tasks bring about.
pub(crate) async fn until<F: Future<Output = bool>>(what: &str, mut done: impl FnMut() -> F) {
    let start = Instant::now();
    while !done().await {
        assert!(start.elapsed() < Duration::from_secs(60), "never happened: {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

pub(crate) fn code(result: Result<(), Problem>) -> Code {
    result.expect_err("it should be refused").code
}

pub(crate) fn digest(text: &str) -> Digest {
    Digest::of(text.as_bytes())
}
