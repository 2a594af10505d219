//! The collector of logs of a real agent is killed.

use rustix::process::Signal;

use super::agents::leader;
use super::cluster::{Cluster, get, kill};
use super::job::Job;

/// 22: the task answers and writes on without one, its lines wait for the next, which comes with the next agent and with the next
/// start of the task; a program comes to its end.
#[test]
fn a_real_agent_s_collector_of_logs_may_be_killed() {
    let Some(nomad) = super::nomad("a collector of logs that is killed") else { return };
    let mut cluster = Cluster::start(nomad);
    let alloc = cluster.run("probe", &Job::service("probe"), "running");
    let address = cluster.address(&alloc);
    let say = |text: &str| assert_eq!(get(address, &format!("/log?text={text}")).map(|(status, _)| status), Some(200));
    let reads = |cluster: &Cluster, text: &str| {
        let line = format!("out {text}\n");
        cluster.output(&alloc, "stdout", |said| said.contains(&line))
    };
    let killed = |cluster: &Cluster| {
        cluster.until("there is one", |cluster| cluster.collectors("main").len() == 1);
        let collectors = cluster.collectors("main");
        kill(collectors[0], Signal::KILL);
        let gone = || drivers::wasm::process::Seen::of(collectors[0]).unwrap().is_none_or(|seen| seen.dead);
        cluster.until("its end", |_| gone());
    };
    let process = |cluster: &Cluster| {
        let [dir] = &cluster.tasks("main")[..] else { panic!("one task") };
        leader(dir)
    };
    say("before");
    reads(&cluster, "before");
    let first = process(&cluster);
    killed(&cluster);
    let long = "x".repeat(1000);
    for _ in 0..100 {
        say(&long);
    }
    say("meanwhile");
    cluster.end("main", Signal::INT);
    say("without");
    cluster.again("main");
    say("after");
    let said = reads(&cluster, "after");
    for text in ["out meanwhile\n", "out without\n"] {
        assert!(said.contains(text), "{text} waited for the next one");
    }
    assert_eq!(process(&cluster), first, "the same process all along");

    // It comes with the next start of the task as well.
    killed(&cluster);
    let said = cluster.cli(&["alloc", "restart", &alloc.0]);
    cluster.until(&format!("it is started again: {said}"), |cluster| {
        cluster.alloc(&alloc)["TaskStates"]["task"]["Restarts"] == 1
            && get(address, "/").is_some_and(|(status, _)| status == 200)
    });
    say("again");
    reads(&cluster, "again");
    cluster.stop("probe");

    let steps = ["print:begun", "sleep:3000", "flood:100000", "exit:0"];
    let batch = cluster.run("flood", &Job::batch("batch", &steps), "running");
    cluster.output(&batch, "stdout", |out| out == "begun\n");
    killed(&cluster);
    let alloc = cluster.comes_to("flood", "complete");
    let events = cluster.events(&alloc);
    assert!(events.contains("Exit Code: 0"), "{events}");
    cluster.until("nothing is left", |cluster| cluster.tasks("main").is_empty());
}
