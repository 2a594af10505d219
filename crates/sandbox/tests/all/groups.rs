//! Control groups as the kernel of this machine has them: what it does where a group is full, has less weight, or is prepared among
//! processes of others.

use std::fs;
use std::os::unix::process::ExitStatusExt as _;
use std::process::Command;
use std::time::{Duration, Instant};

use sandbox::cgroup::{Cpu, Group, Hierarchy, Share};
use sandbox::{Layer, Spec};

use crate::stage::start;
use crate::{not_here, not_run};

pub(crate) fn memory(spec: &Spec) {
    if spec.waived.contains(&Layer::Cgroup) {
        return not_run("the memory limit of a tenant: there is no cgroup here");
    }
    let group = Group { dirs: spec.cgroups.clone(), seats: spec.cgroups.clone() };
    let before = group.out_of_memory();
    let mut confined = start(spec, "swell", &[]);
    assert_eq!(confined.ended().signal(), Some(9), "{}", confined.words());
    assert!(group.out_of_memory() > before, "the group tells why");
    group.remove().unwrap();
}

/// A group that may have more than the one it is in.
pub(crate) fn below(spec: &Spec) {
    if spec.waived.contains(&Layer::Cgroup) {
        return not_run("that a group counts in the one above it: there is no cgroup here");
    }
    let found = Hierarchy::probe().unwrap();
    let share = Share { memory: Some(128 << 20), pids: 64, cpu: None };
    let above = found.group_of_groups(&format!("sidereal-sandbox-test.{}-above", std::process::id()), &share).unwrap();
    let group = found.group_below(&above, "below", Some(1 << 30), 32).unwrap();
    let mut confined = start(&Spec { cgroups: group.seats.clone(), ..spec.clone() }, "swell", &[]);
    assert_eq!(confined.ended().signal(), Some(9), "{}", confined.words());
    assert!(group.out_of_memory() > 0, "the group tells why");
    assert_eq!(above.out_of_memory(), 0, "those beside it were not ended");
    above.remove().unwrap();
}

/// By the kernel's own files.
pub(crate) fn aside(spec: &Spec) {
    if spec.waived.contains(&Layer::Cgroup) {
        return not_run("that a group is set aside: there is no cgroup here");
    }
    let found = Hierarchy::probe().unwrap();
    if let Err(cause) = found.share_cpu("sidereal-sandbox-test") {
        return not_here(&format!(
            "that a group is set aside: its tree has no part of the processor to give ({cause})"
        ));
    }
    let cpu = Cpu { weight: 40, ceiling: None };
    let share = Share { memory: None, pids: 64, cpu: Some(cpu) };
    let group = found.group(&format!("sidereal-sandbox-test.{}-cpu", std::process::id()), &share).unwrap();
    let dir = group.dirs.last().unwrap();
    let read = |file: &str| fs::read_to_string(dir.join(file)).ok().and_then(|text| text.trim().parse::<u64>().ok());
    let weight = || read("cpu.weight").or_else(|| read("cpu.shares")).unwrap();
    let usual = weight();
    for _ in 0..2 {
        group.stand(true, &cpu).unwrap();
        assert!((2..usual / 2).contains(&weight()), "{} of {usual}", weight());
        group.stand(false, &cpu).unwrap();
        assert_eq!(weight(), usual);
    }
    group.remove().unwrap();
}

/// A group is prepared where others start processes all the time, as in a session of somebody who works there.
pub(crate) fn busy(_: &Spec) {
    let Ok(Hierarchy::Unified(own)) = Hierarchy::probe() else {
        return not_here("a node among processes that come and go: there are no cgroups of version 2 here");
    };
    for number in 0..20 {
        let group = own.join(format!("sidereal-sandbox-test.{}-busy-{number}", std::process::id()));
        if let Err(cause) = fs::create_dir(&group) {
            return not_here(&format!("a node among processes that come and go: {}: {cause}", group.display()));
        }
        let script = "echo $$ >\"$0/cgroup.procs\" && while :; do /bin/true; done";
        let mut shells = [0; 2].map(|_| Command::new("sh").args(["-c", script]).arg(&group).spawn().unwrap());
        let begun = Instant::now();
        let there = |shell: &std::process::Child| {
            let processes = fs::read_to_string(group.join("cgroup.procs")).unwrap();
            processes.lines().any(|pid| pid == shell.id().to_string())
        };
        while !shells.iter().all(there) {
            assert!(begun.elapsed() < Duration::from_secs(60), "nothing is started");
        }
        let prepared = Hierarchy::Unified(group.clone()).prepare("sidereal-busy");
        for shell in &mut shells {
            shell.kill().unwrap();
            shell.wait().unwrap();
        }
        let begun = Instant::now();
        for dir in [group.join("sidereal-busy.node"), group] {
            // Not before what the shells started last has ended as well.
            while dir.exists() && fs::remove_dir(&dir).is_err() {
                assert!(begun.elapsed() < Duration::from_secs(60), "{} is not empty", dir.display());
            }
        }
        prepared.unwrap();
    }
}
