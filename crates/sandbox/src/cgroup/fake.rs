//! A unified tree (cgroup v2) of plain files, for machines whose kernel has its controllers elsewhere: where groups are made
//! and which names and units are written. That the kernel does what is written there is not seen here.

use std::fs;
use std::path::PathBuf;

use super::{Cpu, Hierarchy, Share};

/// The tree; gone when dropped.
struct Fake(PathBuf);

impl Fake {
    /// With what the kernel says of the group a node is started in.
    fn new(name: &str, controllers: &str, processes: &[u32]) -> Self {
        let fake = Self(std::env::temp_dir().join(format!("fake-cgroup-{name}-{}", std::process::id())));
        fs::create_dir_all(fake.0.join("service")).unwrap();
        fake.put("service/cgroup.controllers", controllers);
        fake.put("service/cgroup.type", "domain");
        fake.put("service/cgroup.procs", &processes.iter().map(|pid| format!("{pid}\n")).collect::<String>());
        fake
    }

    /// What the kernel puts there.
    fn put(&self, file: &str, text: &str) {
        fs::write(self.0.join(file), text).unwrap();
    }

    fn read(&self, file: &str) -> String {
        fs::read_to_string(self.0.join(file)).unwrap()
    }

    /// As a process finds it that is in this group.
    fn find(&self, group: &str) -> Result<Hierarchy, String> {
        let mounts = format!("1 2 0:3 / {} rw - cgroup2 cgroup2 rw\n", self.0.display());
        Hierarchy::find(&mounts, &format!("0::/{group}\n"))
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.0).unwrap();
    }
}

const ALL: &str = "cpuset cpu io memory pids";

#[test]
fn groups_get_the_names_and_units_of_a_unified_tree() {
    let fake = Fake::new("units", ALL, &[]);
    let found = fake.find("service").unwrap();
    assert_eq!(found.describe(), format!("cgroup v2, below {}", fake.0.join("service").display()));
    let cpu = Cpu { weight: 50, ceiling: Some(1500) };
    fs::create_dir(fake.0.join("service/acme")).unwrap();
    fake.put("service/acme/memory.swap.max", "max");
    let group = found.group("acme", &Share { memory: Some(1 << 30), pids: 9, cpu: Some(cpu) }).unwrap();
    let read = |file: &str| fake.read(&format!("service/acme/{file}"));
    assert_eq!((read("memory.max"), read("pids.max")), ((1u64 << 30).to_string(), "9".to_owned()));
    assert_eq!(read("memory.swap.max"), "0");
    assert_eq!((read("cpu.weight"), read("cpu.max")), ("50".to_owned(), "150000 100000".to_owned()));
    group.limit(&Share { memory: None, pids: 9, cpu: None }).unwrap();
    assert_eq!((read("memory.max"), read("memory.swap.max")), ("max".to_owned(), "max".to_owned()));
    assert_eq!((found.below("ac").len(), found.below("b").len()), (1, 0));
    fake.put("service/acme/memory.events", "low 0\noom 4\noom_kill 3\n");
    assert_eq!((group.dirs.len(), group.out_of_memory()), (1, 3));
    fake.put("service/acme/cgroup.procs", "7\n8\n");
    assert_eq!(group.processes(), [7, 8]);
    // There is one tree: whoever is in the group is in all of it.
    group.gather().unwrap();
    assert_eq!(read("cgroup.procs"), "7\n8\n");
}

#[test]
fn a_node_moves_out_of_the_way_of_its_groups_and_the_next_one_stands_beside_it() {
    let fake = Fake::new("leaf", ALL, &[41, 42]);
    let found = fake.find("service").unwrap();
    found.prepare("sidereal-one").unwrap();
    // Each write moves one process; of plain files the last one is seen.
    assert_eq!(fake.read("service/sidereal-one.node/cgroup.procs"), "42");
    assert_eq!(fake.read("service/cgroup.subtree_control"), "+memory +pids");
    found.share_cpu("sidereal-one").unwrap();
    assert_eq!(fake.read("service/cgroup.subtree_control"), "+cpu");
    assert_eq!(fake.read("service/sidereal-one.node/cpu.weight"), "1000");
    // Somebody starts another one from there, also the same again: in that group nothing could be made.
    fake.put("service/cgroup.procs", "");
    fake.put("service/sidereal-one.node/cgroup.controllers", "memory pids");
    for name in ["sidereal-one", "sidereal-two"] {
        let next = fake.find("service/sidereal-one.node").unwrap();
        assert_eq!(next, found, "{name}");
        next.prepare(name).unwrap();
    }
    assert_eq!(fake.read("service/sidereal-one.node/cgroup.procs"), "42", "nobody is moved who is out of the way");
    let elsewhere = Fake::new("none", "memory pids", &[]);
    let missing = elsewhere.find("service").unwrap_err();
    assert!(missing.ends_with("service has no controller cpu"), "{missing}");
}

#[test]
fn a_group_is_set_aside_and_gets_its_weight_back() {
    let fake = Fake::new("aside", ALL, &[]);
    let found = fake.find("service").unwrap();
    let cpu = Cpu { weight: 100, ceiling: None };
    let group = found.group("acme", &Share { memory: None, pids: 9, cpu: Some(cpu) }).unwrap();
    let weight = || fake.read("service/acme/cpu.weight");
    group.stand(true, &cpu).unwrap();
    assert_eq!(weight(), "33");
    group.stand(false, &cpu).unwrap();
    assert_eq!(weight(), "100");
}

#[test]
fn a_group_below_another_one_is_held_to_both_and_goes_with_it() {
    let fake = Fake::new("below", ALL, &[]);
    let found = fake.find("service").unwrap();
    let cpu = Cpu { weight: 50, ceiling: None };
    let above = found.group_of_groups("acme", &Share { memory: Some(1 << 30), pids: 9, cpu: Some(cpu) }).unwrap();
    let read = |file: &str| fake.read(&format!("service/acme/{file}"));
    // In one tree a group with others below it has no processes: they are beside those.
    assert_eq!(read("cgroup.subtree_control"), "+memory +pids");
    assert_eq!(above.seats, [fake.0.join("service/acme/own")]);
    let below = found.group_below(&above, "program", Some(1 << 20), 3).unwrap();
    assert_eq!((&below.dirs, &below.seats), (&vec![fake.0.join("service/acme/program")], &below.dirs));
    assert_eq!((read("memory.max"), read("program/memory.max")), ((1u64 << 30).to_string(), (1u64 << 20).to_string()));
    assert_eq!((read("cpu.weight"), read("program/pids.max")), ("50".to_owned(), "3".to_owned()));
    assert!(!fake.0.join("service/acme/program/cpu.weight").exists());
    // What happens to one is not told of the other.
    fake.put("service/acme/memory.events", "oom_kill 3\n");
    fake.put("service/acme/own/memory.events", "oom_kill 1\n");
    fake.put("service/acme/program/memory.events", "oom_kill 2\n");
    assert_eq!((above.out_of_memory(), below.out_of_memory()), (1, 2));
    for folder in ["service/acme/own", "service/acme/program", "service/acme"] {
        for entry in fs::read_dir(fake.0.join(folder)).unwrap().flatten().filter(|entry| entry.path().is_file()) {
            fs::remove_file(entry.path()).unwrap();
        }
    }
    above.remove().unwrap();
    assert!(!fake.0.join("service/acme").exists());
}
