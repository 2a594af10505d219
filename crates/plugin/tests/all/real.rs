//! The sample driver under a real agent, where `NOMAD_BIN` names its program: that its own reader of schemas takes ours, and
//! that its people can do what the driver says it can.

use std::io::{Read as _, Write as _};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::agent::PROGRAM;

const CONFIG: &str = r#"
name                 = "kit"
data_dir             = "DIR/data"
plugin_dir           = "DIR/plugins"
bind_addr            = "127.0.0.1"
disable_update_check = true
ports {
  http = PORT0
  rpc  = PORT1
  serf = PORT2
}
advertise {
  http = "127.0.0.1"
  rpc  = "127.0.0.1"
  serf = "127.0.0.1"
}
server {
  enabled          = true
  bootstrap_expect = 1
}
client {
  enabled           = true
  network_interface = "lo"
  servers           = ["127.0.0.1:PORT1"]
  options           = { "fingerprint.blacklist" = "env_aws,env_gce,env_azure" }
}
plugin "sample-driver" {
  config { most = 4 }
}
"#;

const JOB: &str = r#"
job "clock" {
  datacenters = ["dc1"]
  type        = "batch"
  group "clock" {
    restart {
      attempts = 0
      mode     = "fail"
    }
    reschedule {
      attempts  = 0
      unlimited = false
    }
    task "clock" {
      driver = "sample"
      config {
        vcpus   = VCPUS
        seconds = "${NOMAD_META_seconds}"
        balloon = 5000000000
        cores   = [0, 3]
        limits  = { ops = 100 }
        metadata {
          region = "eu"
        }
        drive "data" {
          path     = "/a"
          size     = 1024
          writable = true
        }
        drive "logs" {
          path = "/b"
        }
      }
      meta {
        seconds = "7200"
      }
      resources {
        cpu    = 20
        memory = 10
      }
    }
  }
}
"#;

struct Real {
    dir: tempfile::TempDir,
    agent: Child,
    nomad: String,
    address: String,
}

impl Drop for Real {
    fn drop(&mut self) {
        // Told to end, it ends its plugins.
        let pid = rustix::process::Pid::from_child(&self.agent);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).ok();
        drop(self.agent.wait());
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        for at in mounts.lines().filter_map(|line| line.split(' ').nth(4)) {
            if Path::new(at).starts_with(self.dir.path()) {
                drop(Command::new("umount").args(["-l", at]).output());
            }
        }
    }
}

impl Real {
    fn start(nomad: String) -> Self {
        let dir = tempfile::Builder::new().prefix("nomad-kit").tempdir().unwrap();
        let at = dir.path();
        std::fs::create_dir(at.join("plugins")).unwrap();
        std::fs::copy(PROGRAM, at.join("plugins/sample-driver")).unwrap();
        let mut config = CONFIG.replace("DIR", at.to_str().unwrap());
        let ports = [0, 1, 2].map(|_| crate::ports::free().port());
        for (number, port) in ports.iter().enumerate() {
            config = config.replace(&format!("PORT{number}"), &port.to_string());
        }
        std::fs::write(at.join("agent.hcl"), config).unwrap();
        let log = || std::fs::File::options().create(true).append(true).open(at.join("log")).unwrap();
        let mut command = Command::new(&nomad);
        command.args(["agent", "-config"]).arg(at.join("agent.hcl")).stdin(Stdio::null()).stdout(log()).stderr(log());
        let agent = command.spawn().unwrap();
        let real = Self { agent, nomad, address: format!("http://127.0.0.1:{}", ports[0]), dir };
        real.until("the node is ready", &["node", "status", "-self"], "sample");
        real
    }

    /// What the command line says, and its exit code.
    fn cli(&self, args: &[&str]) -> (String, i32) {
        let mut command = Command::new(&self.nomad);
        let out = command.args(args).env("NOMAD_ADDR", &self.address).stdin(Stdio::null()).output().unwrap();
        let said = String::from_utf8_lossy(&out.stdout).into_owned() + &String::from_utf8_lossy(&out.stderr);
        (said, out.status.code().unwrap_or(-1))
    }

    /// What the agent answers; not every version lists allocations on its command line.
    fn api(&self, path: &str) -> serde_json::Value {
        let mut stream = std::net::TcpStream::connect(self.address.trim_start_matches("http://")).unwrap();
        write!(stream, "GET {path} HTTP/1.0\r\nhost: agent\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
        serde_json::from_str(body).unwrap_or_default()
    }

    fn until(&self, what: &str, ask: &[&str], wanted: &str) -> String {
        let end = Instant::now() + Duration::from_secs(60);
        loop {
            let (said, _) = self.cli(ask);
            if said.contains(wanted) {
                return said;
            }
            let log = std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default();
            assert!(Instant::now() < end, "{what}: {said}\n{log}");
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// Runs the job; the id of its newest allocation once that has come to `status`.
    fn run(&self, vcpus: &str, status: &str) -> String {
        let file = self.dir.path().join("job.nomad");
        std::fs::write(&file, JOB.replace("VCPUS", vcpus)).unwrap();
        let (said, code) = self.cli(&["job", "run", "-detach", file.to_str().unwrap()]);
        assert_eq!(code, 0, "{said}");
        let end = Instant::now() + Duration::from_secs(60);
        loop {
            let all = self.api("/v1/job/clock/allocations");
            let mut all = all.as_array().into_iter().flatten();
            if let Some(found) = all.find(|alloc| alloc["ClientStatus"] == status) {
                return found["ID"].as_str().unwrap().to_owned();
            }
            assert!(Instant::now() < end, "no allocation is {status}");
            std::thread::sleep(Duration::from_millis(100));
        }
    }
}

/// 8, 20, 21: numbers, defaults and blocks of every kind through the agent's own reader; signals and commands by its people.
#[test]
fn a_real_agent_takes_the_sample_for_a_driver() {
    let Ok(nomad) = std::env::var("NOMAD_BIN") else {
        return crate::not_run("the plugin kit under a real Nomad agent: NOMAD_BIN names no program");
    };
    let real = Real::start(nomad);
    let refused = real.run("5", "failed");
    let (said, _) = real.cli(&["alloc", "status", &refused]);
    assert!(said.contains("`vcpus` is 5, and this client gives a task 4"), "{said}");
    let alloc = real.run("2", "running");
    let (said, _) = real.cli(&["alloc", "status", &alloc]);
    assert!(said.contains("The clock runs for 7200 s"), "{said}");
    let exec = |words: &[&str]| real.cli(&[&["alloc", "exec", "-i=false", "-t=false", &alloc], words].concat());
    assert_eq!(exec(&["exit", "43"]).1, 43);
    assert!(exec(&["vim"]).0.contains("there is no program `vim`"), "{:?}", exec(&["vim"]));
    let (said, _) = real.cli(&["alloc", "signal", "-s", "SIGWINCH", &alloc]);
    assert!(said.contains("does not know the signal `SIGWINCH`"), "{said}");
    // What does not measure is not asked again and again.
    let log = std::fs::read_to_string(real.dir.path().join("log")).unwrap();
    assert!(!log.contains("TaskStats"), "{log}");
    assert_eq!(real.cli(&["alloc", "signal", "-s", "SIGTERM", &alloc]).1, 0);
    real.until("its end", &["alloc", "status", &alloc], "Exit Code: 143, Signal: 15");
}
