//! Row 3: waits for a thousand things at once, none of which comes.
use guests::wasi::clocks::monotonic_clock::{self, Instant};
use guests::wasi::io::poll;
use guests::{IncomingRequest, ResponseOutparam};

pub fn run(_: IncomingRequest, _: ResponseOutparam) {
    let all: Vec<_> = (0..1000).map(|_| monotonic_clock::subscribe_instant(Instant::MAX)).collect();
    poll::poll(&all.iter().collect::<Vec<_>>());
}
