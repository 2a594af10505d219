//! A tenant's share of memory, processes and processor time, in whichever hierarchy of cgroups the machine has.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// What a tenant's processes may use together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Share {
    /// Bytes of memory; what takes more is ended by the kernel.
    pub memory: u64,
    /// Processes and threads.
    pub pids: u64,
    /// Its part of the processor where others want it too; 100 is everybody's.
    pub cpu_weight: u64,
    /// Thousandths of one processor it never gets more than; `None`: what is free.
    pub cpu_ceiling: Option<u64>,
}

/// Where groups can be made on this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Hierarchy {
    /// One tree (cgroup v2).
    Unified(PathBuf),
    /// A tree for each controller (cgroup v1).
    Split {
        /// Of `memory`.
        memory: PathBuf,
        /// Of `pids`.
        pids: PathBuf,
        /// Of `cpu`.
        cpu: PathBuf,
    },
}

/// A group, one folder a hierarchy. Removed by [`Group::remove`] once its processes have ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Group {
    /// The folders a process joins.
    pub dirs: Vec<PathBuf>,
}

impl Hierarchy {
    /// Finds where this process may make groups: below its own, in the tree that has the controllers.
    ///
    /// # Errors
    /// Says what is missing.
    pub fn probe() -> Result<Self, String> {
        let read = |file: &str| fs::read_to_string(file).map_err(|cause| format!("{file}: {cause}"));
        Self::find(&read("/proc/self/mountinfo")?, &read("/proc/self/cgroup")?)
    }

    /// As [`Hierarchy::probe`], from the text of the two files.
    fn find(mounts: &str, own: &str) -> Result<Self, String> {
        let v1 = |controller: &str| {
            let mount = mounted(mounts, "cgroup", |options| options.split(',').any(|option| option == controller))?;
            let path = own.lines().find_map(|line| {
                let (controllers, path) = line.split_once(':')?.1.split_once(':')?;
                controllers.split(',').any(|one| one == controller).then_some(path)
            })?;
            Some(below(&mount, path))
        };
        if let (Some(memory), Some(pids), Some(cpu)) = (v1("memory"), v1("pids"), v1("cpu")) {
            return Ok(Self::Split { memory, pids, cpu });
        }
        let mount = mounted(mounts, "cgroup2", |_| true).ok_or("no cgroup hierarchy is mounted")?;
        let path = own.lines().find_map(|line| line.strip_prefix("0::")).ok_or("this process is in no cgroup")?;
        let own = below(&mount, path);
        let controllers = fs::read_to_string(own.join("cgroup.controllers")).unwrap_or_default();
        let missing: Vec<&str> = ["memory", "pids", "cpu"]
            .into_iter()
            .filter(|one| !controllers.split_whitespace().any(|c| c == *one))
            .collect();
        if !missing.is_empty() {
            return Err(format!("{} has no controller {}", own.display(), missing.join(", ")));
        }
        Ok(Self::Unified(own))
    }

    /// Prepares the own group for having others below it.
    ///
    /// # Errors
    /// Where the kernel or the rights of the user refuse.
    pub fn prepare(&self, name: &str) -> io::Result<()> {
        let Self::Unified(own) = self else { return Ok(()) };
        // A group with processes cannot hand controllers on, unless it is the root: so they move one down.
        if own.join("cgroup.type").exists() {
            let leaf = own.join(format!("{name}.node"));
            make(&leaf)?;
            for pid in fs::read_to_string(own.join("cgroup.procs"))?.lines() {
                fs::write(leaf.join("cgroup.procs"), pid)?;
            }
        }
        fs::write(own.join("cgroup.subtree_control"), "+memory +pids +cpu")
    }

    /// Makes a group, or finds it, and limits it.
    ///
    /// # Errors
    /// Where the kernel or the rights of the user refuse.
    pub fn group(&self, name: &str, share: &Share) -> io::Result<Group> {
        let (memory, pids, cpu) = match self {
            Self::Unified(own) => (own.join(name), own.join(name), own.join(name)),
            Self::Split { memory, pids, cpu } => (memory.join(name), pids.join(name), cpu.join(name)),
        };
        for dir in [&memory, &pids, &cpu] {
            make(dir)?;
        }
        for (dir, file, value) in settings(matches!(self, Self::Unified(_)), share) {
            let dir = match dir {
                Kind::Memory => &memory,
                Kind::Pids => &pids,
                Kind::Cpu => &cpu,
            };
            let file = dir.join(file);
            fs::write(&file, value)
                .map_err(|cause| io::Error::new(cause.kind(), format!("{}: {cause}", file.display())))?;
        }
        let mut dirs = vec![memory, pids, cpu];
        dirs.dedup();
        Ok(Group { dirs })
    }

    /// For people: which kind, and where.
    pub fn describe(&self) -> String {
        match self {
            Self::Unified(own) => format!("cgroup v2, below {}", own.display()),
            Self::Split { memory, .. } => format!("cgroup v1, memory below {}", memory.display()),
        }
    }
}

#[derive(Debug, Clone, Copy)]
enum Kind {
    Memory,
    Pids,
    Cpu,
}

