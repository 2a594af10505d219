//! Watched buckets through the whole system: one component writes, another is told; over failures, `kill -9` of a host
//! and of everything, and a deploy that moves the watch to another provider's bucket.

use std::path::Path;
use std::time::Duration;

use rustix::process::Signal;
use sidereal_tests::consul::{self, Consul};
use sidereal_tests::nats::Nats;
use sidereal_tests::platform::{Platform, until};
use sidereal_tests::redis::Redis;

/// One component that writes and one that watches the same bucket; both log into another one.
fn deploy(platform: &Platform, dir: &Path, provider: &str, keys: &str) {
    let app = dir.join("watched");
    std::fs::create_dir_all(&app).unwrap();
    std::fs::copy(sidereal_tests::guest("watcher"), app.join("component.wasm")).unwrap();
    let text = format!(
        r#"schema = 1
name = "watched"

[components.main]
source = "component.wasm"

[components.main.links]
"wasi:keyvalue" = [
  {{ provider = "{provider}" }},
  {{ provider = "embedded", label = "log" }},
]

[components.index]
source = "component.wasm"

[components.index.links]
"wasi:keyvalue" = [
  {{ provider = "{provider}", watch = "{keys}" }},
  {{ provider = "embedded", label = "log" }},
]

[[routes]]
host = "watched.localhost"
component = "main"
"#
    );
    std::fs::write(app.join("app.toml"), text).unwrap();
    platform.ok(&["deploy", app.to_str().unwrap()]).unwrap();
}

fn text(platform: &Platform, path: &str) -> String {
    let answer = platform.get("watched.localhost", path).unwrap();
    assert_eq!(answer.status, 200, "{path}: {}", answer.body);
    answer.body
}

fn number(platform: &Platform, key: &str) -> u64 {
    text(platform, &format!("/number?key={key}")).parse().unwrap()
}

fn reaches(platform: &Platform, key: &str) {
    until(Duration::from_secs(30), || number(platform, key) >= 1).unwrap_or_else(|_| panic!("{key} was not told"));
}

/// What is told of the keys of `provider`, which `add` adds. Where `server` says what changed, nobody says who did it.
fn told(provider: &str, server: bool, add: &dyn Fn(&Platform)) {
    let dir = tempfile::tempdir().unwrap();
    let platform = Platform::start(&dir.path().join("data"), &[]).unwrap();
    add(&platform);
    deploy(&platform, dir.path(), provider, "*");
    // What is there when the watch begins is not told, and it begins when the deploy has ended, or soon after.
    let begins = |key: &str| {
        let mut n = 0;
        until(Duration::from_secs(30), || {
            n += 1;
            text(&platform, &format!("/set?key={key}&value={n}"));
            std::thread::sleep(Duration::from_millis(200));
            number(&platform, &format!("told:{key}")) >= 1
        })
        .unwrap();
    };
    if server {
        begins("begins");
    }
    text(&platform, "/set?key=a&value=1");
    reaches(&platform, "set:a:1");
    text(&platform, "/set?key=a&value=2");
    reaches(&platform, "set:a:2");
    text(&platform, "/delete?key=a");
    reaches(&platform, "deleted:a");
    assert_eq!((number(&platform, "told:a"), number(&platform, "deleted:a")), (2, 1), "each once");
    // It is not told of what it writes itself by the link that watches, where we know who wrote: with a server it would
    // be told for ever.
    if !server {
        text(&platform, "/set?key=echo&value=1");
        reaches(&platform, "set:echo:1");
    }
    // One that fails is told again, and others go on meanwhile.
    text(&platform, "/set?key=fail&value=1");
    text(&platform, "/set?key=b&value=1");
    reaches(&platform, "set:b:1");
    reaches(&platform, "set:fail:1");
    assert_eq!(number(&platform, "told:fail"), 3);
    assert_eq!(number(&platform, "told:echo-again"), 0);
    text(&platform, "/burst?from=0&to=100");
    for n in 0..100 {
        reaches(&platform, &format!("set:n{n}:{n}"));
    }
    // Only some keys: the next revision's. What both revisions watch is told by one or the other, whenever it is written.
    deploy(&platform, dir.path(), provider, "orders/*");
    let mut n = 0;
    let mut write = || {
        n += 1;
        text(&platform, &format!("/set?key=c{n}&value=1"));
        text(&platform, &format!("/set?key=orders/{n}&value=1"));
        reaches(&platform, &format!("set:orders/{n}:1"));
        number(&platform, &format!("told:c{n}")) == 0
    };
    if server {
        // The earlier revision may lead a moment longer; who follows it leads for good.
        until(Duration::from_secs(30), &mut write).unwrap();
    }
    assert!(write(), "a key that is watched no more is told");
}

