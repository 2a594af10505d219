//! How a task begins of which nothing was started before: it is written down first, then bounded, then started.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use api::task::TaskSpec;
use plugin::Failure;
use plugin::driver::TaskConfig;

use super::cgroup::{Bounds, Made, unenforced};
use super::config::{AgentConfig, MISSING as MISSING_LAYERS};
use super::folder::{forget, make, remove, unwritable};
use super::noted::Intent;
use super::task::Task;
use super::{WasmDriver, fingerprint, kept, others, spec};

impl WasmDriver {
    /// Starts a task of which nothing was started before.
    pub(super) async fn begin(
        &self,
        config: &TaskConfig,
        agent: &AgentConfig,
        dir: &Path,
    ) -> Result<Arc<Task>, Failure> {
        let spec = spec::spec(config, agent)?;
        let sidereal = agent.sidereal().ok_or_else(|| Failure::recoverable(fingerprint::missing(agent)))?;
        remove(dir)?;
        make(dir)?;
        let bounds = if agent.enforce_resources { spec::bounds(config) } else { Bounds::default() };
        let name = dir.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let (id, alloc) = (config.id.clone(), PathBuf::from(&config.alloc_dir));
        let intent = Intent { id, alloc, groups: Made::intended(name, &bounds) };
        // Before anything that takes its time: a start that comes later finds this one.
        let lock = Task::intend(dir, &intent).inspect_err(|_| forget(dir))?;
        let begun = self.go_on(config, agent, (dir, lock), spec, (&sidereal, &bounds)).await;
        if begun.is_err() {
            // Whatever was made for it is written down there: it goes last.
            match Made::intended(name, &bounds).clear().await {
                Ok(()) => forget(dir),
                Err(left) => tracing::error!(task = %config.id, %left, "something is left of a start that failed"),
            }
        }
        begun
    }

    /// Goes on with a start that is written down. Its directory, and the groups that it names, are for the caller to remove.
    async fn go_on(
        &self,
        config: &TaskConfig,
        agent: &AgentConfig,
        (dir, lock): (&Path, File),
        mut spec: TaskSpec,
        (sidereal, bounds): (&Path, &Bounds),
    ) -> Result<Arc<Task>, Failure> {
        let refused = self.layers.refused(sidereal, &spec.waive).await?;
        spec.waive.retain(|name| name != MISSING_LAYERS);
        spec.refused = refused.into_iter().map(|(layer, why)| (layer.to_string(), why)).collect();
        // Not where the agent hung up meanwhile: a start that comes later is the one it has, and is not for this one to end.
        self.wanted(&config.id)?;
        self.end_others(config, agent).await?;
        kept::begin(&agent.state_dir(), Path::new(&config.alloc_dir))
            .map_err(|cause| unwritable(&spec.data, &cause))?;
        let name = dir.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let groups = bound(name, bounds)?;
        spec.groups = groups.groups.clone();
        let known = api::task::REGISTRY_ENV.iter();
        spec.registry = known.filter_map(|name| Some(((*name).to_owned(), std::env::var(name).ok()?))).collect();
        self.say(config, "Bringing the component up");
        self.wanted(&config.id)?;
        Task::start(sidereal, (dir, lock), &spec, groups, &config.name).await
    }

    /// Ends other starts of this task that the agent does not know of: never a second copy.
    async fn end_others(&self, config: &TaskConfig, agent: &AgentConfig) -> Result<(), Failure> {
        for other in others::end_all(&agent.state_dir(), &config.id).await? {
            self.tasks.remove(&other);
            self.say(config, "An earlier start of this task, which the agent had not heard of, was ended");
        }
        Ok(())
    }
}

/// The control groups of a task, made.
fn bound(name: &str, bounds: &Bounds) -> Result<Made, Failure> {
    Made::new(name, bounds).map_err(|cause| unbounded(&cause))
}

/// Why a task is not bounded: this machine, or this user, never can; or it is short of something for the moment.
fn unbounded(cause: &std::io::Error) -> Failure {
    use std::io::ErrorKind::{
        AlreadyExists, InvalidInput, NotADirectory, NotFound, PermissionDenied, ReadOnlyFilesystem, Unsupported,
    };
    match cause.kind() {
        AlreadyExists | InvalidInput | NotADirectory | NotFound | PermissionDenied | ReadOnlyFilesystem
        | Unsupported => Failure::unrecoverable(unenforced(cause)),
        _ => Failure::recoverable(format!("the `resources` block cannot be enforced now: {cause}")),
    }
}

#[cfg(test)]
mod tests {
    use plugin::Class;
    use rustix::io::Errno;

    use super::*;

    /// What the machine is short of for the moment is no reason to give an allocation up.
    #[test]
    fn bounds_that_cannot_be_set_now_are_tried_again() {
        for cause in [Errno::MFILE, Errno::NFILE, Errno::IO, Errno::AGAIN, Errno::INTR, Errno::NOMEM, Errno::BUSY] {
            assert_eq!(unbounded(&cause.into()).class, Class::Recoverable, "{cause}");
        }
        for cause in [Errno::ACCESS, Errno::PERM, Errno::ROFS, Errno::NOENT, Errno::INVAL, Errno::OPNOTSUPP] {
            assert_eq!(unbounded(&cause.into()).class, Class::Unrecoverable, "{cause}");
        }
    }
}
