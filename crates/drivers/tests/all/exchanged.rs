//! The program of a task is replaced by one that behaves badly, or its host dies, while the task starts or runs: what the agent is
//! told then.

use std::io::Write as _;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use plugin::contracts::hashicorp::nomad::plugins::drivers::proto::StartTaskRequest;
use plugin::contracts::hashicorp::nomad::plugins::shared::structs::attribute::Value;
use plugin::error::is_recoverable;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;
use tonic::Status;

use crate::agent::{Agent, Alloc, host_of, pid_of, until};
use crate::registry::Shop;

/// A host that cannot be started.
const NO_HOST: &str = "[ \"$1\" = host ] && echo out of luck >&2 && exit 1";

/// An agent whose `sidereal` is this file, for a test to replace.
async fn agent(program: &Path) -> Agent {
    Agent::with(json!({"allow_unsigned": true, "sidereal": program.display().to_string()})).await
}

fn kill_host(pid: i32) {
    kill_process(Pid::from_raw(host_of(pid)).unwrap(), Signal::KILL).unwrap();
}

/// 17, 19: a host that does not come up any more, whatever the reason, is for the agent to know.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_task_whose_host_cannot_be_kept_up_ends() {
    let tools = tempfile::tempdir().unwrap();
    let program = exchangeable(tools.path());
    let mut agent = agent(&program).await;
    let alloc = agent.alloc("downhill", "hello");
    let handle = agent.start_task(&alloc.config).await.unwrap();
    assert_eq!(alloc.get("/").await.unwrap().0, 200);
    exchange(&program, NO_HOST);
    kill_host(pid_of(&handle));
    let ended = tokio::time::timeout(Duration::from_secs(300), agent.wait(alloc.id())).await.expect("it ends").unwrap();
    assert_eq!((ended.exit_code, ended.signal), (1, 0));
    let told = agent.events.clone();
    let why = |message: &str| message.contains("cannot be kept up") && message.contains("out of luck");
    until("an event", || told.lock().unwrap().iter().any(|event| why(&event.message))).await;
    agent.destroy(alloc.id(), true).await.unwrap();
    assert!(agent.left().is_empty());
}

/// 17, 19: nor does it help that each of its ends takes long.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_task_whose_host_hangs_in_its_start_ends() {
    let tools = tempfile::tempdir().unwrap();
    let program = exchangeable(tools.path());
    let mut agent = agent(&program).await;
    let alloc = agent.alloc("hangs", "hello");
    let handle = agent.start_task(&alloc.config).await.unwrap();
    exchange(&program, "[ \"$1\" = host ] && exec sleep 600");
    kill_host(pid_of(&handle));
    let ended = tokio::time::timeout(Duration::from_secs(300), agent.wait(alloc.id())).await.expect("it ends").unwrap();
    assert_eq!((ended.exit_code, ended.signal), (1, 0));
    let told = agent.events.clone();
    let why = |message: &str| message.contains("cannot be kept up") && message.contains("did not answer within");
    until("an event", || told.lock().unwrap().iter().any(|event| why(&event.message))).await;
    agent.destroy(alloc.id(), true).await.unwrap();
    assert!(agent.left().is_empty());
}

/// 17, 19: a host that comes back each time, and dies again a little later, never looks ill to its node. What calls it is failed
/// all the time, so the task ends.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_task_whose_host_dies_again_and_again_ends() {
    // With one more within this time the node itself would give it up.
    const PROMPT: usize = 6;
    const WINDOW: Duration = Duration::from_secs(61);
    const MOST: usize = 10;
    let mut agent = Agent::start().await;
    let alloc = agent.alloc("again-and-again", "hello");
    let pid = pid_of(&agent.start_task(&alloc.config).await.unwrap());
    for death in 1..=MOST {
        assert_eq!(serves(&alloc).await, 200, "it is back after {}", death - 1);
        let host = host_of(pid);
        kill_host(pid);
        let gone = || drivers::wasm::process::Seen::of(host).unwrap().is_none_or(|seen| seen.dead);
        until("the end of its host", gone).await;
        if death == PROMPT {
            tokio::time::sleep(WINDOW).await;
        }
    }
    let ended = tokio::time::timeout(Duration::from_secs(300), agent.wait(alloc.id())).await.expect("it ends").unwrap();
    assert_eq!((ended.exit_code, ended.signal), (1, 0));
    let told = agent.events.clone();
    let why = |message: &str| message.contains("it answered and ended 10 times within 10 minutes");
    until("an event", || told.lock().unwrap().iter().any(|event| why(&event.message))).await;
    agent.destroy(alloc.id(), true).await.unwrap();
    assert!(agent.left().is_empty());
    // The `restart` block has it started again, and it is well.
    agent.start_task(&alloc.config).await.unwrap();
    assert_eq!(alloc.get("/").await.unwrap().0, 200);
    agent.destroy(alloc.id(), true).await.unwrap();
}

