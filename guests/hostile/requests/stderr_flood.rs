//! Row 9: empty lines on standard error, as many as there are.
use guests::wasi::cli::stderr;
use guests::{IncomingRequest, ResponseOutparam};

pub fn run(_: IncomingRequest, _: ResponseOutparam) {
    let (stream, part) = (stderr::get_stderr(), [b'\n'; 4096]);
    while stream.blocking_write_and_flush(&part).is_ok() {}
}
