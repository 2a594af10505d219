//! A task's life: started, served, asked about, stopped, destroyed; and nothing left of it.

use std::time::{Duration, Instant};

use drivers::contracts::hashicorp::nomad::plugins::drivers::proto::{StopTaskRequest, TaskRequest, TaskStatsRequest};
use drivers::plugin::error::is_recoverable;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tonic::Code;

use crate::agent::{Agent, Alloc, get, groups, pid_of, until};

fn alive(pid: i32) -> bool {
    drivers::wasm::process::Seen::of(pid).is_some_and(|seen| !seen.dead)
}

/// 10, 11, 13, 14, 15, 18, 22: the whole of it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_component_serves_until_it_is_stopped_and_leaves_nothing() {
    let mut agent = Agent::start().await;
    assert_eq!((agent.first.health, agent.first.health_description.as_str()), (2, "Healthy"), "{:?}", agent.first);
    assert!(agent.first.attributes.contains_key("driver.wasm.version"));
    let alloc = agent.alloc("life", "hello");
    let handle = agent.start_task(&alloc.config).await.unwrap();
    assert_eq!((handle.version, handle.state), (1, 1));
    let pid = pid_of(&handle);
    // It serves when it is said to be started, whatever name it is called by.
    let (status, body) = alloc.get("/").await.unwrap();
    assert_eq!(status, 200, "{body}");

    // Waited for by several, one of whom gives up.
    let waits: Vec<_> = (0..3)
        .map(|_| {
            let mut driver = agent.clients.driver.clone();
            let request = TaskRequest { task_id: alloc.id().to_owned() };
            tokio::spawn(async move { driver.wait_task(request).await })
        })
        .collect();
    let mut given_up = agent.clients.driver.clone();
    let wait = given_up.wait_task(TaskRequest { task_id: alloc.id().to_owned() });
    assert!(tokio::time::timeout(Duration::from_millis(100), wait).await.is_err(), "it runs");

    let seen = agent.clients.driver.inspect_task(TaskRequest { task_id: alloc.id().to_owned() }).await.unwrap();
    let seen = seen.into_inner().task.unwrap();
    assert_eq!((seen.name.as_str(), seen.state), ("web", 1));

    let request = TaskStatsRequest {
        task_id: alloc.id().to_owned(),
        collection_interval: Some(Duration::from_millis(100).try_into().unwrap()),
    };
    let mut stats = agent.clients.driver.task_stats(request).await.unwrap().into_inner();
    for _ in 0..3 {
        let usage = stats.message().await.unwrap().unwrap().stats.unwrap().agg_resource_usage.unwrap();
        let memory = usage.memory.unwrap();
        assert!(memory.rss > 1 << 20 && memory.measured_fields.len() == 3, "{memory:?}");
        assert_eq!(usage.cpu.unwrap().measured_fields.len(), 4);
    }
    // The collection is cancelled; another one begins.
    drop(stats);
    let request = TaskStatsRequest { task_id: alloc.id().to_owned(), collection_interval: None };
    let mut stats = agent.clients.driver.task_stats(request).await.unwrap().into_inner();
    stats.message().await.unwrap().unwrap();

    // A task that runs is not forgotten without force.
    assert!(agent.destroy(alloc.id(), false).await.is_err());
    agent.stop(alloc.id(), Duration::from_secs(10), "").await.unwrap();
    for wait in waits {
        let result = wait.await.unwrap().unwrap().into_inner().result.unwrap();
        assert_eq!((result.exit_code, result.signal), (0, 0));
    }
    // Its stats end, and how it ended can be asked for until it is destroyed.
    while let Ok(Some(_)) = stats.message().await {}
    assert_eq!(agent.wait(alloc.id()).await.unwrap().exit_code, 0);
    agent.stop(alloc.id(), Duration::from_secs(1), "").await.unwrap();
    agent.destroy(alloc.id(), true).await.unwrap();
    assert_eq!(agent.wait(alloc.id()).await.unwrap_err().code(), Code::NotFound);
    // The unknown has ended.
    agent.destroy(alloc.id(), true).await.unwrap();
    agent.stop(alloc.id(), Duration::from_secs(1), "").await.unwrap();
    nothing_left(&agent, &alloc, pid).await;
}

