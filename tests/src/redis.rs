//! A real Redis on a free port, stopped by pid.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{SocketAddr, TcpStream};
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
        Self::configured("")
    }

    /// The same with lines of a configuration file, for example `requirepass …`.
    ///
    /// # Errors
    /// As [`Redis::start`].
    pub fn configured(lines: &str) -> anyhow::Result<Self> {
        // The listener goes with this statement: the port is the server's from here on.
        let addr = crate::ports::free();
        Self::at(addr, lines)
    }

    /// The same where another one was, which is gone.
    ///
    /// # Errors
    /// As [`Redis::start`].
    pub fn at(addr: SocketAddr, lines: &str) -> anyhow::Result<Self> {
        let dir = tempfile::tempdir()?;
        let config = dir.path().join("redis.conf");
        std::fs::write(&config, lines)?;
        let child = Command::new("redis-server")
            .arg(&config)
            .args(["--port", &addr.port().to_string(), "--bind", "127.0.0.1", "--save", "", "--dir"])
            .arg(dir.path())
            .arg("--unixsocket")
            .arg(dir.path().join("socket"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("cannot start redis-server; install the package redis-server")?;
        let redis = Self { child, addr, _dir: dir };
        // Made after the port is bound. To connect before that may take the port away from the server.
        let bound = redis._dir.path().join("socket");
        until(Duration::from_secs(10), || bound.exists() && TcpStream::connect(redis.addr).is_ok())
            .context("redis-server does not answer")?;
        Ok(redis)
    }

    /// What the server answers to a command line, logged in with `password`.
    ///
    /// # Errors
    /// When `redis-cli` cannot be run.
    pub fn tell(&self, password: &str, command: &[&str]) -> anyhow::Result<String> {
        let port = self.addr.port().to_string();
        let mut cli = Command::new("redis-cli");
        cli.args(["-h", "127.0.0.1", "-p", &port]).env("REDISCLI_AUTH", password).args(command);
        Ok(String::from_utf8_lossy(&cli.output().context("cannot run redis-cli")?.stdout).trim().to_owned())
    }

    /// A connection for questions that are asked one after the other, without a process for each.
    ///
    /// # Errors
    /// When the server does not take it.
    pub fn session(&self) -> anyhow::Result<Session> {
        Ok(Session(BufReader::new(TcpStream::connect(self.addr)?)))
    }

    /// `redis://…`
    pub fn url(&self) -> String {
        format!("redis://{}", self.addr)
    }
}

/// See [`Redis::session`].
pub struct Session(BufReader<TcpStream>);

impl Session {
    /// The answer to a command that is answered with a number or a word.
    ///
    /// # Errors
    /// When there is none.
    pub fn ask(&mut self, command: &[&str]) -> anyhow::Result<String> {
        let words = command.iter().map(|word| format!("${}\r\n{word}\r\n", word.len()));
        let text = format!("*{}\r\n{}", command.len(), words.collect::<String>());
        self.0.get_mut().write_all(text.as_bytes())?;
        let mut line = String::new();
        self.0.read_line(&mut line)?;
        let said = line.strip_prefix([':', '+']).with_context(|| format!("{command:?}: `{}`", line.trim_end()))?;
        Ok(said.trim_end().to_owned())
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}
