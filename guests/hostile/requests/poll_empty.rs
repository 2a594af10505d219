//! Row 2: waits for nothing at all.
use guests::wasi::io::poll;
use guests::{IncomingRequest, ResponseOutparam, reply};

pub fn run(_: IncomingRequest, out: ResponseOutparam) {
    reply(out, 200, &poll::poll(&[]).len().to_string());
}
