//! The folder of a task: where it is, how it is made and goes.

use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use plugin::Failure;

use super::config::AgentConfig;
use super::others;

/// The directory of a task: short, for its sockets, and the same for the same id.
pub(super) fn dir_of(agent: &AgentConfig, id: &str) -> PathBuf {
    others::folder(&agent.state_dir()).join(model::Digest::of(id.as_bytes()).short())
}

pub(super) fn make(dir: &Path) -> Result<(), Failure> {
    make_private(dir).map_err(|cause| unwritable(dir, &cause))
}

/// Makes a folder that is this user's alone.
pub(super) fn make_private(dir: &Path) -> std::io::Result<()> {
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)
}

pub(super) fn unwritable(dir: &Path, cause: &std::io::Error) -> Failure {
    Failure::recoverable(format!(
        "{} cannot be made: {cause}; `state_dir` of the plugin's configuration says where state is kept",
        dir.display()
    ))
}

pub(super) fn remove(dir: &Path) -> Result<(), Failure> {
    match std::fs::remove_dir_all(dir) {
        Err(cause) if cause.kind() != std::io::ErrorKind::NotFound => {
            Err(Failure::recoverable(format!("{} cannot be removed: {cause}", dir.display())))
        }
        _ => Ok(()),
    }
}

/// Removes what a start that failed left; that it failed is what is told.
pub(super) fn forget(dir: &Path) {
    if let Err(failure) = remove(dir) {
        tracing::warn!(%failure, "a folder of a task that did not start stays");
    }
}
