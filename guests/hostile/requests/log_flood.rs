//! Row 9: standard output without a line's end, as much as it takes.
use guests::wasi::cli::stdout;
use guests::{IncomingRequest, ResponseOutparam};

pub fn run(_: IncomingRequest, _: ResponseOutparam) {
    let (stream, part) = (stdout::get_stdout(), [b'x'; 4096]);
    while stream.blocking_write_and_flush(&part).is_ok() {}
}