/// What is written where: the two kinds of hierarchy have other names and units for the same.
fn settings(unified: bool, share: &Share) -> Vec<(Kind, &'static str, String)> {
    const PERIOD_US: u64 = 100_000;
    let quota = share.cpu_ceiling.map(|milli| (milli.saturating_mul(PERIOD_US) / 1000).max(1000));
    if unified {
        let quota = quota.map_or_else(|| "max".to_owned(), |us| us.to_string());
        vec![
            (Kind::Memory, "memory.max", share.memory.to_string()),
            (Kind::Pids, "pids.max", share.pids.to_string()),
            (Kind::Cpu, "cpu.weight", share.cpu_weight.clamp(1, 10_000).to_string()),
            (Kind::Cpu, "cpu.max", format!("{quota} {PERIOD_US}")),
        ]
    } else {
        let quota = quota.map_or_else(|| "-1".to_owned(), |us| us.to_string());
        vec![
            (Kind::Memory, "memory.limit_in_bytes", share.memory.to_string()),
            (Kind::Pids, "pids.max", share.pids.to_string()),
            (Kind::Cpu, "cpu.shares", (share.cpu_weight.saturating_mul(1024) / 100).clamp(2, 262_144).to_string()),
            (Kind::Cpu, "cpu.cfs_period_us", PERIOD_US.to_string()),
            (Kind::Cpu, "cpu.cfs_quota_us", quota),
        ]
    }
}

impl Group {
    /// How many of its processes were ended because it had no memory left.
    pub fn out_of_memory(&self) -> u64 {
        let texts = self.dirs.iter().flat_map(|dir| ["memory.events", "memory.oom_control"].map(|file| dir.join(file)));
        let counts = texts.filter_map(|file| {
            let text = fs::read_to_string(file).ok()?;
            text.lines().find_map(|line| line.strip_prefix("oom_kill "))?.trim().parse::<u64>().ok()
        });
        counts.sum()
    }

    /// Removes it. A group with processes stays.
    ///
    /// # Errors
    /// Where one is still in it.
    pub fn remove(&self) -> io::Result<()> {
        for dir in &self.dirs {
            match fs::remove_dir(dir) {
                Err(cause) if cause.kind() != io::ErrorKind::NotFound => return Err(cause),
                _ => {}
            }
        }
        Ok(())
    }
}

/// Moves this process into a group.
pub(crate) fn join(dirs: &[PathBuf]) -> io::Result<()> {
    if dirs.is_empty() {
        return Err(io::Error::other("none is known"));
    }
    for dir in dirs {
        fs::write(dir.join("cgroup.procs"), "0")?;
    }
    Ok(())
}

fn make(dir: &Path) -> io::Result<()> {
    match fs::create_dir(dir) {
        Err(cause) if cause.kind() != io::ErrorKind::AlreadyExists => {
            Err(io::Error::new(cause.kind(), format!("{}: {cause}", dir.display())))
        }
        _ => Ok(()),
    }
}

/// A mounted hierarchy: what of it is mounted, and where.
struct Mounted<'a> {
    of: &'a str,
    at: &'a str,
}

fn mounted<'a>(mounts: &'a str, kind: &str, has: impl Fn(&str) -> bool) -> Option<Mounted<'a>> {
    mounts.lines().find_map(|line| {
        let (left, right) = line.split_once(" - ")?;
        let mut right = right.split(' ');
        let found = right.next()? == kind && has(right.nth(1)?);
        let mut left = left.split(' ').skip(3);
        found.then_some(Mounted { of: left.next()?, at: left.next()? })
    })
}

/// Where a group is in the file system: in a container a part of the tree is mounted, and paths are from its own root.
fn below(mount: &Mounted<'_>, path: &str) -> PathBuf {
    let rest = path.strip_prefix(mount.of.trim_end_matches('/')).unwrap_or(path);
    Path::new(mount.at).join(rest.trim_start_matches('/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    const V1: &str = "32 31 0:29 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu,cpuacct\n\
                      35 31 0:32 /docker/x /sys/fs/cgroup/memory rw shared:3 - cgroup cgroup rw,memory\n\
                      39 31 0:36 / /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids\n\
                      41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";

    #[test]
    fn the_trees_with_the_controllers_are_taken() {
        let own = "8:pids:/a\n4:memory:/docker/x/b\n1:cpu,cpuacct:/\n0::/\n";
        let found = Hierarchy::find(V1, own).unwrap();
        let Hierarchy::Split { memory, pids, cpu } = found else { panic!("{found:?}") };
        assert_eq!(memory, Path::new("/sys/fs/cgroup/memory/b"));
        assert_eq!((pids, cpu), ("/sys/fs/cgroup/pids/a".into(), "/sys/fs/cgroup/cpu/".into()));
        let none = Hierarchy::find("1 2 0:3 / /nowhere rw - cgroup2 cgroup2 rw\n", "0::/x\n");
        assert_eq!(none, Err("/nowhere/x has no controller memory, pids, cpu".to_owned()));
        assert!(Hierarchy::find("", "").is_err());
    }

    #[test]
    fn a_unified_tree_gets_its_own_names_and_units() {
        let dir = std::env::temp_dir().join(format!("sandbox-cgroup-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join("cgroup.controllers"), "cpuset cpu io memory pids").unwrap();
        let mounts = format!("1 2 0:3 / {} rw - cgroup2 cgroup2 rw\n", dir.display());
        let found = Hierarchy::find(&mounts, "0::/\n").unwrap();
        found.prepare("sidereal").unwrap();
        let share = Share { memory: 1 << 30, pids: 9, cpu_weight: 50, cpu_ceiling: Some(1500) };
        let group = found.group("acme", &share).unwrap();
        let read = |file: &str| fs::read_to_string(dir.join("acme").join(file)).unwrap();
        assert_eq!((read("memory.max"), read("pids.max")), ((1u64 << 30).to_string(), "9".to_owned()));
        assert_eq!((read("cpu.weight"), read("cpu.max")), ("50".to_owned(), "150000 100000".to_owned()));
        fs::write(dir.join("acme/memory.events"), "low 0\noom 4\noom_kill 3\n").unwrap();
        assert_eq!((group.dirs.len(), group.out_of_memory()), (1, 3));
        fs::remove_dir_all(&dir).unwrap();
    }
}
