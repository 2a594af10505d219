//! Plugins and agents come and go; tasks stay, are found once, and their ends are known.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use plugin::contracts::hashicorp::nomad::plugins::drivers::proto::{StartTaskRequest, TaskRequest};
use plugin::error::is_recoverable;
use rustix::process::{Pid, Signal, kill_process};
use tonic::Code;

use crate::agent::{Agent, groups, pid_of, until};

fn kill(pid: i32, signal: Signal) {
    kill_process(Pid::from_raw(pid).unwrap(), signal).unwrap();
}

/// Since when a task runs, in seconds and nanoseconds.
async fn started_at(agent: &Agent, id: &str) -> (i64, i32) {
    let mut driver = agent.clients.driver.clone();
    let seen = driver.inspect_task(TaskRequest { task_id: id.to_owned() }).await.unwrap().into_inner();
    let at = seen.task.unwrap().started_at.unwrap();
    (at.seconds, at.nanos)
}

/// 16, 17: killed plugin, ended agent, killed agent; each time the same process goes on serving.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_task_outlives_plugins_and_agents() {
    let mut agent = Agent::start().await;
    let alloc = agent.alloc("outlives", "hello");
    let handle = agent.start_task(&alloc.config).await.unwrap();
    let pid = pid_of(&handle);
    let first = started_at(&agent, alloc.id()).await;

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
    assert_eq!(started_at(&agent, alloc.id()).await, first, "it was started when it was started");

    // The agent ends; the next one recovers.
    let mut agent = agent.restart().await;
    assert_eq!(alloc.get("/").await.unwrap().0, 200);
    agent.recover(&handle).await.unwrap();

    // The agent is killed; the next one finds the plugin that knows the task, and does not configure it.
    let mut agent = agent.reattach().await;
    agent.recover(&handle).await.unwrap();
    assert_eq!(alloc.get("/").await.unwrap().0, 200);
    assert!(drivers::wasm::process::Seen::of(pid).unwrap().is_some(), "the same process all along");
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
        until("the end", || drivers::wasm::process::Seen::of(pid_of(&handle)).unwrap().is_none_or(|seen| seen.dead))
            .await;
        agent = agent.relaunch().await;
        agent.recover(&handle).await.unwrap();
        assert_eq!(agent.wait(alloc.id()).await.unwrap().exit_code, code, "{name}");
        agent.destroy(alloc.id(), true).await.unwrap();
        assert!(drivers::wasm::process::Seen::session(pid_of(&handle)).unwrap().is_empty(), "{name}");
    }
}

/// 16: the number of a task of another boot of the machine is somebody else's: it is recovered as ended, and nobody is signalled.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_task_of_another_boot_has_ended_and_its_number_is_not_its_own() {
    let mut agent = Agent::start().await;
    let alloc = agent.alloc("boot", "hello");
    let handle = agent.start_task(&alloc.config).await.unwrap();
    let mut agent = agent.restart().await;
    let mut other = handle.clone();
    let mut state: serde_json::Value = serde_json::from_slice(&handle.driver_state).unwrap();
    state["state"]["boot"] = "another".into();
    other.driver_state = serde_json::to_vec(&state).unwrap();
    agent.recover(&other).await.unwrap();
    assert_eq!(agent.wait(alloc.id()).await.unwrap().exit_code, 137);
    agent.stop(alloc.id(), Duration::from_secs(1), "").await.unwrap();
    assert!(
        drivers::wasm::process::Seen::of(pid_of(&handle)).unwrap().is_some_and(|seen| !seen.dead),
        "somebody is signalled"
    );
    // Here somebody is in the groups of the task, as nobody is in another boot: they stay, and so does what says so.
    if !groups(alloc.id()).is_empty() {
        let left = agent.destroy(alloc.id(), true).await.unwrap_err();
        assert!(left.message().contains("control groups of the task are not empty") && is_recoverable(&left), "{left}");
    }
    // Whose number it is.
    kill(pid_of(&handle), Signal::KILL);
    until("its end", || drivers::wasm::process::Seen::session(pid_of(&handle)).unwrap().is_empty()).await;
    agent.destroy(alloc.id(), true).await.unwrap();
    assert!(agent.left().is_empty() && groups(alloc.id()).is_empty());
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

/// A program that becomes `sidereal`, where it is to run a task only once it is let: there is time to kill the plugin in.
struct Gate {
    tools: tempfile::TempDir,
}

impl Gate {
    fn new() -> Self {
        let gate = Self { tools: tempfile::tempdir().unwrap() };
        let text = format!(
            "#!/bin/sh\nif [ \"$1\" = task ]; then while [ ! -e \"$0.${{3##*/}}\" ]; do sleep 0.02; done; fi\nexec {} \"$@\"\n",
            crate::agent::sidereal().display()
        );
        std::fs::write(gate.program(), text).unwrap();
        std::fs::set_permissions(gate.program(), PermissionsExt::from_mode(0o755)).unwrap();
        gate
    }

