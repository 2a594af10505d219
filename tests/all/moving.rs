//! Data that move with their link: under traffic, past an interruption, and never over somebody else's keys.

use std::time::{Duration, Instant};

use api::client::ControlClient;
use api::copy::CopyPhase;
use sidereal_tests::load::Load;
use sidereal_tests::nats::Nats;
use sidereal_tests::offered::{Offer, Offered, at_less, bearable};
use sidereal_tests::platform::{Platform, until, write_app};
use sidereal_tests::redis::Redis;
use sidereal_tests::throttle::Throttle;
use sidereal_tests::workspace;

use crate::servers::Servers;

fn links(provider: &str) -> String {
    format!("[components.main.links]\n\"wasi:keyvalue\" = \"{provider}\"")
}

/// How many keys are counted in: no server is asked to take turns at one of them for all of them.
const COUNTERS: usize = 50;
/// Requests a second, whatever becomes of them. One of ten counts.
const RATE: u32 = 1000;

/// What is asked for in turn: each counter is counted in once for nine reads.
fn asked() -> Vec<String> {
    let count = |n: usize| format!("/increment/default/k{n}/1");
    let reads = |n: usize| (1..10).map(move |more| format!("/get/default/k{}", (n + more) % COUNTERS));
    (0..COUNTERS).flat_map(|n| std::iter::once(count(n)).chain(reads(n))).collect()
}

/// An app in `embedded` that counts.
fn probe() -> (tempfile::TempDir, tempfile::TempDir, Platform) {
    let (dir, app) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let platform = Platform::start(dir.path(), &[]).unwrap();
    write_app(app.path(), "probe", "kv-probe", &links("embedded")).unwrap();
    platform.ok(&["deploy", app.path().to_str().unwrap()]).unwrap();
    (dir, app, platform)
}

fn offer(platform: &Platform) -> Offer {
    Offer { address: platform.ingress, host: "probe.localhost".to_owned(), paths: asked(), rate: RATE }
}

/// The rate that the provider bears that the app is linked to. Asks for other counters: those of the round are counted
/// from nothing.
fn borne(platform: &Platform) -> u32 {
    let offer = offer(platform);
    let quiet = offer.paths.iter().map(|path| path.replace("/k", "/quiet")).collect();
    bearable(&Offer { paths: quiet, ..offer }).unwrap()
}

/// Moves the app with its data to each of `round` in turn, under `rate` requests a second: none fails, none is answered twice and no
/// count is lost. The rate there was.
fn moved_under(platform: &Platform, round: &[&str], rate: u32) -> f64 {
    let offer = Offer { rate, ..offer(platform) };
    let counts: Vec<bool> = offer.paths.iter().map(|path| path.starts_with("/increment/")).collect();
    let some = u64::from(rate / 2).max(10);
    let offered = Offered::start(offer);
    offered.wait(some).unwrap();
    let mut moves = Vec::new();
    for provider in round {
        let link = format!("wasi:keyvalue={provider}");
        let asked = Instant::now();
        // Back where it was, the provider has what it had then.
        let moved = platform.ok(&["link", "set", "probe", &link, "--copy-data=remove"]).unwrap();
        assert_eq!(moved["phase"], "done", "{moved}");
        moves.push((asked, Instant::now()));
        offered.wait(some).unwrap();
    }
    let report = offered.stop().unwrap();
    assert!(
        report.failures.is_empty(),
        "{} of {}: {:?}",
        report.failures.len(),
        report.sent,
        &report.failures[..3.min(report.failures.len())]
    );
    assert_eq!(report.answers.len() as u64, report.sent, "each was answered, once");
    println!("{:.0}/s, the latest {:?} late", report.rate(), report.latest);
    assert!(moves.iter().all(|(asked, done)| report.during(*asked, *done) > 0), "requests are under way in each move");
    let counted = report.answers.iter().filter(|answer| counts[answer.path]).count() as u64;
    let number = |n: usize| platform.get("probe.localhost", &format!("/get/default/k{n}")).unwrap().body;
    let kept: u64 = (0..COUNTERS).map(|n| number(n).parse::<u64>().unwrap_or(0)).sum();
    assert_eq!(kept, counted, "every answered call is counted once");
    // No number was given twice: two providers that answered at once would count the same one.
    let mut given: Vec<_> =
        report.answers.iter().filter(|answer| counts[answer.path]).map(|a| (a.path, &a.body)).collect();
    given.sort_unstable();
    given.dedup();
    assert_eq!(given.len() as u64, counted);
    report.rate()
}

