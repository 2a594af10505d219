//! Answers that do not arrive: what a plugin that ends says to those who wait, and what becomes of starts whose agent hung up.

use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use plugin::Driver as _;
use plugin::contracts::hashicorp::nomad::plugins::drivers::proto::{Nothing, StartTaskRequest, TaskRequest};
use plugin::contracts::plugin::Empty;
use serde_json::json;
use tonic::Code;

use crate::agent::{Agent, Clients, PROGRAM, pid_of, sidereal, until};

/// 3: a plugin that its agent ends tells whoever waits for a task that it goes on, and is gone within two seconds, one time out of
/// three at least on a machine with much else to do; the task lives on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_waits_when_a_plugin_ends_is_told_that_the_task_goes_on() {
    let mut agent = Agent::start().await;
    let alloc = agent.alloc("waits", "hello");
    let handle = agent.start_task(&alloc.config).await.unwrap();
    let mut best = Duration::MAX;
    for _ in 0..3 {
        let wait = |clients: &Clients| {
            let mut driver = clients.driver.clone();
            let request = TaskRequest { task_id: alloc.id().to_owned() };
            Box::pin(async move { driver.wait_task(request).await })
        };
        let mut waiting = [wait(&agent.clients), wait(&agent.clients)];
        for waiting in &mut waiting {
            assert!(futures::poll!(waiting).is_pending());
        }
        // What it is asked later on the same connection, it answers later.
        agent.clients.driver.inspect_task(TaskRequest { task_id: alloc.id().to_owned() }).await.unwrap();
        let waiting = waiting.map(tokio::spawn);
        let begun = Instant::now();
        agent.clients.controller.shutdown(Empty {}).await.unwrap();
        assert!(agent.process.as_mut().unwrap().ended().success());
        best = best.min(begun.elapsed());
        for waiting in waiting {
            let told = waiting.await.unwrap().unwrap_err();
            assert_eq!((told.code(), told.message()), (Code::Unavailable, "the plugin ends; the task goes on"));
        }
        assert_eq!(alloc.get("/").await.unwrap().0, 200);
        agent = agent.relaunch().await;
        agent.recover(&handle).await.unwrap();
    }
    assert!(best <= Duration::from_secs(2), "its end took {best:?}");
    agent.destroy(alloc.id(), true).await.unwrap();
    assert!(agent.left().is_empty());
}

/// 10: a program that comes is found, and one that goes is missed, with the fingerprints that follow.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_program_that_comes_and_goes_is_said_in_the_fingerprint() {
    let dir = tempfile::tempdir().unwrap();
    let program = dir.path().join("sidereal");
    let state = dir.path().join("state").display().to_string();
    let config = json!({"sidereal": program.display().to_string(), "state_dir": state});
    let schema = drivers::wasm::WasmDriver::new().agent_schema();
    let (_process, mut clients) = crate::agent::live(PROGRAM, &schema, &config).await;
    let mut fingerprints = clients.driver.fingerprint(Nothing {}).await.unwrap().into_inner();
    // One each half minute.
    let (undetected, healthy) = (0, 2);
    for health in [undetected, healthy, undetected] {
        match health {
            2 => std::os::unix::fs::symlink(sidereal(), &program).unwrap(),
            _ => drop(std::fs::remove_file(&program)),
        }
        let end = Instant::now() + Duration::from_secs(240);
        loop {
            let said = tokio::time::timeout_at(end.into(), fingerprints.message()).await;
            let said = said.expect("it is never said").unwrap().unwrap();
            if said.health == health {
                assert_eq!(
                    said.health_description.contains("sidereal is no file of this machine"),
                    health == undetected,
                    "{said:?}"
                );
                assert_eq!(said.attributes.contains_key("driver.wasm"), health == healthy, "{said:?}");
                break;
            }
        }
    }
}

/// A program that becomes `sidereal`, and says of a layer that the machine refuses it; while it is held it says nothing of layers.
struct Held(tempfile::TempDir);

