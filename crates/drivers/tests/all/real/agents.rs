//! Plugins and real agents come and go; tasks stay, are found once, and their ends are known.

use std::net::TcpStream;
use std::path::Path;

use rustix::process::Signal;

use super::cluster::{Alloc, Cluster, get, kill};
use super::job::Job;

/// The process of the task in a directory.
pub fn leader(dir: &Path) -> i64 {
    let text = std::fs::read(dir.join("process.json")).unwrap();
    serde_json::from_slice::<serde_json::Value>(&text).unwrap()["pid"].as_i64().unwrap()
}

/// 3, 4, 15, 16, 17: the plugin is killed, the agent is interrupted, the agent is killed. Each time the same process goes on
/// serving, a program that ends meanwhile is reported with its exit code and not run again, and one that goes on is found.
#[test]
fn a_real_agent_finds_its_tasks_again() {
    let Some(nomad) = super::nomad("recovery") else { return };
    let mut cluster = Cluster::start(nomad);
    let hello = cluster.run("hello", &Job::service("hello"), "running");
    let address = cluster.address(&hello);
    let [dir] = &cluster.tasks("main")[..] else { panic!("one task") };
    let process = leader(dir);
    let serves = || get(address, "/").is_some_and(|(status, _)| status == 200);
    assert!(serves(), "a task that runs answers");

    let plugin = cluster.plugins("main");
    for (round, what) in ["plugin", "interrupted", "killed"].into_iter().enumerate() {
        let ends = [(0, "complete"), (9, "failed")].map(|(code, status)| {
            let name = format!("{what}-{code}");
            let steps = ["print:begun", "sleep:10000", &format!("exit:{code}")];
            let alloc = cluster.run(&name, &Job::batch("batch", &steps), "running");
            cluster.output(&alloc, "stdout", |out| out == "begun\n");
            (name, alloc, code, status)
        });
        let lives = cluster.run(&format!("{what}-lives"), &Job::batch("batch", &["sleep:600000"]), "running");
        match what {
            "plugin" => plugin.iter().for_each(|pid| kill(*pid, Signal::KILL)),
            "interrupted" => cluster.end("main", Signal::INT),
            _ => cluster.end("main", Signal::KILL),
        }
        assert!(serves(), "without it: {what}");
        match what {
            "plugin" => cluster.until("a new plugin", |cluster| {
                let now = cluster.plugins("main");
                now.len() == 1 && now != plugin
            }),
            _ => {
                let exited = |cluster: &Cluster| {
                    cluster.tasks("main").iter().filter(|dir| dir.join("exit.json").exists()).count()
                };
                cluster.until("both programs have ended", |cluster| exited(cluster) == 2);
                cluster.again("main");
            }
        }
        assert!(serves(), "with another one: {what}");
        for (name, alloc, code, status) in ends {
            let seen = cluster.comes_to(&name, status);
            assert_eq!(seen.0, alloc.0, "{name} is run once");
            let events = cluster.events(&alloc);
            assert!(events.contains(&format!("Exit Code: {code}")), "{name}: {events}");
            assert_eq!(events.matches("\"Started\"").count(), 1, "{name}: {events}");
            assert_eq!(cluster.output(&alloc, "stdout", |out| !out.is_empty()), "begun\n", "{name} is run once");
        }
        cluster.until("what has ended is gone", |cluster| cluster.tasks("main").len() == 2 + round);
        assert_eq!(running(&cluster, &lives), 1, "{what}: no second copy");
        assert!(cluster.tasks("main").iter().any(|dir| leader(dir) == process), "the same process all along");
    }
    let names: Vec<_> = cluster.tasks("main").iter().map(|dir| dir.file_name().unwrap().to_owned()).collect();
    for name in ["hello", "plugin-lives", "interrupted-lives", "killed-lives"] {
        cluster.stop(name);
    }
    cluster
        .until("nothing is left", |cluster| cluster.tasks("main").is_empty() && TcpStream::connect(address).is_err());
    let ours = ["memory", "cpu", ""].map(|root| Path::new("/sys/fs/cgroup").join(root).join("sidereal-nomad"));
    let groups = ours.iter().flat_map(|ours| names.iter().map(|name| ours.join(name)));
    let groups: Vec<_> = groups.filter(|group| group.exists()).collect();
    assert!(groups.is_empty(), "{groups:?}");
}

/// How often the task of an allocation has been started, as the agent says it.
fn running(cluster: &Cluster, alloc: &Alloc) -> usize {
    let alloc = cluster.alloc(alloc);
    assert_eq!(alloc["ClientStatus"], "running", "{alloc}");
    let events = alloc["TaskStates"]["task"]["Events"].as_array().cloned().unwrap_or_default();
    events.iter().filter(|event| event["Type"] == "Started").count()
}
