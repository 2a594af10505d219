//! Many distinct apps: what an idle one costs, how fast a cold one answers, how fast all are back after a restart.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use sidereal_benches::load::{self, LoadSpec};
use sidereal_benches::processes::anonymous_bytes;
use sidereal_tests::http::Connection;
use sidereal_tests::platform::Platform;

use crate::Args;
use crate::table::Table;
use crate::us::{Us, beside};

/// Measures and fills in.
///
/// # Errors
/// When something cannot be started or gives no answer.
pub fn run(args: &Args, table: &mut Table) -> anyhow::Result<()> {
    let us = Us::start(&["--allow-unsigned", "--shards", "1"])?;
    let wasm = std::fs::read(sidereal_tests::guest("hello"))?;
    let begun = Instant::now();
    // One folder and one manifest with many components would be one app; distinct apps are deployed one by one.
    for n in 0..args.apps {
        if n % 100 == 0 {
            eprintln!("  deploying {n} of {}", args.apps);
        }
        let folder = us.data().with_file_name("app");
        let name = format!("app{n}");
        sidereal_tests::platform::write_app(&folder, &name, "hello", "")?;
        std::fs::write(folder.join("component.wasm"), distinct(&wasm, n))?;
        us.platform.ok(&["deploy", "--no-sign", &folder.to_string_lossy()])?;
    }
    let each = begun.elapsed().as_secs_f64() * 1000.0 / args.apps as f64;
    table.note(&format!("deploying {} distinct apps, to serving, each", args.apps), format!("{each:.0} ms"));

    let data = us.data();
    let (mut platform, dir) = us.into_parts();
    platform.stop(Duration::from_secs(30))?;
    let platform = Platform::start(&data, &["--allow-unsigned", "--shards", "1"])?;
    let restarted = Instant::now();
    let mut connection = Connection::open(platform.ingress)?;
    let last = format!("app{}.localhost", args.apps - 1);
    sidereal_tests::platform::until(Duration::from_secs(60), || {
        Connection::open(platform.ingress)
            .and_then(|mut c| c.send("GET", &last, "/", &[]))
            .is_ok_and(|a| a.status == 200)
    })?;
    let ready = platform.ready + restarted.elapsed();
    table.at_most(&format!("restart with {} apps to ready", args.apps), ready.as_secs_f64(), 5.0, "s", "");

    let host = *platform.hosts().first().context("no host")?;
    let before = anonymous_bytes(host).context("no memory figure")?;
    let mut first = Vec::with_capacity(args.apps);
    for n in 0..args.apps {
        let begun = Instant::now();
        let answer = connection.send("GET", &format!("app{n}.localhost"), "/", &[])?;
        anyhow::ensure!(answer.status == 200, "app{n} answered {}", answer.status);
        first.push(begun.elapsed().as_secs_f64() * 1000.0);
    }
    first.sort_by(f64::total_cmp);
    let at = |percent: usize| first.get(first.len() * percent / 100).copied().unwrap_or_default();
    table.at_most("first request to a cold app, p99", at(99), 5.0, "ms", &format!("p50 {:.2} ms", at(50)));
    let after = anonymous_bytes(host).context("no memory figure")?;
    // What the host may keep loaded is bounded; the rest was unloaded again.
    let loaded = args.apps.min(2000);
    let kib = (after.saturating_sub(before)) as f64 / 1024.0 / loaded as f64;
    table.at_most("anonymous memory per idle distinct app, loaded", kib, 64.0, "KiB", "");
    let idle = before as f64 / 1024.0 / args.apps as f64;
    table.note("anonymous memory of the whole host before any was loaded, per app", format!("{idle:.1} KiB"));

    let unloaded = unloaded(args, &data, platform)?;
    table.at_most("anonymous memory per idle distinct app, loaded once and unloaded", unloaded, 4.0, "KiB", "");
    let platform = Platform::start(&data, &["--allow-unsigned", "--shards", "1"])?;

    let few = args.apps.min(1000);
    let mut spec = LoadSpec::new(platform.ingress, "x", 1);
    spec.targets = (0..few).map(|n| (format!("app{n}.localhost"), "/".to_owned())).collect();
    spec.duration = Duration::from_secs(args.seconds);
    let turn = load::run(&spec)?;
    spec.targets.truncate(1);
    let single = load::run(&spec)?;
    let activation = (at(50) - turn.p50_us / 1000.0).max(0.0);
    let detail = "what a first request takes beyond a later one, p50: code checked, handed over, mapped and linked";
    table.at_most("activation of a compiled app from disk", activation, 0.5, "ms", detail);
    table.note(
        &format!("{few} apps in turn, p50, whole path"),
        format!("{:.0} µs; one app {:.0} µs", turn.p50_us, single.p50_us),
    );
    drop((platform, dir));
    // The hops to the host are not in the twin, so the in-host path is what can be compared with it.
    let (m, host) = (in_turn("twin-m", few)?, in_turn("in-host", few)?);
    let detail = format!("{host:.1} µs, M {m:.1} µs");
    table.at_most(&format!("{few} apps in turn, p50, in-host path against M"), host / m, 1.3, "x M", &detail);
    Ok(())
}

/// KiB that an app goes on costing its host after its code is gone: every app is called once, with room for the code of a few.
/// What the host costs with one app is not theirs.
fn unloaded(args: &Args, data: &Path, mut platform: Platform) -> anyhow::Result<f64> {
    platform.stop(Duration::from_secs(30))?;
    let platform = Platform::start(data, &["--allow-unsigned", "--shards", "1", "--code-budget", "1MiB"])?;
    let alone = Us::start(&["--allow-unsigned", "--shards", "1", "--code-budget", "1MiB"])?;
    alone.deploy("app0", "hello", "")?;
    let memory = |of: &Platform, apps: usize| -> anyhow::Result<u64> {
        let mut connection = Connection::open(of.ingress)?;
        for n in 0..apps {
            let answer = connection.send("GET", &format!("app{n}.localhost"), "/", &[])?;
            anyhow::ensure!(answer.status == 200, "app{n} answered {}", answer.status);
        }
        anonymous_bytes(*of.hosts().first().context("no host")?).context("no memory figure")
    };
    let (all, one) = (memory(&platform, args.apps)?, memory(&alone.platform, 1)?);
    Ok(all.saturating_sub(one) as f64 / 1024.0 / args.apps as f64)
}

/// Microseconds of a call at the median, where so many components are called in turn.
fn in_turn(program: &str, distinct: usize) -> anyhow::Result<f64> {
    let out = std::process::Command::new(beside(program)?)
        .arg(sidereal_tests::guest("hello"))
        .args(["20000", &distinct.to_string()])
        .env_remove("RUST_BACKTRACE")
        .output()?;
    let report: serde_json::Value = serde_json::from_slice(&out.stdout).with_context(|| program.to_owned())?;
    report.get("p50_us").and_then(serde_json::Value::as_f64).with_context(|| format!("{program} gave no p50"))
}

/// The same component with other bytes: a custom section that names a number.
fn distinct(wasm: &[u8], n: usize) -> Vec<u8> {
    // Section 0 of 10 bytes: a name of one byte, and eight digits.
    [wasm, &[0, 10, 1, b'n'], format!("{n:08}").as_bytes()].concat()
}
