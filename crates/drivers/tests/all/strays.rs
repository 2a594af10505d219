//! An agent is killed alone, after its plugin has answered a start and before it has written that down: the plugin lives on, and
//! knows which task the next agent knows nothing of.

use std::sync::Arc;
use std::time::{Duration, Instant};

use drivers::wasm::WasmDriver;
use drivers::wasm::process::Seen;
use futures::StreamExt as _;
use plugin::Driver as _;
use plugin::contracts::hashicorp::nomad::plugins::drivers::proto::TaskHandle;
use serde_json::json;
use tokio::task::JoinHandle;

use crate::agent::{Agent, Alloc, pid_of, set, sidereal};

/// Fingerprints come each half minute, and with them the look for what nobody knows.
const PATIENCE: Duration = Duration::from_secs(1);

/// Takes fingerprints, as an agent does as long as it lives.
fn listens(driver: &WasmDriver) -> JoinHandle<()> {
    let mut fingerprints = driver.fingerprint();
    tokio::spawn(async move { while fingerprints.next().await.is_some() {} })
}

fn waits(driver: &Arc<WasmDriver>, alloc: &Alloc) -> JoinHandle<()> {
    let (driver, id) = (driver.clone(), alloc.id().to_owned());
    tokio::spawn(async move { drop(driver.wait(&id).await) })
}

/// 11, 17: the next agent waits for one task, has recovered another one and does not come to wait for it, and was never told of the
/// third, which ends.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_no_agent_waits_for_ends_and_what_one_knows_goes_on() {
    let state = tempfile::tempdir().unwrap();
    let driver = Arc::new(WasmDriver::patient(PATIENCE));
    let config = json!({"allow_unsigned": true, "sidereal": sidereal().display().to_string(),
        "state_dir": state.path().join("state").display().to_string(),
        "enforce_resources": drivers::wasm::cgroup::available()});
    driver.configure(&set(&driver.agent_schema(), &config, None).msgpack_config).unwrap();
    // Its allocations; nothing is started by it.
    let agent = Agent::start().await;
    let mut tasks = Vec::new();
    let mut first = driver.fingerprint();
    first.next().await.unwrap();
    for name in ["waited-for", "recovered", "unknown"] {
        let alloc = agent.alloc(name, "hello");
        let started = driver.start(alloc.config.clone()).await.unwrap();
        let handle =
            TaskHandle { config: Some(alloc.config.clone()), driver_state: started.state, ..TaskHandle::default() };
        tasks.push((alloc, handle));
    }
    let [known, recovered, unknown] = &tasks[..] else { panic!("three tasks") };
    let before = [waits(&driver, &known.0), waits(&driver, &recovered.0)];
    let end = Instant::now() + Duration::from_secs(240);
    let runs = |task: &(Alloc, TaskHandle)| Seen::of(pid_of(&task.1)).unwrap().is_some_and(|seen| !seen.dead);
    // The agent is killed.
    drop(first);
    for wait in before {
        wait.abort();
        drop(wait.await);
    }
    let second = listens(&driver);
    for (_, handle) in [known, recovered] {
        driver.recover(handle.clone()).await.unwrap();
    }
    let wait = waits(&driver, &known.0);
    while runs(unknown) || driver.wait(unknown.0.id()).await.is_ok() {
        assert!(Instant::now() < end, "nobody ends it");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(unknown.0.get("/").await.is_err(), "nobody listens");
    for (alloc, _) in [known, recovered] {
        assert_eq!(alloc.get("/").await.unwrap().0, 200);
    }
    assert!(!wait.is_finished(), "its agent waits on");
    for (alloc, handle) in [known, recovered] {
        driver.destroy(alloc.id(), true).await.unwrap();
        assert!(Seen::session(pid_of(handle)).unwrap().is_empty());
    }
    let left = std::fs::read_dir(state.path().join("state/tasks")).unwrap().count();
    assert_eq!(left, 0, "nothing of them stays");
    second.abort();
}
