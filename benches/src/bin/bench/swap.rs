//! A link that is moved while requests come: what those notice that come at that moment.

use std::time::{Duration, Instant};

use sidereal_benches::load::percentile;
use sidereal_tests::offered::{Offer, Offered, Report};

use crate::Args;
use crate::table::Table;
use crate::us::Us;

/// Windows of each kind, in turn; the medians count.
const ROUNDS: usize = 5;
/// One window: the link is moved in its middle.
const WINDOW: Duration = Duration::from_secs(1);
/// Requests a second, whatever becomes of them.
const RATE: u32 = 1000;

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
    let failed: usize = moved.iter().map(|report| report.failures.len()).sum();
    let p99 = |all: &[Report]| median(all.iter().map(p99_us).collect());
    let detail = format!("{:.0} µs, quiet {:.0} µs, {:.0} ms to move", p99(&moved), p99(&quiet), median(took));
    table.at_most(
        "p99 in the second around a link swap, 1000 requests a second",
        p99(&moved) / p99(&quiet),
        2.0,
        "x quiet",
        &detail,
    );
    table.at_most("requests that failed meanwhile", failed as f64, 0.0, "of them", "");
    Ok(())
}

fn window(us: &Us) -> anyhow::Result<Report> {
    let (address, host) = (us.platform.ingress, "swapped.localhost".to_owned());
    let offered = Offered::start(Offer { address, host, paths: vec!["/".to_owned()], rate: RATE });
    std::thread::sleep(WINDOW);
    offered.stop()
}

/// From when a request was due, so that those that wait for their turn to be sent count.
fn p99_us(report: &Report) -> f64 {
    let ns = |took: Duration| u32::try_from(took.as_nanos()).unwrap_or(u32::MAX);
    let mut took: Vec<u32> = report.answers.iter().map(|answer| ns(answer.took)).collect();
    took.sort_unstable();
    percentile(&took, 99)
}

fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures.get(figures.len() / 2).copied().unwrap_or_default()
}
