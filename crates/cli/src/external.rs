//! `sidereal external`: between the node and the program of an external provider. It asks the system to be killed with the
//! node, limits itself, and becomes the program, which inherits all of that and nothing else.

use std::convert::Infallible;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Command;

use anyhow::Context as _;
use rustix::process::{Resource, Rlimit, Signal, getppid, set_parent_process_death_signal, setrlimit};

/// Writable memory, bytes.
const MEMORY: u64 = 2 << 30;
/// Open files.
const FILES: u64 = 4096;

/// Becomes the program.
///
/// # Errors
/// When the parent is gone, a limit cannot be had, or the program cannot be run.
pub fn run(parent: i32, program: &Path) -> anyhow::Result<Infallible> {
    set_parent_process_death_signal(Some(Signal::KILL)).context("cannot be tied to the node")?;
    // The node may have been killed before the line above.
    anyhow::ensure!(getppid().is_some_and(|pid| pid.as_raw_nonzero().get() == parent), "the node is gone");
    limit(Resource::Data, MEMORY)?;
    limit(Resource::Nofile, FILES)?;
    limit(Resource::Core, 0)?;
    let cause = Command::new(program).env_clear().exec();
    Err(cause).with_context(|| format!("cannot run {}", program.display()))
}

fn limit(what: Resource, most: u64) -> anyhow::Result<()> {
    // Where the node itself has less, that is the limit.
    let maximum = rustix::process::getrlimit(what).maximum.map_or(most, |has| has.min(most));
    setrlimit(what, Rlimit { current: Some(maximum), maximum: Some(maximum) })
        .with_context(|| format!("cannot limit {what:?} to {maximum}"))
}
