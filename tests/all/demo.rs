//! The first minute of a new user.

use std::time::Duration;

use rustix::process::Signal;
use sidereal_tests::platform::{Platform, alive, cli, until};

fn count(platform: &Platform) -> u64 {
    let answer = platform.get("counter.localhost", "/").unwrap();
    assert_eq!(answer.status, 200, "{answer:?}");
    let digits: String = answer.body.chars().filter(char::is_ascii_digit).collect();
    digits.parse().unwrap_or_else(|_| panic!("no count in `{}`", answer.body))
}

#[test]
fn one_command_serves_a_counter_that_survives_kill_9() {
    let dir = tempfile::tempdir().unwrap();
    let platform = Platform::start(dir.path(), &["--demo"]).unwrap();
    let first = count(&platform);
    assert_eq!(count(&platform), first + 1);
    assert!(!platform.hosts().is_empty(), "components run in host processes");
    platform.kill().unwrap();

    let mut platform = Platform::start(dir.path(), &["--demo"]).unwrap();
    assert_eq!(count(&platform), first + 2, "acknowledged increments survive");
    let hosts = platform.hosts();
    let status = platform.stop(Duration::from_secs(20)).unwrap();
    assert_eq!(status.code(), Some(0), "SIGTERM drains and exits 0");
    until(Duration::from_secs(5), || hosts.iter().all(|pid| !alive(*pid))).expect("hosts end with the platform");
}

#[test]
fn a_second_up_says_who_runs() {
    let dir = tempfile::tempdir().unwrap();
    let platform = Platform::start(dir.path(), &[]).unwrap();
    let second = cli(dir.path(), &["up"]).unwrap();
    let text = String::from_utf8_lossy(&second.stderr);
    assert_eq!(second.status.code(), Some(4), "{text}");
    assert!(
        text.contains("already running") && text.contains(&platform.pid().to_string()) && text.contains("since"),
        "{text}"
    );
}

#[test]
fn a_taken_port_is_said_and_another_one_chosen() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let dir = tempfile::tempdir().unwrap();
    let platform = Platform::start(dir.path(), &["--demo", "--listen", &format!("127.0.0.1:{port}")]).unwrap();
    assert_ne!(platform.ingress.port(), port);
    assert!(count(&platform) > 0);
}

#[test]
fn ctrl_c_while_calls_are_in_flight_lets_them_finish() {
    let dir = tempfile::tempdir().unwrap();
    let app = tempfile::tempdir().unwrap();
    sidereal_tests::platform::write_app(app.path(), "slow", "probe", "limits = { wall = \"10s\" }").unwrap();
    let mut platform = Platform::start(dir.path(), &[]).unwrap();
    platform.ok(&["deploy", app.path().to_str().unwrap()]).unwrap();
    let ingress = platform.ingress;
    let call = std::thread::spawn(move || sidereal_tests::http::get(ingress, "slow.localhost", "/slow?ms=1500"));
    // The host counts it among the calls in flight before the signal is sent.
    until(Duration::from_secs(5), || platform.ok(&["status", "slow"]).is_ok_and(|v| v["in_flight"] == 1)).unwrap();
    Platform::signal(platform.pid(), Signal::INT).unwrap();
    assert_eq!(call.join().unwrap().unwrap().status, 200, "the call in flight finished");
    assert_eq!(platform.ended(Duration::from_secs(20)).unwrap().code(), Some(0));
}

#[test]
fn ctrl_c_before_it_is_ready_ends_it() {
    let (dir, app) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    // A server that takes connections and never says anything: the app that links to it is starting for seconds.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("redis://{}", silent.local_addr().unwrap());
    let link = |label: &str| format!("{{ label = \"{label}\", provider = \"cache\" }}");
    let links = format!("[components.main.links]\n\"wasi:keyvalue\" = [{}, {}]", link("default"), link("other"));
    sidereal_tests::platform::write_app(app.path(), "stuck", "kv-probe", &links).unwrap();
    {
        let platform = Platform::start(dir.path(), &[]).unwrap();
        platform.ok(&["provider", "add", "cache", "--type", "keyvalue-redis", "--url", &url]).unwrap();
        let deployed = platform.cli(&["deploy", app.path().to_str().unwrap()]).unwrap();
        assert!(!deployed.status.success(), "it cannot start");
    }
    let mut child = std::process::Command::new(sidereal_tests::binary())
        .args(["up", "-o", "json", "--listen", "127.0.0.1:0", "--api-listen", "127.0.0.1:0"])
        .args(["--metrics-listen", "127.0.0.1:0"])
        .env("SIDEREAL_DATA_DIR", dir.path())
        .stdin(std::process::Stdio::null())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let reachable = || cli(dir.path(), &["status"]).is_ok_and(|out| out.status.success());
    until(Duration::from_secs(10), reachable).unwrap();
    Platform::signal(child.id(), Signal::INT).unwrap();
    let mut said = String::new();
    std::io::Read::read_to_string(&mut child.stdout.take().unwrap(), &mut said).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0));
    assert_eq!(said, "", "it never was ready");
}
