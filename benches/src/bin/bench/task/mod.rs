//! A task of a scheduler, `sidereal task` as a task driver starts it, beside the same component under `sidereal up`: from the
//! start of its process to the first answer, what it holds while nobody asks, and how many requests it answers.

mod agent;

use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use model::tenant::TenantSettings;
use serde_json::json;
use sidereal_benches::load::{self, LoadSpec};
use sidereal_benches::processes;
use sidereal_tests::http::Connection;
use sidereal_tests::{binary, guest};

use crate::Args;
use crate::table::Table;
use crate::us::Us;

/// Starts, and pairs of a task and a platform; the medians count. What one process gets out of a machine depends on where it and its
/// memory came to lie, by more than what is measured: each pair is started anew.
const STARTS: usize = 9;
const PAIRS: usize = 5;
/// Rounds of the load on each pair, in turns.
const ROUNDS: usize = 3;
const PATIENCE: Duration = Duration::from_secs(60);

/// Measures and fills in.
///
/// # Errors
/// When something cannot be started or gives no answer.
pub fn run(args: &Args, table: &mut Table) -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let mut starts = Vec::new();
    for number in 0..=STARTS {
        let task = Task::start(dir.path(), &format!("start-{number}"))?;
        // The first one compiles the component, for all of them.
        if number > 0 {
            starts.push(task.took.as_secs_f64() * 1000.0);
        }
    }
    let detail = "process to first answer; Nomad's own part is not in it";
    table.at_most("start of a task of a scheduler", median(&mut starts), 50.0, "ms", detail);

    let task = Task::start(dir.path(), "idle")?;
    std::thread::sleep(Duration::from_secs(2));
    let held: f64 = task.pids().iter().filter_map(|pid| processes::anonymous_bytes(*pid)).sum::<u64>() as f64;
    table.at_most("memory of an idle task", held / f64::from(1 << 20), 15.0, "MiB", "anonymous, of all its processes");

    drop(task);
    let (mut through, mut beside, mut shares) = (Vec::new(), Vec::new(), Vec::new());
    for pair in 0..PAIRS {
        let task = Task::start(dir.path(), &format!("pair-{pair}"))?;
        // As the task, which leads a session.
        let us = Us::start_apart(&["--shards", "1"])?;
        us.deploy("hello", "hello", "")?;
        let (mut of_task, mut of_us) = (Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            of_us.push(rate(args, us.platform.ingress, "hello.localhost")?);
            of_task.push(rate(args, task.address, "localhost")?);
        }
        let (of_task, of_us) = (median(&mut of_task), median(&mut of_us));
        eprintln!("pair {pair}: {of_task:.0} through the task, {of_us:.0} beside it");
        shares.push(of_task / of_us.max(1.0));
        through.push(of_task);
        beside.push(of_us);
    }
    let share = median(&mut shares);
    let range = format!("{:.2} to {:.2}", shares.first().unwrap_or(&0.0), shares.last().unwrap_or(&0.0));
    let (through, beside) = (median(&mut through), median(&mut beside));
    let detail = format!("median of {PAIRS} pairs, {range}; {through:.0} and {beside:.0} a second, one shard each");
    table.at_least("requests through a task, of those under `up`", share, 0.95, "x", &detail);
    agent::run(table)
}

fn rate(args: &Args, address: SocketAddr, host: &str) -> anyhow::Result<f64> {
    let mut spec = LoadSpec::new(address, host, 32);
    spec.duration = Duration::from_secs(args.seconds);
    let report = load::run(&spec)?;
    anyhow::ensure!(report.not_ok == 0 && report.broken == 0, "{} answers were not 200", report.not_ok);
    Ok(report.per_second)
}

fn median(figures: &mut [f64]) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures.get(figures.len() / 2).copied().unwrap_or_default()
}

struct Task {
    child: Child,
    address: SocketAddr,
    took: Duration,
}

impl Task {
    /// Starts one that serves hello, and waits for its first answer.
    fn start(base: &Path, name: &str) -> anyhow::Result<Self> {
        let (alloc, dir) = (base.join("alloc").join(name), base.join("tasks").join(name));
        for folder in [&alloc.join("alloc/data"), &alloc.join("web/local"), &dir] {
            std::fs::create_dir_all(folder)?;
        }
        std::fs::copy(guest("hello"), alloc.join("web/local/app.wasm"))?;
        let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        let nowhere = json!({"root": "/dev", "path": "null"});
        let spec = json!({
            "version": api::task::VERSION, "id": name, "listen": address, "stdout": nowhere, "stderr": nowhere, "waive": ["missing"],
            "component": {"path": {"root": alloc.join("web"), "path": "local/app.wasm"}},
            "settings": TenantSettings { allow_unsigned: true, shards: 1, ..TenantSettings::default() },
            "data": base.join("data").join(name),
            "code": base.join("code"),
        });
        std::fs::write(dir.join("task.json"), serde_json::to_vec(&spec)?)?;
        let begun = Instant::now();
        let child = Command::new(binary())
            .args(["task", "--dir"])
            .arg(&dir)
            .env_clear()
            .env("MIMALLOC_ALLOW_THP", "0")
            .stdin(Stdio::null())
            .stderr(std::fs::File::create(dir.join("log"))?)
            .spawn()?;
        let mut task = Self { child, address, took: Duration::ZERO };
        let get = || Connection::open(address)?.send("GET", "localhost", "/", b"");
        while !get().is_ok_and(|answer| answer.status == 200) {
            if let Some(status) = task.child.try_wait()? {
                let exit = std::fs::read_to_string(dir.join("exit.json")).unwrap_or_default();
                anyhow::bail!("the task ended with {status}: {exit}");
            }
            anyhow::ensure!(begun.elapsed() < PATIENCE, "the task does not answer");
            std::thread::sleep(Duration::from_millis(1));
        }
        task.took = begun.elapsed();
        Ok(task)
    }

    /// Its own process, and all that it has started.
    fn pids(&self) -> Vec<u32> {
        let mut all = vec![self.child.id()];
        let mut at = 0;
        while let Some(pid) = all.get(at).copied() {
            all.extend(sidereal_tests::platform::children(pid, "host"));
            at += 1;
        }
        all
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        // What it has started ends with it.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}