#[test]
fn a_component_is_told_of_changes_in_memory() {
    told("memory", false, &|_| {});
}

#[test]
fn a_component_is_told_of_changes_on_disk() {
    told("embedded", false, &|_| {});
}

#[test]
fn a_component_is_told_of_changes_in_nats() {
    let nats = Nats::start().unwrap();
    told("nats", true, &|platform| {
        platform.ok(&["provider", "add", "nats", "--type", "keyvalue-nats", "--url", &nats.url()]).unwrap();
    });
}

#[test]
fn a_component_is_told_of_changes_in_redis() {
    let redis = Redis::configured("notify-keyspace-events Khg\n").unwrap();
    told("redis", true, &|platform| {
        platform.ok(&["provider", "add", "redis", "--type", "keyvalue-redis", "--url", &redis.url()]).unwrap();
    });
}

#[test]
fn a_component_is_told_of_changes_in_consul() {
    let Some(consul) = Consul::start().unwrap() else { return };
    told("consul", true, &|platform| {
        platform.secret("consul-token", consul::TOKEN).unwrap();
        let add = ["provider", "add", "consul", "--type", "keyvalue-consul", "--secret", "token=consul-token", "--url"];
        platform.ok(&[&add[..], &[&consul.url()]].concat()).unwrap();
    });
}

#[test]
fn a_redis_that_tells_nobody_is_refused_with_what_to_switch_on() {
    let redis = Redis::start().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let platform = Platform::start(&dir.path().join("data"), &[]).unwrap();
    deploy(&platform, dir.path(), "embedded", "*");
    platform.ok(&["provider", "add", "quiet", "--type", "keyvalue-redis", "--url", &redis.url()]).unwrap();
    let refused =
        platform.cli(&["link", "set", "watched", "wasi:keyvalue#default=quiet", "--component", "index"]).unwrap();
    assert_ne!(refused.status.code(), Some(0));
    let said = String::from_utf8_lossy(&refused.stderr).into_owned() + &String::from_utf8_lossy(&refused.stdout);
    assert!(said.contains("notify-keyspace-events"), "{said}");
}

#[test]
fn changes_survive_the_kill_of_hosts_and_of_everything() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let platform = Platform::start(&data, &[]).unwrap();
    deploy(&platform, dir.path(), "embedded", "*");
    text(&platform, "/burst?from=0&to=300");
    for host in platform.hosts() {
        Platform::signal(host, Signal::KILL).unwrap();
    }
    until(Duration::from_secs(20), || {
        platform.get("watched.localhost", "/number?key=x").is_ok_and(|a| a.status == 200)
    })
    .unwrap();
    text(&platform, "/burst?from=300&to=600");
    platform.kill().unwrap();
    let platform = Platform::start(&data, &[]).unwrap();
    until(Duration::from_secs(20), || {
        platform.get("watched.localhost", "/number?key=x").is_ok_and(|a| a.status == 200)
    })
    .unwrap();
    for n in 0..600 {
        reaches(&platform, &format!("set:n{n}:{n}"));
    }
}

#[test]
fn what_was_written_is_told_though_its_call_met_its_deadline_or_its_host_was_killed() {
    let dir = tempfile::tempdir().unwrap();
    let platform = Platform::start(&dir.path().join("data"), &["--shards", "1"]).unwrap();
    let app = dir.path().join("watched");
    std::fs::create_dir_all(&app).unwrap();
    std::fs::copy(sidereal_tests::guest("watcher"), app.join("component.wasm")).unwrap();
    std::fs::copy(sidereal_tests::guest("kv-probe"), app.join("probe.wasm")).unwrap();
    let mut text = "schema = 1\nname = \"watched\"\n".to_owned();
    for (name, source, more, limits) in [
        ("main", "component", "", "limits = { wall = \"150ms\" }\n"),
        ("index", "component", ", watch = \"*\"", ""),
        ("probe", "probe", "", ""),
    ] {
        text += &format!(
            "[components.{name}]\nsource = \"{source}.wasm\"\n{limits}[components.{name}.links]\n\"wasi:keyvalue\" = [\n\
             {{ provider = \"embedded\"{more} }}, {{ provider = \"embedded\", label = \"log\" }}]\n"
        );
    }
    for (host, component) in [("watched", "main"), ("probe", "probe")] {
        text += &format!("[[routes]]\nhost = \"{host}.localhost\"\ncomponent = \"{component}\"\n");
    }
    std::fs::write(app.join("app.toml"), text).unwrap();
    platform.ok(&["deploy", app.to_str().unwrap()]).unwrap();
    let asked = |path: &str| platform.get("probe.localhost", path).map(|answer| (answer.status, answer.body));
    let is_there = |n: u64| {
        let mut found = None;
        until(Duration::from_secs(20), || {
            found = asked(&format!("/exists/default/n{n}")).ok().filter(|(status, _)| *status == 200);
            found.is_some()
        })
        .unwrap();
        found.unwrap().1 == "true"
    };
    let told = |n: u64| asked(&format!("/exists/log/set:n{n}:{n}")).is_ok_and(|(_, body)| body == "true");
    for round in 1..=12_u64 {
        let first = round * 1_000_000;
        let burst = format!("/burst?from={first}&to={}", first + 1_000_000);
        if round % 2 == 0 {
            std::thread::scope(|scope| {
                scope.spawn(|| drop(platform.get("watched.localhost", &burst)));
                std::thread::sleep(Duration::from_millis(60));
                platform.hosts().into_iter().for_each(|host| Platform::signal(host, Signal::KILL).unwrap());
            });
        } else {
            let cut = platform.get("watched.localhost", &burst).unwrap();
            assert_ne!(cut.status, 200, "{}", cut.body);
        }
        // They were written one after the other: the last one is the one that nobody had answered yet.
        let last = (first..).find(|n| !is_there(*n)).unwrap();
        println!("round {round}: {} keys", last - first);
        for n in first..last {
            until(Duration::from_secs(30), || told(n)).unwrap_or_else(|_| panic!("round {round}: {n} of {last}"));
        }
    }
}

