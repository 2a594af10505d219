//! `sidereal compile`: one compilation in a process of its own that may crash, spin or swell without harm, and that takes
//! the core from nobody.

use std::io::{Read as _, Write as _};
use std::time::Duration;

use anyhow::Context as _;
use model::World;
use rustix::process::{Resource, Rlimit, setrlimit};
use rustix::time::{ClockId, clock_gettime};
use sandbox::SandboxError;
use telemetry::schedule::{Seat, Share, batch};

/// CPU seconds of one compilation. A component of 13 MB from JavaScript takes 12.
const CPU_SECONDS: u64 = 60;
/// Writable memory of one compilation, bytes: 1 GiB, and the 1 GiB that the allocator reserves at once and need not use.
const MEMORY: u64 = 2 << 30;
/// The largest artifact, bytes.
const ARTIFACT: u64 = 50 << 20;
/// CPU time after which it goes behind all others. Most components are compiled by then, and somebody waits for each.
const PROMPT: Duration = Duration::from_millis(250);
/// How long it stands behind all others before it is looked whether it got anywhere.
const WAIT: Duration = Duration::from_millis(10);
/// Where it used less than this, it stands with the others until it has.
const TURN: Duration = Duration::from_millis(2);
/// How often that is looked at.
const LOOK: Duration = Duration::from_millis(1);

/// Reads a component from stdin, writes compiled code to stdout; confined before it reads. `engine` is the fingerprint of the
/// engine that it is for.
///
/// # Errors
/// When it is not confined, has another engine, or the component does not compile within the limits.
pub fn run(
    world: &str,
    engine: Option<&str>,
    confine: impl FnOnce() -> Result<(), SandboxError>,
) -> anyhow::Result<()> {
    let world = match world {
        "p2" => World::P2,
        "p3" => World::P3,
        other => anyhow::bail!("unknown world `{other}`: p2 or p3"),
    };
    limit(Resource::Cpu, CPU_SECONDS)?;
    limit(Resource::Data, MEMORY)?;
    limit(Resource::Fsize, 0)?;
    limit(Resource::Nofile, 16)?;
    confine()?;
    let mut wasm = Vec::new();
    std::io::stdin().lock().take(ARTIFACT + 1).read_to_end(&mut wasm).context("cannot read the component")?;
    anyhow::ensure!(wasm.len() as u64 <= ARTIFACT, "the component is larger than {} MiB", ARTIFACT >> 20);
    batch(Share::Host);
    let (seat, _sitting) = Seat::take().unzip();
    if let Some(seat) = seat {
        // It ends with the process.
        std::thread::Builder::new().name("seat".to_owned()).spawn(move || give_way(&seat))?;
    }
    let code = runtime::compile_for(&wasm, world, engine)?;
    let mut out = std::io::stdout().lock();
    out.write_all(&code).and_then(|()| out.flush()).context("cannot write the compiled code")
}

/// Keeps the thread that compiles behind all others, but for the turns it is owed.
fn give_way(seat: &Seat) {
    let used = || Duration::try_from(clock_gettime(ClockId::ProcessCPUTime)).unwrap_or_default();
    telemetry::schedule::prompt();
    while used() < PROMPT {
        std::thread::sleep(WAIT);
    }
    loop {
        seat.last();
        let before = used();
        std::thread::sleep(WAIT);
        if used().saturating_sub(before) < TURN {
            seat.usual();
            while used().saturating_sub(before) < TURN {
                std::thread::sleep(LOOK);
            }
        }
    }
}

fn limit(what: Resource, value: u64) -> anyhow::Result<()> {
    setrlimit(what, Rlimit { current: Some(value), maximum: Some(value) })
        .with_context(|| format!("cannot limit {what:?} to {value}"))
}
