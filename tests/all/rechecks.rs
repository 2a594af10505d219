//! An allowed host that tries to lead further: by redirects, tunnels, upgrades, names before an `@` and `Host` fields. Each hop
//! is decided like the first one, on the real binary and with a real guest.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, Mutex};

use sidereal_tests::egress::{deploy, flows, said};
use sidereal_tests::http::Connection;
use sidereal_tests::platform::Platform;

/// Answers with a redirect where the path says so, switches protocols where nobody asked, and remembers every head.
struct Server {
    address: SocketAddr,
    heads: Arc<Mutex<Vec<String>>>,
}

impl Server {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (address, heads) = (listener.local_addr().unwrap(), Arc::new(Mutex::new(Vec::new())));
        let seen = heads.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let seen: Arc<Mutex<Vec<String>>> = seen.clone();
                std::thread::spawn(move || {
                    let mut reader = BufReader::new(stream);
                    loop {
                        let (mut head, mut line) = (String::new(), String::new());
                        while !matches!(reader.read_line(&mut line), Err(_) | Ok(0)) && !line.trim_end().is_empty() {
                            head.push_str(&std::mem::take(&mut line));
                        }
                        if head.is_empty() {
                            return;
                        }
                        let path = head.split(' ').nth(1).unwrap_or_default().to_owned();
                        seen.lock().unwrap().push(head);
                        let answer = match path.strip_prefix("/to/") {
                            Some(place) => format!("302 Found\r\nlocation: http://{place}\r\ncontent-length: 0"),
                            None if path == "/switch" => {
                                "101 Switching Protocols\r\nupgrade: raw\r\nconnection: upgrade".to_owned()
                            }
                            None => "200 OK\r\ncontent-length: 2".to_owned(),
                        };
                        let body = if answer.starts_with("200") { "ok" } else { "" };
                        if write!(reader.get_mut(), "HTTP/1.1 {answer}\r\n\r\n{body}").is_err() {
                            return;
                        }
                        if path == "/switch" {
                            // What is sent now would go through a tunnel.
                            drop(reader.read(&mut [0; 64]));
                            return;
                        }
                    }
                });
            }
        });
        Self { address, heads }
    }

    fn taken(&self) -> Vec<String> {
        std::mem::take(&mut self.heads.lock().unwrap())
    }
}

#[test]
fn an_allowed_host_is_no_way_to_another() {
    let (dir, server) = (tempfile::tempdir().unwrap(), Server::start());
    let platform = Platform::start(dir.path(), &["--allow-egress", "127.0.0.1"]).unwrap();
    let port = server.address.port();
    let own = format!("127.0.0.1:{port}");
    // The app may ask for these; only the first of them is granted by the operator.
    let allowed = [own.clone(), format!("127.0.0.2:{port}"), "169.254.169.254".into(), "10.0.0.1".into()];
    deploy(&platform, "web", "probe", &allowed.clone().map(|place| format!("http://{place}")));
    let follow = |place: &str| {
        let (status, text) = said(&platform, "web", &format!("/follow?url=http://{own}/to/{place}"));
        assert_eq!(server.taken().iter().filter(|head| head.starts_with("GET /to/")).count(), 1, "{place}");
        (status, text)
    };
    assert_eq!(follow(&format!("{own}/there")), (200, format!("http://{own}/there ok")));
    for place in [allowed[1].as_str(), "169.254.169.254/latest/meta-data/", "10.0.0.1/"] {
        let (status, text) = follow(place);
        assert!(status == 502 && text.contains("Prohibited"), "{place}: {status} {text}");
    }
    // What the app's own manifest does not name is refused before the node is asked.
    for place in
        [format!("localhost:{port}/"), "[::1]/".into(), "192.168.0.1/".into(), format!("127.0.0.1:{}/", port ^ 1)]
    {
        let (status, text) = follow(&place);
        assert!(status == 502 && text.contains("Denied"), "{place}: {status} {text}");
    }
    // A name before an `@` is no host, in whichever order.
    for authority in [format!("{own}@10.0.0.1"), format!("user@{own}"), format!("10.0.0.1@{own}"), format!("a:b@{own}")]
    {
        let (status, text) = said(&platform, "web", &format!("/fetch?url=http://{authority}/"));
        assert!(status == 502, "{authority}: {status} {text}");
    }
    assert_eq!(server.taken(), [""; 0], "none of them got as far as a server");
    let connected = |record: &serde_json::Value| record["verdict"] == "connected" && record["address"] != own.as_str();
    assert_eq!(flows(&platform, "web").iter().filter(|record| connected(record)).count(), 0);
}

#[test]
fn neither_tunnels_nor_upgrades_nor_another_host_by_field() {
    let (dir, server) = (tempfile::tempdir().unwrap(), Server::start());
    let platform = Platform::start(dir.path(), &["--allow-egress", "127.0.0.1"]).unwrap();
    let own = server.address.to_string();
    deploy(&platform, "web", "probe", &[format!("http://{own}")]);
    let ask = |query: &str| {
        let mut connection = Connection::open(platform.ingress).unwrap();
        let answer = connection.send("GET", "web.localhost", &format!("/ask?url=http://{own}/x&{query}"), b"").unwrap();
        (answer.status, answer.body)
    };
    assert_eq!(ask("method=PUT"), (200, "200 ok".to_owned()));
    let heads = server.taken();
    assert!(heads[0].to_ascii_lowercase().contains(&format!("host: {own}\r\n")), "{heads:?}");
    for query in [
        "method=CONNECT",
        // A component does not say who is asked, or what the connection is for: the platform does.
        "method=GET&name=host&value=evil.example",
        "method=GET&name=Host&value=evil.example",
        "method=GET&name=upgrade&value=websocket",
        "method=GET&name=connection&value=upgrade",
        "method=GET&name=transfer-encoding&value=chunked",
        "method=GET&name=proxy-connection&value=keep-alive",
        "method=G%20T",
        "method=GET&name=x&value=a%0d%0aHost:%20evil.example",
    ] {
        let (status, text) = ask(query);
        assert!(status != 200, "{query}: {status} {text}");
        assert_eq!(server.taken(), [""; 0], "{query}");
    }
    // Who switches protocols unasked gets no tunnel: the call fails, and the connection serves no other one.
    let (status, text) = said(&platform, "web", &format!("/fetch?url=http://{own}/switch"));
    assert!(status != 101 && status != 200, "{status} {text}");
    assert_eq!(said(&platform, "web", &format!("/fetch?url=http://{own}/after")), (200, "ok".to_owned()));
    let heads = server.taken();
    assert!(heads.iter().all(|head| head.starts_with("GET /")), "{heads:?}");
}
