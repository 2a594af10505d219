//! The control groups that bound a task: memory and CPU of its `resources` block. On a machine with cgroups of version 2 the
//! agent (1.7 and newer) has made a group for the task, which is used; else one is made, and removed with the task.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::Duration;

use api::task::Groups;
use plugin::Failure;
use serde::{Deserialize, Serialize};

/// Where the kernel shows control groups.
const ROOT: &str = "/sys/fs/cgroup";
/// Ours, below every root.
const OURS: &str = "sidereal-nomad";
/// Where agents from 1.7 on make the groups of tasks that share their cores, on machines with version 2.
const SHARE: &str = "nomad.slice/share.slice";
/// What a group is called by which somebody finds out whether there can be any, before the number of its process.
const PROBE: &str = "probe-";

/// What bounds memory that was moved to a disk.
const SWAP: [&str; 2] = ["memory.memsw.limit_in_bytes", "memory.swap.max"];

/// How long processes may take to leave a group.
const LEAVING: Duration = Duration::from_secs(5);

/// What a task may use; nothing is bounded that is absent.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Bounds {
    /// Memory, bytes.
    pub memory: Option<u64>,
    /// Share of the processor, in MHz as jobs say it; 2 is the least the kernel takes.
    pub cpu_shares: Option<u64>,
    /// The group that the agent made for the task.
    pub given: Option<PathBuf>,
}

/// The groups of a task, and which of them are to be removed with it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Made {
    /// What the task is told.
    pub groups: Groups,
    made: Vec<PathBuf>,
}

/// One group: its folder, whether it is ours to make, and what is written into it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Plan {
    dir: PathBuf,
    ours: bool,
    settings: Vec<(&'static str, String)>,
    oom: Option<&'static str>,
}

/// Which control groups the machine has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Version {
    One,
    Two,
}

fn version(root: &Path) -> Option<Version> {
    if root.join("cgroup.controllers").is_file() {
        return Some(Version::Two);
    }
    (root.join("memory").is_dir() && root.join("cpu").is_dir()).then_some(Version::One)
}

fn plan(version: Version, root: &Path, name: &str, bounds: &Bounds) -> Vec<Plan> {
    match version {
        Version::One => {
            let group = |controller: &str| root.join(controller).join(OURS).join(name);
            let memory = bounds.memory.map(|bytes| Plan {
                dir: group("memory"),
                ours: true,
                settings: vec![
                    ("memory.limit_in_bytes", bytes.to_string()),
                    // Not above the other one, and so after it.
                    ("memory.memsw.limit_in_bytes", bytes.to_string()),
                ],
                oom: Some("memory.oom_control"),
            });
            let cpu = bounds.cpu_shares.map(|shares| Plan {
                dir: group("cpu"),
                ours: true,
                settings: vec![("cpu.shares", shares.max(2).to_string())],
                oom: None,
            });
            // Which cores are the task's, or everybody's, the agent has settled.
            let given = bounds.given.clone();
            let cores = given.map(|dir| Plan { dir, ours: false, settings: Vec::new(), oom: None });
            memory.into_iter().chain(cpu).chain(cores).collect()
        }
        Version::Two => {
            let given = bounds.given.clone();
            let mut settings = Vec::new();
            if let Some(bytes) = bounds.memory {
                settings.extend([("memory.max", bytes.to_string()), ("memory.swap.max", "0".to_owned())]);
            }
            if let Some(shares) = bounds.cpu_shares {
                settings.push(("cpu.weight", weight(shares).to_string()));
            }
            if settings.is_empty() && given.is_none() {
                return Vec::new();
            }
            let ours = given.is_none();
            let dir = given.unwrap_or_else(|| root.join(OURS).join(name));
            vec![Plan { dir, ours, settings, oom: bounds.memory.map(|_| "memory.events") }]
        }
    }
}

/// The group that the agent names has the task's cores: a task without it would run on all of them.
fn is_given(version: Version, root: &Path, dir: &Path) -> io::Result<()> {
    let sign = match version {
        Version::One => "cpuset.cpus",
        Version::Two => "cgroup.procs",
    };
    if dir.starts_with(root) && dir.join(sign).is_file() {
        return Ok(());
    }
    let (kind, what) = match dir.try_exists() {
        // It may be on its way.
        Ok(false) => (io::ErrorKind::ResourceBusy, "it is not there"),
        _ => (io::ErrorKind::Unsupported, "it is none"),
    };
    let text = format!("the agent names {} as the group of the task's cores, and {what}", dir.display());
    Err(io::Error::new(kind, text))
}

/// Shares of version 1 (2 to 262144) as the weight of version 2 (1 to 10000), as the kernel's documents relate them.
fn weight(shares: u64) -> u64 {
    1 + (shares.clamp(2, 262_144) - 2) * 9_999 / 262_142
}

