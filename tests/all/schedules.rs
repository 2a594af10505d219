//! Schedules through the whole system: due every second, over deploys, failures, `kill -9` and deletes. The component
//! counts each due time under a key of its own, durable before it is acknowledged: a number above one is a double run.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use sidereal_tests::platform::{Platform, until, write_app};

const LINKS: &str = "\n[components.main.links]\n\"wasi:keyvalue\" = \"embedded\"\n";

fn app(dir: &Path, schedules: &[(&str, &str)]) -> String {
    let tables = schedules.iter().map(|(name, rest)| format!("\n[schedules.{name}]\ncomponent = \"main\"\n{rest}\n"));
    let rest = format!("{LINKS}{}", tables.collect::<String>());
    write_app(&dir.join("clock"), "clock", "scheduled", &rest).unwrap();
    dir.join("clock").to_str().unwrap().to_owned()
}

/// What the component counted: key and number.
fn counted(platform: &Platform) -> BTreeMap<String, u64> {
    let text = platform.get("clock.localhost", "/").unwrap().body;
    text.lines().filter_map(|line| line.split_once('=')).map(|(k, v)| (k.to_owned(), v.parse().unwrap())).collect()
}

fn dues(platform: &Platform, name: &str) -> Vec<u64> {
    let prefix = format!("due:{name}:");
    let all = counted(platform);
    let found = all.iter().filter_map(|(key, count)| Some((key.strip_prefix(&prefix)?.parse().unwrap(), *count)));
    let found: Vec<(u64, u64)> = found.collect();
    let twice: Vec<_> = found.iter().filter(|(_, count)| *count != 1).collect();
    assert!(twice.is_empty(), "run more than once: {twice:?}");
    found.into_iter().map(|(due, _)| due).collect()
}

fn listed(platform: &Platform, name: &str) -> serde_json::Value {
    let all = platform.ok(&["schedule", "list", "clock"]).unwrap();
    all.as_array().unwrap().iter().find(|one| one["name"] == name).cloned().unwrap_or_default()
}

#[test]
fn schedules_run_fail_are_listed_run_by_hand_and_go_with_their_app() {
    let dir = tempfile::tempdir().unwrap();
    let platform = Platform::start(&dir.path().join("data"), &[]).unwrap();
    let every = "cron = \"* * * * * *\"\ntimezone = \"Europe/Berlin\"";
    let folder = app(dir.path(), &[("tick", every), ("fail", every), ("nightly", "cron = \"0 3 * * *\"")]);
    platform.ok(&["deploy", &folder]).unwrap();
    until(Duration::from_secs(20), || dues(&platform, "tick").len() >= 3).unwrap();
    assert!(dues(&platform, "tick").iter().all(|due| due % 1000 == 0));
    until(Duration::from_secs(20), || listed(&platform, "fail")["failed"].as_u64() >= Some(2)).unwrap();
    let fail = listed(&platform, "fail");
    assert_eq!(fail["last"]["error"], "the component failed: it was told to");
    let tick = listed(&platform, "tick");
    assert!(tick["failed"] == 0 && tick["next_ms"].as_u64() > tick["last"]["due_ms"].as_u64(), "{tick}");
    platform.logged(&["clock"], "schedule `fail`: the component failed").unwrap();

    // By hand; the due time stays what it was.
    let due = listed(&platform, "nightly")["next_ms"].clone();
    let ran = platform.ok(&["schedule", "run", "clock", "nightly"]).unwrap();
    assert!(ran["manual"] == true && ran["error"].is_null(), "{ran}");
    assert_eq!(counted(&platform)["done:nightly"], 1);
    assert_eq!(listed(&platform, "nightly")["next_ms"], due);
    let failed = platform.cli(&["schedule", "run", "clock", "fail"]).unwrap();
    assert_ne!(failed.status.code(), Some(0));
    let missing = platform.cli(&["schedule", "run", "clock", "nothing"]).unwrap();
    assert_eq!(missing.status.code(), Some(3));

    // The next revision has another schedule: the old one ends.
    let folder = app(dir.path(), &[("tock", "cron = \"*/2 * * * * *\"")]);
    platform.ok(&["deploy", &folder]).unwrap();
    until(Duration::from_secs(20), || dues(&platform, "tock").len() >= 2).unwrap();
    let ticks = dues(&platform, "tick").len();
    assert!(dues(&platform, "tock").iter().all(|due| due % 2000 == 0));
    until(Duration::from_secs(20), || dues(&platform, "tock").len() >= 4).unwrap();
    assert_eq!(dues(&platform, "tick").len(), ticks, "it still ticks");
    assert_eq!(listed(&platform, "tick"), serde_json::Value::Null);

    platform.ok(&["delete", "clock", "--confirm", "clock"]).unwrap();
    let listing = platform.cli(&["schedule", "list", "clock"]).unwrap();
    assert_eq!(listing.status.code(), Some(3));
    assert_eq!(platform.ok(&["schedule", "list"]).unwrap(), serde_json::json!([]));
}

#[test]
fn no_due_time_is_run_twice_over_kill_9() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let every = "cron = \"* * * * * *\"\nmissed = \"all\"\nmissed-max = 5";
    let folder = app(dir.path(), &[("tick", every), ("slow-400", every)]);
    let mut platform = Platform::start(&data, &[]).unwrap();
    platform.ok(&["deploy", &folder]).unwrap();
    for round in 0..5_u64 {
        let before = dues(&platform, "tick").len();
        until(Duration::from_secs(20), || dues(&platform, "tick").len() >= before + 2).unwrap();
        // Somewhere around the next due time: before the claim, between claim and call, during the call, after it.
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
        let to_next = 1000 - u64::from(now.subsec_millis());
        std::thread::sleep(Duration::from_millis(to_next + round * 7));
        platform.kill().unwrap();
        platform = Platform::start(&data, &[]).unwrap();
        until(Duration::from_secs(20), || platform.get("clock.localhost", "/").is_ok_and(|a| a.status == 200)).unwrap();
    }
    let before = dues(&platform, "slow-400").len();
    until(Duration::from_secs(20), || dues(&platform, "slow-400").len() >= before + 2).unwrap();
    // `dues` has looked at every number; and what is listed agrees with what was counted.
    // It goes on meanwhile: those seen before the look were claimed by then, and those claimed are seen after it.
    let seen = || dues(&platform, "tick").len() as u64;
    let (before, runs, after) = (seen(), listed(&platform, "tick")["runs"].as_u64().unwrap(), seen());
    assert!(runs >= before && runs <= after + 6, "{before} were seen, {runs} were claimed, then {after} were seen");
}
