//! The host's side: an agent with its plugin, an allocation's directories and FIFOs.

use std::io::Read as _;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use plugin::contracts::hashicorp::nomad::plugins::base::proto::{
    ConfigSchemaRequest, NomadConfig, NomadDriverConfig, PluginInfoRequest,
};
use plugin::contracts::hashicorp::nomad::plugins::drivers::proto::{
    DestroyTaskRequest, DriverTaskEvent, ExitResult, FingerprintResponse, LinuxResources, Nothing, PortMapping,
    RecoverTaskRequest, Resources, StartTaskRequest, StopTaskRequest, TaskConfig, TaskHandle, TaskRequest,
};
use plugin::contracts::hashicorp::nomad::plugins::shared::hclspec::Spec;
use plugin::contracts::plugin::Empty;
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tonic::{Status, Streaming};

use crate::block::block;
pub use crate::host::{Clients, Process, set, until};

/// The plugin.
pub const PROGRAM: &str = env!("CARGO_BIN_EXE_nomad-driver-wasm");

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

/// A host with its live plugin.
pub struct Agent {
    pub process: Option<Process>,
    pub clients: Clients,
    /// Kept open, as hosts do.
    _fingerprints: Streaming<FingerprintResponse>,
    /// The first fingerprint that says more than that it is not known yet.
    pub first: FingerprintResponse,
    pub events: Arc<Mutex<Vec<DriverTaskEvent>>>,
    pub schema: Spec,
    dir: Arc<tempfile::TempDir>,
    config: Value,
    program: String,
}

impl Agent {
    /// Starts as an agent does: three launches, one after the other.
    pub async fn start() -> Self {
        Self::with(json!({"allow_unsigned": true})).await
    }

    /// As [`Agent::start`], with this agent configuration; the fields the tests need are added.
    pub async fn with(config: Value) -> Self {
        Self::launched(PROGRAM, &[], config).await
    }

    /// As [`Agent::with`], where the agent has these variables in its environment.
    pub async fn within(env: &[(&str, &str)], config: Value) -> Self {
        Self::launched(PROGRAM, env, config).await
    }

    /// As [`Agent::with`], and this is the plugin.
    pub async fn of(program: &str, config: Value) -> Self {
        Self::launched(program, &[], config).await
    }

    /// As [`Agent::of`], where the agent has these variables in its environment. A field that is `null` is not there.
    pub async fn launched(program: &str, env: &[(&str, &str)], config: Value) -> Self {
        let dir = Arc::new(tempfile::Builder::new().prefix("nomad").tempdir().unwrap());
        Self::again((program, env), dir, config).await
    }