    fn program(&self) -> PathBuf {
        self.tools.path().join("waits")
    }

    fn config(&self) -> serde_json::Value {
        serde_json::json!({"allow_unsigned": true, "sidereal": self.program().display().to_string()})
    }

    /// Lets the task in this directory run, now or when it comes.
    fn open(&self, dir: &Path) {
        let name = format!("waits.{}", dir.file_name().unwrap().to_str().unwrap());
        std::fs::write(self.tools.path().join(name), "").unwrap();
    }
}

/// Processes that run the task in this directory, without what they have started: between its fork and its exec a child of the
/// gate's shell has the command line of the shell.
fn processes(dir: &Path) -> Vec<i32> {
    let numbers =
        std::fs::read_dir("/proc").unwrap().filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    let runs = |pid: &i32| {
        let line = std::fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        line.contains("\0task\0--dir\0") && line.contains(dir.to_str().unwrap())
    };
    let all: Vec<i32> = numbers.filter(runs).collect();
    let parent = |pid: i32| -> Option<i32> {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        stat.rsplit_once(") ")?.1.split(' ').nth(1)?.parse().ok()
    };
    // What has ended since is none either.
    all.iter().copied().filter(|pid| parent(*pid).is_some_and(|parent| !all.contains(&parent))).collect()
}

/// 11, 16, 17: the plugin dies after it has started a process and before anybody knows which. It is found by the lock it holds,
/// and is the only one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_start_that_nobody_has_heard_of_is_the_only_one() {
    for asked_again in [true, false] {
        let gate = Gate::new();
        let agent = Agent::with(gate.config()).await;
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
        // It goes on while it is asked for; should it be there before, it is found all the same.
        let goes_on = async {
            tokio::time::sleep(Duration::from_millis(300)).await;
            gate.open(&dir);
        };
        if asked_again {
            let (handle, ()) = tokio::join!(agent.start_task(&alloc.config), goes_on);
            assert_eq!((processes(&dir), vec![pid_of(&handle.unwrap())]), (first.clone(), first.clone()), "one copy");
            assert_eq!(alloc.get("/").await.unwrap().0, 200);
            agent.destroy(alloc.id(), true).await.unwrap();
        } else {
            let (destroyed, ()) = tokio::join!(agent.destroy(alloc.id(), true), goes_on);
            destroyed.unwrap();
        }
        assert!(processes(&dir).is_empty() && agent.left().is_empty(), "{:?}", processes(&dir));
        assert!(groups(alloc.id()).is_empty());
    }
}

/// 11, 17: a program that ran to its end while there was no plugin is not run once more.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_program_that_ended_unheard_of_is_not_run_again() {
    let gate = Gate::new();
    let agent = Agent::with(gate.config()).await;
    let mut alloc = agent.alloc("once", "batch");
    let config = serde_json::json!({"component": "local/app.wasm", "args": ["print:ran", "exit:7"]});
    alloc.config.msgpack_driver_config = crate::block::block(&agent.schema, &config).unwrap();
    let dir = agent.task_state(alloc.id());
    let (mut driver, task) = (agent.clients.driver.clone(), alloc.config.clone());
    let starting = tokio::spawn(async move { driver.start_task(StartTaskRequest { task: Some(task) }).await.is_err() });
    until("a process", || !processes(&dir).is_empty()).await;
    let mut agent = agent.relaunch().await;
    assert!(starting.await.unwrap());
    gate.open(&dir);
    until("the end of the program", || dir.join("exit.json").exists() && processes(&dir).is_empty()).await;
    agent.start_task(&alloc.config).await.unwrap();
    assert_eq!(agent.wait(alloc.id()).await.unwrap().exit_code, 7);
    alloc.ended().await;
    assert_eq!(*alloc.stdout.lock().unwrap(), "ran\n", "once");
    agent.destroy(alloc.id(), true).await.unwrap();
    assert!(agent.left().is_empty());
}

