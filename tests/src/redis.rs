//! A real Redis on a free port, stopped by pid.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::Context as _;

use crate::platform::until;

/// A Redis of this test's own.
pub struct Redis {
    child: Child,
    /// Where it listens.
    pub addr: SocketAddr,
    _dir: tempfile::TempDir,
}

impl Redis {
    /// Starts it and waits until it answers.
    ///
    /// # Errors
    /// When it is not installed (Debian: `redis-server`) or does not start.
    pub fn start() -> anyhow::Result<Self> {
        let dir = tempfile::tempdir()?;
        let addr = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        let child = Command::new("redis-server")
            .args(["--port", &addr.port().to_string(), "--bind", "127.0.0.1", "--save", "", "--dir"])
            .arg(dir.path())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("cannot start redis-server; install the package redis-server")?;
        let redis = Self { child, addr, _dir: dir };
        until(Duration::from_secs(10), || TcpStream::connect(redis.addr).is_ok())
            .context("redis-server does not answer")?;
        Ok(redis)
    }

    /// `redis://…`
    pub fn url(&self) -> String {
        format!("redis://{}", self.addr)
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}
