//! A platform that may open no more files: what is connected is served on, what comes waits and is told of in the log, and there
//! is room again as soon as somebody goes.

use std::net::TcpStream;
use std::time::Duration;

use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit};
use sidereal_tests::http::Connection;
use sidereal_tests::platform::{Platform, until, write_app};

/// Connections that ask for nothing: more than there are descriptors for.
const SILENT: usize = 200;
/// Descriptors beyond those in use.
const LEFT: u64 = 8;

fn open_files(platform: &Platform) -> u64 {
    std::fs::read_dir(format!("/proc/{}/fd", platform.pid())).unwrap().count() as u64
}

/// Sets how many files the platform may have open; what it was.
fn may_open(platform: &Platform, limit: Rlimit) -> Rlimit {
    prlimit(Pid::from_raw(i32::try_from(platform.pid()).unwrap()), Resource::Nofile, limit).unwrap()
}

#[test]
fn without_descriptors_what_is_connected_is_served_and_the_rest_comes_back() {
    let (dir, app) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let log = dir.path().join("log");
    let platform = Platform::start_logging(dir.path(), &["--shards", "1"], std::fs::File::create(&log).unwrap().into());
    let platform = platform.unwrap();
    write_app(app.path(), "web", "hello", "").unwrap();
    platform.ok(&["deploy", app.path().to_str().unwrap()]).unwrap();
    until(Duration::from_secs(10), || platform.get("web.localhost", "/").is_ok_and(|a| a.status == 200)).unwrap();
    let mut connected = Connection::open(platform.ingress).unwrap();
    let mut served = || connected.send("GET", "web.localhost", "/", b"").unwrap().status;
    assert_eq!(served(), 200);

    let most = open_files(&platform) + LEFT;
    let before = may_open(&platform, Rlimit { current: Some(most), maximum: getrlimit(Resource::Nofile).maximum });
    // The kernel takes them all; the platform has room for some.
    let silent: Vec<TcpStream> = (0..SILENT).map(|_| TcpStream::connect(platform.ingress).unwrap()).collect();
    let told = || std::fs::read_to_string(&log).unwrap().contains("could not be accepted");
    until(Duration::from_secs(10), told).unwrap();
    assert_eq!(served(), 200, "whoever was there is served on");

    // Others go, and there is room under the same limit.
    drop(silent);
    until(Duration::from_secs(20), || platform.get("web.localhost", "/").is_ok_and(|a| a.status == 200)).unwrap();
    assert_eq!(served(), 200);
    may_open(&platform, before);
    assert_eq!(platform.ok(&["status", "web"]).unwrap()["desired"]["app"]["name"], "web");
    let refused = std::fs::read_to_string(&log).unwrap().matches("could not be accepted").count();
    assert!(refused < 1000, "it waits between two tries: {refused}");
}
