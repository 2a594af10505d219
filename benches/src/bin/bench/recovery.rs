//! A host is killed: how long until its app answers again, where no other shard could answer in its place.

use std::time::{Duration, Instant};

use anyhow::Context as _;
use sidereal_tests::http;
use sidereal_tests::platform::{Platform, Signal, until};

use crate::table::Table;
use crate::us::Us;

/// Platforms that lose a host; the slowest of them counts.
const ROUNDS: usize = 5;

/// Measures and fills in.
///
/// # Errors
/// When something cannot be started, or an app does not come back.
pub fn run(table: &mut Table) -> anyhow::Result<()> {
    let mut back = Vec::with_capacity(ROUNDS);
    for _ in 0..ROUNDS {
        let us = Us::start(&["--shards", "1"])?;
        us.deploy("shop", "hello", "")?;
        let ingress = us.platform.ingress;
        let answers = || http::get(ingress, "shop.localhost", "/").is_ok_and(|answer| answer.status == 200);
        anyhow::ensure!(answers(), "it does not answer");
        let host = *us.platform.hosts().first().context("no host")?;
        Platform::signal(host, Signal::KILL)?;
        let killed = Instant::now();
        until(Duration::from_secs(30), answers).context("the app does not come back")?;
        back.push(killed.elapsed().as_secs_f64());
        anyhow::ensure!(!us.platform.hosts().contains(&host), "the host was not killed");
    }
    back.sort_by(f64::total_cmp);
    let at = |index: usize| back.get(index).copied().unwrap_or_default();
    let detail = format!("median {:.2} s of {ROUNDS}", at(ROUNDS / 2));
    table.at_most("a killed host's app answers again, slowest", at(ROUNDS - 1), 1.0, "s", &detail);
    Ok(())
}