/// 11, 16, 17: the agent dies while a task starts, and never hears of it: its next start has another id. Whether the plugin lives on
/// or not, the one before is ended and nothing of it stays; there is one copy.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_start_that_the_agent_never_heard_of_ends_with_the_next() {
    for (guest, plugin_dies, runs) in [
        ("hello", true, false),
        ("hello", false, false),
        ("batch", true, false),
        ("hello", false, true),
        ("batch", true, true),
    ] {
        let what = format!("{guest}, plugin dies: {plugin_dies}, runs: {runs}");
        let gate = Gate::new();
        let agent = Agent::with(gate.config()).await;
        let mut alloc = agent.alloc("in-flight", guest);
        if guest == "batch" {
            let sleep = if runs { "sleep:60000" } else { "sleep:1" };
            let config = serde_json::json!({"component": "local/app.wasm", "args": ["print:ran", sleep]});
            alloc.config.msgpack_driver_config = crate::block::block(&agent.schema, &config).unwrap();
        }
        let (first, dir) = (alloc.id().to_owned(), agent.task_state(alloc.id()));
        let (mut driver, task) = (agent.clients.driver.clone(), alloc.config.clone());
        let starting = tokio::spawn(async move { driver.start_task(StartTaskRequest { task: Some(task) }).await });
        until("a process", || !processes(&dir).is_empty()).await;
        if runs {
            gate.open(&dir);
            // The answer of the plugin does not reach the agent any more.
            let out = alloc.stdout.clone();
            let socket = dir.join("task.sock");
            until("it runs", || if guest == "batch" { out.lock().unwrap().contains("ran") } else { socket.exists() })
                .await;
        }
        starting.abort();
        let mut agent = if plugin_dies { agent.relaunch().await } else { agent.reattach().await };
        alloc.next_id();
        gate.open(&agent.task_state(alloc.id()));
        // The first one goes on meanwhile: it says who it is before it does anything, and that is waited for.
        let goes_on = async {
            tokio::time::sleep(Duration::from_millis(300)).await;
            gate.open(&dir);
        };
        let (started, ()) = tokio::join!(agent.start_task(&alloc.config), goes_on);
        started.unwrap_or_else(|refused| panic!("{what}: {refused}"));
        assert!(processes(&dir).is_empty() && groups(&first).is_empty(), "{what}: the first one is gone");
        let left = agent.left();
        assert_eq!(left, [agent.task_state(alloc.id())], "{what}: nothing of it stays");
        match guest {
            "hello" => assert_eq!(alloc.get("/").await.unwrap().0, 200, "{what}"),
            _ => {
                // One that ran already was ended, and one that did not never runs.
                let times = if runs { 2 } else { 1 };
                if runs {
                    // As `logmon` does after the end of a writer.
                    alloc.read();
                }
                until("its output", || alloc.stdout.lock().unwrap().matches("ran").count() == times).await;
                if !runs {
                    assert_eq!(agent.wait(alloc.id()).await.unwrap().exit_code, 0, "{what}");
                    alloc.ended().await;
                    assert_eq!(*alloc.stdout.lock().unwrap(), "ran\n", "{what}: once");
                }
            }
        }
        // What the agent asks of the first one, if it should, is answered.
        agent.stop(&first, Duration::from_secs(1), "").await.unwrap();
        agent.destroy(&first, true).await.unwrap();
        agent.destroy(alloc.id(), true).await.unwrap();
        assert!(agent.left().is_empty());
    }
}

/// 11, 17: the agent dies while a task starts, its job is stopped meanwhile, and no start of the task follows. The plugin, which
/// lives on, ends it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_start_that_nobody_hears_of_and_none_follows_ends() {
    let gate = Gate::new();
    let agent = Agent::with(gate.config()).await;
    let alloc = agent.alloc("unfollowed", "hello");
    let dir = agent.task_state(alloc.id());
    let (mut driver, task) = (agent.clients.driver.clone(), alloc.config.clone());
    let starting = tokio::spawn(async move { driver.start_task(StartTaskRequest { task: Some(task) }).await });
    until("a process", || !processes(&dir).is_empty()).await;
    let begun = std::time::Instant::now();
    starting.abort();
    let mut agent = agent.reattach().await;
    gate.open(&dir);
    until("it serves", || std::net::TcpStream::connect(alloc.address).is_ok()).await;
    // One of which the agent hears goes on.
    let other = agent.alloc("heard", "hello");
    gate.open(&agent.task_state(other.id()));
    agent.start_task(&other.config).await.unwrap();
    while !processes(&dir).is_empty() || !groups(alloc.id()).is_empty() {
        assert!(begun.elapsed() < Duration::from_secs(120), "it goes on");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    until("nothing of it stays", || agent.left() == [agent.task_state(other.id())]).await;
    assert!(begun.elapsed() > Duration::from_secs(10), "the agent had time to ask again");
    assert_eq!(other.get("/").await.unwrap().0, 200);
    agent.destroy(other.id(), true).await.unwrap();
    // The next job of that name begins as if there had been none.
    agent.start_task(&alloc.config).await.unwrap();
    agent.destroy(alloc.id(), true).await.unwrap();
    assert!(agent.left().is_empty());
}

