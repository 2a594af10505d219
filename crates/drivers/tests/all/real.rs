//! A real agent with the real plugin, where `NOMAD_BIN` names one: what the fake host imitates, seen once for certain.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::agent::{guest, sidereal};

const AGENT: &str = r#"
data_dir = "DIR/NAME"
bind_addr = "127.0.0.1"
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
server {
  enabled          = true
  bootstrap_expect = 1
}
"#;

const CLIENT: &str = r#"
plugin_dir = "DIR/plugins"
client {
  enabled           = true
  network_interface = "lo"
  servers           = ["127.0.0.1:SERVER"]
  options           = { "fingerprint.blacklist" = "env_aws,env_gce,env_azure" }
}
plugin "nomad-driver-wasm" {
  config {
    allow_unsigned = true
    sidereal       = "SIDEREAL"
    state_dir      = "DIR/state"
  }
}
"#;

const JOB: &str = r#"
job "NAME" {
  datacenters = ["dc1"]
  group "web" {
    reschedule {
      attempts  = 0
      unlimited = false
    }
    network {
      port "http" {}
    }
    task "web" {
      driver = "wasm"
      config {
        component = "COMPONENT"
        http {
          port = "http"
        }
      }
      artifact {
        source = "http://ARTIFACTS/app.wasm"
      }
      resources {
        cpu    = 50
        memory = 64
      }
    }
  }
}
"#;

/// A server and a client agent of their own, with one plugin.
struct Cluster {
    nomad: PathBuf,
    dir: tempfile::TempDir,
    http: u16,
    server: Child,
    client: Child,
}

impl Cluster {
    fn start(nomad: PathBuf) -> Self {
        let dir = tempfile::Builder::new().prefix("nomad").tempdir().unwrap();
        let path = dir.path();
        std::fs::create_dir(path.join("plugins")).unwrap();
        std::fs::copy(env!("CARGO_BIN_EXE_nomad-driver-wasm"), path.join("plugins/nomad-driver-wasm")).unwrap();
        let ports: Vec<u16> = (0..6).map(|_| free_port()).collect();
        let write = |name: &str, part: &str, ports: &[u16]| {
            let text = format!("{AGENT}{part}")
                .replace("DIR", &path.display().to_string())
                .replace("NAME", name)
                .replace("HTTP", &ports[0].to_string())
                .replace("RPC", &ports[1].to_string())
                .replace("SERF", &ports[2].to_string());
            std::fs::write(path.join(format!("{name}.hcl")), text).unwrap();
        };
        write("server", SERVER, &ports[..3]);
        let client = CLIENT.replace("SIDEREAL", &sidereal().display().to_string());
        write("client", &client.replace("SERVER", &ports[1].to_string()), &ports[3..]);
        let (server, client) = (launch(&nomad, path, "server"), launch(&nomad, path, "client"));
        let cluster = Self { nomad, http: ports[0], server, client, dir };
        cluster.until("the driver is healthy", Cluster::healthy);
        cluster
    }

    fn healthy(&self) -> bool {
        let nodes = self.api("/v1/nodes");
        nodes[0]["Status"] == "ready" && nodes[0]["Drivers"]["wasm"]["Healthy"] == true
    }

    fn api(&self, path: &str) -> Value {
        let answer = request(self.http, path, "1.0").unwrap_or_default();
        let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
        serde_json::from_str(body).unwrap_or_default()
    }

    fn cli(&self, args: &[&str]) -> String {
        let address = format!("http://127.0.0.1:{}", self.http);
        let out = Command::new(&self.nomad).args(args).env("NOMAD_ADDR", address).output().unwrap();
        String::from_utf8_lossy(&out.stdout).into_owned() + &String::from_utf8_lossy(&out.stderr)
    }

