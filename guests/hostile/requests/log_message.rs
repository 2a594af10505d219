//! Row 9: log messages of a megabyte, with a context as long.
use guests::wasi::logging::logging::{Level, log};
use guests::{IncomingRequest, ResponseOutparam, reply};

pub fn run(_: IncomingRequest, out: ResponseOutparam) {
    let long = "x".repeat(1 << 20);
    (0..50).for_each(|_| log(Level::Critical, &long, &long));
    reply(out, 200, "logged");
}
