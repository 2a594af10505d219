//! A real Consul on free ports with its access rules on, stopped by pid.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::Context as _;

use crate::platform::until;

/// The token that may do everything.
pub const TOKEN: &str = "3f9d2f7c-6a4e-4a0e-9f5f-1d0f4f6a0c11";

/// A Consul of this test's own.
pub struct Consul {
    child: Child,
    /// Where it listens.
    pub addr: SocketAddr,
    _dir: tempfile::TempDir,
}

impl Consul {
    /// Starts it and waits until it takes writes; `None`, said loudly, where there is none.
    ///
    /// # Errors
    /// When it does not start.
    pub fn start() -> anyhow::Result<Option<Self>> {
        let beside = crate::workspace().join("target/servers/consul/usr/bin/consul");
        let program = std::env::var_os("CONSUL_BIN").map_or(beside, PathBuf::from);
        if !program.is_file() {
            crate::not_run("what needs a real Consul. What was missing: the program `consul` (CONSUL_BIN)");
            return Ok(None);
        }
        let dir = tempfile::tempdir()?;
        let mut ports = [0_u16; 4];
        for port in &mut ports {
            *port = crate::ports::free().port();
        }
        let [http, server, lan, wan] = ports;
        let config = format!(
            r#"{{"server":true,"bootstrap_expect":1,"bind_addr":"127.0.0.1","client_addr":"127.0.0.1",
            "ports":{{"http":{http},"server":{server},"serf_lan":{lan},"serf_wan":{wan},"dns":-1,"grpc":-1}},
            "disable_update_check":true,"disable_host_node_id":true,"performance":{{"raft_multiplier":1}},
            "acl":{{"enabled":true,"default_policy":"deny","tokens":{{"master":"{TOKEN}","agent":"{TOKEN}"}}}}}}"#
        );
        let file = dir.path().join("config.json");
        std::fs::write(&file, config)?;
        let child = Command::new(program)
            .args(["agent", "-log-level", "warn", "-config-file"])
            .arg(&file)
            .arg("-data-dir")
            .arg(dir.path().join("data"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("cannot start consul")?;
        let consul = Self { child, addr: SocketAddr::from(([127, 0, 0, 1], http)), _dir: dir };
        until(Duration::from_secs(30), || consul.write().is_some_and(|said| said.trim_end().ends_with("true")))
            .context("consul does not lead")?;
        Ok(Some(consul))
    }

    fn write(&self) -> Option<String> {
        use std::io::{Read as _, Write as _};
        let mut stream = std::net::TcpStream::connect(self.addr).ok()?;
        write!(stream, "PUT /v1/kv/started HTTP/1.0\r\nx-consul-token: {TOKEN}\r\ncontent-length: 1\r\n\r\n1").ok()?;
        let mut said = String::new();
        stream.read_to_string(&mut said).ok()?;
        Some(said)
    }

    /// One request of its operator; the path is without `/v1/`.
    ///
    /// # Errors
    /// When there is no answer, or none of success.
    pub fn ask(&self, method: &str, path: &str, body: &serde_json::Value) -> anyhow::Result<serde_json::Value> {
        use std::io::{Read as _, Write as _};
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let length = body.len();
        let mut stream = std::net::TcpStream::connect(self.addr)?;
        write!(
            stream,
            "{method} /v1/{path} HTTP/1.0\r\nx-consul-token: {TOKEN}\r\ncontent-length: {length}\r\n\r\n{body}"
        )?;
        let mut said = String::new();
        stream.read_to_string(&mut said)?;
        let (head, body) = said.split_once("\r\n\r\n").context("no HTTP")?;
        anyhow::ensure!(
            head.split(' ').nth(1).is_some_and(|status| status.starts_with('2')),
            "{method} {path}: {said}"
        );
        Ok(serde_json::from_str(body).unwrap_or_default())
    }

    /// `http://…`
    pub fn url(&self) -> String {
        format!("http://{}", self.addr)
    }
}

impl Drop for Consul {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}
