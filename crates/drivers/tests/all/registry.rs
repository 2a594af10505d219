//! A registry of one component in this process, that can be told to behave badly; and a proxy before it.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};

use model::Digest;

/// What it has, and what was asked of it.
#[derive(Default)]
pub struct Shop {
    manifest: String,
    layer: Vec<u8>,
    /// Who it asks for a name and a password.
    pub closed: AtomicBool,
    /// Its connection breaks after half of the component.
    pub breaks: AtomicBool,
    /// Its component has another byte at the end.
    pub lies: AtomicBool,
    /// Held while nothing is answered.
    pub waits: Mutex<()>,
    /// How often anything was asked.
    pub questions: AtomicUsize,
    /// How often the component was asked for.
    pub asked: AtomicUsize,
    /// The last `authorization` of a question.
    pub credentials: Mutex<String>,
    /// What the proxy was asked to connect to.
    pub connected: Mutex<Vec<String>>,
}

impl Shop {
    pub fn of(wasm: &[u8]) -> Arc<Self> {
        let config = b"{\"architecture\":\"wasm\",\"os\":\"wasip2\"}";
        let manifest = serde_json::json!({
            "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": {"mediaType": "application/vnd.wasm.config.v0+json", "digest": Digest::of(config), "size": config.len()},
            "layers": [{"mediaType": "application/wasm", "digest": Digest::of(wasm), "size": wasm.len()}],
        });
        Arc::new(Self { manifest: manifest.to_string(), layer: wasm.to_vec(), ..Self::default() })
    }

    /// What pins the component at this registry.
    pub fn pinned(&self, registry: impl std::fmt::Display) -> String {
        format!("{registry}/shop@{}", Digest::of(self.manifest.as_bytes()))
    }

    /// Listens without TLS.
    pub fn open(self: &Arc<Self>) -> SocketAddr {
        let shop = self.clone();
        listen(move |mut stream| while shop.answer(&mut stream).is_some() {})
    }

    /// Listens as a proxy, behind which it is every registry, with this certificate.
    pub fn behind_proxy(self: &Arc<Self>, tls: Arc<rustls::ServerConfig>) -> SocketAddr {
        let shop = self.clone();
        listen(move |mut stream| {
            let Some(head) = head(&mut stream) else { return };
            shop.connected.lock().unwrap().push(head.lines().next().unwrap_or_default().to_owned());
            if stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").is_err() {
                return;
            }
            let connection = rustls::ServerConnection::new(tls.clone()).unwrap();
            let mut stream = rustls::StreamOwned::new(connection, stream);
            while shop.answer(&mut stream).is_some() {}
        })
    }

    /// Answers one question; `None` where the connection is to end.
    fn answer(&self, stream: &mut (impl Read + Write)) -> Option<()> {
        let head = head(stream)?;
        self.questions.fetch_add(1, SeqCst);
        drop(self.waits.lock().unwrap());
        let path = head.split(' ').nth(1)?;
        let authorization = head.lines().find_map(|line| {
            let (name, value) = line.split_once(": ")?;
            name.eq_ignore_ascii_case("authorization").then(|| value.to_owned())
        });
        let known = authorization.is_some();
        if let Some(authorization) = authorization {
            *self.credentials.lock().unwrap() = authorization;
        }
        let mut layer = self.layer.clone();
        if let Some(last) = layer.last_mut().filter(|_| self.lies.load(SeqCst)) {
            *last ^= 1;
        }
        let (status, kind, body) = match path {
            _ if self.closed.load(SeqCst) && !known => ("401 Unauthorized", "text/plain", &b""[..]),
            path if path.contains("/manifests/") => {
                ("200 OK", "application/vnd.oci.image.manifest.v1+json", self.manifest.as_bytes())
            }
            path if path.contains("/blobs/") => {
                self.asked.fetch_add(1, SeqCst);
                ("200 OK", "application/octet-stream", &layer[..])
            }
            _ => ("200 OK", "text/plain", &b""[..]),
        };
        let challenge = if status.starts_with('4') { "www-authenticate: Basic realm=\"shop\"\r\n" } else { "" };
        let head =
            format!("HTTP/1.1 {status}\r\n{challenge}content-type: {kind}\r\ncontent-length: {}\r\n\r\n", body.len());
        stream.write_all(head.as_bytes()).ok()?;
        let half = path.contains("/blobs/") && self.breaks.load(SeqCst);
        stream.write_all(if half { &body[..body.len() / 2] } else { body }).ok()?;
        stream.flush().ok()?;
        (!half).then_some(())
    }
}

fn listen(each: impl Fn(TcpStream) + Send + Sync + 'static) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let each = Arc::new(each);
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let each = each.clone();
            std::thread::spawn(move || each(stream));
        }
    });
    address
}

/// The head of a request; `None` where there is no more.
fn head(stream: &mut impl Read) -> Option<String> {
    let (mut seen, mut byte) = (Vec::new(), [0]);
    while !seen.ends_with(b"\r\n\r\n") {
        if stream.read(&mut byte).ok()? == 0 {
            return None;
        }
        seen.push(byte[0]);
    }
    String::from_utf8(seen).ok()
}
