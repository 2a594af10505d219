//! The control groups of this node: one for each tenant and one for compilations, made when they are needed and removed when
//! nothing is left in them. What a node that was killed left behind is removed by the next one in its directory. Each program of an
//! external provider has one below its tenant's: it is held by itself, and counts in what its tenant may use.
//!
//! Groups share memory and processes from the start. They share the processor once a tenant has a quota of it, or where the
//! hosts of this node could not give way by themselves ([`may_return`]). A group is scheduled as one, so a thread in it
//! that gives way (`SCHED_IDLE`) gives way to its own group alone: its host says where it stands, and the group as a whole has
//! a part of its weight meanwhile. One whose operator gave it a weight is not: the weight says what it gets.

#[cfg(test)]
mod fake;
mod state;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::Who;
use api::services::Standing;
use model::Digest;
use model::tenant::Quotas;
use rustix::process::{Resource, getrlimit};
use rustix::thread::CapabilitySet;
use sandbox::cgroup::{Cpu, Group, Hierarchy, Share};
use state::{PIDS, State, WEIGHT, program};

/// What names of tenants begin with.
pub(super) const TENANT: &str = "tenant.";
/// What names of processes of external providers begin with.
pub(super) const EXTERNAL: &str = "external.";
/// How long processes that were ended may take to be gone.
const GONE: Duration = Duration::from_secs(2);
/// `RLIMIT_NICE` of niceness 0.
const NICE_0: u64 = 20;

/// Where processes are put.
#[derive(Debug)]
pub(super) struct Groups(Kind);

#[derive(Debug)]
#[allow(clippy::large_enum_variant, reason = "there is one for each node")]
enum Kind {
    None,
    Joined(Vec<PathBuf>),
    Own { hierarchy: Hierarchy, prefix: String, state: Mutex<State> },
}

/// What a tenant's processes were ended for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Held {
    /// How often the kernel, or this node, ended one because the group had too much memory.
    pub(crate) out_of_memory: u64,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whether a process that this node starts may go behind all others and come back by itself: for that it gets a limit that only
/// `CAP_SYS_RESOURCE` raises.
fn may_return() -> bool {
    let privileged =
        rustix::thread::capabilities(None).is_ok_and(|sets| sets.effective.contains(CapabilitySet::SYS_RESOURCE));
    privileged || getrlimit(Resource::Nice).maximum.is_none_or(|most| most >= NICE_0)
}

/// Whether groups could be made here; none is.
pub(super) fn possible() -> Result<(), String> {
    let hierarchy = Hierarchy::probe()?;
    for root in hierarchy.roots() {
        rustix::fs::access(root, rustix::fs::Access::WRITE_OK)
            .map_err(|cause| format!("{}: {cause}", root.display()))?;
    }
    Ok(())
}

impl Groups {
    pub(super) fn none() -> Self {
        Self(Kind::None)
    }

    pub(super) fn joined(dirs: Vec<PathBuf>) -> Self {
        Self(Kind::Joined(dirs))
    }

    /// Makes sure that groups can be made, and removes those of an earlier node in the same directory.
    pub(super) fn own(dir: &Path) -> Result<Self, String> {
        Self::within(Hierarchy::probe()?, dir, may_return())
    }

    /// As [`Groups::own`], here; and whether hosts give way by themselves.
    fn within(hierarchy: Hierarchy, dir: &Path, by_themselves: bool) -> Result<Self, String> {
        let prefix = format!("sidereal-{}", Digest::of(dir.as_os_str().as_encoded_bytes()).short());
        hierarchy.prepare(&prefix).map_err(|cause| cause.to_string())?;
        for left in hierarchy.below(&format!("{prefix}.")) {
            if let Err(cause) = left.remove() {
                tracing::debug!(?left, %cause, "a control group of an earlier node stays behind");
            }
        }
        // In the older hierarchy nothing but a group that is made shows whether one may be.
        let mut state = State::default();
        if !by_themselves {
            match hierarchy.share_cpu(&prefix) {
                Ok(()) => state.cpu = true,
                Err(cause) => tracing::debug!(%cause, "a host that computes gives way to nobody"),
            }
        }
        state.make(&hierarchy, &prefix, &Who::Compiler.to_string()).map_err(|cause| cause.to_string())?;
        Ok(Self(Kind::Own { hierarchy, prefix, state: Mutex::new(state) }))
    }

    /// The folders that a process of `who` joins.
    pub(super) fn dirs(&self, who: Who<'_>) -> io::Result<Vec<PathBuf>> {
        match &self.0 {
            Kind::None => Ok(Vec::new()),
            Kind::Joined(dirs) if matches!(who, Who::Tenant(_)) => Ok(dirs.clone()),
            Kind::Joined(_) => Ok(Vec::new()),
            Kind::Own { hierarchy, prefix, state } => {
                let who = who.to_string();
                let mut state = lock(state);
                state.vacant.remove(&who);
                match state.made.get(&who) {
                    Some(group) => Ok(group.seats.clone()),
                    None => Ok(state.make(hierarchy, prefix, &who)?.seats),
                }
            }
        }
    }

