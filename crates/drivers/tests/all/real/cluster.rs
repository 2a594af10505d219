//! A server and its clients, each client an agent of its own with a plugin of its own, and everything they start.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use super::job::Job;
use crate::agent::{guest, sidereal};

/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(60);

const AGENT: &str = r#"
name                 = "NAME"
data_dir             = "DIR/NAME"
bind_addr            = "127.0.0.1"
disable_update_check = true
ports {
  http = HTTP
  rpc  = RPC
  serf = SERF
}
advertise {
  http = "127.0.0.1"
  rpc  = "127.0.0.1"
  serf = "127.0.0.1"
}
"#;

const SERVER: &str = r#"
datacenter = "main"
server {
  enabled          = true
  bootstrap_expect = 1
}
"#;

const CLIENT: &str = r#"
datacenter = "NAME"
plugin_dir = "DIR/plugins-NAME"
client {
  enabled           = true
  network_interface = "INTERFACE"
  servers           = ["127.0.0.1:SERVER"]
  options           = { "fingerprint.blacklist" = "env_aws,env_gce,env_azure" }
  cni_path          = "DIR/cni"
  cni_config_dir    = "DIR/networks"
  template {
    disable_file_sandbox = true
  }
  host_volume "volume" {
    path = "DIR/volume"
  }
}
plugin "raw_exec" {
  config {
    enabled = true
  }
}
plugin "nomad-driver-wasm" {
  config {
    state_dir = "DIR/state-NAME"
    CONFIG
  }
}
"#;

/// A server and its clients.
pub struct Cluster {
    nomad: PathBuf,
    dir: tempfile::TempDir,
    http: u16,
    server: Child,
    clients: Vec<Client>,
    artifacts: SocketAddr,
    /// Whose addresses clients have.
    pub interface: &'static str,
}

struct Client {
    name: &'static str,
    agent: Child,
}

/// An allocation of a job.
#[derive(Clone)]
pub struct Alloc(pub String);

impl Cluster {
    /// With one client, `main`, on which unsigned components run.
    pub fn start(nomad: PathBuf) -> Self {
        let mut cluster = Self::alone(nomad);
        let config = format!("allow_unsigned = true\nsidereal = \"{}\"", sidereal().display());
        cluster.join("main", &config);
        cluster.until("the driver is healthy", |cluster| cluster.driver("main")["Healthy"] == true);
        cluster
    }

    /// Without a client.
    pub fn alone(nomad: PathBuf) -> Self {
        let dir = tempfile::Builder::new().prefix("nomad").tempdir().unwrap();
        for folder in ["cni", "networks", "volume"] {
            std::fs::create_dir(dir.path().join(folder)).unwrap();
        }
        let ports = write(dir.path(), "server", SERVER, &[]);
        let server = launch(&nomad, dir.path(), "server");
        Self { nomad, http: ports[0], server, clients: Vec::new(), artifacts: artifacts(), dir, interface: "lo" }
    }

    /// Starts a client whose plugin has this configuration.
    pub fn join(&mut self, name: &'static str, config: &str) {
        self.configure(name, config);
        let agent = launch(&self.nomad, self.dir(), name);
        self.clients.push(Client { name, agent });
    }

    /// Writes the configuration of a client, and gives it a plugin.
    pub fn configure(&self, name: &str, config: &str) {
        let plugins = self.dir().join(format!("plugins-{name}"));
        std::fs::create_dir_all(&plugins).unwrap();
        std::fs::copy(env!("CARGO_BIN_EXE_nomad-driver-wasm"), plugins.join("nomad-driver-wasm")).unwrap();
        let server = std::fs::read_to_string(self.dir().join("server.hcl")).unwrap();
        let rpc = server.lines().find_map(|line| line.trim().strip_prefix("rpc  = ")).unwrap().to_owned();
        write(self.dir(), name, CLIENT, &[("SERVER", &rpc), ("CONFIG", config), ("INTERFACE", self.interface)]);
    }

    /// An agent that is not waited for; it is the caller's.
    pub fn launch(&self, name: &str) -> Child {
        launch(&self.nomad, self.dir(), name)
    }

    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// What an agent has written so far.
    pub fn log(&self, name: &str) -> String {
        std::fs::read_to_string(self.dir().join(format!("{name}.log"))).unwrap_or_default()
    }

