//! The same through a scheduler, where `NOMAD_BIN` names the program of an agent: what a job costs from its submission on, beside
//! that of a program that does nothing.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::Context as _;
use serde_json::{Value, json};
use sidereal_tests::http::{self, Connection};
use sidereal_tests::{binary, guest};

use super::{PATIENCE, STARTS, median};
use crate::table::Table;
use crate::us::beside;

const AGENT: &str = r#"
data_dir             = "DIR/agent"
plugin_dir           = "DIR/plugins"
bind_addr            = "127.0.0.1"
disable_update_check = true
advertise {
  http = "127.0.0.1"
  rpc  = "127.0.0.1"
  serf = "127.0.0.1"
}
ports {
  http = PORT0
  rpc  = PORT1
  serf = PORT2
}
server {
  enabled          = true
  bootstrap_expect = 1
}
client {
  enabled           = true
  network_interface = "lo"
  options           = { "fingerprint.blacklist" = "env_aws,env_gce,env_azure" }
}
plugin "raw_exec" {
  config { enabled = true }
}
plugin "nomad-driver-wasm" {
  config {
    allow_unsigned = true
    sidereal       = "SIDEREAL"
    state_dir      = "DIR/state"
  }
}
"#;

/// Measures and fills in; says so where there is no agent.
///
/// # Errors
/// When it cannot be started, or a job does not run.
pub fn run(table: &mut Table) -> anyhow::Result<()> {
    let measure = "start of a wasm task beyond that of `raw_exec` of /bin/true";
    let Some(program) = std::env::var_os("NOMAD_BIN") else {
        table.note(measure, "not run: NOMAD_BIN names no Nomad agent".to_owned());
        return Ok(());
    };
    let agent = Agent::start(Path::new(&program))?;
    let (mut wasm, mut raw) = (Vec::new(), Vec::new());
    for number in 0..=STARTS {
        let (answers, starts) = (agent.wasm(number)?, agent.raw(number)?);
        // The first one compiles the component, for all of them.
        if number > 0 {
            wasm.push(answers);
            raw.push(starts);
        }
    }
    let (wasm, raw) = (median(&mut wasm), median(&mut raw));
    let detail =
        format!("{wasm:.0} from submission to the first answer, {raw:.0} from submission to a start of /bin/true");
    table.at_most(measure, wasm - raw, 50.0, "ms", &detail);
    Ok(())
}

struct Agent {
    child: Child,
    api: SocketAddr,
    artifacts: SocketAddr,
    dir: tempfile::TempDir,
}