/// 14: a task that is being started can be stopped: a registry that never ends its answer holds nobody up for ever.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_start_can_be_stopped() {
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut agent = Agent::start().await;
    let mut alloc = agent.alloc("stopped", "hello");
    let component = format!("{}/shop@{}", silent.local_addr().unwrap(), model::Digest::of(b"shop"));
    let config = serde_json::json!({"component": component, "http": {"port": "http"}});
    alloc.config.msgpack_driver_config = crate::block::block(&agent.schema, &config).unwrap();
    let (mut driver, task) = (agent.clients.driver.clone(), alloc.config.clone());
    let starting = tokio::spawn(async move { driver.start_task(StartTaskRequest { task: Some(task) }).await });
    // Connected to, and never answered.
    let _asked = silent.accept().await.unwrap();
    let begun = std::time::Instant::now();
    // A registry is given up by itself, but not within this time.
    agent.stop(alloc.id(), Duration::from_secs(5), "").await.unwrap();
    assert!(starting.await.unwrap().is_err(), "it did not start");
    assert!(begun.elapsed() < Duration::from_secs(25), "{:?}", begun.elapsed());
    assert!(processes(&agent.task_state(alloc.id())).is_empty());
    agent.destroy(alloc.id(), true).await.unwrap();
    assert!(agent.left().is_empty() && groups(alloc.id()).is_empty());
}

/// 11, 14: an agent that is told to stop a task waits until it has started or failed: a registry that is silent is soon given up.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_silent_registry_is_given_up() {
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let mut agent = Agent::start().await;
    let mut alloc = agent.alloc("silent", "hello");
    let component = format!("{}/shop@{}", silent.local_addr().unwrap(), model::Digest::of(b"shop"));
    let config = serde_json::json!({"component": component, "http": {"port": "http"}});
    alloc.config.msgpack_driver_config = crate::block::block(&agent.schema, &config).unwrap();
    let begun = std::time::Instant::now();
    let refused = agent.start_task(&alloc.config).await.unwrap_err();
    assert!(begun.elapsed() < Duration::from_secs(90), "{:?}", begun.elapsed());
    assert!(is_recoverable(&refused) && refused.message().contains("cannot bring"), "{refused}");
    assert!(agent.left().is_empty());
}

/// 11: a registry that answers without end, or a little at a time, takes neither the client's memory nor its patience.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_registry_without_end_is_no_registry() {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let endless = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = endless.local_addr().unwrap();
    let sent = std::sync::Arc::new(std::sync::atomic::AtomicU64::new(0));
    let counted = sent.clone();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = endless.accept().await.unwrap();
            let counted = counted.clone();
            tokio::spawn(async move {
                let mut asked = [0; 4096];
                let count = stream.read(&mut asked).await.unwrap_or(0);
                let manifest = String::from_utf8_lossy(&asked[..count]).contains("/manifests/");
                let head = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n";
                if !manifest {
                    drop(
                        stream
                            .write_all(format!("{head}content-length: 2\r\nconnection: close\r\n\r\n{{}}").as_bytes())
                            .await,
                    );
                    return;
                }
                drop(stream.write_all(format!("{head}\r\n").as_bytes()).await);
                while stream.write_all(&[b' '; 65_536]).await.is_ok() {
                    counted.fetch_add(65_536, std::sync::atomic::Ordering::Relaxed);
                }
            });
        }
    });
    let mut agent = Agent::start().await;
    let mut alloc = agent.alloc("endless", "hello");
    let component = format!("{address}/shop@{}", model::Digest::of(b"shop"));
    let config = serde_json::json!({"component": component, "http": {"port": "http"}});
    alloc.config.msgpack_driver_config = crate::block::block(&agent.schema, &config).unwrap();
    let refused = agent.start_task(&alloc.config).await.unwrap_err();
    assert!(refused.message().contains("cannot be read in 256 MiB") && !is_recoverable(&refused), "{refused}");
    let sent = sent.load(std::sync::atomic::Ordering::Relaxed);
    assert!((1 << 20..600 << 20).contains(&sent), "{sent} bytes");
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
    assert!(drivers::wasm::process::Seen::session(pid).unwrap().is_empty());
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
    let members = drivers::wasm::process::Seen::session(pid).unwrap();
    let host = members.iter().find(|member| member.identity.pid != pid).unwrap().identity;
    kill(host.pid, Signal::KILL);
    let until = std::time::Instant::now() + Duration::from_secs(60);
    loop {
        let now = drivers::wasm::process::Seen::session(pid).unwrap();
        let other = now.iter().any(|member| member.identity.pid != pid && member.identity != host);
        if other && alloc.get("/").await.is_ok_and(|(status, _)| status == 200) {
            break;
        }
        assert!(std::time::Instant::now() < until, "{now:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    agent.destroy(alloc.id(), true).await.unwrap();
}
