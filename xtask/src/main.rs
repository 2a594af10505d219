//! `cargo xtask <command>`: what a developer or CI runs. No other tool is needed.
#![forbid(unsafe_code)]

mod again;
mod check;
mod fuzz;
mod guests;
mod lints;
mod must;
mod openbao;
mod packages;
mod servers;
mod test;
mod tidy;
mod toolchain;
mod vm;
mod wheel;

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context;
use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    command: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Installs what the tests need, builds guests and product, runs every test.
    Test {
        /// Passed to `cargo test`.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
    /// Runs one test binary; `test` has cargo run them by this.
    #[command(hide = true)]
    RunTest {
        /// The binary and its arguments.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, required = true)]
        command: Vec<String>,
    },
    /// Format, lints, tidiness, supply chain.
    Check {
        /// Builds what `test` runs, and lints that meanwhile: for whoever runs both from nothing, as CI does.
        #[arg(long)]
        build: bool,
    },
    /// What no compiler checks: the map, file headers, error codes.
    Tidy,
    /// Builds the components of guests/ into target/guests, and the artifacts of examples/.
    Guests,
    /// Runs the benchmarks and prints one table.
    Bench {
        /// Passed to the bench runner.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
    /// Runs the fuzz targets, all or those named, under LLVM's fuzzer; needs a C++ compiler.
    Fuzz {
        /// Minutes for all of them together.
        #[arg(long, default_value_t = 10)]
        minutes: u64,
        /// Ends a target earlier, once it ran so often.
        #[arg(long, default_value_t = 0)]
        executions: u64,
        /// Their names, as in fuzz/src/targets.
        targets: Vec<String>,
    },
    /// Runs the corpus of hostile components for long against a node with a victim on it, and prints one table.
    Soak {
        /// For how long.
        #[arg(long, default_value_t = 10)]
        minutes: u64,
    },
    /// Runs tests on a machine in QEMU with control groups of version 2, and as an ordinary user of it.
    Vm(vm::Wanted),
    /// Writes openapi/*.json and schemas/app.schema.json anew.
    Openapi,
}

fn main() -> anyhow::Result<()> {
    if std::env::var_os(fuzz::STANDS_IN).is_some() {
        return fuzz::compiler();
    }
    // Cargo hands the same variables to the runner of the tests.
    let runs = std::env::args_os().nth(1).is_some_and(|first| first == "run-test");
    if std::env::var_os(test::STANDS_IN).is_some() && !runs {
        return test::compiler();
    }
    let root = root()?;
    match Cli::parse().command {
        Task::Test { args } => test::run(&root, &args),
        Task::RunTest { command } => again::run(&command, test::STANDS_IN),
        Task::Check { build } => check::run(&root, build),
        Task::Tidy => tidy::run(&root),
        Task::Guests => {
            let build = ["build", "--release", "--locked", "--package", "components"];
            check::step("build", Command::new("cargo").args(build), &root)?;
            guests::build(&root, "all")
        }
        Task::Bench { args } => {
            // Its providers talk to the servers of the tests.
            packages::ensure(packages::TEST_NEEDS)?;
            servers::ensure(&root);
            let mut build = Command::new("cargo");
            build.args(["build", "--release", "--locked", "--package", "cli", "--package", "sidereal-benches"]);
            check::step("build", build.args(["--package", "components"]), &root)?;
            guests::build(&root, "guests")?;
            let mut bench = Command::new(root.join("target/release/bench"));
            check::step("bench", bench.args(args).env_remove("RUST_BACKTRACE"), &root)
        }
        Task::Fuzz { minutes, executions, targets } => fuzz::run(&root, minutes, &targets, executions),
        Task::Soak { minutes } => test::soak(&root, minutes),
        Task::Vm(wanted) => vm::run(&root, &wanted),
        Task::Openapi => {
            // The drift tests write what they find instead of comparing.
            let mut test = Command::new("cargo");
            test.args(["test", "--release", "--package", "control", "--package", "model", "drift"]).env("UPDATE", "1");
            check::step("openapi and schema", &mut test, &root)
        }
    }
}

/// The repository's folder.
fn root() -> anyhow::Result<PathBuf> {
    Ok(Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("xtask lies in the repository")?.to_owned())
}
