//! One app, one link, every provider of keys, traffic all the while.

use std::time::{Duration, Instant};

use sidereal_tests::egress::flows;
use sidereal_tests::offered::{Offer, Offered, at_less, bearable};
use sidereal_tests::platform::{Platform, until, write_app};
use sidereal_tests::redis::Redis;

use crate::servers::Servers;

const LINKED: &str = "[components.main.links]\n\"wasi:keyvalue\" = \"embedded\"";

/// Requests a second, whatever becomes of them; fewer where the machine does not bear them.
const RATE: u32 = 1000;
/// How many keys are counted in, one request of ten.
const COUNTERS: usize = 50;

/// The link alone, without its data: each provider has its own count, and a key that says who answers.
#[test]
fn a_link_moves_through_every_provider_under_a_thousand_requests_a_second_without_a_failed_one() {
    let servers = Servers::start();
    let (dir, app) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let platform = Platform::start(dir.path(), &[]).unwrap();
    write_app(app.path(), "probe", "kv-probe", LINKED).unwrap();
    platform.ok(&["deploy", app.path().to_str().unwrap()]).unwrap();
    // All of them keep what they acknowledged; memory goes with its link.
    let mut providers = vec!["embedded"];
    providers.extend(servers.add(&platform, "probe"));
    let link = |provider: &str| platform.ok(&["link", "set", "probe", &format!("wasi:keyvalue={provider}")]).unwrap();
    for provider in providers.iter().rev() {
        link(provider);
        let set = platform.get("probe.localhost", &format!("/set/default/who/{provider}")).unwrap();
        assert_eq!(set.body, "ok", "{provider}");
    }

    let count = |n: usize| format!("/increment/default/k{n}/1");
    let who = || std::iter::repeat_n("/get/default/who".to_owned(), 9);
    let paths: Vec<String> = (0..COUNTERS).flat_map(|n| std::iter::once(count(n)).chain(who())).collect();
    let counts = |path: usize| path.is_multiple_of(10);
    let mut offer = Offer { address: platform.ingress, host: "probe.localhost".to_owned(), paths, rate: RATE };
    // Of other counters: those below are counted from nothing.
    let quiet = offer.paths.iter().map(|path| path.replace("/k", "/quiet")).collect();
    let borne = bearable(&Offer { paths: quiet, ..offer.clone() }).unwrap();
    offer.rate = borne;
    let some = u64::from(borne / 2).max(10);
    let offered = Offered::start(offer);
    offered.wait(some).unwrap();
    // Forth and back; of each move the moment it was asked for and the one it was done.
    let forth = providers.iter().skip(1);
    let round: Vec<&str> = forth.chain(providers.iter().rev().skip(1)).copied().collect();
    let mut moves = vec![("embedded", Instant::now(), Instant::now())];
    for provider in round {
        let asked = Instant::now();
        link(provider);
        moves.push((provider, asked, Instant::now()));
        offered.wait(some).unwrap();
    }
    let report = offered.stop().unwrap();
    let first = &report.failures[..3.min(report.failures.len())];
    assert!(report.failures.is_empty(), "{} of {}: {first:?}", report.failures.len(), report.sent);
    assert_eq!(report.answers.len() as u64, report.sent, "each was answered, once");
    println!("{:.0}/s, the latest {:?} late", report.rate(), report.latest);
    let during = |(_, asked, done): &(&str, Instant, Instant)| report.during(*asked, *done);
    assert!(moves.iter().skip(1).all(|one| during(one) > 0), "requests are under way in each move");

    // Who answers is who the link said when it was sent, or who it was about to say.
    for answer in report.answers.iter().filter(|answer| !counts(answer.path)) {
        let at = moves.iter().rposition(|(_, asked, _)| *asked <= answer.sent).unwrap_or_default();
        let (now, _, done) = moves[at];
        let next = moves.get(at + 1).filter(|(_, asked, _)| *asked <= answer.ended).map(|(name, ..)| *name);
        let before = (answer.sent < done && at > 0).then(|| moves[at - 1].0);
        let may = [Some(now), next, before];
        assert!(may.contains(&Some(&*answer.body)), "`{}` answered, of {may:?}", answer.body);
    }
    // Every acknowledged increment is in exactly one of the stores.
    let kept: u64 = providers
        .iter()
        .map(|provider| {
            link(provider);
            let number = |n: usize| platform.get("probe.localhost", &format!("/get/default/k{n}")).unwrap().body;
            (0..COUNTERS).map(|n| number(n).parse::<u64>().unwrap_or(0)).sum::<u64>()
        })
        .sum();
    let counted = report.answers.iter().filter(|answer| counts(answer.path)).count();
    assert_eq!(kept, counted as u64, "increments kept, of those acknowledged");
    at_less(&format!("a swap of a link through {}", providers.join(", ")), RATE, borne, report.rate());
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
    let status = || platform.ok(&["status", "counter"]).unwrap().to_string();
    until(Duration::from_secs(20), || status().contains("the key-value store is not available"))
        .unwrap_or_else(|_| panic!("the status does not say why: {}", status()));
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
    // Each question is a connection of its own.
    let connections = || {
        let stats = redis.tell("", &["INFO", "stats"]).unwrap();
        let number = stats.lines().find_map(|line| line.trim().strip_prefix("total_connections_received:"));
        number.unwrap().parse::<u64>().unwrap()
    };
    let before = connections();
    let deploy = ["deploy", app.path().to_str().unwrap()];
    let out = platform.cli(&deploy).unwrap();
    let said = String::from_utf8_lossy(&out.stderr).into_owned();
    let why = format!("{} (a loopback address) is not granted to this app", redis.addr);
    assert!(!out.status.success() && said.contains(&why) && said.contains("provider-unavailable"), "{said}");
    assert_eq!(connections(), before + 1, "nobody else connected");
    let flows = flows(&platform, "counter");
    let denied = |flow: &serde_json::Value| flow["verdict"] == "denied" && flow["port"] == redis.addr.port();
    assert!(flows.iter().any(denied), "{flows:#?}");

    // The same address, named by the operator, is granted: it was not for another reason.
    platform.ok(&["provider", "add", "theirs", "--type", "keyvalue-redis", "--url", &redis.url()]).unwrap();
    let links = links.split_once("\n\n").unwrap().0.replace("mine", "theirs");
    write_app(app.path(), "counter", "kv-counter", &links).unwrap();
    platform.ok(&deploy).unwrap();
    assert_eq!(platform.get("counter.localhost", "/").unwrap().status, 200);
}
