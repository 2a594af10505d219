//! A secret of every kind of provider and of every way to log in, planted, used, rotated to a wrong one, and asked for when its
//! server is gone: found in no answer, log, event, status, argument, environment or file afterwards, and nothing that crashes leaves
//! a core file. Secrets over links and of Vault have tests of their own (`secrets.rs`, `vault.rs`), external keepers of secrets
//! too (`external_more.rs`).

use std::os::unix::process::ExitStatusExt as _;
use std::time::Duration;

use rustix::process::Signal;
use sidereal_tests::consul::{self, Consul};
use sidereal_tests::nats::Nats;
use sidereal_tests::platform::{Platform, until, write_app};
use sidereal_tests::postgres::{self, Postgres};
use sidereal_tests::redis::Redis;
use sidereal_tests::s3::S3;
use sidereal_tests::vault::Vault;
use sidereal_tests::workspace;

use crate::external::processes;
use crate::secrets::{Watch, events};

/// One app: its name, its guest, its manifest's rest, and what is asked of it, with what the answer begins with.
type App = (&'static str, &'static str, &'static str, &'static [(&'static str, &'static str)]);

const APPS: [App; 9] = [
    (
        "watched",
        "watcher",
        "[components.main.links]\n\"wasi:keyvalue\" = [{ provider = \"kvn\" }, { provider = \"embedded\", label = \"log\" }]\n\
         [components.index]\nsource = \"component.wasm\"\n[components.index.links]\n\
         \"wasi:keyvalue\" = [{ provider = \"kvn\", watch = \"*\" }, { provider = \"embedded\", label = \"log\" }]",
        &[("/set?key=a&value=1", "done"), ("/number?key=x", "0")],
    ),
    (
        "blobs",
        "blob-probe",
        "[components.main.links]\n\"wasi:blobstore\" = \"objects\"",
        &[("/create/photos", "photos"), ("/fill/photos/a/1000", "ok"), ("/sum/photos/a", "1000")],
    ),
    (
        "worker",
        "messages",
        "[components.main.links]\n\"wasi:keyvalue\" = \"embedded\"\n\
         \"wasmcloud:messaging\" = { provider = \"stream\", subscriptions = \"orders.*\" }",
        &[("/publish?subject=orders.new&body=hat", "sent")],
    ),
    (
        "asks",
        "messages",
        "[components.main.links]\n\"wasi:keyvalue\" = \"embedded\"\n\
         \"wasmcloud:messaging\" = { provider = \"core\", subscriptions = \"prices\" }",
        &[("/ask?subject=prices&body=hat", "re: hat")],
    ),
    (
        "clock",
        "scheduled",
        "[components.main.links]\n\"wasi:keyvalue\" = \"cache\"\n\
         [schedules.tick]\ncomponent = \"main\"\ncron = \"* * * * * *\"",
        &[("/", "")],
    ),
    ("counter", "kv-counter", "[components.main.links]\n\"wasi:keyvalue\" = \"program\"", &[("/", "")]),
    ("by-token", "kv-counter", "[components.main.links]\n\"wasi:keyvalue\" = \"kvn-token\"", &[("/", "1")]),
    ("by-key", "kv-counter", "[components.main.links]\n\"wasi:keyvalue\" = \"kvn-key\"", &[("/", "1")]),
    (
        "pictures",
        "blob-probe",
        "[components.main.links]\n\"wasi:blobstore\" = \"s3\"",
        &[("/create/photos", "photos"), ("/fill/photos/a/1000", "ok"), ("/sum/photos/a", "1000")],
    ),
];

/// A file named like one that a crash leaves.
fn is_core(path: &str) -> bool {
    let name = path.rsplit('/').next().unwrap_or_default();
    path.starts_with('/') && (name == "core" || name.starts_with("core."))
}