#[test]
fn an_app_moves_through_memory_redis_and_nats_under_a_thousand_requests_a_second_and_keeps_its_counts() {
    let servers = Servers::start();
    let (_dir, _app, platform) = probe();
    let there = servers.add(&platform, "probe");
    let rate = borne(&platform);
    assert!(there.starts_with(&["redis", "nats"]), "{there:?}");
    let round = ["memory", "redis", "nats", "embedded", "nats", "redis", "memory", "embedded"];
    let was = moved_under(&platform, &round, rate);
    at_less("a move of data through memory, Redis and NATS", RATE, rate, was);
}

/// Their servers order writes by comparing: counts in one key that meet there fail, moved or not. So as often as each bears.
#[test]
fn an_app_moves_through_vault_and_consul_under_what_they_bear_and_keeps_its_counts() {
    let servers = Servers::start();
    let (_dir, _app, platform) = probe();
    let there: Vec<_> =
        servers.add(&platform, "probe").into_iter().filter(|name| ["vault", "consul"].contains(name)).collect();
    let link = |provider: &str| platform.ok(&["link", "set", "probe", &format!("wasi:keyvalue={provider}")]).unwrap();
    let mut rate = RATE;
    for provider in &there {
        link(provider);
        rate = rate.min(borne(&platform));
    }
    link("embedded");
    let round: Vec<_> = there.iter().copied().chain(["embedded"]).collect();
    let was = moved_under(&platform, &round, rate);
    at_less(&format!("a move of data through {}", round.join(", ")), RATE, rate, was);
}

#[test]
fn components_that_share_a_bucket_move_together_and_lose_nothing_that_either_wrote() {
    let redis = Redis::start().unwrap();
    let (dir, app) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let platform = Platform::start(dir.path(), &[]).unwrap();
    platform.ok(&["provider", "add", "redis", "--type", "keyvalue-redis", "--url", &redis.url()]).unwrap();
    let second = "[components.index]\nsource = \"component.wasm\"\n[components.index.links]\n\
                  \"wasi:keyvalue\" = \"embedded\"\n\n[[routes]]\nhost = \"index.localhost\"\npath = \"/\"\ncomponent = \"index\"\n";
    write_app(app.path(), "probe", "kv-probe", &format!("{}\n\n{second}", links("embedded"))).unwrap();
    platform.ok(&["deploy", app.path().to_str().unwrap()]).unwrap();
    let get = |host: &str, path: &str| platform.get(host, path).unwrap().body;
    assert_eq!(get("probe.localhost", "/set/default/k/old"), "ok");
    for (component, provider) in [("main", "redis"), ("index", "embedded"), ("main", "redis")] {
        let link = format!("wasi:keyvalue={provider}");
        let set = ["link", "set", "probe", &link, "--component", component, "--copy-data=remove"];
        assert_eq!(platform.ok(&set).unwrap()["phase"], "done");
        let links = platform.ok(&["link", "list", "probe"]).unwrap();
        let providers: Vec<_> = links.as_array().unwrap().iter().map(|one| one["link"]["provider"].clone()).collect();
        assert_eq!(providers, [provider, provider], "both, whichever is named");
        // Written by one of them, it is what the other one has.
        assert_eq!(get("index.localhost", &format!("/set/default/k/{provider}")), "ok");
        assert_eq!(get("probe.localhost", "/get/default/k"), provider);
    }
    // One that is moved alone, without the data, leaves the other behind: it is not overwritten later.
    platform.ok(&["link", "set", "probe", "wasi:keyvalue=embedded", "--component", "index"]).unwrap();
    let moved = ["link", "set", "probe", "wasi:keyvalue=embedded", "--component", "main", "--copy-data=keep"];
    let refused = platform.cli(&moved).unwrap();
    let why = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && why.contains("`index`"), "{why}");
}

