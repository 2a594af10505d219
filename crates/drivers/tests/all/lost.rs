//! Files of a task are gone that say what it is, or how it ended: as where something removes what is old, or a machine lost its power.
//! Nothing runs on for that, and nobody is told what is not so.

use std::path::Path;
use std::time::Duration;

use drivers::wasm::kept::GONE_FOR;
use drivers::wasm::process::Seen;
use rustix::process::{Pid, Signal, kill_process};

use crate::agent::{Agent, groups, pid_of, until};
use crate::apart::kept_of;
use crate::leftovers::age;

fn remove(dir: &Path, names: &[&str]) {
    for name in names {
        std::fs::remove_file(dir.join(name)).unwrap_or_else(|cause| panic!("{name}: {cause}"));
    }
}

/// 13, 16: the files are gone and the task runs. It is found again, ends as it is told to, and how it ended is known.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_task_whose_files_were_removed_is_found_again() {
    let mut agent = Agent::start().await;
    let alloc = agent.alloc("swept", "hello");
    let handle = agent.start_task(&alloc.config).await.unwrap();
    let (pid, dir) = (pid_of(&handle), agent.task_state(alloc.id()));
    remove(&dir, &["start.json", "task.json", "process.json", "lock", "log", "exit.json.partial"]);
    let mut agent = agent.relaunch().await;
    agent.recover(&handle).await.unwrap();
    // Nor is its directory taken for one that nobody has.
    age(&dir, GONE_FOR + Duration::from_secs(1));
    let unsaid = agent.state_dir().join("tasks/unsaid");
    std::fs::create_dir(&unsaid).unwrap();
    age(&unsaid, GONE_FOR + Duration::from_secs(1));
    let mut agent = agent.relaunch().await;
    agent.recover(&handle).await.unwrap();
    until("what says nothing is removed", || !unsaid.exists()).await;
    assert_eq!(alloc.get("/").await.unwrap().0, 200, "it goes on");
    agent.stop(alloc.id(), Duration::from_secs(60), "").await.unwrap();
    let ended = agent.wait(alloc.id()).await.unwrap();
    assert_eq!((ended.exit_code, ended.signal), (0, 0), "it was told to stop, and did");
    agent.destroy(alloc.id(), true).await.unwrap();
    assert!(Seen::session(pid).unwrap().is_empty() && agent.left().is_empty() && groups(alloc.id()).is_empty());
}

/// 15, 16: what says which task it is is gone, also all of it, and the agent has a state that nobody reads: it is ended all the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_task_that_cannot_be_recovered_is_destroyed_by_what_is_left_of_it() {
    let mut agent = Agent::start().await;
    let cases = [("removed", &["start.json"][..]), ("damaged", &[][..]), ("unsaid", &["start.json", "task.json"][..])];
    for (name, lost) in cases {
        let alloc = agent.alloc(name, "hello");
        let mut handle = agent.start_task(&alloc.config).await.unwrap();
        let (pid, dir) = (pid_of(&handle), agent.task_state(alloc.id()));
        match lost {
            [] => std::fs::write(dir.join("start.json"), "").unwrap(),
            lost => remove(&dir, lost),
        }
        agent = agent.relaunch().await;
        handle.driver_state = br#"{"version":99,"state":{}}"#.to_vec();
        assert!(agent.recover(&handle).await.is_err());
        agent.destroy(alloc.id(), true).await.unwrap();
        assert!(Seen::session(pid).unwrap().is_empty(), "{name}");
        assert!(crate::agent::get(alloc.address, "/").await.is_err(), "nobody listens");
        assert!(agent.left().is_empty() && groups(alloc.id()).is_empty(), "{name}");
    }
}

