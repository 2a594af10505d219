//! Data that move with their link: under traffic, past an interruption, and never over somebody else's keys.

use std::io::BufRead as _;
use std::time::Duration;

use sidereal_tests::consul::{self, Consul};
use sidereal_tests::load::Load;
use sidereal_tests::nats::Nats;
use sidereal_tests::platform::{Platform, until, write_app};
use sidereal_tests::redis::Redis;
use sidereal_tests::vault::Vault;

fn links(provider: &str) -> String {
    format!("[components.main.links]\n\"wasi:keyvalue\" = \"{provider}\"")
}

#[test]
fn a_counter_moves_from_provider_to_provider_under_traffic_and_keeps_its_count() {
    let (redis, nats, consul) = (Redis::start().unwrap(), Nats::start().unwrap(), Consul::start().unwrap());
    let (dir, app) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let platform = Platform::start(dir.path(), &[]).unwrap();
    write_app(app.path(), "counter", "kv-counter", &links("memory")).unwrap();
    platform.ok(&["deploy", app.path().to_str().unwrap()]).unwrap();
    platform.ok(&["provider", "add", "redis", "--type", "keyvalue-redis", "--url", &redis.url()]).unwrap();
    platform.ok(&["provider", "add", "nats", "--type", "keyvalue-nats", "--url", &nats.url()]).unwrap();
    let mut round = vec!["embedded", "redis", "nats"];
    let vault = Vault::start().unwrap();
    if let Some(vault) = &vault {
        // Not as its operator: a token of the app's own paths is all it takes.
        let token = vault.token(&["secret/data/sidereal/local/counter/*", "secret/metadata/sidereal/local/counter/*"]);
        platform.secret("vault-token", &token.unwrap()).unwrap();
        let add = ["provider", "add", "vault", "--type", "keyvalue-vault", "--secret", "token=vault-token", "--url"];
        platform.ok(&[&add[..], &[&vault.url()]].concat()).unwrap();
        round.push("vault");
    }
    if let Some(consul) = &consul {
        platform.secret("consul-token", consul::TOKEN).unwrap();
        let add = ["provider", "add", "consul", "--type", "keyvalue-consul", "--secret", "token=consul-token", "--url"];
        platform.ok(&[&add[..], &[&consul.url()]].concat()).unwrap();
        round.push("consul");
    }
    round.extend(["memory", "redis", "embedded", "memory"]);

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
    let count: u64 = answer.body.trim().parse().unwrap();
    assert_eq!(count, report.good + 1, "every answered call is counted once");
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
    let (dir, app) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let platform = Platform::start(dir.path(), &[]).unwrap();
    let wide = "limits = { cpu = \"60s\", wall = \"60s\" }\n";
    write_app(app.path(), "probe", "kv-probe", &format!("{wide}{}", links("embedded"))).unwrap();
    platform.ok(&["deploy", app.path().to_str().unwrap()]).unwrap();
    platform.ok(&["provider", "add", "redis", "--type", "keyvalue-redis", "--url", &redis.url()]).unwrap();
    for n in 0..40 {
        let pairs: Vec<String> = (0..500).map(|k| format!("k{n}-{k}=v{k}")).collect();
        let answer = platform.get("probe.localhost", &format!("/set-many/default/{}", pairs.join(","))).unwrap();
        assert_eq!(answer.body, "ok");
    }
    let asked = std::process::Command::new(sidereal_tests::binary())
        .args(["link", "set", "probe", "wasi:keyvalue=redis", "--copy-data"])
        .env("SIDEREAL_DATA_DIR", dir.path())
        .stderr(std::process::Stdio::null())
        .stdout(std::process::Stdio::null())
        .spawn();
    let mut asked = asked.unwrap();
    let records = || std::fs::read(dir.path().join("store.redb")).unwrap_or_default();
    until(Duration::from_secs(20), || records().windows(13).any(|w| w == b"copies/local/")).unwrap();
    platform.kill().unwrap();
    drop(asked.wait());

    let platform = Platform::start(dir.path(), &[]).unwrap();
    let moved = || {
        let links = platform.ok(&["link", "list", "probe"]).unwrap();
        links[0]["link"]["provider"] == "redis"
    };
    until(Duration::from_secs(60), moved).unwrap();
    until(Duration::from_secs(20), || platform.get("probe.localhost", "/get/default/k39-499").unwrap().body == "v499")
        .unwrap();
    drop(redis);
    assert_ne!(platform.get("probe.localhost", "/get/default/k0-0").unwrap().status, 200, "it is redis that answers");
}

#[test]
fn while_data_move_nobody_else_sends_the_app_elsewhere() {
    let redis = Redis::start().unwrap();
    let (dir, app) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let platform = Platform::start(dir.path(), &[]).unwrap();
    let write = |rest: &str| write_app(app.path(), "probe", "kv-probe", rest).unwrap();
    let deploy = ["deploy", app.path().to_str().unwrap()];
    let text = |args: &[&str]| {
        let out = platform.cli(args).unwrap();
        (out.status.success(), String::from_utf8_lossy(&out.stderr).into_owned())
    };
    write(&links("embedded"));
    platform.ok(&deploy).unwrap();
    platform.ok(&["provider", "add", "redis", "--type", "keyvalue-redis", "--url", &redis.url()]).unwrap();
    assert_eq!(platform.get("probe.localhost", "/set/default/a/1").unwrap().body, "ok");

    // The newest revision is not the one that answers: it could not be held.
    write(&format!("limits = {{ memory = \"64KiB\" }}\n{}", links("embedded")));
    assert!(!text(&deploy).0, "it cannot start in so little memory");
    let to_redis = ["link", "set", "probe", "wasi:keyvalue=redis", "--copy-data"];
    let (moved, why) = text(&to_redis);
    assert!(!moved && why.contains("does not answer, so nothing is moved"), "{why}");
    platform.ok(&["rollback", "probe", "1"]).unwrap();

    // A slow server: the copy takes as long as it does.
    redis.tell("", &["CLIENT", "PAUSE", "4000", "ALL"]).unwrap();
    let asked = std::process::Command::new(sidereal_tests::binary())
        .args(to_redis)
        .env("SIDEREAL_DATA_DIR", dir.path())
        .stderr(std::process::Stdio::piped())
        .stdout(std::process::Stdio::null())
        .spawn();
    let mut asked = asked.unwrap();
    let mut line = String::new();
    let mut said = std::io::BufReader::new(asked.stderr.take().unwrap());
    said.read_line(&mut line).unwrap();
    assert!(!line.is_empty(), "it says that it has begun");
    let (again, why) = text(&[&to_redis[..4], &["--copy-data=keep"]].concat());
    assert!(!again && why.contains("are being moved"), "not what is under way: {why}");
    let (linked, why) = text(&["link", "set", "probe", "wasi:keyvalue=memory"]);
    assert!(!linked && why.contains("are being moved from `embedded` to `redis`"), "{why}");
    write(&links("memory"));
    assert!(!text(&deploy).0, "a deploy would do the same");
    write(&format!("limits = {{ memory = \"32MiB\" }}\n{}", links("embedded")));
    platform.ok(&deploy).expect("one that leaves the link as it is does not");
    assert!(asked.wait().unwrap().success());
    assert_eq!(platform.ok(&["link", "list", "probe"]).unwrap()[0]["link"]["provider"], "redis");
    assert_eq!(platform.get("probe.localhost", "/get/default/a").unwrap().body, "1");
    platform.ok(&["link", "set", "probe", "wasi:keyvalue=memory"]).expect("the move is over");
}