/// The example itself, as it is signed, from memory through every provider of keys and back the same way. All callers count in
/// its one key.
#[test]
fn a_counter_moves_from_provider_to_provider_under_traffic_and_keeps_its_count() {
    let servers = Servers::start();
    let dir = tempfile::tempdir().unwrap();
    let platform = Platform::start(dir.path(), &[]).unwrap();
    let example = workspace().join("examples/counter");
    let signer = std::fs::read_to_string(example.join("signer.pub")).unwrap();
    platform.ok(&["tenant-settings", "set", "--trust", signer.trim()]).unwrap();
    platform.ok(&["deploy", example.to_str().unwrap()]).unwrap();
    platform.ok(&["link", "set", "counter", "wasi:keyvalue=memory"]).unwrap();
    let mut round = vec!["embedded"];
    round.extend(servers.add(&platform, "counter"));
    let back: Vec<_> = round.iter().rev().skip(1).copied().collect();
    round.extend(back);
    round.push("memory");

    let load = Load::start(platform.ingress, "counter.localhost", "/", 8, Duration::from_millis(4));
    load.wait(50);
    for provider in round {
        let link = format!("wasi:keyvalue={provider}");
        let moved = platform.ok(&["link", "set", "counter", &link, "--copy-data"]).unwrap();
        assert_eq!(moved["phase"], "done", "{moved}");
        load.wait(50);
    }
    let report = load.stop();
    assert!(report.failures.is_empty(), "{:?}", report.failures);
    let answer = platform.get("counter.localhost", "/").unwrap();
    let count: u64 = answer.body.trim().strip_prefix("counter: ").unwrap().parse().unwrap();
    assert_eq!(count, report.good + 1, "every answered call is counted once");
}

/// Servers that take one key at a time, or 64, and many keys.
#[test]
fn thousands_of_keys_move_to_vault_and_consul_and_back() {
    const KEYS: usize = 5000;
    let servers = Servers::start();
    let (dir, app) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let platform = Platform::start(dir.path(), &[]).unwrap();
    // These servers answer for one key at a time, and a call asks for 250.
    let wide = "limits = { cpu = \"60s\", wall = \"5m\" }\n";
    write_app(app.path(), "probe", "kv-probe", &format!("{wide}{}", links("embedded"))).unwrap();
    platform.ok(&["deploy", app.path().to_str().unwrap()]).unwrap();
    let round = servers.add(&platform, "probe").into_iter().filter(|name| ["vault", "consul"].contains(name));
    let value = |key: usize| format!("value-{}", key * 7919);
    let pairs: Vec<String> = (0..KEYS).map(|key| format!("k{key}={}", value(key))).collect();
    for some in pairs.chunks(250) {
        let set = platform.get("probe.localhost", &format!("/set-many/default/{}", some.join(","))).unwrap();
        assert_eq!(set.body, "ok");
    }
    for provider in round.chain(["embedded"]) {
        let link = format!("wasi:keyvalue={provider}");
        let moved = platform.ok(&["link", "set", "probe", &link, "--copy-data=remove"]).unwrap();
        assert_eq!((&moved["phase"], moved["read"].as_u64() >= Some(KEYS as u64)), (&"done".into(), true), "{moved}");
        let keys: Vec<String> = (0..KEYS).map(|key| format!("k{key}")).collect();
        for (n, some) in keys.chunks(250).enumerate() {
            let got = platform.get("probe.localhost", &format!("/get-many/default/{}", some.join(","))).unwrap().body;
            let wanted: Vec<String> = (250 * n..250 * n + some.len()).map(|k| format!("k{k}={}", value(k))).collect();
            assert_eq!(got.lines().collect::<Vec<_>>(), wanted, "{provider}");
        }
        assert_eq!(platform.get("probe.localhost", "/set/default/after/1").unwrap().body, "ok");
        assert_eq!(platform.get("probe.localhost", "/delete/default/after").unwrap().body, "ok");
    }
}

