//! What people see of a provider whose server is away: the reason, for as long as it is.

use std::time::Duration;

use serde_json::{Value, json};
use sidereal_tests::consul::{self, Consul};
use sidereal_tests::http::Connection;
use sidereal_tests::nats::Nats;
use sidereal_tests::platform::{Platform, until, write_app};
use sidereal_tests::postgres::{self, Postgres};
use sidereal_tests::redis::Redis;
use sidereal_tests::vault::Vault;

#[test]
fn status_says_why_a_link_does_not_work_until_it_does() {
    let redis = Redis::start().unwrap();
    let address = redis.addr;
    let (dir, app) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let platform = Platform::start(dir.path(), &["--shards", "1"]).unwrap();
    platform.ok(&["provider", "add", "redis", "--type", "keyvalue-redis", "--url", &redis.url()]).unwrap();
    let links = "[components.main.links]\n\"wasi:keyvalue\" = [{ label = \"default\", provider = \"redis\" }, { label = \"other\", provider = \"embedded\" }]";
    write_app(app.path(), "probe", "kv-probe", links).unwrap();
    platform.ok(&["deploy", app.path().to_str().unwrap()]).unwrap();
    let get = |path: &str| platform.get("probe.localhost", path).unwrap();
    let told = || {
        let text = platform.cli(&["status", "probe"]).unwrap();
        let text = String::from_utf8_lossy(&text.stdout).into_owned();
        (platform.ok(&["status", "probe"]).unwrap()["shards"][0][0]["troubles"].clone(), text)
    };
    assert_eq!(get("/set/default/k/1").body, "ok");
    // What hosts know is asked of them when somebody asks, and kept for a moment: a look may be of the moment before.
    let shows = |wanted: &dyn Fn(&Value, &str) -> bool| {
        let mut last = (Value::Null, String::new());
        let shown = until(Duration::from_secs(20), || {
            last = told();
            wanted(&last.0, &last.1)
        });
        assert!(shown.is_ok(), "{} {}", last.0, last.1);
        last
    };
    let well = |troubles: &Value, text: &str| troubles.is_null() && !text.contains("does not work");
    shows(&well);

    drop(redis);
    assert_ne!(get("/get/default/k").status, 200);
    // The sentence is the same in both, where nobody called in between.
    let (troubles, _) = shows(&|troubles, text| {
        let reason = troubles[0]["reason"].as_str();
        troubles.as_array().is_some_and(|all| all.len() == 1) && reason.is_some_and(|reason| text.contains(reason))
    });
    let trouble = &troubles[0];
    assert_eq!((&trouble["provider"], &trouble["kind"]), (&"redis".into(), &"unavailable".into()), "{trouble}");
    assert!(trouble["since_ms"].as_u64().unwrap() > 0);
    let reason = trouble["reason"].as_str().unwrap();
    assert!(reason.contains("not available"), "{reason}");
    // The other link of the same component has nothing to do with it.
    assert_eq!(get("/set/other/k/2").body, "ok");
    assert_eq!(told().0.as_array().map(Vec::len), Some(1));

    let _redis = Redis::at(address, "").unwrap();
    until(Duration::from_secs(20), || get("/set/default/k/3").status == 200).unwrap();
    shows(&well);
}

/// An app with one link, and how it is made to use it.
struct Linked {
    name: &'static str,
    /// What `provider add` is told, and so the type.
    provider: Vec<String>,
    guest: &'static str,
    link: &'static str,
    ask: (&'static str, &'static str, &'static str),
}

fn texts(texts: &[&str]) -> Vec<String> {
    texts.iter().map(|text| (*text).to_owned()).collect()
}

impl Linked {
    fn add(&self, platform: &Platform) {
        let mut add = texts(&["provider", "add", self.name, "--type"]);
        add.extend(self.provider.clone());
        platform.ok(&add.iter().map(String::as_str).collect::<Vec<_>>()).unwrap();
        let app = tempfile::tempdir().unwrap();
        let link = self.link.replace("HERE", &format!("\"{}\"", self.name));
        write_app(app.path(), self.name, self.guest, &format!("[components.main.links]\n{link}")).unwrap();
        platform.ok(&["deploy", app.path().to_str().unwrap()]).unwrap();
    }

    fn ask(&self, platform: &Platform) -> u16 {
        let (method, path, body) = self.ask;
        let host = format!("{}.localhost", self.name);
        let answer = Connection::open(platform.ingress).unwrap().send(method, &host, path, body.as_bytes());
        answer.unwrap().status
    }

    /// The trouble that the status tells of its link: kind and reason.
    fn trouble(&self, platform: &Platform) -> Option<(String, String)> {
        let status = platform.ok(&["status", self.name]).unwrap();
        let shards = status["shards"].as_array().unwrap();
        let apps = shards.iter().flat_map(|shard| shard.as_array().cloned().unwrap_or_default());
        let troubles = apps.flat_map(|app| app["troubles"].as_array().cloned().unwrap_or_default());
        let own: Vec<Value> = troubles.filter(|trouble| trouble["provider"] == self.name).collect();
        let text = |trouble: &Value, what: &str| trouble[what].as_str().unwrap().to_owned();
        own.first().map(|trouble| (text(trouble, "kind"), text(trouble, "reason")))
    }

