//! What stays of tasks, of allocations and of compiled code, and for how long; and what becomes of an end when the disk is full.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, SystemTime};

use drivers::wasm::kept::GONE_FOR;
use drivers::wasm::process::Seen;
use plugin::error::is_recoverable;
use serde_json::json;

use crate::agent::{Agent, groups, pid_of, until};
use crate::apart::kept_of;

/// Makes a file look as if it had been written long ago.
pub fn age(path: &Path, by: Duration) {
    std::fs::File::open(path).unwrap().set_modified(SystemTime::now() - by).unwrap();
}

/// The agent removes the directory of an allocation when it forgets it. What the driver kept of it goes then, also a task that
/// nobody tracks; not at once, and what is of other allocations stays.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_kept_of_an_allocation_ends_with_it() {
    let mut agent = Agent::start().await;
    let mut other = agent.alloc("stays", "kv-counter");
    let mut alloc = agent.alloc("forgotten", "kv-counter");
    let config = json!({"component": "local/app.wasm", "http": {"port": "http"},
        "link": {"wasi:keyvalue": {"provider": "embedded"}}});
    for alloc in [&mut other, &mut alloc] {
        alloc.config.msgpack_driver_config = crate::block::block(&agent.schema, &config).unwrap();
    }
    let other_handle = agent.start_task(&other.config).await.unwrap();
    let handle = agent.start_task(&alloc.config).await.unwrap();
    let (data, dir) = (kept_of(&agent, &alloc), agent.task_state(alloc.id()));
    assert!(data.join("web/data.redb").is_file());
    std::fs::remove_dir_all(alloc.dir()).unwrap();
    // Looked at by the next plugin, to which nobody speaks of the task.
    let mut agent = agent.relaunch().await;
    agent.recover(&other_handle).await.unwrap();
    let marks = [data.join("gone.txt"), dir.join("gone.txt")];
    until("it is seen", || marks.iter().all(|mark| mark.exists())).await;
    assert!(data.join("web/data.redb").is_file() && !Seen::session(pid_of(&handle)).unwrap().is_empty(), "not at once");
    for mark in &marks {
        age(mark, GONE_FOR + Duration::from_secs(1));
    }
    let mut agent = agent.relaunch().await;
    agent.recover(&other_handle).await.unwrap();
    until("nothing stays", || !data.exists() && !dir.exists() && Seen::session(pid_of(&handle)).unwrap().is_empty())
        .await;
    assert_eq!(other.get("/").await.unwrap(), (200, "1".to_owned()));
    assert!(kept_of(&agent, &other).join("web/data.redb").is_file());
    agent.destroy(other.id(), true).await.unwrap();
}

/// Compiled code that no task has used for long is removed; what is used stays.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unused_code_is_removed_and_used_code_is_kept() {
    const MONTH: Duration = Duration::from_secs(30 * 24 * 3600);
    let mut agent = Agent::start().await;
    let mut alloc = agent.alloc("code", "hello");
    agent.start_task(&alloc.config).await.unwrap();
    agent.destroy(alloc.id(), true).await.unwrap();
    let cache = agent.state_dir().join("code/cache");
    let files = || -> Vec<_> {
        let engines =
            std::fs::read_dir(&cache).unwrap().map(|entry| entry.unwrap().path()).filter(|path| path.is_dir());
        engines.flat_map(|engine| std::fs::read_dir(engine).unwrap().map(|entry| entry.unwrap().path())).collect()
    };
    let macs: Vec<_> = files().into_iter().filter(|path| path.extension().is_some_and(|end| end == "mac")).collect();
    let [mac] = &macs[..] else { panic!("{macs:?}") };
    let (code, unused) = (mac.with_extension(""), mac.with_file_name(format!("{}.p2.cwasm", "0".repeat(64))));
    let made = std::fs::metadata(&code).unwrap().modified().unwrap();
    std::fs::write(&unused, "code of a job of last year").unwrap();
    std::fs::write(unused.with_extension("cwasm.mac"), "mac").unwrap();
    age(&unused.with_extension("cwasm.mac"), MONTH);
    // Used again, a month after it was made.
    age(mac, Duration::from_secs(24 * 3600));
    age(&cache.join("looked"), MONTH);
    alloc.next_id();
    alloc.read();
    agent.start_task(&alloc.config).await.unwrap();
    until("unused code goes", || !unused.exists() && !unused.with_extension("cwasm.mac").exists()).await;
    assert_eq!(std::fs::metadata(&code).unwrap().modified().unwrap(), made, "it was not compiled again");
    let used = std::fs::metadata(mac).unwrap().modified().unwrap();
    assert!(used.elapsed().unwrap() < Duration::from_secs(3600), "that it was used is kept");
    agent.destroy(alloc.id(), true).await.unwrap();
}

/// A small disk of its own, for the state of the driver; none where this user may not mount one.
struct Disk(tempfile::TempDir);

impl Disk {
    fn new() -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let mounted = std::process::Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=64m,mode=0700", "none"])
            .arg(dir.path())
            .status();
        mounted.is_ok_and(|status| status.success()).then_some(Self(dir))
    }

    /// Leaves no room.
    fn fill(&self) {
        let mut file = std::fs::File::create(self.0.path().join("full")).unwrap();
        while std::io::Write::write_all(&mut file, &[b'x'; 4096]).is_ok() {}
        let one = std::fs::write(self.0.path().join("one"), "x");
        assert!(one.is_err(), "it is full");
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        drop(std::process::Command::new("umount").arg("-l").arg(self.0.path()).status());
    }
}

