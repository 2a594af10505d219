//! A component from a registry, pinned by digest.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use model::Digest;
use sidereal_tests::platform::{Platform, until, write_app};

struct Registry {
    child: Child,
    addr: SocketAddr,
    dir: tempfile::TempDir,
}

impl Registry {
    fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let addr = sidereal_tests::ports::free();
        let config = format!(
            "version: 0.1\nlog:\n  level: error\nstorage:\n  filesystem:\n    rootdirectory: {}\nhttp:\n  addr: {addr}\n",
            dir.path().join("data").display()
        );
        let file = dir.path().join("config.yml");
        std::fs::File::create(&file).unwrap().write_all(config.as_bytes()).unwrap();
        let child = Command::new("docker-registry")
            .arg("serve")
            .arg(&file)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("cannot start docker-registry; install the package docker-registry");
        until(Duration::from_secs(10), || TcpStream::connect(addr).is_ok()).expect("the registry does not answer");
        Self { child, addr, dir }
    }

    fn request(&self, method: &str, path: &str, kind: &str, body: &[u8]) -> (u16, Option<String>) {
        use std::io::{BufRead as _, BufReader};
        let mut stream = TcpStream::connect(self.addr).unwrap();
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\nContent-Type: {kind}\r\nContent-Length: {}\r\n\r\n",
            self.addr,
            body.len()
        );
        stream.write_all(head.as_bytes()).unwrap();
        stream.write_all(body).unwrap();
        let lines: Vec<String> =
            BufReader::new(stream).lines().map_while(Result::ok).take_while(|l| !l.is_empty()).collect();
        let status = lines[0].split(' ').nth(1).unwrap().parse().unwrap();
        let location = lines.iter().find_map(|l| l.strip_prefix("Location: ").map(str::to_owned));
        (status, location)
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

    fn push(&self, wasm: &[u8]) -> Digest {
        let config = b"{\"architecture\":\"wasm\",\"os\":\"wasip2\"}";
        let (layer, config_digest) = (self.blob(wasm), self.blob(config));
        let kind = "application/vnd.oci.image.manifest.v1+json";
        let manifest = serde_json::json!({
            "schemaVersion": 2, "mediaType": kind,
            "config": {"mediaType": "application/vnd.wasm.config.v0+json", "digest": config_digest, "size": config.len()},
            "layers": [{"mediaType": "application/wasm", "digest": layer, "size": wasm.len()}],
        })
        .to_string();
        let (status, _) = self.request("PUT", "/v2/shop/manifests/v1", kind, manifest.as_bytes());
        assert_eq!(status, 201);
        Digest::of(manifest.as_bytes())
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

#[test]
fn a_pinned_reference_is_brought_checked_and_served() {
    let registry = Registry::start();
    let (dir, app) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let platform = Platform::start(dir.path(), &[]).unwrap();
    write_app(app.path(), "shop", "hello", "").unwrap();
    let wasm = app.path().join("component.wasm");
    platform.ok(&["sign", wasm.to_str().unwrap()]).unwrap();
    let digest = registry.push(&std::fs::read(&wasm).unwrap());

    let manifest = app.path().join("app.toml");
    let addr = registry.addr;
    let source = |digest: &str| format!("source = {{ oci = \"{addr}/shop@{digest}\" }}");
    let text = std::fs::read_to_string(&manifest).unwrap();
    std::fs::write(&manifest, text.replace("source = \"component.wasm\"", &source(&digest.to_string()))).unwrap();
    platform.ok(&["deploy", app.path().to_str().unwrap()]).unwrap();
    assert_eq!(platform.get("shop.localhost", "/").unwrap().status, 200);

    let other = Digest::of(b"something else").to_string();
    std::fs::write(&manifest, text.replace("source = \"component.wasm\"", &source(&other))).unwrap();
    let out = platform.cli(&["deploy", app.path().to_str().unwrap()]).unwrap();
    assert!(!out.status.success(), "a digest the registry does not have is refused");

    // What the registry does is told as what it is, with what to do about it.
    let refused = |code: &str, exit: i32, detail: &str| {
        std::fs::write(&manifest, text.replace("source = \"component.wasm\"", &source(&digest.to_string()))).unwrap();
        for command in ["deploy", "plan"] {
            let out = platform.cli(&[command, app.path().to_str().unwrap(), "-o", "json"]).unwrap();
            let envelope: serde_json::Value = serde_json::from_slice(&out.stdout).unwrap();
            let error = &envelope["error"];
            assert_eq!((error["code"].as_str(), out.status.code()), (Some(code), Some(exit)), "{envelope}");
            assert!(error["detail"].as_str().unwrap().contains(detail) && error["help"].is_string(), "{envelope}");
            assert!(error["findings"][0].as_str().unwrap().contains("app.toml:"), "{envelope}");
        }
    };
    let layer = Digest::of(&std::fs::read(&wasm).unwrap()).to_string();
    let hex = layer.trim_start_matches("sha256:");
    let kept = registry.dir.path().join(format!("data/docker/registry/v2/blobs/sha256/{}/{hex}/data", &hex[..2]));
    let mut bytes = std::fs::read(&kept).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&kept, bytes).unwrap();
    refused("artifact-tampered", 5, "other bytes");
    drop(registry);
    refused("unreachable", 6, "cannot bring");
}

/// A registry whose manifests never end; how many bytes of them it sent.
fn endless() -> (SocketAddr, Arc<AtomicU64>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (addr, sent) = (listener.local_addr().unwrap(), Arc::new(AtomicU64::new(0)));
    let counted = sent.clone();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            let counted = counted.clone();
            std::thread::spawn(move || {
                let mut asked = [0; 4096];
                let count = stream.read(&mut asked).unwrap_or(0);
                let head = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nconnection: close\r\n";
                if !String::from_utf8_lossy(&asked[..count]).contains("/manifests/") {
                    drop(write!(stream, "{head}content-length: 2\r\n\r\n{{}}"));
                    return;
                }
                drop(write!(stream, "{head}\r\n"));
                while stream.write_all(&[b' '; 65_536]).is_ok() {
                    counted.fetch_add(65_536, Ordering::Relaxed);
                }
            });
        }
    });
    (addr, sent)
}

#[test]
fn a_deploy_from_a_registry_without_end_is_refused() {
    let (addr, sent) = endless();
    let (dir, app) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let platform = Platform::start(dir.path(), &[]).unwrap();
    write_app(app.path(), "shop", "hello", "").unwrap();
    let manifest = app.path().join("app.toml");
    let text = std::fs::read_to_string(&manifest).unwrap();
    let source = format!("source = {{ oci = \"{addr}/shop@{}\" }}", Digest::of(b"shop"));
    std::fs::write(&manifest, text.replace("source = \"component.wasm\"", &source)).unwrap();
    let out = platform.cli(&["-o", "json", "deploy", app.path().to_str().unwrap()]).unwrap();
    let said = String::from_utf8_lossy(&out.stdout);
    assert!(!out.status.success() && said.contains("256 MiB"), "{said}");
    let sent = sent.load(Ordering::Relaxed);
    assert!((1 << 20..600 << 20).contains(&sent), "{sent} bytes");
}
