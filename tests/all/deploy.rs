//! Deploys, rollbacks and deletes, with traffic all the while.

use std::time::Duration;

use rustix::process::Signal;
use sidereal_tests::load::Load;
use sidereal_tests::platform::{Platform, until, write_app};

#[test]
fn no_request_fails_during_deploys_and_rollbacks() {
    let (dir, app) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let folder = app.path().to_str().unwrap();
    let platform = Platform::start(dir.path(), &[]).unwrap();
    write_app(app.path(), "shop", "hello", "").unwrap();
    platform.ok(&["deploy", folder]).unwrap();
    let load = Load::start(platform.ingress, "shop.localhost", "/", 8, Duration::from_millis(2));
    load.wait(50);
    for guest in ["kv-counter", "hello", "probe", "hello-p3"] {
        let link =
            if guest.starts_with("kv") { "[components.main.links]\n\"wasi:keyvalue\" = \"embedded\"" } else { "" };
        let logging = if guest == "probe" { "config = { greeting = \"hi\" }" } else { link };
        write_app(app.path(), "shop", guest, logging).unwrap();
        platform.ok(&["deploy", folder]).unwrap();
        load.wait(50);
        platform.ok(&["rollback", "shop"]).unwrap();
        load.wait(50);
    }
    let report = load.stop();
    assert!(report.failures.is_empty(), "{} good, failures: {:?}", report.good, report.failures);
}

#[test]
fn a_component_that_is_not_well_does_not_serve() {
    let (dir, app) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let folder = app.path().to_str().unwrap();
    let platform = Platform::start(dir.path(), &[]).unwrap();
    // It starts: without a health path that is all that is asked.
    write_app(app.path(), "shop", "probe", "").unwrap();
    platform.ok(&["deploy", folder]).unwrap();
    assert_eq!(platform.get("shop.localhost", "/trap").unwrap().status, 500);
    write_app(app.path(), "shop", "probe", "health = \"/\"").unwrap();
    platform.ok(&["deploy", folder]).unwrap();
    for (path, said) in [("/trap", "500 (component-trapped)"), ("/nothing", "404")] {
        write_app(app.path(), "shop", "probe", &format!("health = \"{path}\"")).unwrap();
        let out = platform.cli(&["deploy", folder, "-o", "json"]).unwrap();
        let envelope: serde_json::Value = serde_json::from_slice(&out.stdout).unwrap();
        assert_eq!(
            (out.status.code(), envelope["error"]["code"].as_str()),
            (Some(1), Some("probe-failed")),
            "{envelope}"
        );
        let detail = envelope["error"]["detail"].as_str().unwrap();
        assert!(detail.contains(&format!("`GET {path}` is answered with {said}")), "{detail}");
        assert_eq!(platform.ok(&["status", "shop"]).unwrap()["nodes"]["local"]["serving"], 2, "revision 2 goes on");
    }
}

#[test]
fn create_delete_create_serves_again() {
    let (dir, app) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let folder = app.path().to_str().unwrap();
    let platform = Platform::start(dir.path(), &[]).unwrap();
    write_app(app.path(), "again", "hello", "").unwrap();
    for _ in 0..3 {
        platform.ok(&["deploy", folder]).unwrap();
        assert_eq!(platform.get("again.localhost", "/").unwrap().status, 200);
        assert!(!platform.cli(&["delete", "again"]).unwrap().status.success(), "nothing is deleted without its name");
        platform.ok(&["delete", "again", "--confirm", "again"]).unwrap();
        until(Duration::from_secs(5), || platform.get("again.localhost", "/").is_ok_and(|a| a.status == 404)).unwrap();
    }
}

