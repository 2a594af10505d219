//! The ways out, on the real binary: a real guest over HTTP, TCP and UDP, and real providers, against listeners that count
//! who knocks. What is granted connects; what is not is refused, recorded, and knocked at by nobody.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use sidereal_tests::egress::{Echo, ask, deploy, flows, said};
use sidereal_tests::platform::{Platform, until, write_app};

const TABLE: &str = include_str!("../egress/addresses.txt");
const WITHIN: Duration = Duration::from_secs(30);

#[test]
fn sockets_go_where_allow_hosts_and_the_operator_let_them() {
    let (dir, echo) = (tempfile::tempdir().unwrap(), Echo::start());
    let platform = Platform::start(dir.path(), &["--allow-egress", "127.0.0.0/8"]).unwrap();
    // The same of each version of the contract.
    for (app, guest) in [("out", "sockets"), ("out3", "sockets-p3")] {
        sockets_go_where_they_may(&platform, echo.port(), app, guest);
    }
}

fn sockets_go_where_they_may(platform: &Platform, port: u16, app: &str, guest: &str) {
    deploy(
        platform,
        app,
        guest,
        &[
            format!("tcp://127.0.0.1:{port}"),
            format!("tcp://localhost:{port}"),
            format!("udp://127.0.0.1:{port}"),
            format!("tcp://10.0.0.1:{port}"),
        ],
    );
    let at = |path: &str, host: &str| said(platform, app, &format!("{path}?host={host}&port={port}&send=hello"));
    // Each way works where it is granted: the refusals below are refusals.
    assert_eq!(at("/tcp", "127.0.0.1"), (200, "hello".to_owned()));
    assert_eq!(at("/udp", "127.0.0.1"), (200, "hello".to_owned()));
    assert_eq!(at("/udpto", "127.0.0.1"), (200, "hello".to_owned()));
    // A name is dialled by its name; the guest never learns what it resolves to.
    assert_eq!(at("/lookup", "localhost"), (200, "240.0.0.1".to_owned()));
    let by_name = at("/tcp", "localhost");
    // Where the machine's `localhost` is also `::1`, the range above does not grant it.
    assert!(by_name == (200, "hello".to_owned()) || by_name == (502, "access-denied".to_owned()), "{by_name:?}");
    let denied = (502, "access-denied".to_owned());
    for (path, host) in [
        ("/tcp", "127.0.0.2"),
        ("/tcp", "10.0.0.1"),
        ("/udp", "localhost"),
        ("/udp", "127.0.0.2"),
        ("/udpto", "127.0.0.2"),
        ("/tcp", "240.0.0.9"),
        ("/lookup", "other.example"),
        ("/bind", "127.0.0.1"),
        ("/bind", "0.0.0.0"),
        ("/listen", ""),
    ] {
        assert_eq!(at(path, host), denied, "{app} {path} {host}");
    }
    // The log says what to write, and what the operator's policy refused.
    let log = || {
        let output = platform.cli(&["logs", app, "-n", "1000"]).unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    let wanted = [
        format!("add \"tcp://127.0.0.2:{port}\" to `allow-hosts`"),
        format!("add \"udp://127.0.0.2:{port}\" to `allow-hosts`"),
        "looking up other.example is not granted".to_owned(),
        format!("10.0.0.1:{port} (a private address) is not granted to this app"),
        "binds and listens nowhere".to_owned(),
    ];
    until(WITHIN, || wanted.iter().all(|text| log().contains(text))).unwrap_or_else(|_| panic!("{}", log()));
    // And the node has recorded what it was asked.
    let records = flows(platform, app);
    let found = |host: &str, transport: &str, verdict: &str| {
        records.iter().any(|r| {
            r["host"] == host && r["transport"] == transport && r["verdict"] == verdict && r["caller"] == "main"
        })
    };
    assert!(found("127.0.0.1", "tcp", "connected") && found("127.0.0.1", "udp", "connected"), "{records:#?}");
    assert!(found("10.0.0.1", "tcp", "denied"), "{records:#?}");
    assert!(records.iter().all(|r| r["verdict"] != "connected" || r["policy"] == "range 127.0.0.0/8"), "{records:#?}");
}

#[test]
fn sockets_of_wasi_0_3_stream_wait_and_are_counted() {
    let (dir, echo) = (tempfile::tempdir().unwrap(), Echo::start());
    let platform = Platform::start(dir.path(), &["--allow-egress", "127.0.0.1"]).unwrap();
    let port = echo.port();
    let allowed = ["tcp://127.0.0.1", "udp://127.0.0.1", "udp://127.0.0.2"].map(|host| format!("{host}:{port}"));
    deploy(&platform, "out", "sockets-p3", &allowed);
    let at = |path: &str, rest: &str| said(&platform, "out", &format!("{path}?host=127.0.0.1&port={port}{rest}"));
    // In many pieces, both ways at once.
    let (status, text) = at("/tcp", "&send=sidereal&times=250000");
    assert!(status == 200 && text == "sidereal".repeat(250_000), "{status} {}", text.len());
    // What the operator refuses is told where it is sent, and stands in nobody's way.
    let two = r#"Err("access-denied") two Err("invalid-argument") four Err("invalid-argument")"#;
    assert_eq!(at("/udptwo", ""), (200, two.to_owned()));
    assert_eq!(at("/many", "&n=16"), (200, "16".to_owned()));
    assert_eq!(at("/many", "&n=17"), (502, "new-socket-limit".to_owned()));
    // All of them are gone with their calls.
    until(WITHIN, || echo.open.load(Relaxed) == 0).unwrap();
}

#[test]
fn no_socket_of_wasi_0_3_is_there_without_a_grant() {
    let (dir, echo) = (tempfile::tempdir().unwrap(), Echo::start());
    let platform = Platform::start(dir.path(), &["--allow-egress", "127.0.0.0/8"]).unwrap();
    let port = echo.port();
    deploy(&platform, "out", "sockets-p3", &[format!("http://127.0.0.1:{port}")]);
    for path in ["/tcp", "/udp", "/udpto", "/many", "/bind", "/listen"] {
        let told = said(&platform, "out", &format!("{path}?host=127.0.0.1&port={port}&send=x"));
        assert_eq!(told, (502, "access-denied".to_owned()), "{path}");
    }
    assert_eq!(said(&platform, "out", "/lookup?host=localhost"), (502, "access-denied".to_owned()));
    assert_eq!((echo.knocks.load(Relaxed), flows(&platform, "out").len()), (0, 0), "nobody was asked");
}

#[test]
fn a_grant_taken_back_ends_open_sockets_and_pooled_connections() {
    let (dir, echo) = (tempfile::tempdir().unwrap(), Echo::start());
    let platform = Platform::start(dir.path(), &["--allow-egress", "127.0.0.0/8"]).unwrap();
    let port = echo.port();
    deploy(&platform, "out", "sockets", &[format!("tcp://127.0.0.1:{port}")]);
    let both = ["tcp", "udp"].map(|transport| format!("{transport}://127.0.0.1:{port}"));
    deploy(&platform, "out3", "sockets-p3", &both);
    deploy(&platform, "web", "probe", &[format!("http://127.0.0.1:{port}")]);
    let fetch = format!("/fetch?url=http://127.0.0.1:{port}/");
    assert_eq!(said(&platform, "web", &fetch).0, 200);
    let pooled = echo.knocks.load(Relaxed);
    assert_eq!(said(&platform, "web", &fetch).0, 200);
    assert_eq!(echo.knocks.load(Relaxed), pooled, "the connection is kept");
    std::thread::scope(|scope| {
        let hold = |app: &'static str, path: &'static str| {
            let (platform, path) = (&platform, format!("{path}?host=127.0.0.1&port={port}"));
            scope.spawn(move || said(platform, app, &path))
        };
        let (held, held3, datagrams) = (hold("out", "/hold"), hold("out3", "/hold"), hold("out3", "/udphold"));
        // Two connections, and one datagram that was heard.
        until(WITHIN, || echo.open.load(Relaxed) == 3 && echo.knocks.load(Relaxed) == pooled + 3).unwrap();
        platform.ok(&["tenant-settings", "set", "--deny-egress", "127.0.0.0/8"]).unwrap();
        // All go, the pooled one and those in use: the other side sees it, and so do the guests.
        until(WITHIN, || echo.open.load(Relaxed) == 0).unwrap();
        assert_eq!(held.join().unwrap(), (200, "ended".to_owned()));
        assert_eq!(held3.join().unwrap(), (200, "ended".to_owned()));
        assert_eq!(datagrams.join().unwrap(), (502, "remote-unreachable".to_owned()));
    });
    let (status, text) = said(&platform, "web", &fetch);
    assert!(status == 502 && text.contains("Prohibited"), "{status} {text}");
    for (app, path) in [("out", "/tcp"), ("out3", "/tcp"), ("out3", "/udp")] {
        let told = said(&platform, app, &format!("{path}?host=127.0.0.1&port={port}&send=x"));
        assert_eq!(told, (502, "access-denied".to_owned()), "{app} {path}");
    }
    assert_eq!(echo.open.load(Relaxed), 0);
    for app in ["out", "out3", "web"] {
        let verdicts = || -> BTreeSet<String> {
            flows(&platform, app).iter().map(|r| r["verdict"].as_str().unwrap().to_owned()).collect()
        };
        // They are ended first, and then written down.
        let wanted = ["connected", "denied", "revoked"].map(str::to_owned).into();
        until(WITHIN, || verdicts() == wanted).unwrap_or_else(|_| panic!("{app}: {:?}", verdicts()));
    }
    // Granted again, they connect again.
    platform.ok(&["tenant-settings", "set", "--allow-egress", "127.0.0.0/8"]).unwrap();
    until(WITHIN, || said(&platform, "web", &fetch).0 == 200).unwrap();
}

#[test]
fn a_suspended_tenant_loses_its_connections_its_calls_and_its_processes() {
    let (dir, echo) = (tempfile::tempdir().unwrap(), Echo::start());
    let platform = Platform::start(dir.path(), &["--allow-egress", "127.0.0.0/8"]).unwrap();
    let port = echo.port();
    deploy(&platform, "out", "sockets", &[format!("tcp://127.0.0.1:{port}")]);
    let connect = format!("/tcp?host=127.0.0.1&port={port}&send=x");
    assert_eq!(said(&platform, "out", &connect), (200, "x".to_owned()));
    std::thread::scope(|scope| {
        let held = scope.spawn(|| said(&platform, "out", &format!("/hold?host=127.0.0.1&port={port}")));
        until(WITHIN, || echo.open.load(Relaxed) == 1).unwrap();
        platform.ok(&["tenant", "suspend", "local", "--reason", "a test"]).unwrap();
        until(WITHIN, || echo.open.load(Relaxed) == 0).unwrap();
        // How its call ends is another matter.
        drop(held.join());
    });
    until(WITHIN, || platform.hosts().is_empty()).expect("none of its processes is left");
    let knocks = echo.knocks.load(Relaxed);
    let answer = ask(&platform, "out", &connect, b"");
    assert_eq!((answer.status, answer.header("sidereal-fault")), (503, Some("suspended")));
    assert_eq!(echo.knocks.load(Relaxed), knocks);
    platform.ok(&["tenant", "resume", "local"]).unwrap();
    until(WITHIN, || said(&platform, "out", &connect) == (200, "x".to_owned())).unwrap();
}

#[test]
fn no_spelling_of_a_forbidden_address_passes_a_real_guest() {
    let (dir, echo) = (tempfile::tempdir().unwrap(), Echo::start());
    let platform = Platform::start(dir.path(), &[]).unwrap();
    let port = echo.port();
    let hosts: Vec<&str> = TABLE.lines().filter(|line| !line.is_empty() && !line.starts_with("# ")).collect();
    assert!(hosts.len() >= 500);
    // Those that a manifest can name are named, so that the node's policy alone refuses them.
    // (`0.0.0.0` as a socket's address is refused before anybody is asked.)
    let literal = |host: &&&str| host.parse::<std::net::Ipv4Addr>().is_ok_and(|address| !address.is_unspecified());
    let named: Vec<&str> = hosts.iter().filter(literal).copied().take(21).collect();
    assert_eq!(named.len(), 21);
    let entries = |host: &&str| ["http", "tcp", "udp"].map(|scheme| format!("{scheme}://{host}:{port}"));
    let allowed: Vec<String> = named.iter().flat_map(entries).collect();
    deploy(&platform, "out", "sockets", &allowed);
    deploy(&platform, "out3", "sockets-p3", &allowed);
    deploy(&platform, "web", "probe", &allowed);
    for (app, some) in ["out", "out3"].iter().flat_map(|app| hosts.chunks(8).map(move |some| (app, some))) {
        let answer = ask(&platform, app, &format!("/table?port={port}"), some.join("\n").as_bytes());
        let text = answer.body;
        assert_eq!((answer.status, text.lines().count()), (200, some.len()), "{app} {some:?}: {text}");
        for (host, told) in some.iter().zip(text.lines()) {
            assert!(!told.contains("None"), "{app}: {host:?} came through: {told}");
        }
    }
    for host in &hosts {
        let escaped: String = host.bytes().map(|byte| format!("%{byte:02x}")).collect();
        let bracketed = if host.contains(':') && !host.contains('[') { format!("%5b{escaped}%5d") } else { escaped };
        let (status, text) = said(&platform, "web", &format!("/fetch?url=http://{bracketed}:{port}/"));
        assert!(status != 200, "{host:?} came through: {text}");
    }
    assert_eq!(echo.knocks.load(Relaxed), 0, "nobody knocked");
    for app in ["out", "out3", "web"] {
        let records = flows(&platform, app);
        assert!(records.iter().all(|record| record["verdict"] != "connected"), "{records:#?}");
        for host in named.iter().filter(|_| app != "web") {
            let denied = |transport: &str| {
                records.iter().any(|r| r["host"] == *host && r["transport"] == transport && r["verdict"] == "denied")
            };
            assert!(denied("tcp") && denied("udp"), "{app}: {host} did not get as far as the node");
        }
    }
}

#[test]
fn what_an_app_declares_for_a_provider_opens_nothing() {
    let (dir, echo) = (tempfile::tempdir().unwrap(), Echo::start());
    let platform = Platform::start(dir.path(), &[]).unwrap();
    let port = echo.port();
    let hosts = ["127.0.0.1", "[::ffff:127.0.0.1]", "[64:ff9b::7f00:1]", "localhost", "10.0.0.1", "169.254.169.254"];
    for (n, host) in hosts.iter().enumerate() {
        let app = tempfile::tempdir().unwrap();
        let rest = format!(
            "[components.main.links]\n\"wasi:keyvalue\" = \"own\"\n\n[providers.own]\ntype = \"keyvalue-redis\"\nurl = \"redis://{host}:{port}\""
        );
        let name = format!("own{n}");
        write_app(app.path(), &name, "kv-counter", &rest).unwrap();
        let deployed = platform.cli(&["deploy", app.path().to_str().unwrap()]).unwrap();
        let said = String::from_utf8_lossy(&deployed.stderr).into_owned();
        assert!(!deployed.status.success() && said.contains("is not granted to this app"), "{host}: {said}");
        let records = flows(&platform, &name);
        assert!(
            records.iter().any(|r| r["kind"] == "provider" && r["caller"] == "own" && r["verdict"] == "denied"),
            "{host}: {records:#?}"
        );
    }
    assert_eq!(echo.knocks.load(Relaxed), 0, "nobody knocked");
}
