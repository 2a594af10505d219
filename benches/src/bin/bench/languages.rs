//! Hello in JavaScript and in Python, with instances that are used again. The guests are built here, with the tools of
//! those languages, into `target/languages`; where one cannot be had the row says what was missing.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::Context as _;
use sidereal_benches::load::{self, LoadReport, LoadSpec};

use crate::Args;
use crate::table::Table;
use crate::us::{Twin, Us, beside};

/// Such guests are large, and start slowly.
const LIMITS: &str = "limits = { memory = \"256MiB\", cpu = \"5s\", wall = \"20s\" }\n";
const REUSE: &str = "reuse = { requests = 100000, idle = \"30s\" }\n";

/// A language: its name, and how its hello is built.
struct Language {
    name: &'static str,
    build: fn(&Path, &Path) -> anyhow::Result<PathBuf>,
}

const LANGUAGES: [Language; 2] =
    [Language { name: "JavaScript", build: javascript }, Language { name: "Python", build: python }];

/// Measures and fills in.
///
/// # Errors
/// When the platform or the twin cannot be started.
pub fn run(args: &Args, table: &mut Table) -> anyhow::Result<()> {
    let us = Us::start(&["--allow-unsigned"])?;
    let h = Twin::start(&beside("twin-h")?, None)?;
    let hyper = load(args, h.addr, "localhost")?;
    drop(h);
    for language in LANGUAGES {
        if let Err(cause) = measure(args, table, &us, &language, hyper.per_second) {
            let measure = format!("reuse on, {} hello, 32 connections", language.name);
            table.note(&measure, format!("not run: {cause:#}").replace('\n', " "));
        }
    }
    Ok(())
}

fn measure(args: &Args, table: &mut Table, us: &Us, language: &Language, hyper: f64) -> anyhow::Result<()> {
    let name = language.name;
    let wasm = prepare().and_then(|(sources, dir)| (language.build)(&sources, &dir))?;
    let app = name.to_lowercase();
    for (suffix, reuse) in [("fresh", ""), ("reused", REUSE)] {
        let folder = us.data().with_file_name(format!("{app}-{suffix}"));
        sidereal_tests::platform::write_app(&folder, &format!("{app}-{suffix}"), "hello", &format!("{LIMITS}{reuse}"))?;
        std::fs::copy(&wasm, folder.join("component.wasm"))?;
        us.platform.ok(&["deploy", "--no-sign", &folder.to_string_lossy()])?;
    }
    let fresh = load(args, us.platform.ingress, &format!("{app}-fresh.localhost"))?;
    let reused = load(args, us.platform.ingress, &format!("{app}-reused.localhost"))?;
    anyhow::ensure!(fresh.not_ok + reused.not_ok == 0, "answers were not 200");
    let measure = format!("reuse on, {name} hello, 32 connections");
    let detail = format!("{:.0} req/s", reused.per_second);
    table.at_least(&measure, reused.per_second / hyper, 0.6, "x H", &detail);
    let detail = format!("fresh {:.0} req/s", fresh.per_second);
    table.at_least(&format!("the same, {name}"), reused.per_second / fresh.per_second, 10.0, "x fresh", &detail);
    Ok(())
}

/// The sources, and the folder that is built in, with the interfaces in it.
fn prepare() -> anyhow::Result<(PathBuf, PathBuf)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let (sources, dir) = (root.join("benches/languages"), root.join("target/languages"));
    let deps = dir.join("wit/deps");
    std::fs::create_dir_all(&deps)?;
    std::fs::copy(sources.join("world.wit"), dir.join("wit/world.wit"))?;
    for file in std::fs::read_dir(root.join("wit/p2/deps"))? {
        let file = file?;
        std::fs::copy(file.path(), deps.join(file.file_name()))?;
    }
    Ok((sources, dir))
}

fn javascript(sources: &Path, dir: &Path) -> anyhow::Result<PathBuf> {
    let (folder, out) = (dir.join("js"), dir.join("hello-js.wasm"));
    std::fs::create_dir_all(&folder)?;
    if !folder.join("node_modules/@bytecodealliance/componentize-js").is_dir() {
        let package = "@bytecodealliance/componentize-js@0.23";
        step(Command::new("npm").args(["install", "--no-audit", "--no-fund", "--prefix"]).arg(&folder).arg(package))?;
    }
    for file in ["hello.js", "build.mjs"] {
        std::fs::copy(sources.join(file), folder.join(file))?;
    }
    let mut build = Command::new("node");
    step(build.current_dir(&folder).args(["build.mjs", "hello.js", "../wit", "hello"]).arg(&out))?;
    Ok(out)
}

fn python(sources: &Path, dir: &Path) -> anyhow::Result<PathBuf> {
    let (folder, out) = (dir.join("py"), dir.join("hello-py.wasm"));
    let program = folder.join("bin/componentize-py");
    if !program.is_file() {
        step(Command::new("python3").args(["-m", "venv"]).arg(&folder))?;
        let pip = folder.join("bin/pip");
        step(Command::new(pip).args(["install", "--quiet", "componentize-py==0.25.1"]))?;
    }
    std::fs::copy(sources.join("app.py"), folder.join("app.py"))?;
    let mut build = Command::new(program);
    let args = ["-d", "../wit", "-w", "hello", "componentize", "app", "-o"];
    step(build.current_dir(&folder).args(args).arg(&out))?;
    Ok(out)
}

/// Runs a tool; its last words where it fails.
fn step(command: &mut Command) -> anyhow::Result<()> {
    let program = command.get_program().to_string_lossy().into_owned();
    let out = command.output().with_context(|| format!("`{program}` was missing"))?;
    let said = String::from_utf8_lossy(&out.stderr);
    let last: String = said.lines().filter(|line| !line.trim().is_empty()).take(3).collect::<Vec<_>>().join("; ");
    anyhow::ensure!(out.status.success(), "`{program}` failed: {last}");
    Ok(())
}

fn load(args: &Args, addr: std::net::SocketAddr, host: &str) -> anyhow::Result<LoadReport> {
    let mut spec = LoadSpec::new(addr, host, 32);
    spec.duration = Duration::from_secs(args.seconds);
    load::run(&spec).with_context(|| format!("{host} at {addr}"))
}