impl Agent {
    fn start(program: &Path) -> anyhow::Result<Self> {
        let dir = tempfile::tempdir()?;
        std::fs::create_dir(dir.path().join("plugins"))?;
        std::fs::copy(beside("nomad-driver-wasm")?, dir.path().join("plugins/nomad-driver-wasm"))
            .context("build `drivers` first")?;
        let mut text = AGENT.replace("SIDEREAL", &binary().display().to_string());
        text = text.replace("DIR", &dir.path().display().to_string());
        let ports = (0..3).map(|_| free()).collect::<anyhow::Result<Vec<_>>>()?;
        for (at, port) in ports.iter().enumerate() {
            text = text.replace(&format!("PORT{at}"), &port.port().to_string());
        }
        let config = dir.path().join("agent.hcl");
        std::fs::write(&config, text)?;
        let log = std::fs::File::create(dir.path().join("agent.log"))?;
        let child = Command::new(program)
            .args(["agent", "-config"])
            .arg(&config)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("cannot start {}", program.display()))?;
        let api = *ports.first().context("ports")?;
        let agent = Self { child, api, artifacts: artifacts()?, dir };
        agent.until("the agent is ready", |agent| {
            let nodes = agent.get("/v1/nodes")?;
            let node = nodes.get(0)?;
            let healthy = |driver: &str| node.pointer(&format!("/Drivers/{driver}/Healthy")) == Some(&json!(true));
            (node["Status"] == "ready" && healthy("wasm") && healthy("raw_exec")).then_some(())
        })?;
        Ok(agent)
    }

    /// Milliseconds from the submission of a job that serves to its first answer.
    fn wasm(&self, number: usize) -> anyhow::Result<f64> {
        let name = format!("wasm-{number}");
        let address = free()?;
        let config = json!({"component": "local/app.wasm", "http": [{"port": "http"}]});
        let begun = Instant::now();
        self.submit(&name, "service", address, "wasm", &config)?;
        let answers = || Connection::open(address)?.send("GET", "localhost", "/", b"");
        while !answers().is_ok_and(|answer| answer.status == 200) {
            anyhow::ensure!(begun.elapsed() < PATIENCE, "{name} does not answer: {}", self.log());
            std::thread::sleep(Duration::from_millis(1));
        }
        let took = begun.elapsed();
        self.end(&name)?;
        Ok(took.as_secs_f64() * 1000.0)
    }

    /// Milliseconds from the submission of a job that does nothing to when the agent has started it, as the agent says: what a
    /// server is told comes later, many changes at a time.
    fn raw(&self, number: usize) -> anyhow::Result<f64> {
        let name = format!("raw-{number}");
        let begun = SystemTime::now().duration_since(UNIX_EPOCH)?.as_nanos();
        self.submit(&name, "batch", free()?, "raw_exec", &json!({"command": "/bin/true"}))?;
        let started = self.until(&format!("{name} starts"), |agent| {
            let allocs = agent.get(&format!("/v1/job/{name}/allocations"))?;
            let events = allocs.pointer("/0/TaskStates/task/Events")?.as_array()?.clone();
            events.iter().find(|event| event["Type"] == "Started")?["Time"].as_u64()
        })?;
        self.end(&name)?;
        Ok((u128::from(started).saturating_sub(begun)) as f64 / 1e6)
    }

    fn submit(&self, name: &str, kind: &str, at: SocketAddr, driver: &str, config: &Value) -> anyhow::Result<()> {
        let source = format!("http://{}/app.wasm", self.artifacts);
        let job = json!({"Job": {
            "ID": name, "Name": name, "Type": kind, "Datacenters": ["dc1"],
            "TaskGroups": [{
                "Name": "group", "Count": 1,
                "Networks": [{"ReservedPorts": [{"Label": "http", "Value": at.port()}]}],
                "Tasks": [{
                    "Name": "task", "Driver": driver, "Config": config,
                    "Artifacts": [{"GetterSource": source}],
                    "Resources": {"CPU": 50, "MemoryMB": 64},
                }],
            }],
        }});
        let answer = Connection::open(self.api)?.send("POST", "localhost", "/v1/jobs", job.to_string().as_bytes())?;
        anyhow::ensure!(answer.status == 200, "{name}: {}", answer.body);
        Ok(())
    }

    /// Ends a job and waits until the machine has its processes no more.
    fn end(&self, name: &str) -> anyhow::Result<()> {
        Connection::open(self.api)?.send("DELETE", "localhost", &format!("/v1/job/{name}"), b"")?;
        self.until(&format!("{name} ends"), |agent| {
            let allocs = agent.get(&format!("/v1/job/{name}/allocations"))?;
            let over = |alloc: &Value| alloc["ClientStatus"] != "running" && alloc["ClientStatus"] != "pending";
            allocs.as_array()?.iter().all(over).then_some(())
        })
    }

    fn get(&self, path: &str) -> Option<Value> {
        serde_json::from_str(&http::get(self.api, "localhost", path).ok()?.body).ok()
    }

    fn until<T>(&self, what: &str, so: impl Fn(&Self) -> Option<T>) -> anyhow::Result<T> {
        let end = Instant::now() + PATIENCE;
        loop {
            if let Some(seen) = so(self) {
                return Ok(seen);
            }
            anyhow::ensure!(Instant::now() < end, "{what}: did not happen\n{}", self.log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("agent.log")).unwrap_or_default()
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        // Every job has ended; the plugin ends with its agent.
        drop(Command::new("kill").arg("-INT").arg(self.child.id().to_string()).status());
        drop(self.child.wait());
    }
}

fn free() -> anyhow::Result<SocketAddr> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?)
}

/// Serves hello to whoever asks, for as long as this program runs.
fn artifacts() -> anyhow::Result<SocketAddr> {
    let wasm = std::fs::read(guest("hello"))?;
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            drop(stream.read(&mut [0; 4096]));
            let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n", wasm.len());
            drop(stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(&wasm)));
        }
    });
    Ok(address)
}
