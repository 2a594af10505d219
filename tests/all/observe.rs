//! What goes on can be seen: counters that never fall, on the command line and in Prometheus text.

use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::process::Signal;
use sidereal_tests::http;
use sidereal_tests::platform::{Platform, alive, until, write_app};

const LINKED: &str = "[components.main.links]\n\"wasi:keyvalue\" = \"embedded\"";

fn counter(platform: &Platform, dir: &std::path::Path) {
    write_app(dir, "counter", "kv-counter", LINKED).unwrap();
    platform.ok(&["deploy", dir.to_str().unwrap()]).unwrap();
}

fn ask(platform: &Platform, times: usize) {
    for _ in 0..times {
        assert_eq!(platform.get("counter.localhost", "/").unwrap().status, 200);
    }
}

/// The sum of the samples whose line starts with `metric` and has all of `labels`.
fn metric(platform: &Platform, metric: &str, labels: &[&str]) -> f64 {
    let url = platform.info["metrics"].as_str().unwrap();
    let address = url.strip_prefix("http://").unwrap().strip_suffix("/metrics").unwrap();
    let answer = http::get(address.parse().unwrap(), address, "/metrics").unwrap();
    assert_eq!(answer.status, 200, "{answer:?}");
    let lines =
        answer.body.lines().filter(|line| line.strip_prefix(metric).is_some_and(|rest| rest.starts_with(['{', ' '])));
    let lines = lines.filter(|line| labels.iter().all(|label| line.contains(label)));
    lines.map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap()).sum()
}

#[test]
fn counters_never_fall_over_swaps_and_killed_hosts() {
    let (dir, app) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let platform = Platform::start(dir.path(), &["--shards", "2"]).unwrap();
    counter(&platform, app.path());
    ask(&platform, 20);
    let link = |provider: &str| metric(&platform, "sidereal_link_calls_total", &[&format!("provider=\"{provider}\"")]);
    let calls = || metric(&platform, "sidereal_component_calls_total", &["app=\"counter\""]);
    // The last call may be counted after its answer, and a reading answers for a moment.
    until(Duration::from_secs(5), || calls() == 20.0).unwrap_or_else(|_| panic!("{} calls", calls()));
    let each = link("embedded") / 20.0;
    assert!(each >= 1.0, "a request calls the store");
    let answered = || metric(&platform, "sidereal_ingress_requests_total", &["class=\"2xx\""]);
    until(Duration::from_secs(5), || answered() == 20.0).unwrap_or_else(|_| panic!("{} answers", answered()));

    // The revision that called over the embedded link leaves; what it counted stays.
    platform.ok(&["link", "set", "counter", "wasi:keyvalue=memory"]).unwrap();
    ask(&platform, 5);
    until(Duration::from_secs(5), || calls() == 25.0).unwrap();
    assert_eq!((link("embedded"), link("memory"), calls()), (20.0 * each, 5.0 * each, 25.0));
    platform.ok(&["link", "set", "counter", "wasi:keyvalue=embedded"]).unwrap();

    // Nor does anything fall when every host is killed.
    let hosts = platform.hosts();
    for pid in &hosts {
        Platform::signal(*pid, Signal::KILL).unwrap();
    }
    until(Duration::from_secs(20), || {
        !hosts.iter().any(|pid| alive(*pid)) && platform.get("counter.localhost", "/").is_ok_and(|a| a.status == 200)
    })
    .unwrap();
    until(Duration::from_secs(20), || calls() >= 26.0).unwrap();
    assert!(link("embedded") >= 21.0 * each && link("memory") == 5.0 * each);
    // One of them may answer before the node has heard of the end of the other one.
    let restarts = || metric(&platform, "sidereal_host_restarts_total", &[]);
    until(Duration::from_secs(20), || restarts() >= hosts.len() as f64).unwrap_or_else(|_| panic!("{}", restarts()));

    // An app that is deleted is not told any more.
    platform.ok(&["delete", "counter", "--confirm", "counter"]).unwrap();
    until(Duration::from_secs(20), || metric(&platform, "sidereal_link_calls_total", &[]) == 0.0).unwrap();
}

#[test]
fn top_tells_rates_once_or_until_it_is_stopped() {
    let (dir, app) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let platform = Platform::start(dir.path(), &[]).unwrap();
    counter(&platform, app.path());
    let load =
        sidereal_tests::load::Load::start(platform.ingress, "counter.localhost", "/", 2, Duration::from_millis(2));
    load.wait(20);
    // In one interval the load may have stood still.
    let mut top = serde_json::Value::Null;
    let goes_on = || {
        top = platform.ok(&["top", "--interval", "500ms"]).unwrap();
        top["components"][0]["per_second"].as_f64().is_some_and(|rate| rate > 1.0)
    };
    until(Duration::from_secs(20), goes_on).unwrap_or_else(|_| panic!("no interval has calls"));
    let link = &top["links"][0];
    assert_eq!(
        (link["provider"].as_str(), link["errors_per_second"].as_object().unwrap().len()),
        (Some("embedded"), 0)
    );
    assert!(link["p50_us"].as_f64().unwrap() <= link["p99_us"].as_f64().unwrap(), "{link}");
    let text = String::from_utf8(platform.cli(&["top", "counter", "--interval", "250ms"]).unwrap().stdout).unwrap();
    assert!(text.contains("counter/main wasi:keyvalue default -> embedded") && !text.contains('\u{1b}'), "{text}");
    assert_eq!(platform.cli(&["top", "nobody"]).unwrap().status.code(), Some(3));
    assert_eq!(platform.cli(&["top", "--interval", "1ms"]).unwrap().status.code(), Some(2));

    // One envelope per interval until Ctrl-C, which is no failure.
    let mut child = Command::new(sidereal_tests::binary())
        .args(["top", "--follow", "-o", "json", "--interval", "250ms"])
        .env("SIDEREAL_DATA_DIR", dir.path())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = std::io::BufRead::lines(std::io::BufReader::new(child.stdout.take().unwrap()));
    for _ in 0..3 {
        let envelope: serde_json::Value = serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap();
        assert_eq!(envelope["ok"], true);
    }
    Platform::signal(child.id(), Signal::INT).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0));
    assert!(load.stop().failures.is_empty());
}
