//! `sidereal task`: the node's part for exactly one host, in a session of its own, so that a task outlives the plugin that
//! started it. What it runs is in its directory, and so is how it is talked to ([`api::task`]).

mod adapt;
mod app;
mod control;
mod cores;
mod exit;
mod health;
mod log;
mod names;
mod output;
mod own;
mod place;
mod pull;
mod reach;
mod serve;
mod used;
mod user;

pub use pull::{for_command as pull_for_command, run as pull};

use std::fs::File;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use api::task::{Groups, LOCK_FILE, PROCESS_FILE, SPEC_FILE, TaskOffer, TaskProcess, TaskSpec, VERSION};
use api::{Code, Problem};

/// The network namespace of whoever opens it.
const OWN_NETWORK: &str = "/proc/self/ns/net";

/// Runs the task of this directory to its end.
///
/// # Errors
/// When the directory holds no task of this version, or its process runs already. How the task itself ended is in its exit
/// file.
pub fn run(dir: &Path) -> anyhow::Result<u8> {
    // Nothing of the starter's reaches us any more: neither its terminal nor its end.
    if let Err(cause) = rustix::process::setsid() {
        tracing::debug!(%cause, "this process leads a session already");
    }
    let lock = lock(dir)?;
    // Before anything else: whoever finds the lock held finds us by it.
    let own = TaskProcess::own().context("the kernel does not say when this process was started")?;
    write(dir, PROCESS_FILE, &serde_json::to_vec(&own)?)?;
    let room = exit::Room::take(dir).with_context(|| format!("cannot write to {}", dir.display()))?;
    let spec = read(dir)?;
    join(&spec.groups)?;
    // Threads inherit the namespace of the thread that makes them: there is only this one yet. Components are brought in the
    // network of the machine, as all other drivers bring theirs.
    let mut outside = None;
    if let Some(network) = &spec.network {
        outside = Some(File::open(OWN_NETWORK).with_context(|| format!("cannot open {OWN_NETWORK}"))?);
        let file = File::open(network).with_context(|| format!("cannot open the network {}", network.display()))?;
        let kind = Some(rustix::thread::LinkNameSpaceType::Network);
        rustix::thread::move_into_link_name_space(file.as_fd(), kind)
            .with_context(|| format!("cannot enter the network {}", network.display()))?;
    }
    let scratch = scratch(dir)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let exit = runtime.block_on(serve::serve((dir, &scratch), spec, outside));
    // A blocking read of a dying disk must not keep the process from ending.
    runtime.shutdown_timeout(std::time::Duration::from_millis(200));
    // Whoever started this process sees its exit code in any case.
    if let Err(cause) = room.write(&exit) {
        tracing::error!(%cause, code = exit.code, "how the task ended cannot be written down");
    }
    drop(lock);
    Ok(u8::try_from(exit.code).unwrap_or(1))
}

/// Joins those of the task's groups that bound no memory, with whatever this process starts: what the platform does for the task,
/// such as compiling it, has the task's share of the processor. In its memory is the host alone. Of a group that
/// bounds both it keeps to the cores ([`cores`]).
fn join(groups: &Groups) -> anyhow::Result<()> {
    if let Some(group) = cores::beside(groups) {
        cores::sit(group);
    }
    for dir in cores::joined(groups) {
        let file = dir.join("cgroup.procs");
        std::fs::write(&file, "0").with_context(|| format!("cannot join {}", file.display()))?;
    }
    Ok(())
}

/// The folder of what this process keeps for its own life alone, such as secrets: in memory, where this user may have that.
fn scratch(dir: &Path) -> anyhow::Result<PathBuf> {
    let at = dir.join("memory");
    let mut maker = std::fs::DirBuilder::new();
    std::os::unix::fs::DirBuilderExt::mode(&mut maker, 0o700);
    maker.recursive(true).create(&at).with_context(|| format!("cannot make the folder {}", at.display()))?;
    if let Err(cause) = sandbox::memory::folder(&at) {
        tracing::debug!(%cause, "what is kept for the life of this process alone is on the disk");
    }
    Ok(at)
}

fn read(dir: &Path) -> anyhow::Result<TaskSpec> {
    let file = dir.join(SPEC_FILE);
    let text = std::fs::read(&file).with_context(|| format!("cannot read {}", file.display()))?;
    let spec: TaskSpec =
        serde_json::from_slice(&text).with_context(|| format!("{} is no task of this version", file.display()))?;
    anyhow::ensure!(spec.version == VERSION, "{} is a task of version {}", file.display(), spec.version);
    Ok(spec)
}

/// Says which tasks this program runs, and which layers this machine refuses.
///
/// # Errors
/// Where no process can be started at all.
pub fn layers() -> anyhow::Result<u8> {
    let exe = std::env::current_exe().context("cannot find this program's own file")?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let refused = runtime.block_on(node::confine::missing(&exe, Path::new("/")))?;
    let refused = refused.into_iter().map(|(layer, (why, _))| (layer, why)).collect();
    crate::output::stdout(&serde_json::to_string(&TaskOffer { tasks: VERSION, refused })?);
    Ok(0)
}

/// The lock of the task. Whoever started this process holds it and has handed it over as standard input, so there is no moment
/// in which nobody has it; where nobody did, it is taken now.
fn lock(dir: &Path) -> anyhow::Result<File> {
    use std::os::unix::fs::MetadataExt as _;
    let path = dir.join(LOCK_FILE);
    let file = File::options().create(true).append(true).open(&path);
    let file = file.with_context(|| format!("cannot make a lock in {}", dir.display()))?;
    let given = std::io::stdin().as_fd().try_clone_to_owned().map(File::from);
    let given = given.ok().filter(|given| {
        let same = given.metadata().and_then(|given| Ok((given, file.metadata()?)));
        same.is_ok_and(|(given, file)| (given.dev(), given.ino()) == (file.dev(), file.ino()))
    });
    let lock = given.unwrap_or(file);
    lock.try_lock().map_err(|_| {
        Problem::new(Code::Conflict, format!("the task in {} runs already", dir.display()))
            .help("there is one process per task; talk to that one")
    })?;
    // What this process starts is not the task.
    rustix::stdio::dup2_stdin(File::open("/dev/null").context("cannot open /dev/null")?)?;
    Ok(lock)
}

/// A file that is there whole or not at all.
fn write(dir: &Path, name: &str, text: &[u8]) -> anyhow::Result<()> {
    let (path, partial) = (dir.join(name), dir.join(format!("{name}.partial")));
    std::fs::write(&partial, text)
        .and_then(|()| std::fs::rename(&partial, &path))
        .with_context(|| format!("cannot write {}", path.display()))
}
