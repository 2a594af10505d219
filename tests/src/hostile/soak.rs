//! The long run: hostile requests without a pause, a victim's latencies measured meanwhile and compared with those of an
//! idle node, the memory of every process, and how far calls run over their budget of CPU time.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};

use super::arena::{Arena, Place, all};
use super::cases::{Case, End, Send};
use super::raw::exchange;
use crate::http::Connection;

/// Hostile requests at once.
const NOISY: usize = 4;
/// The victim's connections, and the pause of each between two requests.
const VICTIM: (usize, Duration) = (2, Duration::from_millis(5));
/// Whose CPU time is measured.
const MEASURED: Place = Place { app: "components", component: "loop_realloc" };
/// CPU time a call of the corpus may use.
const BUDGET: Duration = Duration::from_millis(300);

/// What was measured.
#[derive(Debug)]
pub struct Report {
    /// Hostile requests that came to an end.
    pub hostile: u64,
    /// Those that the platform turned away because there were too many.
    pub turned_away: u64,
    /// The victim on an idle node, and meanwhile.
    pub victim: [Served; 2],
    /// CPU time over the budget, sorted.
    pub over_run: Vec<Duration>,
    /// Resident memory of the node's processes, bytes: after the first tenth of the time, and at its end.
    pub memory: [u64; 2],
}

/// What a report must keep to.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// The victim's p99 meanwhile, as many times that of an idle node.
    pub latency: f64,
    /// Its requests a second meanwhile, as a part of those on an idle node.
    pub rate: f64,
    /// CPU time over the budget, p99, and of how many calls at least.
    pub over_run: (Duration, usize),
    /// By which part resident memory may grow, where that is looked at.
    pub growth: Option<f64>,
}

/// What is promised: held by a run long enough to measure it.
pub const PROMISED: Bounds =
    Bounds { latency: 2.0, rate: 0.9, over_run: (Duration::from_millis(20), 100), growth: Some(0.05) };

/// A run of seconds, beside whatever else a machine of CI does, has few measurements, and one that is late is its p99. It finds
/// what is wrong by much.
pub const ROUGH: Bounds = Bounds { latency: 10.0, rate: 0.5, over_run: (Duration::from_millis(200), 1), growth: None };

impl Report {
    /// What is not as it must be, one sentence each.
    pub fn check(&self, bounds: &Bounds) -> Vec<String> {
        let mut wrong = Vec::new();
        let [idle, meanwhile] = &self.victim;
        for served in &self.victim {
            wrong.extend(served.failures.iter().map(|why| format!("a request of the victim failed: {why}")));
        }
        let p99 = |served: &Served| percentile(&served.latencies, 99).as_secs_f64();
        let (before, after) = (p99(idle), p99(meanwhile));
        if meanwhile.latencies.is_empty() || idle.latencies.is_empty() || after > before * bounds.latency {
            let most = bounds.latency;
            wrong.push(format!(
                "the victim's p99 is {:.2} ms, idle {:.2} ms: more than {most}x",
                after * 1e3,
                before * 1e3
            ));
        }
        let (before, after) = (idle.rate(), meanwhile.rate());
        if after < before * bounds.rate {
            wrong.push(format!(
                "the victim has {after:.1} requests a second, idle {before:.1}: less than {}x",
                bounds.rate
            ));
        }
        let ((most, least), over) = (bounds.over_run, percentile(&self.over_run, 99));
        if self.over_run.len() < least {
            wrong.push(format!("the over-run was measured {} times, less than {least}", self.over_run.len()));
        }
        if over > most {
            wrong.push(format!("calls run {over:?} over their CPU time at p99, more than {most:?}"));
        }
        let [begin, end] = self.memory;
        if bounds.growth.is_some_and(|part| end as f64 > begin as f64 * (1.0 + part)) {
            wrong.push(format!("resident memory grew from {begin} to {end} bytes"));
        }
        wrong
    }
}

/// What one tenant was served.
#[derive(Debug, Default)]
pub struct Served {
    /// Latencies, sorted.
    pub latencies: Vec<Duration>,
    /// What went wrong.
    pub failures: Vec<String>,
    /// Over how long.
    pub within: Duration,
}

impl Served {
    /// Requests a second.
    pub fn rate(&self) -> f64 {
        self.latencies.len() as f64 / self.within.as_secs_f64().max(0.001)
    }
}

/// The value that `part` of a hundred are at most.
pub fn percentile(sorted: &[Duration], part: usize) -> Duration {
    sorted.get((sorted.len() * part / 100).min(sorted.len().saturating_sub(1))).copied().unwrap_or_default()
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [idle, meanwhile] = &self.victim;
        let ms = |time: Duration| format!("{:.2} ms", time.as_secs_f64() * 1000.0);
        writeln!(f, "{:<40}{:>14}{:>14}", "", "idle", "meanwhile")?;
        for part in [50, 99] {
            let of = |served: &Served| ms(percentile(&served.latencies, part));
            writeln!(f, "{:<40}{:>14}{:>14}", format!("victim p{part}"), of(idle), of(meanwhile))?;
        }
        writeln!(f, "{:<40}{:>14.1}{:>14.1}", "victim requests a second", idle.rate(), meanwhile.rate())?;
        writeln!(f, "{:<40}{:>14}{:>14}", "victim errors", idle.failures.len(), meanwhile.failures.len())?;
        writeln!(f, "{:<40}{:>14}{:>14}", "hostile requests, turned away", self.hostile, self.turned_away)?;
        let over = |part| ms(percentile(&self.over_run, part));
        writeln!(
            f,
            "{:<40}{:>14}{:>14}",
            format!("CPU over-run p50, p99 of {}", self.over_run.len()),
            over(50),
            over(99)
        )?;
        let [begin, end] = self.memory.map(|bytes| format!("{} KiB", bytes >> 10));
        write!(f, "{:<40}{begin:>14}{end:>14}", "resident memory, begin and end")
    }
}

