//! Row 3: waits in the host for an hour.
use guests::wasi::clocks::monotonic_clock;
use guests::{IncomingRequest, ResponseOutparam};

pub fn run(_: IncomingRequest, _: ResponseOutparam) {
    monotonic_clock::subscribe_duration(3_600_000_000_000).block();
}
