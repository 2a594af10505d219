//! What a host pays for having no network: a decision about a connection, and a connection by way of the node.

use anyhow::Context as _;

use crate::table::Table;
use crate::us::beside;

/// Measures and fills in.
///
/// # Errors
/// When the program that measures fails.
pub fn run(table: &mut Table) -> anyhow::Result<()> {
    let out = std::process::Command::new(beside("egress")?).env_remove("RUST_BACKTRACE").output();
    let out = out.context("cannot run egress")?;
    let report: serde_json::Value = serde_json::from_slice(&out.stdout)
        .with_context(|| format!("egress: {}", String::from_utf8_lossy(&out.stderr)))?;
    let figure = |what: &str, part: &str| {
        let figure = report.get(what).and_then(|figure| figure.get(part)).and_then(serde_json::Value::as_f64);
        figure.with_context(|| format!("egress gave no {part} of {what}"))
    };
    let detail = format!("p99 {:.1} µs", figure("decision", "p99_us")?);
    table.at_most("egress decision and its record, p50", figure("decision", "p50_us")?, 5.0, "µs", &detail);
    let (direct, brokered) = (figure("direct", "p50_us")?, figure("brokered", "p50_us")?);
    let detail = format!("p50 {brokered:.1} µs by way of the node, {direct:.1} µs direct");
    table.at_most("a connection by the broker, beyond a direct one", brokered - direct, 60.0, "µs", &detail);
    Ok(())
}