/// 16: a program that ended while there was no plugin is not run again for files that were removed since: how it ended is there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_end_is_known_without_what_was_to_be_run() {
    let mut agent = Agent::start().await;
    let mut alloc = agent.alloc("ended", "batch");
    let config = serde_json::json!({"component": "local/app.wasm", "args": ["print:begun", "sleep:700", "exit:7"]});
    alloc.config.msgpack_driver_config = crate::block::block(&agent.schema, &config).unwrap();
    let handle = agent.start_task(&alloc.config).await.unwrap();
    drop(agent.process.take());
    until("the end", || Seen::of(pid_of(&handle)).unwrap().is_none_or(|seen| seen.dead)).await;
    remove(&agent.task_state(alloc.id()), &["start.json", "task.json", "process.json"]);
    let mut agent = agent.relaunch().await;
    agent.recover(&handle).await.unwrap();
    let ended = agent.wait(alloc.id()).await.unwrap();
    assert_eq!((ended.exit_code, ended.signal), (7, 0));
    alloc.ended().await;
    assert_eq!(*alloc.stdout.lock().unwrap(), "begun\n");
    agent.destroy(alloc.id(), true).await.unwrap();
    assert!(agent.left().is_empty() && groups(alloc.id()).is_empty());
}

/// 14, 16: nobody can talk to a task any more, and it is told to stop all the same: what is under way is answered. Whose its data
/// are is written down again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_task_without_its_socket_is_stopped_and_not_killed() {
    let mut agent = Agent::start().await;
    let alloc = agent.alloc("deaf", "probe");
    let handle = agent.start_task(&alloc.config).await.unwrap();
    let named = kept_of(&agent, &alloc).join("allocation.txt");
    std::fs::remove_file(&named).unwrap();
    remove(&agent.task_state(alloc.id()), &["task.sock"]);
    let mut agent = agent.relaunch().await;
    agent.recover(&handle).await.unwrap();
    assert_eq!(std::fs::read_to_string(&named).unwrap(), alloc.config.alloc_dir);
    agent.stop(alloc.id(), Duration::from_secs(60), "").await.unwrap();
    let ended = agent.wait(alloc.id()).await.unwrap();
    assert_eq!((ended.exit_code, ended.signal), (0, 0), "it ended by itself");
    agent.destroy(alloc.id(), true).await.unwrap();
    assert!(Seen::session(pid_of(&handle)).unwrap().is_empty() && agent.left().is_empty());
}

/// 13: a task's process that could not write down how it ended was not killed for that.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_signal_that_ended_a_task_is_told() {
    let mut agent = Agent::start().await;
    let alloc = agent.alloc("aborted", "hello");
    let pid = pid_of(&agent.start_task(&alloc.config).await.unwrap());
    kill_process(Pid::from_raw(pid).unwrap(), Signal::ABORT).unwrap();
    let ended = agent.wait(alloc.id()).await.unwrap();
    assert_eq!((ended.exit_code, ended.signal), (134, 6));
    let told = agent.events.clone();
    until("an event", || told.lock().unwrap().iter().any(|event| event.message.contains("ended by signal 6"))).await;
    agent.destroy(alloc.id(), true).await.unwrap();
    assert!(Seen::session(pid).unwrap().is_empty() && agent.left().is_empty());
}

/// A directory that says nothing of any task goes, once it is old and nobody has it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_directory_that_says_nothing_is_removed() {
    let agent = Agent::start().await;
    let tasks = agent.state_dir().join("tasks");
    let [old, new, held] = ["old", "new", "held"].map(|name| tasks.join(name));
    for dir in [&old, &new, &held] {
        std::fs::create_dir_all(dir).unwrap();
        std::fs::write(dir.join("lock"), "").unwrap();
        std::fs::write(dir.join("start.json"), "").unwrap();
    }
    let lock = std::fs::File::open(held.join("lock")).unwrap();
    lock.try_lock().unwrap();
    for dir in [&old, &held] {
        age(dir, GONE_FOR + Duration::from_secs(1));
    }
    let agent = agent.relaunch().await;
    until("it is removed", || !old.exists()).await;
    assert!(new.exists() && held.exists());
    drop((lock, agent));
}
