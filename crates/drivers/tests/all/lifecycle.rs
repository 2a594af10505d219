//! A task's life: started, served, asked about, stopped, destroyed; and nothing left of it.

use std::io::BufRead as _;
use std::sync::atomic::Ordering::SeqCst;
use std::time::{Duration, Instant};

use plugin::contracts::hashicorp::nomad::plugins::drivers::proto::{
    StartTaskRequest, StartTaskResponse, StopTaskRequest, TaskRequest, TaskStatsRequest,
};
use plugin::error::is_recoverable;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tonic::Code;

use crate::agent::{Agent, Alloc, get, groups, pid_of, until};
use crate::registry::Shop;

fn alive(pid: i32) -> bool {
    drivers::wasm::process::Seen::of(pid).unwrap().is_some_and(|seen| !seen.dead)
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
    let session = drivers::wasm::process::Seen::session(pid).unwrap();
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
    // Of thirty seconds calls have twenty-four.
    for (timeout, last) in [(30_000, Some(6_500)), (1_500, None)] {
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
        if let Some(last) = last {
            tokio::time::sleep_until((begun + Duration::from_millis(last)).into()).await;
            call.write_all(b"done").await.unwrap();
        }
        let answer = rest(call).await;
        stop.await.unwrap().unwrap();
        assert_eq!(answer.contains("done") && answer.ends_with("0\r\n\r\n"), last.is_some(), "{answer}");
        let took = begun.elapsed();
        assert!(took < timeout + Duration::from_secs(60), "{took:?}");
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
    let members = drivers::wasm::process::Seen::session(pid).unwrap();
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

/// 14: a job whose `kill_signal` is SIGKILL waits for no call.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kill_signal_of_sigkill_ends_a_task_at_once() {
    let mut agent = Agent::start().await;
    let alloc = agent.alloc("sigkill", "probe");
    let handle = agent.start_task(&alloc.config).await.unwrap();
    let call = half(&alloc).await;
    let begun = Instant::now();
    agent.stop(alloc.id(), Duration::from_secs(300), "SIGKILL").await.unwrap();
    assert!(begun.elapsed() < Duration::from_secs(120), "{:?}", begun.elapsed());
    let answer = rest(call).await;
    assert!(!answer.ends_with("0\r\n\r\n"), "{answer}");
    let result = agent.wait(alloc.id()).await.unwrap();
    assert_eq!((result.exit_code, result.signal), (137, 9));
    agent.destroy(alloc.id(), true).await.unwrap();
    nothing_left(&agent, &alloc, pid_of(&handle)).await;
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

/// 12: nor is it an error where it is asked for again while it starts: the agent may have given up the first time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_id_that_is_asked_for_twice_while_it_starts_is_one_task() {
    let mut agent = Agent::start().await;
    let mut alloc = agent.alloc("both", "hello");
    let shop = Shop::of(&std::fs::read(crate::agent::guest("hello")).unwrap());
    let config = serde_json::json!({"component": shop.pinned(shop.open()), "http": {"port": "http"}});
    alloc.config.msgpack_driver_config = crate::block::block(&agent.schema, &config).unwrap();
    let ((lock, locked), (release, released)) = (std::sync::mpsc::channel(), std::sync::mpsc::channel::<()>());
    let closed = shop.clone();
    std::thread::spawn(move || {
        let _waits = closed.waits.lock().unwrap();
        lock.send(()).unwrap();
        assert!(released.recv().is_err(), "it is dropped");
    });
    locked.recv().unwrap();
    let start = || {
        let (mut driver, task) = (agent.clients.driver.clone(), alloc.config.clone());
        Box::pin(async move { driver.start_task(StartTaskRequest { task: Some(task) }).await })
    };
    let (mut first, mut second) = (start(), start());
    assert!(futures::poll!(&mut first).is_pending());
    let first = tokio::spawn(first);
    until("a question", || shop.questions.load(SeqCst) > 0).await;
    // What it is asked later on the same connection, it answers later.
    assert!(futures::poll!(&mut second).is_pending());
    let second = tokio::spawn(second);
    let mut driver = agent.clients.driver.clone();
    assert!(driver.inspect_task(TaskRequest { task_id: alloc.id().to_owned() }).await.is_err());
    drop(release);
    let pid = |answer: tonic::Response<StartTaskResponse>| pid_of(&answer.into_inner().handle.unwrap());
    assert_eq!(pid(first.await.unwrap().unwrap()), pid(second.await.unwrap().unwrap()));
    assert_eq!(alloc.get("/").await.unwrap().0, 200);
    agent.destroy(alloc.id(), true).await.unwrap();
    assert!(agent.left().is_empty());
}

/// 12: nor are there two where several ask at the very same time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_id_that_several_ask_for_at_once_is_one_task() {
    use drivers::wasm::process::Seen;
    let mut agent = Agent::start().await;
    for round in 0..3 {
        let alloc = agent.alloc(&format!("race-{round}"), "hello");
        let starts = (0..4).map(|_| {
            let (mut driver, task) = (agent.clients.driver.clone(), alloc.config.clone());
            tokio::spawn(async move { driver.start_task(StartTaskRequest { task: Some(task) }).await })
        });
        let mut pids = Vec::new();
        for start in starts.collect::<Vec<_>>() {
            match start.await.unwrap() {
                Ok(answer) => pids.push(pid_of(&answer.into_inner().handle.unwrap())),
                Err(refused) => assert!(refused.message().contains("started already"), "{refused}"),
            }
        }
        pids.dedup();
        assert_eq!(pids.len(), 1, "{pids:?}");
        let dir = agent.task_state(alloc.id()).display().to_string();
        let is_its = |seen: &Seen| {
            let line = std::fs::read(format!("/proc/{}/cmdline", seen.identity.pid)).unwrap_or_default();
            String::from_utf8_lossy(&line).contains(&dir)
        };
        let mut sessions: Vec<i32> = Seen::all().unwrap().into_iter().filter(is_its).map(|seen| seen.session).collect();
        sessions.sort_unstable();
        sessions.dedup();
        assert_eq!(sessions, pids);
        assert_eq!(alloc.get("/").await.unwrap().0, 200);
        agent.destroy(alloc.id(), true).await.unwrap();
    }
    assert!(agent.left().is_empty());
}

