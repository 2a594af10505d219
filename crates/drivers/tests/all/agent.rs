//! The host's side: launching the plugin, its handshake, its clients, an allocation's directories and FIFOs.

use std::io::{BufRead as _, BufReader, Read as _};
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use drivers::contracts::grpc::health::v1::health_client::HealthClient;
use drivers::contracts::hashicorp::nomad::plugins::base::proto::base_plugin_client::BasePluginClient;
use drivers::contracts::hashicorp::nomad::plugins::base::proto::{
    ConfigSchemaRequest, NomadConfig, NomadDriverConfig, PluginInfoRequest, SetConfigRequest,
};
use drivers::contracts::hashicorp::nomad::plugins::drivers::proto::driver_client::DriverClient;
use drivers::contracts::hashicorp::nomad::plugins::drivers::proto::{
    DestroyTaskRequest, DriverTaskEvent, ExitResult, FingerprintResponse, LinuxResources, Nothing, PortMapping,
    RecoverTaskRequest, Resources, StartTaskRequest, StopTaskRequest, TaskConfig, TaskHandle, TaskRequest,
};
use drivers::contracts::hashicorp::nomad::plugins::shared::hclspec::Spec;
use drivers::contracts::plugin::Empty;
use drivers::contracts::plugin::grpc_broker_client::GrpcBrokerClient;
use drivers::contracts::plugin::grpc_controller_client::GrpcControllerClient;
use drivers::contracts::plugin::grpc_stdio_client::GrpcStdioClient;
use drivers::plugin::handshake::{COOKIE, COOKIE_NAME};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::{TcpStream, UnixStream};
use tonic::transport::{Channel, Endpoint};
use tonic::{Status, Streaming};

use crate::block::block;

/// The largest message, as hosts have it.
const MAX: usize = i32::MAX as usize;

/// The program `sidereal` that the tests run tasks with.
pub fn sidereal() -> PathBuf {
    let path = std::env::var_os("SIDEREAL_BIN")
        .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../target/release/sidereal"), PathBuf::from);
    let path = path.canonicalize().unwrap_or(path);
    assert!(path.is_file(), "no binary at {}: run `cargo xtask test`, or build with --release first", path.display());
    path
}

/// A guest that `cargo xtask guests` builds.
pub fn guest(name: &str) -> PathBuf {
    let dir = std::env::var_os("SIDEREAL_GUESTS")
        .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../target/guests"), PathBuf::from);
    let path = dir.join(format!("{name}.wasm"));
    assert!(path.is_file(), "no guest at {}: run `cargo xtask guests`", path.display());
    path
}

/// A running plugin process.
pub struct Process {
    child: Child,
    /// What it said on stderr.
    pub log: Arc<Mutex<String>>,
    /// The handshake line.
    pub line: String,
    /// What it printed on stdout after that line.
    pub rest: Arc<Mutex<String>>,
    /// How long the line took.
    pub took: Duration,
    deaf: Arc<AtomicBool>,
}

impl Process {
    /// Launches the plugin with the environment agents give it, changed by `env`.
    pub fn launch(env: &[(&str, &str)]) -> Self {
        let begun = Instant::now();
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_nomad-driver-wasm"));
        command
            .env(COOKIE_NAME, COOKIE)
            .env("PLUGIN_PROTOCOL_VERSIONS", "2")
            .env("PLUGIN_MIN_PORT", "10000")
            .env("PLUGIN_MAX_PORT", "25000")
            .env_remove("RUST_BACKTRACE")
            .envs(env.iter().copied())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let log = Arc::new(Mutex::new(String::new()));
        let mut stderr = BufReader::new(child.stderr.take().unwrap());
        let deaf = Arc::new(AtomicBool::new(false));
        let (lines, leaves) = (log.clone(), deaf.clone());
        std::thread::spawn(move || {
            let mut line = String::new();
            while stderr.read_line(&mut line).is_ok_and(|count| count > 0) {
                lines.lock().unwrap().push_str(&std::mem::take(&mut line));
                if leaves.load(SeqCst) {
                    break;
                }
            }
        });
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        stdout.read_line(&mut line).unwrap();
        let took = begun.elapsed();
        let rest = Arc::new(Mutex::new(String::new()));
        let more = rest.clone();
        std::thread::spawn(move || {
            let mut text = String::new();
            drop(stdout.read_to_string(&mut text));
            more.lock().unwrap().push_str(&text);
        });
        Self { child, log, line: line.trim_end().to_owned(), rest, took, deaf }
    }

