//! `sidereal task`: the node's part for exactly one host, in a session of its own, so that a task outlives the plugin that
//! started it. What it runs is in its directory, and so is how it is talked to ([`api::task`]).

mod adapt;
mod app;
mod control;
mod output;
mod serve;

use std::fs::File;
use std::path::Path;

use anyhow::Context as _;
use api::task::{EXIT_FILE, SPEC_FILE, TaskExit, TaskSpec, VERSION};
use api::{Code, Problem};
use model::Digest;

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
    let spec = read(dir)?;
    let lock = File::create(dir.join("lock")).with_context(|| format!("cannot make a lock in {}", dir.display()))?;
    lock.try_lock().map_err(|_| {
        Problem::new(Code::Conflict, format!("the task in {} runs already", dir.display()))
            .help("there is one process per task; talk to that one")
    })?;
    // Threads inherit the namespace of the thread that makes them: there is only this one yet.
    if let Some(network) = &spec.network {
        let file = File::open(network).with_context(|| format!("cannot open the network {}", network.display()))?;
        let kind = Some(rustix::thread::LinkNameSpaceType::Network);
        rustix::thread::move_into_link_name_space(std::os::fd::AsFd::as_fd(&file), kind)
            .with_context(|| format!("cannot enter the network {}", network.display()))?;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let exit = runtime.block_on(serve::serve(dir, spec));
    // A blocking read of a dying disk must not keep the process from ending.
    runtime.shutdown_timeout(std::time::Duration::from_millis(200));
    write_exit(dir, &exit)?;
    drop(lock);
    Ok(u8::try_from(exit.code).unwrap_or(1))
}

fn read(dir: &Path) -> anyhow::Result<TaskSpec> {
    let file = dir.join(SPEC_FILE);
    let text = std::fs::read(&file).with_context(|| format!("cannot read {}", file.display()))?;
    let spec: TaskSpec =
        serde_json::from_slice(&text).with_context(|| format!("{} is no task of this version", file.display()))?;
    anyhow::ensure!(spec.version == VERSION, "{} is a task of version {}", file.display(), spec.version);
    Ok(spec)
}

/// The exit file is there whole or not at all.
fn write_exit(dir: &Path, exit: &TaskExit) -> anyhow::Result<()> {
    let (path, partial) = (dir.join(EXIT_FILE), dir.join(format!("{EXIT_FILE}.partial")));
    std::fs::write(&partial, serde_json::to_vec(exit)?)
        .and_then(|()| std::fs::rename(&partial, &path))
        .with_context(|| format!("cannot write {}", path.display()))
}

/// The digest under which the folder of a task is known where a path would be too long for a socket.
fn short(dir: &Path) -> String {
    Digest::of(dir.as_os_str().as_encoded_bytes()).short()
}
