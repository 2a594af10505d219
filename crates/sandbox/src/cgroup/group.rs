//! One group: its limits, who is in it, and what became of them.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::{Cpu, Share, put};

/// A group that is set aside has its weight divided by this: about what niceness 5 is beside 0.
const ASIDE: u64 = 3;

/// A group, one folder a hierarchy. Removed by [`Group::remove`] once its processes have ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Group {
    /// Its folders, which have its limits.
    pub dirs: Vec<PathBuf>,
    /// The folders a process joins. They are others where one tree has no processes in a group with groups below it, or where
    /// the processor is shared by the group above.
    pub seats: Vec<PathBuf>,
}

impl Group {
    /// Changes what its processes may use, also while they run.
    ///
    /// # Errors
    /// Where the kernel refuses: in the older hierarchy, memory that is in use and cannot be had back.
    pub fn limit(&self, share: &Share) -> io::Result<()> {
        const PERIOD_US: u64 = 100_000;
        // The two kinds of hierarchy have other names and units for the same.
        let (memory, pids, most) = match self.dirs.as_slice() {
            [one] => (one.join("memory.max"), one.join("pids.max"), "max"),
            [memory, pids, ..] => (memory.join("memory.limit_in_bytes"), pids.join("pids.max"), "-1"),
            [] => return Err(io::Error::other("none is known")),
        };
        let number = |value: Option<u64>| value.map_or_else(|| most.to_owned(), |value| value.to_string());
        // What does not fit goes to no swap: there it would slow everybody in place of ending. The older hierarchy counts both
        // together, and never lets that be less than the memory.
        let (swap, none) = match self.dirs.as_slice() {
            [one] => (one.join("memory.swap.max"), if share.memory.is_some() { "0".to_owned() } else { number(None) }),
            [memory, ..] => (memory.join("memory.memsw.limit_in_bytes"), number(share.memory)),
            [] => return Err(io::Error::other("none is known")),
        };
        let swap = swap.exists().then_some((swap, none));
        if let Some((file, value)) = &swap {
            // It may have to grow first.
            drop(fs::write(file, value));
        }
        let mut files = vec![(pids, share.pids.to_string()), (memory, number(share.memory))];
        files.extend(swap);
        if let Some(cpu) = &share.cpu {
            let quota = cpu.ceiling.map(|milli| (milli.saturating_mul(PERIOD_US) / 1000).max(1000));
            match self.dirs.as_slice() {
                [one] => {
                    files.push(weight_v2(one, cpu.weight));
                    files.push((one.join("cpu.max"), format!("{} {PERIOD_US}", number(quota))));
                }
                [_, _, dir] => {
                    files.push(weight_v1(dir, cpu.weight));
                    files.push((dir.join("cpu.cfs_period_us"), PERIOD_US.to_string()));
                    files.push((dir.join("cpu.cfs_quota_us"), number(quota)));
                }
                _ => {}
            }
        }
        for (file, value) in files {
            fs::write(&file, value)
                .map_err(|cause| io::Error::new(cause.kind(), format!("{}: {cause}", file.display())))?;
        }
        Ok(())
    }

    /// Leaves its processes a part of the weight they had, or gives that back. Not none: a group that is idle for the kernel gets
    /// nothing beside others that want everything, and what keeps time for its guests is in it as well.
    ///
    /// # Errors
    /// Where it has no part of the processor, or the kernel or the rights of the user refuse.
    pub fn stand(&self, aside: bool, cpu: &Cpu) -> io::Result<()> {
        let weight = if aside { cpu.weight / ASIDE } else { cpu.weight };
        let (file, weight) = match self.dirs.as_slice() {
            [one] => weight_v2(one, weight),
            [_, _, dir] => weight_v1(dir, weight),
            _ => return Err(io::Error::other("the group has no part of the processor")),
        };
        fs::write(file, weight)
    }

    /// The processes in it, as this process knows them.
    pub fn processes(&self) -> Vec<i32> {
        let text = self.seats.first().and_then(|dir| fs::read_to_string(dir.join("cgroup.procs")).ok());
        text.iter().flat_map(|text| text.lines()).filter_map(|line| line.parse().ok()).collect()
    }

    /// Brings its processes into every tree it is in: one of them may be younger than they are.
    ///
    /// # Errors
    /// Where the kernel or the rights of the user refuse.
    pub fn gather(&self) -> io::Result<()> {
        for dir in self.seats.iter().skip(1) {
            for pid in self.processes() {
                put(dir, &pid.to_string())?;
            }
        }
        Ok(())
    }

    /// How many of its processes were ended because it, or a group above it, had no memory left. Those of groups below it are none of
    /// its own.
    pub fn out_of_memory(&self) -> u64 {
        let texts =
            self.seats.iter().flat_map(|dir| ["memory.events", "memory.oom_control"].map(|file| dir.join(file)));
        let counts = texts.filter_map(|file| {
            let text = fs::read_to_string(file).ok()?;
            text.lines().find_map(|line| line.strip_prefix("oom_kill "))?.trim().parse::<u64>().ok()
        });
        counts.sum()
    }

    /// Removes it, and those below it. A group with processes stays.
    ///
    /// # Errors
    /// Where one is still in it.
    pub fn remove(&self) -> io::Result<()> {
        for dir in &self.dirs {
            let entries = fs::read_dir(dir).into_iter().flatten().flatten();
            let inner =
                entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())).map(|entry| entry.path());
            for dir in inner.chain([dir.clone()]) {
                match fs::remove_dir(dir) {
                    Err(cause) if cause.kind() != io::ErrorKind::NotFound => return Err(cause),
                    _ => {}
                }
            }
        }
        Ok(())
    }
}

/// The file of a weight in each kind of hierarchy, and what is written there.
fn weight_v2(dir: &Path, weight: u64) -> (PathBuf, String) {
    (dir.join("cpu.weight"), weight.clamp(1, 10_000).to_string())
}

fn weight_v1(dir: &Path, weight: u64) -> (PathBuf, String) {
    (dir.join("cpu.shares"), (weight.saturating_mul(1024) / 100).clamp(2, 262_144).to_string())
}