    fn until(&self, what: &str, so: impl Fn(&Self) -> bool) {
        let end = Instant::now() + Duration::from_secs(60);
        while !so(self) {
            let log = std::fs::read_to_string(self.dir.path().join("client.log")).unwrap_or_default();
            assert!(Instant::now() < end, "{what}: did not happen\n{log}");
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// Runs a job that serves; its allocation, once that has come to `status`.
    fn run(&self, name: &str, component: &str, artifacts: SocketAddr, status: &str) -> Value {
        let job = JOB.replace("COMPONENT", component).replace("ARTIFACTS", &artifacts.to_string());
        self.run_job(name, &job, status)
    }

    /// Runs a job; its allocation, once that has come to `status`.
    fn run_job(&self, name: &str, job: &str, status: &str) -> Value {
        let file = self.dir.path().join(format!("{name}.nomad"));
        std::fs::write(&file, job.replace("NAME", name)).unwrap();
        let said = self.cli(&["job", "run", "-detach", file.to_str().unwrap()]);
        let path = format!("/v1/job/{name}/allocations");
        self.until(&format!("{name} is {status}: {said}"), |cluster| cluster.api(&path)[0]["ClientStatus"] == status);
        let id = self.api(&path)[0]["ID"].as_str().unwrap().to_owned();
        self.api(&format!("/v1/allocation/{id}"))
    }

    fn tasks(&self) -> usize {
        std::fs::read_dir(self.dir.path().join("state/tasks")).map_or(0, Iterator::count)
    }

    /// The processes of its plugin.
    fn plugins(&self) -> Vec<i32> {
        let program = self.dir.path().join("plugins/nomad-driver-wasm");
        let entries = std::fs::read_dir("/proc").unwrap().flatten();
        let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
        pids.filter(|pid| std::fs::read_link(format!("/proc/{pid}/exe")).is_ok_and(|exe| exe == program)).collect()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for agent in [&mut self.client, &mut self.server] {
            drop(agent.kill());
            drop(agent.wait());
        }
        // The plugin is an orphan now.
        for pid in self.plugins() {
            kill(pid, Signal::TERM);
        }
    }
}

fn launch(nomad: &Path, dir: &Path, name: &str) -> Child {
    let log = std::fs::OpenOptions::new().create(true).append(true).open(dir.join(format!("{name}.log"))).unwrap();
    let config = dir.join(format!("{name}.hcl"));
    let mut agent = Command::new(nomad);
    agent.args(["agent", "-config"]).arg(config).stdin(Stdio::null()).stdout(log).stderr(Stdio::null());
    agent.spawn().unwrap()
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn kill(pid: i32, signal: Signal) {
    // It may have ended by itself.
    let _ = kill_process(Pid::from_raw(pid).unwrap(), signal);
}

const BATCH: &str = r#"
job "NAME" {
  datacenters = ["dc1"]
  type        = "batch"
  group "batch" {
    reschedule {
      attempts  = 0
      unlimited = false
    }
    restart {
      attempts = 0
      mode     = "fail"
    }
    task "batch" {
      driver = "wasm"
      config {
        component = "local/app.wasm"
        args      = ["print:from ${NOMAD_META_who}", "STEP"]
      }
      artifact {
        source = "http://ARTIFACTS/app.wasm"
      }
      meta {
        who = "meta"
      }
      resources {
        cpu    = 50
        memory = 64
      }
    }
  }
}
"#;

/// An answer as it came: HTTP/1.0 has no chunks, and is for the agent; the ingress wants 1.1.
fn request(port: u16, path: &str, version: &str) -> Option<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
    stream.write_all(format!("GET {path} HTTP/{version}\r\nhost: any\r\nconnection: close\r\n\r\n").as_bytes()).ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    Some(answer)
}

/// Serves some bytes to whoever asks, for as long as the test runs.
fn serve(bytes: Vec<u8>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            drop(stream.read(&mut [0; 4096]));
            let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n", bytes.len());
            drop(stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(&bytes)));
        }
    });
    address
}

#[test]
fn a_real_agent_runs_finds_and_ends_a_task() {
    let Some(nomad) = std::env::var_os("NOMAD_BIN").map(PathBuf::from) else {
        crate::not_run("the driver under a real Nomad agent: NOMAD_BIN names no program");
        return;
    };
    let mut cluster = Cluster::start(nomad);
    let artifacts = serve(std::fs::read(guest("hello")).unwrap());
    let missing = cluster.run("missing", "local/none.wasm", artifacts, "failed");
    let events = missing["TaskStates"]["web"]["Events"].to_string();
    assert!(events.contains("there is no component at") && events.contains("Error was unrecoverable"), "{events}");
    assert_eq!(cluster.tasks(), 0);

    let hello = cluster.run("hello", "local/app.wasm", artifacts, "running");
    let port = hello["AllocatedResources"]["Shared"]["Ports"][0]["Value"].as_u64().unwrap();
    let port = u16::try_from(port).unwrap();
    let serves = || request(port, "/", "1.1").is_some_and(|answer| answer.contains("200 OK"));
    assert!(serves(), "a task that runs answers");
    for pid in cluster.plugins() {
        kill(pid, Signal::KILL);
    }
    assert!(serves(), "without its plugin");
    cluster.until("a new plugin", |cluster| cluster.plugins().len() == 1);
    for signal in [Signal::INT, Signal::KILL] {
        kill(i32::try_from(cluster.client.id()).unwrap(), signal);
        drop(cluster.client.wait());
        assert!(serves(), "without its agent");
        cluster.client = launch(&cluster.nomad, cluster.dir.path(), "client");
        std::thread::sleep(Duration::from_secs(1));
        cluster.until("the node is back", |cluster| cluster.healthy() && cluster.plugins().len() == 1);
        assert!(serves(), "with another agent");
        assert_eq!(cluster.tasks(), 1, "no second copy");
    }
    let told = cluster.cli(&["job", "stop", "-detach", "hello"]);
    cluster.until(&format!("it ends: {told}"), |cluster| !serves() && cluster.tasks() == 0);
}

#[test]
fn a_real_agent_runs_a_batch_job() {
    let Some(nomad) = std::env::var_os("NOMAD_BIN").map(PathBuf::from) else {
        crate::not_run("batch jobs under a real Nomad agent: NOMAD_BIN names no program");
        return;
    };
    let cluster = Cluster::start(nomad);
    let artifacts = serve(std::fs::read(guest("batch")).unwrap());
    for (name, step, status, said) in [
        ("well", "exit:0", "complete", "Exit Code: 0"),
        ("ill", "exit:3", "failed", "Exit Code: 3"),
        ("trap", "trap", "failed", "trapped"),
    ] {
        let job = BATCH.replace("STEP", step).replace("ARTIFACTS", &artifacts.to_string());
        let alloc = cluster.run_job(name, &job, status);
        let events = alloc["TaskStates"]["batch"]["Events"].to_string();
        assert!(events.contains(said), "{name}: {events}");
        let id = alloc["ID"].as_str().unwrap().to_owned();
        cluster
            .until("its output is in the logs", |cluster| cluster.cli(&["alloc", "logs", &id]).contains("from meta"));
    }
    cluster.until("nothing is left", |cluster| cluster.tasks() == 0);
}