/// 13, 16: a program that ends while the disk is full has ended as it did, and is not run again; also where there was no plugin.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_end_on_a_full_disk_is_still_the_end() {
    let Some(disk) = Disk::new() else { return crate::not_run("ends on a full disk: this user mounts none") };
    let state = disk.0.path().join("state");
    std::fs::create_dir(&state).unwrap();
    std::fs::set_permissions(&state, PermissionsExt::from_mode(0o700)).unwrap();
    let mut agent = Agent::with(json!({"allow_unsigned": true, "state_dir": state.display().to_string()})).await;
    for (args, code) in [(["sleep:3000", "exit:0"], 0), (["sleep:3000", "exit:7"], 7)] {
        for plugin_dies in [false, true] {
            let mut alloc = agent.alloc(&format!("full-{code}-{plugin_dies}"), "batch");
            let config = json!({"component": "local/app.wasm", "args": args});
            alloc.config.msgpack_driver_config = crate::block::block(&agent.schema, &config).unwrap();
            let handle = agent.start_task(&alloc.config).await.unwrap();
            disk.fill();
            if plugin_dies {
                drop(agent.process.take());
                until("the end", || Seen::of(pid_of(&handle)).unwrap().is_none_or(|seen| seen.dead)).await;
                agent = agent.relaunch().await;
                agent.recover(&handle).await.unwrap();
            }
            let ended = agent.wait(alloc.id()).await.unwrap();
            assert_eq!((ended.exit_code, ended.signal), (code, 0), "plugin dies: {plugin_dies}");
            std::fs::remove_file(disk.0.path().join("full")).unwrap();
            agent.destroy(alloc.id(), true).await.unwrap();
        }
    }
}

/// A process of this test, in every control group of a task, with which it has nothing else to do. Ended when dropped.
struct Holder(std::process::Child);

impl Holder {
    fn of(id: &str) -> Self {
        let child = std::process::Command::new("sleep").arg("600").spawn().unwrap();
        for group in groups(id) {
            std::fs::write(group.join("cgroup.procs"), child.id().to_string()).unwrap();
        }
        Self(child)
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        drop((self.0.kill(), self.0.wait()));
    }
}

/// A frozen process, which no signal ends before it is thawed.
struct Frozen(std::path::PathBuf);

impl Frozen {
    fn of(pid: i32) -> Option<Self> {
        let group = Path::new("/sys/fs/cgroup/freezer").join(format!("sidereal-test-{pid}"));
        std::fs::create_dir(&group).ok()?;
        let frozen = Self(group);
        for (file, value) in [("cgroup.procs", pid.to_string()), ("freezer.state", "FROZEN".to_owned())] {
            std::fs::write(frozen.0.join(file), value).ok()?;
        }
        Some(frozen)
    }

    fn thaw(&self) {
        drop(std::fs::write(self.0.join("freezer.state"), "THAWED"));
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        self.thaw();
        drop(std::fs::remove_dir(&self.0));
    }
}

/// 15: the same of the task's own process: whoever has it destroyed is answered.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_of_a_task_that_does_not_end_is_said() {
    let mut agent = Agent::start().await;
    let alloc = agent.alloc("frozen", "hello");
    let handle = agent.start_task(&alloc.config).await.unwrap();
    let Some(frozen) = Frozen::of(pid_of(&handle)) else {
        return crate::not_run("a process that cannot be ended: there is no freezer of version 1 for this user");
    };
    let dir = agent.task_state(alloc.id());
    let refused = agent.destroy(alloc.id(), true).await.unwrap_err();
    assert!(is_recoverable(&refused) && dir.is_dir(), "{refused}");
    frozen.thaw();
    agent.destroy(alloc.id(), true).await.unwrap();
    assert!(!dir.exists() && agent.left().is_empty());
}

/// 15: what does not end, as a process that waits for a disk does not, is said, and known until it has: to whoever asks once more,
/// to the next start of the task, and to the next plugin.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_ended_is_not_forgotten() {
    let mut agent = Agent::start().await;
    let mut alloc = agent.alloc("busy", "hello");
    agent.start_task(&alloc.config).await.unwrap();
    let first = alloc.id().to_owned();
    if groups(&first).is_empty() {
        return crate::not_run("a control group that is not empty: this user can make none");
    }
    let dir = agent.task_state(&first);
    let holder = Holder::of(&first);
    let refused = agent.destroy(&first, true).await.unwrap_err();
    assert!(is_recoverable(&refused), "{refused}");
    let group = groups(&first)[0].display().to_string();
    assert!(refused.message().contains(&group), "it says which: {refused}");
    assert!(dir.is_dir() && alloc.get("/").await.is_err(), "the task itself has ended");
    // The next plugin knows it as well.
    let mut agent = agent.relaunch().await;
    assert!(agent.destroy(&first, true).await.is_err() && dir.is_dir());
    // Nor does a second copy begin beside it.
    alloc.next_id();
    alloc.read();
    let refused = agent.start_task(&alloc.config).await.unwrap_err();
    assert!(refused.message().contains(&group) && is_recoverable(&refused), "{refused}");
    drop(holder);
    agent.start_task(&alloc.config).await.unwrap();
    assert!(groups(&first).is_empty() && !dir.exists(), "the next start has ended it");
    // Whoever asks once more, where it is tracked.
    let (second, dir) = (alloc.id().to_owned(), agent.task_state(alloc.id()));
    let holder = Holder::of(&second);
    assert!(agent.destroy(&second, true).await.is_err() && dir.is_dir());
    drop(holder);
    agent.destroy(&second, true).await.unwrap();
    assert!(groups(&second).is_empty() && !dir.exists());
    assert!(agent.left().is_empty());
}
