//! What the tests share: a dialer that connects, a Redis of the test's own, and guests in a small runtime.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use http_body_util::{BodyExt, Full};
use model::{AppName, Limits, SecretRef, SecretValue, World};
use providers::blobstore::Blobstore;
use providers::config::Config;
use providers::dial::{DialError, Dialer, Dialled, Target};
use providers::keyvalue::KeyValue;
use providers::logging::Logging;
use providers::messaging::Messaging;
use providers::secrets::{Resolver, Revealed, SecretError, Secrets};
use providers::sql::{Sql, WasmcloudPostgres};
use runtime::wasmtime::Engine;
use runtime::wasmtime::component::Component;
use runtime::{Bindings, Capability, LogSink, LogStreamKind, Outbound, Runtime, RuntimeSettings, Sinks, Workload};
use tokio::sync::watch;

/// Takes no spans: what is looked at is what goes out.
struct NoSpans;

impl runtime::trace::SpanSink for NoSpans {
    fn id(&self) -> model::trace::SpanId {
        let text = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b8-01";
        text.parse::<model::trace::TraceContext>().unwrap().span
    }

    fn record(&self, _: &Arc<model::trace::SpanOrigin>, _: model::trace::Span) {}
}

/// Runs a future as a call that is at this place in a trace.
pub(crate) async fn traced<F: Future>(context: &str, work: F) -> F::Output {
    let (app, component) = ("shop".parse().unwrap(), "main".parse().unwrap());
    let origin = Arc::new(model::trace::SpanOrigin { app, revision: model::Revision(1), component });
    let trace = runtime::trace::CallTrace::new(context.parse().unwrap(), origin, Arc::new(NoSpans));
    runtime::trace::within(Some(Arc::new(trace)), work).await
}

/// Connects every name to one address, and counts.
pub(crate) struct Direct {
    pub(crate) address: Mutex<SocketAddr>,
    pub(crate) dials: AtomicU32,
    pub(crate) asked: Mutex<Vec<Target>>,
    pub(crate) refuse: Mutex<Option<DialError>>,
}

impl Direct {
    pub(crate) fn to(address: SocketAddr) -> Arc<Self> {
        Arc::new(Self {
            address: Mutex::new(address),
            dials: AtomicU32::new(0),
            asked: Mutex::default(),
            refuse: Mutex::default(),
        })
    }
}

impl Dialer for Direct {
    fn dial(&self, target: Target) -> BoxFuture<'_, Result<Dialled, DialError>> {
        self.dials.fetch_add(1, SeqCst);
        self.asked.lock().unwrap().push(target);
        let refusal = self.refuse.lock().unwrap().clone();
        let address = *self.address.lock().unwrap();
        async move {
            match refusal {
                // Stands for an address that never answers.
                Some(DialError::TimedOut { .. }) => std::future::pending().await,
                Some(refusal) => Err(refusal),
                None => {
                    let stream = tokio::net::TcpStream::connect(address).await;
                    let stream = stream.map_err(|cause| DialError::Connect(cause.to_string()))?;
                    Ok(Dialled { stream: stream.into(), address: Some(address) })
                }
            }
        }
        .boxed()
    }
}

/// Holds secrets for the test, and tells of every change.
pub(crate) struct Vault {
    values: Mutex<BTreeMap<String, (u64, Vec<u8>)>>,
    changes: watch::Sender<u64>,
    pub(crate) revealed: AtomicU32,
}

impl Vault {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self { values: Mutex::default(), changes: watch::Sender::new(0), revealed: AtomicU32::new(0) })
    }

    pub(crate) fn set(&self, name: &str, value: &str) {
        self.set_bytes(name, value.as_bytes().to_vec());
    }

    pub(crate) fn remove(&self, name: &str) {
        self.values.lock().unwrap().remove(name);
        self.changes.send_modify(|version| *version += 1);
    }

    pub(crate) fn set_bytes(&self, name: &str, value: Vec<u8>) {
        let version = *self.changes.borrow() + 1;
        self.values.lock().unwrap().insert(name.to_owned(), (version, value));
        self.changes.send_replace(version);
    }
}

impl Resolver for Vault {
    fn reveal<'a>(&'a self, _: &'a AppName, secret: &'a SecretRef) -> BoxFuture<'a, Result<Revealed, SecretError>> {
        self.revealed.fetch_add(1, SeqCst);
        let found = self.values.lock().unwrap().get(secret.secret.as_str()).cloned();
        async move {
            let (version, value) = found.ok_or_else(|| SecretError::Missing(secret.secret.to_string()))?;
            Ok(Revealed { value: SecretValue::new(value), version })
        }
        .boxed()
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }
}

/// A Redis on a free port, killed with the test.
pub(crate) struct RedisServer {
    child: Child,
    pub(crate) address: SocketAddr,
    _dir: tempfile::TempDir,
}

impl RedisServer {
    pub(crate) fn start() -> Self {
        let address = crate::ports::free();
        Self::start_at(address, &[])
    }

