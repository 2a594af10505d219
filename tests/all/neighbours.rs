//! A tenant that asks for more than its quotas: told so with 429 and 503, and nobody beside it notices.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use sidereal_tests::hostile::arena::NOISY;
use sidereal_tests::http::{self, Connection};
use sidereal_tests::load::Load;
use sidereal_tests::platform::{Platform, until, write_app};

const RATE: u32 = 40;
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
    write_app(app.path(), "loud", "probe", "limits = { wall = \"60s\" }").unwrap();
    platform.ok(&["--tenant", NOISY, "deploy", app.path().to_str().unwrap()]).unwrap();
    write_app(app.path(), "victim", "hello", "").unwrap();
    platform.ok(&["deploy", app.path().to_str().unwrap()]).unwrap();
    let victim = Load::start(platform.ingress, "victim.localhost", "/", 2, Duration::from_millis(2));

    // Too many a second: what is over the rate is told when to come back.
    let (begun, mut statuses) = (Instant::now(), BTreeMap::<u16, u32>::new());
    let mut connection = Connection::open(platform.ingress).unwrap();
    while begun.elapsed() < Duration::from_secs(2) {
        let answer = connection.send("GET", "loud.localhost", "/", &[]).unwrap();
        *statuses.entry(answer.status).or_default() += 1;
        if answer.status == 429 {
            assert_eq!(answer.header("sidereal-fault"), Some("rate-limited"));
            let after: u64 = answer.header("retry-after").unwrap().parse().unwrap();
            assert!((1..=2).contains(&after), "{after}");
        }
    }
    let granted = f64::from(RATE) * begun.elapsed().as_secs_f64() + 10.0;
    let (good, limited) = (statuses[&200], statuses[&429]);
    assert_eq!(statuses.len(), 2, "{statuses:?}");
    assert!(f64::from(good) <= granted + 1.0 && limited > good, "{good} of {granted}, {limited} turned away");
    assert!(f64::from(good) >= granted / 2.0, "it gets what it may have: {good} of {granted}");

    // Too many at once: what is over is refused at once, not kept waiting.
    platform.ok(&["tenant", "set", NOISY, "--requests-per-second", "none"]).unwrap();
    let ingress = platform.ingress;
    let all_taken = || (0..20).all(|_| http::get(ingress, "loud.localhost", "/").unwrap().status == 200);
    until(Duration::from_secs(10), all_taken).expect("a quota that is lifted holds nobody back");
    std::thread::scope(|scope| {
        // The one that looks may have the place that one of these wants: it comes again.
        let slow = || loop {
            match http::get(ingress, "loud.localhost", "/slow?ms=9000").unwrap().status {
                503 => std::thread::sleep(Duration::from_millis(20)),
                status => return status,
            }
        };
        let held: Vec<_> = (0..AT_ONCE).map(|_| scope.spawn(slow)).collect();
        let refused = || {
            let begun = Instant::now();
            let answer = http::get(ingress, "loud.localhost", "/").unwrap();
            assert!(matches!(answer.status, 200 | 429 | 503), "{answer:?}");
            let busy = answer.status == 503 && answer.header("sidereal-fault") == Some("busy");
            if busy {
                assert!(begun.elapsed() < Duration::from_secs(8), "{:?}", begun.elapsed());
                assert!(answer.header("retry-after").is_some(), "{answer:?}");
            }
            busy
        };
        until(Duration::from_secs(8), refused).expect("one more than it may have at once is refused");
        for lane in held {
            assert_eq!(lane.join().unwrap(), 200, "those it may have go on");
        }
    });
    until(Duration::from_secs(10), || http::get(ingress, "loud.localhost", "/").unwrap().status == 200).unwrap();
    let report = victim.stop();
    assert!(report.failures.is_empty(), "{:?}", report.failures);
    assert!(report.good > 200, "the victim was served {} times", report.good);
}
