//! Plugins and agents come and go; tasks stay, are found once, and their ends are known.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use drivers::contracts::hashicorp::nomad::plugins::drivers::proto::{StartTaskRequest, TaskRequest};
use drivers::plugin::error::is_recoverable;
use rustix::process::{Pid, Signal, kill_process};
use tonic::Code;

use crate::agent::{Agent, groups, pid_of, until};

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

/// A program that waits before it becomes `sidereal`, so that there is time to kill the plugin in.
fn slow(dir: &Path, seconds: u32) -> PathBuf {
    let path = dir.join("slow");
    let text = format!(
        "#!/bin/sh\n[ \"$1\" = task ] && sleep {seconds}\nexec {} \"$@\"\n",
        crate::agent::sidereal().display()
    );
    std::fs::write(&path, text).unwrap();
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
    path
}

/// Processes that run the task in this directory.
fn processes(dir: &Path) -> Vec<i32> {
    let numbers =
        std::fs::read_dir("/proc").unwrap().filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    let runs = |pid: &i32| {
        let line = std::fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        line.contains("\0task\0--dir\0") && line.contains(dir.to_str().unwrap())
    };
    numbers.filter(runs).collect()
}

/// 11, 16, 17: the plugin dies after it has started a process and before anybody knows which. It is found by the lock it holds,
/// and is the only one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_start_that_nobody_has_heard_of_is_the_only_one() {
    let tools = tempfile::tempdir().unwrap();
    let program = slow(tools.path(), 5);
    let config = serde_json::json!({"allow_unsigned": true, "sidereal": program.display().to_string()});
    for asked_again in [true, false] {
        let agent = Agent::with(config.clone()).await;
        let alloc = agent.alloc("unheard", "hello");
        let dir = agent.task_state(alloc.id());
        let (mut driver, task) = (agent.clients.driver.clone(), alloc.config.clone());
        let starting =
            tokio::spawn(async move { driver.start_task(StartTaskRequest { task: Some(task) }).await.is_err() });
        until("a process", || !processes(&dir).is_empty()).await;
        let mut agent = agent.relaunch().await;
        assert!(starting.await.unwrap(), "its plugin is gone");
        assert!(!dir.join("process.json").exists(), "nobody knows which process it is");
        let first = processes(&dir);
        if asked_again {
            let handle = agent.start_task(&alloc.config).await.unwrap();
            assert_eq!((processes(&dir), vec![pid_of(&handle)]), (first.clone(), first.clone()), "one copy");
            assert_eq!(alloc.get("/").await.unwrap().0, 200);
        }
        agent.destroy(alloc.id(), true).await.unwrap();
        assert!(processes(&dir).is_empty() && agent.left().is_empty(), "{:?}", processes(&dir));
        assert!(groups(alloc.id()).is_empty());
    }
}

/// 11, 17: a program that ran to its end while there was no plugin is not run once more.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_program_that_ended_unheard_of_is_not_run_again() {
    let tools = tempfile::tempdir().unwrap();
    let program = slow(tools.path(), 3);
    let config = serde_json::json!({"allow_unsigned": true, "sidereal": program.display().to_string()});
    let agent = Agent::with(config).await;
    let mut alloc = agent.alloc("once", "batch");
    let config = serde_json::json!({"component": "local/app.wasm", "args": ["print:ran", "exit:7"]});
    alloc.config.msgpack_driver_config = crate::block::block(&agent.schema, &config).unwrap();
    let dir = agent.task_state(alloc.id());
    let (mut driver, task) = (agent.clients.driver.clone(), alloc.config.clone());
    let starting = tokio::spawn(async move { driver.start_task(StartTaskRequest { task: Some(task) }).await.is_err() });
    until("a process", || !processes(&dir).is_empty()).await;
    let mut agent = agent.relaunch().await;
    assert!(starting.await.unwrap());
    until("the end of the program", || dir.join("exit.json").exists() && processes(&dir).is_empty()).await;
    agent.start_task(&alloc.config).await.unwrap();
    assert_eq!(agent.wait(alloc.id()).await.unwrap().exit_code, 7);
    alloc.ended().await;
    assert_eq!(*alloc.stdout.lock().unwrap(), "ran\n", "once");
    agent.destroy(alloc.id(), true).await.unwrap();
    assert!(agent.left().is_empty());
}

/// 15, 16: a task that cannot be recovered may run on; to destroy it leaves no process, no listener, no control group, no mount
/// and no file of it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_could_not_be_recovered_is_destroyed_without_a_trace() {
    let mut agent = Agent::start().await;
    let alloc = agent.alloc("lost", "hello");
    let mut handle = agent.start_task(&alloc.config).await.unwrap();
    let (pid, dir) = (pid_of(&handle), agent.task_state(alloc.id()));
    let sockets = std::fs::read_dir(dir.join("run")).unwrap().count();
    assert!(sockets > 0 && dir.join("task.sock").exists());
    let bounded = drivers::wasm::cgroup::available();
    assert_eq!(groups(alloc.id()).is_empty(), !bounded, "{:?}", groups(alloc.id()));
    let mut agent = agent.relaunch().await;
    handle.driver_state = br#"{"version":99,"state":{}}"#.to_vec();
    assert!(agent.recover(&handle).await.is_err());
    assert_eq!(alloc.get("/").await.unwrap().0, 200, "it runs, and nobody tracks it");
    agent.destroy(alloc.id(), true).await.unwrap();
    assert!(drivers::wasm::process::Seen::session(pid).is_empty());
    assert!(crate::agent::get(alloc.address, "/").await.is_err(), "nobody listens");
    assert!(groups(alloc.id()).is_empty() && agent.left().is_empty(), "{:?} {:?}", groups(alloc.id()), agent.left());
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!mounts.contains(dir.to_str().unwrap()), "{mounts}");
    let unix = std::fs::read_to_string("/proc/net/unix").unwrap();
    assert!(!unix.contains(dir.to_str().unwrap()), "{unix}");
    // Nor is there anything in the way of the next one.
    agent.destroy(alloc.id(), true).await.unwrap();
    agent.start_task(&alloc.config).await.unwrap();
    agent.destroy(alloc.id(), true).await.unwrap();
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
