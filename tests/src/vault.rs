//! A real OpenBao in memory on a free port, stopped by pid. Vault's API is OpenBao's.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::Duration;

use anyhow::{Context as _, bail};
use serde_json::Value;

use crate::platform::until;

/// An OpenBao of this test's own, unsealed, or the server that `VAULT_ADDR` names.
pub struct Vault {
    child: Option<Child>,
    /// Where it listens.
    pub addr: SocketAddr,
    /// A token that may do everything.
    pub root: String,
}

impl Vault {
    /// Starts it and waits until it answers; `None`, said loudly, where there is none.
    ///
    /// # Errors
    /// When it does not start.
    pub fn start() -> anyhow::Result<Option<Self>> {
        if let Ok(url) = std::env::var("VAULT_ADDR") {
            let addr = url.trim_start_matches("http://").trim_end_matches('/').parse();
            let addr = addr.context("VAULT_ADDR is http://ADDRESS:PORT")?;
            let root = std::env::var("VAULT_TOKEN").context("VAULT_TOKEN is a token that may do everything")?;
            return Ok(Some(Self { child: None, addr, root }));
        }
        let beside = crate::workspace().join("target/servers/openbao/bao");
        let program = std::env::var_os("BAO_BIN").map_or(beside, PathBuf::from);
        if !program.is_file() {
            crate::not_run("what needs a real Vault. What was missing: the program `bao` of OpenBao (BAO_BIN)");
            return Ok(None);
        }
        let addr = crate::ports::free();
        let root = "root-of-this-test".to_owned();
        let child = Command::new(program)
            .args(["server", "-dev", "-dev-no-store-token", "-log-level=error"])
            .arg(format!("-dev-root-token-id={root}"))
            .arg(format!("-dev-listen-address={addr}"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("cannot start bao")?;
        let vault = Self { child: Some(child), addr, root };
        until(Duration::from_secs(60), || vault.ask("GET", "sys/health", &Value::Null).is_ok())
            .context("bao does not answer")?;
        Ok(Some(vault))
    }

    /// `http://…`
    pub fn url(&self) -> String {
        format!("http://{}", self.addr)
    }

    /// One request of its operator; the path is without `/v1/`.
    ///
    /// # Errors
    /// When there is no answer, or none of success.
    pub fn ask(&self, method: &str, path: &str, body: &Value) -> anyhow::Result<Value> {
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let mut stream = TcpStream::connect(self.addr)?;
        stream.set_read_timeout(Some(Duration::from_secs(60)))?;
        write!(
            stream,
            "{method} /v1/{path} HTTP/1.0\r\nhost: {}\r\nx-vault-token: {}\r\ncontent-length: {}\r\n\r\n{body}",
            self.addr,
            self.root,
            body.len()
        )?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let (head, body) = answer.split_once("\r\n\r\n").context("no HTTP")?;
        let status: u16 = head.split(' ').nth(1).context("no status")?.parse()?;
        if !(200..300).contains(&status) {
            bail!("{method} {path}: {status} {body}");
        }
        Ok(serde_json::from_str(body).unwrap_or_default())
    }

    /// A token that may read, write and list below these paths and do nothing else, for ten minutes.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn token(&self, paths: &[&str]) -> anyhow::Result<String> {
        let made = serde_json::json!({ "policies": [self.policy(paths)?], "ttl": "10m" });
        let made = self.ask("POST", "auth/token/create", &made)?;
        made.pointer("/auth/client_token").and_then(Value::as_str).map(str::to_owned).context("no token was made")
    }

    /// A role and its proof for whoever may do so by `approle`, which is mounted with this: once.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn approle(&self, paths: &[&str]) -> anyhow::Result<(String, String)> {
        self.ask("POST", "sys/auth/approle", &serde_json::json!({ "type": "approle" }))?;
        let role = serde_json::json!({ "token_policies": [self.policy(paths)?], "token_ttl": "10m" });
        self.ask("POST", "auth/approle/role/app", &role)?;
        let text =
            |answer: &Value, at: &str| answer.pointer(at).and_then(Value::as_str).map(str::to_owned).context("no role");
        let id = self.ask("GET", "auth/approle/role/app/role-id", &Value::Null)?;
        let secret = self.ask("POST", "auth/approle/role/app/secret-id", &serde_json::json!({}))?;
        Ok((text(&id, "/data/role_id")?, text(&secret, "/data/secret_id")?))
    }

    /// A policy that lets read, write and list below these paths.
    fn policy(&self, paths: &[&str]) -> anyhow::Result<String> {
        let all = serde_json::json!({ "capabilities": ["create", "update", "read", "delete", "list"] });
        let paths: serde_json::Map<String, Value> =
            paths.iter().map(|path| ((*path).to_owned(), all.clone())).collect();
        let policy = serde_json::json!({ "policy": serde_json::json!({ "path": paths }).to_string() });
        static MADE: AtomicU32 = AtomicU32::new(0);
        let name = format!("sidereal-{}-{}", std::process::id(), MADE.fetch_add(1, Relaxed));
        self.ask("PUT", &format!("sys/policies/acl/{name}"), &policy)?;
        Ok(name)
    }
}

impl Drop for Vault {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            drop(child.kill());
            drop(child.wait());
        }
    }
}
