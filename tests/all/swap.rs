//! One app, one link, four providers, traffic all the while.

use std::time::Duration;

use sidereal_tests::load::Load;
use sidereal_tests::nats::Nats;
use sidereal_tests::platform::{Platform, until, write_app};
use sidereal_tests::redis::Redis;

const LINKED: &str = "[components.main.links]\n\"wasi:keyvalue\" = \"embedded\"";

#[test]
fn a_link_moves_between_providers_without_a_failed_request() {
    let (redis, nats) = (Redis::start().unwrap(), Nats::start().unwrap());
    let (dir, app) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let platform = Platform::start(dir.path(), &[]).unwrap();
    write_app(app.path(), "counter", "kv-counter", LINKED).unwrap();
    platform.ok(&["deploy", app.path().to_str().unwrap()]).unwrap();
    platform.ok(&["provider", "add", "redis", "--type", "keyvalue-redis", "--url", &redis.url()]).unwrap();
    platform.ok(&["provider", "add", "nats", "--type", "keyvalue-nats", "--url", &nats.url()]).unwrap();

    let load = Load::start(platform.ingress, "counter.localhost", "/", 8, Duration::from_millis(4));
    load.wait(50);
    let begun = load.good();
    // All of them keep what they acknowledged.
    for provider in ["redis", "nats", "embedded", "redis", "nats", "embedded"] {
        platform.ok(&["link", "set", "counter", &format!("wasi:keyvalue={provider}")]).unwrap();
        load.wait(50);
    }
    assert!(load.good() > begun);
    let report = load.stop();
    assert!(report.failures.is_empty(), "{:?}", report.failures);

    // Every acknowledged increment is in exactly one of the stores.
    let number = |provider: &str| {
        platform.ok(&["link", "set", "counter", &format!("wasi:keyvalue={provider}")]).unwrap();
        let answer = platform.get("counter.localhost", "/").unwrap();
        assert_eq!(answer.status, 200, "{provider}: {answer:?}");
        let digits: String = answer.body.chars().filter(char::is_ascii_digit).collect();
        digits.parse::<u64>().unwrap() - 1
    };
    let kept = number("redis") + number("embedded") + number("nats");
    assert_eq!(kept, report.good, "increments kept, of those acknowledged");
}

#[test]
fn a_provider_that_is_gone_fails_calls_with_a_reason_and_recovers() {
    let redis = Redis::start().unwrap();
    let url = redis.url();
    let (dir, app) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let platform = Platform::start(dir.path(), &[]).unwrap();
    platform.ok(&["provider", "add", "redis", "--type", "keyvalue-redis", "--url", &url]).unwrap();
    write_app(app.path(), "counter", "kv-counter", "[components.main.links]\n\"wasi:keyvalue\" = \"redis\"").unwrap();
    platform.ok(&["deploy", app.path().to_str().unwrap()]).unwrap();
    assert_eq!(platform.get("counter.localhost", "/").unwrap().status, 200);
    let addr = redis.addr;
    drop(redis);
    let answer = platform.get("counter.localhost", "/").unwrap();
    assert_ne!(answer.status, 200, "no answer is made up");
    let status = platform.ok(&["status", "counter"]).unwrap().to_string();
    assert!(status.contains("the key-value store is not available"), "the status says why: {status}");
    let _redis = Redis::at(addr, "").unwrap();
    let answers = || platform.get("counter.localhost", "/").is_ok_and(|answer| answer.status == 200);
    until(Duration::from_secs(10), answers).unwrap();
}

#[test]
fn an_undeclared_private_address_is_refused_to_a_provider() {
    let redis = Redis::start().unwrap();
    let (dir, app) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let platform = Platform::start(dir.path(), &[]).unwrap();
    let links = format!(
        "[components.main.links]\n\"wasi:keyvalue\" = \"mine\"\n\n[providers.mine]\ntype = \"keyvalue-redis\"\nurl = \"{}\"",
        redis.url()
    );
    write_app(app.path(), "counter", "kv-counter", &links).unwrap();
    let out = platform.cli(&["deploy", app.path().to_str().unwrap()]).unwrap();
    let refused_at_deploy = !out.status.success();
    if !refused_at_deploy {
        assert_ne!(platform.get("counter.localhost", "/").unwrap().status, 200, "loopback is not granted to an app");
    }
}
