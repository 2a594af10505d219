//! The processes that run what strangers wrote, and what operators name, each in two stages of this program: the first leaves the machine's namespaces
//! and waits, the second is confined and goes on. `sidereal confined` is one that does nothing: it finds out what a machine
//! refuses.

use std::os::fd::AsFd as _;
use std::path::Path;

use anyhow::Context as _;
use rustix::process::{Resource, Rlimit, setpriority_process, setrlimit};
use sandbox::inner::Files;
use sandbox::syscalls::Role;
use sandbox::{SandboxError, Spec, handoff, inner, outer};

use crate::args::Stage;
use crate::{compile, raise_file_limit};

/// They get the processor after the node and its ingress.
const NICE: i32 = 5;
/// Where the machine has no memory left, the kernel ends one of these before the node, which starts it again.
const OOM_SCORE: &str = "300";

/// A host.
///
/// # Errors
/// When it is not confined, or ends and not because it was asked to.
pub fn host(tenant: model::TenantName, shard: u32, stage: &Stage) -> anyhow::Result<u8> {
    let Some(spec) = second(stage)? else { return first(stage) };
    telemetry::init(false);
    raise_file_limit();
    let (handed, code) = host::Handed::take(handoff::receive(std::io::stdin().as_fd())?);
    host::environment::grant()?;
    let named = host::folders::named()?;
    let opened = named.iter().map(|_| {
        let [folder] = handoff::receive(std::io::stdin().as_fd())?;
        Ok(folder)
    });
    let opened: Vec<_> = opened.collect::<Result<_, SandboxError>>()?;
    let folders = host::folders::grant(named, opened)?;
    let role = if folders.is_empty() { Role::Host } else { Role::Folders };
    let confine = || {
        inner::enter(&spec, role, Files { readable: Some(code.as_fd()), folders: &folders })?;
        // It named a folder, and what may be opened is settled.
        drop(code);
        Ok::<(), SandboxError>(())
    };
    host::run(host::HostArgs { tenant, shard }, handed, confine)?;
    Ok(0)
}

/// A compilation. One that could not be confined, or otherwise not begun or ended, is told by its exit code from one that refuses
/// its component.
///
/// # Errors
/// When the component does not compile within the limits.
pub fn compiler(world: &str, engine: Option<&str>, stage: &Stage) -> anyhow::Result<u8> {
    let not_ready = |cause: anyhow::Error| {
        eprintln!("Error: {cause:#}");
        Ok(sandbox::NOT_READY)
    };
    let spec = match second(stage) {
        Ok(Some(spec)) => spec,
        Ok(None) => return first(stage).or_else(not_ready),
        Err(cause) => return not_ready(cause),
    };
    match compile::run(world, engine, || inner::enter(&spec, Role::Compiler, Files::default())) {
        Ok(()) => Ok(0),
        Err(compile::Failure::NotReady(cause)) => not_ready(cause),
        Err(compile::Failure::Refused(cause)) => Err(cause),
    }
}

/// The databases of a tenant.
///
/// # Errors
/// When it is not confined, or its node does not speak as it should.
pub fn databases(dir: &Path, tenant: model::TenantName, stage: &Stage) -> anyhow::Result<u8> {
    let Some(spec) = second(stage)? else { return first(stage) };
    crate::databases::run(dir, tenant, || inner::enter(&spec, Role::Program, Files::default()))?;
    Ok(0)
}

/// The program of an external provider.
///
/// # Errors
/// When it is not confined, or cannot be run.
pub fn program(path: &Path, dir: &Path, stage: &Stage) -> anyhow::Result<u8> {
    let Some(spec) = second(stage)? else { return first(stage) };
    let line = std::io::stdin();
    let [input] = handoff::receive(line.as_fd())?;
    inner::enter(&spec, Role::Program, Files::default())?;
    let ended = sandbox::program::run(path, dir, input, line.as_fd());
    Ok(outer::end_like(ended.with_context(|| format!("cannot run {}", path.display()))?))
}

/// Nothing.
///
/// # Errors
/// When it is not confined.
pub fn nothing(stage: &Stage) -> anyhow::Result<u8> {
    let Some(spec) = second(stage)? else { return first(stage) };
    inner::enter(&spec, Role::Host, Files::default())?;
    Ok(0)
}

/// What the second stage is confined by; `None` in the first.
fn second(stage: &Stage) -> anyhow::Result<Option<Spec>> {
    if !stage.inner {
        return Ok(None);
    }
    inner::tie().context("cannot be tied to the process that started it")?;
    Ok(Some(spec(stage)?))
}

fn spec(stage: &Stage) -> anyhow::Result<Spec> {
    Spec::decode(&stage.sandbox).map_err(|why| anyhow::anyhow!("--sandbox: {why}"))
}

fn first(stage: &Stage) -> anyhow::Result<u8> {
    if let Err(cause) = setpriority_process(None, NICE) {
        tracing::warn!(%cause, "cannot lower the priority of a process");
    }
    if let Err(cause) = std::fs::write("/proc/self/oom_score_adj", OOM_SCORE) {
        tracing::debug!(%cause, "the kernel may end the node before this process");
    }
    // It may go behind all others while it computes, and come back: its user may be one that could not. The kernel counts
    // from niceness 20 down, so this is niceness 0, which nobody is refused who never went behind.
    if let Err(cause) = setrlimit(Resource::Nice, Rlimit { current: Some(20), maximum: Some(20) }) {
        tracing::debug!(%cause, "a process may not return from behind all others");
    }
    let args: Vec<String> = std::env::args().skip(1).chain(["--inner".to_owned()]).collect();
    Ok(outer::end_like(outer::run(&spec(stage)?, &args)?))
}
