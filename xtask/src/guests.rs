//! Has the components built that tests and benches run: by a program of the workspace, which is built by now
//! (`xtask/components`).

use std::path::Path;
use std::process::Command;

use crate::check::step;

/// Builds those of `guests/`, or `all`: those of `examples/` too. Nothing is built twice.
///
/// # Errors
/// When one cannot be built.
pub(crate) fn build(root: &Path, what: &str) -> anyhow::Result<()> {
    let mut program = Command::new(root.join("target/release/components"));
    step("guests", program.arg(root).arg(what), root)
}
