//! A real NATS with JetStream on a free port, stopped by pid.

use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::Context as _;

use crate::platform::until;

/// A NATS of this test's own.
pub struct Nats {
    child: Child,
    /// Where it listens.
    pub addr: SocketAddr,
    /// It is of version 2.12 or later, which writes batches all or none.
    pub has_batches: bool,
    _dir: tempfile::TempDir,
}

impl Nats {
    /// Starts it and waits until it is ready.
    ///
    /// # Errors
    /// When it is not installed (Debian: `nats-server`) or does not start.
    pub fn start() -> anyhow::Result<Self> {
        Self::configured("")
    }

    /// The same with lines of a configuration file, for example `authorization { … }`.
    ///
    /// # Errors
    /// As [`Nats::start`].
    pub fn configured(lines: &str) -> anyhow::Result<Self> {
        let dir = tempfile::tempdir()?;
        let addr = crate::ports::free();
        let (config, log) = (dir.path().join("nats.conf"), dir.path().join("log"));
        let store = dir.path().join("js");
        std::fs::write(
            &config,
            format!("listen: \"{addr}\"\nmax_payload: 9MB\njetstream {{ store_dir: {store:?} }}\n{lines}\n"),
        )?;
        let beside = crate::workspace().join("target/servers/nats/usr/sbin/nats-server");
        let named = std::env::var_os("NATS_SERVER_BIN").map(PathBuf::from);
        let newer = named.or_else(|| beside.is_file().then_some(beside));
        let has_batches = newer.is_some();
        let child = Command::new(newer.unwrap_or_else(|| "nats-server".into()))
            .arg("-c")
            .arg(&config)
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(&log)?)
            .spawn()
            .context("cannot start nats-server; install the package nats-server")?;
        let nats = Self { child, addr, has_batches, _dir: dir };
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
