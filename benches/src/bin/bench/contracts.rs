//! Every provider of objects, messages, secrets and SQL through a component, over the whole path: throughput with 32
//! connections, latency with one. They have no twins, and so no goals.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use sidereal_tests::http::Connection;
use sidereal_tests::nats::Nats;
use sidereal_tests::platform::until;
use sidereal_tests::postgres::{self, Postgres};
use sidereal_tests::s3::S3;
use sidereal_tests::vault::Vault;

use crate::Args;
use crate::providers::loads;
use crate::table::Table;
use crate::us::Us;

/// The size of an object, bytes.
const OBJECT: usize = 64 << 10;
/// Messages of one burst.
const BURST: usize = 2000;

/// Measures and fills in.
///
/// # Errors
/// When something cannot be started or gives no answer.
pub fn run(args: &Args, table: &mut Table, us: &Us) -> anyhow::Result<()> {
    let nats = Nats::start()?;
    objects(args, table, us, &nats)?;
    messages(args, table, us, &nats)?;
    secrets(args, table, us)?;
    sql(args, table, us)
}

/// The figures of a load of many connections, and of one alone.
fn both(args: &Args, table: &mut Table, us: &Us, app: &str, what: &str, paths: &[String]) -> anyhow::Result<()> {
    let many = loads(args, us, app, paths, 32)?;
    let one = loads(args, us, app, paths, 1)?;
    let detail = format!("{:.0} req/s, alone p50 {:.0} µs, p99 {:.0} µs", many.per_second, one.p50_us, one.p99_us);
    table.note(&format!("{what}, 32 connections"), detail);
    Ok(())
}

/// Objects of [`OBJECT`] bytes, each written under one of 64 names, and read.
fn objects(args: &Args, table: &mut Table, us: &Us, nats: &Nats) -> anyhow::Result<()> {
    let s3 = S3::start("AKID", "right")?;
    us.platform.secret("s3-key", "right")?;
    let add = ["provider", "add", "s3", "--type", "blobstore-s3", "--set", "bucket=bucket", "--url"];
    let url = s3.url();
    let key = [url.as_str(), "--set", "access-key-id=AKID", "--secret", "secret-access-key=s3-key"];
    us.platform.ok(&[&add[..], &key].concat())?;
    us.platform.ok(&["provider", "add", "nats-objects", "--type", "blobstore-nats", "--url", &nats.url()])?;
    for provider in ["folder", "s3", "nats-objects"] {
        let app = format!("blobs-{provider}");
        us.deploy(&app, "blob-probe", &format!("[components.main.links]\n\"wasi:blobstore\" = \"{provider}\""))?;
        let made = us.platform.get(&format!("{app}.localhost"), "/create/c")?;
        anyhow::ensure!(made.status == 200, "{app}: {} {}", made.status, made.body);
        let paths = |operation: &str, rest: &str| -> Vec<String> {
            (0..64).map(|n| format!("/{operation}/c/o{n}{rest}")).collect()
        };
        let size = format!("/{OBJECT}");
        both(args, table, us, &app, &format!("an object of 64 KiB written to {provider}"), &paths("fill", &size))?;
        both(args, table, us, &app, &format!("an object of 64 KiB read from {provider}"), &paths("get", ""))?;
    }
    Ok(())
}

/// A question and its answer through a handler; and a burst, from the first message sent to the last one handled.
fn messages(args: &Args, table: &mut Table, us: &Us, nats: &Nats) -> anyhow::Result<()> {
    let url = nats.url();
    us.platform.ok(&["provider", "add", "core", "--type", "messaging-nats", "--url", &url])?;
    // A server of its own: where a subject of a stream is also listened to without it, whoever listens answers in its place.
    let streams = Nats::start()?;
    let url = streams.url();
    let stream = ["--set", "stream=BENCH", "--set", "subjects=orders.>,prices", "--url", &url];
    us.platform.ok(&[&["provider", "add", "stream", "--type", "messaging-jetstream"][..], &stream].concat())?;
    for (provider, called) in [("local", "local"), ("durable", "durable"), ("core", "NATS"), ("stream", "JetStream")] {
        let app = format!("messages-{provider}");
        let links = format!(
            "limits = {{ cpu = \"60s\", wall = \"60s\" }}\n[components.main.links]\n\"wasi:keyvalue\" = \"memory\"\n\
             \"wasmcloud:messaging\" = {{ provider = \"{provider}\", subscriptions = \"orders.*, prices\" }}"
        );
        us.deploy(&app, "messages", &links)?;
        let ask = "/ask?subject=prices&body=hat&timeout=10000".to_owned();
        both(args, table, us, &app, &format!("a question answered by a handler over {called}"), &[ask])?;
        let host = format!("{app}.localhost");
        let handled =
            || -> anyhow::Result<usize> { Ok(us.platform.get(&host, "/number?key=done")?.body.trim().parse()?) };
        let (before, began) = (handled()?, Instant::now());
        let sent = us.platform.get(&host, &format!("/burst?subject=orders.new&from=0&to={BURST}"))?;
        anyhow::ensure!(sent.status == 200, "{app}: {} {}", sent.status, sent.body);
        let sending = began.elapsed();
        until(Duration::from_secs(60), || handled().is_ok_and(|now| now >= before + BURST))
            .with_context(|| format!("{app}: {:?} of {BURST} handled", handled()))?;
        let rate = |took: Duration| BURST as f64 / took.as_secs_f64();
        let detail = format!("{:.0} sent a second, {:.0} handled", rate(sending), rate(began.elapsed()));
        table.note(&format!("a burst of {BURST} messages over {called}"), detail);
    }
    Ok(())
}

