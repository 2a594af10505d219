//! What the tests share: guests from `cargo xtask guests`, a runtime with a small pool, and a sink that remembers.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use model::app::Reuse;
use model::{InterfaceId, Limits, World};
use runtime::wasmtime::component::{Component, Linker};
use runtime::{
    Bindings, Capability, Code, Ctx, Fault, LogSink, LogStreamKind, Outbound, ResponseBody, Runtime, RuntimeSettings,
    Sinks, Workload,
};

/// The bytes of a guest; fails with what to do where it is not built.
pub(crate) fn guest(name: &str) -> Vec<u8> {
    let dir = std::env::var_os("SIDEREAL_GUESTS")
        .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../target/guests"), PathBuf::from);
    let path = dir.join(format!("{name}.wasm"));
    std::fs::read(&path)
        .unwrap_or_else(|e| panic!("{}: {e}. Run `cargo xtask guests` or set SIDEREAL_GUESTS.", path.display()))
}

/// Compiled code of a guest, as a file like those of the node's cache. Compiled once for all tests.
pub(crate) fn compiled(name: &str, world: World) -> std::fs::File {
    type Done = BTreeMap<(String, World), Arc<Vec<u8>>>;
    static DONE: OnceLock<Mutex<Done>> = OnceLock::new();
    let code = {
        let mut done = DONE.get_or_init(Mutex::default).lock().unwrap();
        done.entry((name.to_owned(), world))
            .or_insert_with(|| Arc::new(runtime::compile(&guest(name), world).unwrap()))
            .clone()
    };
    file(&code)
}

pub(crate) fn file(bytes: &[u8]) -> std::fs::File {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    file
}

/// What the guest `probe` imports beside WASI: answers of `wasi:config` from a binding, `wasi:logging` to the log.
pub(crate) struct Extras;

#[derive(Default)]
pub(crate) struct Config(pub BTreeMap<String, String>);

#[derive(
    runtime::wasmtime::component::ComponentType, runtime::wasmtime::component::Lower, runtime::wasmtime::component::Lift,
)]
#[component(variant)]
enum ConfigError {
    #[component(name = "upstream")]
    Upstream(String),
    #[component(name = "io")]
    Io(String),
}

#[expect(dead_code, reason = "lifted from the guest's number, never written out")]
#[derive(runtime::wasmtime::component::ComponentType, runtime::wasmtime::component::Lift, Clone, Copy)]
#[component(enum)]
#[repr(u8)]
enum Level {
    #[component(name = "trace")]
    Trace,
    #[component(name = "debug")]
    Debug,
    #[component(name = "info")]
    Info,
    #[component(name = "warn")]
    Warn,
    #[component(name = "error")]
    Error,
    #[component(name = "critical")]
    Critical,
}

impl Capability for Extras {
    fn interfaces(&self) -> &'static [&'static str] {
        &["wasi:config/store@0.2.0-rc.1", "wasi:logging/logging@0.1.0-draft"]
    }

    fn link(&self, linker: &mut Linker<Ctx>) -> runtime::wasmtime::Result<()> {
        let mut config = linker.instance("wasi:config/store@0.2.0-rc.1")?;
        config.func_wrap("get", |store, (key,): (String,)| {
            let config = store.data().binding::<Config>();
            let answer: Result<Option<String>, ConfigError> = match config {
                Some(config) => Ok(config.0.get(&key).cloned()),
                None => Err(ConfigError::Upstream("nothing bound".to_owned())),
            };
            Ok((answer,))
        })?;
        config.func_wrap("get-all", |store, (): ()| {
            let all = store.data().binding::<Config>().map(|c| c.0.clone().into_iter().collect()).unwrap_or_default();
            Ok((Ok::<Vec<(String, String)>, ConfigError>(all),))
        })?;
        let mut logging = linker.instance("wasi:logging/logging@0.1.0-draft")?;
        logging.func_wrap("log", |mut store, (level, context, text): (Level, String, String)| {
            let stream = match level {
                Level::Trace => LogStreamKind::Trace,
                Level::Debug => LogStreamKind::Debug,
                Level::Info => LogStreamKind::Info,
                Level::Warn => LogStreamKind::Warn,
                Level::Error => LogStreamKind::Error,
                Level::Critical => LogStreamKind::Critical,
            };
            store.data_mut().log(stream, &context, text.as_bytes());
            Ok(())
        })
    }
}