    /// What a tenant may use from now on. Where it has more memory already, and the kernel does not get that back, its
    /// processes are ended: they start again within the quota.
    pub(super) async fn limit(&self, who: &str, quotas: &Quotas) -> io::Result<()> {
        let Kind::Own { hierarchy, prefix, state } = &self.0 else { return Ok(()) };
        let cpu = (quotas.cpu_weight.is_some() || quotas.cpu_millis.is_some()).then(|| Cpu {
            weight: quotas.cpu_weight.map_or(WEIGHT, u64::from),
            ceiling: quotas.cpu_millis.map(u64::from),
        });
        let share = Share { memory: quotas.memory.map(|bytes| bytes.0), pids: PIDS, cpu };
        let changed = {
            let mut state = lock(state);
            let before = state.wanted.insert(who.to_owned(), share);
            let mut changed: Vec<String> = Vec::new();
            if cpu.is_some() && !state.cpu {
                hierarchy.share_cpu(prefix)?;
                state.cpu = true;
                changed.extend(state.made.keys().cloned());
                // Those above before those below.
                changed.sort_by_key(|one| program(one).is_some());
            } else if before != Some(share) {
                changed.push(who.to_owned());
            }
            changed
        };
        for one in changed {
            let again = tokio::time::Instant::now() + GONE;
            loop {
                let done = {
                    let mut state = lock(state);
                    // It gets its share when it is made.
                    if !state.made.contains_key(&one) {
                        break;
                    }
                    state.forward(&one)?;
                    match state.make(hierarchy, prefix, &one) {
                        Ok(group) => {
                            group.gather()?;
                            state.place(&one)?;
                            true
                        }
                        Err(cause)
                            if cause.kind() == io::ErrorKind::ResourceBusy && tokio::time::Instant::now() < again =>
                        {
                            state.shrink(&one);
                            false
                        }
                        Err(cause) => return Err(cause),
                    }
                };
                if done {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
        Ok(())
    }

    /// A process of `who` is there: it may have begun before its group was in every tree.
    pub(super) fn gather(&self, who: &str) -> io::Result<()> {
        let Kind::Own { state, .. } = &self.0 else { return Ok(()) };
        let group = lock(state).made.get(who).cloned();
        group.map_or(Ok(()), |group| group.gather())
    }

    /// A host of `who` stands here from now on, or is gone.
    pub(super) fn stand(&self, who: &str, shard: u32, standing: Option<Standing>) -> io::Result<()> {
        let Kind::Own { state, .. } = &self.0 else { return Ok(()) };
        let mut state = lock(state);
        let hosts = state.standing.entry(who.to_owned()).or_default();
        match standing {
            Some(standing) => hosts.insert(shard, standing),
            None => hosts.remove(&shard),
        };
        state.place(who)
    }

    /// What `who` was ended for so far.
    pub(super) fn held(&self, who: &str) -> Held {
        let Kind::Own { state, .. } = &self.0 else { return Held::default() };
        let state = lock(state);
        let killed = state.made.get(who).map_or(0, Group::out_of_memory);
        Held { out_of_memory: killed + state.shrunk.get(who).copied().unwrap_or_default() }
    }

    /// Removes a group that nobody is in any more.
    pub(super) async fn release(&self, who: &str) {
        let Kind::Own { state, .. } = &self.0 else { return };
        {
            let mut state = lock(state);
            state.standing.remove(who);
            if !state.made.contains_key(who) {
                return;
            }
            // Programs of its tenant may go on in it.
            if let Err(cause) = state.place(who) {
                tracing::debug!(who, %cause, "a control group stays where it is in the queue");
            }
            state.vacant.insert(who.to_owned());
        }
        let end = tokio::time::Instant::now() + GONE;
        loop {
            {
                let mut state = lock(state);
                // A process that was killed is in its group until it is gone.
                let Err(cause) = state.leave(who) else { return };
                if tokio::time::Instant::now() >= end || cause.kind() != io::ErrorKind::ResourceBusy {
                    tracing::debug!(who, %cause, "a control group stays behind");
                    // Unless it has somebody in it again since.
                    if state.vacant.contains(who) {
                        state.forsake(who);
                    }
                    return;
                }
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Forgets what a tenant that is gone might use.
    pub(super) fn forget(&self, who: &str) {
        let Kind::Own { state, .. } = &self.0 else { return };
        let mut state = lock(state);
        state.wanted.remove(who);
        state.shrunk.remove(who);
        state.standing.remove(who);
    }

    /// Removes all of them: their processes have ended.
    pub(super) async fn close(&self) {
        let Kind::Own { state, .. } = &self.0 else { return };
        let all: Vec<String> = lock(state).made.keys().cloned().collect();
        // Those below before those above.
        let (below, others): (Vec<&String>, Vec<&String>) = all.iter().partition(|who| program(who).is_some());
        for some in [below, others] {
            futures::future::join_all(some.into_iter().map(|who| self.release(who))).await;
        }
    }

    /// For people.
    pub(super) fn describe(&self) -> Option<String> {
        match &self.0 {
            Kind::Own { hierarchy, .. } => Some(hierarchy.describe()),
            Kind::None | Kind::Joined(_) => None,
        }
    }
}
