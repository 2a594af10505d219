//! From the start of the process to the demo's first answer: on an empty machine, and again.

use std::time::{Duration, Instant};

use sidereal_tests::platform::Platform;

use crate::Args;
use crate::table::Table;

/// Starts of each kind; the medians count.
const ROUNDS: usize = 5;

/// Measures and fills in.
///
/// # Errors
/// When the platform or its demo does not come up.
pub fn run(_: &Args, table: &mut Table) -> anyhow::Result<()> {
    let (mut first, mut second) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let dir = tempfile::tempdir()?;
        first.push(start(&dir.path().join("data"))?);
        second.push(start(&dir.path().join("data"))?);
    }
    table.at_most("`up --demo` to its first answer, first start", median(first), 2.0, "s", "it compiles the demo");
    table.at_most("the same, second start", median(second), 0.5, "s", "");
    Ok(())
}

/// Seconds from the start of the process to an answer of the demo.
fn start(data: &std::path::Path) -> anyhow::Result<f64> {
    let begun = Instant::now();
    let mut platform = Platform::start(data, &["--demo"])?;
    let answer = platform.get("counter.localhost", "/")?;
    let took = begun.elapsed().as_secs_f64();
    anyhow::ensure!(answer.status == 200, "the demo answered {}", answer.status);
    platform.stop(Duration::from_secs(30))?;
    Ok(took)
}

fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures.get(figures.len() / 2).copied().unwrap_or_default()
}
