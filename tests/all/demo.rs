//! The first minute of a new user.

use std::path::Path;
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
fn the_demo_needs_no_network_but_loopback() {
    let dir = tempfile::tempdir().unwrap();
    let Some(platform) = Platform::start_alone(dir.path(), &["--demo"]).unwrap() else {
        return sidereal_tests::not_run("the demo without a network: this user cannot make one of its own");
    };
    let run = |command: &mut std::process::Command| {
        let out = command.output().unwrap();
        assert!(out.status.success(), "{command:?}: {out:?}");
        String::from_utf8(out.stdout).unwrap()
    };
    let routes = run(platform.inside("cat").arg("/proc/net/route"));
    assert_eq!(routes.lines().count(), 1, "nothing leads out: {routes}");
    let url = format!("http://{}/", platform.ingress);
    let counted = run(platform.inside("curl").args(["-sSf", "--noproxy", "*", "-H", "host: counter.localhost", &url]));
    assert!(counted.contains(|c: char| c.is_ascii_digit()), "{counted}");
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
    let log = tempfile::NamedTempFile::new().unwrap();
    let flags = ["--demo", "--listen", &format!("127.0.0.1:{port}")];
    let platform = Platform::start_logging(dir.path(), &flags, log.reopen().unwrap().into()).unwrap();
    assert_ne!(platform.ingress.port(), port);
    assert!(count(&platform) > 0);
    let said = std::fs::read_to_string(log.path()).unwrap();
    assert!(said.contains(&format!("port {port} is taken: the ingress listens on {}", platform.ingress)), "{said}");
}

/// `up` as a person starts it, and what it says until it has said what to try next.
fn first_words(mut up: std::process::Command, data: &Path, folder: &Path) -> (std::process::Child, Vec<String>) {
    let mut child = up
        .env("SIDEREAL_LISTEN", "127.0.0.1:0")
        .env("SIDEREAL_API_LISTEN", "127.0.0.1:0")
        .env("SIDEREAL_METRICS_LISTEN", "127.0.0.1:0")
        .env("SIDEREAL_DATA_DIR", data)
        .current_dir(folder)
        .stdin(std::process::Stdio::null())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let lines = std::io::BufRead::lines(std::io::BufReader::new(child.stdout.take().unwrap()));
    let mut said = Vec::new();
    for line in lines.map_while(Result::ok) {
        let last = line.trim_start().starts_with("next ");
        said.push(line);
        if last {
            break;
        }
    }
    (child, said)
}

/// What is said after a name.
fn word<'s>(said: &'s [String], name: &str) -> &'s str {
    said.iter().find_map(|line| line.trim_start().strip_prefix(name)).unwrap_or_default().trim()
}

/// The command it says to try, as a shell runs it.
fn next(said: &[String]) -> std::process::Command {
    let command = word(said, "next ").split("   (").next().unwrap();
    let mut shell = std::process::Command::new("sh");
    // In place of the shell, so that a signal reaches it.
    shell.args(["-c", &format!("exec {command}")]);
    shell
}

fn stop(mut up: std::process::Child) {
    Platform::signal(up.id(), Signal::INT).unwrap();
    assert_eq!(up.wait().unwrap().code(), Some(0));
}

#[test]
fn the_first_words_say_where_it_answers_how_to_stop_and_what_to_try() {
    let (dir, empty) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut up = std::process::Command::new(sidereal_tests::binary());
    up.arg("up");
    let (child, said) = first_words(up, dir.path(), empty.path());
    assert!(word(&said, "ready in ").ends_with(" s"), "{said:?}");
    assert!(word(&said, "ingress ").starts_with("http://127.0.0.1:"), "{said:?}");
    assert!(word(&said, "api ").starts_with("http://127.0.0.1:"), "{said:?}");
    assert_eq!(word(&said, "stop "), "Ctrl-C", "{said:?}");
    assert_eq!(word(&said, "app "), "", "{said:?}");
    stop(child);

    // What it says to try works as it stands: it is an example that runs, and what that one says works as well.
    let (child, said) = first_words(next(&said), dir.path(), empty.path());
    let url = word(&said, "app ");
    assert!(url.starts_with("http://counter.localhost:"), "{said:?}");
    let ingress = word(&said, "ingress ").trim_start_matches("http://").parse().unwrap();
    let count = || sidereal_tests::http::get(ingress, "counter.localhost", "/").unwrap();
    assert_eq!((count().body.trim(), count().body.trim()), ("counter: 1", "counter: 2"));
    let swap = next(&said).current_dir(empty.path()).output().unwrap();
    assert!(swap.status.success(), "{said:?} {swap:?}");
    assert_eq!(count().body.trim(), "counter: 1", "another store counts from its own start");
    stop(child);
    assert_eq!(std::fs::read_dir(empty.path()).unwrap().count(), 0, "nothing is left behind");
}

#[test]
fn the_demo_leaves_the_counter_that_is_there_as_its_owner_made_it() {
    let (dir, app) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    {
        let platform = Platform::start(dir.path(), &["--demo"]).unwrap();
        platform.ok(&["link", "set", "counter", "wasi:keyvalue=memory"]).unwrap();
    }
    {
        let platform = Platform::start(dir.path(), &["--demo"]).unwrap();
        assert_eq!(platform.info["app"]["revision"], 2, "{}", platform.info);
        let links = platform.ok(&["link", "list", "counter"]).unwrap().to_string();
        assert!(links.contains("memory") && !links.contains("embedded"), "{links}");
        // One of somebody's own, of that name.
        sidereal_tests::platform::write_app(app.path(), "counter", "hello", "").unwrap();
        platform.ok(&["deploy", app.path().to_str().unwrap()]).unwrap();
    }
    let platform = Platform::start(dir.path(), &["--demo"]).unwrap();
    assert_eq!(platform.info["app"]["revision"], 3, "{}", platform.info);
    let body = platform.get("counter.localhost", "/").unwrap().body;
    assert!(!body.contains("counter: "), "{body}");
}

