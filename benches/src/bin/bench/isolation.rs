//! What isolation costs: hosts with every layer of the sandbox beside hosts without any, in turns; how long a tenant's host
//! takes to start, and what one has while nobody asks it.

use std::process::Stdio;
use std::time::Duration;

use anyhow::Context as _;
use sidereal_benches::load::{self, LoadReport, LoadSpec};
use sidereal_benches::processes;
use sidereal_tests::platform::{Platform, until};

use crate::Args;
use crate::table::Table;
use crate::us::Us;

/// Loads of 32 connections; the medians count.
const ROUNDS: usize = 5;
/// Loads of one connection, of a second. Where the kernel puts client, ingress and host on two cores makes two kinds of them,
/// 30 µs apart and the same with and without a sandbox: the lower quartiles are of the same kind.
const SINGLE: usize = 20;
/// Starts of one tenant's host, and tenants: more of one would be put off, as after a crash.
const STARTS: usize = 4;
const TENANTS: usize = 3;
/// Every layer there is.
const NONE: &str = "uid,user,pid,root,net,ipc,uts,caps,landlock,seccomp,cgroup";

/// Measures and fills in.
///
/// # Errors
/// When something cannot be started or gives no answer.
pub fn run(args: &Args, table: &mut Table) -> anyhow::Result<()> {
    layers(args, table)?;
    starts(table)
}

/// The same app in hosts with all layers and in hosts with none.
fn layers(args: &Args, table: &mut Table) -> anyhow::Result<()> {
    let (full, bare) = (Us::start(&[])?, Us::start(&["--waive", NONE])?);
    for us in [&full, &bare] {
        us.deploy("hello", "hello", "")?;
    }
    let turns = |rounds: usize, connections: usize, seconds: u64| -> anyhow::Result<[Vec<LoadReport>; 2]> {
        let mut both = [Vec::new(), Vec::new()];
        for round in 1..=rounds {
            eprintln!("round {round} of {rounds}");
            for (us, reports) in [&full, &bare].into_iter().zip(&mut both) {
                let mut spec = LoadSpec::new(us.platform.ingress, "hello.localhost", connections);
                spec.duration = Duration::from_secs(seconds);
                let report = load::run(&spec)?;
                anyhow::ensure!(report.not_ok + report.broken == 0, "not every answer was 200: {report:?}");
                reports.push(report);
            }
        }
        Ok(both)
    };
    let [confined, free] = turns(ROUNDS, 32, args.seconds)?;
    let rate = |reports: &[LoadReport]| quantile(reports.iter().map(|report| report.per_second), 2);
    let detail = format!("{:.0} req/s, {:.0} without any layer", rate(&confined), rate(&free));
    table.at_least(
        "all layers, hello, 32 connections",
        rate(&confined) / rate(&free),
        0.95,
        "x without any layer",
        &detail,
    );
    let [confined, free] = turns(SINGLE, 1, 1)?;
    let p50 = |reports: &[LoadReport]| quantile(reports.iter().map(|report| report.p50_us), 4);
    let detail = format!("{:.1} µs, {:.1} µs without; lower quartiles of {SINGLE}", p50(&confined), p50(&free));
    table.at_most("all layers, p50 at 1 connection, beyond none", p50(&confined) - p50(&free), 5.0, "µs", &detail);
    Ok(())
}

/// Hosts that are killed and start again, each with one app whose code is compiled.
fn starts(table: &mut Table) -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let log = dir.path().join("log");
    let told = Stdio::from(std::fs::File::create(&log)?);
    let env = [("SIDEREAL_LOG", "warn,node::supervisor=info")];
    let platform = Platform::start_telling(&dir.path().join("data"), &["--shards", "1"], &env, told)?;
    let keys = platform.ok(&["keys", "list"])?;
    let account = keys.as_array().into_iter().flatten().find(|key| key.get("name").is_some_and(|n| n == "account"));
    let account = account.and_then(|key| key.get("key")?.as_str()).context("no account")?.to_owned();
    for n in 0..TENANTS {
        let (tenant, app) = (format!("t{n}"), format!("hello-{n}"));
        platform.ok(&["tenant", "create", &tenant, "--trust", &account, "--shards", "1"])?;
        let folder = dir.path().join(&app);
        sidereal_tests::platform::write_app(&folder, &app, "hello", "")?;
        platform.ok(&["--tenant", &tenant, "deploy", folder.to_str().context("path")?])?;
    }
    let memory = |table: &mut Table, when: &str| -> anyhow::Result<()> {
        let bytes: Option<Vec<u64>> = platform.hosts().into_iter().map(processes::private_bytes).collect();
        let most = bytes.context("a host is gone")?.into_iter().max().unwrap_or_default();
        table.at_most(
            &format!("private memory of an idle host {when}"),
            most as f64 / f64::from(1 << 20),
            15.0,
            "MiB",
            "",
        );
        Ok(())
    };
    memory(table, "before its first request")?;
    for _ in 0..STARTS {
        for pid in platform.hosts() {
            let known = ready(&log)?.len();
            Platform::signal(pid, rustix::process::Signal::KILL)?;
            until(Duration::from_secs(20), || ready(&log).is_ok_and(|ready| ready.len() > known))?;
        }
    }
    for n in 0..TENANTS {
        for _ in 0..1000 {
            let answer = platform.get(&format!("hello-{n}.localhost"), "/")?;
            anyhow::ensure!(answer.status == 200, "hello-{n} answered {answer:?}");
        }
    }
    memory(table, "after 1,000 requests")?;
    // The first ones were starts without an app.
    let again = ready(&log)?.split_off(TENANTS);
    let longest = again.iter().copied().fold(0.0, f64::max);
    let detail = format!("p50 of {}; the longest {longest:.0} ms", again.len());
    table.at_most("start of a tenant's host to ready, warm", quantile(again.into_iter(), 2), 100.0, "ms", &detail);
    Ok(())
}

/// Of every host that got ready so far, how long that took, milliseconds.
fn ready(log: &std::path::Path) -> anyhow::Result<Vec<f64>> {
    let text = std::fs::read_to_string(log)?;
    let lines = text.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    let ready = lines.filter(|line| line.pointer("/fields/message").is_some_and(|said| said == "a host is ready"));
    ready
        .map(|line| {
            let said = line.pointer("/fields/elapsed").and_then(|elapsed| elapsed.as_str()).unwrap_or_default();
            let (number, unit) = said.split_at(said.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(0));
            let times = match unit {
                "s" => 1000.0,
                "ms" => 1.0,
                "µs" => 0.001,
                _ => anyhow::bail!("`{said}` is no time"),
            };
            Ok(number.parse::<f64>()? * times)
        })
        .collect()
}

/// The figure that one in `parts` is below: with 2 the median.
fn quantile(figures: impl Iterator<Item = f64>, parts: usize) -> f64 {
    let mut figures: Vec<f64> = figures.collect();
    figures.sort_by(f64::total_cmp);
    figures.get(figures.len() / parts).copied().unwrap_or_default()
}