    pub(crate) fn start_at(address: SocketAddr, more: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let spawn = || {
            Command::new("redis-server")
                .args([
                    "--port",
                    &address.port().to_string(),
                    "--bind",
                    "127.0.0.1",
                    "--save",
                    "",
                    "--appendonly",
                    "no",
                ])
                .args(more)
                .arg("--dir")
                .arg(dir.path())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .unwrap_or_else(|e| {
                    panic!("cannot start redis-server: {e}. Install it (Debian: apt-get install redis-server)")
                })
        };
        let mut child = spawn();
        let start = Instant::now();
        while TcpStream::connect(address).is_err() {
            assert!(start.elapsed() < Duration::from_secs(60), "redis-server does not answer at {address}");
            // Another test's connection may have had the port for a moment.
            if child.try_wait().unwrap().is_some() {
                child = spawn();
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Self { child, address, _dir: dir }
    }

    pub(crate) fn url(&self) -> String {
        format!("redis://{}", self.address)
    }
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// Remembers the log.
#[derive(Default)]
pub(crate) struct Log(pub(crate) Mutex<Vec<(LogStreamKind, String, String)>>);

impl LogSink for Log {
    fn write(&self, _: u64, stream: LogStreamKind, context: &str, bytes: &[u8]) {
        let text = String::from_utf8_lossy(bytes).into_owned();
        self.0.lock().unwrap().push((stream, context.to_owned(), text));
    }
    fn dropped(&self, bytes: u64) {
        panic!("{bytes} bytes of log dropped");
    }
}

/// A guest with what it is given.
pub(crate) struct Guest {
    pub(crate) work: Arc<Workload>,
    pub(crate) log: Arc<Log>,
    _runtime: Runtime,
}

impl Guest {
    pub(crate) fn new(name: &str, bindings: Bindings, outbound: Option<Arc<dyn Outbound>>) -> Self {
        Self::with_room(name, bindings, outbound, 32)
    }

    /// One of which so many calls run at once.
    pub(crate) fn with_room(
        name: &str,
        bindings: Bindings,
        outbound: Option<Arc<dyn Outbound>>,
        instances: u32,
    ) -> Self {
        let dir = std::env::var_os("SIDEREAL_GUESTS")
            .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../target/guests"), PathBuf::from);
        let path = dir.join(format!("{name}.wasm"));
        let wasm = std::fs::read(&path)
            .unwrap_or_else(|e| panic!("{}: {e}. Run `cargo xtask guests` or set SIDEREAL_GUESTS.", path.display()));
        let settings = RuntimeSettings { instances, ..RuntimeSettings::default() };
        let offers: Vec<Box<dyn Capability>> = vec![
            Box::new(KeyValue),
            Box::new(Blobstore),
            Box::new(Config),
            Box::new(Logging),
            Box::new(Secrets),
            Box::new(Messaging),
            Box::new(Sql),
            Box::new(WasmcloudPostgres),
        ];
        let runtime = Runtime::new(settings, offers).unwrap();
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&runtime::compile(&wasm, World::P2).unwrap()).unwrap();
        let code = runtime.load(World::P2, file).unwrap();
        let engine = Engine::default();
        let component = Component::new(&engine, wasm).unwrap();
        let imports: Vec<_> =
            component.component_type().imports(&engine).map(|(name, _)| name.parse().unwrap()).collect();
        let linked = runtime.link(&code, &imports).unwrap();
        let log = Arc::new(Log::default());
        let sinks = Sinks { log: log.clone(), outbound, sockets: None };
        let work = Workload::new(linked, Limits::default(), None, Arc::new(bindings), sinks);
        Self { work, log, _runtime: runtime }
    }

    /// Status and body of a GET.
    pub(crate) async fn get(&self, target: &str) -> (u16, String) {
        let request =
            http::Request::get(target).header("host", "test.localhost").body(Full::<Bytes>::default()).unwrap();
        let response = self.work.handle(request).await.unwrap();
        let status = response.status().as_u16();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        (status, String::from_utf8(body.to_vec()).unwrap())
    }
}

pub(crate) fn config(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

/// A server that says one thing whatever it is asked; an empty answer is none.
pub(crate) struct Scripted {
    pub(crate) address: SocketAddr,
    task: tokio::task::JoinHandle<()>,
}

impl Scripted {
    pub(crate) async fn start(answer: &str) -> Self {
        Self::with(answer.as_bytes().to_vec(), None).await
    }

    /// After `head`, pieces of `length` bytes in `frame` and a line's end, for as long as somebody reads them.
    pub(crate) async fn endless(head: &str, frame: &str, length: usize) -> Self {
        let mut piece = frame.as_bytes().to_vec();
        piece.extend(vec![b'x'; length]);
        piece.extend(b"\r\n");
        Self::with(head.as_bytes().to_vec(), Some(piece)).await
    }

    async fn with(answer: Vec<u8>, piece: Option<Vec<u8>>) -> Self {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let task = tokio::spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let (answer, piece) = (answer.clone(), piece.clone());
                tokio::spawn(async move {
                    let mut request = vec![0; 64 << 10];
                    while stream.read(&mut request).await.is_ok_and(|n| n > 0) {
                        if stream.write_all(&answer).await.is_err() {
                            return;
                        }
                        while let Some(piece) = &piece {
                            if stream.write_all(piece).await.is_err() {
                                return;
                            }
                        }
                    }
                });
            }
        });
        Self { address, task }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }
}

impl Drop for Scripted {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// One request of an operator, past everything that is tested: status and body.
pub(crate) fn plain_http(
    address: SocketAddr,
    method: &str,
    path: &str,
    header: (&str, &str),
    body: &str,
) -> Option<(u16, String)> {
    use std::io::Read as _;
    let mut stream = TcpStream::connect(address).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(60))).ok()?;
    let (name, value) = header;
    let length = body.len();
    write!(stream, "{method} {path} HTTP/1.0\r\nhost: {address}\r\n{name}: {value}\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n{body}").ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    Some((head.split(' ').nth(1)?.parse().ok()?, body.to_owned()))
}

/// Says what was not tested, and what was missing: here, and at the end of `cargo xtask test`.
pub(crate) fn not_run(what: &str) {
    println!("NOT RUN: {what}");
    let Some(list) = std::env::var_os("SIDEREAL_NOT_RUN") else { return };
    let list = std::fs::OpenOptions::new().create(true).append(true).open(list);
    std::io::Write::write_all(&mut list.unwrap(), format!("{what}\n").as_bytes()).unwrap();
}
