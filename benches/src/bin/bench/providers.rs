//! Every provider of key-value through a component, over the whole path, and Redis and NATS against their bare clients. Those
//! of other contracts are in `contracts.rs`.

use std::net::SocketAddr;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use rustix::process::Signal;
use serde_json::Value;
use sidereal_benches::load::{self, LoadReport, LoadSpec};
use sidereal_tests::consul::{self, Consul};
use sidereal_tests::nats::Nats;
use sidereal_tests::platform::{Platform, programs, until};
use sidereal_tests::redis::Redis;
use sidereal_tests::vault::Vault;

use crate::table::Table;
use crate::us::{Us, beside};
use crate::{Args, contracts};

/// What is asked of each: its name, and the path of the guest.
const OPERATIONS: [(&str, &str); 3] =
    [("get", "/get/default/k"), ("set", "/set/default/k/value"), ("increment", "/increment/default/n/1")];

/// Measures and fills in.
///
/// # Errors
/// When something cannot be started or gives no answer.
pub fn run(args: &Args, table: &mut Table) -> anyhow::Result<()> {
    let program = sidereal_tests::workspace().join("examples/external-keyvalue/provider.py");
    let us = Us::start(&["--external", &format!("sqlite={}", program.display())])?;
    let (redis, nats, consul, vault) = (Redis::start()?, Nats::start()?, Consul::start()?, Vault::start()?);
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
    match &vault {
        Some(vault) => {
            let paths = ["secret/data/sidereal/local/vault/*", "secret/metadata/sidereal/local/vault/*"];
            us.platform.secret("vault-token", &vault.token(&paths)?)?;
            let add =
                ["provider", "add", "vault", "--type", "keyvalue-vault", "--secret", "token=vault-token", "--url"];
            us.platform.ok(&[&add[..], &[&vault.url()]].concat())?;
            providers.push("vault");
        }
        None => table.note("key-value on vault", "not run: the program `bao` was missing".to_owned()),
    }
    let settings = ["--set", "program=sqlite", "--set", "contract=wasi:keyvalue"];
    us.platform.ok(&[&["provider", "add", "external", "--type", "external"][..], &settings].concat())?;
    providers.push("external");
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
    restarts(table, &us)?;
    contracts::run(args, table, &us)?;
    drop(us);
    against_bare(args, table, "redis", redis.addr)?;
    against_bare(args, table, "nats", nats.addr)
}

/// An external provider that is killed, to its next answer; within the budget of prompt restarts.
fn restarts(table: &mut Table, us: &Us) -> anyhow::Result<()> {
    let process = || programs(us.platform.pid(), "provider.py").first().copied();
    let mut slowest = Duration::ZERO;
    for _ in 0..3 {
        let victim = process().context("no external provider runs")?;
        Platform::signal(victim, Signal::KILL)?;
        let killed = Instant::now();
        until(Duration::from_secs(20), || process().is_some_and(|pid| pid != victim))?;
        let answers =
            || us.platform.get("external.localhost", "/get/default/k").is_ok_and(|answer| answer.status == 200);
        until(Duration::from_secs(20), answers)?;
        slowest = slowest.max(killed.elapsed());
    }
    table.at_most("an external provider that is killed, to its next answer", slowest.as_secs_f64(), 1.0, "s", "of 3");
    Ok(())
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
        if let Ok(plain) = figure("plain", "per_second")
            && operation != "set"
        {
            let measure = format!("{operation}, our {server} provider against a plain command, 32 callers");
            table.note(&measure, format!("{:.2} x plain ({plain:.0}/s)", ours / plain));
        }
    }
    Ok(())
}

fn load(args: &Args, us: &Us, app: &str, path: &str, connections: usize) -> anyhow::Result<LoadReport> {
    loads(args, us, app, &[path.to_owned()], connections)
}

/// A load of several paths in turn that must be answered with 200 throughout.
///
/// # Errors
/// When it is not.
pub fn loads(args: &Args, us: &Us, app: &str, paths: &[String], connections: usize) -> anyhow::Result<LoadReport> {
    let mut spec = LoadSpec::new(us.platform.ingress, "x", connections);
    spec.targets = paths.iter().map(|path| (format!("{app}.localhost"), path.clone())).collect();
    spec.duration = Duration::from_secs(args.seconds);
    let report = load::run(&spec).with_context(|| format!("{app} {paths:?}"))?;
    anyhow::ensure!(report.not_ok + report.broken == 0, "{app} {paths:?}: {} answers were not 200", report.not_ok);
    Ok(report)
}
