//! A real Postgres on a free port with its data in a directory of the test's own, stopped by pid. As root it runs as
//! another user: it refuses to be root. Used by the providers' own tests, too.

use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// The password of its first role, `postgres`.
pub const PASSWORD: &str = "canary-postgres-password";

/// A Postgres of this test's own.
pub struct Postgres {
    child: Child,
    /// Where it listens.
    pub addr: SocketAddr,
    dir: tempfile::TempDir,
    more: Vec<String>,
}

/// Debian keeps each version's programs in a directory of its own.
fn program(name: &str) -> PathBuf {
    let mut found: Vec<PathBuf> = fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.path().join("bin").join(name)))
        .filter(|path| path.is_file())
        .collect();
    found.sort();
    found.pop().unwrap_or_else(|| PathBuf::from(name))
}

/// Who it runs as, where we are root.
fn other_user() -> Option<(u32, u32)> {
    let root = Command::new("id").arg("-u").output().unwrap().stdout == b"0\n";
    let users = fs::read_to_string("/etc/passwd").unwrap_or_default();
    let find = |name: &str| {
        let line = users.lines().find(|line| line.split(':').next() == Some(name))?;
        let mut parts = line.split(':').skip(2);
        Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
    };
    root.then(|| find("postgres").or_else(|| find("nobody")).expect("a user that is not root"))
}

fn run_as(program: PathBuf) -> Command {
    let mut command = Command::new(program);
    command.env_remove("PGDATA").current_dir("/");
    if let Some((user, group)) = other_user() {
        command.uid(user).gid(group);
    }
    command
}

fn give(path: &Path) {
    if let Some((user, group)) = other_user() {
        chown(path, Some(user), Some(group)).unwrap();
    }
}

impl Postgres {
    /// Starts it and waits until it answers. Its role `postgres` has the password [`PASSWORD`].
    ///
    /// # Panics
    /// When it is not installed (Debian: `postgresql`) or does not start.
    pub fn start() -> Self {
        Self::with(None)
    }

    /// The same with TLS: certificate and key in PEM.
    ///
    /// # Panics
    /// As [`Postgres::start`].
    pub fn with(tls: Option<(&str, &str)>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        // Its directory lies in ours, which only we may enter otherwise.
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        give(dir.path());
        let secret = dir.path().join("password");
        fs::write(&secret, PASSWORD).unwrap();
        give(&secret);
        let made = run_as(program("initdb"))
            .args(["-U", "postgres", "--auth=scram-sha-256", "--no-sync", "-E", "UTF8", "--locale=C", "--pwfile"])
            .arg(&secret)
            .arg("-D")
            .arg(dir.path().join("data"))
            .output()
            .expect("cannot run initdb: install the package postgresql");
        assert!(made.status.success(), "initdb: {}", String::from_utf8_lossy(&made.stderr));
        let mut more = Vec::new();
        if let Some((certificate, key)) = tls {
            for (name, text) in [("server.crt", certificate), ("server.key", key)] {
                let path = dir.path().join(name);
                fs::write(&path, text).unwrap();
                fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
                give(&path);
            }
            let path = |name: &str| dir.path().join(name).display().to_string();
            more = vec![
                "ssl=on".to_owned(),
                format!("ssl_cert_file={}", path("server.crt")),
                format!("ssl_key_file={}", path("server.key")),
            ];
        }
        let addr = crate::ports::free();
        let child = Self::spawn(dir.path(), addr, &more);
        let server = Self { child, addr, dir, more };
        server.wait();
        server
    }

    fn spawn(dir: &Path, addr: SocketAddr, more: &[String]) -> Child {
        let mut command = run_as(program("postgres"));
        command.arg("-D").arg(dir.join("data")).args(["-p", &addr.port().to_string()]);
        for setting in ["listen_addresses=127.0.0.1", "unix_socket_directories=", "fsync=off", "max_connections=40"] {
            command.args(["-c", setting]);
        }
        for setting in more {
            command.args(["-c", setting]);
        }
        let log = fs::File::create(dir.join("log")).unwrap();
        command
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("cannot start postgres: install the package postgresql")
    }

    fn wait(&self) {
        let began = Instant::now();
        while self.psql(PASSWORD, "postgres", "SELECT 1").is_none() {
            let log = || fs::read_to_string(self.dir.path().join("log")).unwrap_or_default();
            assert!(began.elapsed() < Duration::from_secs(60), "postgres does not answer at {}: {}", self.addr, log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// What `psql` prints, logged in as `postgres`; `None` where it fails.
    pub fn psql(&self, password: &str, database: &str, sql: &str) -> Option<String> {
        TcpStream::connect(self.addr).ok()?;
        let port = self.addr.port().to_string();
        let said = Command::new(program("psql"))
            .args([
                "-h",
                "127.0.0.1",
                "-p",
                &port,
                "-U",
                "postgres",
                "-d",
                database,
                "-X",
                "-A",
                "-t",
                "-v",
                "ON_ERROR_STOP=1",
                "-c",
                sql,
            ])
            .env("PGPASSWORD", password)
            .env("PGCONNECT_TIMEOUT", "5")
            .stderr(Stdio::null())
            .output()
            .expect("cannot run psql: install the package postgresql");
        said.status.success().then(|| String::from_utf8_lossy(&said.stdout).trim().to_owned())
    }

    /// Ends it as a crash would.
    ///
    /// # Panics
    /// When it does not end.
    pub fn crash(&mut self) {
        let told = Command::new("kill").args(["-QUIT", &self.child.id().to_string()]).status();
        assert!(told.unwrap().success());
        self.child.wait().unwrap();
    }

    /// Starts it again on the same data and port.
    ///
    /// # Panics
    /// When it does not start.
    pub fn restart(&mut self) {
        self.child = Self::spawn(self.dir.path(), self.addr, &self.more);
        self.wait();
    }

    /// `postgres://…`, for the database `postgres`.
    pub fn url(&self) -> String {
        format!("postgres://{}/postgres", self.addr)
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            drop(Command::new("kill").args(["-QUIT", &self.child.id().to_string()]).status());
            drop(self.child.wait());
        }
    }
}
