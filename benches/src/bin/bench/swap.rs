//! A link that is moved while requests come: what those notice that come at that moment.

use std::time::{Duration, Instant};

use anyhow::Context as _;
use sidereal_benches::load::{self, LoadReport, LoadSpec};

use crate::Args;
use crate::table::Table;
use crate::us::Us;

/// Windows of each kind, in turn; the medians count.
const ROUNDS: usize = 5;
/// One window: the link is moved in its middle.
const WINDOW: Duration = Duration::from_secs(1);

/// Measures and fills in.
///
/// # Errors
/// When something cannot be started or gives no answer.
pub fn run(_: &Args, table: &mut Table) -> anyhow::Result<()> {
    let us = Us::start(&[])?;
    us.deploy("swapped", "kv-counter", "[components.main.links]\n\"wasi:keyvalue\" = \"embedded\"")?;
    let (mut quiet, mut moved, mut took) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        quiet.push(window(&us)?);
        let to = if round % 2 == 0 { "memory" } else { "embedded" };
        let (report, swap) = std::thread::scope(|scope| {
            let swap = scope.spawn(|| {
                std::thread::sleep(WINDOW / 2);
                let began = Instant::now();
                us.platform.ok(&["link", "set", "swapped", &format!("wasi:keyvalue={to}")]).map(|_| began.elapsed())
            });
            let report = window(&us);
            (report, swap.join())
        });
        took.push(swap.map_err(|_| anyhow::anyhow!("the swap panicked"))??.as_secs_f64() * 1000.0);
        moved.push(report?);
        // Back where it was, so that every window but the moment of the swap has the same provider on both sides.
        us.platform.ok(&["link", "set", "swapped", "wasi:keyvalue=embedded"])?;
    }
    let failed: u64 = moved.iter().map(|report| report.not_ok + report.broken).sum();
    let p99 = |all: &[LoadReport]| median(all.iter().map(|report| report.p99_us).collect());
    let detail = format!("{:.0} µs, quiet {:.0} µs, {:.0} ms to move", p99(&moved), p99(&quiet), median(took));
    table.at_most(
        "p99 in the second around a link swap, 8 connections",
        p99(&moved) / p99(&quiet),
        2.0,
        "x quiet",
        &detail,
    );
    table.at_most("requests that failed meanwhile", failed as f64, 0.0, "of them", "");
    Ok(())
}

fn window(us: &Us) -> anyhow::Result<LoadReport> {
    let mut spec = LoadSpec::new(us.platform.ingress, "swapped.localhost", 8);
    spec.warm_up = Duration::ZERO;
    spec.duration = WINDOW;
    load::run(&spec).context("swapped.localhost")
}

fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures.get(figures.len() / 2).copied().unwrap_or_default()
}
