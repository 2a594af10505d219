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

/// CPU seconds of one compilation. A component of 13 MB from JavaScript takes 12. The process ends itself then, and says so: what the
/// kernel would send it, `SIGXCPU`, the first process of a pid namespace does not get.
const CPU_SECONDS: u64 = 60;
/// CPU seconds after which the kernel ends it, where it did not.
const CPU_AT_MOST: u64 = CPU_SECONDS + 15;
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

/// Why there is no code.
#[derive(Debug)]
pub enum Failure {
    /// The machine, or its user, lets this process not do its work now: nothing is said of the component.
    NotReady(anyhow::Error),
    /// The component does not compile.
    Refused(anyhow::Error),
}

/// Reads a component from stdin, writes compiled code to stdout; confined before it reads. `engine` is the fingerprint of the
/// engine that it is for.
///
/// # Errors
/// When it is not confined, has another engine, or the component does not compile within the limits.
pub fn run(
    world: &str,
    engine: Option<&str>,
    confine: impl FnOnce() -> Result<(), SandboxError>,
) -> Result<(), Failure> {
    let (wasm, world) = prepare(world, confine).map_err(Failure::NotReady)?;
    if wasm.len() as u64 > ARTIFACT {
        return Err(Failure::Refused(anyhow::anyhow!("the component is larger than {} MiB", ARTIFACT >> 20)));
    }
    batch(Share::Host);
    let (seat, _sitting) = Seat::take().unzip();
    if let Some(seat) = seat {
        beside("seat", move || give_way(&seat)).map_err(Failure::NotReady)?;
    }
    beside("limit", || end_after(Duration::from_secs(CPU_SECONDS))).map_err(Failure::NotReady)?;
    let code = runtime::compile_for(&wasm, world, engine).map_err(|cause| match cause {
        runtime::CompileError::Engine { .. } => Failure::NotReady(cause.into()),
        // Asked again, this program has the same engine.
        runtime::CompileError::Other { .. } | runtime::CompileError::Invalid(_) => Failure::Refused(cause.into()),
    })?;
    let mut out = std::io::stdout().lock();
    let written = out.write_all(&code).and_then(|()| out.flush()).context("cannot write the compiled code");
    written.map_err(Failure::NotReady)
}

/// Takes the limits on, and reads the component: one byte more than the largest has, where there is that.
fn prepare(world: &str, confine: impl FnOnce() -> Result<(), SandboxError>) -> anyhow::Result<(Vec<u8>, World)> {
    let world = match world {
        "p2" => World::P2,
        "p3" => World::P3,
        other => anyhow::bail!("unknown world `{other}`: p2 or p3"),
    };
    limit(Resource::Cpu, CPU_AT_MOST)?;
    limit(Resource::Data, MEMORY)?;
    limit(Resource::Fsize, 0)?;
    limit(Resource::Nofile, 16)?;
    confine()?;
    let mut wasm = Vec::new();
    std::io::stdin().lock().take(ARTIFACT + 1).read_to_end(&mut wasm).context("cannot read the component")?;
    Ok((wasm, world))
}

/// Runs something beside the compilation; it ends with the process.
fn beside(name: &str, what: impl FnOnce() + Send + 'static) -> anyhow::Result<()> {
    std::thread::Builder::new().name(name.to_owned()).spawn(what).context("cannot start a thread")?;
    Ok(())
}

/// CPU time of this process.
fn used() -> Duration {
    Duration::try_from(clock_gettime(ClockId::ProcessCPUTime)).unwrap_or_default()
}

/// Waits until this process has used so much CPU time. It uses one core, and its other threads rest, so it has not sooner than after
/// as much time.
fn until_used(most: Duration) {
    loop {
        let left = most.saturating_sub(used());
        if left.is_zero() {
            return;
        }
        std::thread::sleep(left.max(LOOK));
    }
}

/// Ends this process, as one that refuses its component, once it has used so much CPU time.
fn end_after(most: Duration) {
    until_used(most);
    eprintln!("Error: compiling takes more than {} s of CPU time", most.as_secs());
    std::process::exit(1);
}

/// Keeps the thread that compiles behind all others, but for the turns it is owed.
fn give_way(seat: &Seat) {
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

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

    use super::*;

    /// It ends for its CPU time and not for the time that others have the core.
    #[test]
    fn a_compilation_is_over_when_it_has_used_its_cpu_time() {
        static DONE: AtomicBool = AtomicBool::new(false);
        let spins = std::thread::spawn(|| {
            while !DONE.load(Relaxed) {
                std::hint::spin_loop();
            }
        });
        let most = used() + Duration::from_millis(50);
        until_used(most);
        assert!(used() >= most);
        DONE.store(true, Relaxed);
        spins.join().unwrap();
    }

    #[test]
    fn what_cannot_be_confined_says_nothing_of_its_component() {
        let failed = run("p7", None, || Ok(())).unwrap_err();
        assert!(matches!(failed, Failure::NotReady(cause) if cause.to_string().contains("unknown world")));
    }
}
