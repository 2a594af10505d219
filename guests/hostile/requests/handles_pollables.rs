//! Row 6: holds more timers than it may have handles.
use guests::wasi::clocks::monotonic_clock;
use guests::{IncomingRequest, ResponseOutparam, reply};

pub fn run(_: IncomingRequest, out: ResponseOutparam) {
    let all: Vec<_> = (0..1_000_000).map(|_| monotonic_clock::subscribe_duration(u64::MAX)).collect();
    reply(out, 200, &all.len().to_string());
}
