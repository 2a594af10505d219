//! Row 16: the finest step of its clocks, nanoseconds: too coarse to time a cache line.
use guests::wasi::clocks::{monotonic_clock, wall_clock};
use guests::{IncomingRequest, ResponseOutparam, reply};

pub fn run(_: IncomingRequest, out: ResponseOutparam) {
    let (mut monotonic, mut wall) = (u64::MAX, u64::MAX);
    let (mut before, mut seen) = (monotonic_clock::now(), 0);
    let mut day = nanoseconds();
    while seen < 5 {
        let (now, time) = (monotonic_clock::now(), nanoseconds());
        if now != before {
            (monotonic, before, seen) = (monotonic.min(now - before), now, seen + 1);
        }
        if time != day {
            (wall, day) = (wall.min(time - day), time);
        }
    }
    reply(out, 200, &format!("{}", monotonic.min(wall).min(monotonic_clock::resolution())));
}

fn nanoseconds() -> u64 {
    let now = wall_clock::now();
    now.seconds * 1_000_000_000 + u64::from(now.nanoseconds)
}
