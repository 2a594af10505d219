//! Everything that is tested, on real binaries and real services, in the profile that ships.

use std::path::Path;
use std::process::Command;

use crate::check::step;
use crate::packages;

/// Installs what the tests need, builds the guests and the product, runs every test.
///
/// # Errors
/// When something is missing and cannot be installed, does not build, or a test fails.
pub fn run(root: &Path, filter: &[String]) -> anyhow::Result<()> {
    packages::ensure(packages::TEST_NEEDS)?;
    crate::servers::ensure(root);
    crate::openbao::ensure(root);
    let guests = root.join("target/guests");
    crate::guests::build(root, &guests)?;
    // Whole-system tests start this very binary, so it is built first and named to them. Together with the tests: apart,
    // their dependencies would have other features, and everything would be compiled twice.
    let build = ["build", "--release", "--locked", "--workspace", "--lib", "--bins", "--tests"];
    step("build", Command::new("cargo").args(build), root)?;
    let mut test = Command::new("cargo");
    test.args(["test", "--release", "--locked", "--workspace", "--no-fail-fast"])
        .args(filter)
        .env("SIDEREAL_GUESTS", &guests)
        .env("SIDEREAL_BIN", root.join("target/release/sidereal"))
        .env("RUST_BACKTRACE", "0");
    step("test", &mut test, root)
}