#[test]
fn keys_that_only_the_new_provider_has_are_somebodys() {
    let (dir, app) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let platform = Platform::start(dir.path(), &[]).unwrap();
    write_app(app.path(), "probe", "kv-probe", &links("embedded")).unwrap();
    platform.ok(&["deploy", app.path().to_str().unwrap()]).unwrap();
    let get = |path: &str| platform.get("probe.localhost", path).unwrap().body;
    assert_eq!(get("/set/default/old/1"), "ok");
    platform.ok(&["link", "set", "probe", "wasi:keyvalue=memory"]).unwrap();
    assert_eq!(get("/fill/default/2500/100"), "ok");

    let refused = platform.cli(&["link", "set", "probe", "wasi:keyvalue=embedded", "--copy-data"]).unwrap();
    assert!(!refused.status.success());
    let text = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(text.contains("`old`") && text.contains("--copy-data=remove"), "{text}");
    assert_eq!(get("/exists/default/fill-00000000"), "true", "nothing was moved");

    let moved = platform.ok(&["link", "set", "probe", "wasi:keyvalue=embedded", "--copy-data=remove"]).unwrap();
    assert_eq!((&moved["phase"], moved["bytes"].as_u64()), (&"done".into(), Some(250_000)), "{moved}");
    assert_eq!(get("/exists/default/old"), "false");
    assert_eq!(get("/get/default/fill-00002499"), "x".repeat(100));
}

#[test]
fn a_move_goes_on_after_kill_9() {
    let redis = Redis::start().unwrap();
    let way = Throttle::before(redis.addr).unwrap();
    let (dir, app) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let platform = Platform::start(dir.path(), &[]).unwrap();
    let wide = "limits = { cpu = \"60s\", wall = \"60s\" }\n";
    write_app(app.path(), "probe", "kv-probe", &format!("{wide}{}", links("embedded"))).unwrap();
    platform.ok(&["deploy", app.path().to_str().unwrap()]).unwrap();
    let url = format!("redis://{}", way.addr);
    platform.ok(&["provider", "add", "redis", "--type", "keyvalue-redis", "--url", &url]).unwrap();
    for n in 0..40 {
        let pairs: Vec<String> = (0..500).map(|k| format!("k{n}-{k}=v{k}")).collect();
        let answer = platform.get("probe.localhost", &format!("/set-many/default/{}", pairs.join(","))).unwrap();
        assert_eq!(answer.body, "ok");
    }
    // In the middle of it: some keys are there, and the server hears of no more until everything is dead.
    way.passes(100_000);
    let asked = std::process::Command::new(sidereal_tests::binary())
        .args(["link", "set", "probe", "wasi:keyvalue=redis", "--copy-data"])
        .env("SIDEREAL_DATA_DIR", dir.path())
        .stderr(std::process::Stdio::null())
        .stdout(std::process::Stdio::null())
        .spawn();
    let mut asked = asked.unwrap();
    let mut session = redis.session().unwrap();
    let mut there = || session.ask(&["HLEN", "local/probe/default"]).unwrap().parse::<u64>().unwrap();
    // One is written to see whether another link reaches it, and goes again.
    until(Duration::from_secs(20), || there() > 1).unwrap();
    platform.kill().unwrap();
    drop(asked.wait());
    way.passes(usize::MAX);
    let copied = there();
    assert!((1..20_000).contains(&copied), "{copied} keys were copied");

    let platform = Platform::start(dir.path(), &[]).unwrap();
    let moved = || {
        let links = platform.ok(&["link", "list", "probe"]).unwrap();
        links[0]["link"]["provider"] == "redis"
    };
    until(Duration::from_secs(60), moved).unwrap();
    until(Duration::from_secs(20), || platform.get("probe.localhost", "/get/default/k39-499").unwrap().body == "v499")
        .unwrap();
    assert_eq!(there(), 20_000);
    drop(redis);
    assert_ne!(platform.get("probe.localhost", "/get/default/k0-0").unwrap().status, 200, "it is redis that answers");
}

