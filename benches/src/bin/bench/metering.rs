//! What it costs to count the calls over links, with nobody watching.

use std::process::Command;
use std::time::Duration;

use anyhow::Context as _;
use sidereal_benches::load::{self, LoadSpec};

use crate::Args;
use crate::table::Table;
use crate::us::{Us, beside};

/// Counted calls over a link that one request of the counter makes.
const CALLS: f64 = 1.0;

/// Measures and fills in.
///
/// # Errors
/// When something cannot be started or gives no answer.
pub fn run(args: &Args, table: &mut Table) -> anyhow::Result<()> {
    let us = Us::start(&["--shards", "1"])?;
    us.deploy("quick", "kv-counter", "[components.main.links]\n\"wasi:keyvalue\" = \"memory\"")?;
    let mut spec = LoadSpec::new(us.platform.ingress, "quick.localhost", 32);
    spec.duration = Duration::from_secs(args.seconds);
    spec.servers = us.platform.hosts();
    let report = load::run(&spec)?;
    anyhow::ensure!(report.not_ok == 0 && report.cpu_us > 0.0, "the counter failed, or cost nothing");
    let out = Command::new(beside("kv")?).args(["meter", "5000000"]).output().context("cannot run kv")?;
    let metering: serde_json::Value = serde_json::from_slice(&out.stdout)
        .with_context(|| format!("kv meter: {}", String::from_utf8_lossy(&out.stderr)))?;
    let figure = |name: &str| metering.get(name).and_then(serde_json::Value::as_f64).context("kv meter gave no figure");
    let (on, off) = (figure("on_ns")?, figure("off_ns")?);
    let share = (on - off).max(0.0) * CALLS / (report.cpu_us * 1000.0) * 100.0;
    let detail =
        format!("{on:.0} ns a call counted, {off:.0} ns not; the host spends {:.1} µs a request", report.cpu_us);
    table.at_most("counting link calls, of what a request in memory costs its host", share, 1.0, "%", &detail);
    Ok(())
}