    /// What the server knows of the node of this client.
    pub fn node(&self, name: &str) -> Value {
        let nodes = self.api("/v1/nodes");
        let mut all = nodes.as_array().into_iter().flatten();
        let Some(node) = all.rfind(|node| node["Name"] == name) else { return Value::Null };
        self.api(&format!("/v1/node/{}", node["ID"].as_str().unwrap()))
    }

    /// What the server knows of the driver there.
    pub fn driver(&self, name: &str) -> Value {
        let node = self.node(name);
        if node["Status"] == "ready" { node["Drivers"]["wasm"].clone() } else { Value::Null }
    }

    pub fn api(&self, path: &str) -> Value {
        let answer = request(([127, 0, 0, 1], self.http).into(), path, "1.0").unwrap_or_default();
        let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
        serde_json::from_str(body).unwrap_or_default()
    }

    /// What the command line says.
    pub fn cli(&self, args: &[&str]) -> String {
        let address = format!("http://127.0.0.1:{}", self.http);
        let out =
            Command::new(&self.nomad).args(args).env("NOMAD_ADDR", address).stdin(Stdio::null()).output().unwrap();
        String::from_utf8_lossy(&out.stdout).into_owned() + &String::from_utf8_lossy(&out.stderr)
    }

    pub fn until(&self, what: &str, so: impl Fn(&Self) -> bool) {
        let end = Instant::now() + PATIENCE;
        while !so(self) {
            let logs = self.clients.iter().map(|client| self.log(client.name)).collect::<String>();
            assert!(Instant::now() < end, "{what}: did not happen\n{logs}");
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// Registers a job.
    pub fn submit(&self, name: &str, job: &Job) -> String {
        self.submit_text(name, &job.text(name, self.artifacts))
    }

    /// Registers a job that somebody wrote.
    pub fn submit_text(&self, name: &str, text: &str) -> String {
        let file = self.dir().join(format!("{name}.nomad"));
        std::fs::write(&file, text).unwrap();
        let said = self.cli(&["job", "run", "-detach", file.to_str().unwrap()]);
        assert!(!said.contains("Error"), "{name}: {said}\n{text}");
        said
    }

    /// Where artifacts are: `/hello.wasm`, or `/hello/app.wasm`.
    pub fn artifacts(&self) -> SocketAddr {
        self.artifacts
    }

    /// The newest allocation of a job, once it has come to `status`.
    pub fn comes_to(&self, name: &str, status: &str) -> Alloc {
        let path = format!("/v1/job/{name}/allocations");
        let newest = |cluster: &Self| -> Value {
            let all = cluster.api(&path);
            let all = all.as_array().cloned().unwrap_or_default();
            all.into_iter().max_by_key(|alloc| alloc["CreateIndex"].as_u64()).unwrap_or_default()
        };
        let end = Instant::now() + PATIENCE;
        loop {
            let alloc = newest(self);
            if alloc["ClientStatus"] == status {
                return Alloc(alloc["ID"].as_str().unwrap().to_owned());
            }
            assert!(Instant::now() < end, "{name} is not {status}: {alloc:#}\n{}", self.log("main"));
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// Runs a job; its allocation, once that has come to `status`.
    pub fn run(&self, name: &str, job: &Job, status: &str) -> Alloc {
        self.submit(name, job);
        self.comes_to(name, status)
    }

    /// Everything the server knows of an allocation.
    pub fn alloc(&self, alloc: &Alloc) -> Value {
        self.api(&format!("/v1/allocation/{}", alloc.0))
    }

    /// What happened to its task, one event a line.
    pub fn events(&self, alloc: &Alloc) -> String {
        let events = self.alloc(alloc)["TaskStates"]["task"]["Events"].clone();
        let line = |event: &Value| format!("{}: {} {}\n", event["Type"], event["DisplayMessage"], event["Details"]);
        events.as_array().into_iter().flatten().map(line).collect()
    }

    /// Where its port `http` is.
    pub fn address(&self, alloc: &Alloc) -> SocketAddr {
        let ports = self.alloc(alloc)["AllocatedResources"]["Shared"]["Ports"].clone();
        let port = ports.as_array().unwrap().iter().find(|port| port["Label"] == "http").unwrap();
        let ip: std::net::IpAddr = port["HostIP"].as_str().unwrap().parse().unwrap();
        (ip, u16::try_from(port["Value"].as_u64().unwrap()).unwrap()).into()
    }

    /// One of its outputs, once it is `so`.
    pub fn output(&self, alloc: &Alloc, stream: &str, so: impl Fn(&str) -> bool) -> String {
        let read = |cluster: &Self| {
            let path = format!("/v1/client/fs/logs/{}?task=task&type={stream}&plain=true&origin=start", alloc.0);
            let answer = request(([127, 0, 0, 1], cluster.http).into(), &path, "1.0").unwrap_or_default();
            answer.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).unwrap_or_default()
        };
        self.until(&format!("output: {:?}, {}", read(self), self.events(alloc)), |cluster| so(&read(cluster)));
        read(self)
    }

    /// Stops a job and waits for the end of its allocations.
    pub fn stop(&self, name: &str) {
        self.cli(&["job", "stop", "-detach", name]);
        self.until(&format!("{name} ends"), |cluster| {
            let all = cluster.api(&format!("/v1/job/{name}/allocations"));
            all.as_array().is_some_and(|all| {
                all.iter().all(|alloc| !["running", "pending"].contains(&alloc["ClientStatus"].as_str().unwrap_or("")))
            })
        });
    }

    /// Directories of tasks on a client.
    pub fn tasks(&self, client: &str) -> Vec<PathBuf> {
        let tasks = self.dir().join(format!("state-{client}/tasks"));
        std::fs::read_dir(tasks).map_or_else(|_| Vec::new(), |all| all.flatten().map(|entry| entry.path()).collect())
    }

    /// The processes of the plugin of a client.
    pub fn plugins(&self, client: &str) -> Vec<i32> {
        let program = self.dir().join(format!("plugins-{client}/nomad-driver-wasm"));
        let is = |pid: &i32| std::fs::read_link(format!("/proc/{pid}/exe")).is_ok_and(|exe| exe == program);
        processes().into_iter().filter(is).collect()
    }

    /// The processes in which the agent of a client collects logs.
    pub fn collectors(&self, client: &str) -> Vec<i32> {
        let agent = self.clients.iter().find(|found| found.name == client).unwrap().agent.id().to_string();
        let is = |pid: &i32| {
            let said = std::fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            let parent = stat.rsplit_once(") ").and_then(|(_, rest)| rest.split(' ').nth(1));
            said.split('\0').any(|word| word == "logmon") && parent == Some(agent.as_str())
        };
        processes().into_iter().filter(is).collect()
    }

    /// Ends an agent with this signal.
    pub fn end(&mut self, name: &str, signal: Signal) {
        let client = self.clients.iter_mut().find(|client| client.name == name).unwrap();
        kill(i32::try_from(client.agent.id()).unwrap(), signal);
        drop(client.agent.wait());
    }

    /// Starts it again, and waits until its driver works.
    pub fn again(&mut self, name: &str) {
        // What the server knows is of the agent before until this one has said something.
        let registered = |cluster: &Self| cluster.log(name).matches("node registration complete").count();
        let before = registered(self);
        let agent = launch(&self.nomad, self.dir(), name);
        self.clients.iter_mut().find(|client| client.name == name).unwrap().agent = agent;
        self.until("the node is back", |cluster| {
            registered(cluster) > before && cluster.driver(name)["Healthy"] == true && cluster.plugins(name).len() == 1
        });
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for agent in self.clients.iter_mut().map(|client| &mut client.agent).chain([&mut self.server]) {
            drop(agent.kill());
            drop(agent.wait());
        }
        // Plugins, tasks and what collects their logs outlive their agent. All of them have something of this folder.
        let dir = self.dir().to_owned();
        for pid in processes().into_iter().filter(|pid| has(*pid, &dir)) {
            kill(pid, Signal::KILL);
        }
        // Secrets are in file systems of their own.
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let mounts =
            mounts.lines().filter_map(|line| line.split(' ').nth(4)).filter(|at| Path::new(at).starts_with(&dir));
        for at in mounts {
            drop(Command::new("umount").args(["-l", at]).output());
        }
    }
}

/// Whether a process has something of this folder open, is of it, or is about it.
fn has(pid: i32, dir: &Path) -> bool {
    let proc = PathBuf::from(format!("/proc/{pid}"));
    let links = std::fs::read_dir(proc.join("fd")).into_iter().flatten().flatten().map(|entry| entry.path());
    let mut links = links.chain([proc.join("exe")]);
    let said = std::fs::read_to_string(proc.join("cmdline")).unwrap_or_default();
    pid != std::process::id().cast_signed()
        && (said.contains(dir.to_str().unwrap())
            || links.any(|link| std::fs::read_link(link).is_ok_and(|target| target.starts_with(dir))))
}

fn processes() -> Vec<i32> {
    let entries = std::fs::read_dir("/proc").unwrap().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

/// Writes an agent's configuration; its ports.
fn write(dir: &Path, name: &str, part: &str, more: &[(&str, &str)]) -> Vec<u16> {
    let ports: Vec<u16> = (0..3).map(|_| crate::ports::free().port()).collect();
    let [http, rpc, serf] = [0, 1, 2].map(|at| ports[at].to_string());
    let mut text = format!("{AGENT}{part}");
    let own = [
        ("DIR", dir.to_str().unwrap()),
        ("NAME", name),
        ("HTTP", http.as_str()),
        ("RPC", rpc.as_str()),
        ("SERF", serf.as_str()),
    ];
    for (what, value) in own.iter().chain(more) {
        text = text.replace(what, value);
    }
    std::fs::write(dir.join(format!("{name}.hcl")), text).unwrap();
    ports
}

fn launch(nomad: &Path, dir: &Path, name: &str) -> Child {
    let log = std::fs::OpenOptions::new().create(true).append(true).open(dir.join(format!("{name}.log"))).unwrap();
    let config = dir.join(format!("{name}.hcl"));
    // Why it does not start it says on stderr.
    let errors = log.try_clone().unwrap();
    // Where a plugin finds the program that runs tasks, when nothing names it.
    let mut path = vec![sidereal().parent().unwrap().to_owned()];
    path.extend(std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()));
    let mut agent = Command::new(nomad);
    agent.env("PATH", std::env::join_paths(path).unwrap());
    agent.args(["agent", "-config"]).arg(config).stdin(Stdio::null()).stdout(log).stderr(errors);
    agent.spawn().unwrap()
}

pub fn kill(pid: i32, signal: Signal) {
    // It may have ended by itself.
    let _ = kill_process(Pid::from_raw(pid).unwrap(), signal);
}

/// An answer as it came: HTTP/1.0 has no chunks, and is for agents; tasks want 1.1.
pub fn request(address: SocketAddr, path: &str, version: &str) -> Option<String> {
    let mut stream = TcpStream::connect(address).ok()?;
    stream.write_all(format!("GET {path} HTTP/{version}\r\nhost: any\r\nconnection: close\r\n\r\n").as_bytes()).ok()?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).ok()?;
    Some(String::from_utf8_lossy(&answer).into_owned())
}

/// What a task answers: status and body.
pub fn get(address: SocketAddr, path: &str) -> Option<(u16, String)> {
    let answer = request(address, path, "1.1")?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    Some((head.split(' ').nth(1)?.parse().ok()?, body.to_owned()))
}

/// Serves guests by name, `/hello/app.wasm` or `/hello.wasm`, and files by path, for as long as the tests run.
fn artifacts() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let mut head = [0; 4096];
            let count = stream.read(&mut head).unwrap_or_default();
            let head = String::from_utf8_lossy(&head[..count]).into_owned();
            let path = head.split(' ').nth(1).unwrap_or_default();
            let path = path.strip_suffix("/app.wasm").or_else(|| path.strip_suffix(".wasm")).unwrap_or_default();
            let bytes = match path.strip_prefix("/file") {
                Some(file) => std::fs::read(file).unwrap_or_default(),
                None => std::fs::read(guest(path.trim_start_matches('/'))).unwrap_or_default(),
            };
            let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n", bytes.len());
            drop(stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(&bytes)));
        }
    });
    address
}
