//! `kill -9` at random points of deploys, link changes and deletes: after each restart the state is the one before or
//! after, and serving.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

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
    let mut done = 0;
    while done < kills {
        let before = state(&platform);
        let step = match before.as_str() {
            "deleted" => [Step::Hello, Step::Counter][rng.random_range(0..2)],
            linked if linked.contains("wasi:keyvalue") => {
                [Step::Hello, Step::Memory, Step::Embedded, Step::Delete][rng.random_range(0..4)]
            }
            _ => [Step::Counter, Step::Delete][rng.random_range(0..2)],
        };
        let acknowledged = AtomicBool::new(false);
        let delay = Duration::from_micros(rng.random_range(0..60_000));
        std::thread::scope(|scope| {
            let change = scope.spawn(|| {
                let out = cli(dir.path(), &step.args(hello, counter)).unwrap();
                acknowledged.store(out.status.success(), Ordering::SeqCst);
            });
            // Not luck: the point of the kill is meant to be anywhere.
            std::thread::sleep(delay);
            platform.kill().unwrap();
            change.join().unwrap();
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
        let acknowledged = acknowledged.load(Ordering::SeqCst);
        assert!(
            wanted || (!acknowledged && after == before),
            "kill {done}: {step:?} (acknowledged: {acknowledged}) left {after}, before it was {before}"
        );
        serves(&platform, &after);
        done += 1;
    }
}