/// Remembers the log.
#[derive(Default)]
pub(crate) struct Log {
    pub(crate) lines: Mutex<Vec<(LogStreamKind, String, String)>>,
    pub(crate) bytes: AtomicU64,
    pub(crate) longest: AtomicU64,
    pub(crate) dropped: AtomicU64,
}

impl LogSink for Log {
    fn write(&self, _: u64, stream: LogStreamKind, context: &str, bytes: &[u8]) {
        self.bytes.fetch_add(bytes.len() as u64, SeqCst);
        self.longest.fetch_max(bytes.len() as u64, SeqCst);
        let text = String::from_utf8_lossy(bytes).into_owned();
        self.lines.lock().unwrap().push((stream, context.to_owned(), text));
    }
    fn dropped(&self, bytes: u64) {
        self.dropped.fetch_add(bytes, SeqCst);
    }
}

/// A runtime and what its workloads are given.
pub(crate) struct Rig {
    pub(crate) runtime: Runtime,
    pub(crate) log: Arc<Log>,
    pub(crate) limits: Limits,
    pub(crate) reuse: Option<Reuse>,
    pub(crate) outbound: Option<Arc<dyn Outbound>>,
    pub(crate) bindings: Bindings,
}

impl Rig {
    pub(crate) fn new() -> Self {
        let settings = RuntimeSettings { instances: 32, ..RuntimeSettings::default() };
        Self {
            runtime: Runtime::new(settings, vec![Box::new(Extras)]).unwrap(),
            log: Arc::default(),
            limits: Limits::default(),
            reuse: None,
            outbound: None,
            bindings: Bindings::new(),
        }
    }

    pub(crate) fn load(&self, name: &str, world: World) -> Code {
        self.runtime.load(world, compiled(name, world)).unwrap()
    }

    pub(crate) fn workload_in(&self, name: &str, world: World) -> Arc<Workload> {
        let code = self.load(name, world);
        let linked = self.runtime.link(&code, &imports(name)).unwrap();
        let sinks = Sinks { log: self.log.clone(), outbound: self.outbound.clone(), sockets: None };
        Workload::new(linked, self.limits, self.reuse, Arc::new(self.bindings.clone()), sinks)
    }

    pub(crate) fn workload(&self, name: &str) -> Arc<Workload> {
        self.workload_in(name, World::P2)
    }
}

/// The imports of a guest, as the artifact says them.
pub(crate) fn imports(name: &str) -> Vec<InterfaceId> {
    let engine = runtime::wasmtime::Engine::default();
    let component = Component::new(&engine, guest(name)).unwrap();
    component.component_type().imports(&engine).map(|(name, _)| name.parse().unwrap()).collect()
}

pub(crate) fn get(target: &str) -> http::Request<Full<Bytes>> {
    http::Request::get(target).header("host", "test.localhost").body(Full::default()).unwrap()
}

/// Status and whole body of a GET.
pub(crate) async fn call(work: &Arc<Workload>, target: &str) -> Result<(u16, String), Fault> {
    let response = work.handle(get(target)).await?;
    let status = response.status().as_u16();
    Ok((status, text(response.into_body()).await?))
}

pub(crate) async fn text(body: ResponseBody) -> Result<String, Fault> {
    Ok(String::from_utf8(body.collect().await?.to_bytes().to_vec()).unwrap())
}

/// Waits for a condition that other tasks bring about.
pub(crate) async fn until(what: &str, mut done: impl FnMut() -> bool) {
    let start = std::time::Instant::now();
    while !done() {
        assert!(start.elapsed() < Duration::from_secs(60), "never happened: {what}");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}
