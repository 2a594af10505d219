//! A real NATS with JetStream on a free port, stopped by pid.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::Context as _;

use crate::platform::until;

/// A NATS of this test's own.
pub struct Nats {
    child: Child,
    /// Where it listens.
    pub addr: SocketAddr,
    _dir: tempfile::TempDir,
}

impl Nats {
    /// Starts it and waits until it is ready.
    ///
    /// # Errors
    /// When it is not installed (Debian: `nats-server`) or does not start.
    pub fn start() -> anyhow::Result<Self> {
        let dir = tempfile::tempdir()?;
        let addr = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        let (config, log) = (dir.path().join("nats.conf"), dir.path().join("log"));
        let store = dir.path().join("js");
        std::fs::write(
            &config,
            format!("listen: \"{addr}\"\nmax_payload: 9MB\njetstream {{ store_dir: {store:?} }}\n"),
        )?;
        let child = Command::new("nats-server")
            .arg("-c")
            .arg(&config)
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(&log)?)
            .spawn()
            .context("cannot start nats-server; install the package nats-server")?;
        let nats = Self { child, addr, _dir: dir };
        let ready = || {
            let said = std::fs::read_to_string(&log).unwrap_or_default();
            said.contains("Server is ready") && TcpStream::connect(nats.addr).is_ok()
        };
        until(Duration::from_secs(20), ready).context("nats-server does not answer")?;
        Ok(nats)
    }

    /// `nats://…`
    pub fn url(&self) -> String {
        format!("nats://{}", self.addr)
    }
}

impl Drop for Nats {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}
