//! CPU time of the calling thread, and the coarse clocks guests see.

use std::cell::Cell;
use std::sync::OnceLock;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rustix::time::{ClockId, clock_gettime};
use wasmtime_wasi::{HostMonotonicClock, HostWallClock};

/// Shorter stretches count with the time on the clock: to ask the kernel what a thread has used costs fifteen times as
/// much as to read the clock, and a small call would ask twice. Nanoseconds.
const SHORT: u64 = 100_000;

/// CPU time of this thread so far, nanoseconds.
fn cpu() -> u64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    u64::try_from(time.tv_sec).unwrap_or(0) * 1_000_000_000 + u64::try_from(time.tv_nsec).unwrap_or(0)
}

/// Nanoseconds from some moment of this process to now. Read by the standard library, which knows since the process began
/// how to do that without the kernel: `rustix` asks for it at first use, which a confined host is refused, and would call
/// the kernel twice for each call of a component.
fn wall() -> u64 {
    static START: OnceLock<Instant> = OnceLock::new();
    u64::try_from(START.get_or_init(Instant::now).elapsed().as_nanos()).unwrap_or(u64::MAX)
}

/// When a stretch of work began on this thread, on two clocks, nanoseconds. That of the thread is at most [`SHORT`] old.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Began {
    pub(crate) wall: u64,
    pub(crate) cpu: u64,
}

thread_local! {
    static SEEN: Cell<Option<Began>> = const { Cell::new(None) };
}

impl Began {
    pub(crate) fn now() -> Self {
        let wall = wall();
        if let Some(seen) = SEEN.get()
            && wall.saturating_sub(seen.wall) < SHORT
        {
            return Self { wall, cpu: seen.cpu };
        }
        let now = Self { wall, cpu: cpu() };
        SEEN.set(Some(now));
        now
    }

    /// CPU time this thread has used since, nanoseconds, up to [`SHORT`] too much. A host that waits for a core longer
    /// than that does not charge its guests for it.
    pub(crate) fn cpu_ns(self) -> u64 {
        let wall = wall().saturating_sub(self.wall);
        if wall < SHORT { wall } else { wall.min(cpu().saturating_sub(self.cpu)) }
    }
}

/// Finest step of a guest's clocks: too coarse to time a cache line.
const STEP: Duration = Duration::from_millis(1);

/// Time of day in steps of 1 ms.
pub(crate) struct Wall;

impl HostWallClock for Wall {
    fn resolution(&self) -> Duration {
        STEP
    }
    fn now(&self) -> Duration {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Duration::from_millis(u64::try_from(now.as_millis()).unwrap_or(u64::MAX))
    }
}

/// Monotonic time in steps of 1 ms.
pub(crate) struct Monotonic(pub(crate) Instant);

impl HostMonotonicClock for Monotonic {
    fn resolution(&self) -> u64 {
        u64::try_from(STEP.as_nanos()).unwrap_or(u64::MAX)
    }
    fn now(&self) -> u64 {
        u64::try_from(self.0.elapsed().as_millis()).unwrap_or(u64::MAX / 1_000_000).saturating_mul(1_000_000)
    }
}
