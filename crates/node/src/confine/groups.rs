//! The control groups of this node: one for each tenant and one for compilations, made when they are needed and removed when
//! nothing is left in them. What a node that was killed left behind is removed by the next one in its directory.
//!
//! Groups share memory and processes from the start. They share the processor only once a tenant has a quota of it: a group
//! is scheduled as one, so a thread in it that gives way (`SCHED_IDLE`) gives way to its own group alone.

use std::collections::{BTreeSet, HashMap};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::Who;
use model::Digest;
use model::tenant::Quotas;
use rustix::process::{Pid, Signal, kill_process};
use sandbox::cgroup::{Cpu, Group, Hierarchy, Share};

/// Processes and threads of a tenant together: a host has a handful.
const PIDS: u64 = 2048;
/// What names of processes of external providers begin with.
pub(super) const EXTERNAL: &str = "external.";
/// What such a process and those it starts may use together: bytes, and processes with threads.
const EXTERNAL_MEMORY: u64 = 2 << 30;
const EXTERNAL_PIDS: u64 = 512;
/// How long processes that were ended may take to be gone.
const GONE: Duration = Duration::from_secs(2);
/// Of a tenant that has no quota of the processor.
const WEIGHT: u64 = 100;

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

#[derive(Debug, Default)]
struct State {
    made: HashMap<String, Group>,
    wanted: HashMap<String, Share>,
    /// Whether groups share the processor.
    cpu: bool,
    /// Groups whose processes were ended because they had more than their quota when that became smaller, and how often.
    shrunk: HashMap<String, u64>,
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

/// Whether groups could be made here; none is.
pub(super) fn possible() -> Result<(), String> {
    let hierarchy = Hierarchy::probe()?;
    for root in hierarchy.roots() {
        rustix::fs::access(root, rustix::fs::Access::WRITE_OK)
            .map_err(|cause| format!("{}: {cause}", root.display()))?;
    }
    Ok(())
}

impl State {
    /// What a group may use now.
    fn share(&self, who: &str) -> Share {
        let usual = match who.starts_with(EXTERNAL) {
            true => Share { memory: Some(EXTERNAL_MEMORY), pids: EXTERNAL_PIDS, cpu: None },
            false => Share { memory: None, pids: PIDS, cpu: None },
        };
        let mut share = self.wanted.get(who).copied().unwrap_or(usual);
        if self.cpu {
            share.cpu.get_or_insert(Cpu { weight: WEIGHT, ceiling: None });
        }
        share
    }
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
        let hierarchy = Hierarchy::probe()?;
        let prefix = format!("sidereal-{}", Digest::of(dir.as_os_str().as_encoded_bytes()).short());
        hierarchy.prepare(&prefix).map_err(|cause| cause.to_string())?;
        for left in hierarchy.below(&format!("{prefix}.")) {
            if let Err(cause) = left.remove() {
                tracing::debug!(?left, %cause, "a control group of an earlier node stays behind");
            }
        }
        // In the older hierarchy nothing but a group that is made shows whether one may be.
        let mut state = State::default();
        let who = Who::Compiler.to_string();
        let first = hierarchy.group(&format!("{prefix}.{who}"), &state.share(&who));
        state.made.insert(who, first.map_err(|cause| cause.to_string())?);
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
                if let Some(group) = state.made.get(&who) {
                    return Ok(group.dirs.clone());
                }
                let group = hierarchy.group(&format!("{prefix}.{who}"), &state.share(&who))?;
                state.made.insert(who, group.clone());
                Ok(group.dirs)
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
            let mut changed: BTreeSet<String> = BTreeSet::new();
            if before != Some(share) {
                changed.insert(who.to_owned());
            }
            if cpu.is_some() && !state.cpu {
                hierarchy.share_cpu()?;
                state.cpu = true;
                changed.extend(state.made.keys().cloned());
            }
            changed
        };
        for one in changed {
            let again = tokio::time::Instant::now() + GONE;
            loop {
                let done = {
                    let mut state = lock(state);
                    // It gets its share when it is made.
                    let Some(group) = state.made.get(&one).cloned() else { break };
                    let share = state.share(&one);
                    match hierarchy.group(&format!("{prefix}.{one}"), &share) {
                        Ok(group) => {
                            let gathered = group.gather();
                            state.made.insert(one.clone(), group);
                            gathered?;
                            true
                        }
                        Err(cause)
                            if cause.kind() == io::ErrorKind::ResourceBusy && tokio::time::Instant::now() < again =>
                        {
                            *state.shrunk.entry(one.clone()).or_default() += 1;
                            end(&group);
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
        let Some(group) = lock(state).made.remove(who) else { return };
        if let Err(cause) = remove(&group).await {
            tracing::debug!(who, %cause, "a control group stays behind");
        }
    }

    /// Removes all of them: their processes have ended.
    pub(super) async fn close(&self) {
        let Kind::Own { state, .. } = &self.0 else { return };
        let all: Vec<String> = lock(state).made.keys().cloned().collect();
        futures::future::join_all(all.iter().map(|who| self.release(who))).await;
    }

    /// For people.
    pub(super) fn describe(&self) -> Option<String> {
        match &self.0 {
            Kind::Own { hierarchy, .. } => Some(hierarchy.describe()),
            Kind::None | Kind::Joined(_) => None,
        }
    }
}

/// Ends everything in a group.
fn end(group: &Group) {
    for pid in group.processes().into_iter().filter_map(Pid::from_raw) {
        if let Err(cause) = kill_process(pid, Signal::KILL) {
            tracing::debug!(pid = pid.as_raw_nonzero().get(), %cause, "a process of a control group cannot be ended");
        }
    }
}

/// A process that was killed is in its group until it is gone.
async fn remove(group: &Group) -> io::Result<()> {
    let end = tokio::time::Instant::now() + GONE;
    loop {
        match group.remove() {
            Err(cause) if tokio::time::Instant::now() < end && cause.kind() == io::ErrorKind::ResourceBusy => {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            ended => return ended,
        }
    }
}
