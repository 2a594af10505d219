//! What the tasks of a client share, and what each is charged with.

use std::time::Duration;

use plugin::contracts::hashicorp::nomad::plugins::drivers::proto::TaskStatsRequest;

use crate::agent::{Agent, groups, pid_of, until};

/// Tasks have nodes that know nothing of each other; all of them compile in turns of the client.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tasks_compile_in_turns_of_the_client() {
    let agent = Agent::start().await;
    let alloc = agent.alloc("turns", "hello");
    let turns = agent.state_dir().join("code/turns");
    std::fs::create_dir_all(&turns).unwrap();
    let held: Vec<_> = (0..3)
        .map(|number| {
            let file = std::fs::File::options().create(true).append(true).open(turns.join(number.to_string())).unwrap();
            file.try_lock().unwrap();
            file
        })
        .collect();
    let (mut starts, task) = (agent.clients.driver.clone(), alloc.config.clone());
    let request = plugin::contracts::hashicorp::nomad::plugins::drivers::proto::StartTaskRequest { task: Some(task) };
    let mut starting = tokio::spawn(async move { starts.start_task(request).await });
    let dir = agent.task_state(alloc.id());
    until("its host", || dir.join("run").read_dir().is_ok_and(|mut entries| entries.next().is_some())).await;
    assert!(tokio::time::timeout(Duration::from_secs(2), &mut starting).await.is_err(), "others have all turns");
    drop(held);
    starting.await.unwrap().unwrap();
    let mut agent = agent;
    // What is compiled needs no turn.
    let held: Vec<_> = (0..3)
        .map(|number| {
            let file = std::fs::File::open(turns.join(number.to_string())).unwrap();
            file.try_lock().unwrap();
            file
        })
        .collect();
    let second = agent.alloc("turns-again", "hello");
    agent.start_task(&second.config).await.unwrap();
    drop(held);
    for id in [alloc.id(), second.id()] {
        agent.destroy(id, true).await.unwrap();
    }
}

/// 18: the figures are those of the whole task: what it computes, as a part of a core and in MHz, and the memory that is its own.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_task_uses_is_told() {
    const HELD: u64 = 40;
    let mut agent = Agent::start().await;
    let mut alloc = agent.alloc("busy", "batch");
    let eat = format!("eat:{HELD}");
    let config = serde_json::json!({"component": "local/app.wasm", "args": [eat, "print:eaten", "forever"]});
    alloc.config.msgpack_driver_config = crate::block::block(&agent.schema, &config).unwrap();
    agent.start_task(&alloc.config).await.unwrap();
    let out = alloc.stdout.clone();
    until("it computes", || out.lock().unwrap().contains("eaten")).await;
    let request = TaskStatsRequest {
        task_id: alloc.id().to_owned(),
        collection_interval: Some(Duration::from_millis(250).try_into().unwrap()),
    };
    let mut stats = agent.clients.driver.task_stats(request).await.unwrap().into_inner();
    let (mut rates, begun) = (Vec::new(), std::time::Instant::now());
    // The first look has nothing before it to compare with; others may have all of the processor for a while.
    while rates.len() < 3 {
        assert!(begun.elapsed() < Duration::from_secs(300), "it computes all the time: {rates:?}");
        let seen = stats.message().await.unwrap().unwrap().stats.unwrap();
        let used = seen.agg_resource_usage.unwrap();
        let (cpu, memory) = (used.cpu.unwrap(), used.memory.unwrap());
        assert!(seen.id == alloc.id() && seen.timestamp.is_some());
        assert!(memory.rss >= HELD << 20 && memory.rss < 1 << 30, "{memory:?}");
        assert!(memory.usage == memory.rss && memory.max_usage >= memory.rss, "{memory:?}");
        assert!((cpu.user_mode + cpu.system_mode - cpu.percent).abs() < 0.01, "{cpu:?}");
        if cpu.percent > 0.0 {
            rates.push(cpu.total_ticks / cpu.percent * 100.0);
        }
    }
    let mhz: f64 = rates[0];
    assert!(mhz > 100.0 && rates.iter().all(|own| (own - mhz).abs() < 1.0), "MHz of one core: {rates:?}");
    agent.destroy(alloc.id(), true).await.unwrap();
    // They end with the task.
    while let Ok(Some(_)) = stats.message().await {}
}

/// 26: the whole task has the job's share of the processor, with what the platform does for it, such as compiling; its memory is
/// that of the component.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_whole_task_has_the_share_of_its_job() {
    let mut agent = Agent::start().await;
    let mut alloc = agent.alloc("share", "hello");
    let resources = alloc.config.resources.as_mut().unwrap().linux_resources.as_mut().unwrap();
    (resources.cpu_shares, resources.memory_limit_bytes) = (123, 64 << 20);
    let handle = agent.start_task(&alloc.config).await.unwrap();
    let made = groups(alloc.id());
    let [memory, cpu] = &made[..] else {
        agent.destroy(alloc.id(), true).await.unwrap();
        return crate::not_run("the share of a whole task: this machine has no control groups of version 1 to make");
    };
    let members = |group: &std::path::Path| -> Vec<i32> {
        let text = std::fs::read_to_string(group.join("cgroup.procs")).unwrap();
        text.lines().map(|line| line.parse().unwrap()).collect()
    };
    let mut session: Vec<i32> =
        drivers::wasm::process::Seen::session(pid_of(&handle)).unwrap().iter().map(|seen| seen.identity.pid).collect();
    let (mut shared, bounded) = (members(cpu), members(memory));
    session.sort_unstable();
    shared.sort_unstable();
    assert_eq!(shared, session, "all of it");
    assert!(!bounded.is_empty() && !bounded.contains(&pid_of(&handle)), "{bounded:?}");
    assert_eq!(std::fs::read_to_string(cpu.join("cpu.shares")).unwrap().trim(), "123");
    agent.destroy(alloc.id(), true).await.unwrap();
    assert!(groups(alloc.id()).is_empty());
}
