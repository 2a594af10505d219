//! Row 8: one header field of 64 MiB.
use guests::{Fields, IncomingRequest, ResponseOutparam, reply};

pub fn run(_: IncomingRequest, out: ResponseOutparam) {
    let huge = vec![b'x'; 64 << 20];
    reply(out, 200, &format!("{:?}", Fields::new().append("x-huge", &huge)));
}