/// The app answers before the copy has begun to note what it writes: what it removes then was copied already.
#[test]
fn what_an_app_removes_right_after_kill_9_does_not_come_back() {
    let redis = Redis::start().unwrap();
    let way = Throttle::before(redis.addr).unwrap();
    let (dir, app) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let platform = Platform::start(dir.path(), &[]).unwrap();
    let wide = "limits = { cpu = \"60s\", wall = \"60s\" }\n";
    write_app(app.path(), "probe", "kv-probe", &format!("{wide}{}", links("embedded"))).unwrap();
    platform.ok(&["deploy", app.path().to_str().unwrap()]).unwrap();
    let url = format!("redis://{}", way.addr);
    platform.ok(&["provider", "add", "redis", "--type", "keyvalue-redis", "--url", &url]).unwrap();
    assert_eq!(platform.get("probe.localhost", "/fill/default/2000/300").unwrap().body, "ok");
    way.passes(100_000);
    let asked = std::process::Command::new(sidereal_tests::binary())
        .args(["link", "set", "probe", "wasi:keyvalue=redis", "--copy-data"])
        .env("SIDEREAL_DATA_DIR", dir.path())
        .stderr(std::process::Stdio::null())
        .stdout(std::process::Stdio::null())
        .spawn();
    let mut asked = asked.unwrap();
    let there = || redis.tell("", &["HKEYS", "local/probe/default"]).unwrap();
    until(Duration::from_secs(20), || there().contains("fill-")).unwrap();
    platform.kill().unwrap();
    drop(asked.wait());
    // What was on its way arrives; from then on nothing does until the app has removed what is there.
    way.passes(usize::MAX);
    let mut last = there().len();
    until(Duration::from_secs(20), || last == std::mem::replace(&mut last, there().len())).unwrap();
    let key = there().lines().find(|key| key.starts_with("fill-")).unwrap().to_owned();
    way.passes(0);
    let platform = Platform::start(dir.path(), &[]).unwrap();
    assert_eq!(platform.get("probe.localhost", &format!("/delete/default/{key}")).unwrap().body, "ok");
    way.passes(usize::MAX);
    let moved = || {
        let links = platform.ok(&["link", "list", "probe"]).unwrap();
        links[0]["link"]["provider"] == "redis"
    };
    until(Duration::from_secs(60), moved).unwrap();
    assert_eq!(platform.get("probe.localhost", &format!("/exists/default/{key}")).unwrap().body, "false");
    assert_eq!(redis.tell("", &["HLEN", "local/probe/default"]).unwrap(), "1999");
}

#[test]
fn a_switch_that_kill_9_interrupts_goes_on_where_the_new_revision_comes_up_and_loses_no_count() {
    interrupted_switch(true);
}

#[test]
fn a_switch_that_kill_9_interrupts_is_taken_back_where_the_new_revision_does_not_come_up_and_loses_no_count() {
    interrupted_switch(false);
}

/// Killed when the revision with the new link is recorded and does not answer yet: the node puts the old one back, and what
/// that one acknowledged would be nowhere when the new one comes.
fn interrupted_switch(comes_up: bool) {
    // A revision is given seconds to serve. Where this machine stood still for all of them the switch is over by another way, which
    // says nothing of this one.
    assert!((0..4).any(|_| is_interrupted(comes_up)), "no switch lasts until it is interrupted");
}

