//! Calls from component to component against the same in one composed component.

use anyhow::Context as _;

use crate::table::Table;
use crate::us::beside;

/// Measures and fills in.
///
/// # Errors
/// When the program that measures fails.
pub fn run(table: &mut Table) -> anyhow::Result<()> {
    let out = std::process::Command::new(beside("callee")?)
        .arg(sidereal_tests::guest("pricing"))
        .env_remove("RUST_BACKTRACE")
        .output()
        .context("cannot run callee")?;
    let report: serde_json::Value = serde_json::from_slice(&out.stdout)
        .with_context(|| format!("callee: {}", String::from_utf8_lossy(&out.stderr)))?;
    let figure = |name: &str| {
        report.get(name).and_then(serde_json::Value::as_f64).with_context(|| format!("callee gave no {name}"))
    };
    let composed = format!("composed {:.4} µs", figure("composed_us")?);
    table.at_most("component to component, waiting instance", figure("warm_us")?, 2.0, "µs", &composed);
    table.at_most("component to component, fresh instance", figure("cold_us")?, 10.0, "µs", "");
    table.note("the same, Rust component", format!("{:.1} µs", figure("cold_rust_us")?));
    Ok(())
}
