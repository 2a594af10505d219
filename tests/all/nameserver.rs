//! Names that mean something else each time, on the real binary with a real nameserver: guests by HTTP, TCP and UDP, and
//! providers, get to what was checked or nowhere.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use sidereal_tests::egress::{Echo, deploy, flows, said};
use sidereal_tests::nameserver::{Nameserver, Reply};
use sidereal_tests::platform::{Platform, write_app};

const NAMES: [&str; 9] = [
    "good.example",
    "alias.example",
    "mixed.example",
    "six.example",
    "internal.example",
    "metadata.example",
    "thousand.example",
    "missing.example",
    "failing.example",
];

fn zone(name: &str, rebound: bool) -> Reply {
    match name {
        "good.example" => Reply::has(&["127.0.0.1"]),
        "alias.example" => Reply::Alias("good.example".into(), vec![IpAddr::from([127, 0, 0, 1])]),
        "mixed.example" => Reply::has(&["127.0.0.1", "10.0.0.1"]),
        "six.example" => Reply::has(&["127.0.0.1", "::1"]),
        "internal.example" => Reply::Alias("db.internal".into(), vec![IpAddr::from([127, 0, 0, 2])]),
        "metadata.example" => Reply::has(&["169.254.169.254"]),
        "thousand.example" => Reply::Has((0..1000u32).map(|n| IpAddr::from((0x7f00_0000 + n).to_be_bytes())).collect()),
        "failing.example" => Reply::Failure,
        // Granted first, then not any more.
        "rebound.example" | "rebound3.example" if !rebound => Reply::has(&["127.0.0.1"]),
        "rebound.example" | "rebound3.example" => Reply::has(&["127.0.0.2"]),
        _ => Reply::NoSuchName,
    }
}

#[test]
fn a_nameserver_opens_nothing_by_what_it_answers() {
    // Whoever asks, and asks again because an answer is late, is told the same until the test says otherwise.
    let rebound = Arc::new(AtomicBool::new(false));
    let told = rebound.clone();
    let server = Nameserver::start(move |name, _| zone(name, told.load(Relaxed)));
    let (dir, echo) = (tempfile::tempdir().unwrap(), Echo::start());
    let resolver = server.address.to_string();
    let platform = Platform::start(dir.path(), &["--allow-egress", "127.0.0.1", "--resolver", &resolver]).unwrap();
    let port = echo.port();
    let names = || NAMES.iter().chain(&["rebound.example", "rebound3.example"]);
    let allowed: Vec<String> =
        names().flat_map(|name| ["http", "tcp", "udp"].map(|scheme| format!("{scheme}://{name}:{port}"))).collect();
    deploy(&platform, "out", "sockets", &allowed);
    deploy(&platform, "out3", "sockets-p3", &allowed);
    deploy(&platform, "web", "probe", &allowed);
    let http = |name: &str| said(&platform, "web", &format!("/fetch?url=http://{name}:{port}/"));
    // Of each version of the contract.
    let sockets = |path: &str, name: &str| {
        ["out", "out3"].map(|app| said(&platform, app, &format!("{path}?host={name}&port={port}&send=hello")))
    };
    let tcp = |name: &str| sockets("/tcp", name);
    let udp = |name: &str| sockets("/udp", name);
    let again = |app: &str, name: &str| said(&platform, app, &format!("/tcp?host={name}&port={port}&send=hello"));

    let both = |status: u16, text: &str| [(status, text.to_owned()), (status, text.to_owned())];
    let hello = both(200, "hello");
    for name in ["good.example", "alias.example"] {
        assert_eq!((http(name).0, tcp(name), udp(name)), (200, hello.clone(), hello.clone()), "{name}");
    }
    // The name changes after it was granted: the next dial is decided anew.
    for (app, name) in [("out", "rebound.example"), ("out3", "rebound3.example")] {
        rebound.store(false, Relaxed);
        assert_eq!(again(app, name), (200, "hello".to_owned()), "{name}");
        rebound.store(true, Relaxed);
        assert_eq!(again(app, name), (502, "access-denied".to_owned()), "{name}");
    }
    let known = echo.knocks.load(Relaxed);
    let denied = both(502, "access-denied");
    for name in ["rebound.example", "mixed.example", "six.example", "internal.example", "metadata.example"] {
        assert_eq!((tcp(name), udp(name)), (denied.clone(), denied.clone()), "{name}");
        let (status, text) = http(name);
        assert!(status == 502 && text.contains("Prohibited"), "{name}: {status} {text}");
    }
    let unknown = both(502, "name-unresolvable");
    for name in ["thousand.example", "missing.example", "failing.example"] {
        assert_eq!((tcp(name), udp(name)), (unknown.clone(), unknown.clone()), "{name}");
        let (status, text) = http(name);
        assert!(status == 502 && text.contains("Dns"), "{name}: {status} {text}");
    }
    // An app that writes such a name into a provider's settings gets no further.
    for (n, name) in ["mixed.example", "internal.example", "rebound.example", "metadata.example"].iter().enumerate() {
        let app = tempfile::tempdir().unwrap();
        let rest = format!(
            "[components.main.links]\n\"wasi:keyvalue\" = \"own\"\n\n[providers.own]\ntype = \"keyvalue-redis\"\nurl = \"redis://{name}:{port}\""
        );
        write_app(app.path(), &format!("own{n}"), "kv-counter", &rest).unwrap();
        let deployed = platform.cli(&["deploy", app.path().to_str().unwrap()]).unwrap();
        let told = String::from_utf8_lossy(&deployed.stderr).into_owned();
        assert!(!deployed.status.success() && told.contains("is not granted to this app"), "{name}: {told}");
    }
    assert_eq!(echo.knocks.load(Relaxed), known, "nobody knocked");
    let records = flows(&platform, "out");
    let rebound: Vec<_> = records.iter().filter(|r| r["host"] == "rebound.example").collect();
    let told: Vec<_> = rebound.iter().map(|r| (r["verdict"].as_str().unwrap(), r["address"].as_str())).collect();
    let first = format!("127.0.0.1:{port}");
    // A tenant is not told which address a name that it may not reach has.
    assert_eq!(told, [("connected", Some(first.as_str())), ("denied", None), ("denied", None), ("denied", None)]);
}