/// Whether it was interrupted, and where the new revision comes up, that came up in time.
fn is_interrupted(comes_up: bool) -> bool {
    let (redis, beside) = (Redis::start().unwrap(), Redis::start().unwrap());
    let way = Throttle::before(beside.addr).unwrap();
    let (dir, app) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let platform = Platform::start(dir.path(), &[]).unwrap();
    for (name, url) in [("redis", redis.url()), ("beside", format!("redis://{}", way.addr))] {
        platform.ok(&["provider", "add", name, "--type", "keyvalue-redis", "--url", &url]).unwrap();
    }
    // The second link has no part in the move: while its server does not answer, no revision comes up.
    let two = "[components.main.links]\n\"wasi:keyvalue\" = [{ provider = \"embedded\" }, { label = \"beside\", provider = \"beside\" }]";
    write_app(app.path(), "probe", "kv-probe", two).unwrap();
    platform.ok(&["deploy", app.path().to_str().unwrap()]).unwrap();
    assert_eq!(platform.get("probe.localhost", "/set/default/k/10").unwrap().body, "ok");
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let (tenant, name) = ("local".parse().unwrap(), "probe".parse().unwrap());
    let client = |platform: &Platform| {
        let address = platform.info["api"].as_str().unwrap().trim_start_matches("http://").parse().unwrap();
        ControlClient::new(address, std::fs::read_to_string(dir.path().join("token")).unwrap().trim())
    };
    let goes = |client: &ControlClient| {
        let links = runtime.block_on(client.app(&tenant, &name)).unwrap().desired.app.links;
        links.into_iter().find(|link| link.label.as_str() == "default").unwrap().provider.to_string()
    };
    way.passes(0);
    let to_redis = ["link", "set", "probe", "wasi:keyvalue#default=redis", "--copy-data"];
    let asked = std::process::Command::new(sidereal_tests::binary())
        .args(to_redis)
        .env("SIDEREAL_DATA_DIR", dir.path())
        .stderr(std::process::Stdio::null())
        .stdout(std::process::Stdio::null())
        .spawn();
    let mut asked = asked.unwrap();
    let (before, mut moved) = (client(&platform), false);
    until(Duration::from_secs(20), || {
        moved = goes(&before) == "redis";
        moved || asked.try_wait().unwrap().is_some()
    })
    .unwrap();
    platform.kill().unwrap();
    drop(asked.wait());
    if !moved {
        return false;
    }

    if comes_up {
        way.passes(usize::MAX);
    }
    let platform = Platform::start(dir.path(), &[]).unwrap();
    let mut counted = 0;
    let count = || {
        counted += u64::from(platform.get("probe.localhost", "/increment/default/k/1").unwrap().status == 200);
        counted == 100
    };
    until(Duration::from_secs(60), count).unwrap();
    way.passes(usize::MAX);
    let after = client(&platform);
    let mut problem = None;
    let over = || {
        let view = runtime.block_on(after.copied(&tenant, &name)).unwrap();
        problem = view.problem;
        matches!(view.phase, CopyPhase::Done | CopyPhase::Failed)
    };
    until(Duration::from_secs(60), over).unwrap();
    let kept = || platform.get("probe.localhost", "/get/default/k").unwrap().body;
    assert_eq!(kept(), "110", "every answered call is counted");
    if comes_up {
        let in_time = problem.is_none_or(|problem| problem.code != api::Code::TimedOut);
        assert_eq!(goes(&after), if in_time { "redis" } else { "embedded" });
        return in_time;
    }
    assert_eq!(goes(&after), "embedded", "what was before is recorded again");
    // Once the revision that was recorded for it serves, the data can be moved.
    let moves = || platform.cli(&to_redis).unwrap().status.success();
    until(Duration::from_secs(60), moves).unwrap();
    assert_eq!((goes(&after).as_str(), kept().as_str()), ("redis", "110"));
    true
}

#[test]
fn nothing_moves_into_the_bucket_of_another_link_whatever_its_provider_is_called() {
    let redis = Redis::start().unwrap();
    let (dir, app) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let platform = Platform::start(dir.path(), &[]).unwrap();
    // The last one says by no setting that it is the same server.
    let host = format!("redis://localhost:{}", redis.addr.port());
    for (name, url) in [("one", redis.url()), ("first", format!("{}/0", redis.url())), ("host", host)] {
        platform.ok(&["provider", "add", name, "--type", "keyvalue-redis", "--url", &url]).unwrap();
    }
    let second = "[components.index]\nsource = \"component.wasm\"\n[components.index.links]\n\
                  \"wasi:keyvalue\" = \"one\"\n\n[[routes]]\nhost = \"index.localhost\"\npath = \"/\"\ncomponent = \"index\"\n";
    write_app(app.path(), "probe", "kv-probe", &format!("{}\n\n{second}", links("embedded"))).unwrap();
    platform.ok(&["deploy", app.path().to_str().unwrap()]).unwrap();
    let get = |host: &str, path: &str| platform.get(host, path).unwrap().body;
    assert_eq!(get("probe.localhost", "/set/default/k/old"), "ok");
    assert_eq!(get("index.localhost", "/set/default/k/its-own"), "ok");
    assert_eq!(get("index.localhost", "/set/default/more/1"), "ok");
    for (link, named) in [("wasi:keyvalue=first", "`index`"), ("wasi:keyvalue=host", "another link of the app")] {
        let moved = ["link", "set", "probe", link, "--component", "main", "--copy-data=remove"];
        let refused = platform.cli(&moved).unwrap();
        let why = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(!refused.status.success() && why.contains(named), "{link}: {why}");
    }
    assert_eq!(get("index.localhost", "/get/default/k"), "its-own");
    assert_eq!(get("index.localhost", "/exists/default/more"), "true");
    assert_eq!(redis.tell("", &["HLEN", "local/probe/default"]).unwrap(), "2", "nothing else is there");
    // Nor away from under a link that stays there by a name that does not say so.
    platform.ok(&["link", "set", "probe", "wasi:keyvalue=host", "--component", "main"]).unwrap();
    assert_eq!(get("probe.localhost", "/get/default/k"), "its-own");
    let refused =
        platform.cli(&["link", "set", "probe", "wasi:keyvalue=embedded", "--component", "main", "--copy-data"]);
    let refused = refused.unwrap();
    let why = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && why.contains("it would go on there with what is moved"), "{why}");
    assert_eq!(get("probe.localhost", "/set/default/k/still-one"), "ok");
    assert_eq!(get("index.localhost", "/get/default/k"), "still-one");
    assert_eq!(redis.tell("", &["HLEN", "local/probe/default"]).unwrap(), "2", "no marker is left");
}