/// What a component stands before is watched where it writes: the refusal says so, and it works.
#[test]
fn changes_made_by_way_of_a_component_are_told_where_it_writes_them() {
    let dir = tempfile::tempdir().unwrap();
    let platform = Platform::start(&dir.path().join("data"), &[]).unwrap();
    let app = dir.path().join("watched");
    std::fs::create_dir_all(&app).unwrap();
    std::fs::copy(sidereal_tests::guest("watcher"), app.join("component.wasm")).unwrap();
    let example = sidereal_tests::workspace().join("examples/prefix-keyvalue");
    let key = std::fs::read_to_string(example.join("signer.pub")).unwrap();
    platform.ok(&["tenant-settings", "set", "--trust", key.trim()]).unwrap();
    std::fs::copy(example.join("prefixer.wasm"), app.join("prefixer.wasm")).unwrap();
    let deploy = |watched: &str| {
        let text = format!(
            r#"schema = 1
name = "watched"

[components.main]
source = "component.wasm"

[components.main.links]
"wasi:keyvalue" = [{{ component = "prefixer" }}, {{ provider = "embedded", label = "log" }}]

[components.index]
source = "component.wasm"

[components.index.links]
"wasi:keyvalue" = [{{ {watched} }}, {{ provider = "embedded", label = "log" }}]

[components.prefixer]
source = "prefixer.wasm"
config = {{ prefix = "shop/" }}
links."wasi:keyvalue" = "embedded"

[[routes]]
host = "watched.localhost"
component = "main"
"#
        );
        std::fs::write(app.join("app.toml"), text).unwrap();
        platform.cli(&["deploy", app.to_str().unwrap()]).unwrap()
    };
    let refused = deploy("component = \"prefixer\", watch = \"*\"");
    assert!(!refused.status.success());
    let said = String::from_utf8_lossy(&refused.stderr).into_owned() + &String::from_utf8_lossy(&refused.stdout);
    assert!(said.contains("link-watch") && said.contains("`embedded`, which `prefixer` writes to"), "{said}");
    let deployed = deploy("provider = \"embedded\", watch = \"shop/*\"");
    assert!(deployed.status.success(), "{}", String::from_utf8_lossy(&deployed.stderr));
    text(&platform, "/set?key=a&value=1");
    reaches(&platform, "set:shop/a:1");
    text(&platform, "/delete?key=a");
    reaches(&platform, "deleted:shop/a");
}

#[test]
fn a_provider_whose_changes_are_not_followed_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let platform = Platform::start(&dir.path().join("data"), &[]).unwrap();
    deploy(&platform, dir.path(), "embedded", "*");
    platform.secret("vault-token", "none").unwrap();
    let add = ["provider", "add", "cache", "--type", "keyvalue-vault", "--secret", "token=vault-token", "--url"];
    platform.ok(&[&add[..], &["http://127.0.0.1:1"]].concat()).unwrap();
    let refused =
        platform.cli(&["link", "set", "watched", "wasi:keyvalue#default=cache", "--component", "index"]).unwrap();
    assert_ne!(refused.status.code(), Some(0));
    let said = String::from_utf8_lossy(&refused.stderr).into_owned() + &String::from_utf8_lossy(&refused.stdout);
    assert!(said.contains("keyvalue-vault, whose changes this version does not follow"), "{said}");
}