/// Runs the corpus for so long. Half as much again goes to the idle node, before.
///
/// # Errors
/// When the node is harmed.
pub fn soak(arena: &Arena, long: Duration) -> anyhow::Result<Report> {
    let ingress = arena.platform.ingress;
    let idle = Victim::start(ingress);
    std::thread::sleep((long / 5).max(Duration::from_secs(2)));
    let idle = idle.stop();
    let stop = Arc::new(AtomicBool::new(false));
    let counts = Arc::new([AtomicU64::new(0), AtomicU64::new(0)]);
    let noise: Vec<_> = (0..NOISY).map(|lane| noise(ingress, lane, &stop, &counts)).collect();
    let victim = Victim::start(ingress);
    let (begun, mut over_run, mut first) = (Instant::now(), Vec::new(), 0);
    while begun.elapsed() < long {
        over_run.extend(over(arena)?);
        if first == 0 && begun.elapsed() > long / 10 {
            first = memory(arena);
        }
    }
    stop.store(true, Relaxed);
    let meanwhile = victim.stop();
    for lane in noise {
        ensure!(lane.join().is_ok(), "a lane of hostile requests panicked");
    }
    over_run.sort();
    let last = memory(arena);
    arena.unharmed()?;
    Ok(Report {
        hostile: counts[0].load(Relaxed),
        turned_away: counts[1].load(Relaxed),
        victim: [idle, meanwhile],
        over_run,
        memory: [first, last],
    })
}

fn noise(to: SocketAddr, lane: usize, stop: &Arc<AtomicBool>, counts: &Arc<[AtomicU64; 2]>) -> JoinHandle<()> {
    let (stop, counts) = (stop.clone(), counts.clone());
    std::thread::spawn(move || {
        // Each lane begins somewhere else, so that all of the corpus is under way at once.
        // But for the one that is measured meanwhile: its CPU time is to be one call's.
        let cases: Vec<(&Case, Place)> = all().filter(|(_, place)| *place != MEASURED).collect();
        for (case, place) in cases.iter().cycle().skip(lane * cases.len() / NOISY) {
            if stop.load(Relaxed) {
                return;
            }
            let seen = exchange(to, &format!("{}.localhost", place.app), &format!("/{}", case.name), case.send);
            counts[0].fetch_add(1, Relaxed);
            counts[1].fetch_add(u64::from(seen.is_ok_and(|seen| [429, 503].contains(&seen.status))), Relaxed);
        }
    })
}

/// CPU time over the budget of one call that loops; nothing where the noise kept it from running.
fn over(arena: &Arena) -> anyhow::Result<Option<Duration>> {
    let place = MEASURED;
    let used = || anyhow::Ok(arena.component(place)?["cpu_us"].as_u64().context("no CPU time")?);
    let calls = || anyhow::Ok(arena.component(place)?["calls"].as_u64().context("no calls")?);
    let (before, called) = (used()?, calls()?);
    let case = Case { name: "loop_realloc", send: Send::Get, end: End::Says("") };
    arena.ask(&case, place)?;
    // Only where it ran, and was alone, the difference is one call's.
    let (after, alone) = (used()?, calls()? == called + 1);
    let used = Duration::from_micros(after.saturating_sub(before));
    Ok(alone.then(|| used.saturating_sub(BUDGET)))
}

fn memory(arena: &Arena) -> u64 {
    let resident = |pid: &u32| {
        let text = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
        Some(line.split_whitespace().next()?.parse::<u64>().ok()? << 10)
    };
    arena.processes().iter().filter_map(resident).sum()
}

/// A tenant that only wants to be served, and notes how long that took.
pub struct Victim {
    begun: Instant,
    stop: Arc<AtomicBool>,
    lanes: Vec<JoinHandle<Served>>,
}

impl Victim {
    /// Starts asking.
    pub fn start(to: SocketAddr) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let lane = |_| {
            let stop = stop.clone();
            std::thread::spawn(move || {
                let mut served = Served::default();
                let mut connection = None;
                while !stop.load(Relaxed) && served.failures.len() < 100 {
                    let begun = Instant::now();
                    match ask(to, connection.take()) {
                        Ok(open) => {
                            served.latencies.push(begun.elapsed());
                            connection = Some(open);
                        }
                        Err(cause) => served.failures.push(format!("{cause:#}")),
                    }
                    std::thread::sleep(VICTIM.1);
                }
                served
            })
        };
        Self { begun: Instant::now(), lanes: (0..VICTIM.0).map(lane).collect(), stop }
    }

    /// Ends it, and says what it was served.
    pub fn stop(self) -> Served {
        self.stop.store(true, Relaxed);
        let mut all = Served::default();
        for lane in self.lanes {
            match lane.join() {
                Ok(served) => {
                    all.latencies.extend(served.latencies);
                    all.failures.extend(served.failures);
                }
                Err(_) => all.failures.push("a thread of the victim panicked".to_owned()),
            }
        }
        all.within = self.begun.elapsed();
        all.latencies.sort();
        all
    }
}

fn ask(to: SocketAddr, open: Option<Connection>) -> anyhow::Result<Connection> {
    let mut open = open.map_or_else(|| Connection::open(to), Ok)?;
    let answer = open.send("GET", "victim.localhost", "/", &[])?;
    ensure!(answer.status == 200, "{} {:?}: {}", answer.status, answer.header("sidereal-fault"), answer.body);
    Ok(open)
}