impl Made {
    /// Makes what the bounds need.
    ///
    /// # Errors
    /// When a bound cannot be enforced here; nothing is left of it then.
    pub fn new(name: &str, bounds: &Bounds) -> io::Result<Self> {
        Self::below(Path::new(ROOT), name, bounds)
    }

    /// What [`Made::new`] would make: written down before it does, it can be removed by whoever comes later.
    pub fn intended(name: &str, bounds: &Bounds) -> Self {
        let root = Path::new(ROOT);
        let plans = version(root).map(|version| plan(version, root, name, bounds)).unwrap_or_default();
        let made = plans.into_iter().filter(|plan| plan.ours).map(|plan| plan.dir).collect();
        Self { groups: Groups::default(), made }
    }

    fn below(root: &Path, name: &str, bounds: &Bounds) -> io::Result<Self> {
        let mut made = Self::default();
        if *bounds == Bounds::default() {
            return Ok(made);
        }
        let version = version(root)
            .ok_or_else(|| io::Error::new(io::ErrorKind::Unsupported, "this machine shows no control groups"))?;
        let done = made.apply(version, root, plan(version, root, name, bounds));
        if done.is_err() {
            made.remove();
        }
        done.map(|()| made)
    }

    fn apply(&mut self, version: Version, root: &Path, plans: Vec<Plan>) -> io::Result<()> {
        let at = |path: &Path, cause: io::Error| io::Error::new(cause.kind(), format!("{}: {cause}", path.display()));
        for Plan { dir, ours, settings, oom } in plans {
            if ours {
                if version == Version::Two {
                    // Children have only the controllers that their parents hand on.
                    std::fs::create_dir_all(root.join(OURS)).map_err(|cause| at(root, cause))?;
                    for parent in [root.to_owned(), root.join(OURS)] {
                        let file = parent.join("cgroup.subtree_control");
                        std::fs::write(&file, "+memory +cpu").map_err(|cause| at(&file, cause))?;
                    }
                }
                std::fs::create_dir_all(&dir).map_err(|cause| at(&dir, cause))?;
                self.made.push(dir.clone());
            } else {
                is_given(version, root, &dir)?;
            }
            for (name, value) in settings {
                let file = dir.join(name);
                // A kernel without swap accounting has nothing to bound there.
                if SWAP.contains(&name) && !file.exists() {
                    continue;
                }
                std::fs::write(&file, value).map_err(|cause| match cause.kind() {
                    // That is no kernel without the setting.
                    io::ErrorKind::NotFound if ours && !dir.exists() => {
                        io::Error::new(io::ErrorKind::ResourceBusy, format!("{} was removed meanwhile", dir.display()))
                    }
                    _ => at(&file, cause),
                })?;
            }
            if let Some(oom) = oom {
                self.groups.oom = Some(dir.join(oom));
            }
            self.groups.join.push(dir);
        }
        Ok(())
    }

    /// Removes what was made and is empty; whether nothing is left.
    fn remove(&self) -> bool {
        let gone = |dir: &Path| match std::fs::remove_dir(dir) {
            Ok(()) => true,
            Err(cause) => cause.kind() == io::ErrorKind::NotFound,
        };
        self.made.iter().filter(|dir| !gone(dir)).count() == 0
    }

