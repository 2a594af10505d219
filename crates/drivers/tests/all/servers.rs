//! A registry and a Redis of the machine's, for tasks that need one.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use model::Digest;

/// A server process.
pub struct Server {
    child: Option<Child>,
    pub addr: SocketAddr,
    _dir: tempfile::TempDir,
}

impl Server {
    fn start(addr: SocketAddr, dir: tempfile::TempDir, mut command: Command, ready: impl Fn() -> bool) -> Self {
        let program = command.get_program().to_string_lossy().into_owned();
        let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        let child = child.unwrap_or_else(|cause| panic!("{program} cannot be started: {cause}; install it"));
        let server = Self { child: Some(child), addr, _dir: dir };
        let until = Instant::now() + Duration::from_secs(120);
        while !ready() {
            assert!(Instant::now() < until, "{program} does not answer");
            std::thread::sleep(Duration::from_millis(10));
        }
        server
    }

    /// An empty OCI registry.
    pub fn registry() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let addr = free();
        let data = dir.path().join("data");
        let text = format!(
            "version: 0.1\nlog:\n  level: error\nstorage:\n  filesystem:\n    rootdirectory: {}\nhttp:\n  addr: {addr}\n",
            data.display()
        );
        let file = dir.path().join("config.yml");
        std::fs::write(&file, text).unwrap();
        let mut command = Command::new("docker-registry");
        command.arg("serve").arg(&file);
        Self::start(addr, dir, command, || TcpStream::connect(addr).is_ok())
    }

    /// An empty Redis with this password.
    pub fn redis(password: &str) -> Self {
        Self::redis_of(free(), &["--requirepass", password])
    }

    /// An empty Redis of the network's, at this address.
    pub fn redis_at(ip: IpAddr) -> Self {
        Self::redis_of(SocketAddr::new(ip, free().port()), &["--protected-mode", "no"])
    }

    fn redis_of(addr: SocketAddr, more: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("socket");
        let mut command = Command::new("redis-server");
        command.args(["--port", &addr.port().to_string(), "--bind", &addr.ip().to_string(), "--save", ""]);
        command.args(more).arg("--unixsocket").arg(&socket).arg("--dir").arg(dir.path());
        // Made after the port is bound.
        Self::start(addr, dir, command, || socket.exists() && TcpStream::connect(addr).is_ok())
    }

    /// Ends it.
    pub fn end(&mut self) {
        if let Some(mut child) = self.child.take() {
            drop(child.kill());
            drop(child.wait());
        }
    }

    fn request(&self, method: &str, path: &str, kind: &str, body: &[u8]) -> (u16, Option<String>) {
        let mut stream = TcpStream::connect(self.addr).unwrap();
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\nContent-Type: {kind}\r\nContent-Length: {}\r\n\r\n",
            self.addr,
            body.len()
        );
        stream.write_all(head.as_bytes()).unwrap();
        stream.write_all(body).unwrap();
        let lines = BufReader::new(stream).lines().map_while(Result::ok).take_while(|line| !line.is_empty());
        let lines: Vec<String> = lines.collect();
        let status = lines[0].split(' ').nth(1).unwrap().parse().unwrap();
        (status, lines.iter().find_map(|line| line.strip_prefix("Location: ").map(str::to_owned)))
    }

    fn blob(&self, bytes: &[u8]) -> Digest {
        let digest = Digest::of(bytes);
        let (status, location) = self.request("POST", "/v2/shop/blobs/uploads/", "application/octet-stream", b"");
        assert_eq!(status, 202);
        let location = location.unwrap();
        let path = location.split_once(&self.addr.to_string()).map_or(location.as_str(), |(_, path)| path);
        let (status, _) = self.request("PUT", &format!("{path}&digest={digest}"), "application/octet-stream", bytes);
        assert_eq!(status, 201);
        digest
    }

    /// Publishes a component in the repository `shop`; the reference that pins it.
    pub fn push(&self, wasm: &[u8]) -> String {
        let config = b"{\"architecture\":\"wasm\",\"os\":\"wasip2\"}";
        let (layer, config_digest) = (self.blob(wasm), self.blob(config));
        let kind = "application/vnd.oci.image.manifest.v1+json";
        let manifest = serde_json::json!({
            "schemaVersion": 2, "mediaType": kind,
            "config": {"mediaType": "application/vnd.wasm.config.v0+json", "digest": config_digest, "size": config.len()},
            "layers": [{"mediaType": "application/wasm", "digest": layer, "size": wasm.len()}],
        });
        let manifest = manifest.to_string();
        let (status, _) = self.request("PUT", "/v2/shop/manifests/v1", kind, manifest.as_bytes());
        assert_eq!(status, 201);
        format!("{}/shop@{}", self.addr, Digest::of(manifest.as_bytes()))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.end();
    }
}

fn free() -> SocketAddr {
    crate::ports::free()
}