#[test]
fn a_secret_of_every_provider_is_found_nowhere() {
    let mut watch = Watch::default();
    let (bus, cache, token) = (watch.canary(), watch.canary(), watch.canary());
    let (bus_token, s3_id, s3_key) = (watch.canary(), watch.canary(), watch.canary());
    let pair = nkeys::KeyPair::new_user();
    let seed = pair.seed().unwrap();
    for known in [postgres::PASSWORD, consul::TOKEN, &seed] {
        watch.known(known);
    }
    let nats = Nats::configured(&format!("authorization {{ user: shop, password: \"{bus}\" }}")).unwrap();
    let by_token = Nats::configured(&format!("authorization {{ token: \"{bus_token}\" }}")).unwrap();
    let by_key =
        Nats::configured(&format!("authorization {{ users: [ {{ nkey: {} }} ] }}", pair.public_key())).unwrap();
    let s3 = S3::start(&s3_id, &s3_key).unwrap();
    let (vault, consul) = (Vault::start().unwrap(), Consul::start().unwrap());
    let redis = Redis::configured(&format!("requirepass {cache}\n")).unwrap();
    let database = Postgres::start();
    let (dir, apps) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let log = tempfile::NamedTempFile::new().unwrap();
    let program = workspace().join("examples/external-keyvalue/provider.py");
    let named = format!("sqlite={}", program.display());
    let mut platform =
        Platform::start_logging(dir.path(), &["--external", &named], log.reopen().unwrap().into()).unwrap();
    let home = dir.path();
    let mut secrets = vec![
        ("bus", bus.clone()),
        ("cache", cache),
        ("db", postgres::PASSWORD.to_owned()),
        ("token", token),
        ("bus-token", bus_token),
        ("bus-seed", seed),
        ("s3-id", s3_id),
        ("s3-key", s3_key),
        ("consul", consul::TOKEN.to_owned()),
    ];
    if let Some(vault) = &vault {
        let paths = ["secret/data/sidereal/local/vaulted/*", "secret/metadata/sidereal/local/vaulted/*"];
        let (role, secret) = vault.approle(&paths).unwrap();
        for known in [&role, &secret, &vault.root] {
            watch.known(known);
        }
        secrets.extend([("role", role), ("role-secret", secret)]);
    }
    for (name, value) in &secrets {
        assert!(watch.run(home, &["secret", "set", name], Some(value)));
    }
    let (nats_url, redis_url, db_url) = (nats.url(), redis.url(), database.url());
    let (token_url, key_url, s3_url) = (by_token.url(), by_key.url(), s3.url());
    let bus = ["--url", &nats_url, "--set", "username=shop", "--secret", "password=bus"];
    for (name, kind, more) in [
        ("kvn", "keyvalue-nats", &bus[..]),
        ("objects", "blobstore-nats", &bus),
        ("core", "messaging-nats", &bus),
        (
            "stream",
            "messaging-jetstream",
            &[&bus[..], &["--set", "stream=ORDERS", "--set", "subjects=orders.>"]].concat(),
        ),
        ("cache", "keyvalue-redis", &["--url", &redis_url, "--secret", "password=cache"]),
        (
            "db",
            "sql-postgres",
            &["--url", &db_url, "--set", "username=postgres", "--set", "tls=off", "--secret", "password=db"],
        ),
        (
            "program",
            "external",
            &["--set", "program=sqlite", "--set", "contract=wasi:keyvalue", "--secret", "config.token=token"],
        ),
        ("kvn-token", "keyvalue-nats", &["--url", &token_url, "--secret", "token=bus-token"]),
        ("kvn-key", "keyvalue-nats", &["--url", &key_url, "--secret", "nkey=bus-seed"]),
        (
            "s3",
            "blobstore-s3",
            &[
                &["--url", &s3_url, "--set", "bucket=bucket", "--secret", "access-key-id=s3-id"][..],
                &["--secret", "secret-access-key=s3-key"],
            ]
            .concat(),
        ),
    ] {
        assert!(
            watch.run(home, &[&["provider", "add", name, "--type", kind], more].concat(), None),
            "{}",
            watch.last()
        );
    }
    let mut more: Vec<App> = Vec::new();
    if let Some(vault) = &vault {
        let add = ["provider", "add", "vault", "--type", "keyvalue-vault", "--secret", "role_id=role"];
        let url = vault.url();
        assert!(watch.run(home, &[&add[..], &["--secret", "secret_id=role-secret", "--url", &url]].concat(), None));
        let asked = &[("/", "1"), ("/", "2")][..];
        more.push(("vaulted", "kv-counter", "[components.main.links]\n\"wasi:keyvalue\" = \"vault\"", asked));
    }
    if let Some(consul) = &consul {
        let add = ["provider", "add", "consul", "--type", "keyvalue-consul", "--secret", "token=consul", "--url"];
        assert!(watch.run(home, &[&add[..], &[&consul.url()]].concat(), None));
        more.push((
            "in-consul",
            "kv-counter",
            "[components.main.links]\n\"wasi:keyvalue\" = \"consul\"",
            &[("/", "1")],
        ));
    }
    let sql = (
        "sql",
        "sql-probe",
        "[components.main.links]\n\"sidereal:sql\" = \"db\"",
        &[("/query/-?sql=SELECT%201", "")][..],
    );
    let all: Vec<App> = APPS.into_iter().chain([sql]).chain(more).collect();
    for (name, guest, rest, _) in &all {
        let folder = apps.path().join(name);
        write_app(&folder, name, guest, rest).unwrap();
        assert!(watch.run(home, &["deploy", folder.to_str().unwrap()], None), "{name}: {}", watch.last());
    }
    for (name, _, _, asked) in &all {
        for (path, expected) in *asked {
            let answer = platform.get(&format!("{name}.localhost"), path).unwrap();
            assert!(answer.status == 200 && answer.body.trim().starts_with(expected), "{name}{path}: {answer:?}");
        }
    }
    let own = processes(platform.pid(), "provider.py");
    let pids: Vec<u32> = platform.hosts().into_iter().chain(own).chain([platform.pid()]).collect();
    assert!(pids.len() > 2, "a host, the program and the platform");
    pids.into_iter().for_each(|pid| watch.process(pid));

    // Wrong for everybody, and then nobody is there at all.
    for (name, _) in &secrets {
        let wrong = match *name {
            "bus-seed" => nkeys::KeyPair::new_user().seed().unwrap(),
            _ => watch.canary(),
        };
        watch.known(&wrong);
        assert!(watch.run(home, &["secret", "set", name], Some(&wrong)));
    }
    for (name, _, _, asked) in &all {
        let (path, _) = asked[0];
        let answer = platform.get(&format!("{name}.localhost"), path).unwrap();
        watch.hear(&format!("{name} after the rotation"), answer.body);
    }
    for (name, ..) in &all {
        let folder = apps.path().join(name);
        watch.run(home, &["deploy", folder.to_str().unwrap()], None);
    }
    // A `.creds` file, whose JWT and seed no server here takes.
    let (jwt, seed) = (watch.canary(), nkeys::KeyPair::new_user().seed().unwrap());
    watch.known(&seed);
    let creds = format!(
        "-----BEGIN NATS USER JWT-----\n{jwt}\n------END NATS USER JWT------\n\n\
         -----BEGIN USER NKEY SEED-----\n{seed}\n------END USER NKEY SEED------\n"
    );
    assert!(watch.run(home, &["secret", "set", "creds"], Some(&creds)));
    let add = ["provider", "add", "by-creds", "--type", "keyvalue-nats", "--secret", "credentials=creds", "--url"];
    assert!(watch.run(home, &[&add[..], &[&key_url]].concat(), None));
    let folder = apps.path().join("by-creds");
    write_app(&folder, "by-creds", "kv-counter", "[components.main.links]\n\"wasi:keyvalue\" = \"by-creds\"").unwrap();
    assert!(!watch.run(home, &["deploy", folder.to_str().unwrap()], None), "no server takes them");

    drop((nats, redis, database, by_token, by_key, s3, vault, consul));
    let failed = |watch: &mut Watch, platform: &Platform| {
        let mut failed = 0;
        for (name, _, _, asked) in &all {
            let (path, _) = asked[0];
            let answer = platform.get(&format!("{name}.localhost"), path).unwrap();
            failed += usize::from(answer.status != 200);
            watch.hear(&format!("{name} without its server"), answer.body);
        }
        failed
    };
    until(Duration::from_secs(20), || failed(&mut watch, &platform) >= 6).unwrap();
    for (name, ..) in &all {
        for args in [
            &["status", name, "-o", "json"][..],
            &["status", name],
            &["logs", name],
            &["top", name, "--interval", "250ms"],
        ] {
            watch.run(home, args, None);
        }
    }
    for args in [
        &["provider", "list", "-o", "json"][..],
        &["secret", "list", "-o", "json"],
        &["schedule", "list", "clock", "-o", "json"],
        &["tenant-settings", "show"],
        &["doctor"],
    ] {
        watch.run(home, args, None);
    }
    let metrics = platform.info["metrics"].as_str().unwrap().to_owned();
    let address = metrics.strip_prefix("http://").unwrap().strip_suffix("/metrics").unwrap();
    watch.hear("metrics", sidereal_tests::http::get(address.parse().unwrap(), address, "/metrics").unwrap().body);
    watch.hear("events", events(home, platform.info["api"].as_str().unwrap()));
    platform.hosts().into_iter().chain([platform.pid()]).for_each(|pid| watch.process(pid));
    watch.files(home);
    // Whatever crashes leaves no core, for its files or for who collects them.
    for host in platform.hosts() {
        Platform::signal(host, Signal::ABORT).unwrap();
    }
    Platform::signal(platform.pid(), Signal::ABORT).unwrap();
    let ended = platform.ended(Duration::from_secs(20)).unwrap();
    assert_eq!((ended.signal(), ended.core_dumped()), (Some(Signal::ABORT.as_raw()), false), "{ended}");
    watch.files(home);
    let cores: Vec<&str> = watch.said.iter().map(|(what, _)| what.as_str()).filter(|what| is_core(what)).collect();
    assert!(cores.is_empty(), "{cores:?}");
    watch.hear("the platform's log", std::fs::read(log.path()).unwrap());
    let found = watch.found();
    assert!(found.is_empty(), "{found:#?}");
}
