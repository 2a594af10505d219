//! An ingress in front of test hosts on unix sockets, and clients that speak in raw bytes.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use node::ingress::{Gate, Ingress, IngressConfig, RouteEntry, RouteTable, Routes, Shard, ShardSet, Target};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpStream, UnixListener};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// For what happens soon, also on a slow machine with much to do.
pub(super) const PATIENCE: Duration = Duration::from_secs(60);

/// Longer than any test waits.
pub(super) const ENDLESS: Duration = Duration::from_secs(600);

/// Largest request body of the test routes.
pub(super) const BODY_LIMIT: u64 = 1024 * 1024;

/// One request as a host saw it.
#[derive(Debug, Clone)]
pub(super) struct Seen {
    pub(super) method: String,
    pub(super) target: String,
    pub(super) headers: HeaderMap,
    /// Present once the body was read to its end.
    pub(super) body: Option<Bytes>,
}

pub(super) type Record = Arc<Mutex<Vec<Seen>>>;

/// A file beside the sockets of the hosts: once it is there, they answer what they have held back.
const GO: &str = "go";

/// A host: a real HTTP server on a unix socket.
pub(super) struct Host {
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl Host {
    pub(super) fn start(number: u32, socket: &Path, record: Record) -> Self {
        let _ = std::fs::remove_file(socket);
        let listener = UnixListener::bind(socket).unwrap();
        let stop = CancellationToken::new();
        let (stopped, go) = (stop.clone(), socket.with_file_name(GO));
        let task = tokio::spawn(async move {
            loop {
                let stream = tokio::select! {
                    () = stopped.cancelled() => return,
                    accepted = listener.accept() => accepted.unwrap().0,
                };
                let (record, stopped, go) = (record.clone(), stopped.clone(), go.clone());
                tokio::spawn(async move {
                    let service = service_fn(move |request| answer(number, request, record.clone(), go.clone()));
                    // The ingress takes 100 fields from a client and adds its own.
                    let mut server = hyper::server::conn::http1::Builder::new();
                    let serving = server.max_headers(128).serve_connection(TokioIo::new(stream), service);
                    tokio::select! {
                        // Like SIGKILL: every connection is cut.
                        () = stopped.cancelled() => {}
                        _ = serving => {}
                    }
                });
            }
        });
        Self { stop, task }
    }

    /// Cuts all connections and refuses new ones, as a killed process does.
    pub(super) async fn kill(self) {
        self.stop.cancel();
        self.task.await.unwrap();
    }
}

type Answer = Response<BoxBody<Bytes, hyper::Error>>;

async fn answer(number: u32, request: Request<Incoming>, record: Record, go: PathBuf) -> Result<Answer, hyper::Error> {
    let index = {
        let mut record = record.lock().unwrap();
        record.push(Seen {
            method: request.method().to_string(),
            target: request.uri().to_string(),
            headers: request.headers().clone(),
            body: None,
        });
        record.len() - 1
    };
    let full = |text: String| Full::new(Bytes::from(text)).map_err(|never| match never {}).boxed();
    match request.uri().path() {
        // Every piece of the body goes back as soon as it came.
        "/echo" => return Ok(Response::new(request.into_body().boxed())),
        "/hang" => std::future::pending().await,
        "/unread" => {
            let mut response = Response::new(full("enough".into()));
            *response.status_mut() = http::StatusCode::FORBIDDEN;
            return Ok(response);
        }
        "/large" => {
            let piece = Bytes::from(vec![b'x'; 64 * 1024]);
            let pieces = (0..256).map(move |_| Ok(Frame::data(piece.clone())));
            return Ok(Response::new(StreamBody::new(futures::stream::iter(pieces)).boxed()));
        }
        "/held" => {
            while !go.exists() {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        }
        _ => {}
    }
    let text = format!("{} {} from {number}", request.method(), request.uri());
    let no_content = request.uri().path() == "/none";
    let body = request.into_body().collect().await?.to_bytes();
    record.lock().unwrap()[index].body = Some(body);
    let mut response = Response::new(full(if no_content { String::new() } else { text }));
    if no_content {
        *response.status_mut() = http::StatusCode::NO_CONTENT;
    }
    response.headers_mut().insert("sidereal-secret", HeaderValue::from_static("inside"));
    response.headers_mut().insert("x-from-host", HeaderValue::from(number));
    Ok(response)
}

/// An ingress with routes to hosts that exist or not.
pub(super) struct Rig {
    pub(super) ingress: Option<Ingress>,
    pub(super) addr: SocketAddr,
    pub(super) routes: Arc<Routes>,
    pub(super) shards: Arc<ShardSet>,
    pub(super) record: Record,
    pub(super) hosts: VecDeque<Host>,
    pub(super) dir: tempfile::TempDir,
}

impl Rig {
    /// `hosts` shards that answer.
    pub(super) fn new(hosts: u32) -> Self {
        Self::with(hosts, |_| {})
    }

    pub(super) fn with(hosts: u32, configure: impl FnOnce(&mut IngressConfig)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let record = Record::default();
        let sockets: Vec<PathBuf> = (0..hosts).map(|n| dir.path().join(format!("{n}.sock"))).collect();
        let running = (0..hosts).zip(&sockets).map(|(n, socket)| Host::start(n, socket, record.clone())).collect();
        let shards = ShardSet::new((0..hosts).zip(&sockets).map(|(n, socket)| Shard::new(n, socket)).collect());
        let mut rig = Self::to(shards, dir, configure);
        rig.record = record;
        rig.hosts = running;
        rig
    }

    /// An ingress in front of shards the test answers for itself.
    pub(super) fn to(
        shards: Arc<ShardSet>,
        dir: tempfile::TempDir,
        configure: impl FnOnce(&mut IngressConfig),
    ) -> Self {
        let mut config = IngressConfig::new(([127, 0, 0, 1], 0).into());
        config.workers = 1;
        // What a test waits for comes before any of these, but for those that it sets: a connection that is closed is not closed
        // because its time was up.
        (config.header_timeout, config.body_timeout, config.keep_alive) = (ENDLESS, ENDLESS, ENDLESS);
        configure(&mut config);
        let routes = Arc::new(Routes::new(table(&shards, "1")));
        let ingress = Ingress::start(config, Arc::clone(&routes)).unwrap();
        let addr = ingress.addr();
        Self { ingress: Some(ingress), addr, routes, shards, record: Record::default(), hosts: VecDeque::new(), dir }
    }

    pub(super) fn socket(&self, number: u32) -> PathBuf {
        self.dir.path().join(format!("{number}.sock"))
    }

    /// Has the hosts answer what they hold back.
    pub(super) fn release(&self) {
        std::fs::write(self.dir.path().join(GO), "").unwrap();
    }

    pub(super) async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.addr).await.unwrap()
    }

