//! A tenant that asks for more than its quotas: told so with 429 and 503, and nobody beside it notices.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use sidereal_tests::hostile::arena::NOISY;
use sidereal_tests::http::{self, Connection};
use sidereal_tests::load::Load;
use sidereal_tests::platform::{Platform, until, write_app};

const RATE: u32 = 20;
/// How many it may have in one moment.
const BURST: u32 = 10;
const AT_ONCE: usize = 3;

#[test]
fn a_noisy_tenant_gets_429_and_503_and_its_neighbour_neither() {
    let (dir, app) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let platform = Platform::start(dir.path(), &["--shards", "1"]).unwrap();
    let keys = platform.ok(&["keys", "list"]).unwrap();
    let key = keys.as_array().unwrap().iter().find(|key| key["name"] == "account").unwrap()["key"].clone();
    let (rate, at_once) = (RATE.to_string(), AT_ONCE.to_string());
    let quotas = ["--shards", "1", "--requests-per-second", &rate, "--concurrent-requests", &at_once];
    platform.ok(&[&["tenant", "create", NOISY, "--trust", key.as_str().unwrap()][..], &quotas].concat()).unwrap();
    write_app(app.path(), "loud", "probe", "limits = { wall = \"5m\" }").unwrap();
    platform.ok(&["--tenant", NOISY, "deploy", app.path().to_str().unwrap()]).unwrap();
    write_app(app.path(), "victim", "hello", "").unwrap();
    platform.ok(&["deploy", app.path().to_str().unwrap()]).unwrap();
    let victim = Load::start(platform.ingress, "victim.localhost", "/", 2, Duration::from_millis(2));

    // Too many a second: what is over the rate is told when to come back. It goes on until it had much more than at once.
    let (begun, mut statuses) = (Instant::now(), BTreeMap::<u16, u32>::new());
    let mut connection = Connection::open(platform.ingress).unwrap();
    while statuses.get(&200).is_none_or(|good| *good < 6 * BURST) || !statuses.contains_key(&429) {
        assert!(begun.elapsed() < Duration::from_secs(120), "it does not get what it may have: {statuses:?}");
        let answer = connection.send("GET", "loud.localhost", "/", &[]).unwrap();
        *statuses.entry(answer.status).or_default() += 1;
        if answer.status == 429 {
            assert_eq!(answer.header("sidereal-fault"), Some("rate-limited"));
            let after: u64 = answer.header("retry-after").unwrap().parse().unwrap();
            assert!((1..=2).contains(&after), "{after}");
        }
    }
    let granted = f64::from(RATE) * begun.elapsed().as_secs_f64() + f64::from(BURST);
    assert_eq!(statuses.len(), 2, "{statuses:?}");
    assert!(f64::from(statuses[&200]) <= granted + 1.0, "{statuses:?}, and {granted} may be good");

    // Too many at once: what is over is refused at once, not kept waiting.
    platform.ok(&["tenant", "set", NOISY, "--requests-per-second", "none"]).unwrap();
    let ingress = platform.ingress;
    let all_taken = || (0..20).all(|_| http::get(ingress, "loud.localhost", "/").unwrap().status == 200);
    until(Duration::from_secs(10), all_taken).expect("a quota that is lifted holds nobody back");
    let mut held = Vec::new();
    let all_held = || {
        // The last one that was answered may keep its place for a moment.
        let mut call = Connection::open(ingress).unwrap();
        match call.begin("loud.localhost").unwrap() {
            200 => held.push(call),
            status => assert_eq!(status, 503),
        }
        held.len() == AT_ONCE
    };
    until(Duration::from_secs(10), all_held).expect("it has as many at once as it may");
    victim.wait(50);
    let refused = http::get(ingress, "loud.localhost", "/").unwrap();
    assert_eq!((refused.status, refused.header("sidereal-fault")), (503, Some("busy")), "{refused:?}");
    assert!(refused.header("retry-after").is_some(), "{refused:?}");
    for call in held {
        assert!(call.finish().unwrap(), "those it may have go on");
    }
    until(Duration::from_secs(10), || http::get(ingress, "loud.localhost", "/").unwrap().status == 200).unwrap();
    victim.wait(50);
    let report = victim.stop();
    assert!(report.failures.is_empty(), "{:?}", report.failures);
}