async fn nothing_left(agent: &Agent, alloc: &Alloc, pid: i32) {
    assert!(!alive(pid), "the task's process is gone");
    let session = drivers::wasm::process::Seen::session(pid);
    assert!(session.is_empty(), "{session:?}");
    assert!(agent.left().is_empty(), "{:?}", agent.left());
    assert!(get(alloc.address, "/").await.is_err(), "nobody listens");
}

/// A call that is under way: half of what it sends was answered.
async fn half(alloc: &Alloc) -> TcpStream {
    let mut stream = TcpStream::connect(alloc.address).await.unwrap();
    let head = format!("POST /echo HTTP/1.1\r\nhost: {}\r\ncontent-length: 8\r\n\r\nhalf", alloc.address);
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut seen = Vec::new();
    while !seen.windows(4).any(|bytes| bytes == b"half") {
        assert!(stream.read_buf(&mut seen).await.unwrap() > 0, "{}", String::from_utf8_lossy(&seen));
    }
    assert!(seen.starts_with(b"HTTP/1.1 200 "), "{}", String::from_utf8_lossy(&seen));
    stream
}

/// What comes until the connection ends.
async fn rest(mut stream: TcpStream) -> String {
    let mut seen = Vec::new();
    drop(stream.read_to_end(&mut seen).await);
    String::from_utf8_lossy(&seen).into_owned()
}

/// 14: calls in flight finish; those that do not are ended when the time is up.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_in_flight_have_until_the_deadline() {
    let mut agent = Agent::start().await;
    let mut alloc = agent.alloc("drain", "probe");
    for (timeout, finishes) in [(10_000, true), (1_500, false)] {
        agent.start_task(&alloc.config).await.unwrap();
        let mut call = half(&alloc).await;
        let begun = Instant::now();
        let (mut stopping, id) = (agent.clients.driver.clone(), alloc.id().to_owned());
        let timeout = Duration::from_millis(timeout);
        let stop = tokio::spawn(async move {
            let request =
                StopTaskRequest { task_id: id, timeout: Some(timeout.try_into().unwrap()), signal: "SIGTERM".into() };
            stopping.stop_task(request).await
        });
        // Nobody new is let in once it stops.
        while TcpStream::connect(alloc.address).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        if finishes {
            call.write_all(b"done").await.unwrap();
        }
        let answer = rest(call).await;
        stop.await.unwrap().unwrap();
        assert_eq!(answer.contains("done") && answer.ends_with("0\r\n\r\n"), finishes, "{answer}");
        let took = begun.elapsed();
        assert!(took < timeout + Duration::from_secs(4), "{took:?}");
        agent.destroy(alloc.id(), true).await.unwrap();
        alloc.next_id();
    }
    assert!(agent.left().is_empty());
}

/// 14, 15: what does not listen any more is killed, and so is everything it started.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_task_that_does_not_answer_is_killed_with_all_it_started() {
    let mut agent = Agent::start().await;
    let alloc = agent.alloc("stuck", "hello");
    let handle = agent.start_task(&alloc.config).await.unwrap();
    let pid = pid_of(&handle);
    let members = drivers::wasm::process::Seen::session(pid);
    assert!(members.len() >= 2, "the task and its host: {members:?}");
    for member in &members {
        let pid = rustix::process::Pid::from_raw(member.identity.pid).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::STOP).unwrap();
    }
    agent.stop(alloc.id(), Duration::from_millis(300), "").await.unwrap();
    let result = agent.wait(alloc.id()).await.unwrap();
    assert_eq!((result.exit_code, result.signal), (137, 9));
    agent.destroy(alloc.id(), true).await.unwrap();
    nothing_left(&agent, &alloc, pid).await;
}