    /// Its host is gone: after the next line nobody reads its log any more.
    pub fn orphan(&self) {
        self.deaf.store(true, SeqCst);
    }

    pub fn pid(&self) -> i32 {
        i32::try_from(self.child.id()).unwrap()
    }

    pub fn signal(&self, signal: rustix::process::Signal) {
        rustix::process::kill_process(rustix::process::Pid::from_raw(self.pid()).unwrap(), signal).unwrap();
    }

    pub fn running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// Waits for its end.
    pub fn ended(&mut self, within: Duration) -> ExitStatus {
        let until = Instant::now() + within;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < until, "the plugin does not end within {within:?}: {}", self.log.lock().unwrap());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// A connection as hosts make it: at once, without waiting for anything after the line.
    pub async fn connect(&self) -> Channel {
        connect(&self.line).await
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// Connects to where a handshake line says.
pub async fn connect(line: &str) -> Channel {
    let fields: Vec<String> = line.split('|').map(str::to_owned).collect();
    assert!(fields.len() >= 5 && fields[0] == "1" && fields[1] == "2" && fields[4] == "grpc", "{line}");
    let (network, address) = (fields[2].clone(), fields[3].clone());
    let endpoint = Endpoint::from_static("http://plugin.local");
    match network.as_str() {
        "unix" => {
            let service = tower::service_fn(move |_| {
                let address = address.clone();
                async move { UnixStream::connect(address).await.map(TokioIo::new) }
            });
            endpoint.connect_with_connector(service).await.unwrap()
        }
        "tcp" => {
            let service = tower::service_fn(move |_| {
                let address = address.clone();
                async move { TcpStream::connect(address).await.map(TokioIo::new) }
            });
            endpoint.connect_with_connector(service).await.unwrap()
        }
        other => panic!("a plugin on the network {other}"),
    }
}

/// The clients of one connection.
#[derive(Clone)]
pub struct Clients {
    pub base: BasePluginClient<Channel>,
    pub driver: DriverClient<Channel>,
    pub controller: GrpcControllerClient<Channel>,
    pub broker: GrpcBrokerClient<Channel>,
    pub stdio: GrpcStdioClient<Channel>,
    pub health: HealthClient<Channel>,
}

impl Clients {
    pub fn new(channel: Channel) -> Self {
        Self {
            base: BasePluginClient::new(channel.clone()),
            driver: DriverClient::new(channel.clone()).max_decoding_message_size(MAX).max_encoding_message_size(MAX),
            controller: GrpcControllerClient::new(channel.clone()),
            broker: GrpcBrokerClient::new(channel.clone()),
            stdio: GrpcStdioClient::new(channel.clone()),
            health: HealthClient::new(channel),
        }
    }
}

/// A host with its live plugin.
pub struct Agent {
    pub process: Option<Process>,
    pub clients: Clients,
    /// Kept open, as hosts do.
    _fingerprints: Streaming<FingerprintResponse>,
    pub first: FingerprintResponse,
    pub events: Arc<Mutex<Vec<DriverTaskEvent>>>,
    pub schema: Spec,
    dir: Arc<tempfile::TempDir>,
    config: Value,
}

impl Agent {
    /// Starts as an agent does: three launches, one after the other.
    pub async fn start() -> Self {
        Self::with(json!({"allow_unsigned": true})).await
    }

    /// As [`Agent::start`], with this agent configuration; the fields the tests need are added.
    pub async fn with(config: Value) -> Self {
        let dir = Arc::new(tempfile::Builder::new().prefix("nomad").tempdir().unwrap());
        Self::again(dir, config).await
    }

    async fn again(dir: Arc<tempfile::TempDir>, mut config: Value) -> Self {
        let fields = config.as_object_mut().unwrap();
        // Where control groups cannot be made, tasks are run without them; what tests them says that it is not run.
        fields.entry("enforce_resources").or_insert_with(|| drivers::wasm::cgroup::available().into());
        fields.entry("sidereal").or_insert_with(|| sidereal().display().to_string().into());
        fields.entry("state_dir").or_insert_with(|| dir.path().join("state").display().to_string().into());

        // What is it?
        let mut process = Process::launch(&[]);
        let mut clients = Clients::new(process.connect().await);
        let info = clients.base.plugin_info(PluginInfoRequest {}).await.unwrap().into_inner();
        assert_eq!((info.name.as_str(), info.r#type), ("wasm", 2));
        let schema = clients.base.config_schema(ConfigSchemaRequest {}).await.unwrap().into_inner().spec.unwrap();
        clients.controller.shutdown(Empty {}).await.unwrap();
        assert!(process.ended(Duration::from_secs(2)).success());

        // Does it take its configuration?
        let mut process = Process::launch(&[]);
        let mut clients = Clients::new(process.connect().await);
        for _ in 0..2 {
            clients.base.set_config(set(&schema, &config, None)).await.unwrap();
        }
        clients.controller.shutdown(Empty {}).await.unwrap();
        assert!(process.ended(Duration::from_secs(2)).success());

        // The one that stays.
        let (process, clients) = live(&schema, &config).await;
        Self::attached(dir, config, schema, Some(process), clients).await
    }

    async fn attached(
        dir: Arc<tempfile::TempDir>,
        config: Value,
        schema: Spec,
        process: Option<Process>,
        mut clients: Clients,
    ) -> Self {
        let begun = Instant::now();
        let mut fingerprints = clients.driver.fingerprint(Nothing {}).await.unwrap().into_inner();
        let first = fingerprints.message().await.unwrap().unwrap();
        assert!(begun.elapsed() < Duration::from_secs(20), "the first fingerprint took {:?}", begun.elapsed());
        let mut stream = clients.driver.task_events(Nothing {}).await.unwrap().into_inner();
        let events = Arc::new(Mutex::new(Vec::new()));
        let seen = events.clone();
        tokio::spawn(async move {
            while let Ok(Some(event)) = stream.message().await {
                seen.lock().unwrap().push(event);
            }
        });
        let schema_of_tasks = clients.driver.task_config_schema(Nothing {}).await.unwrap().into_inner().spec.unwrap();
        clients.driver.capabilities(Nothing {}).await.unwrap();
        drop(schema);
        Self { process, clients, _fingerprints: fingerprints, first, events, schema: schema_of_tasks, dir, config }
    }

    /// The agent ends as on SIGTERM, and another one starts.
    pub async fn restart(mut self) -> Self {
        self.clients.driver.shutdown(Nothing {}).await.unwrap();
        self.clients.controller.shutdown(Empty {}).await.unwrap();
        assert!(self.process.take().unwrap().ended(Duration::from_secs(2)).success());
        Self::again(self.dir.clone(), self.config.clone()).await
    }

    /// The plugin is killed, and launched again.
    pub async fn relaunch(mut self) -> Self {
        drop(self.process.take());
        let schema = agent_schema().await;
        let (process, clients) = live(&schema, &self.config).await;
        Self::attached(self.dir.clone(), self.config.clone(), schema, Some(process), clients).await
    }

    /// The agent is killed; another one finds its plugin and configures nothing.
    pub async fn reattach(mut self) -> Self {
        let process = self.process.take().unwrap();
        process.orphan();
        let schema = agent_schema().await;
        let mut clients = Clients::new(process.connect().await);
        clients.base.plugin_info(PluginInfoRequest {}).await.unwrap();
        clients.driver.init(Nothing {}).await.unwrap();
        Self::attached(self.dir.clone(), self.config.clone(), schema, Some(process), clients).await
    }

    pub fn state_dir(&self) -> PathBuf {
        self.dir.path().join("state")
    }

    /// The directory of a task, as the plugin names it.
    pub fn task_state(&self, id: &str) -> PathBuf {
        self.state_dir().join("tasks").join(model::Digest::of(id.as_bytes()).short())
    }

    /// Directories that tasks left.
    pub fn left(&self) -> Vec<PathBuf> {
        let Ok(entries) = std::fs::read_dir(self.state_dir().join("tasks")) else { return Vec::new() };
        entries.flatten().map(|entry| entry.path()).collect()
    }

    /// An allocation with a task that serves this guest.
    pub fn alloc(&self, name: &str, guest_name: &str) -> Alloc {
        let alloc = Alloc::new(self.dir.path(), name, &self.schema);
        std::fs::copy(guest(guest_name), alloc.task_dir().join("local/app.wasm")).unwrap();
        alloc
    }

    pub async fn start_task(&mut self, task: &TaskConfig) -> Result<TaskHandle, Status> {
        let answer = self.clients.driver.start_task(StartTaskRequest { task: Some(task.clone()) }).await?;
        Ok(answer.into_inner().handle.unwrap())
    }

    /// Recovers a task as a new agent does: without its id, and without what the client does not keep.
    pub async fn recover(&mut self, handle: &TaskHandle) -> Result<(), Status> {
        let mut handle = handle.clone();
        handle.config.as_mut().unwrap().msgpack_driver_config.clear();
        let request = RecoverTaskRequest { task_id: String::new(), handle: Some(handle) };
        self.clients.driver.recover_task(request).await.map(drop)
    }

    pub async fn wait(&self, id: &str) -> Result<ExitResult, Status> {
        let mut driver = self.clients.driver.clone();
        let answer = driver.wait_task(TaskRequest { task_id: id.to_owned() }).await?.into_inner();
        assert_eq!(answer.err, "");
        Ok(answer.result.unwrap())
    }

    pub async fn stop(&mut self, id: &str, timeout: Duration, signal: &str) -> Result<(), Status> {
        let timeout = Some(timeout.try_into().unwrap());
        let request = StopTaskRequest { task_id: id.to_owned(), timeout, signal: signal.to_owned() };
        self.clients.driver.stop_task(request).await.map(drop)
    }

    pub async fn destroy(&mut self, id: &str, force: bool) -> Result<(), Status> {
        let request = DestroyTaskRequest { task_id: id.to_owned(), force };
        self.clients.driver.destroy_task(request).await.map(drop)
    }
}

/// The agent's schema, from a process that is ended right after.
async fn agent_schema() -> Spec {
    let mut process = Process::launch(&[]);
    let mut clients = Clients::new(process.connect().await);
    let schema = clients.base.config_schema(ConfigSchemaRequest {}).await.unwrap().into_inner().spec.unwrap();
    clients.controller.shutdown(Empty {}).await.unwrap();
    process.ended(Duration::from_secs(2));
    schema
}

/// The process that stays, configured.
async fn live(schema: &Spec, config: &Value) -> (Process, Clients) {
    let process = Process::launch(&[]);
    let mut clients = Clients::new(process.connect().await);
    let ports = NomadDriverConfig { client_min_port: 14000, client_max_port: 14512 };
    clients.base.set_config(set(schema, config, Some(NomadConfig { driver: Some(ports) }))).await.unwrap();
    (process, clients)
}

/// A configuration as agents send it.
pub fn set(schema: &Spec, config: &Value, nomad_config: Option<NomadConfig>) -> SetConfigRequest {
    let msgpack_config = block(schema, config).unwrap();
    SetConfigRequest { msgpack_config, nomad_config, plugin_api_version: "v0.1.0".into() }
}

/// An allocation's directories, the FIFOs of its one task, and whoever reads them.
pub struct Alloc {
    dir: PathBuf,
    pub config: TaskConfig,
    pub stdout: Arc<Mutex<String>>,
    pub stderr: Arc<Mutex<String>>,
    /// Readers of its FIFOs.
    readers: Arc<AtomicUsize>,
    pub address: SocketAddr,
}

impl Alloc {
    fn new(base: &Path, name: &str, schema: &Spec) -> Self {
        let dir = base.join(format!("alloc-{name}"));
        for folder in ["alloc/data", "alloc/logs", "alloc/tmp", "web/local", "web/secrets", "web/tmp"] {
            std::fs::create_dir_all(dir.join(folder)).unwrap();
            // As agents make them: for whatever user a task has.
            std::fs::set_permissions(dir.join(folder), PermissionsExt::from_mode(0o777)).unwrap();
        }
        let fifo = |stream: &str| {
            let path = dir.join(format!("alloc/logs/.web.{stream}.fifo"));
            let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
            if !path.exists() {
                rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, mode, 0).unwrap();
            }
            path
        };
        let (out, err) = (fifo("stdout"), fifo("stderr"));
        let address = free_address();
        let port = PortMapping {
            label: "http".into(),
            value: address.port().into(),
            to: 0,
            host_ip: address.ip().to_string(),
        };
        let config = TaskConfig {
            id: format!("{name}-alloc/web/00000001"),
            name: "web".into(),
            env: [("NOMAD_TASK_DIR".to_owned(), "/local".to_owned())].into(),
            resources: Some(Resources {
                ports: vec![port],
                linux_resources: Some(LinuxResources { cpu_shares: 100, ..LinuxResources::default() }),
                ..Resources::default()
            }),
            alloc_dir: dir.display().to_string(),
            stdout_path: out.display().to_string(),
            stderr_path: err.display().to_string(),
            task_group_name: "group".into(),
            job_name: "job".into(),
            alloc_id: format!("{name}-alloc"),
            msgpack_driver_config: block(schema, &json!({"component": "local/app.wasm", "http": {"port": "http"}}))
                .unwrap(),
            ..TaskConfig::default()
        };
        let alloc =
            Self { dir, config, stdout: Arc::default(), stderr: Arc::default(), readers: Arc::default(), address };
        alloc.read();
        alloc
    }

    pub fn task_dir(&self) -> PathBuf {
        self.dir.join("web")
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    pub fn id(&self) -> &str {
        &self.config.id
    }

    /// Another run of the task, as after a restart.
    pub fn next_id(&mut self) {
        let (head, number) = self.config.id.rsplit_once('/').unwrap();
        let number: u32 = number.parse().unwrap();
        self.config.id = format!("{head}/{:08}", number + 1);
    }

    /// Reads both FIFOs from now on, as `logmon` does.
    pub fn read(&self) {
        for (path, into) in [(&self.config.stdout_path, &self.stdout), (&self.config.stderr_path, &self.stderr)] {
            let (path, into, readers) = (PathBuf::from(path), into.clone(), self.readers.clone());
            readers.fetch_add(1, SeqCst);
            std::thread::spawn(move || {
                let mut file = std::fs::File::open(path).unwrap();
                let mut chunk = [0; 4096];
                // Every writer that closes ends the reading; `logmon` opens again.
                while let Ok(count @ 1..) = file.read(&mut chunk) {
                    into.lock().unwrap().push_str(&String::from_utf8_lossy(&chunk[..count]));
                }
                readers.fetch_sub(1, SeqCst);
            });
        }
    }

    /// Waits until everything was read that a task wrote which is gone.
    pub async fn ended(&self) {
        for path in [&self.config.stdout_path, &self.config.stderr_path] {
            // A reader of a FIFO that nobody ever opened would wait for ever.
            let flags = rustix::fs::OFlags::WRONLY | rustix::fs::OFlags::NONBLOCK;
            drop(rustix::fs::open(path.as_str(), flags, rustix::fs::Mode::empty()));
        }
        until("the end of the output", || self.readers.load(SeqCst) == 0).await;
    }

    /// Asks the task.
    pub async fn get(&self, path: &str) -> Result<(u16, String), String> {
        get(self.address, path).await
    }
}

/// An address nobody listens at; held by nobody, so another test may take it: ports are chosen from far apart.
fn free_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

/// One request on its own connection.
pub async fn get(address: SocketAddr, path: &str) -> Result<(u16, String), String> {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let mut stream = TcpStream::connect(address).await.map_err(|cause| cause.to_string())?;
    let request = format!("GET {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.map_err(|cause| cause.to_string())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.map_err(|cause| cause.to_string())?;
    let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok()).ok_or(answer.clone())?;
    Ok((status, answer.split_once("\r\n\r\n").map_or_else(String::new, |(_, body)| body.to_owned())))
}

/// Waits until something is so.
pub async fn until(what: &str, mut so: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(20);
    while !so() {
        assert!(Instant::now() < end, "{what} did not happen");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Control groups that tasks of this id have or had.
pub fn groups(id: &str) -> Vec<PathBuf> {
    let short = model::Digest::of(id.as_bytes()).short();
    let roots = ["memory", "cpu", ""].map(|root| Path::new("/sys/fs/cgroup").join(root).join("sidereal-nomad"));
    roots.into_iter().map(|ours| ours.join(&short)).filter(|group| group.exists()).collect()
}

/// The process that runs the task's component: the one that leads no other of its session.
pub fn host_of(pid: i32) -> i32 {
    let members: Vec<i32> = drivers::wasm::process::Seen::session(pid).iter().map(|seen| seen.identity.pid).collect();
    let parent = |pid: i32| -> i32 {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        stat.rsplit_once(") ").unwrap().1.split(' ').nth(1).unwrap().parse().unwrap()
    };
    let parents: Vec<i32> = members.iter().map(|pid| parent(*pid)).collect();
    members.into_iter().find(|member| !parents.contains(member)).expect("the task has a host")
}

/// A line of what the kernel says of a process.
pub fn status(pid: i32, field: &str) -> String {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':')).unwrap();
    line.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// The process of a started task.
pub fn pid_of(handle: &TaskHandle) -> i32 {
    let state: Value = serde_json::from_slice(&handle.driver_state).unwrap();
    i32::try_from(state["state"]["process"]["pid"].as_i64().unwrap()).unwrap()
}
