//! Open files. A driver has some for each task, and a plugin starts with as few as a shell has: beyond them tasks do not start,
//! and after the plugin was replaced healthy ones are not found again. So the kit takes what the system allows.

use std::io;
use std::sync::OnceLock;

use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit, setrlimit};

/// What this program was given.
static GIVEN: OnceLock<Option<u64>> = OnceLock::new();

/// Takes as many as the system lets this program have. Called once, at its start.
pub(crate) fn raise() {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let given = *GIVEN.get_or_init(|| current);
    if given == maximum {
        return;
    }
    if let Err(cause) = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }) {
        tracing::warn!(%cause, "cannot raise the limit of open files: so many tasks run at once");
    }
}

/// Gives a process that this one has started the limit that this one was given: there are programs that take time or memory for
/// each file they might have open, or cannot use those of a high number. For programs that are not to inherit what the kit took,
/// as soon as they are started.
///
/// # Errors
/// When there is no such process, or it is somebody else's.
pub fn give_back(pid: u32) -> io::Result<()> {
    let Some(given) = GIVEN.get() else { return Ok(()) };
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
    let pid = pid.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "no number of a process"))?;
    let maximum = getrlimit(Resource::Nofile).maximum;
    prlimit(Some(pid), Resource::Nofile, Rlimit { current: *given, maximum })?;
    Ok(())
}
