//! Row 6: holds more header lists than it may have handles.
use guests::{Fields, IncomingRequest, ResponseOutparam, reply};

pub fn run(_: IncomingRequest, out: ResponseOutparam) {
    let all: Vec<Fields> = (0..1_000_000).map(|_| Fields::new()).collect();
    reply(out, 200, &all.len().to_string());
}