#[test]
fn while_data_move_nobody_else_sends_the_app_elsewhere() {
    let redis = Redis::start().unwrap();
    let way = Throttle::before(redis.addr).unwrap();
    let (dir, app) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let platform = Platform::start(dir.path(), &[]).unwrap();
    let write = |rest: &str| write_app(app.path(), "probe", "kv-probe", rest).unwrap();
    let deploy = ["deploy", app.path().to_str().unwrap()];
    let text = |args: &[&str]| {
        let out = platform.cli(args).unwrap();
        (out.status.success(), String::from_utf8_lossy(&out.stderr).into_owned())
    };
    // The keys are many, and the machine may be slow.
    write(&format!("limits = {{ cpu = \"60s\", wall = \"5m\" }}\n{}", links("embedded")));
    platform.ok(&deploy).unwrap();
    let url = format!("redis://{}", way.addr);
    platform.ok(&["provider", "add", "redis", "--type", "keyvalue-redis", "--url", &url]).unwrap();
    assert_eq!(platform.get("probe.localhost", "/set/default/a/1").unwrap().body, "ok");
    assert_eq!(platform.get("probe.localhost", "/fill/default/10000/300").unwrap().body, "ok");

    // The newest revision is not the one that answers: it could not be held.
    write(&format!("limits = {{ memory = \"64KiB\" }}\n{}", links("embedded")));
    assert!(!text(&deploy).0, "it cannot start in so little memory");
    let to_redis = ["link", "set", "probe", "wasi:keyvalue=redis", "--copy-data"];
    let (moved, why) = text(&to_redis);
    assert!(!moved && why.contains("does not answer, so nothing is moved"), "{why}");
    platform.ok(&["rollback", "probe", "1"]).unwrap();

    // A slow server: each step takes a second, and all of them longer than what is tried below.
    way.rate(150_000);
    let asked = std::process::Command::new(sidereal_tests::binary())
        .args(to_redis)
        .env("SIDEREAL_DATA_DIR", dir.path())
        .stderr(std::process::Stdio::null())
        .stdout(std::process::Stdio::null())
        .spawn();
    let mut asked = asked.unwrap();
    let address = platform.info["api"].as_str().unwrap().trim_start_matches("http://").parse().unwrap();
    let client = ControlClient::new(address, std::fs::read_to_string(dir.path().join("token")).unwrap().trim());
    let (tenant, name) = ("local".parse().unwrap(), "probe".parse().unwrap());
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let moves = |phase| matches!(phase, CopyPhase::Copying | CopyPhase::Following | CopyPhase::Switching);
    let begun = || runtime.block_on(client.copied(&tenant, &name)).is_ok_and(|view| moves(view.phase));
    until(Duration::from_secs(20), begun).expect("it has begun");
    let (again, why) = text(&[&to_redis[..4], &["--copy-data=keep"]].concat());
    assert!(!again && why.contains("are being moved"), "not what is under way: {why}");
    let (linked, why) = text(&["link", "set", "probe", "wasi:keyvalue=memory"]);
    assert!(!linked && why.contains("are being moved from `embedded` to `redis`"), "{why}");
    write(&links("memory"));
    assert!(!text(&deploy).0, "a deploy would do the same");
    write(&format!("limits = {{ memory = \"32MiB\" }}\n{}", links("embedded")));
    platform.ok(&deploy).expect("one that leaves the link as it is does not");
    way.rate(usize::MAX);
    assert!(asked.wait().unwrap().success());
    assert_eq!(platform.ok(&["link", "list", "probe"]).unwrap()[0]["link"]["provider"], "redis");
    assert_eq!(platform.get("probe.localhost", "/get/default/a").unwrap().body, "1");
    platform.ok(&["link", "set", "probe", "wasi:keyvalue=memory"]).expect("the move is over");
}