    async fn again((program, env): (&str, &[(&str, &str)]), dir: Arc<tempfile::TempDir>, mut config: Value) -> Self {
        let fields = config.as_object_mut().unwrap();
        // Where control groups cannot be made, tasks are run without them; what tests them says that it is not run.
        fields.entry("enforce_resources").or_insert_with(|| drivers::wasm::cgroup::available().into());
        fields.entry("sidereal").or_insert_with(|| sidereal().display().to_string().into());
        fields.entry("state_dir").or_insert_with(|| dir.path().join("state").display().to_string().into());
        fields.retain(|_, value| !value.is_null());

        // What is it?
        let mut process = Process::launch(program, &[]);
        let mut clients = Clients::new(process.connect().await);
        let info = clients.base.plugin_info(PluginInfoRequest {}).await.unwrap().into_inner();
        assert_eq!((info.name.as_str(), info.r#type), ("wasm", 2));
        let schema = clients.base.config_schema(ConfigSchemaRequest {}).await.unwrap().into_inner().spec.unwrap();
        clients.controller.shutdown(Empty {}).await.unwrap();
        assert!(process.ended().success());

        // Does it take its configuration?
        let mut process = Process::launch(program, &[]);
        let mut clients = Clients::new(process.connect().await);
        for _ in 0..2 {
            clients.base.set_config(set(&schema, &config, None)).await.unwrap();
        }
        clients.controller.shutdown(Empty {}).await.unwrap();
        assert!(process.ended().success());

        // The one that stays.
        let (process, clients) = live_in((program, env), &schema, &config).await;
        Self::attached(program, dir, config, schema, Some(process), clients).await
    }

    async fn attached(
        program: &str,
        dir: Arc<tempfile::TempDir>,
        config: Value,
        schema: Spec,
        process: Option<Process>,
        mut clients: Clients,
    ) -> Self {
        let mut fingerprints = clients.driver.fingerprint(Nothing {}).await.unwrap().into_inner();
        let mut first = fingerprints.message().await.unwrap().unwrap();
        while first.health_description.contains("has not answered yet") {
            first = fingerprints.message().await.unwrap().unwrap();
        }
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
        Self {
            process,
            clients,
            _fingerprints: fingerprints,
            first,
            events,
            schema: schema_of_tasks,
            dir,
            config,
            program: program.to_owned(),
        }
    }

    /// The agent ends as on SIGTERM, and another one starts.
    pub async fn restart(mut self) -> Self {
        self.clients.driver.shutdown(Nothing {}).await.unwrap();
        self.clients.controller.shutdown(Empty {}).await.unwrap();
        assert!(self.process.take().unwrap().ended().success());
        Self::again((&self.program, &[]), self.dir.clone(), self.config.clone()).await
    }

    /// The plugin is killed, and launched again.
    pub async fn relaunch(mut self) -> Self {
        drop(self.process.take());
        let schema = agent_schema(&self.program).await;
        let (process, clients) = live(&self.program, &schema, &self.config).await;
        Self::attached(&self.program, self.dir.clone(), self.config.clone(), schema, Some(process), clients).await
    }

    /// The agent is killed; another one finds its plugin and configures nothing.
    pub async fn reattach(mut self) -> Self {
        let process = self.process.take().unwrap();
        process.orphan();
        let schema = agent_schema(&self.program).await;
        let mut clients = Clients::new(process.connect().await);
        clients.base.plugin_info(PluginInfoRequest {}).await.unwrap();
        clients.driver.init(Nothing {}).await.unwrap();
        Self::attached(&self.program, self.dir.clone(), self.config.clone(), schema, Some(process), clients).await
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
        let alloc = self.quiet_alloc(name, guest_name);
        alloc.read();
        alloc
    }

    /// The same, and nobody reads what it writes.
    pub fn quiet_alloc(&self, name: &str, guest_name: &str) -> Alloc {
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
async fn agent_schema(program: &str) -> Spec {
    let mut process = Process::launch(program, &[]);
    let mut clients = Clients::new(process.connect().await);
    let schema = clients.base.config_schema(ConfigSchemaRequest {}).await.unwrap().into_inner().spec.unwrap();
    clients.controller.shutdown(Empty {}).await.unwrap();
    process.ended();
    schema
}

/// The process that stays, configured.
pub async fn live(program: &str, schema: &Spec, config: &Value) -> (Process, Clients) {
    live_in((program, &[]), schema, config).await
}

async fn live_in((program, env): (&str, &[(&str, &str)]), schema: &Spec, config: &Value) -> (Process, Clients) {
    let process = Process::launch(program, env);
    let mut clients = Clients::new(process.connect().await);
    let ports = NomadDriverConfig { client_min_port: 14000, client_max_port: 14512 };
    clients.base.set_config(set(schema, config, Some(NomadConfig { driver: Some(ports) }))).await.unwrap();
    (process, clients)
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
            // The test's own: the control groups of a task, which are the machine's, are called by it.
            id: format!("{}-{name}-alloc/web/00000001", base.file_name().unwrap().display()),
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
        Self { dir, config, stdout: Arc::default(), stderr: Arc::default(), readers: Arc::default(), address }
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

    /// Its port is at this address of the client, and the group has these beside it.
    pub fn at(&mut self, ip: IpAddr, beside: &[(&str, u16)]) {
        self.address.set_ip(ip);
        let ports = &mut self.config.resources.as_mut().unwrap().ports;
        ports.extend(beside.iter().map(|(label, port)| PortMapping {
            label: (*label).to_owned(),
            value: (*port).into(),
            ..PortMapping::default()
        }));
        ports.iter_mut().for_each(|port| port.host_ip = ip.to_string());
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
    crate::ports::free()
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

/// Control groups that tasks of this id have or had.
pub fn groups(id: &str) -> Vec<PathBuf> {
    let short = model::Digest::of(id.as_bytes()).short();
    let roots = ["memory", "cpu", ""].map(|root| Path::new("/sys/fs/cgroup").join(root).join("sidereal-nomad"));
    roots.into_iter().map(|ours| ours.join(&short)).filter(|group| group.exists()).collect()
}

/// The process that runs the task's component: the one that leads no other of its session.
pub fn host_of(pid: i32) -> i32 {
    let members: Vec<i32> =
        drivers::wasm::process::Seen::session(pid).unwrap().iter().map(|seen| seen.identity.pid).collect();
    // One may have ended meanwhile.
    let parent = |pid: i32| -> Option<i32> {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        stat.rsplit_once(") ")?.1.split(' ').nth(1)?.parse().ok()
    };
    let seen: Vec<(i32, i32)> = members.into_iter().filter_map(|pid| Some((pid, parent(pid)?))).collect();
    let leads = |member: i32| seen.iter().any(|(_, parent)| *parent == member);
    seen.iter().map(|(pid, _)| *pid).find(|pid| !leads(*pid)).expect("the task has a host")
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
