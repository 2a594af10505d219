//! Secrets in a real Vault (OpenBao): given to components and providers, rotated into what runs, used while Vault is away,
//! refused where they would need themselves, and found nowhere.

use std::time::Duration;

use serde_json::{Value, json};
use sidereal_tests::consul::Consul;
use sidereal_tests::load::Load;
use sidereal_tests::platform::{Platform, until, write_app};
use sidereal_tests::redis::Redis;
use sidereal_tests::vault::Vault;

use crate::secrets::{Watch, events};

const LONG: Duration = Duration::from_secs(30);

fn put(vault: &Vault, name: &str, data: Value) {
    vault.ask("POST", &format!("secret/data/sidereal/local/shop/{name}"), &json!({ "data": data })).unwrap();
}

fn get(platform: &Platform, path: &str) -> (u16, String) {
    let answer = platform.get("shop.localhost", path).unwrap();
    (answer.status, answer.body)
}

#[test]
fn a_secret_in_vault_is_used_rotated_kept_while_vault_is_away_and_found_nowhere() {
    let Some(vault) = Vault::start().unwrap() else { return };
    let mut watch = Watch::default();
    let (password, second) = (watch.canary(), watch.canary());
    let (key, key_after) = (watch.canary(), watch.canary());
    let token = vault.token(&["secret/data/sidereal/local/shop/*"]).unwrap();
    watch.known(&token);
    let redis = Redis::configured(&format!("requirepass {password}\n")).unwrap();
    let (dir, app) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let log = tempfile::NamedTempFile::new().unwrap();
    let mut platform = Platform::start_logging(dir.path(), &[], log.reopen().unwrap().into()).unwrap();
    let home = dir.path();
    let path = app.path().to_str().unwrap().to_owned();

    // One whose credential would be in itself is refused, and so is one that nobody declares.
    let links = "[components.main.links]\n\"wasi:keyvalue\" = \"cache\"\n\"wasmcloud:secrets\" = [{ provider = \"vault\", label = \"api-key\", key = \"API_KEY\" }]";
    let own = |token: &str, from: &str| {
        format!(
            "{links}\n[providers.vault]\ntype = \"secrets-vault\"\nurl = \"{}\"\nrefresh = \"1s\"\ntoken = {{ {token} }}\n[providers.cache]\ntype = \"keyvalue-redis\"\nurl = \"{}\"\npassword = {{ secret = \"cache\", from = \"{from}\", field = \"password\" }}\n",
            vault.url(),
            redis.url()
        )
    };
    for (rest, code) in [
        (own("secret = \"vault-token\", from = \"vault\"", "vault"), "secret-source"),
        (own("secret = \"vault-token\"", "valt"), "secret-source"),
    ] {
        write_app(app.path(), "shop", "secret-probe", &rest).unwrap();
        assert!(!watch.run(home, &["deploy", &path], None));
        let (_, said) = watch.said.last().unwrap();
        assert!(String::from_utf8_lossy(said).contains(code), "{}", String::from_utf8_lossy(said));
    }
    std::fs::remove_file(app.path().join("app.toml")).unwrap();

    // The operator offers both; the token is in the sealed store.
    assert!(watch.run(home, &["secret", "set", "vault-token"], Some(&token)));
    let (vault_url, redis_url) = (vault.url(), redis.url());
    let add = ["provider", "add", "vault", "--type", "secrets-vault", "--secret", "token=vault-token", "--set"];
    assert!(watch.run(home, &[&add[..], &["refresh=1s", "--url", &vault_url]].concat(), None));
    let add = ["provider", "add", "cache", "--type", "keyvalue-redis", "--secret", "password=cache@vault/password"];
    assert!(watch.run(home, &[&add[..], &["--url", &redis_url]].concat(), None));
    write_app(app.path(), "shop", "secret-probe", links).unwrap();
    assert!(!watch.run(home, &["deploy", &path], None), "the secrets are not in Vault");
    let missing = |(_, said): &(String, Vec<u8>)| {
        String::from_utf8_lossy(said).contains("nothing is at `secret/data/sidereal/local/shop/")
    };
    assert!(watch.said.iter().any(missing));
    put(&vault, "api-key", json!({ "value": key, "note": "by hand" }));
    put(&vault, "cache", json!({ "username": "nobody", "password": password }));
    until(LONG, || watch.run(home, &["deploy", &path], None)).unwrap();
    assert_eq!(get(&platform, "/get/API_KEY"), (200, format!("string {key}")));
    assert_eq!(get(&platform, "/kv/default/n"), (200, "1".to_owned()));
    assert_eq!(get(&platform, "/get/cache").0, 404, "only what the link names");
    assert!(!watch.run(home, &["provider", "remove", "vault"], None), "it is in use");

    // Rotated in Vault: reaches the component, and the running Redis provider, whose connection goes on meanwhile.
    put(&vault, "api-key", json!({ "value": key_after }));
    until(LONG, || get(&platform, "/get/API_KEY") == (200, format!("string {key_after}"))).unwrap();
    assert_eq!(redis.tell(&password, &["config", "set", "requirepass", &second]).unwrap(), "OK");
    put(&vault, "cache", json!({ "password": second }));
    redis.tell(&second, &["client", "kill", "type", "normal"]).unwrap();
    until(LONG, || get(&platform, "/kv/default/n").0 == 200).unwrap();

    // Denied, and allowed again.
    watch.hear("what is denied", {
        vault.ask("DELETE", "secret/metadata/sidereal/local/shop/api-key", &Value::Null).unwrap();
        until(LONG, || get(&platform, "/get/API_KEY").0 == 404).unwrap();
        get(&platform, "/get/API_KEY").1
    });
    put(&vault, "api-key", json!({ "value": key_after }));
    until(LONG, || get(&platform, "/get/API_KEY").0 == 200).unwrap();

    // Away: what runs goes on with what it has, and the Redis provider connects with it, too.
    drop(vault);
    for _ in 0..2 {
        redis.tell(&second, &["client", "kill", "type", "normal"]).unwrap();
        until(LONG, || get(&platform, "/kv/default/n").0 == 200).unwrap();
        let before = std::time::Instant::now();
        until(LONG, || before.elapsed() > Duration::from_secs(2)).unwrap();
        assert_eq!(get(&platform, "/get/API_KEY"), (200, format!("string {key_after}")));
    }

    for args in [
        &["status", "shop", "-o", "json"][..],
        &["logs", "shop"],
        &["secret", "list", "-o", "json"],
        &["provider", "list", "-o", "json"],
        &["tenant-settings", "show"],
        &["plan", &path],
        &["doctor"],
    ] {
        watch.run(home, args, None);
    }
    watch.hear("events", events(home, platform.info["api"].as_str().unwrap()));
    watch.process(platform.pid());
    let hosts = platform.hosts();
    assert!(!hosts.is_empty());
    hosts.into_iter().for_each(|pid| watch.process(pid));
    watch.files(home);
    platform.stop(Duration::from_secs(20)).unwrap();
    watch.files(home);
    watch.hear("the platform's log", std::fs::read(log.path()).unwrap());
    let found = watch.found();
    assert!(found.is_empty(), "{found:#?}");
}

