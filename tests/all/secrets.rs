//! Secrets that are set, used, rotated, wrong, gone and written where they do not belong: found nowhere afterwards.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use api::client::{ControlClient, EventQuery};
use futures::future::BoxFuture;
use futures::{FutureExt as _, StreamExt as _};
use model::SecretValue;
use providers::secrets::conformance;
use sidereal_tests::platform::{Platform, cli, feed, until, write_app};
use sidereal_tests::redis::Redis;
use store::Expect;

/// Values nobody else has, and everything that was said while they were used.
#[derive(Default)]
pub(crate) struct Watch {
    canaries: Vec<String>,
    pub(crate) said: Vec<(String, Vec<u8>)>,
}

impl Watch {
    pub(crate) fn canary(&mut self) -> String {
        let canary = format!("Canary{:032x}", rand::random::<u128>());
        self.canaries.push(canary.clone());
        canary
    }

    /// A secret that somebody else made.
    pub(crate) fn known(&mut self, secret: &str) {
        self.canaries.push(secret.to_owned());
    }

    pub(crate) fn hear(&mut self, what: &str, bytes: impl Into<Vec<u8>>) {
        self.said.push((what.to_owned(), bytes.into()));
    }

    pub(crate) fn run(&mut self, dir: &Path, args: &[&str], input: Option<&str>) -> bool {
        let out = match input {
            Some(input) => feed(dir, args, input.as_bytes()),
            None => cli(dir, args),
        };
        let out = out.unwrap();
        self.hear(&format!("stdout of {args:?}"), out.stdout);
        self.hear(&format!("stderr of {args:?}"), out.stderr);
        out.status.success()
    }

    /// What was said last.
    pub(crate) fn last(&self) -> String {
        self.said.last().map_or_else(String::new, |(what, said)| format!("{what}: {}", String::from_utf8_lossy(said)))
    }

    pub(crate) fn files(&mut self, dir: &Path) {
        // What runs removes files meanwhile, and folders.
        for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
            let path = entry.path();
            let Ok(kind) = entry.file_type() else { continue };
            if kind.is_dir() {
                self.files(&path);
            } else if kind.is_file()
                && let Ok(bytes) = std::fs::read(&path)
            {
                self.hear(&path.display().to_string(), bytes);
            }
        }
    }

    pub(crate) fn process(&mut self, pid: u32) {
        for file in ["cmdline", "environ"] {
            self.hear(&format!("{file} of {pid}"), std::fs::read(format!("/proc/{pid}/{file}")).unwrap());
        }
        let limits = std::fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
        let core = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap();
        // One byte: with none the kernel still hands a core to a program that collects them.
        assert!(core.split_whitespace().skip(4).take(2).all(|limit| limit == "1"), "it may leave a core file: {core}");
    }

    /// Each canary as it may be written.
    fn needles(&self) -> Vec<(String, Vec<u8>)> {
        let mut needles = Vec::new();
        for canary in &self.canaries {
            needles.push((format!("{canary} plain"), canary.clone().into_bytes()));
            let hex: String = canary.bytes().map(|b| format!("{b:02x}")).collect();
            needles.push((format!("{canary} in upper hex"), hex.to_uppercase().into_bytes()));
            needles.push((format!("{canary} in hex"), hex.into_bytes()));
            for shift in 0..3 {
                // Whatever stands before it; the border characters depend on the neighbours and are cut off.
                let bytes = [&vec![0; shift][..], canary.as_bytes()].concat();
                let text = base64(&bytes);
                let inner = 4..(text.len() - 4).min(48);
                needles.push((format!("{canary} in base64, shifted by {shift}"), text.as_bytes()[inner].to_vec()));
            }
        }
        needles
    }

    pub(crate) fn found(&self) -> Vec<String> {
        let needles = self.needles();
        let mut found = Vec::new();
        for (what, bytes) in &self.said {
            for (needle, pattern) in &needles {
                if bytes.windows(pattern.len()).any(|window| window == pattern) {
                    found.push(format!("{needle} in {what}"));
                }
            }
        }
        found
    }
}

fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for chunk in bytes.chunks(3) {
        let word = chunk.iter().fold(0_u32, |word, byte| word << 8 | u32::from(*byte)) << (8 * (3 - chunk.len()));
        for place in 0..=chunk.len() {
            text.push(char::from(ALPHABET[(word >> (18 - 6 * place) & 63) as usize]));
        }
    }
    text
}