    fn shows(&self, platform: &Platform, kinds: &[&str], words: &str) {
        let shown = || {
            let status = self.ask(platform);
            let trouble = self.trouble(platform);
            let told = trouble.as_ref().is_some_and(|(kind, why)| kinds.contains(&&**kind) && why.contains(words));
            if !told {
                println!("{} answers {status}, and the status says {trouble:?}", self.name);
            }
            told
        };
        until(Duration::from_secs(30), shown).unwrap_or_else(|_| panic!("{}: not {kinds:?} with `{words}`", self.name));
    }
}

#[test]
fn status_names_the_reason_of_every_kind_of_provider_and_of_one_that_nobody_calls() {
    let (nats, database) = (Nats::start().unwrap(), Postgres::start());
    let (consul, vault) = (Consul::start().unwrap(), Vault::start().unwrap());
    let dir = tempfile::tempdir().unwrap();
    let platform = Platform::start(&dir.path().join("data"), &["--shards", "1"]).unwrap();
    let get = |path| ("GET", path, "");
    let of = |name, provider: &[&str], guest, link, ask| Linked { name, provider: texts(provider), guest, link, ask };
    let url = nats.url();
    let stream = ["messaging-jetstream", "--set", "stream=FAULTS", "--set", "subjects=faults.>", "--url", &url];
    let postgres_url = database.url();
    platform.secret("db", postgres::PASSWORD).unwrap();
    let db = ["sql-postgres", "--set", "username=postgres", "--set", "tls=off", "--secret", "password=db", "--url"];
    let keyvalue = "\"wasi:keyvalue\" = HERE";
    let sends = "\"wasi:keyvalue\" = \"embedded\"\n\"wasmcloud:messaging\" = HERE";
    let takes =
        "\"wasi:keyvalue\" = \"embedded\"\n\"wasmcloud:messaging\" = { provider = HERE, subscriptions = \"a.b\" }";
    let mut all = vec![
        of("keys", &["keyvalue-nats", "--url", &url], "kv-probe", keyvalue, get("/get/default/k")),
        of("objects", &["blobstore-nats", "--url", &url], "blob-probe", "\"wasi:blobstore\" = HERE", get("/exists/c")),
        of("sends", &["messaging-nats", "--url", &url], "messages", sends, get("/publish?subject=a.b&body=x")),
        of("stream", &stream, "messages", sends, get("/publish?subject=faults.b&body=x")),
        // What it is asked has nothing to do with the link.
        of("takes", &["messaging-nats", "--url", &url], "messages", takes, get("/number?key=x")),
        of(
            "tables",
            &[&db[..], &[&postgres_url]].concat(),
            "sql-probe",
            "\"sidereal:sql\" = HERE",
            ("POST", "/query/-", "SELECT 1"),
        ),
    ];
    if let Some(consul) = &consul {
        platform.secret("consul", consul::TOKEN).unwrap();
        let provider = ["keyvalue-consul", "--secret", "token=consul", "--url", &consul.url()];
        all.push(of("consul", &provider, "kv-probe", keyvalue, get("/get/default/k")));
    }
    for one in &all {
        one.add(&platform);
        until(Duration::from_secs(30), || one.ask(&platform) == 200).unwrap_or_else(|_| panic!("{}", one.name));
        until(Duration::from_secs(30), || one.trouble(&platform).is_none()).unwrap_or_else(|_| panic!("{}", one.name));
    }
    if let Some(vault) = &vault {
        vault_is_sealed_and_gone(&platform, vault);
    }
    drop((nats, database, consul));
    for one in &all {
        one.shows(&platform, &["unavailable", "timed-out"], "");
    }
}

/// A Vault that is sealed says so itself; of one that is gone nobody answers. Values that were read are still used.
fn vault_is_sealed_and_gone(platform: &Platform, vault: &Vault) {
    let token = vault.token(&["secret/*"]).unwrap();
    platform.secret("vault", &token).unwrap();
    let url = vault.url();
    let provider = |kind: &str| texts(&[kind, "--secret", "token=vault", "--url", &url]);
    let refresh = texts(&["--set", "refresh=1s"]);
    let keys = Linked {
        name: "vault-keys",
        provider: provider("keyvalue-vault"),
        guest: "kv-probe",
        link: "\"wasi:keyvalue\" = HERE",
        ask: ("GET", "/get/default/k", ""),
    };
    let secrets = Linked {
        name: "vault-secrets",
        provider: [provider("secrets-vault"), refresh].concat(),
        guest: "secret-probe",
        link: "\"wasi:keyvalue\" = \"embedded\"\n\"wasmcloud:secrets\" = { provider = HERE, label = \"key\" }",
        ask: ("GET", "/get/key", ""),
    };
    let path = "secret/data/sidereal/local/vault-secrets/key";
    vault.ask("POST", path, &json!({ "data": { "value": "x" } })).unwrap();
    let both = [keys, secrets];
    for one in &both {
        one.add(platform);
        let well = || one.ask(platform) == 200 && one.trouble(platform).is_none();
        until(Duration::from_secs(30), well).unwrap_or_else(|_| panic!("{}: {:?}", one.name, one.trouble(platform)));
    }
    vault.ask("PUT", "sys/seal", &Value::Null).unwrap();
    for one in &both {
        one.shows(platform, &["unavailable"], "is sealed");
    }
    assert_eq!(both[1].ask(platform), 200, "the value is kept");
    assert!(both[1].trouble(platform).is_some(), "and the reason stays");
}