/// A component of WASI 0.3 is served like one of 0.2.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_component_of_the_next_wasi_is_served() {
    let mut agent = Agent::start().await;
    let alloc = agent.alloc("next", "hello-p3");
    agent.start_task(&alloc.config).await.unwrap();
    let (status, body) = alloc.get("/").await.unwrap();
    assert_eq!(status, 200, "{body}");
    agent.destroy(alloc.id(), true).await.unwrap();
}

/// Reads lines of a FIFO until one is `last`, and closes it then.
fn read_until(path: &str, last: &str) -> Vec<String> {
    let mut lines = std::io::BufReader::new(std::fs::File::open(path).unwrap()).lines();
    let mut seen = Vec::new();
    while seen.last().is_none_or(|line| line != last) {
        seen.push(lines.next().expect("the task has it open").unwrap());
    }
    seen
}

/// What is read until the component has written this line, which it does again and again.
async fn told(alloc: &Alloc, text: &str) -> Vec<String> {
    let (path, last) = (alloc.config.stdout_path.clone(), format!("out {text}"));
    let reading = tokio::task::spawn_blocking(move || read_until(&path, &last));
    let began = Instant::now();
    while !reading.is_finished() {
        assert!(began.elapsed() < Duration::from_secs(60), "`{text}` does not arrive");
        assert_eq!(alloc.get(&format!("/log?text={text}")).await.unwrap().0, 200);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    reading.await.unwrap()
}

/// 22: what the component writes arrives. A reader that went away is waited for, the next one is found, and one that is slow
/// holds up nobody.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lines_reach_the_fifos() {
    let mut agent = Agent::start().await;
    let alloc = agent.quiet_alloc("lines", "probe");
    agent.start_task(&alloc.config).await.unwrap();
    assert_eq!(alloc.get("/log?text=early").await.unwrap().0, 200);
    let lines = told(&alloc, "first").await;
    assert_eq!(lines.first().map(String::as_str), Some("out early"), "it waited for a reader: {lines:?}");
    told(&alloc, "second").await;
    // More than a pipe holds, and nobody reads.
    let long = "x".repeat(1000);
    for _ in 0..300 {
        assert_eq!(alloc.get(&format!("/log?text={long}")).await.unwrap().0, 200);
    }
    let lines = told(&alloc, "third").await;
    assert!(lines.iter().filter(|line| line.ends_with(&long)).count() > 100, "{} lines", lines.len());
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

/// 26: the host of a task is in the groups of its share of the processor, and on the cores that the agent gave.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_task_has_its_share_of_the_processor_and_its_cores() {
    let cores = CoreSet::new();
    let (Some(cores), true) = (cores, drivers::wasm::cgroup::available()) else {
        crate::not_run("shares and cores: this user cannot make control groups of version 1");
        return;
    };
    let mut agent = Agent::start().await;
    let mut alloc = agent.alloc("share", "hello");
    let linux = alloc.config.resources.as_mut().unwrap().linux_resources.as_mut().unwrap();
    linux.cpu_shares = 321;
    linux.cpuset_cgroup = cores.0.display().to_string();
    let handle = agent.start_task(&alloc.config).await.unwrap();
    let host = crate::agent::host_of(pid_of(&handle));
    assert_eq!(crate::agent::status(host, "Cpus_allowed_list"), "0");
    let groups = std::fs::read_to_string(format!("/proc/{host}/cgroup")).unwrap();
    let cpu = groups.lines().find_map(|line| {
        let (controllers, path) = line.split_once(':')?.1.split_once(':')?;
        controllers.split(',').any(|name| name == "cpu").then(|| format!("/sys/fs/cgroup/cpu{path}/cpu.shares"))
    });
    assert_eq!(std::fs::read_to_string(cpu.unwrap()).unwrap().trim(), "321");
    agent.destroy(alloc.id(), true).await.unwrap();
    // One that is not there is waited for: nothing runs on every core meanwhile.
    let linux = alloc.config.resources.as_mut().unwrap().linux_resources.as_mut().unwrap();
    linux.cpuset_cgroup = format!("{}-none", cores.0.display());
    alloc.next_id();
    let refused = agent.start_task(&alloc.config).await.unwrap_err();
    assert!(
        is_recoverable(&refused) && refused.message().contains("-none as the group of the task's cores"),
        "{refused}"
    );
    assert!(agent.left().is_empty() && crate::agent::groups(alloc.id()).is_empty());
}

