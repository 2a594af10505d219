//! Components that misbehave end in a typed error and hurt nobody.

use std::collections::BTreeSet;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use fuzz::malformed;
use sidereal_tests::hostile::arena::{self, Arena, NOISY};
use sidereal_tests::hostile::cases;
use sidereal_tests::hostile::soak::{Victim, soak};
use sidereal_tests::load::Load;
use sidereal_tests::platform::{Platform, until, write_app};

#[test]
fn four_endless_loops_per_core_slow_nobody_else_and_do_not_keep_the_platform_from_stopping() {
    let (dir, evil, good) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut platform = Platform::start(dir.path(), &[]).unwrap();
    let account = platform.ok(&["keys", "list"]).unwrap();
    let account = account.as_array().unwrap().iter().find(|k| k["name"] == "account").unwrap()["key"]
        .as_str()
        .unwrap()
        .to_owned();
    platform.ok(&["--tenant", "noisy", "tenant-settings", "set", "--trust", &account]).unwrap();
    write_app(evil.path(), "evil", "probe", "limits = { cpu = \"20s\", wall = \"60s\" }").unwrap();
    platform.ok(&["--tenant", "noisy", "deploy", evil.path().to_str().unwrap()]).unwrap();
    write_app(good.path(), "good", "hello", "").unwrap();
    platform.ok(&["deploy", good.path().to_str().unwrap()]).unwrap();

    let cores = std::thread::available_parallelism().unwrap().get();
    let ingress = platform.ingress;
    for _ in 0..4 * cores {
        std::thread::spawn(move || drop(sidereal_tests::http::get(ingress, "evil.localhost", "/spin")));
    }
    let load = Load::start(platform.ingress, "good.localhost", "/", 4, Duration::from_millis(2));
    load.wait(500);
    if may_raise_priorities() {
        let gives_way = || platform.hosts().into_iter().any(|host| policy(host) == Some(SCHED_IDLE));
        until(Duration::from_secs(20), gives_way).expect("a host that computes gives way to all others");
    } else {
        sidereal_tests::not_run("that a host which computes gives way: this user may not raise a priority");
    }
    let report = load.stop();
    assert!(report.failures.is_empty(), "{:?}", report.failures);
    assert_eq!(platform.stop(Duration::from_secs(30)).unwrap().code(), Some(0), "loops do not keep it from stopping");
}

const SCHED_IDLE: u32 = 5;

/// Of a process's first thread, from field 41 of its stat.
fn policy(pid: u32) -> Option<u32> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/stat")).ok()?;
    stat.rsplit_once(')')?.1.split_whitespace().nth(38)?.parse().ok()
}

/// `CAP_SYS_NICE` is capability 23.
fn may_raise_priorities() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:")).unwrap();
    u64::from_str_radix(effective.trim(), 16).unwrap() & 1 << 23 != 0
}

#[test]
fn each_misbehaviour_has_its_own_answer_and_the_host_lives_on() {
    let (dir, app) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let platform = Platform::start(dir.path(), &["--shards", "1"]).unwrap();
    let limits = "limits = { cpu = \"100ms\", wall = \"2s\", memory = \"32MiB\" }";
    write_app(app.path(), "evil", "probe", limits).unwrap();
    platform.ok(&["deploy", app.path().to_str().unwrap()]).unwrap();
    let hosts = platform.hosts();
    for path in ["/spin", "/alloc", "/recurse", "/park", "/trap", "/handles", "/hostcopy", "/nobody"] {
        let answer = platform.get("evil.localhost", path).unwrap();
        assert!(answer.status >= 500, "{path}: {answer:?}");
        let fault = answer.header("sidereal-fault").unwrap_or_else(|| panic!("{path}: no fault named: {answer:?}"));
        assert!(["limit-reached", "component-trapped", "timed-out"].contains(&fault), "{path}: {fault}");
        assert!(!answer.body.trim().is_empty(), "{path}: says nothing");
    }
}