#[test]
fn a_move_between_two_names_of_one_server_is_refused_and_takes_back_no_count() {
    let redis = Redis::start().unwrap();
    let (dir, app) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let platform = Platform::start(dir.path(), &[]).unwrap();
    for name in ["redis", "redis2"] {
        platform.ok(&["provider", "add", name, "--type", "keyvalue-redis", "--url", &redis.url()]).unwrap();
    }
    write_app(app.path(), "counter", "kv-counter", &links("redis")).unwrap();
    platform.ok(&["deploy", app.path().to_str().unwrap()]).unwrap();
    let load = Load::start(platform.ingress, "counter.localhost", "/", 8, Duration::ZERO);
    load.wait(200);
    for _ in 0..3 {
        let moved = platform.cli(&["link", "set", "counter", "wasi:keyvalue=redis2", "--copy-data"]).unwrap();
        let why = String::from_utf8_lossy(&moved.stderr).into_owned();
        assert!(!moved.status.success() && why.contains("reach the same data"), "{why}");
        assert!(why.contains("without `--copy-data`"), "{why}");
    }
    platform.ok(&["link", "set", "counter", "wasi:keyvalue=redis2"]).expect("there is nothing to copy");
    load.wait(200);
    let report = load.stop();
    assert!(report.failures.is_empty(), "{:?}", report.failures);
    let count: u64 = platform.get("counter.localhost", "/").unwrap().body.trim().parse().unwrap();
    assert_eq!(count, report.good + 1, "every answered call is counted once");
    assert_eq!(redis.tell("", &["HLEN", "local/counter/default"]).unwrap(), "1", "nothing else is there");
}

#[test]
fn messages_of_a_stream_wait_while_the_keys_of_their_app_move_and_none_is_put_away() {
    let (redis, nats) = (Redis::start().unwrap(), Nats::start().unwrap());
    let (dir, app) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let platform = Platform::start(dir.path(), &[]).unwrap();
    platform.ok(&["provider", "add", "redis", "--type", "keyvalue-redis", "--url", &redis.url()]).unwrap();
    let add = ["provider", "add", "stream", "--type", "messaging-jetstream", "--url", &nats.url()];
    platform.ok(&[&add[..], &["--set", "stream=ORDERS", "--set", "subjects=orders.>"]].concat()).unwrap();
    let takes =
        "\"wasmcloud:messaging\" = { provider = \"stream\", subscriptions = [\"orders.new\"], max-tries = \"1\" }";
    write_app(app.path(), "mail", "messages", &format!("{}\n{takes}", links("embedded"))).unwrap();
    platform.ok(&["deploy", app.path().to_str().unwrap()]).unwrap();
    let get = |path: &str| platform.get("mail.localhost", path).unwrap().body;
    let number = |key: &str| get(&format!("/number?key={key}")).parse::<u64>().unwrap_or(0);
    let (mut sent, mut slow) = (0, 0);
    for provider in ["redis", "embedded", "redis"] {
        // The switch waits for this one; those behind it wait for the switch. One that ended before anybody looked is followed by
        // another one.
        let under_way = || {
            let (tried, done) = (number("tried:slow-2500"), number("done:slow-2500"));
            if done == slow {
                assert_eq!(get("/publish?subject=orders.new&body=slow-2500"), "sent");
                slow += 1;
            }
            tried > done
        };
        until(Duration::from_secs(20), under_way).unwrap();
        assert_eq!(get(&format!("/burst?subject=orders.new&from={sent}&to={}", sent + 100)), "sent");
        sent += 100;
        let link = format!("wasi:keyvalue={provider}");
        let moved = platform.ok(&["link", "set", "mail", &link, "--copy-data"]).unwrap();
        assert_eq!(moved["phase"], "done", "{moved}");
    }
    let all = sent + slow;
    until(Duration::from_secs(60), || number("done") >= all).unwrap_or_else(|_| panic!("{} of {all}", number("done")));
    assert_eq!(number("done"), all, "each is handled, once");
}
