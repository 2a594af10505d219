//! The whole path against the twins: 32 connections, one connection, key-value.

use std::time::Duration;

use anyhow::Context as _;
use sidereal_benches::load::{self, LoadReport, LoadSpec};

use crate::Args;
use crate::table::Table;
use crate::us::{Twin, Us, beside};

/// Rounds of each load; the medians count.
const ROUNDS: usize = 3;

struct Both {
    one: LoadReport,
    many: LoadReport,
}

/// Measures and fills in.
///
/// # Errors
/// When something cannot be started or gives no answer.
pub fn run(args: &Args, table: &mut Table) -> anyhow::Result<()> {
    let us = Us::start(&[])?;
    us.deploy("hello", "hello", "")?;
    let h = Twin::start(&beside("twin-h")?, None)?;
    let p = Twin::start(&beside("twin-p")?, Some("hello"))?;
    let peer = args.peer.as_deref().map(|path| Twin::start(path, Some("hello"))).transpose()?;

    let (mut ours, mut hyper, mut serve, mut theirs) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for round in 1..=ROUNDS {
        eprintln!("round {round} of {ROUNDS}");
        hyper.push(both(args, h.addr, "localhost", vec![h.pid()])?);
        serve.push(both(args, p.addr, "localhost", vec![p.pid()])?);
        ours.push(both(args, us.platform.ingress, "hello.localhost", us.pids())?);
        if let Some(peer) = &peer {
            theirs.push(both(args, peer.addr, "localhost", vec![peer.pid()])?);
        }
    }
    let rate = |all: &[Both]| median(all, |b| b.many.per_second);
    let cpu = |all: &[Both]| median(all, |b| b.many.cpu_us);
    let p50 = |all: &[Both]| median(all, |b| b.one.p50_us);
    let p99 = |all: &[Both]| median(all, |b| b.one.p99_us);
    let failed: u64 = ours.iter().map(|b| b.many.not_ok + b.one.not_ok + b.many.broken + b.one.broken).sum();
    anyhow::ensure!(failed == 0, "{failed} of our answers were not 200");
    table.note(
        "twin H (hyper), req/s and p50/p99 µs",
        format!("{:.0}; {:.0}/{:.0}", rate(&hyper), p50(&hyper), p99(&hyper)),
    );
    table.note(
        "twin P (serve), req/s, CPU µs, p50 µs",
        format!("{:.0}; {:.1}; {:.0}", rate(&serve), cpu(&serve), p50(&serve)),
    );
    if !theirs.is_empty() {
        table.note(
            "peer, req/s, CPU µs, p50 µs",
            format!("{:.0}; {:.1}; {:.0}", rate(&theirs), cpu(&theirs), p50(&theirs)),
        );
    }
    let detail = format!("{:.0} req/s", rate(&ours));
    table.at_least("hello, fresh instance, 32 connections, against P", rate(&ours) / rate(&serve), 3.0, "x P", &detail);
    table.at_least("the same against H", rate(&ours) / rate(&hyper), 0.30, "x H", "");
    let detail = format!("{:.1} µs", cpu(&ours));
    table.at_most("CPU per request, ingress and host", cpu(&ours) / cpu(&serve), 0.36, "x P", &detail);
    table.at_most("p50 at 1 connection", p50(&ours) / p50(&hyper), 1.75, "x H", &format!("{:.0} µs", p50(&ours)));
    table.at_most("p99 at 1 connection", p99(&ours) / p99(&hyper), 2.0, "x H", &format!("{:.0} µs", p99(&ours)));
    drop((p, peer));

    us.deploy("warm", "hello", "reuse = { requests = 100000, idle = \"10s\" }")?;
    let warm = load(args, us.platform.ingress, "warm.localhost", 32, us.pids())?;
    table.at_least(
        "reuse on, Rust hello, 32 connections",
        warm.per_second / rate(&hyper),
        0.6,
        "x H",
        &format!("{:.0} req/s", warm.per_second),
    );
    drop(h);

    us.deploy("durable", "kv-counter", "[components.main.links]\n\"wasi:keyvalue\" = \"embedded\"")?;
    let durable = load(args, us.platform.ingress, "durable.localhost", 32, us.pids())?;
    table.at_least(
        "counter on the embedded store, 32 connections",
        durable.per_second,
        5000.0,
        "durable increments/s",
        &format!("p50 {:.1} ms", durable.p50_us / 1000.0),
    );
    us.deploy("quick", "kv-counter", "[components.main.links]\n\"wasi:keyvalue\" = \"memory\"")?;
    let quick = load(args, us.platform.ingress, "quick.localhost", 32, us.pids())?;
    table.at_least(
        "counter in memory against own hello",
        quick.per_second / rate(&ours),
        0.6,
        "x hello",
        &format!("{:.0} req/s", quick.per_second),
    );
    limit(args, table)
}

/// The in-host path against bare wasmtime, in one process and one thread.
fn limit(args: &Args, table: &mut Table) -> anyhow::Result<()> {
    let figure = |program: &str, extra: &[&str]| -> anyhow::Result<f64> {
        let out = std::process::Command::new(beside(program)?)
            .arg(sidereal_tests::guest("hello"))
            .args(extra)
            .env_remove("RUST_BACKTRACE")
            .output()
            .with_context(|| format!("cannot run {program}"))?;
        let report: serde_json::Value = serde_json::from_slice(&out.stdout)
            .with_context(|| format!("{program}: {}", String::from_utf8_lossy(&out.stderr)))?;
        report.get("p50_us").and_then(serde_json::Value::as_f64).with_context(|| format!("{program} gave no p50"))
    };
    let calls = (args.seconds * 10_000).to_string();
    let (m, host) = (figure("twin-m", &[&calls])?, figure("in-host", &[&calls])?);
    table.at_most(
        "in-host path (route to response) against M",
        host / m,
        1.3,
        "x M",
        &format!("{host:.1} µs, M {m:.1} µs"),
    );
    Ok(())
}

fn both(args: &Args, addr: std::net::SocketAddr, host: &str, pids: Vec<u32>) -> anyhow::Result<Both> {
    Ok(Both { one: load(args, addr, host, 1, pids.clone())?, many: load(args, addr, host, 32, pids)? })
}

fn load(
    args: &Args,
    addr: std::net::SocketAddr,
    host: &str,
    connections: usize,
    pids: Vec<u32>,
) -> anyhow::Result<LoadReport> {
    let mut spec = LoadSpec::new(addr, host, connections);
    spec.duration = Duration::from_secs(args.seconds);
    spec.servers = pids;
    let report = load::run(&spec).with_context(|| format!("{host} at {addr}"))?;
    anyhow::ensure!(report.not_ok + report.broken == 0, "{host} at {addr} did not answer everything: {report:?}");
    Ok(report)
}

fn median(all: &[Both], figure: impl Fn(&Both) -> f64) -> f64 {
    let mut figures: Vec<f64> = all.iter().map(figure).collect();
    figures.sort_by(f64::total_cmp);
    figures.get(figures.len() / 2).copied().unwrap_or_default()
}
