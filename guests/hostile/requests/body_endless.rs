//! Row 10: an answer without end, as fast as it goes.
use guests::{Fields, IncomingRequest, ResponseOutparam, start};

pub fn run(_: IncomingRequest, out: ResponseOutparam) {
    let body = start(out, 200, Fields::new());
    let stream = body.write().expect("the stream is taken once");
    while stream.blocking_write_and_flush(&[b'x'; 4096]).is_ok() {}
}
