//! Runs the targets of `fuzz/` under LLVM's fuzzer, and counts what it did.
//!
//! No other tool and no other compiler: the crates of the workspace are instrumented by asking the compiler for LLVM's
//! own passes, by way of this program, which stands in for it ([`compiler`]). Dependencies stay as the tests use them,
//! so only our crates are built anew.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};

use crate::check::step;

/// Set where this program is called in the place of the compiler.
pub(crate) const STANDS_IN: &str = "SIDEREAL_FUZZ_COMPILER";

/// Coverage of edges in counters of a byte, which numbers are compared, and what a release build leaves unchecked.
const INSTRUMENTED: [&str; 11] = [
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
    "-Ccodegen-units=1",
    "-Copt-level=3",
    "-Cdebug-assertions=on",
    "-Coverflow-checks=on",
    "--cfg",
    "fuzzing",
];

/// In the compiler's place: the same call, instrumented where it is a library or the fuzzer itself.
///
/// # Errors
/// When there is no compiler to call, or it fails.
pub(crate) fn compiler() -> anyhow::Result<()> {
    let arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
    let (rustc, rest) = arguments.split_first().context("no compiler to stand in for")?;
    let follows =
        |flag: &str, value: &str| rest.windows(2).any(|pair| matches!(pair, [a, b] if a == flag && b == value));
    let ours =
        (follows("--crate-type", "lib") || follows("--crate-name", "fuzzer")) && !follows("--crate-type", "proc-macro");
    let status = Command::new(rustc).args(rest).args(INSTRUMENTED.iter().filter(|_| ours)).status()?;
    std::process::exit(status.code().unwrap_or(1));
}

/// What became of one target.
struct Done {
    target: String,
    executions: u64,
    inputs: usize,
    took: Duration,
    found: Vec<PathBuf>,
}

/// Fuzzes each target for its share of `minutes`, or until it ran `executions` times, and prints one table. What is found lies in `target/fuzz`.
///
/// # Errors
/// When it does not build, or a target failed: with the inputs that show it.
pub(crate) fn run(root: &Path, minutes: u64, only: &[String], executions: u64) -> anyhow::Result<()> {
    let mut build = Command::new("cargo");
    build.args(["build", "--release", "--locked", "--package", "fuzz", "--features", "libfuzzer", "--bin", "fuzzer"]);
    build.env("RUSTC_WORKSPACE_WRAPPER", std::env::current_exe()?).env(STANDS_IN, "1");
    step("build", &mut build, root)?;
    let targets = targets(root)?;
    if let Some(unknown) = only.iter().find(|name| !targets.contains(name)) {
        bail!("there is no target `{unknown}`; there are {}", targets.join(", "));
    }
    let chosen: Vec<&String> = targets.iter().filter(|name| only.is_empty() || only.contains(name)).collect();
    let share = Duration::from_secs(minutes * 60 / chosen.len().max(1) as u64).max(Duration::from_secs(5));
    let mut all = Vec::new();
    for target in chosen {
        eprintln!("── {target}");
        all.push(fuzz(root, target, share, executions)?);
    }
    println!("{:<12} {:>14} {:>8} {:>8} {:>10}  found", "target", "executions", "inputs", "seconds", "per second");
    for done in &all {
        let seconds = done.took.as_secs().max(1);
        println!(
            "{:<12} {:>14} {:>8} {:>8} {:>10}  {}",
            done.target,
            done.executions,
            done.inputs,
            seconds,
            done.executions / seconds,
            done.found.len()
        );
    }
    let found: Vec<String> = all.iter().flat_map(|done| &done.found).map(|path| path.display().to_string()).collect();
    ensure!(found.is_empty(), "inputs that show a defect:\n  {}", found.join("\n  "));
    Ok(())
}

/// The targets, as `fuzz/` lists them.
fn targets(root: &Path) -> anyhow::Result<Vec<String>> {
    let list = std::fs::read_to_string(root.join("fuzz/src/targets/mod.rs"))?;
    let names = list.split("name: \"").skip(1).filter_map(|rest| rest.split('"').next());
    Ok(names.map(str::to_owned).collect())
}

fn fuzz(root: &Path, target: &str, share: Duration, executions: u64) -> anyhow::Result<Done> {
    let folder = root.join("target/fuzz").join(target);
    let (grown, found) = (folder.join("corpus"), folder.join("found"));
    for folder in [&grown, &found] {
        std::fs::create_dir_all(folder).with_context(|| format!("making {}", folder.display()))?;
    }
    let longest = seed(root, target, &grown)?;
    let begun = Instant::now();
    let mut command = Command::new(root.join("target/release/fuzzer"));
    command.env("SIDEREAL_FUZZ_TARGET", target).env("RUST_BACKTRACE", "0").stdin(Stdio::null());
    command.arg(format!("-max_total_time={}", share.as_secs())).arg(format!("-artifact_prefix={}/", found.display()));
    command.args(["-timeout=10", "-rss_limit_mb=2048", "-print_final_stats=1", "-use_value_profile=1"]);
    command.arg(format!("-max_len={longest}"));
    if executions > 0 {
        command.arg(format!("-runs={executions}"));
    }
    command.arg(&grown);
    let out = command.output().context("cannot run the fuzzer")?;
    let said = String::from_utf8_lossy(&out.stderr);
    let found = list(&found)?;
    if !out.status.success() && found.is_empty() {
        bail!("the fuzzer of {target} ended with {}:\n{said}", out.status);
    }
    if !found.is_empty() {
        let from = said.find("panicked").unwrap_or(0);
        eprintln!("{}", said.get(from..).unwrap_or_default());
    }
    let count = said.split("stat::number_of_executed_units:").nth(1).and_then(|rest| rest.split_whitespace().next());
    let executions = count.and_then(|text| text.parse().ok()).unwrap_or(0);
    Ok(Done { target: target.to_owned(), executions, inputs: list(&grown)?.len(), took: begun.elapsed(), found })
}

/// The inputs that are written into a target and those committed in `fuzz/corpus`, as files that the fuzzer reads; and how long an
/// input is worth trying, bytes.
fn seed(root: &Path, target: &str, folder: &Path) -> anyhow::Result<usize> {
    let out = Command::new(root.join("target/release/fuzzer"))
        .env("SIDEREAL_FUZZ_TARGET", target)
        .env("SIDEREAL_FUZZ_SEEDS", folder)
        .stderr(Stdio::null())
        .arg("-runs=0")
        .stdin(Stdio::null())
        .output()
        .context("cannot run the fuzzer")?;
    ensure!(out.status.success(), "the seeds of {target} fail: {}", out.status);
    let said = String::from_utf8_lossy(&out.stdout);
    said.trim().parse().with_context(|| format!("the fuzzer of {target} says {said:?} in the place of a length"))
}

fn list(folder: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let entries = std::fs::read_dir(folder).with_context(|| format!("reading {}", folder.display()))?;
    let mut files = entries.map(|entry| Ok(entry?.path())).collect::<anyhow::Result<Vec<_>>>()?;
    files.sort();
    Ok(files)
}
