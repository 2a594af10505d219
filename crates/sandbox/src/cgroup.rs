//! A tenant's share of memory, processes and processor time, in whichever hierarchy of cgroups the machine has.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

#[cfg(test)]
mod fake;
mod find;
mod group;

use find::{below, home, mounted};
pub use group::Group;

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

/// Weight of the node beside all groups together: everybody waits for it.
const NODE: u64 = 1000;
/// How often a group is looked at again for processes that must move out of it.
const ROUNDS: usize = 100;
/// Where the processes of a group are that has others below it, in one tree.
const SEAT: &str = "own";

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
        let own = home(below(&mount, path));
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
            let leaf = own.join(find::leaf(name));
            make(&leaf)?;
            // What one of them starts meanwhile begins where they were.
            for _ in 0..ROUNDS {
                let there = fs::read_to_string(own.join("cgroup.procs"))?;
                if there.is_empty() {
                    break;
                }
                for pid in there.lines() {
                    put(&leaf, pid)?;
                }
            }
        }
        fs::write(own.join("cgroup.subtree_control"), "+memory +pids")
    }

    /// Makes a group, or finds it, and limits it.
    ///
    /// # Errors
    /// Where the kernel or the rights of the user refuse.
    pub fn group(&self, name: &str, share: &Share) -> io::Result<Group> {
        let dirs = self.make(name, share)?;
        let group = Group { seats: dirs.clone(), dirs };
        group.limit(share)?;
        Ok(group)
    }

    /// As [`Hierarchy::group`], one that can have others below it ([`Hierarchy::group_below`]): what it may use, it and those may use
    /// together.
    ///
    /// # Errors
    /// Where the kernel or the rights of the user refuse.
    pub fn group_of_groups(&self, name: &str, share: &Share) -> io::Result<Group> {
        let dirs = self.make(name, share)?;
        let seats = match (self, dirs.as_slice()) {
            (Self::Unified(_), [own]) => {
                // Those below share the processor as if they were in it.
                fs::write(own.join("cgroup.subtree_control"), "+memory +pids")?;
                let seat = own.join(SEAT);
                make(&seat)?;
                vec![seat]
            }
            (_, [memory, ..]) => {
                // With an older kernel a group is counted in the one above only where that says so before it has any.
                let counts = memory.join("memory.use_hierarchy");
                if fs::read_to_string(&counts).is_ok_and(|text| text.trim() == "0") {
                    fs::write(counts, "1")?;
                }
                dirs.clone()
            }
            (_, []) => return Err(io::Error::other("none is known")),
        };
        let group = Group { dirs, seats };
        group.limit(share)?;
        Ok(group)
    }

    /// Makes a group below another one, or finds it, and limits it: its processes may use what both let them. The processor they
    /// share with those of the group above, in the part that this has.
    ///
    /// # Errors
    /// Where the kernel or the rights of the user refuse.
    pub fn group_below(&self, above: &Group, name: &str, memory: Option<u64>, pids: u64) -> io::Result<Group> {
        let (count, shared) = match self {
            Self::Unified(_) => (1, None),
            Self::Split { .. } => (2, above.dirs.get(2)),
        };
        let dirs: Vec<PathBuf> = above.dirs.iter().take(count).map(|dir| dir.join(name)).collect();
        for dir in &dirs {
            make(dir)?;
        }
        let group = Group { seats: dirs.iter().chain(shared).cloned().collect(), dirs };
        group.limit(&Share { memory, pids, cpu: None })?;
        Ok(group)
    }

    /// The folders of a group of that name.
    fn make(&self, name: &str, share: &Share) -> io::Result<Vec<PathBuf>> {
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
        Ok(dirs)
    }

    /// From now on groups have a part of the processor, and this process, prepared by that name, has [`NODE`].
    ///
    /// # Errors
    /// Where the kernel or the rights of the user refuse.
    pub fn share_cpu(&self, name: &str) -> io::Result<()> {
        // In the older hierarchy its threads stand beside the groups, each as one of them.
        let Self::Unified(own) = self else { return Ok(()) };
        fs::write(own.join("cgroup.subtree_control"), "+cpu")?;
        let leaf = own.join(find::leaf(name));
        if leaf.exists() { fs::write(leaf.join("cpu.weight"), NODE.to_string()) } else { Ok(()) }
    }

    /// The groups that are there and whose names begin so.
    pub fn below(&self, prefix: &str) -> Vec<Group> {
        let named = |root: &PathBuf| {
            let entries = fs::read_dir(root).into_iter().flatten().flatten();
            let wanted =
                entries.filter(|entry| entry.file_name().to_str().is_some_and(|name| name.starts_with(prefix)));
            wanted.map(|entry| Group { dirs: vec![entry.path()], seats: vec![entry.path()] }).collect::<Vec<_>>()
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

/// Moves a process into a group, unless it has ended in the meantime.
fn put(dir: &Path, pid: &str) -> io::Result<()> {
    match fs::write(dir.join("cgroup.procs"), pid) {
        Err(cause) if cause.raw_os_error() == Some(libc::ESRCH) => Ok(()),
        moved => moved,
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
}