/// Sets secrets of the tenant `acme` as the control plane does.
struct Tenants(Arc<node::services::Services>);

impl conformance::Keeper for Tenants {
    fn set<'a>(&'a self, name: &'a str, value: &'a [u8]) -> BoxFuture<'a, ()> {
        async move {
            let (tenant, name) = ("acme".parse().unwrap(), name.parse().unwrap());
            let value = SecretValue::new(value.to_vec());
            self.0.secrets.set(&tenant, &name, &value, Expect::Any).await.unwrap();
        }
        .boxed()
    }

    fn remove<'a>(&'a self, name: &'a str) -> BoxFuture<'a, ()> {
        async move {
            let (tenant, name) = ("acme".parse().unwrap(), name.parse().unwrap());
            self.0.secrets.delete(&tenant, &name, Expect::Any).await.unwrap();
        }
        .boxed()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn secrets_on_this_machine_conform() {
    let dir = tempfile::tempdir().unwrap();
    let (client, services) = crate::blobstore::services(dir.path()).await;
    let (tenant, app) = ("acme".parse().unwrap(), "shop".parse().unwrap());
    services.lent.lend(&tenant, &app, conformance::NAMES.map(|name| name.parse().unwrap()).into());
    let store = host::NodeSecrets::new(client);
    let keeper = Tenants(services);
    conformance::run(&*store, &keeper, &app, &"stranger".parse().unwrap()).await.unwrap();
}

#[test]
fn the_search_finds_what_is_there() {
    let mut watch = Watch::default();
    let canary = watch.canary();
    assert_eq!(base64(b"any carnal pleas"), "YW55IGNhcm5hbCBwbGVhcw");
    watch.hear("plain", format!("a{canary}b"));
    watch.hear("shifted", base64(format!("xx{canary}yyyy").as_bytes()));
    watch.hear("hex", canary.bytes().map(|b| format!("{b:02x}")).collect::<String>());
    watch.hear("nothing", &canary.as_bytes()[..canary.len() - 1]);
    assert_eq!(watch.found().len(), 3, "{:?}", watch.found());
}

#[test]
fn a_planted_secret_is_found_nowhere() {
    let mut watch = Watch::default();
    let (password, second, wrong) = (watch.canary(), watch.canary(), watch.canary());
    let (key, key_after, written) = (watch.canary(), watch.canary(), watch.canary());
    let redis = Redis::configured(&format!("requirepass {password}\n")).unwrap();
    let (dir, app) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let log = tempfile::NamedTempFile::new().unwrap();
    let mut platform = Platform::start_logging(dir.path(), &[], log.reopen().unwrap().into()).unwrap();
    let home = dir.path();

    // Written where it does not belong: refused, and not repeated.
    let links = "[components.main.links]\n\"wasi:keyvalue\" = \"cache\"\n\"wasmcloud:secrets\" = [{ provider = \"secrets\", label = \"api-key\", key = \"API_KEY\" }]";
    let own = format!("{links}\n[providers.cache]\ntype = \"keyvalue-redis\"\nurl = \"{}\"\n", redis.url());
    for setting in [format!("password = \"{written}\""), format!("password = {{ secret = \"{written}\" }}")] {
        write_app(app.path(), "shop", "secret-probe", &format!("{own}{setting}")).unwrap();
        assert!(!watch.run(home, &["deploy", app.path().to_str().unwrap()], None));
    }
    std::fs::remove_file(app.path().join("app.toml")).unwrap();

    // An app needs what it names.
    let url = redis.url();
    let add =
        ["provider", "add", "cache", "--type", "keyvalue-redis", "--url", &url, "--secret", "password=cache-password"];
    assert!(watch.run(home, &add, None));
    write_app(app.path(), "shop", "secret-probe", links).unwrap();
    assert!(!watch.run(home, &["deploy", app.path().to_str().unwrap()], None), "the secrets are not set");
    assert!(watch.said.iter().any(|(_, said)| String::from_utf8_lossy(said).contains("is the secret `api-key`")));
    // A password that the server refuses: the deploy says so.
    assert!(watch.run(home, &["secret", "set", "api-key"], Some(&format!("{key}\n"))));
    assert!(watch.run(home, &["secret", "set", "cache-password"], Some(&wrong)));
    assert!(!watch.run(home, &["deploy", app.path().to_str().unwrap()], None), "the password is wrong");
    assert!(watch.run(home, &["secret", "set", "cache-password"], Some(&password)));
    assert!(watch.run(home, &["deploy", app.path().to_str().unwrap()], None));
    let get = |platform: &Platform, path: &str| {
        let answer = platform.get("shop.localhost", path).unwrap();
        (answer.status, answer.body)
    };
    assert_eq!(get(&platform, "/kv/default/n"), (200, "1".to_owned()));
    assert_eq!(get(&platform, "/get/API_KEY"), (200, format!("string {key}")));
    for unnamed in ["/get/api-key", "/get/cache-password"] {
        assert_eq!(get(&platform, unnamed).0, 404, "{unnamed}: only what the link names, by the key it gives");
    }
    assert!(!watch.run(home, &["secret", "delete", "api-key"], None), "it is in use");

    // Rotation into what runs: the next call sees it, and the provider connects anew.
    assert!(watch.run(home, &["secret", "set", "api-key"], Some(&key_after)));
    assert_eq!(get(&platform, "/get/API_KEY"), (200, format!("string {key_after}")));
    assert_eq!(redis.tell(&password, &["config", "set", "requirepass", &second]).unwrap(), "OK");
    assert!(watch.run(home, &["secret", "set", "cache-password"], Some(&second)));
    assert!(watch.run(home, &["secret", "rotate-key"], None));
    redis.tell(&second, &["client", "kill", "type", "normal"]).unwrap();
    until(Duration::from_secs(20), || get(&platform, "/kv/default/n").0 == 200).unwrap();
    assert_eq!(get(&platform, "/get/API_KEY"), (200, format!("string {key_after}")), "after the key was changed too");

    // Wrong, unreachable, gone.
    assert!(watch.run(home, &["secret", "set", "cache-password"], Some(&wrong)));
    redis.tell(&second, &["client", "kill", "type", "normal"]).unwrap();
    until(Duration::from_secs(20), || {
        let (status, body) = get(&platform, "/kv/default/n");
        status == 502 && body.contains("AccessDenied")
    })
    .unwrap();
    let denied = get(&platform, "/kv/default/n").1;
    watch.hear("the answer with a wrong password", denied);
    drop(redis);
    let lost = get(&platform, "/kv/default/n").1;
    watch.hear("the answer without a server", lost);
    assert!(watch.run(home, &["secret", "delete", "api-key", "--force"], None));
    assert_eq!(get(&platform, "/get/API_KEY"), (404, "not-found".to_owned()));

    platform.logged(&["shop"], "api-key").expect("the log names the secret that was asked for in vain");
    // Everything that can be asked.
    for args in [
        &["status", "shop", "-o", "json"][..],
        &["logs", "shop"],
        &["secret", "list", "-o", "json"],
        &["provider", "list", "-o", "json"],
        &["tenant-settings", "show"],
        &["plan", app.path().to_str().unwrap()],
        &["doctor"],
    ] {
        watch.run(home, args, None);
    }
    let events = events(home, platform.info["api"].as_str().unwrap());
    assert!(events.contains("dev.sidereal.secret.set"), "{events}");
    watch.hear("events", events);
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

/// All events that are kept, as text.
pub(crate) fn events(home: &Path, api: &str) -> String {
    let token = std::fs::read_to_string(home.join("token")).unwrap();
    let address = api.strip_prefix("http://").unwrap().parse().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let client = ControlClient::new(address, token.trim());
        let query = EventQuery { after: Some("1".to_owned()), ..EventQuery::default() };
        let mut events = client.events(query).await.unwrap();
        let mut text = String::new();
        // They come at once, one after the other; the first one as soon as this machine comes to it. New ones may come for ever.
        let mut end = tokio::time::Instant::now() + Duration::from_secs(60);
        let mut first = true;
        while let Ok(Some(Ok(event))) = tokio::time::timeout_at(end, events.next()).await {
            text.push_str(&serde_json::to_string(&event).unwrap());
            if std::mem::take(&mut first) {
                end = tokio::time::Instant::now() + Duration::from_secs(5);
            }
        }
        text
    })
}