#[test]
fn a_killed_host_fails_only_its_calls_in_flight_and_comes_back() {
    let (dir, app) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let platform = Platform::start(dir.path(), &["--shards", "1"]).unwrap();
    write_app(app.path(), "shop", "hello", "").unwrap();
    platform.ok(&["deploy", app.path().to_str().unwrap()]).unwrap();
    let connections = 8;
    let load = Load::start(platform.ingress, "shop.localhost", "/", connections, Duration::from_millis(1));
    for _ in 0..3 {
        load.wait(100);
        let hosts = platform.hosts();
        assert_eq!(hosts.len(), 1);
        Platform::signal(hosts[0], Signal::KILL).unwrap();
        until(Duration::from_secs(10), || platform.hosts().iter().any(|pid| !hosts.contains(pid))).unwrap();
    }
    load.wait(100);
    let report = load.stop();
    assert!(report.failures.len() <= 3 * connections, "{:?}", report.failures);
}

#[test]
fn a_failed_deploy_leaves_the_old_revision_serving_and_says_why() {
    let (dir, app) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let folder = app.path().to_str().unwrap();
    let platform = Platform::start(dir.path(), &[]).unwrap();
    write_app(app.path(), "shop", "hello", "").unwrap();
    platform.ok(&["deploy", folder]).unwrap();
    write_app(app.path(), "shop", "start-spin", "").unwrap();
    let out = platform.cli(&["deploy", folder, "-o", "json"]).unwrap();
    assert!(!out.status.success());
    let envelope: serde_json::Value = serde_json::from_slice(&out.stdout).unwrap();
    let detail = envelope["error"]["detail"].as_str().unwrap();
    assert!(!detail.is_empty(), "{envelope}");
    assert_eq!(platform.get("shop.localhost", "/").unwrap().status, 200, "revision 1 goes on");
    let status = platform.ok(&["status", "shop"]).unwrap();
    assert_eq!(status["nodes"]["local"]["serving"], 1, "{status}");
    assert_eq!(status["nodes"]["local"]["reason"]["message"].as_str(), Some(detail), "the same sentence everywhere");
}

#[test]
fn a_rollback_goes_back_to_what_served_however_often_a_deploy_was_tried() {
    let (dir, app) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let folder = app.path().to_str().unwrap();
    let platform = Platform::start(dir.path(), &[]).unwrap();
    write_app(app.path(), "shop", "hello", "").unwrap();
    platform.ok(&["deploy", folder]).unwrap();
    write_app(app.path(), "shop", "start-spin", "").unwrap();
    for _ in 0..2 {
        assert!(!platform.cli(&["deploy", folder]).unwrap().status.success());
    }
    let back = platform.ok(&["rollback", "shop"]).unwrap();
    assert_eq!(back["revision"], 4, "{back}");
    let status = platform.ok(&["status", "shop"]).unwrap();
    assert_eq!(status["nodes"]["local"]["serving"], 4, "{status}");
    assert_eq!(status["desired"]["origin"]["to"], 1, "{status}");
    assert_eq!(platform.get("shop.localhost", "/").unwrap().body, "hello");
}

#[test]
fn the_only_good_revision_is_there_however_many_newer_ones_fail() {
    let (dir, app) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let folder = app.path().to_str().unwrap();
    let mut platform = Platform::start(dir.path(), &[]).unwrap();
    write_app(app.path(), "shop", "hello", "").unwrap();
    platform.ok(&["deploy", folder]).unwrap();
    write_app(app.path(), "shop", "start-spin", "").unwrap();
    // One more than the revisions that are kept.
    for _ in 0..51 {
        assert!(!platform.cli(&["deploy", folder]).unwrap().status.success());
    }
    let answers = |platform: &Platform| platform.get("shop.localhost", "/").is_ok_and(|answer| answer.body == "hello");
    assert!(answers(&platform));
    platform.stop(Duration::from_secs(20)).unwrap();
    let platform = Platform::start(dir.path(), &[]).unwrap();
    assert!(answers(&platform), "it serves what it served");
    let back = platform.ok(&["rollback", "shop", "1"]).unwrap();
    assert_eq!(back["revision"], 53, "{back}");
    assert!(answers(&platform));
}
