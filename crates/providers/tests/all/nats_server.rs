//! A NATS server of the test's own: on a free port, stopped by pid.

use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use providers::http_out::{Tls, public_roots};
use providers::nats::{Client, Credentials, Login, Options};

use crate::support::Direct;

/// Started with JetStream on a directory that lives as long as this.
pub(crate) struct NatsServer {
    child: Child,
    pub(crate) address: SocketAddr,
    dir: Arc<tempfile::TempDir>,
    more: String,
    program: PathBuf,
}

impl NatsServer {
    pub(crate) fn start() -> Self {
        Self::with("")
    }

    /// With more lines of its configuration file.
    pub(crate) fn with(more: &str) -> Self {
        Self::of(Path::new("nats-server"), more)
    }

    /// Of a program that may not be the installed one.
    pub(crate) fn of(program: &Path, more: &str) -> Self {
        let address = crate::ports::free();
        Self::start_at(program.to_owned(), address, Arc::new(tempfile::tempdir().unwrap()), more.to_owned())
    }

    /// A server of version 2.12 or later; says loudly where there is none.
    pub(crate) fn newer(more: &str) -> Option<Self> {
        let beside = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/servers/nats/usr/sbin/nats-server");
        let named = std::env::var_os("NATS_SERVER_BIN").map(PathBuf::from);
        let Some(program) = named.or_else(|| beside.is_file().then_some(beside)) else {
            crate::support::not_run("NATS 2.12 or later. What was missing: such a `nats-server` (NATS_SERVER_BIN)");
            return None;
        };
        Some(Self::of(&program, more))
    }

    fn start_at(program: PathBuf, address: SocketAddr, dir: Arc<tempfile::TempDir>, more: String) -> Self {
        let config = configure(&dir, address, &more);
        let child = Command::new(&program)
            .arg("-c")
            .arg(&config)
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(dir.path().join("log")).unwrap())
            .spawn()
            .unwrap_or_else(|e| {
                panic!("cannot start nats-server: {e}. Install it (Debian: apt-get install nats-server)")
            });
        let server = Self { child, address, dir, more, program };
        let start = Instant::now();
        while !server.log().contains("Server is ready") || TcpStream::connect(address).is_err() {
            assert!(start.elapsed() < Duration::from_secs(60), "nats-server does not start:\n{}", server.log());
            std::thread::sleep(Duration::from_millis(5));
        }
        server
    }

    /// Reads another configuration while it runs.
    pub(crate) fn reload(&self, more: &str) {
        configure(&self.dir, self.address, more);
        self.signal("-HUP");
        let start = Instant::now();
        while !self.log().contains("Reloaded server configuration") {
            assert!(start.elapsed() < Duration::from_secs(60), "nats-server does not reload:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("log")).unwrap()
    }

    /// Killed hard and, when what is given back is called, started again with what it had on disk.
    pub(crate) fn kill(self) -> impl FnOnce() -> Self {
        let (program, address) = (self.program.clone(), self.address);
        let (dir, more) = (self.dir.clone(), self.more.clone());
        drop(self);
        move || Self::start_at(program, address, dir, more)
    }

    /// Stops answering without closing anything, or goes on.
    pub(crate) fn signal(&self, signal: &str) {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args([signal, &pid]).status().unwrap().success());
        // Its threads stop one by one; until then it may still answer.
        let stopped = || {
            let stats = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten();
            let stat = stats.map(|task| std::fs::read_to_string(task.path().join("stat")).unwrap_or_default());
            stat.filter(|stat| !stat.is_empty())
                .all(|stat| stat.rsplit(") ").next().is_some_and(|rest| rest.starts_with('T')))
        };
        let began = std::time::Instant::now();
        while signal == "-STOP" && !stopped() {
            assert!(began.elapsed() < std::time::Duration::from_secs(60), "the server does not stop");
            std::thread::yield_now();
        }
    }

    pub(crate) fn url(&self) -> String {
        format!("nats://{}", self.address)
    }

    pub(crate) fn client(&self) -> Client {
        client(&self.url(), None, public_roots(), Direct::to(self.address))
    }
}

impl Drop for NatsServer {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// Writes the configuration file.
fn configure(dir: &tempfile::TempDir, address: SocketAddr, more: &str) -> PathBuf {
    let (config, store) = (dir.path().join("nats.conf"), dir.path().join("js"));
    let max_payload = if more.contains("max_payload") { "" } else { "max_payload: 9MB" };
    let store = format!("store_dir: {store:?}");
    let jetstream = if more.contains("jetstream") { String::new() } else { format!("jetstream {{ {store} }}") };
    let more = more.replace("STORE", &store);
    std::fs::write(&config, format!("listen: \"{address}\"\n{max_payload}\n{jetstream}\n{more}\n")).unwrap();
    config
}

pub(crate) fn client(
    url: &str,
    credentials: Option<Credentials>,
    roots: rustls::RootCertStore,
    dialer: Arc<Direct>,
) -> Client {
    let options = Options {
        tenant: "acme".parse().unwrap(),
        app: "shop".parse().unwrap(),
        provider: "bus".parse().unwrap(),
        endpoint: url.parse().unwrap(),
        login: credentials.map_or(Login::Nobody, Login::Fixed),
        tls: Tls::new(roots).unwrap(),
    };
    Client::new(options, dialer)
}
