//! Where a task's own process runs, on machines whose control groups are of version 2. There a group bounds memory and processor at
//! once, and its memory is that of the job: the host alone is in it. This process holds a component while that is pulled and compiled,
//! and all that its clients send, and would take of the memory that the job was promised for its component. So it stays beside the
//! group, and keeps to the group's cores by itself, behind what the machine does for everybody. Its share of the processor, and its
//! memory, no group bounds (`docs/nomad.md`).

use std::path::{Path, PathBuf};
use std::time::Duration;

use api::task::Groups;
use rustix::process::{Pid, setpriority_process};
use rustix::thread::{CpuSet, sched_setaffinity};

/// Which cores those in a group may run on, whoever says so: the group itself or one that it is in. Version 2 alone has it so.
const CORES: &str = "cpuset.cpus.effective";
/// As a host: the client's own programs go first. Those who answer clients take niceness 0 back where they may, as everywhere.
const NICE: i32 = 5;
/// How often it is looked whether the group has other cores: agents give those that tasks share to one alone, and back.
pub const EVERY: Duration = Duration::from_secs(10);

/// What this process does about one group of the task.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Seat {
    /// It is in it, with whatever it starts.
    In,
    /// It is not, and nothing in the group is about it.
    Out,
    /// It is not, and keeps to its cores.
    Beside,
}

fn seat(dir: &Path) -> Seat {
    let has = |file: &str| dir.join(file).exists();
    match (has("memory.limit_in_bytes"), has("memory.max")) {
        (false, false) => Seat::In,
        // One group for each thing that is bounded: the others are joined.
        (true, _) => Seat::Out,
        (false, true) => Seat::Beside,
    }
}

/// The groups this process joins.
pub fn joined(groups: &Groups) -> impl Iterator<Item = &PathBuf> {
    groups.join.iter().filter(|dir| seat(dir) == Seat::In)
}

/// The group that it keeps to the cores of.
pub fn beside(groups: &Groups) -> Option<&PathBuf> {
    groups.join.iter().find(|dir| seat(dir) == Seat::Beside)
}

/// Takes its place, with whatever it starts from now on; to be called while it has one thread.
pub fn sit(group: &Path) {
    if let Err(cause) = setpriority_process(None, NICE) {
        tracing::debug!(%cause, "the task's process is before others");
    }
    if let Some(cores) = cores(group) {
        keep(None, &cores);
    }
}

/// Follows the cores of the group, for as long as this process runs.
pub async fn follow(group: PathBuf, every: Duration) {
    let mut known: Option<Vec<usize>> = None;
    loop {
        tokio::time::sleep(every).await;
        let (group, before) = (group.clone(), known.clone());
        let looked = tokio::task::spawn_blocking(move || {
            let now = cores(&group)?;
            if before.as_ref() != Some(&now) {
                // Those in the group as well: they have begun with the cores of then, and the kernel only takes some away.
                threads(&group).into_iter().for_each(|thread| keep(Some(thread), &now));
            }
            Some(now)
        });
        if let Ok(Some(now)) = looked.await {
            known = Some(now);
        }
    }
}

/// All threads of this process, and of those in the group.
fn threads(group: &Path) -> Vec<Pid> {
    let members = std::fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
    let processes = members.split_whitespace().chain(["self"]);
    let threads =
        processes.flat_map(|process| std::fs::read_dir(format!("/proc/{process}/task")).into_iter().flatten());
    threads.filter_map(|entry| Pid::from_raw(entry.ok()?.file_name().to_str()?.parse().ok()?)).collect()
}

/// Keeps a thread, this one where none is named, to these cores.
fn keep(thread: Option<Pid>, cores: &[usize]) {
    let mut set = CpuSet::new();
    cores.iter().filter(|core| **core < CpuSet::MAX_CPU).for_each(|core| set.set(*core));
    if let Err(cause) = sched_setaffinity(thread, &set) {
        tracing::debug!(%cause, ?thread, "a thread of the task is not kept to the task's cores");
    }
}

/// The cores of a group; `None` where it says nothing of them.
fn cores(group: &Path) -> Option<Vec<usize>> {
    listed(&std::fs::read_to_string(group.join(CORES)).ok()?)
}

/// Numbers as the kernel lists them: `0-3,7`. `None` where there are none, or something else.
fn listed(text: &str) -> Option<Vec<usize>> {
    let mut all = Vec::new();
    for part in text.trim().split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (usize, usize) = (first.parse().ok()?, last.parse().ok()?);
        all.extend(first..=last.min(CpuSet::MAX_CPU));
    }
    Some(all).filter(|all| !all.is_empty())
}

