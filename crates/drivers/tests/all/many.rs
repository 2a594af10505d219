//! Many tasks, one after the other and at once: what the plugin holds does not grow with them. The numbers of a machine that
//! is tested on in passing are small; `NOMAD_CYCLES=1000 NOMAD_AT_ONCE=200` is the long run, which prints what it saw.

use std::time::{Duration, Instant};

use crate::agent::{Agent, pid_of, until};

fn asked(name: &str, otherwise: usize) -> usize {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(otherwise)
}

/// What a process holds: descriptors, threads, and memory of its own in KiB.
fn held(pid: i32) -> (usize, usize, usize) {
    let count = |what: &str| std::fs::read_dir(format!("/proc/{pid}/{what}")).unwrap().count();
    (count("fd"), count("task"), own_memory(pid))
}

/// Memory that is nobody else's, KiB: written by itself. Pages of a program's file are shared or not by who else runs it.
fn own_memory(pid: i32) -> usize {
    let rollup = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap();
    let of = |name: &str| -> usize {
        let line = rollup.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        line.trim_start_matches(':').trim().trim_end_matches(" kB").trim().parse().unwrap()
    };
    of("Private_Dirty") + of("Swap")
}

/// 28: many lives, and no more descriptors, threads or memory than after the first of them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_lives_leave_no_trace() {
    const FIRST: usize = 20;
    let cycles = asked("NOMAD_CYCLES", 50).max(FIRST + 1);
    let mut agent = Agent::start().await;
    let mut alloc = agent.alloc("cycles", "hello");
    let pid = agent.process.as_ref().unwrap().pid();
    let (mut first, mut starts) = ((0, 0, 0), Vec::new());
    let begun = Instant::now();
    for cycle in 0..cycles {
        let now = Instant::now();
        agent.start_task(&alloc.config).await.unwrap();
        assert_eq!(alloc.get("/").await.unwrap().0, 200);
        starts.push(now.elapsed());
        agent.stop(alloc.id(), Duration::from_secs(10), "").await.unwrap();
        assert_eq!(agent.wait(alloc.id()).await.unwrap().exit_code, 0);
        agent.destroy(alloc.id(), true).await.unwrap();
        assert!(crate::agent::groups(alloc.id()).is_empty());
        alloc.next_id();
        alloc.read();
        if cycle + 1 == FIRST {
            first = held(pid);
        }
    }
    let last = held(pid);
    starts.sort_unstable();
    println!(
        "{cycles} lives in {:?}: descriptors, threads, private KiB of the plugin {first:?} after {FIRST}, {last:?} at the end; \
         start to the first answer {:?} in the middle",
        begun.elapsed(),
        starts[starts.len() / 2]
    );
    // The runtime's blocking threads come and go, and the allocator keeps some pages.
    assert!(last.0 <= first.0 + 2 && last.1 <= first.1 + 4 && last.2 <= first.2 + 4096, "{first:?} -> {last:?}");
    assert!(agent.left().is_empty());
}

/// 28: many tasks at once, each of which serves; all of them end.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_tasks_at_once() {
    let count = asked("NOMAD_AT_ONCE", 4);
    let mut agent = Agent::start().await;
    let pid = agent.process.as_ref().unwrap().pid();
    let before = held(pid);
    let begun = Instant::now();
    let mut tasks = Vec::new();
    for number in 0..count {
        let mut alloc = agent.alloc(&format!("at-once-{number}"), "hello");
        alloc.config.stdout_path = "/dev/null".into();
        alloc.config.stderr_path = "/dev/null".into();
        let handle = agent.start_task(&alloc.config).await.unwrap();
        tasks.push((alloc, pid_of(&handle)));
    }
    let up = begun.elapsed();
    for (alloc, _) in &tasks {
        assert_eq!(alloc.get("/").await.unwrap().0, 200);
    }
    let with = held(pid);
    let members = |leader: i32| drivers::wasm::process::Seen::session(leader);
    let sum: usize = members(tasks[0].1).iter().map(|seen| own_memory(seen.identity.pid)).sum();
    println!(
        "{count} tasks at once, up in {up:?}: descriptors, threads, private KiB of the plugin {before:?} without, {with:?} with \
         them; private memory of one task {sum} KiB in {} processes",
        members(tasks[0].1).len()
    );
    for (alloc, _) in &tasks {
        agent.stop(alloc.id(), Duration::from_secs(20), "").await.unwrap();
        agent.destroy(alloc.id(), true).await.unwrap();
    }
    assert!(agent.left().is_empty());
    for (_, leader) in &tasks {
        assert!(members(*leader).is_empty());
    }
    until("the end of what was held for them", || held(pid).0 <= before.0 + 4).await;
}