/// What a task answers, once it does: its host may just be started.
async fn serves(alloc: &Alloc) -> u16 {
    let until = std::time::Instant::now() + Duration::from_secs(60);
    loop {
        match alloc.get("/").await {
            Ok((200, _)) => return 200,
            seen => assert!(std::time::Instant::now() < until, "{seen:?}"),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Starts a task whose component `shop` sends, and replaces the program once the task's own process is there.
async fn start_and_exchange(
    agent: &Agent,
    (alloc, shop): (&Alloc, &Shop),
    program: &Path,
    instead: &str,
) -> Result<(), Status> {
    let (asked, waits) = (shop.questions.load(SeqCst), shop.waits.lock().unwrap_or_else(|held| held.into_inner()));
    let patience = std::time::Instant::now() + Duration::from_secs(60);
    let (mut driver, task) = (agent.clients.driver.clone(), alloc.config.clone());
    let starting = tokio::spawn(async move { driver.start_task(StartTaskRequest { task: Some(task) }).await });
    let dir = agent.task_state(alloc.id());
    while !dir.join("task.sock").exists() || shop.questions.load(SeqCst) == asked {
        assert!(std::time::Instant::now() < patience, "the registry is not asked");
        std::thread::sleep(Duration::from_millis(5));
    }
    exchange(program, instead);
    drop(waits);
    starting.await.unwrap().map(drop)
}

/// Takes the component of this shop.
fn from(agent: &Agent, alloc: &mut Alloc, shop: &std::sync::Arc<Shop>) {
    let config = json!({"component": shop.pinned(shop.open()), "http": {"port": "http"}});
    alloc.config.msgpack_driver_config = crate::block::block(&agent.schema, &config).unwrap();
}

/// 11: why a host does not come up is in what the agent is told.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn why_a_host_does_not_come_up_is_told() {
    let tools = tempfile::tempdir().unwrap();
    let program = exchangeable(tools.path());
    let agent = agent(&program).await;
    let mut alloc = agent.alloc("uphill", "hello");
    let shop = Shop::of(&std::fs::read(crate::agent::guest("hello")).unwrap());
    from(&agent, &mut alloc, &shop);
    let refused = start_and_exchange(&agent, (&alloc, &shop), &program, NO_HOST).await.unwrap_err();
    assert!(refused.message().contains("out of luck") && refused.message().contains("[start-failed]"), "{refused}");
    assert!(is_recoverable(&refused), "{refused}");
    assert!(agent.left().is_empty());
}

/// 11: a layer that the machine refuses at this moment alone is not done without, and what cannot be tried at this moment is
/// tried again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_layer_that_is_refused_for_a_moment_is_waited_for() {
    let tools = tempfile::tempdir().unwrap();
    let program = exchangeable(tools.path());
    let mut agent = agent(&program).await;
    let has_net = agent.first.attributes["driver.wasm.isolation.net"].value == Some(Value::BoolVal(true));
    if !has_net {
        return crate::not_run("a layer that is refused for a moment: this machine refuses it always");
    }
    let mut alloc = agent.alloc("moment", "hello");
    let shop = Shop::of(&std::fs::read(crate::agent::guest("hello")).unwrap());
    from(&agent, &mut alloc, &shop);
    // Its probe is told which layers it does without.
    let net = "case \"$1$3\" in confined*'\"net\"'*) ;; confined*) echo sandbox layer refused: net: making a network namespace: No \
               space left on device >&2; exit 1;; esac";
    let fails = "[ \"$1\" = confined ] && exit 1";
    for (probe, said) in [(net, "`net` (making a network namespace: No space"), (fails, "cannot be started")] {
        let refused = start_and_exchange(&agent, (&alloc, &shop), &program, probe).await.unwrap_err();
        assert!(refused.message().contains(said) && is_recoverable(&refused), "{refused}");
        assert!(agent.left().is_empty());
        // The component is not brought again by itself, and the next task has the program.
        std::fs::remove_dir_all(agent.state_dir().join("code/cache/pulled")).unwrap();
        std::fs::remove_file(&program).unwrap();
        exchangeable(tools.path());
        alloc.next_id();
    }
    let handle = agent.start_task(&alloc.config).await.unwrap();
    let net = |pid: String| std::fs::read_link(format!("/proc/{pid}/ns/net")).unwrap();
    assert_ne!(net(host_of(pid_of(&handle)).to_string()), net("self".to_owned()));
    let said = alloc.stderr.lock().unwrap().clone();
    assert!(!said.contains("not isolated by `net`"), "{said}");
    agent.destroy(alloc.id(), true).await.unwrap();
}

/// 11: nor does a program that is replaced before it has asked the registry keep the task from starting.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_program_that_is_replaced_before_the_component_is_brought_is_found() {
    let tools = tempfile::tempdir().unwrap();
    let program = exchangeable(tools.path());
    let mut agent = agent(&program).await;
    let mut alloc = agent.alloc("replaced", "hello");
    let shop = Shop::of(&std::fs::read(crate::agent::guest("hello")).unwrap());
    from(&agent, &mut alloc, &shop);
    agent.start_task(&alloc.config).await.unwrap();
    agent.destroy(alloc.id(), true).await.unwrap();
    // What is kept is looked at first, by a key that is now a FIFO: the task waits there.
    let code = agent.state_dir().join("code");
    let key = code.join("keys/mac.key");
    let own = std::fs::read(&key).unwrap();
    std::fs::remove_file(&key).unwrap();
    let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
    rustix::fs::mknodat(rustix::fs::CWD, &key, rustix::fs::FileType::Fifo, mode, 0).unwrap();
    let pulled = std::fs::read_dir(code.join("cache/pulled")).unwrap().next().unwrap().unwrap().path();
    std::fs::write(pulled, "damaged").unwrap();
    let asked = shop.asked.load(SeqCst);
    alloc.next_id();
    let (mut driver, task) = (agent.clients.driver.clone(), alloc.config.clone());
    let starting = tokio::spawn(async move { driver.start_task(StartTaskRequest { task: Some(task) }).await });
    let fifo = key.clone();
    let opened = tokio::task::spawn_blocking(move || std::fs::OpenOptions::new().write(true).open(fifo).unwrap());
    let mut waits = opened.await.unwrap();
    exchange(&program, "");
    std::fs::write(key.with_extension("new"), &own).unwrap();
    std::fs::rename(key.with_extension("new"), &key).unwrap();
    waits.write_all(&own).unwrap();
    drop(waits);
    starting.await.unwrap().unwrap();
    assert_eq!(shop.asked.load(SeqCst), asked + 1, "it was brought again");
    assert_eq!(alloc.get("/").await.unwrap().0, 200);
    agent.destroy(alloc.id(), true).await.unwrap();
}

/// The program under a name of its own.
fn exchangeable(dir: &Path) -> PathBuf {
    let (own, program) = (dir.join("sidereal"), crate::agent::sidereal());
    std::fs::hard_link(&program, &own).or_else(|_| std::fs::copy(&program, &own).map(drop)).unwrap();
    own
}

/// Puts another one in its place, which does this before anything else.
fn exchange(program: &Path, first: &str) {
    let (other, real) = (program.with_extension("new"), crate::agent::sidereal());
    let text = format!("#!/bin/sh\n{first}\nexec {} \"$@\"\n", real.display());
    std::fs::write(&other, text).unwrap();
    std::fs::set_permissions(&other, PermissionsExt::from_mode(0o755)).unwrap();
    std::fs::rename(other, program).unwrap();
}
