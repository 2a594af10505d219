//! The audit log of the real binary when its disk is full, and when the platform is killed in the middle: no change without
//! its line, no line lost that a change was acknowledged with.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use api::client::{ControlClient, Require};
use api::control::ConfigRequest;
use model::TenantName;
use rand::Rng as _;
use sidereal_tests::not_run;
use sidereal_tests::platform::{Platform, mounts, write_app};

/// Kills in CI; `SIDEREAL_KILLS` raises it.
const KILLS: usize = 20;
/// Who changes something at the same time, and how many configs each has.
const LANES: usize = 4;
const NAMES: usize = 25;

fn tenant() -> TenantName {
    "local".parse().unwrap()
}

fn client(platform: &Platform, dir: &Path) -> ControlClient {
    let address = platform.info["api"].as_str().unwrap().trim_start_matches("http://").parse().unwrap();
    ControlClient::new(address, std::fs::read_to_string(dir.join("token")).unwrap().trim())
}

fn request(value: usize) -> ConfigRequest {
    ConfigRequest { values: [("n".to_owned(), value.to_string())].into() }
}

#[test]
fn on_a_full_disk_changes_are_refused_and_nothing_is_half_done() {
    if mounts().is_none() {
        return not_run("the audit log on a full disk: this machine gives no private mounts");
    }
    let (dir, app) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let log = dir.path().join("audit");
    std::fs::create_dir(&log).unwrap();
    let setup = format!("mount -t tmpfs -o size=512k none '{}'", log.display());
    let platform = Platform::start_mounted(dir.path(), &["--shards", "1"], &setup).unwrap();
    let log = Path::new("/proc").join(platform.pid().to_string()).join("root").join(log.strip_prefix("/").unwrap());
    write_app(app.path(), "web", "hello", "").unwrap();
    let folder = app.path().to_str().unwrap();
    platform.ok(&["deploy", folder]).unwrap();
    platform.ok(&["config", "set", "c", "n=0"]).unwrap();

    let ballast = log.join("ballast");
    let mut file = std::fs::File::create(&ballast).unwrap();
    while file.write_all(&[1; 512]).is_ok() {}
    drop(file);
    // The page that is being written may have room for some lines; a change that has its line is done, whole.
    let mut kept = 0;
    let refused = loop {
        let output = platform.cli(&["-o", "json", "config", "set", "c", &format!("n={}", kept + 1)]).unwrap();
        if !output.status.success() {
            break output;
        }
        kept += 1;
        assert!(kept < 1000, "the disk never filled");
    };
    let code = |output: &std::process::Output| {
        let text = String::from_utf8_lossy(&output.stdout);
        let envelope: serde_json::Value = serde_json::from_str(text.lines().last().unwrap_or_default()).unwrap();
        let message = envelope["error"].to_string();
        assert!(message.contains("audit log cannot be written, so nothing was changed"), "{message}");
        envelope["error"]["code"].as_str().unwrap().to_owned()
    };
    assert_eq!(code(&refused), "store-unavailable");
    let state = || {
        let config = platform.ok(&["config", "get", "c"]).unwrap();
        let tenants = platform.ok(&["tenant", "list"]).unwrap();
        let secrets = platform.ok(&["secret", "list"]).unwrap();
        let status = platform.ok(&["status", "web"]).unwrap()["desired"].clone();
        (config["values"].clone(), tenants.as_array().unwrap().len(), secrets, status)
    };
    let before = state();
    assert_eq!(before.0, serde_json::json!({"n": kept.to_string()}));
    for change in [
        &["config", "set", "c", "n=later"][..],
        &["tenant", "create", "acme"],
        &["tenant", "suspend", "local", "--reason", "x"],
        &["delete", "web", "--confirm", "web"],
        &["deploy", folder],
        &["config", "delete", "c"],
        &["tenant-settings", "set", "--allow-egress", "10.0.0.0/8"],
    ] {
        let output = platform.cli(&[&["-o", "json"], change].concat()).unwrap();
        assert!(!output.status.success(), "{change:?} was done without its line");
        assert_eq!(code(&output), "store-unavailable", "{change:?}");
    }
    assert_eq!(state(), before);
    assert_eq!(platform.get("web.localhost", "/").unwrap().status, 200, "what serves goes on");

    std::fs::remove_file(&ballast).unwrap();
    platform.ok(&["config", "set", "c", "n=after"]).unwrap();
    platform.ok(&["tenant", "create", "acme"]).unwrap();
    let report = platform.ok(&["audit", "verify"]).unwrap();
    assert_eq!(report["problems"], serde_json::json!([]), "{report}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tenants_are_refused_before_the_disk_is_full_and_the_operator_is_not() {
    if mounts().is_none() {
        return not_run("the audit log on a disk that is nearly full: this machine gives no private mounts");
    }
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("audit");
    std::fs::create_dir(&log).unwrap();
    let setup = format!("mount -t tmpfs -o size=4m none '{}'", log.display());
    let platform = Platform::start_mounted(dir.path(), &["--shards", "1"], &setup).unwrap();
    let log = Path::new("/proc").join(platform.pid().to_string()).join("root").join(log.strip_prefix("/").unwrap());
    let made = platform.ok(&["tenant", "token", "create", "--role", "deployer"]).unwrap();
    let address = platform.info["api"].as_str().unwrap().trim_start_matches("http://").parse().unwrap();
    let deployer = ControlClient::new(address, made["token"].as_str().unwrap());
    let set = |value: usize| {
        let (deployer, name) = (deployer.clone(), "c".parse().unwrap());
        async move { deployer.put_config(&tenant(), &name, &request(value), Require::Any).await }
    };
    set(1).await.unwrap();
    // A twentieth is about 200 KiB: half of that stays free.
    let ballast = log.join("ballast");
    let mut file = std::fs::File::create(&ballast).unwrap();
    while file.write_all(&[1; 4096]).is_ok() {}
    file.set_len(file.metadata().unwrap().len() - (100 << 10)).unwrap();
    let problem = set(2).await.unwrap_err().problem();
    assert!(problem.code == api::Code::StoreUnavailable && problem.detail.contains("nearly full"), "{problem:?}");
    platform.ok(&["config", "set", "c", "n=3"]).unwrap();
    drop(file);
    std::fs::remove_file(&ballast).unwrap();
    set(4).await.unwrap();
}

/// What each lane had acknowledged of each of its configs, and what it asked for last.
#[derive(Default, Clone)]
struct Known {
    acknowledged: BTreeMap<String, (usize, usize)>,
    asked: BTreeMap<String, usize>,
}

/// Changes one config after the other until the platform is gone.
async fn change(client: ControlClient, lane: usize, known: Arc<Mutex<Known>>, gone: Arc<AtomicBool>) {
    for n in 1.. {
        let name = format!("c{lane}-{}", n % NAMES);
        let value = known.lock().unwrap().asked.get(&name).copied().unwrap_or_default() + 1;
        known.lock().unwrap().asked.insert(name.clone(), value);
        if gone.load(Ordering::SeqCst) {
            return;
        }
        match client.put_config(&tenant(), &name.parse().unwrap(), &request(value), Require::Any).await {
            Ok(_) => {
                let mut known = known.lock().unwrap();
                let (count, last) = known.acknowledged.entry(name).or_default();
                (*count, *last) = (*count + 1, value);
            }
            Err(cause) => {
                assert!(gone.load(Ordering::SeqCst), "{cause}");
                return;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kill_9_in_the_middle_loses_no_line_of_an_acknowledged_change() {
    let kills = std::env::var("SIDEREAL_KILLS").ok().and_then(|n| n.parse().ok()).unwrap_or(KILLS);
    let dir = tempfile::tempdir().unwrap();
    let known = Arc::new(Mutex::new(Known::default()));
    let mut rng = rand::rng();
    let mut platform = Platform::start(dir.path(), &["--shards", "1"]).unwrap();
    for round in 0..kills {
        let gone = Arc::new(AtomicBool::new(false));
        let client = client(&platform, dir.path());
        let lanes = (0..LANES).map(|lane| tokio::spawn(change(client.clone(), lane, known.clone(), gone.clone())));
        let lanes: Vec<_> = lanes.collect();
        // Not luck: the point of the kill is meant to be anywhere.
        tokio::time::sleep(Duration::from_micros(rng.random_range(0..40_000))).await;
        gone.store(true, Ordering::SeqCst);
        platform.kill().unwrap();
        for lane in lanes {
            lane.await.unwrap();
        }
        platform = Platform::start(dir.path(), &["--shards", "1"]).unwrap();
        let client = self::client(&platform, dir.path());
        let report = client.verify_audit().await.unwrap();
        assert_eq!(report.problems, [""; 0], "round {round}");
        let lines = client.audit(None, 10_000).await.unwrap();
        let known = known.lock().unwrap().clone();
        for (name, (count, last)) in &known.acknowledged {
            let what = format!("PUT /v1/tenants/local/configs/{name}");
            let done = lines.iter().filter(|line| line.what == what && line.outcome == "done");
            assert!(done.clone().count() >= *count, "round {round}: {name} was acknowledged {count} times");
            assert!(done.clone().all(|line| line.begun.is_some()), "each says when it was begun");
            let config = client.config(&tenant(), &name.parse().unwrap()).await.unwrap();
            let value: usize = config.values["n"].parse().unwrap();
            assert!((*last..=known.asked[name]).contains(&value), "round {round}: {name} is {value}, was {last}");
        }
        if lines.len() >= 9_000 {
            break;
        }
    }
    let known = known.lock().unwrap();
    let all: usize = known.acknowledged.values().map(|(count, _)| count).sum();
    assert!(all > 0, "nothing was ever acknowledged");
    println!("{all} acknowledged changes");
}

#[test]
fn what_the_platform_does_by_itself_is_written_down_too() {
    let (dir, files) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let file = files.path().join("token");
    std::fs::write(&file, "first").unwrap();
    let flag = format!("door={}", file.display());
    let platform =
        Platform::start(dir.path(), &["--shards", "1", "--waive", "missing", "--secret-file", &flag]).unwrap();
    let lines = || {
        let all = platform.ok(&["audit"]).unwrap();
        let all = all.as_array().unwrap_or_else(|| panic!("{all}")).clone();
        let own = all.into_iter().filter(|line| line["who"] == "the platform" && line["tenant"] == "local");
        let word = |line: &serde_json::Value, field: &str| line[field].as_str().unwrap().to_owned();
        own.map(|line| format!("{} {}", word(&line, "outcome"), word(&line, "what"))).collect::<Vec<_>>()
    };
    let made = "makes the tenant at its first start";
    let set = "sets the secret door from its file";
    let mut told = lines();
    told.sort();
    assert_eq!(told, [format!("begun {made}"), format!("begun {set}"), format!("done {made}"), format!("done {set}")]);
    // And again when the file holds something else.
    std::fs::write(&file, "hunter2").unwrap();
    let twice = || lines().iter().filter(|line| line.ends_with(set)).count() == 4;
    sidereal_tests::platform::until(Duration::from_secs(20), twice).unwrap();
    // No value is there.
    let log = platform.cli(&["audit"]).unwrap();
    let log = String::from_utf8_lossy(&log.stdout).into_owned();
    assert!(log.contains(set) && !log.contains("hunter2"), "{log}");
    assert!(platform.cli(&["audit", "verify"]).unwrap().status.success());
}
