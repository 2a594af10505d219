//! Plugins and agents come and go; tasks stay, are found once, and their ends are known.

use std::time::Duration;

use drivers::contracts::hashicorp::nomad::plugins::drivers::proto::TaskRequest;
use drivers::plugin::error::is_recoverable;
use rustix::process::{Pid, Signal, kill_process};
use tonic::Code;

use crate::agent::{Agent, pid_of, until};

fn kill(pid: i32, signal: Signal) {
    kill_process(Pid::from_raw(pid).unwrap(), signal).unwrap();
}

/// 16, 17: killed plugin, ended agent, killed agent; each time the same process goes on serving.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_task_outlives_plugins_and_agents() {
    let mut agent = Agent::start().await;
    let alloc = agent.alloc("outlives", "hello");
    let handle = agent.start_task(&alloc.config).await.unwrap();
    let pid = pid_of(&handle);

    // The plugin is killed while somebody waits for the task: what it is asked later on the same connection, it answers later.
    let mut driver = agent.clients.driver.clone();
    let request = TaskRequest { task_id: alloc.id().to_owned() };
    let mut waiting = Box::pin(async move { driver.wait_task(request).await.is_err() });
    assert!(futures::poll!(&mut waiting).is_pending());
    agent.clients.driver.inspect_task(TaskRequest { task_id: alloc.id().to_owned() }).await.unwrap();
    let waiting = tokio::spawn(waiting);
    let mut agent = agent.relaunch().await;
    assert!(waiting.await.unwrap(), "a wait ends with its plugin");
    assert_eq!(agent.wait(alloc.id()).await.unwrap_err().code(), Code::NotFound, "not before it is recovered");
    agent.recover(&handle).await.unwrap();
    agent.recover(&handle).await.unwrap();
    assert_eq!(alloc.get("/").await.unwrap().0, 200);

    // The agent ends; the next one recovers.
    let mut agent = agent.restart().await;
    assert_eq!(alloc.get("/").await.unwrap().0, 200);
    agent.recover(&handle).await.unwrap();

    // The agent is killed; the next one finds the plugin that knows the task, and does not configure it.
    let mut agent = agent.reattach().await;
    agent.recover(&handle).await.unwrap();
    assert_eq!(alloc.get("/").await.unwrap().0, 200);
    assert!(drivers::wasm::process::Seen::of(pid).is_some(), "the same process all along");
    // Nobody reads the plugin's log any more. It works on, and still says why something does not start.
    let other = agent.alloc("orphan", "hello");
    std::fs::remove_file(other.task_dir().join("local/app.wasm")).unwrap();
    for _ in 0..3 {
        let refused = agent.start_task(&other.config).await.unwrap_err();
        assert!(refused.message().contains("there is no component"), "{refused}");
    }

    agent.stop(alloc.id(), Duration::from_secs(10), "").await.unwrap();
    assert_eq!(agent.wait(alloc.id()).await.unwrap().exit_code, 0);
    agent.destroy(alloc.id(), true).await.unwrap();
    assert!(agent.left().is_empty());
}

/// 16: what ended while nobody looked is recovered as ended, and says how.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_end_that_nobody_saw_is_reported() {
    let mut agent = Agent::start().await;
    for (name, signal, code) in [("ended", Signal::TERM, 0), ("killed", Signal::KILL, 137)] {
        let alloc = agent.alloc(name, "hello");
        let handle = agent.start_task(&alloc.config).await.unwrap();
        drop(agent.process.take());
        kill(pid_of(&handle), signal);
        until("the end", || drivers::wasm::process::Seen::of(pid_of(&handle)).is_none_or(|seen| seen.dead)).await;
        agent = agent.relaunch().await;
        agent.recover(&handle).await.unwrap();
        assert_eq!(agent.wait(alloc.id()).await.unwrap().exit_code, code, "{name}");
        agent.destroy(alloc.id(), true).await.unwrap();
        assert!(drivers::wasm::process::Seen::session(pid_of(&handle)).is_empty(), "{name}");
    }
}

/// 16: what cannot be found again is said, and may be destroyed all the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_gone_is_not_recovered() {
    let mut agent = Agent::start().await;
    let alloc = agent.alloc("gone", "hello");
    let handle = agent.start_task(&alloc.config).await.unwrap();
    agent.destroy(alloc.id(), true).await.unwrap();
    let mut agent = agent.restart().await;
    let gone = agent.recover(&handle).await.unwrap_err();
    assert!(gone.message().contains("nothing is left") && !is_recoverable(&gone), "{gone}");
    let mut newer = handle.clone();
    newer.driver_state = br#"{"version":99,"state":{}}"#.to_vec();
    assert!(agent.recover(&newer).await.unwrap_err().message().contains("version 99"));
    newer.driver_state.clear();
    assert!(agent.recover(&newer).await.is_err());
    agent.destroy(alloc.id(), true).await.unwrap();
}

/// 11: a plugin that dies between the start and its answer has started the task; the agent asks again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_start_that_is_asked_for_again_starts_no_second_copy() {
    let mut agent = Agent::start().await;
    let alloc = agent.alloc("again", "hello");
    let first = agent.start_task(&alloc.config).await.unwrap();
    let mut agent = agent.relaunch().await;
    let second = agent.start_task(&alloc.config).await.unwrap();
    assert_eq!(pid_of(&first), pid_of(&second));
    assert_eq!(alloc.get("/").await.unwrap().0, 200);
    agent.destroy(alloc.id(), true).await.unwrap();
    assert!(agent.left().is_empty());
}

/// 15, 17: a host that dies is started again by its task; the task goes on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_that_dies_comes_back() {
    let mut agent = Agent::start().await;
    let alloc = agent.alloc("host", "hello");
    let handle = agent.start_task(&alloc.config).await.unwrap();
    let pid = pid_of(&handle);
    let members = drivers::wasm::process::Seen::session(pid);
    let host = members.iter().find(|member| member.identity.pid != pid).unwrap().identity;
    kill(host.pid, Signal::KILL);
    let until = std::time::Instant::now() + Duration::from_secs(20);
    loop {
        let now = drivers::wasm::process::Seen::session(pid);
        let other = now.iter().any(|member| member.identity.pid != pid && member.identity != host);
        if other && alloc.get("/").await.is_ok_and(|(status, _)| status == 200) {
            break;
        }
        assert!(std::time::Instant::now() < until, "{now:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    agent.destroy(alloc.id(), true).await.unwrap();
}