/// A secret that a component asks for.
fn secrets(args: &Args, table: &mut Table, us: &Us) -> anyhow::Result<()> {
    us.platform.secret("api-key", "value")?;
    let kv = "\"wasi:keyvalue\" = \"memory\"\n";
    let link = |provider: &str| {
        let secret = format!("\"wasmcloud:secrets\" = [{{ provider = \"{provider}\", label = \"api-key\" }}]\n");
        format!("[components.main.links]\n{kv}{secret}")
    };
    us.deploy("secrets-embedded", "secret-probe", &link("secrets"))?;
    both(args, table, us, "secrets-embedded", "a secret of the embedded store", &["/get/api-key".to_owned()])?;
    let Some(vault) = Vault::start()? else {
        table.note("a secret of Vault", "not run: the program `bao` was missing".to_owned());
        return Ok(());
    };
    let body = serde_json::json!({ "data": { "value": "value" } });
    vault.ask("POST", "secret/data/sidereal/local/secrets-vault/api-key", &body)?;
    us.platform.secret("secrets-token", &vault.token(&["secret/data/sidereal/local/secrets-vault/*"])?)?;
    let url = vault.url();
    let add =
        ["provider", "add", "keeper", "--type", "secrets-vault", "--secret", "token=secrets-token", "--url", &url];
    us.platform.ok(&add)?;
    us.deploy("secrets-vault", "secret-probe", &link("keeper"))?;
    both(args, table, us, "secrets-vault", "a secret of Vault, kept for its refresh", &["/get/api-key".to_owned()])
}

/// What is asked of each database, in a table of a thousand rows: its name, and the statement.
const STATEMENTS: [(&str, &str, &str); 2] = [
    ("get by key", "query", "SELECT v FROM t WHERE k = $1\ti:500"),
    ("insert", "execute", "INSERT INTO log VALUES ($1)\tt:value"),
];

/// A row read and a row written, in SQLite and in Postgres.
fn sql(args: &Args, table: &mut Table, us: &Us) -> anyhow::Result<()> {
    us.deploy("sqlite", "sql-probe", "[components.main.links]\n\"sidereal:sql\" = \"sqlite\"")?;
    rows(args, table, us, "sqlite")?;
    if !Path::new("/usr/lib/postgresql").is_dir() {
        table.note("SQL on postgres", "not run: Debian's package `postgresql` was missing".to_owned());
        return Ok(());
    }
    let server = Postgres::start();
    us.platform.secret("db-password", postgres::PASSWORD)?;
    let add = ["provider", "add", "db", "--type", "sql-postgres", "--set", "username=postgres", "--set", "tls=off"];
    let url = server.url();
    let secret = ["--secret", "password=db-password", "--url", &url];
    us.platform.ok(&[&add[..], &secret[..]].concat())?;
    us.deploy("postgres", "sql-probe", "[components.main.links]\n\"sidereal:sql\" = \"db\"")?;
    rows(args, table, us, "postgres")
}

fn rows(args: &Args, table: &mut Table, us: &Us, app: &str) -> anyhow::Result<()> {
    let host = format!("{app}.localhost");
    let mut set_up =
        vec!["CREATE TABLE log (v TEXT)".to_owned(), "CREATE TABLE t (k BIGINT PRIMARY KEY, v TEXT)".to_owned()];
    set_up.extend((0..1000).map(|k| format!("INSERT INTO t VALUES ({k}, 'value')")));
    let mut connection = Connection::open(us.platform.ingress)?;
    for batch in set_up.chunks(500) {
        let answer = connection.send("POST", &host, "/batch/-", batch.join("\n").as_bytes())?;
        anyhow::ensure!(answer.status == 200, "{app}: {} {}", answer.status, answer.body);
    }
    for (what, operation, statement) in STATEMENTS {
        let path = format!("/{operation}/-?sql={}", encoded(statement));
        both(args, table, us, app, &format!("{what} on {app}"), &[path])?;
    }
    Ok(())
}

/// For a query string.
fn encoded(text: &str) -> String {
    let plain = |byte: &u8| byte.is_ascii_alphanumeric();
    text.as_bytes().iter().map(|b| if plain(b) { char::from(*b).to_string() } else { format!("%{b:02X}") }).collect()
}
