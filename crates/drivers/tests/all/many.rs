//! Many tasks, one after the other and at once: what the plugin holds does not grow with them. The numbers of a machine that
//! is tested on in passing are small; `NOMAD_CYCLES=1000 NOMAD_AT_ONCE=200` is the long run, which prints what it saw.

use std::time::{Duration, Instant};

use plugin::contracts::hashicorp::nomad::plugins::drivers::proto::{StartTaskRequest, TaskStatsRequest};

use crate::agent::{Agent, PROGRAM, pid_of, until};

fn asked(name: &str, what: &str, otherwise: usize) -> usize {
    let asked = std::env::var(name).ok().and_then(|text| text.parse().ok());
    asked.unwrap_or_else(|| {
        crate::not_run(&format!("{what} of the Nomad driver: {name} says how many; here {otherwise}"));
        otherwise
    })
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

/// What a process has had of the processor, seconds.
fn processor(pid: i32) -> f64 {
    let seen = drivers::wasm::process::Seen::of(pid).unwrap().unwrap();
    (seen.ticks.0 + seen.ticks.1) as f64 / 100.0
}

/// 28: many lives, and no more descriptors, threads or memory than after the first of them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_lives_leave_no_trace() {
    const FIRST: usize = 20;
    let cycles = asked("NOMAD_CYCLES", "1,000 lives of a task", 50).max(FIRST + 1);
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
    // The runtime's blocking threads come and go, what was just closed may be on its way, and the allocator keeps some pages:
    // what a life leaves behind stays, and is more after each of them.
    let small =
        |last: (usize, usize, usize)| last.0 <= first.0 + 2 && last.1 <= first.1 + 4 && last.2 <= first.2 + 4096;
    let (mut last, ended) = (held(pid), Instant::now());
    while !small(last) && ended.elapsed() < Duration::from_secs(120) {
        tokio::time::sleep(Duration::from_millis(100)).await;
        last = held(pid);
    }
    starts.sort_unstable();
    println!(
        "{cycles} lives in {:?}: descriptors, threads, private KiB of the plugin {first:?} after {FIRST}, {last:?} at the end; \
         start to the first answer {:?} in the middle",
        begun.elapsed(),
        starts[starts.len() / 2]
    );
    assert!(small(last), "{first:?} -> {last:?}");
    assert!(agent.left().is_empty());
}

/// 28: many tasks at once, each of which serves; all of them end.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_tasks_at_once() {
    let count = asked("NOMAD_AT_ONCE", "200 tasks at once", 4);
    let mut agent = Agent::start().await;
    let pid = agent.process.as_ref().unwrap().pid();
    let before = held(pid);
    let begun = Instant::now();
    // As an agent does that is given a node's allocations.
    let starts = (0..count).map(|number| {
        let mut alloc = agent.alloc(&format!("at-once-{number}"), "hello");
        alloc.config.stdout_path = "/dev/null".into();
        alloc.config.stderr_path = "/dev/null".into();
        let (mut driver, task) = (agent.clients.driver.clone(), alloc.config.clone());
        async move {
            let started = driver.start_task(StartTaskRequest { task: Some(task) }).await;
            let handle = started.unwrap_or_else(|refused| panic!("{number}: {refused}")).into_inner().handle.unwrap();
            (alloc, pid_of(&handle))
        }
    });
    let tasks = futures::future::join_all(starts).await;
    let up = begun.elapsed();
    for (alloc, _) in &tasks {
        assert_eq!(alloc.get("/").await.unwrap().0, 200);
    }
    // As an agent looks at all of them, each second.
    let mut looks = Vec::new();
    for (alloc, _) in &tasks {
        let request = TaskStatsRequest {
            task_id: alloc.id().to_owned(),
            collection_interval: Some(Duration::from_secs(1).try_into().unwrap()),
        };
        looks.push(agent.clients.driver.task_stats(request).await.unwrap().into_inner());
    }
    let (used, begun) = (processor(pid), Instant::now());
    for _ in 0..5 {
        for look in &mut looks {
            assert!(look.message().await.unwrap().is_some());
        }
    }
    let share = (processor(pid) - used) / begun.elapsed().as_secs_f64();
    drop(looks);
    let with = held(pid);
    let members = |leader: i32| drivers::wasm::process::Seen::session(leader).unwrap();
    let sum: usize = members(tasks[0].1).iter().map(|seen| own_memory(seen.identity.pid)).sum();
    println!(
        "{count} tasks at once, up in {up:?}: descriptors, threads, private KiB of the plugin {before:?} without, {with:?} with \
         them; private memory of one task {sum} KiB in {} processes; {share:.3} of a core for the figures of all",
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

/// 17, 28: an agent gives its plugins the few open files that a shell has. Tasks beyond them start, and the next plugin finds
/// all of them again: those that it did not find an agent would have destroyed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn more_tasks_than_a_shell_has_files_are_started_and_found_again() {
    const FILES: usize = 40;
    let tools = tempfile::tempdir().unwrap();
    let few = tools.path().join("few");
    std::fs::write(&few, format!("#!/bin/sh\nulimit -S -n {FILES}\nexec {PROGRAM} \"$@\"\n")).unwrap();
    std::fs::set_permissions(&few, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let mut agent = Agent::of(few.to_str().unwrap(), serde_json::json!({"allow_unsigned": true})).await;
    let mut tasks = Vec::new();
    // Each takes a descriptor of its process at least.
    while held(agent.process.as_ref().unwrap().pid()).0 <= FILES {
        let mut alloc = agent.alloc(&format!("few-{}", tasks.len()), "hello");
        alloc.config.stdout_path = "/dev/null".into();
        alloc.config.stderr_path = "/dev/null".into();
        let handle = agent.start_task(&alloc.config).await.unwrap();
        tasks.push((alloc, handle));
        assert!(tasks.len() < FILES, "a task takes no descriptor");
    }
    let mut agent = agent.relaunch().await;
    for (_, handle) in &tasks {
        agent.recover(handle).await.unwrap();
    }
    for (alloc, _) in &tasks {
        assert_eq!(alloc.get("/").await.unwrap().0, 200);
        agent.destroy(alloc.id(), true).await.unwrap();
    }
    assert!(agent.left().is_empty());
}
