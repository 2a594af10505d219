//! Watched buckets: how soon a component is told of a write, and how many changes a second, through the whole platform for
//! each provider; and what following costs beside a bare subscription of the same server.

use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use serde_json::Value;
use sidereal_tests::http::Connection;
use sidereal_tests::nats::Nats;
use sidereal_tests::platform::until;
use sidereal_tests::redis::Redis;

use crate::Args;
use crate::table::Table;
use crate::us::{Us, beside};

/// Single writes whose call is waited for.
const ONES: usize = 50;
/// Writes of one burst.
const BURST: usize = 500;

/// Measures and fills in.
///
/// # Errors
/// When something cannot be started or a change is not told.
pub fn run(args: &Args, table: &mut Table) -> anyhow::Result<()> {
    let us = Us::start(&[])?;
    let (redis, nats) = (Redis::configured("notify-keyspace-events Khg\n")?, Nats::start()?);
    us.platform.ok(&["provider", "add", "redis", "--type", "keyvalue-redis", "--url", &redis.url()])?;
    us.platform.ok(&["provider", "add", "nats", "--type", "keyvalue-nats", "--url", &nats.url()])?;
    for provider in ["memory", "embedded", "redis", "nats"] {
        told(&us, table, provider)?;
    }
    drop(us);
    against_bare(args, table, "redis", &redis.addr.to_string())?;
    against_bare(args, table, "nats", &nats.addr.to_string())
}

/// Through a component that counts in memory what it is told of.
fn told(us: &Us, table: &mut Table, provider: &str) -> anyhow::Result<()> {
    let name = format!("watched-{provider}");
    // One component writes by the one link and is told by the other.
    let rest = format!(
        "[components.main.links]\n\"wasi:keyvalue\" = [{{ provider = \"{provider}\" }}, {{ provider = \"memory\", label = \"log\" }}]\n\
         [components.index]\nsource = \"component.wasm\"\n[components.index.links]\n\
         \"wasi:keyvalue\" = [{{ provider = \"{provider}\", watch = \"*\" }}, {{ provider = \"memory\", label = \"log\" }}]\n"
    );
    us.deploy(&name, "watcher", &rest)?;
    let host = format!("{name}.localhost");
    let mut connection = Connection::open(us.platform.ingress)?;
    let mut ask = |path: &str| -> anyhow::Result<String> {
        let answer = connection.send("GET", &host, path, b"")?;
        anyhow::ensure!(answer.status == 200, "{name}{path}: {} {}", answer.status, answer.body);
        Ok(answer.body)
    };
    let mut number = |key: &str| ask(&format!("/number?key={key}")).map(|text| text.parse::<usize>().unwrap_or(0));
    let mut begins = 0;
    until(Duration::from_secs(30), || {
        begins += 1;
        let set = Connection::open(us.platform.ingress)
            .and_then(|mut own| own.send("GET", &host, &format!("/set?key=begins{begins}&value=1"), b""));
        std::thread::sleep(Duration::from_millis(100));
        set.is_ok() && number(&format!("told:begins{begins}")).is_ok_and(|count| count > 0)
    })
    .context("the watch does not begin")?;
    let mut took = Vec::new();
    for n in 0..ONES {
        let began = Instant::now();
        ask(&format!("/set?key=one{n}&value=1"))?;
        // Asked again and again: what is measured is at most one request too long.
        while ask(&format!("/number?key=told:one{n}"))? != "1" {
            anyhow::ensure!(began.elapsed() < Duration::from_secs(30), "{provider}: one{n} is not told");
        }
        took.push(began.elapsed());
    }
    took.sort_unstable();
    let at = |percent: usize| took.get((took.len() - 1) * percent / 100).map_or(0.0, |took| took.as_secs_f64() * 1e6);
    let began = Instant::now();
    ask(&format!("/burst?from=0&to={BURST}"))?;
    for n in (0..BURST).rev() {
        while ask(&format!("/number?key=told:n{n}"))? == "0" {
            anyhow::ensure!(began.elapsed() < Duration::from_secs(120), "{provider}: n{n} is not told");
        }
    }
    let per_second = BURST as f64 / began.elapsed().as_secs_f64();
    let detail = format!("write to call p50 {:.0} µs, p99 {:.0} µs; {per_second:.0} changes/s", at(50), at(99));
    table.note(&format!("a watched bucket of {provider}, through the platform"), detail);
    Ok(())
}

fn against_bare(args: &Args, table: &mut Table, server: &str, address: &str) -> anyhow::Result<()> {
    let out = Command::new(beside("kv")?)
        .args(["watch", server, address, &args.seconds.to_string()])
        .env_remove("RUST_BACKTRACE")
        .output()
        .context("cannot run kv")?;
    let report: Value = serde_json::from_slice(&out.stdout)
        .with_context(|| format!("kv watch {server}: {}", String::from_utf8_lossy(&out.stderr)))?;
    let figure = |who: &str, what: &str| {
        let at = format!("/{who}/{what}");
        report.pointer(&at).and_then(Value::as_f64).with_context(|| format!("kv gave no {at}"))
    };
    let detail = format!(
        "write to notice p50 {:.0} µs, p99 {:.0} µs, bare {:.0} and {:.0} µs; {:.0} changes/s, bare {:.0}/s",
        figure("ours", "p50_us")?,
        figure("ours", "p99_us")?,
        figure("bare", "p50_us")?,
        figure("bare", "p99_us")?,
        figure("ours", "per_second")?,
        figure("bare", "per_second")?,
    );
    // The bare way remembers nothing: what it does not hear is lost, so there is no goal in it.
    table.note(&format!("following {server}, against a bare subscription"), detail);
    Ok(())
}
