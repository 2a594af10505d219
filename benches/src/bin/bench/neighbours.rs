//! A tenant of endless loops beside one that wants to be served.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use sidereal_benches::load::{self, LoadSpec};
use sidereal_tests::http;

use crate::Args;
use crate::table::Table;
use crate::us::Us;

/// Measures and fills in.
///
/// # Errors
/// When something cannot be started or gives no answer.
pub fn run(args: &Args, table: &mut Table) -> anyhow::Result<()> {
    let us = Us::start(&[])?;
    let keys = us.platform.ok(&["keys", "list"])?;
    let account = keys.as_array().into_iter().flatten().find(|k| k.get("name").is_some_and(|n| n == "account"));
    let account = account.and_then(|k| k.get("key")).and_then(|k| k.as_str()).unwrap_or_default().to_owned();
    us.platform.ok(&["tenant", "create", "noisy", "--trust", &account])?;
    let folder = us.data().with_file_name("evil");
    sidereal_tests::platform::write_app(&folder, "evil", "probe", "limits = { cpu = \"60s\", wall = \"60s\" }")?;
    us.platform.ok(&["--tenant", "noisy", "deploy", &folder.to_string_lossy()])?;
    us.deploy("good", "hello", "")?;

    let mut spec = LoadSpec::new(us.platform.ingress, "good.localhost", 4);
    spec.duration = Duration::from_secs(args.seconds);
    let quiet = load::run(&spec)?;
    let stop = Arc::new(AtomicBool::new(false));
    let cores = std::thread::available_parallelism().map_or(2, usize::from);
    let loops: Vec<_> = (0..4 * cores)
        .map(|_| {
            let (stop, ingress) = (stop.clone(), us.platform.ingress);
            std::thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) && http::get(ingress, "evil.localhost", "/spin").is_ok() {}
            })
        })
        .collect();
    std::thread::sleep(Duration::from_millis(500));
    let noisy = load::run(&spec)?;
    table.at_most(
        "failures of tenant B while A loops on 4 x cores",
        (noisy.not_ok + noisy.broken) as f64,
        0.0,
        "of its requests",
        &format!("{} asked", noisy.requests),
    );
    table.at_most(
        "p99 of tenant B meanwhile",
        noisy.p99_us / quiet.p99_us,
        2.0,
        "x quiet",
        &format!("{:.0} µs, quiet {:.0} µs", noisy.p99_us, quiet.p99_us),
    );
    stop.store(true, Ordering::Relaxed);
    let begun = std::time::Instant::now();
    let mut us = us;
    let status = us.platform.stop(Duration::from_secs(30))?;
    table.note(
        "stop on SIGTERM with the loops running",
        format!("{:.1} s, exit {:?}", begun.elapsed().as_secs_f64(), status.code()),
    );
    loops.into_iter().for_each(|l| drop(l.join()));
    Ok(())
}
