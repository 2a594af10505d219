//! Row 10: one byte of the answer, a pause, one more, without end.
use guests::wasi::clocks::monotonic_clock;
use guests::{Fields, IncomingRequest, ResponseOutparam, start};

pub fn run(_: IncomingRequest, out: ResponseOutparam) {
    let body = start(out, 200, Fields::new());
    let stream = body.write().expect("the stream is taken once");
    while stream.blocking_write_and_flush(b"x").is_ok() {
        monotonic_clock::subscribe_duration(100_000_000).block();
    }
}