/// 15, 19: destroyed by force while it runs; people are told.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn force_destroys_what_runs() {
    let mut agent = Agent::start().await;
    let alloc = agent.alloc("force", "hello");
    let handle = agent.start_task(&alloc.config).await.unwrap();
    agent.destroy(alloc.id(), true).await.unwrap();
    nothing_left(&agent, &alloc, pid_of(&handle)).await;
    let told = agent.events.clone();
    until("an event", || told.lock().unwrap().iter().any(|event| event.message.contains("killed"))).await;
    let events = agent.events.lock().unwrap().clone();
    assert!(events.iter().all(|event| event.alloc_id == "force-alloc" && event.task_name == "web"), "{events:?}");
    assert!(events.iter().any(|event| event.message.starts_with("Bringing")), "{events:?}");
}

/// 12: one id, one task.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_id_is_started_once() {
    let mut agent = Agent::start().await;
    let alloc = agent.alloc("twice", "hello");
    let handle = agent.start_task(&alloc.config).await.unwrap();
    let again = agent.start_task(&alloc.config).await.unwrap_err();
    assert!(again.message().contains("started already") && !is_recoverable(&again), "{again}");
    assert_eq!(alloc.get("/").await.unwrap().0, 200, "the first one is as it was");
    assert!(alive(pid_of(&handle)));
    agent.destroy(alloc.id(), true).await.unwrap();
}

/// 22: what the component writes arrives; a reader that goes away is waited for, and the next one is found.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lines_reach_the_fifos() {
    let mut agent = Agent::start().await;
    let alloc = agent.alloc("lines", "probe");
    agent.start_task(&alloc.config).await.unwrap();
    assert_eq!(alloc.get("/log?text=hello").await.unwrap().0, 200);
    let out = alloc.stdout.clone();
    until("a line", || !out.lock().unwrap().is_empty()).await;
    agent.stop(alloc.id(), Duration::from_secs(5), "").await.unwrap();
    agent.destroy(alloc.id(), true).await.unwrap();

    // Nobody collects logs.
    let mut quiet = agent.alloc("quiet", "hello");
    quiet.config.stdout_path = "/dev/null".into();
    quiet.config.stderr_path = "/dev/null".into();
    agent.start_task(&quiet.config).await.unwrap();
    assert_eq!(quiet.get("/").await.unwrap().0, 200);
    agent.destroy(quiet.id(), true).await.unwrap();
}

/// 26: the memory of the `resources` block is a bound; a task that reaches it has ended, by its own fault.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_task_that_runs_out_of_memory_is_said_to_have() {
    if !drivers::wasm::cgroup::available() {
        crate::not_run("memory bounds: this user cannot make control groups");
        return;
    }
    let mut agent = Agent::start().await;
    let mut alloc = agent.alloc("memory", "probe");
    let linux = alloc.config.resources.as_mut().unwrap().linux_resources.as_mut().unwrap();
    linux.memory_limit_bytes = 40 << 20;
    agent.start_task(&alloc.config).await.unwrap();
    assert_eq!(alloc.get("/").await.unwrap().0, 200, "it serves within its bound");
    drop(alloc.get("/hostcopy?mib=60").await);
    let result = tokio::time::timeout(Duration::from_secs(20), agent.wait(alloc.id())).await.expect("it ends").unwrap();
    assert!(result.oom_killed && result.exit_code == 137, "{result:?}");
    let told = agent.events.clone();
    let why = "the task used all the memory of its `resources` block and was killed";
    until("an event", || told.lock().unwrap().iter().any(|event| event.message == why)).await;
    agent.destroy(alloc.id(), true).await.unwrap();
    assert!(agent.left().is_empty());
    assert!(groups(alloc.id()).is_empty(), "a control group stays behind");
}