impl Held {
    fn new() -> Self {
        let held = Self(tempfile::tempdir().unwrap());
        let text = format!(
            "#!/bin/sh\nif [ \"$1\" = layers ]; then while [ -e \"$0.held\" ]; do sleep 0.02; done; echo '{}'; exit; fi\nexec {} \"$@\"\n",
            json!({"tasks": api::task::VERSION, "refused": {"landlock": "a test"}}),
            sidereal().display()
        );
        std::fs::write(held.program(), text).unwrap();
        std::fs::set_permissions(held.program(), std::fs::Permissions::from_mode(0o755)).unwrap();
        held
    }

    fn program(&self) -> PathBuf {
        self.0.path().join("held")
    }

    fn hold(&self) {
        std::fs::write(self.program().with_extension("held"), "").unwrap();
    }

    fn release(&self) {
        std::fs::remove_file(self.program().with_extension("held")).unwrap();
    }
}

/// 11, 17: the agent is killed while a start waits for what the machine says of its layers. The next start of the task finds it,
/// and is the one that lives; the first one, when it goes on, ends itself and not the other.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_start_that_waits_when_its_agent_is_killed_gives_way_to_the_next() {
    let held = Held::new();
    let config = json!({"allow_unsigned": true, "sidereal": held.program().display().to_string()});
    let agent = Agent::with(config).await;
    let mut alloc = agent.alloc("late", "hello");
    held.hold();
    let dir = agent.task_state(alloc.id());
    let (mut driver, task) = (agent.clients.driver.clone(), alloc.config.clone());
    let starting = tokio::spawn(async move { driver.start_task(StartTaskRequest { task: Some(task) }).await });
    until("that it starts is written down", || dir.join("start.json").exists()).await;
    starting.abort();
    // Its connection is one of those that wait in the plugin: what is asked after it is answered after it was given up.
    drop(starting.await);
    alloc.next_id();
    let second = agent.task_state(alloc.id());
    let mut driver = agent.clients.driver.clone();
    let task = alloc.config.clone();
    let next = tokio::spawn(async move { driver.start_task(StartTaskRequest { task: Some(task) }).await });
    until("the next one too", || second.join("start.json").exists()).await;
    held.release();
    let mut agent = agent;
    let handle = next.await.unwrap().unwrap().into_inner().handle.unwrap();
    until("the end of the first one", || agent.left() == [second.clone()]).await;
    assert_eq!(alloc.get("/").await.unwrap().0, 200);
    assert!(drivers::wasm::process::Seen::of(pid_of(&handle)).unwrap().is_some_and(|seen| !seen.dead));
    agent.destroy(alloc.id(), true).await.unwrap();
    assert!(agent.left().is_empty());
}

/// 11, 12: an agent that did not hear the answer to a start, and lives, asks again and has it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_start_whose_answer_was_lost_is_answered_again() {
    let mut agent = Agent::start().await;
    let alloc = agent.alloc("lost-answer", "hello");
    let (mut driver, task) = (agent.clients.driver.clone(), alloc.config.clone());
    let starting = tokio::spawn(async move { driver.start_task(StartTaskRequest { task: Some(task) }).await });
    let dir = agent.task_state(alloc.id());
    until("a process", || dir.join("process.json").exists()).await;
    starting.abort();
    drop(starting.await);
    // It goes on, and is tracked once it runs.
    let end = Instant::now() + Duration::from_secs(60);
    while agent.clients.driver.inspect_task(TaskRequest { task_id: alloc.id().to_owned() }).await.is_err() {
        assert!(Instant::now() < end, "it does not start");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let handle = agent.start_task(&alloc.config).await.unwrap();
    assert_eq!(alloc.get("/").await.unwrap().0, 200);
    // Asked once more by somebody who has heard of it, it is an error.
    assert!(agent.start_task(&alloc.config).await.unwrap_err().message().contains("was started already"));
    agent.destroy(alloc.id(), true).await.unwrap();
    assert!(drivers::wasm::process::Seen::session(pid_of(&handle)).unwrap().is_empty() && agent.left().is_empty());
}