    /// Removes what was made. A process that was killed leaves its groups a moment after it is gone for everybody else.
    ///
    /// # Errors
    /// Recoverable: which of them stay, because something is in them still.
    pub async fn clear(&self) -> Result<(), Failure> {
        let until = tokio::time::Instant::now() + LEAVING;
        while !self.remove() {
            if tokio::time::Instant::now() > until {
                let left: Vec<String> =
                    self.made.iter().filter(|dir| dir.exists()).map(|dir| dir.display().to_string()).collect();
                return Err(Failure::recoverable(format!(
                    "control groups of the task are not empty and stay: {}; what is in them (`cgroup.procs`) has to end",
                    left.join(", ")
                )));
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Ok(())
    }
}

/// Whether bounds can be enforced on this machine by this user.
pub fn available() -> bool {
    tried().is_ok()
}

/// Tries whether bounds can be enforced on this machine by this user. Two that ask at once make two groups.
///
/// # Errors
/// Why they cannot.
pub fn tried() -> io::Result<()> {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let root = Path::new(ROOT);
    forget_probes(root, &|pid| matches!(Path::new("/proc").join(pid).try_exists(), Ok(false)));
    let probe = Bounds { memory: Some(1 << 30), cpu_shares: Some(100), given: None };
    let name = format!("{PROBE}{}-{}", std::process::id(), NEXT.fetch_add(1, Relaxed));
    match Made::new(&name, &probe) {
        Ok(made) if made.remove() => Ok(()),
        Ok(_) => Err(io::Error::new(io::ErrorKind::ResourceBusy, format!("the group {name} cannot be removed again"))),
        // Somebody else makes them, and they are this user's to write to.
        Err(_) if gives(root) => Ok(()),
        Err(cause) => Err(cause),
    }
}

/// Whether the agent makes the groups of tasks, and bounds can be set in them.
fn gives(root: &Path) -> bool {
    let share = root.join(SHARE);
    let handed_on = std::fs::read_to_string(share.join("cgroup.subtree_control")).unwrap_or_default();
    ["memory", "cpu"].iter().all(|name| handed_on.split_whitespace().any(|known| known == *name))
        && rustix::fs::access(&share, rustix::fs::Access::WRITE_OK).is_ok()
}

/// Why no task can be bounded, and what to do about it.
pub fn unenforced(cause: &io::Error) -> String {
    format!(
        "the `resources` block cannot be enforced on this machine: {cause}; run the agent as root with control groups, or set \
         `enforce_resources = false` in the plugin's configuration"
    )
}

/// Removes the groups of those who were killed while they asked.
fn forget_probes(root: &Path, is_gone: &dyn Fn(&str) -> bool) {
    for ours in ["memory", "cpu", ""].map(|controller| root.join(controller).join(OURS)) {
        for entry in std::fs::read_dir(ours).into_iter().flatten().flatten() {
            let name = entry.file_name();
            let asked = name.to_str().and_then(|name| name.strip_prefix(PROBE)?.split('-').next());
            if asked.is_some_and(is_gone)
                && let Err(cause) = std::fs::remove_dir(entry.path())
            {
                tracing::debug!(%cause, "a control group that somebody tried stays");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUNDS: Bounds = Bounds { memory: Some(64 << 20), cpu_shares: Some(200), given: None };

    #[test]
    fn each_version_has_its_files() {
        let root = Path::new("/r");
        let [memory, cpu] = &plan(Version::One, root, "t", &BOUNDS)[..] else { panic!("two groups") };
        assert_eq!(memory.dir, Path::new("/r/memory/sidereal-nomad/t"));
        let bytes = "67108864".to_owned();
        let both = [("memory.limit_in_bytes", bytes.clone()), ("memory.memsw.limit_in_bytes", bytes)];
        assert_eq!(memory.settings, both);
        assert_eq!(cpu.settings, [("cpu.shares", "200".to_owned())]);
        let given = Bounds { given: Some("/r/nomad.slice/share.slice/a.web.scope".into()), ..BOUNDS };
        let [one] = &plan(Version::Two, root, "t", &given)[..] else { panic!("one group") };
        assert!(!one.ours && one.dir.ends_with("a.web.scope") && one.oom == Some("memory.events"));
        let [one] = &plan(Version::Two, root, "t", &BOUNDS)[..] else { panic!("one group") };
        assert!(one.ours && one.dir == Path::new("/r/sidereal-nomad/t"));
        assert_eq!((weight(2), weight(1024), weight(262_144)), (1, 39, 10_000));
    }

    #[test]
    fn the_cores_that_the_agent_gives_are_joined_and_not_made() {
        let dir = tempfile::tempdir().unwrap();
        let cores = dir.path().join("cpuset/nomad/shared");
        for controller in ["memory", "cpu"] {
            std::fs::create_dir_all(dir.path().join(controller)).unwrap();
        }
        let bounded = |given: &Path| {
            let bounds = Bounds { given: Some(given.to_owned()), ..BOUNDS };
            Made::below(dir.path(), "t", &bounds).map(|made| made.groups.join).map_err(|cause| cause.kind())
        };
        assert_eq!(bounded(&cores), Err(io::ErrorKind::ResourceBusy), "there is none yet");
        std::fs::create_dir_all(&cores).unwrap();
        std::fs::write(cores.join("cpuset.cpus"), "0").unwrap();
        let joined = bounded(&cores).unwrap();
        assert!(joined.len() == 3 && joined.last() == Some(&cores) && cores.exists(), "{joined:?}");
        // Without them it would run on all cores.
        let elsewhere = tempfile::tempdir().unwrap();
        std::fs::write(elsewhere.path().join("cpuset.cpus"), "0").unwrap();
        for none in [dir.path().join("memory"), elsewhere.path().to_owned()] {
            assert_eq!(bounded(&none), Err(io::ErrorKind::Unsupported), "{none:?}");
        }
    }

    /// What is written where, as the kernel's documents have it: in the group that the agent made, else in one of our own, to whose
    /// parents the controllers are handed on.
    #[test]
    fn both_kinds_of_groups_of_version_2_get_their_bounds() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        std::fs::write(root.join("cgroup.controllers"), "cpu memory").unwrap();
        let read = |path: &str| std::fs::read_to_string(root.join(path)).unwrap();
        let made = Made::below(root, "t", &BOUNDS).unwrap();
        let own = root.join("sidereal-nomad/t");
        assert_eq!((made.groups.join.as_slice(), made.made.as_slice()), (&[own.clone()][..], &[own.clone()][..]));
        assert_eq!(made.groups.oom, Some(own.join("memory.events")));
        for parent in ["", "sidereal-nomad/"] {
            assert_eq!(read(&format!("{parent}cgroup.subtree_control")), "+memory +cpu");
        }
        assert_eq!(read("sidereal-nomad/t/memory.max"), "67108864");
        assert_eq!(read("sidereal-nomad/t/cpu.weight"), weight(200).to_string());
        assert!(!own.join("memory.swap.max").exists(), "a kernel without swap has nothing to bound there");
        // Of all that is counted there, processes that were killed.
        std::fs::write(own.join("memory.events"), "low 0\nmax 9\noom 3\noom_kill 2\noom_group_kill 1\n").unwrap();
        assert_eq!(made.groups.killed(), 2);

        let given = root.join("nomad.slice/share.slice/a.web.scope");
        std::fs::create_dir_all(&given).unwrap();
        let bounds = Bounds { given: Some(given.clone()), ..BOUNDS };
        assert!(Made::below(root, "u", &bounds).is_err(), "it is no group");
        for (file, text) in [("cgroup.procs", ""), ("memory.swap.max", "max")] {
            std::fs::write(given.join(file), text).unwrap();
        }
        let made = Made::below(root, "u", &bounds).unwrap();
        assert_eq!(
            (made.groups.join.as_slice(), made.made.len()),
            (&[given.clone()][..], 0),
            "it is the agent's to remove"
        );
        let has = |file: &str| std::fs::read_to_string(given.join(file)).unwrap();
        assert_eq!((has("memory.max"), has("memory.swap.max")), ("67108864".to_owned(), "0".to_owned()));
        // What would be left of either is known before it is made.
        assert_eq!(plan(Version::Two, root, "t", &BOUNDS)[0].dir, own);
    }

    /// Two streams of fingerprints of one plugin, or the threads of a test: neither removes the group of the other.
    #[test]
    fn whoever_asks_gets_the_same_answer() {
        let alone = available();
        let asks = || (0..200).all(|_| available() == alone);
        std::thread::scope(|scope| {
            let all: Vec<_> = (0..4).map(|_| scope.spawn(asks)).collect();
            assert!(all.into_iter().all(|asks| asks.join().unwrap()));
        });
    }

    /// Where the agent makes the groups, none of our own need be possible.
    #[test]
    fn groups_that_the_agent_makes_are_enough_where_they_bound() {
        let dir = tempfile::tempdir().unwrap();
        assert!(!gives(dir.path()), "it makes none");
        std::fs::create_dir_all(dir.path().join(SHARE)).unwrap();
        let hands_on = |names: &str| std::fs::write(dir.path().join(SHARE).join("cgroup.subtree_control"), names);
        hands_on("cpuset cpu io pids\n").unwrap();
        assert!(!gives(dir.path()), "no memory");
        hands_on("cpuset cpu io memory pids\n").unwrap();
        assert!(gives(dir.path()));
    }

    #[test]
    fn what_somebody_left_who_was_killed_while_he_asked_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let ours = dir.path().join("cpu").join(OURS);
        for name in ["probe-7-0", "probe-7", "probe-8-0", "0a1b"] {
            std::fs::create_dir_all(ours.join(name)).unwrap();
        }
        forget_probes(dir.path(), &|pid| pid == "7");
        let left = std::fs::read_dir(&ours).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut left: Vec<String> = left.collect();
        left.sort();
        assert_eq!(left, ["0a1b", "probe-8-0"]);
    }

    #[test]
    fn what_cannot_be_bounded_is_said_and_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        assert!(Made::below(dir.path(), "t", &BOUNDS).is_err(), "no control groups");
        assert_eq!(Made::below(dir.path(), "t", &Bounds::default()).unwrap(), Made::default());
        std::fs::create_dir_all(dir.path().join("memory/sidereal-nomad")).unwrap();
        // A file in the place of a controller.
        std::fs::create_dir_all(dir.path().join("cpu")).unwrap();
        std::fs::write(dir.path().join("cpu/sidereal-nomad"), "").unwrap();
        assert!(Made::below(dir.path(), "t", &BOUNDS).is_err());
    }
}
