//! Every provider of key-value and of SQL through a component, over the whole path, and Redis and NATS against their bare
//! clients.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::Context as _;
use serde_json::Value;
use sidereal_benches::load::{self, LoadReport, LoadSpec};
use sidereal_tests::consul::{self, Consul};
use sidereal_tests::http::Connection;
use sidereal_tests::nats::Nats;
use sidereal_tests::postgres::{self, Postgres};
use sidereal_tests::redis::Redis;

use crate::Args;
use crate::table::Table;
use crate::us::{Us, beside};

/// What is asked of each: its name, and the path of the guest.
const OPERATIONS: [(&str, &str); 3] =
    [("get", "/get/default/k"), ("set", "/set/default/k/value"), ("increment", "/increment/default/n/1")];

/// Measures and fills in.
///
/// # Errors
/// When something cannot be started or gives no answer.
pub fn run(args: &Args, table: &mut Table) -> anyhow::Result<()> {
    let us = Us::start(&[])?;
    let (redis, nats, consul) = (Redis::start()?, Nats::start()?, Consul::start()?);
    us.platform.ok(&["provider", "add", "redis", "--type", "keyvalue-redis", "--url", &redis.url()])?;
    us.platform.ok(&["provider", "add", "nats", "--type", "keyvalue-nats", "--url", &nats.url()])?;
    let mut providers = vec!["memory", "embedded", "redis", "nats"];
    match &consul {
        Some(consul) => {
            us.platform.secret("consul-token", consul::TOKEN)?;
            let add =
                ["provider", "add", "consul", "--type", "keyvalue-consul", "--secret", "token=consul-token", "--url"];
            us.platform.ok(&[&add[..], &[&consul.url()]].concat())?;
            providers.push("consul");
        }
        None => table.note("key-value on consul", "not run: the program `consul` was missing".to_owned()),
    }
    us.deploy("hello", "hello", "")?;
    let hello = load(args, &us, "hello", "/", 32)?;
    table.note("hello, for comparison", format!("{:.0} req/s", hello.per_second));
    for provider in providers {
        let links = format!("[components.main.links]\n\"wasi:keyvalue\" = \"{provider}\"");
        us.deploy(provider, "kv-probe", &links)?;
        load(&Args { seconds: 1, ..args.clone() }, &us, provider, "/set/default/k/value", 1)?;
        for (operation, path) in OPERATIONS {
            let many = load(args, &us, provider, path, 32)?;
            let one = load(args, &us, provider, path, 1)?;
            let detail =
                format!("{:.0} req/s, alone p50 {:.0} µs, p99 {:.0} µs", many.per_second, one.p50_us, one.p99_us);
            let measure = format!("{operation} on {provider}, 32 connections");
            let goal = match (provider, operation) {
                ("memory", "get") => 0.6,
                ("embedded", "get") => 0.5,
                _ => {
                    table.note(&measure, detail);
                    continue;
                }
            };
            table.at_least(&measure, many.per_second / hello.per_second, goal, "x hello", &detail);
        }
    }
    sql(args, table, &us)?;
    drop(us);
    against_bare(args, table, "redis", redis.addr)?;
    against_bare(args, table, "nats", nats.addr)
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
        let many = load(args, us, app, &path, 32)?;
        let one = load(args, us, app, &path, 1)?;
        let detail = format!("{:.0} req/s, alone p50 {:.0} µs, p99 {:.0} µs", many.per_second, one.p50_us, one.p99_us);
        table.note(&format!("{what} on {app}, 32 connections"), detail);
    }
    Ok(())
}

/// For a query string.
fn encoded(text: &str) -> String {
    let plain = |byte: &u8| byte.is_ascii_alphanumeric();
    text.as_bytes().iter().map(|b| if plain(b) { char::from(*b).to_string() } else { format!("%{b:02X}") }).collect()
}

fn against_bare(args: &Args, table: &mut Table, server: &str, address: SocketAddr) -> anyhow::Result<()> {
    let out = Command::new(beside("kv")?)
        .args([server, &address.to_string(), &args.seconds.to_string()])
        .env_remove("RUST_BACKTRACE")
        .output()
        .context("cannot run kv")?;
    let report: Value = serde_json::from_slice(&out.stdout)
        .with_context(|| format!("kv {server}: {}", String::from_utf8_lossy(&out.stderr)))?;
    for (operation, _) in OPERATIONS {
        let figure = |who: &str, what: &str| {
            let at = format!("/{operation}/{who}/{what}");
            report.pointer(&at).and_then(Value::as_f64).with_context(|| format!("kv gave no {at}"))
        };
        let (ours, bare) = (figure("ours", "per_second")?, figure("bare", "per_second")?);
        let detail = format!(
            "{ours:.0}/s, bare {bare:.0}/s; p50 {:.0} and {:.0} µs",
            figure("ours", "p50_us")?,
            figure("bare", "p50_us")?
        );
        let measure = format!("{operation}, our {server} provider against the bare client, 32 callers");
        table.at_least(&measure, ours / bare, 0.9, "x bare", &detail);
    }
    Ok(())
}

fn load(args: &Args, us: &Us, app: &str, path: &str, connections: usize) -> anyhow::Result<LoadReport> {
    let mut spec = LoadSpec::new(us.platform.ingress, "x", connections);
    spec.targets = vec![(format!("{app}.localhost"), path.to_owned())];
    spec.duration = Duration::from_secs(args.seconds);
    let report = load::run(&spec).with_context(|| format!("{app}{path}"))?;
    anyhow::ensure!(report.not_ok + report.broken == 0, "{app}{path}: {} answers were not 200", report.not_ok);
    Ok(report)
}