/// A group of the first core, as agents make them on machines with control groups of version 1.
struct CoreSet(std::path::PathBuf);

impl CoreSet {
    fn new() -> Option<Self> {
        let dir = std::path::PathBuf::from(format!("/sys/fs/cgroup/cpuset/sidereal-test-{}", std::process::id()));
        std::fs::create_dir(&dir).ok()?;
        let made = Self(dir);
        for (file, value) in [("cpuset.cpus", "0"), ("cpuset.mems", "0")] {
            std::fs::write(made.0.join(file), value).ok()?;
        }
        Some(made)
    }
}

impl Drop for CoreSet {
    fn drop(&mut self) {
        drop(std::fs::remove_dir(&self.0));
    }
}

/// 26: also where it is reached before the task serves: that is what is told, and not that a process ended.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_task_whose_memory_does_not_do_for_its_start_is_told_so() {
    if !drivers::wasm::cgroup::available() {
        crate::not_run("memory bounds: this user cannot make control groups");
        return;
    }
    let mut agent = Agent::start().await;
    let mut alloc = agent.alloc("narrow", "hello");
    let linux = alloc.config.resources.as_mut().unwrap().linux_resources.as_mut().unwrap();
    linux.memory_limit_bytes = 2 << 20;
    let refused = agent.start_task(&alloc.config).await.unwrap_err();
    let why = "the task used all the memory of its `resources` block and was killed [limit-reached] (raise `memory`";
    assert!(refused.message().contains(why) && plugin::error::is_recoverable(&refused), "{refused}");
    assert!(agent.left().is_empty() && groups(alloc.id()).is_empty());
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
    let result =
        tokio::time::timeout(Duration::from_secs(120), agent.wait(alloc.id())).await.expect("it ends").unwrap();
    assert!(result.oom_killed && result.exit_code == 137, "{result:?}");
    let told = agent.events.clone();
    let why = "the task used all the memory of its `resources` block and was killed [limit-reached] (raise `memory` (or \
               `memory_max`), or let it use less)";
    until("an event", || told.lock().unwrap().iter().any(|event| event.message == why)).await;
    agent.destroy(alloc.id(), true).await.unwrap();
    assert!(agent.left().is_empty());
    assert!(groups(alloc.id()).is_empty(), "a control group stays behind");
}
