//! `kill -9` at random points of deploys, link changes and deletes: after each restart the state is the one before or
//! after, and serving.

use std::path::Path;
use std::time::{Duration, Instant};

use rand::Rng as _;
use sidereal_tests::platform::{Platform, cli, until, write_app};

/// Kills in CI; `SIDEREAL_KILLS` raises it.
const KILLS: usize = 200;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Hello,
    Counter,
    Memory,
    Embedded,
    Delete,
}

impl Step {
    fn args<'a>(self, hello: &'a str, counter: &'a str) -> Vec<&'a str> {
        match self {
            Self::Hello => vec!["deploy", hello],
            Self::Counter => vec!["deploy", counter],
            Self::Memory => vec!["link", "set", "shop", "wasi:keyvalue=memory"],
            Self::Embedded => vec!["link", "set", "shop", "wasi:keyvalue=embedded"],
            Self::Delete => vec!["delete", "shop", "--confirm", "shop"],
        }
    }
}

/// Where a kill met a change.
#[derive(Debug, Default)]
struct Outcomes {
    /// After its answer.
    acknowledged: usize,
    /// It was made, and nobody was told.
    applied: usize,
    /// It was not made.
    lost: usize,
}

/// Bytes of the audit log: it says that a change begins before the change does.
fn audited(dir: &Path) -> u64 {
    let files = std::fs::read_dir(dir.join("audit")).into_iter().flatten();
    files.filter_map(|file| Some(file.ok()?.metadata().ok()?.len())).sum()
}

/// What the platform says it has: the content, not its number.
fn state(platform: &Platform) -> String {
    match platform.ok(&["status", "shop"]) {
        Ok(view) => {
            format!("{} {}", view["desired"]["app"]["components"]["main"]["digest"], view["desired"]["app"]["links"])
        }
        Err(_) => "deleted".to_owned(),
    }
}

fn serves(platform: &Platform, state: &str) {
    // What was recorded a moment before the kill is brought up after it.
    let wanted = if state == "deleted" { 404 } else { 200 };
    let answers = || platform.get("shop.localhost", "/").is_ok_and(|answer| answer.status == wanted);
    until(Duration::from_secs(10), answers).unwrap_or_else(|cause| panic!("{state}: {cause}"));
}

#[test]
fn no_acknowledged_change_is_lost_by_kill_9() {
    let kills = std::env::var("SIDEREAL_KILLS").ok().and_then(|n| n.parse().ok()).unwrap_or(KILLS);
    let (dir, hello, counter) =
        (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    write_app(hello.path(), "shop", "hello", "").unwrap();
    write_app(counter.path(), "shop", "kv-counter", "[components.main.links]\n\"wasi:keyvalue\" = \"embedded\"")
        .unwrap();
    let (hello, counter) = (hello.path().to_str().unwrap(), counter.path().to_str().unwrap());
    let mut rng = rand::rng();
    let mut platform = Platform::start(dir.path(), &["--shards", "1"]).unwrap();
    platform.ok(&["deploy", counter]).unwrap();
    // How long a change takes here from when the platform says that it begins: a kill is to meet any moment of that.
    let mut usual = Duration::ZERO;
    for step in [Step::Hello, Step::Counter, Step::Memory, Step::Embedded] {
        let said = audited(dir.path());
        let took = std::thread::scope(|scope| {
            let change = scope.spawn(|| cli(dir.path(), &step.args(hello, counter)).unwrap().status.success());
            until(Duration::from_secs(20), || audited(dir.path()) > said || change.is_finished()).unwrap();
            let begun = Instant::now();
            assert!(change.join().unwrap(), "{step:?}");
            begun.elapsed()
        });
        usual = usual.max(took);
    }
    let longest = u64::try_from(usual.as_micros()).unwrap() * 2 + 60_000;
    let mut outcomes = Outcomes::default();
    for done in 0..kills {
        let before = state(&platform);
        let step = match before.as_str() {
            "deleted" => [Step::Hello, Step::Counter][rng.random_range(0..2)],
            linked if linked.contains("wasi:keyvalue") => {
                [Step::Hello, Step::Memory, Step::Embedded, Step::Delete][rng.random_range(0..4)]
            }
            _ => [Step::Counter, Step::Delete][rng.random_range(0..2)],
        };
        // Now and then anywhere, also before the request; mostly once the platform says that the change begins.
        let anywhere = rng.random_ratio(1, 5);
        let delay =
            Duration::from_micros(if rng.random() { rng.random_range(0..8_000) } else { rng.random_range(0..longest) });
        let said = audited(dir.path());
        let acknowledged = std::thread::scope(|scope| {
            let change = scope.spawn(|| cli(dir.path(), &step.args(hello, counter)).unwrap().status.success());
            if !anywhere {
                let begun = || audited(dir.path()) > said || change.is_finished();
                until(Duration::from_secs(20), begun).unwrap();
            }
            // Not luck: the point of the kill is meant to be anywhere.
            std::thread::sleep(delay);
            platform.kill().unwrap();
            change.join().unwrap()
        });
        platform = Platform::start(dir.path(), &["--shards", "1"]).unwrap();
        let after = state(&platform);
        let wanted = match step {
            Step::Delete => after == "deleted",
            Step::Memory => after.contains("memory"),
            Step::Embedded => after.contains("embedded"),
            Step::Hello => !after.contains("wasi:keyvalue") && after != "deleted",
            Step::Counter => after.contains("wasi:keyvalue"),
        };
        match (acknowledged, wanted) {
            (true, _) => outcomes.acknowledged += 1,
            (false, true) => outcomes.applied += 1,
            (false, false) => outcomes.lost += 1,
        }
        assert!(
            wanted || (!acknowledged && after == before),
            "kill {done}: {step:?} (acknowledged: {acknowledged}) left {after}, before it was {before}"
        );
        serves(&platform, &after);
    }
    println!("{kills} kills: {outcomes:?}");
    // Otherwise nothing was shown: kills before every request lose nothing, and prove nothing.
    let enough = kills / 20;
    assert!(outcomes.acknowledged >= enough && outcomes.applied >= enough, "{outcomes:?}");
}
