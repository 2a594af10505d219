//! A tenant's share of memory, processes and processor time, in whichever hierarchy of cgroups the machine has.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// What a tenant's processes may use together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Share {
    /// Bytes of memory; what takes more is ended by the kernel. `None`: what is free.
    pub memory: Option<u64>,
    /// Processes and threads.
    pub pids: u64,
    /// Of the processor; `None`: they want it like everybody else's processes, one by one.
    pub cpu: Option<Cpu>,
}

/// A part of the processor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cpu {
    /// Where others want it too, against theirs; 100 is everybody's.
    pub weight: u64,
    /// Thousandths of one processor it never gets more than; `None`: what is free.
    pub ceiling: Option<u64>,
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
        fs::write(own.join("cgroup.subtree_control"), "+memory +pids")
    }

    /// Makes a group, or finds it, and limits it.
    ///
    /// # Errors
    /// Where the kernel or the rights of the user refuse.
    pub fn group(&self, name: &str, share: &Share) -> io::Result<Group> {
        let dirs = match self {
            Self::Unified(own) => vec![own.join(name)],
            Self::Split { memory, pids, cpu } => {
                let mut dirs = vec![memory.join(name), pids.join(name)];
                // A group in this tree is scheduled as one, also where its part is everybody's.
                dirs.extend(share.cpu.map(|_| cpu.join(name)));
                dirs
            }
        };
        for dir in &dirs {
            make(dir)?;
        }
        let group = Group { dirs };
        group.limit(share)?;
        Ok(group)
    }

    /// From now on groups have a part of the processor.
    ///
    /// # Errors
    /// Where the kernel or the rights of the user refuse.
    pub fn share_cpu(&self) -> io::Result<()> {
        match self {
            Self::Unified(own) => fs::write(own.join("cgroup.subtree_control"), "+cpu"),
            Self::Split { .. } => Ok(()),
        }
    }

    /// The groups that are there and whose names begin so.
    pub fn below(&self, prefix: &str) -> Vec<Group> {
        let named = |root: &PathBuf| {
            let entries = fs::read_dir(root).into_iter().flatten().flatten();
            let wanted =
                entries.filter(|entry| entry.file_name().to_str().is_some_and(|name| name.starts_with(prefix)));
            wanted.map(|entry| Group { dirs: vec![entry.path()] }).collect::<Vec<_>>()
        };
        self.roots().into_iter().flat_map(named).collect()
    }

    /// The folders that groups are made in.
    pub fn roots(&self) -> Vec<&PathBuf> {
        match self {
            Self::Unified(own) => vec![own],
            Self::Split { memory, pids, cpu } => vec![memory, pids, cpu],
        }
    }

    /// For people: which kind, and where.
    pub fn describe(&self) -> String {
        match self {
            Self::Unified(own) => format!("cgroup v2, below {}", own.display()),
            Self::Split { memory, .. } => format!("cgroup v1, memory below {}", memory.display()),
        }
    }
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
        let mut files = vec![(pids, share.pids.to_string()), (memory, number(share.memory))];
        if let Some(cpu) = &share.cpu {
            let quota = cpu.ceiling.map(|milli| (milli.saturating_mul(PERIOD_US) / 1000).max(1000));
            match self.dirs.as_slice() {
                [one] => {
                    files.push((one.join("cpu.weight"), cpu.weight.clamp(1, 10_000).to_string()));
                    files.push((one.join("cpu.max"), format!("{} {PERIOD_US}", number(quota))));
                }
                [_, _, dir] => {
                    let shares = (cpu.weight.saturating_mul(1024) / 100).clamp(2, 262_144);
                    files.push((dir.join("cpu.shares"), shares.to_string()));
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

    /// The processes in it, as this process knows them.
    pub fn processes(&self) -> Vec<i32> {
        let text = self.dirs.first().and_then(|dir| fs::read_to_string(dir.join("cgroup.procs")).ok());
        text.iter().flat_map(|text| text.lines()).filter_map(|line| line.parse().ok()).collect()
    }

    /// Brings its processes into every tree it is in: one of them may be younger than they are.
    ///
    /// # Errors
    /// Where the kernel or the rights of the user refuse.
    pub fn gather(&self) -> io::Result<()> {
        for dir in self.dirs.iter().skip(1) {
            for pid in self.processes() {
                match fs::write(dir.join("cgroup.procs"), pid.to_string()) {
                    // It has ended in the meantime.
                    Err(cause) if cause.raw_os_error() == Some(libc::ESRCH) => {}
                    moved => moved?,
                }
            }
        }
        Ok(())
    }

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
        let group = found
            .group(
                "acme",
                &Share { memory: Some(1 << 30), pids: 9, cpu: Some(Cpu { weight: 50, ceiling: Some(1500) }) },
            )
            .unwrap();
        let read = |file: &str| fs::read_to_string(dir.join("acme").join(file)).unwrap();
        assert_eq!((read("memory.max"), read("pids.max")), ((1u64 << 30).to_string(), "9".to_owned()));
        assert_eq!((read("cpu.weight"), read("cpu.max")), ("50".to_owned(), "150000 100000".to_owned()));
        group.limit(&Share { memory: None, pids: 9, cpu: None }).unwrap();
        assert_eq!(read("memory.max"), "max");
        assert_eq!((found.below("ac").len(), found.below("b").len()), (1, 0));
        fs::write(dir.join("acme/memory.events"), "low 0\noom 4\noom_kill 3\n").unwrap();
        assert_eq!((group.dirs.len(), group.out_of_memory()), (1, 3));
        fs::remove_dir_all(&dir).unwrap();
    }
}
