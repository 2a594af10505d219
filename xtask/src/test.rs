//! Everything that is tested, on real binaries and real services, in the profile that ships.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, bail, ensure};
use serde_json::Value;

use crate::check::step;
use crate::{again, lints, must, packages};

/// Installs what the tests need, builds the guests and the product, runs every test.
///
/// # Errors
/// When something is missing and cannot be installed, does not build, a test fails, or a server it takes was not there; where it
/// is said what must run, when some of that was not.
pub fn run(root: &Path, filter: &[String]) -> anyhow::Result<()> {
    let areas = must::areas()?;
    packages::ensure(packages::TEST_NEEDS)?;
    let missing = fetch(root);
    let not_run = root.join("target/not-run");
    let flaky = root.join("target/flaky");
    for file in [&not_run, &flaky] {
        drop(std::fs::remove_file(file));
    }
    // Whole-system tests start this very binary, so it is built first and named to them.
    step("build", &mut build()?, root)?;
    let guests = root.join("target/guests");
    crate::guests::build(root, "guests")?;
    let this = std::env::current_exe()?;
    let mut test = Command::new("cargo");
    let runner = format!("target.\"cfg(unix)\".runner = [{this:?}, \"run-test\"]");
    test.args(["--config", &runner, "test", "--release", "--locked", "--workspace", "--no-fail-fast"])
        // Examples in documentation are none of the tests (`tidy` refuses them): nobody looks for them for a minute.
        .args(filter.is_empty().then_some("--tests"))
        .args(filter)
        .env("RUSTC_WORKSPACE_WRAPPER", &this)
        .env(STANDS_IN, "1")
        .env("SIDEREAL_GUESTS", &guests)
        .env("SIDEREAL_BIN", root.join("target/release/sidereal"))
        .env("SIDEREAL_NOT_RUN", &not_run)
        .env(again::FLAKY, &flaky)
        .env("RUST_BACKTRACE", "0");
    let tested = step("test", &mut test, root);
    let said = std::fs::read_to_string(&not_run).unwrap_or_default();
    let said: BTreeSet<&str> = said.lines().collect();
    for line in &said {
        eprintln!("NOT RUN: {line}");
    }
    for line in std::fs::read_to_string(&flaky).unwrap_or_default().lines() {
        eprintln!("FLAKY: {line}: it failed among the others and passed alone: mend it");
    }
    tested?;
    if !missing.is_empty() {
        bail!("not everything was run. What was missing:\n{}", missing.join("\n"));
    }
    must::check(&said, &areas)
}

/// Fetches the servers that tests talk to and Debian does not have; which of them cannot be had, and what to do about each.
pub fn fetch(root: &Path) -> Vec<String> {
    let mut missing = crate::servers::ensure(root);
    missing.extend(crate::openbao::ensure(root));
    missing
}

/// Builds the product together with the tests: apart, their dependencies would have other features, and everything would be
/// compiled twice.
pub fn build() -> anyhow::Result<Command> {
    let mut build = Command::new("cargo");
    build.args(["build", "--release", "--locked", "--workspace", "--tests", "--bin", "sidereal"]);
    build
        .args(["--bin", "nomad-driver-wasm", "--bin", "components"])
        .env("RUSTC_WORKSPACE_WRAPPER", std::env::current_exe()?)
        .env(STANDS_IN, "1");
    Ok(build)
}

/// Builds as [`run`] does; the programs of tests of their own (`tests/all`), each by the folder of its crate.
///
/// # Errors
/// When something does not build.
pub fn built(root: &Path) -> anyhow::Result<BTreeMap<PathBuf, PathBuf>> {
    let mut build = build()?;
    let out = build.args(["--message-format", "json-render-diagnostics"]).stderr(Stdio::inherit()).current_dir(root);
    let out = out.output().context("cannot run cargo")?;
    ensure!(out.status.success(), "the tests do not build ({})", out.status);
    let mut built = BTreeMap::new();
    for line in String::from_utf8(out.stdout)?.lines() {
        let said: Value = serde_json::from_str(line)?;
        let text = |at: &str| said.pointer(at).and_then(Value::as_str);
        if let (Some("all"), Some(program), Some(manifest)) =
            (text("/target/name"), text("/executable"), text("/manifest_path"))
        {
            let folder = Path::new(manifest).parent().and_then(|folder| folder.strip_prefix(root).ok());
            built.insert(folder.context("a crate outside of the repository")?.to_owned(), PathBuf::from(program));
        }
    }
    Ok(built)
}

