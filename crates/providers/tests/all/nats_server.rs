//! A NATS server of the test's own: on a free port, stopped by pid.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use providers::http_out::{Tls, public_roots};
use providers::nats::{Client, Credentials, Options};

use crate::support::Direct;

/// Started with JetStream on a directory that lives as long as this.
pub(crate) struct NatsServer {
    child: Child,
    pub(crate) address: SocketAddr,
    dir: Arc<tempfile::TempDir>,
    more: String,
}

impl NatsServer {
    pub(crate) fn start() -> Self {
        Self::with("")
    }

    /// With more lines of its configuration file.
    pub(crate) fn with(more: &str) -> Self {
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        Self::start_at(address, Arc::new(tempfile::tempdir().unwrap()), more.to_owned())
    }

    fn start_at(address: SocketAddr, dir: Arc<tempfile::TempDir>, more: String) -> Self {
        let (config, store) = (dir.path().join("nats.conf"), dir.path().join("js"));
        let max_payload = if more.contains("max_payload") { "" } else { "max_payload: 9MB" };
        let jetstream = if more.contains("jetstream") { "" } else { "jetstream {}" };
        let jetstream = jetstream.replace("{}", &format!("{{ store_dir: {store:?} }}"));
        let more_here = more.replace("STORE", &format!("store_dir: {store:?}"));
        let text = format!("listen: \"{address}\"\n{max_payload}\n{jetstream}\n{more_here}\n");
        std::fs::write(&config, text).unwrap();
        let child = Command::new("nats-server")
            .arg("-c")
            .arg(&config)
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(dir.path().join("log")).unwrap())
            .spawn()
            .unwrap_or_else(|e| {
                panic!("cannot start nats-server: {e}. Install it (Debian: apt-get install nats-server)")
            });
        let server = Self { child, address, dir, more };
        let start = Instant::now();
        while !server.log().contains("Server is ready") || TcpStream::connect(address).is_err() {
            assert!(start.elapsed() < Duration::from_secs(20), "nats-server does not start:\n{}", server.log());
            std::thread::sleep(Duration::from_millis(5));
        }
        server
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("log")).unwrap()
    }

    /// Killed hard and, when what is given back is called, started again with what it had on disk.
    pub(crate) fn kill(self) -> impl FnOnce() -> Self {
        let (address, dir, more) = (self.address, self.dir.clone(), self.more.clone());
        drop(self);
        move || Self::start_at(address, dir, more)
    }

    /// Stops answering without closing anything, or goes on.
    pub(crate) fn signal(&self, signal: &str) {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args([signal, &pid]).status().unwrap().success());
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
        credentials,
        tls: Tls::new(roots).unwrap(),
    };
    Client::new(options, dialer)
}
