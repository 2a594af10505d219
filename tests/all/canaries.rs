//! A secret of every kind of provider, planted, used, rotated to a wrong one, and asked for when its server is gone: found in
//! no answer, log, event, status, argument, environment or file afterwards. Secrets over links and of Vault have tests of
//! their own (`secrets.rs`, `vault.rs`), external keepers of secrets too (`external_more.rs`).

use std::time::Duration;

use sidereal_tests::nats::Nats;
use sidereal_tests::platform::{Platform, until, write_app};
use sidereal_tests::postgres::{self, Postgres};
use sidereal_tests::redis::Redis;
use sidereal_tests::workspace;

use crate::external::processes;
use crate::secrets::{Watch, events};

/// One app: its name, its guest, its manifest's rest, and what is asked of it, with what the answer begins with.
type App = (&'static str, &'static str, &'static str, &'static [(&'static str, &'static str)]);

const APPS: [App; 6] = [
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
];

#[test]
fn a_secret_of_every_provider_is_found_nowhere() {
    let mut watch = Watch::default();
    let (bus, cache, token) = (watch.canary(), watch.canary(), watch.canary());
    let wrong = [watch.canary(), watch.canary(), watch.canary(), watch.canary()];
    watch.known(postgres::PASSWORD);
    let nats = Nats::configured(&format!("authorization {{ user: shop, password: \"{bus}\" }}")).unwrap();
    let redis = Redis::configured(&format!("requirepass {cache}\n")).unwrap();
    let database = Postgres::start();
    let (dir, apps) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let log = tempfile::NamedTempFile::new().unwrap();
    let program = workspace().join("examples/external-keyvalue/provider.py");
    let named = format!("sqlite={}", program.display());
    let mut platform =
        Platform::start_logging(dir.path(), &["--external", &named], log.reopen().unwrap().into()).unwrap();
    let home = dir.path();
    for (name, value) in [("bus", &*bus), ("cache", &*cache), ("db", postgres::PASSWORD), ("token", &*token)] {
        assert!(watch.run(home, &["secret", "set", name], Some(value)));
    }
    let (nats_url, redis_url, db_url) = (nats.url(), redis.url(), database.url());
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
    ] {
        assert!(
            watch.run(home, &[&["provider", "add", name, "--type", kind], more].concat(), None),
            "{}",
            watch.last()
        );
    }
    let sql = (
        "sql",
        "sql-probe",
        "[components.main.links]\n\"sidereal:sql\" = \"db\"",
        &[("/query/-?sql=SELECT%201", "")][..],
    );
    let all: Vec<App> = APPS.into_iter().chain([sql]).collect();
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
    for (name, value) in ["bus", "cache", "db", "token"].into_iter().zip(&wrong) {
        assert!(watch.run(home, &["secret", "set", name], Some(value)));
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
    drop((nats, redis, database));
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
    until(Duration::from_secs(20), || failed(&mut watch, &platform) >= 3).unwrap();
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
    platform.stop(Duration::from_secs(20)).unwrap();
    watch.files(home);
    watch.hear("the platform's log", std::fs::read(log.path()).unwrap());
    let found = watch.found();
    assert!(found.is_empty(), "{found:#?}");
}
