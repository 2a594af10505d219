//! Whom commands speak to and what they send there; and what the platform says where it cannot listen, or its terminal goes.

use std::net::{SocketAddr, TcpListener, ToSocketAddrs as _};
use std::process::{Command, Stdio};
use std::time::Duration;

use sidereal_tests::platform::{Platform, Signal, cli, write_app};
use sidereal_tests::{envelope, not_run};

fn api(platform: &Platform) -> SocketAddr {
    platform.info["api"].as_str().unwrap().strip_prefix("http://").unwrap().parse().unwrap()
}

#[test]
fn whoever_has_the_port_of_a_platform_that_was_killed_is_sent_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let platform = Platform::start(dir.path(), &[]).unwrap();
    let api = api(&platform);
    platform.kill().unwrap();
    assert!(dir.path().join("api.json").exists(), "what it said of itself is left");
    let other = TcpListener::bind(api).unwrap();
    other.set_nonblocking(true).unwrap();
    let out = cli(dir.path(), &["status", "-o", "json"]).unwrap();
    let problem = envelope::one(&out.stdout)["error"].clone();
    assert_eq!((out.status.code(), problem["code"].as_str()), (Some(6), Some("unreachable")), "{problem}");
    assert!(problem["detail"].as_str().unwrap().starts_with("nothing runs here"), "{problem}");
    assert_eq!(other.accept().unwrap_err().kind(), std::io::ErrorKind::WouldBlock, "nobody came");
}

#[test]
fn an_api_that_was_given_a_name_is_called_by_it() {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap().trim().to_owned();
    let addresses = (name.as_str(), 0).to_socket_addrs().into_iter().flatten();
    let Some(own) = addresses.map(|address| address.ip()).find(|ip| ip.is_loopback() && name != "localhost") else {
        return not_run("an API by its name: the name of this machine is not one of loopback");
    };
    let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let listen = SocketAddr::new(own, 0).to_string();
    let platform = Platform::start(dir.path(), &["--api-listen", &listen, "--api-name", &name]).unwrap();
    let url = format!("http://{name}:{}", api(&platform).port());
    let token = dir.path().join("token");
    let named = ["--api", &url, "--token-file", token.to_str().unwrap(), "status"];
    let out = cli(other.path(), &named).unwrap();
    assert!(out.status.success(), "{out:?}");
    // The token of this machine's operator is for this machine, and a name may lead anywhere.
    let out = cli(dir.path(), &["--api", &url, "status"]).unwrap();
    assert_eq!(out.status.code(), Some(5), "{out:?}");
    assert!(String::from_utf8_lossy(&out.stderr).contains("--token-file"), "{out:?}");
}

#[test]
fn what_is_followed_and_breaks_off_is_no_good_end() {
    let (dir, app) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut platform = Platform::start(dir.path(), &[]).unwrap();
    write_app(app.path(), "shop", "probe", "").unwrap();
    platform.ok(&["deploy", app.path().to_str().unwrap()]).unwrap();
    assert_eq!(platform.get("shop.localhost", "/log").unwrap().status, 200);
    let mut follow = Command::new(sidereal_tests::binary())
        .args(["logs", "shop", "-f", "-o", "json"])
        .env("SIDEREAL_DATA_DIR", dir.path())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = std::io::BufRead::lines(std::io::BufReader::new(follow.stdout.take().unwrap()));
    assert_eq!(envelope::one(lines.next().unwrap().unwrap().as_bytes())["ok"], true, "it follows");
    platform.stop(Duration::from_secs(30)).unwrap();
    let last = lines.map_while(Result::ok).last().unwrap();
    assert_eq!(follow.wait().unwrap().code(), Some(6));
    let problem = envelope::one(last.as_bytes())["error"].clone();
    assert_eq!(problem["code"], "unreachable", "{problem}");
    assert!(problem["detail"].as_str().unwrap().contains("the log of shop broke off"), "{problem}");
}

#[test]
fn nohup_keeps_the_platform_when_its_terminal_goes() {
    let dir = tempfile::tempdir().unwrap();
    let mut platform = Platform::start_nohup(dir.path(), &[]).unwrap();
    let status = std::fs::read_to_string(format!("/proc/{}/status", platform.pid())).unwrap();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:")).unwrap();
    assert_eq!(u64::from_str_radix(ignored.trim(), 16).unwrap() & 1, 1, "it leaves SIGHUP alone: {ignored}");
    Platform::signal(platform.pid(), Signal::HUP).unwrap();
    platform.ok(&["status"]).unwrap();
    assert_eq!(platform.stop(Duration::from_secs(30)).unwrap().code(), Some(0));
}

#[test]
fn an_address_that_cannot_be_had_is_said_with_the_flag_that_names_another() {
    // Of a range that no machine has.
    for flag in ["--listen", "--api-listen"] {
        let dir = tempfile::tempdir().unwrap();
        let free = ["--listen", "--api-listen", "--metrics-listen"].into_iter().filter(|other| *other != flag);
        let free: Vec<&str> = free.flat_map(|other| [other, "127.0.0.1:0"]).collect();
        let out = cli(dir.path(), &[&["up", "-o", "json", flag, "192.0.2.1:0"], &free[..]].concat()).unwrap();
        let problem = envelope::one(&out.stdout)["error"].clone();
        assert_eq!(problem["code"], "request-invalid", "{problem}");
        assert!(problem["help"].as_str().unwrap().ends_with(&format!("with {flag}")), "{problem}");
    }
}
