//! Which groups there are, what each may use, and whether anybody needs it.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;

use api::services::Standing;
use rustix::process::{Pid, Signal, kill_process};
use sandbox::cgroup::{Cpu, Group, Hierarchy, Share};

use super::{EXTERNAL, TENANT};
use crate::confine::Who;

/// Processes and threads of a tenant together, its programs among them: a host has a handful.
pub(super) const PIDS: u64 = 2048;
/// What such a process and those it starts may use together of what their tenant may: bytes, and processes with threads.
pub(super) const EXTERNAL_MEMORY: u64 = 2 << 30;
pub(super) const EXTERNAL_PIDS: u64 = 512;
/// Of a tenant that has no quota of the processor.
pub(super) const WEIGHT: u64 = 100;
/// Of all compilations together: what niceness 5 is beside 0.
const COMPILER_WEIGHT: u64 = 33;

/// The groups of a node.
#[derive(Debug, Default)]
pub(super) struct State {
    /// By whose they are.
    pub(super) made: HashMap<String, Group>,
    /// Those of them that nobody needs any more, or that are there for programs below them alone.
    pub(super) vacant: BTreeSet<String>,
    /// What those may use who have quotas.
    pub(super) wanted: HashMap<String, Share>,
    /// Whether groups share the processor.
    pub(super) cpu: bool,
    /// Groups whose processes were ended because they had more than their quota when that became smaller, and how often.
    pub(super) shrunk: HashMap<String, u64>,
    /// Where the hosts of a group say that they stand.
    pub(super) standing: HashMap<String, BTreeMap<u32, Standing>>,
    /// Groups that are set aside now.
    last: BTreeSet<String>,
}

/// Whether a group is to be set aside: some host in it computes, and none of those is owed a turn.
fn behind(hosts: &BTreeMap<u32, Standing>) -> bool {
    hosts.values().any(|one| *one == Standing::Last) && !hosts.values().any(|one| *one == Standing::Owed)
}

/// The group of a tenant and the process, where `who` is a program.
pub(super) fn program(who: &str) -> Option<(String, &str)> {
    let (tenant, process) = who.strip_prefix(EXTERNAL)?.split_once('.')?;
    Some((format!("{TENANT}{tenant}"), process))
}

impl State {
    /// What a group may use now.
    fn share(&self, who: &str) -> Share {
        let mut share = self.wanted.get(who).copied().unwrap_or(Share { memory: None, pids: PIDS, cpu: None });
        if self.cpu {
            let weight = if who == Who::Compiler.to_string() { COMPILER_WEIGHT } else { WEIGHT };
            share.cpu.get_or_insert(Cpu { weight, ceiling: None });
        }
        share
    }

    /// Makes a group, or finds it, with what it may use now. That of a tenant is made with the first program below it, too.
    pub(super) fn make(&mut self, hierarchy: &Hierarchy, prefix: &str, who: &str) -> io::Result<Group> {
        let group = if let Some((tenant, process)) = program(who) {
            let above = match self.made.get(&tenant) {
                Some(above) => above.clone(),
                None => {
                    let above = self.make(hierarchy, prefix, &tenant)?;
                    self.vacant.insert(tenant);
                    above
                }
            };
            hierarchy.group_below(&above, &format!("{EXTERNAL}{process}"), Some(EXTERNAL_MEMORY), EXTERNAL_PIDS)?
        } else {
            let (name, share) = (format!("{prefix}.{who}"), self.share(who));
            match who.starts_with(TENANT) {
                true => hierarchy.group_of_groups(&name, &share)?,
                false => hierarchy.group(&name, &share)?,
            }
        };
        self.made.insert(who.to_owned(), group.clone());
        Ok(group)
    }

    /// The groups below a tenant's.
    pub(super) fn programs<'a>(&'a self, tenant: &'a str) -> impl Iterator<Item = &'a String> {
        self.made.keys().filter(move |one| program(one).is_some_and(|(of, _)| of == tenant))
    }

    /// Removes a group, unless somebody needs it again or programs run below it: then the last one of those takes it with it.
    pub(super) fn leave(&mut self, who: &str) -> io::Result<()> {
        if self.vacant.contains(who) && self.programs(who).next().is_none() {
            if let Some(group) = self.made.get(who) {
                group.remove()?;
            }
            self.forsake(who);
        }
        program(who).map_or(Ok(()), |(tenant, _)| self.leave(&tenant))
    }

    /// There is no such group any more.
    pub(super) fn forsake(&mut self, who: &str) {
        self.made.remove(who);
        self.vacant.remove(who);
        self.last.remove(who);
        if program(who).is_some() {
            self.shrunk.remove(who);
        }
    }

    /// Ends everything in a group and below it, which has more memory than it may.
    pub(super) fn shrink(&mut self, who: &str) {
        let all: Vec<String> = std::iter::once(who.to_owned()).chain(self.programs(who).cloned()).collect();
        for one in all {
            if let Some(group) = self.made.get(&one) {
                end(group);
                *self.shrunk.entry(one).or_default() += 1;
            }
        }
    }

    /// Puts a group where its hosts say, if it is not there.
    pub(super) fn place(&mut self, who: &str) -> io::Result<()> {
        let (Some(group), Some(cpu)) = (self.made.get(who), self.share(who).cpu) else { return Ok(()) };
        let last = cpu.weight == WEIGHT && self.standing.get(who).is_some_and(behind);
        if last != self.last.contains(who) {
            group.stand(last, &cpu)?;
            match last {
                true => self.last.insert(who.to_owned()),
                false => self.last.remove(who),
            };
        }
        Ok(())
    }

    /// Gives a group that is set aside its weight back, before it is limited anew.
    pub(super) fn forward(&mut self, who: &str) -> io::Result<()> {
        match (self.made.get(who), self.share(who).cpu) {
            (Some(group), Some(cpu)) if self.last.remove(who) => group.stand(false, &cpu),
            _ => Ok(()),
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