/// Set where this program is called in the place of the compiler, while the tests are built.
pub const STANDS_IN: &str = "SIDEREAL_TEST_COMPILER";

/// Where else is what tests are made of, and what is built here only to be looked at by the lints.
const LIKE_TESTS: [&str; 4] = ["tests/src/", "crates/plugin/tests/", "benches/", "xtask/src/"];

/// What a crate of tests is compiled with beside what Cargo says: no optimisation, and otherwise as what ships. It calls what
/// is tested, which is optimised, and would take half the time that all of our code compiles for.
const TESTS: [&str; 3] = ["-Copt-level=0", "-Cdebug-assertions=off", "-Coverflow-checks=off"];

/// In the compiler's place: the same call, faster where it is for a crate of tests.
///
/// # Errors
/// When there is no compiler to call.
pub fn compiler() -> anyhow::Result<()> {
    let arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
    let (rustc, rest) = arguments.split_first().context("no compiler to stand in for")?;
    // The lints look at the same meanwhile: they read what it reads, and nothing of what it writes.
    let looked_at = lints::beside(rustc, rest)?;
    let tests = is_of_tests(rest);
    let status = Command::new(rustc).args(rest).args(TESTS.iter().filter(|_| tests)).status();
    let code = status.context("cannot run the compiler")?.code().unwrap_or(1);
    std::process::exit(if looked_at.is_none_or(lints::Look::finds_nothing) { code } else { code.max(1) });
}

/// Whether a call of the compiler is for tests, or for what is compiled like them.
fn is_of_tests(arguments: &[OsString]) -> bool {
    let is_source = |text: &str| text.ends_with(".rs") && LIKE_TESTS.iter().any(|folder| text.starts_with(folder));
    arguments.iter().any(|argument| argument == "--test" || argument.to_str().is_some_and(is_source))
}

/// Builds the guests and the product, and runs the corpus of hostile components for so long.
///
/// # Errors
/// When something does not build, or the node is harmed.
pub fn soak(root: &Path, minutes: u64) -> anyhow::Result<()> {
    let guests = root.join("target/guests");
    let build = ["build", "--release", "--locked", "--package", "cli", "--package", "components"];
    step("build", Command::new("cargo").args(build), root)?;
    crate::guests::build(root, "guests")?;
    let mut test = Command::new("cargo");
    test.args(["test", "--release", "--locked", "--package", "sidereal-tests", "--test", "all", "--"])
        .args(["hostile::a_victim_is_served", "--nocapture"])
        .env("SIDEREAL_GUESTS", &guests)
        .env("SIDEREAL_BIN", root.join("target/release/sidereal"))
        .env("SIDEREAL_SOAK_MINUTES", minutes.to_string())
        .env("RUST_BACKTRACE", "0");
    step("soak", &mut test, root)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_ships_is_compiled_as_it_ships() {
        let is_of_tests = |call: &str| super::is_of_tests(&call.split(' ').map(OsString::from).collect::<Vec<_>>());
        assert!(is_of_tests("--crate-name node crates/node/src/lib.rs --test"));
        assert!(is_of_tests("--crate-name sidereal_tests tests/src/lib.rs --crate-type lib"));
        for (name, source) in [("node", "crates/node/src/lib.rs"), ("sidereal", "crates/cli/src/main.rs")] {
            assert!(!is_of_tests(&format!("--crate-name {name} {source} --crate-type lib")), "{name}");
        }
        assert!(!is_of_tests("--crate-name components xtask/components/src/main.rs --crate-type bin"));
    }
}