#[test]
fn the_platform_runs_although_the_counter_that_is_there_does_not() {
    let dir = tempfile::tempdir().unwrap();
    {
        let platform = Platform::start(dir.path(), &["--demo"]).unwrap();
        platform.ok(&["tenant", "suspend", "local", "--reason", "unpaid"]).unwrap();
    }
    let log = tempfile::NamedTempFile::new().unwrap();
    let platform = Platform::start_logging(dir.path(), &["--demo"], log.reopen().unwrap().into()).unwrap();
    assert!(platform.info.get("app").is_none(), "{}", platform.info);
    let said = std::fs::read_to_string(log.path()).unwrap();
    assert!(said.contains("the app `counter` that is there does not serve") && said.contains("unpaid"), "{said}");
    platform.ok(&["tenant", "resume", "local"]).unwrap();
}

#[test]
fn more_hosts_than_a_tenant_may_have_are_refused_before_anything_starts() {
    let dir = tempfile::tempdir().unwrap();
    for shards in ["0", "100"] {
        let out = cli(dir.path(), &["up", "--shards", shards]).unwrap();
        let text = String::from_utf8_lossy(&out.stderr);
        assert_eq!(out.status.code(), Some(2), "{text}");
        assert!(text.contains("1 to 64"), "{text}");
    }
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "nothing was made");
}

#[test]
fn an_api_that_listens_everywhere_is_called_by_loopback_and_by_the_names_it_was_given() {
    let dir = tempfile::tempdir().unwrap();
    let log = tempfile::NamedTempFile::new().unwrap();
    let flags = ["--api-listen", "0.0.0.0:0", "--api-name", "api.example"];
    let platform = Platform::start_logging(dir.path(), &flags, log.reopen().unwrap().into()).unwrap();
    let api = platform.info["api"].as_str().unwrap().strip_prefix("http://").unwrap();
    assert!(api.starts_with("127.0.0.1:"), "{api}");
    platform.ok(&["status"]).unwrap();
    let ask = |host: &str| sidereal_tests::http::get(api.parse().unwrap(), host, "/v1/version").unwrap().status;
    assert_eq!(ask("api.example"), 401, "it asks for a token");
    assert_eq!(ask("evil.example"), 403);
    let said = std::fs::read_to_string(log.path()).unwrap();
    assert!(said.contains("without TLS"), "{said}");
}

#[test]
fn ctrl_c_while_calls_are_in_flight_lets_them_finish() {
    let dir = tempfile::tempdir().unwrap();
    let app = tempfile::tempdir().unwrap();
    sidereal_tests::platform::write_app(app.path(), "slow", "probe", "limits = { wall = \"5m\" }").unwrap();
    let mut platform = Platform::start(dir.path(), &["--drain", "2m"]).unwrap();
    platform.ok(&["deploy", app.path().to_str().unwrap()]).unwrap();
    let mut call = sidereal_tests::http::Connection::open(platform.ingress).unwrap();
    assert_eq!(call.begin("slow.localhost").unwrap(), 200);
    // The host counts it among the calls in flight.
    until(Duration::from_secs(5), || platform.ok(&["status", "slow"]).is_ok_and(|v| v["in_flight"] == 1)).unwrap();
    Platform::signal(platform.pid(), Signal::INT).unwrap();
    let closed = || std::net::TcpStream::connect(platform.ingress).is_err();
    until(Duration::from_secs(20), closed).expect("nobody new is let in once it stops");
    // The terminal goes, with whoever pressed Ctrl-C.
    Platform::signal(platform.pid(), Signal::HUP).unwrap();
    assert!(call.finish().unwrap(), "the call in flight finished");
    assert_eq!(platform.ended(Duration::from_secs(20)).unwrap().code(), Some(0));
}

#[test]
fn calls_that_last_longer_than_the_drain_are_cut_and_counted() {
    let (dir, app) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let log = tempfile::NamedTempFile::new().unwrap();
    sidereal_tests::platform::write_app(app.path(), "slow", "probe", "limits = { wall = \"10m\" }").unwrap();
    let flags = ["--drain", "100ms"];
    let mut platform = Platform::start_logging(dir.path(), &flags, log.reopen().unwrap().into()).unwrap();
    platform.ok(&["deploy", app.path().to_str().unwrap()]).unwrap();
    let ingress = platform.ingress;
    let call = std::thread::spawn(move || sidereal_tests::http::get(ingress, "slow.localhost", "/slow?ms=500000"));
    until(Duration::from_secs(5), || platform.ok(&["status", "slow"]).is_ok_and(|v| v["in_flight"] == 1)).unwrap();
    Platform::signal(platform.pid(), Signal::INT).unwrap();
    assert_eq!(platform.ended(Duration::from_secs(20)).unwrap().code(), Some(0));
    assert!(!call.join().unwrap().is_ok_and(|answer| answer.status == 200), "it had no whole answer");
    let said = std::fs::read_to_string(log.path()).unwrap();
    assert!(said.contains("1 call was in flight still after 100ms, and cut"), "{said}");
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
    let mut words = Vec::new();
    // It says that it is ready after some seconds, whatever the app does: a machine that stands still for so long shows nothing.
    for _ in 0..4 {
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
        if said.is_empty() {
            return;
        }
        words.push(said);
    }
    panic!("it was ready each time: {words:?}");
}