    /// Sends bytes on a connection of their own and reads until the other side closes.
    pub(super) async fn exchange(&self, bytes: impl AsRef<[u8]>) -> String {
        let mut stream = self.connect().await;
        // The ingress may close before it has read everything.
        let _ = stream.write_all(bytes.as_ref()).await;
        read_to_end(&mut stream).await
    }

    /// A GET on a connection of its own.
    pub(super) async fn get(&self, path: &str) -> String {
        self.exchange(format!("GET {path} HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")).await
    }

    /// What the hosts saw since the last look.
    pub(super) fn seen(&self) -> Vec<Seen> {
        std::mem::take(&mut self.record.lock().unwrap())
    }
}

/// The test routes: everything of host `h`, reads only under `/read`, and what lies under `*.wild.test`.
pub(super) fn table(shards: &Arc<ShardSet>, revision: &str) -> RouteTable {
    gated(shards, revision, &Arc::default())
}

/// The same behind a gate.
pub(super) fn gated(shards: &Arc<ShardSet>, revision: &str, gate: &Arc<Gate>) -> RouteTable {
    let target = |component: &str| {
        Arc::new(Target {
            header: HeaderValue::from_str(&format!("shop/{revision}/{component}")).unwrap(),
            shards: Arc::clone(shards),
            preference: 7,
            request_body: BODY_LIMIT,
            gate: Arc::clone(gate),
        })
    };
    let entry = |host: &str, path: &str, methods: &[&str], component: &str| RouteEntry {
        tenant: "acme".parse().unwrap(),
        app: "shop".parse().unwrap(),
        revision: model::Revision(1),
        route: model::Route {
            host: host.into(),
            path: path.into(),
            methods: methods.iter().map(|&method| method.into()).collect(),
            component: component.parse().unwrap(),
        },
        target: target(component),
    };
    RouteTable::build(vec![
        entry("h", "/", &[], "web"),
        entry("h", "/read", &["GET"], "reader"),
        entry("*.wild.test", "/", &[], "wild"),
        entry("[::1]", "/", &[], "six"),
    ])
}

/// Reads until the other side closes; fails the test if it does not.
pub(super) async fn read_to_end(stream: &mut TcpStream) -> String {
    let mut bytes = Vec::new();
    let read = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut bytes)).await;
    let text = String::from_utf8_lossy(&bytes).into_owned();
    assert!(read.is_ok(), "the connection was not closed after: {text}");
    text
}

/// Reads until `end` was read; fails the test if the connection ends first.
pub(super) async fn read_until(stream: &mut TcpStream, end: &str) -> String {
    let mut bytes = Vec::new();
    let reading = async {
        while !bytes.ends_with(end.as_bytes()) {
            bytes.push(stream.read_u8().await.unwrap());
        }
    };
    let read = tokio::time::timeout(PATIENCE, reading).await;
    let text = String::from_utf8_lossy(&bytes).into_owned();
    assert!(read.is_ok(), "no {end:?} in: {text}");
    text
}

/// The status code of a response.
pub(super) fn status(response: &str) -> u16 {
    response.strip_prefix("HTTP/1.1 ").and_then(|rest| rest.get(..3)).and_then(|code| code.parse().ok()).unwrap_or(0)
}

/// The body of a response of known length.
pub(super) fn body(response: &str) -> &str {
    response.split_once("\r\n\r\n").map_or("", |(_, body)| body)
}
