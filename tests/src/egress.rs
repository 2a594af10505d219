//! What the tests of outgoing connections have in common: somebody to connect to, and who tries.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use crate::http::{Answer, Connection};
use crate::platform::{Platform, write_app};

/// Echoes over TCP and UDP on one port of loopback, and counts.
pub struct Echo {
    /// Its port of loopback.
    pub address: SocketAddr,
    /// TCP connections and datagrams so far.
    pub knocks: Arc<AtomicUsize>,
    /// TCP connections that are open.
    pub open: Arc<AtomicUsize>,
}

impl Echo {
    /// Starts one; its threads end with the process.
    ///
    /// # Panics
    /// When there is no port.
    pub fn start() -> Self {
        let (tcp, udp) = loop {
            let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
            if let Ok(udp) = UdpSocket::bind(tcp.local_addr().unwrap()) {
                break (tcp, udp);
            }
        };
        let address = tcp.local_addr().unwrap();
        let (knocks, open) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let (heard, held) = (knocks.clone(), open.clone());
        std::thread::spawn(move || {
            for stream in tcp.incoming().flatten() {
                heard.fetch_add(1, Relaxed);
                held.fetch_add(1, Relaxed);
                let held = held.clone();
                std::thread::spawn(move || {
                    answer(stream);
                    held.fetch_sub(1, Relaxed);
                });
            }
        });
        let heard = knocks.clone();
        std::thread::spawn(move || {
            let mut buffer = [0; 2048];
            while let Ok((size, from)) = udp.recv_from(&mut buffer) {
                heard.fetch_add(1, Relaxed);
                drop(udp.send_to(&buffer[..size], from));
            }
        });
        Self { address, knocks, open }
    }

    /// Its port.
    pub fn port(&self) -> u16 {
        self.address.port()
    }
}

/// Echoes, or, where HTTP is spoken, answers each request and keeps the connection.
fn answer(mut stream: TcpStream) {
    let mut buffer = [0; 4096];
    while let Ok(size @ 1..) = stream.read(&mut buffer) {
        let said = match buffer.starts_with(b"GET ") {
            true => &b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"[..],
            false => &buffer[..size],
        };
        if stream.write_all(said).is_err() {
            return;
        }
    }
}

/// An app that serves `guest` on `<name>.localhost`, and may call out to these.
///
/// # Panics
/// When it is not deployed.
pub fn deploy(platform: &Platform, name: &str, guest: &str, hosts: &[String]) {
    let app = tempfile::tempdir().unwrap();
    write_app(app.path(), name, guest, &format!("allow-hosts = {hosts:?}")).unwrap();
    platform.ok(&["deploy", app.path().to_str().unwrap()]).unwrap();
}

/// A request to an app; `GET` where there is no body.
///
/// # Panics
/// When there is no answer.
pub fn ask(platform: &Platform, app: &str, path: &str, body: &[u8]) -> Answer {
    let mut connection = Connection::open(platform.ingress).unwrap();
    connection.send(if body.is_empty() { "GET" } else { "POST" }, &format!("{app}.localhost"), path, body).unwrap()
}

/// Status and text of an answer; of an error code, its name.
///
/// # Panics
/// When there is no answer.
pub fn said(platform: &Platform, app: &str, path: &str) -> (u16, String) {
    let answer = ask(platform, app, path, b"");
    // An error code says its name among other things.
    let name = answer.body.split_once("name: \"").and_then(|(_, rest)| rest.split_once('"'));
    (answer.status, name.map_or(answer.body.clone(), |(name, _)| name.to_owned()))
}

/// The records of an app, oldest first.
///
/// # Panics
/// When they cannot be read.
pub fn flows(platform: &Platform, app: &str) -> Vec<serde_json::Value> {
    let output = platform.cli(&["flows", app, "-n", "1000", "-o", "json"]).unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout)
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap()["data"].take())
        .collect()
}