#[test]
fn a_credential_that_vault_makes_for_redis_is_replaced_under_traffic() {
    let Some(vault) = Vault::start().unwrap() else { return };
    let redis = Redis::configured("requirepass of-the-server\n").unwrap();
    vault.ask("POST", "sys/mounts/database", &json!({ "type": "database" })).unwrap();
    let server = json!({
        "plugin_name": "valkey-database-plugin", "allowed_roles": ["*"], "host": "127.0.0.1",
        "port": redis.addr.port(), "username": "default", "password": "of-the-server",
    });
    vault.ask("POST", "database/config/cache", &server).unwrap();
    let role = json!({
        "db_name": "cache", "creation_statements": [r#"["~*","+@all"]"#], "default_ttl": "12s", "max_ttl": "20s",
    });
    vault.ask("POST", "database/roles/local.counter.cache", &role).unwrap();
    let long = json!({ "db_name": "cache", "creation_statements": [r#"["~*","+@all"]"#], "default_ttl": "600s" });
    vault.ask("POST", "database/roles/local.counter.spare", &long).unwrap();
    let token = vault.token(&["database/creds/local.counter.*", "sys/leases/*"]).unwrap();

    let (dir, app) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let platform = Platform::start(dir.path(), &[]).unwrap();
    platform.secret("vault-token", &token).unwrap();
    let add = ["provider", "add", "database", "--type", "secrets-vault", "--secret", "token=vault-token"];
    let more = ["--set", "engine=dynamic", "--set", "mount=database", "--set", "refresh=1s", "--url", &vault.url()];
    platform.ok(&[&add[..], &more[..]].concat()).unwrap();
    for name in ["cache", "spare"] {
        let part = |field: &str| format!("{field}={name}@database/{field}");
        let add = ["provider", "add", name, "--type", "keyvalue-redis", "--url", &redis.url()];
        platform.ok(&[&add[..], &["--secret", &part("username"), "--secret", &part("password")]].concat()).unwrap();
    }
    let deploy = |links: &str| {
        let links = format!("[components.main.links]\n\"wasi:keyvalue\" = [{links}]");
        write_app(app.path(), "counter", "kv-counter", &links).unwrap();
        platform.ok(&["deploy", app.path().to_str().unwrap()]).unwrap();
    };
    deploy(r#"{ provider = "cache" }, { provider = "spare", label = "spare" }"#);
    let users = || redis.tell("of-the-server", &["acl", "users"]).unwrap();
    let first = users();
    assert!(first.contains("LOCAL.COUNTER.CACHE") && first.contains("LOCAL.COUNTER.SPARE"), "{first}");

    // Until the user that was made first is no more: another one counts by then.
    let made = first.lines().find(|user| user.contains("LOCAL.COUNTER.CACHE")).unwrap().to_owned();
    let load = Load::start(platform.ingress, "counter.localhost", "/", 4, Duration::from_millis(10));
    load.wait(50);
    until(LONG, || !users().contains(&made)).unwrap();
    load.wait(100);
    let report = load.stop();
    assert!(report.failures.is_empty(), "{:?}", report.failures);
    let count: u64 = platform.get("counter.localhost", "/").unwrap().body.trim().parse().unwrap();
    assert_eq!(count, report.good + 1);

    // A credential ends with the link that it was made for, though another one has its own of the same Vault.
    deploy(r#"{ provider = "cache" }"#);
    until(LONG, || !users().contains("LOCAL.COUNTER.SPARE")).unwrap();
    assert_eq!(platform.get("counter.localhost", "/").unwrap().body.trim(), (count + 1).to_string());
}

#[test]
fn a_rotated_token_of_consul_reaches_the_running_provider() {
    let Some(consul) = Consul::start().unwrap() else { return };
    let vault = Vault::start().unwrap();
    let rules = r#"key_prefix "sidereal/" { policy = "write" } session_prefix "" { policy = "write" }"#;
    consul.ask("PUT", "acl/policy", &json!({ "Name": "apps", "Rules": rules })).unwrap();
    let make = || {
        let made = consul.ask("PUT", "acl/token", &json!({ "Policies": [{ "Name": "apps" }] })).unwrap();
        let text = |key: &str| made[key].as_str().unwrap().to_owned();
        (text("AccessorID"), text("SecretID"))
    };
    let (dir, app) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let platform = Platform::start(dir.path(), &[]).unwrap();
    let keep = |from_vault: bool, token: &str| match &vault {
        Some(vault) if from_vault => {
            let body = json!({ "data": { "value": token } });
            vault.ask("POST", "secret/data/sidereal/local/counter/consul-token", &body).unwrap();
        }
        _ => platform.secret("consul-token", token).unwrap(),
    };
    let mut sources = vec![(false, "token=consul-token")];
    if let Some(vault) = &vault {
        platform.secret("vault-token", &vault.token(&["secret/data/sidereal/local/counter/*"]).unwrap()).unwrap();
        let add = ["provider", "add", "vault", "--type", "secrets-vault", "--secret", "token=vault-token", "--set"];
        platform.ok(&[&add[..], &["refresh=1s", "--url", &vault.url()]].concat()).unwrap();
        sources.push((true, "token=consul-token@vault"));
    }
    for (n, (from_vault, reference)) in sources.into_iter().enumerate() {
        let (accessor, token) = make();
        keep(from_vault, &token);
        let name = format!("consul-{n}");
        let add = ["provider", "add", &name, "--type", "keyvalue-consul", "--secret", reference, "--url"];
        platform.ok(&[&add[..], &[&consul.url()]].concat()).unwrap();
        let links = format!("[components.main.links]\n\"wasi:keyvalue\" = \"{name}\"");
        write_app(app.path(), "counter", "kv-counter", &links).unwrap();
        platform.ok(&["deploy", app.path().to_str().unwrap()]).unwrap();
        let count = || {
            let answer = platform.get("counter.localhost", "/").unwrap();
            (answer.status == 200).then(|| answer.body.trim().parse::<u64>().unwrap())
        };
        let first = count().unwrap();

        // The new one is there before the old one goes: no call fails.
        let (next_accessor, next) = make();
        keep(from_vault, &next);
        let load = Load::start(platform.ingress, "counter.localhost", "/", 2, Duration::from_millis(20));
        load.wait(20);
        if from_vault {
            // Vault is asked again each second: by then the new one is known, whoever still uses the old one.
            let rotated = std::time::Instant::now();
            until(LONG, || rotated.elapsed() > Duration::from_secs(12)).unwrap();
        }
        consul.ask("DELETE", &format!("acl/token/{accessor}"), &Value::Null).unwrap();
        load.wait(50);
        let report = load.stop();
        assert!(report.failures.is_empty(), "{reference}: {:?}", report.failures);
        assert_eq!(count(), Some(first + report.good + 1), "{reference}");

        // The old one goes first: calls are refused until the new one is there, and then go on without a deploy.
        consul.ask("DELETE", &format!("acl/token/{next_accessor}"), &Value::Null).unwrap();
        until(LONG, || count().is_none()).unwrap();
        keep(from_vault, &make().1);
        until(LONG, || count().is_some()).unwrap();
    }
}

#[test]
fn what_vault_is_logged_in_to_with_may_be_in_a_file_that_changes() {
    let Some(vault) = Vault::start().unwrap() else { return };
    put(&vault, "api-key", json!({ "value": "one" }));
    let token = || vault.token(&["secret/data/sidereal/local/shop/*"]).unwrap();
    let (dir, app, files) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let file = files.path().join("token");
    let flag = format!("vault-token={}", file.display());
    // Not there: the platform does not start, and says which.
    let Err(refused) = Platform::start(dir.path(), &["--secret-file", &flag]) else { panic!("there is no such file") };
    assert!(
        format!("{refused:#}").contains("not ready") || format!("{refused:#}").contains("no ready line"),
        "{refused:#}"
    );
    let first = token();
    std::fs::write(&file, format!("{first}\n")).unwrap();
    let platform = Platform::start(dir.path(), &["--secret-file", &flag]).unwrap();
    let add = ["provider", "add", "vault", "--type", "secrets-vault", "--secret", "token=vault-token", "--set"];
    platform.ok(&[&add[..], &["refresh=1s", "--url", &vault.url()]].concat()).unwrap();
    let links = "[components.main.links]\n\"wasi:keyvalue\" = \"memory\"\n\"wasmcloud:secrets\" = [{ provider = \"vault\", label = \"api-key\", key = \"API_KEY\" }]";
    write_app(app.path(), "shop", "secret-probe", links).unwrap();
    platform.ok(&["deploy", app.path().to_str().unwrap()]).unwrap();
    assert_eq!(get(&platform, "/get/API_KEY"), (200, "string one".to_owned()));

    // Another token in the file, then the first one is no more: found without a deploy.
    std::fs::write(&file, token()).unwrap();
    vault.ask("POST", "auth/token/revoke", &json!({ "token": first })).unwrap();
    put(&vault, "api-key", json!({ "value": "two" }));
    until(LONG, || get(&platform, "/get/API_KEY") == (200, "string two".to_owned())).unwrap();
}
