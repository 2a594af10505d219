//! A collector of logs is a process of the agent's that reads a task's FIFOs. One that is killed is started again with the agent, or
//! with the next start of the task: until then there is none. The task goes on, and the next collector has its lines.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;

use crate::agent::{Agent, Alloc, pid_of, until};

/// A process that reads both FIFOs of a task into files, as `logmon` does.
struct Collector([Child; 2], [PathBuf; 2]);

impl Collector {
    /// Goes on in files of this folder.
    fn start(alloc: &Alloc, into: &Path) -> Self {
        let streams = [(&alloc.config.stdout_path, "stdout"), (&alloc.config.stderr_path, "stderr")];
        let files = streams.map(|(_, name)| into.join(name));
        let readers = [0, 1].map(|at| {
            let file = std::fs::File::options().create(true).append(true).open(&files[at]).unwrap();
            Command::new("cat").arg(streams[at].0).stdin(Stdio::null()).stdout(file).spawn().unwrap()
        });
        Self(readers, files)
    }

    /// What it has of standard output.
    fn out(&self) -> String {
        std::fs::read_to_string(&self.1[0]).unwrap_or_default()
    }

    /// Reads no more, and is there: it waits for what comes, and had everything.
    async fn stop(&self) {
        for reader in &self.0 {
            let pid = i32::try_from(reader.id()).unwrap();
            kill_process(Pid::from_raw(pid).unwrap(), Signal::STOP).unwrap();
            let stat = || std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
            until("it stands still", || stat().contains(") T ")).await;
        }
    }

    /// Ends without a word.
    fn kill(self) {
        drop(self);
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        for reader in &mut self.0 {
            drop(reader.kill());
            drop(reader.wait());
        }
    }
}

/// 22: calls are answered as if nothing had happened, and what was written meanwhile is there once somebody reads again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_collector_that_is_killed_costs_a_service_nothing() {
    // More than a pipe holds.
    const LINES: usize = 80;
    let mut agent = Agent::start().await;
    let alloc = agent.quiet_alloc("collected", "probe");
    let (files, say) = (tempfile::tempdir().unwrap(), async |text: &str| {
        assert_eq!(alloc.get(&format!("/log?text={text}")).await.unwrap().0, 200, "{text}");
    });
    let pid = pid_of(&agent.start_task(&alloc.config).await.unwrap());
    let mut collector = Collector::start(&alloc, files.path());
    for round in 0..3 {
        say(&format!("before-{round}")).await;
        until("its line", || collector.out().contains(&format!("out before-{round}\n"))).await;
        collector.kill();
        let long = "x".repeat(1000);
        for _ in 0..LINES {
            say(&long).await;
        }
        say(&format!("meanwhile-{round}")).await;
        collector = Collector::start(&alloc, files.path());
        say(&format!("after-{round}")).await;
        until("its line", || collector.out().contains(&format!("out after-{round}\n"))).await;
        let lines = collector.out();
        assert!(lines.contains(&format!("out meanwhile-{round}\n")), "what was written meanwhile waited");
        let whole = lines.lines().filter(|line| line.ends_with(&long)).count();
        assert_eq!(whole, LINES * (round + 1), "all of it");
    }
    assert!(
        drivers::wasm::process::Seen::of(pid).unwrap().is_some_and(|seen| !seen.dead),
        "the same process all along"
    );
    agent.stop(alloc.id(), Duration::from_secs(20), "").await.unwrap();
    let ended = agent.wait(alloc.id()).await.unwrap();
    assert_eq!((ended.exit_code, ended.signal), (0, 0));
    agent.destroy(alloc.id(), true).await.unwrap();
    assert!(agent.left().is_empty());
}

/// 22: a collector that hangs until the pipe is full, and is killed then, costs no line: the next one has what it had not read.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_collector_left_in_the_pipe_is_the_next_one_s() {
    // More than a pipe holds, and less than is kept for a reader.
    const LINES: usize = 100;
    let mut agent = Agent::start().await;
    let alloc = agent.quiet_alloc("hung", "probe");
    let files = tempfile::tempdir().unwrap();
    let say = async |text: &str| {
        assert_eq!(alloc.get(&format!("/log?text={text}")).await.unwrap().0, 200, "{text}");
    };
    agent.start_task(&alloc.config).await.unwrap();
    let collector = Collector::start(&alloc, files.path());
    say("before").await;
    until("its line", || collector.out().contains("out before\n")).await;
    collector.stop().await;
    let long = "x".repeat(1000);
    for number in 0..LINES {
        say(&format!("{number}-{long}")).await;
    }
    let flags = rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::NONBLOCK;
    // A reader for a moment, beside the one that hangs.
    let waiting = || {
        let pipe = rustix::fs::open(alloc.config.stdout_path.as_str(), flags, rustix::fs::Mode::empty()).unwrap();
        rustix::io::ioctl_fionread(pipe).unwrap()
    };
    until("the pipe is full", || waiting() > 60_000).await;
    collector.kill();
    // The task goes on, and sees that nobody reads.
    for _ in 0..20 {
        say("meanwhile").await;
    }
    let collector = Collector::start(&alloc, files.path());
    say("after").await;
    until("its line", || collector.out().contains("out after\n")).await;
    let out = collector.out();
    for number in 0..LINES {
        let count = out.lines().filter(|line| *line == format!("out {number}-{long}")).count();
        assert_eq!(count, 1, "line {number} of {}", out.lines().count());
    }
    assert_eq!(out.lines().filter(|line| *line == "out meanwhile").count(), 20);
    agent.destroy(alloc.id(), true).await.unwrap();
    assert!(agent.left().is_empty());
}

/// 22: a program writes more than is kept for a reader, and comes to its end although there is none any more.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_collector_that_is_killed_does_not_hold_up_a_program_for_ever() {
    let mut agent = Agent::start().await;
    let mut alloc = agent.quiet_alloc("uncollected", "batch");
    let config =
        json!({"component": "local/app.wasm", "args": ["print:begun", "sleep:10000", "flood:100000", "exit:6"]});
    alloc.config.msgpack_driver_config = crate::block::block(&agent.schema, &config).unwrap();
    let files = tempfile::tempdir().unwrap();
    agent.start_task(&alloc.config).await.unwrap();
    let collector = Collector::start(&alloc, files.path());
    until("its line", || collector.out().starts_with("begun\n")).await;
    collector.kill();
    let ended = tokio::time::timeout(Duration::from_secs(240), agent.wait(alloc.id())).await;
    let ended = ended.expect("nobody waits for a reader that is gone").unwrap();
    assert_eq!((ended.exit_code, ended.signal), (6, 0));
    agent.destroy(alloc.id(), true).await.unwrap();
    assert!(agent.left().is_empty());
}
