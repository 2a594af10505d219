//! One contract, three providers, the same answers: every key-value operation through the whole platform.

use sidereal_tests::consul::{self, Consul};
use sidereal_tests::nats::Nats;
use sidereal_tests::platform::{Platform, write_app};
use sidereal_tests::redis::Redis;

/// What is asked in order, and what must be answered by every provider: status and body.
const DIALOGUE: &[(&str, u16, &str)] = &[
    ("/get/default/a", 200, "-"),
    ("/exists/default/a", 200, "false"),
    ("/set/default/a/one", 200, "ok"),
    ("/get/default/a", 200, "one"),
    ("/exists/default/a", 200, "true"),
    ("/increment/default/n/5", 200, "5"),
    ("/increment/default/n/37", 200, "42"),
    ("/get/default/n", 200, "42"),
    ("/set-many/default/x=1,y=2", 200, "ok"),
    ("/get-many/default/x,missing,y", 200, "x=1\n-\ny=2"),
    ("/delete-many/default/x,missing", 200, "ok"),
    ("/get/default/x", 200, "-"),
    ("/delete/default/a", 200, "ok"),
    ("/get/default/a", 200, "-"),
    ("/get/unlinked/a", 404, "no-such-store"),
    // Another label is another store.
    ("/set/other/n/apart", 200, "ok"),
    ("/get/default/n", 200, "42"),
    ("/get/other/n", 200, "apart"),
];

#[test]
fn every_provider_answers_the_same() {
    let (redis, nats) = (Redis::start().unwrap(), Nats::start().unwrap());
    let (dir, app) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let platform = Platform::start(dir.path(), &[]).unwrap();
    platform.ok(&["provider", "add", "redis", "--type", "keyvalue-redis", "--url", &redis.url()]).unwrap();
    platform.ok(&["provider", "add", "nats", "--type", "keyvalue-nats", "--url", &nats.url()]).unwrap();
    for provider in ["memory", "embedded", "redis", "nats"] {
        let links = format!(
            "[components.main.links]\n\"wasi:keyvalue\" = [{{ label = \"default\", provider = \"{provider}\" }}, {{ label = \"other\", provider = \"{provider}\" }}]"
        );
        write_app(app.path(), provider, "kv-probe", &links).unwrap();
        platform.ok(&["deploy", app.path().to_str().unwrap()]).unwrap();
        for (path, status, body) in DIALOGUE {
            if provider == "nats" && !nats.has_batches && path.starts_with("/set-many") {
                sidereal_tests::not_run(
                    "batches in NATS. What was missing: nats-server 2.12 or later (NATS_SERVER_BIN)",
                );
                break;
            }
            let answer = platform.get(&format!("{provider}.localhost"), path).unwrap();
            assert_eq!((answer.status, answer.body.trim()), (*status, *body), "{provider} {path}");
        }
    }
}

#[test]
fn consul_answers_the_same_with_its_token_as_a_secret() {
    let Some(consul) = Consul::start().unwrap() else { return };
    let (dir, app) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let platform = Platform::start(dir.path(), &[]).unwrap();
    platform.secret("consul-token", consul::TOKEN).unwrap();
    let add = ["provider", "add", "consul", "--type", "keyvalue-consul", "--secret", "token=consul-token", "--url"];
    platform.ok(&[&add[..], &[&consul.url()]].concat()).unwrap();
    let link = |label| format!("{{ label = \"{label}\", provider = \"consul\" }}");
    let links = format!("[components.main.links]\n\"wasi:keyvalue\" = [{}, {}]", link("default"), link("other"));
    write_app(app.path(), "consul", "kv-probe", &links).unwrap();
    platform.ok(&["deploy", app.path().to_str().unwrap()]).unwrap();
    for (path, status, body) in DIALOGUE {
        let answer = platform.get("consul.localhost", path).unwrap();
        assert_eq!((answer.status, answer.body.trim()), (*status, *body), "{path}");
    }
    // Nothing that can be asked repeats the token.
    for asked in [&["status", "consul"][..], &["provider", "list"], &["logs", "consul"], &["secret", "list"]] {
        let said = platform.cli(asked).unwrap();
        let said = [said.stdout, said.stderr].concat();
        assert!(!String::from_utf8_lossy(&said).contains(consul::TOKEN), "{asked:?}");
    }
}
