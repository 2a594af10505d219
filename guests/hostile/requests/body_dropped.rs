//! Row 10: begins an answer and drops it unfinished.
use guests::{Fields, IncomingRequest, ResponseOutparam, start};

pub fn run(_: IncomingRequest, out: ResponseOutparam) {
    let body = start(out, 200, Fields::new());
    let _ = body.write().expect("the stream is taken once").blocking_write_and_flush(b"begun");
    drop(body);
}