#[cfg(test)]
mod tests {
    use rustix::thread::sched_getaffinity;

    use super::*;

    #[test]
    fn cores_are_read_as_the_kernel_lists_them() {
        assert_eq!(listed("0-3,7\n"), Some(vec![0, 1, 2, 3, 7]));
        assert_eq!(listed("5\n"), Some(vec![5]));
        for odd in ["", "\n", "a", "3-", "1,,2", "0-3,x", "3-1"] {
            assert_eq!(listed(odd), None, "{odd:?}");
        }
    }

    /// In no group whose memory is the job's: with version 1 there are others, which are joined; with version 2 there is none.
    #[test]
    fn what_the_platform_does_is_not_in_the_memory_of_the_job() {
        let dir = tempfile::tempdir().unwrap();
        let group = |name: &str, files: &[&str]| {
            let group = dir.path().join(name);
            std::fs::create_dir(&group).unwrap();
            files.iter().for_each(|file| std::fs::write(group.join(file), "0-1\n").unwrap());
            group
        };
        let memory = group("memory", &["memory.limit_in_bytes", "cgroup.procs"]);
        let cpu = group("cpu", &["cpu.shares", "cgroup.procs"]);
        let cpuset = group("cpuset", &["cpuset.cpus", "cpuset.effective_cpus", "cgroup.procs"]);
        let one = Groups { join: vec![memory, cpu.clone(), cpuset.clone()], oom: None };
        assert_eq!((joined(&one).collect::<Vec<_>>(), beside(&one)), (vec![&cpu, &cpuset], None));
        let scope = group("scope", &["memory.max", "cpu.weight", CORES, "cgroup.procs"]);
        let two = Groups { join: vec![scope.clone()], oom: None };
        assert_eq!((joined(&two).count(), beside(&two)), (0, Some(&scope)));
        assert_eq!(cores(&scope), Some(vec![0, 1]));
        // One of ours has no cores of its own.
        let ours = group("ours", &["memory.max", "cpu.weight", "cgroup.procs"]);
        assert_eq!(cores(&ours), None);
        // Without a bound of memory there is nothing to be kept out of.
        let share = group("share", &["cpu.weight", CORES, "cgroup.procs"]);
        assert_eq!(joined(&Groups { join: vec![share.clone()], oom: None }).collect::<Vec<_>>(), [&share]);
    }

    #[test]
    fn a_thread_is_kept_to_the_cores_of_the_group_and_so_is_what_it_starts() {
        let dir = tempfile::tempdir().unwrap();
        std::thread::spawn(move || {
            let before = sched_getaffinity(None).unwrap();
            let core = (0..CpuSet::MAX_CPU).find(|core| before.is_set(*core)).unwrap();
            std::fs::write(dir.path().join(CORES), format!("{core}\n")).unwrap();
            sit(dir.path());
            let kept = std::thread::spawn(|| sched_getaffinity(None).unwrap()).join().unwrap();
            assert_eq!((kept.count(), kept.is_set(core)), (1, true));
        })
        .join()
        .unwrap();
    }

    /// Cores that the agent takes from, or gives back to, the tasks that share them.
    #[tokio::test]
    async fn the_cores_of_the_group_are_followed() {
        let dir = tempfile::tempdir().unwrap();
        let set = sched_getaffinity(None).unwrap();
        let all: Vec<usize> = (0..CpuSet::MAX_CPU).filter(|core| set.is_set(*core)).collect();
        let mut child = std::process::Command::new("sleep").arg("600").spawn().unwrap();
        let pid = Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap();
        std::fs::write(dir.path().join("cgroup.procs"), format!("{}\n", child.id())).unwrap();
        keep(Some(pid), &all[..1]);
        // All that this process has already: the other tests are in it too.
        let list: Vec<String> = all.iter().map(ToString::to_string).collect();
        std::fs::write(dir.path().join(CORES), list.join(",")).unwrap();
        let follows = tokio::spawn(follow(dir.path().to_owned(), Duration::from_millis(5)));
        let until = std::time::Instant::now() + Duration::from_secs(60);
        while sched_getaffinity(Some(pid)).unwrap().count() != set.count() {
            assert!(std::time::Instant::now() < until, "they are never followed");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        follows.abort();
        drop((child.kill(), child.wait()));
    }
}
