//! Row 9: bytes on standard output that are no text.
use guests::wasi::cli::stdout;
use guests::{IncomingRequest, ResponseOutparam, reply};

pub fn run(_: IncomingRequest, out: ResponseOutparam) {
    let bytes: Vec<u8> = (0..=255).chain([b'\n']).collect();
    let said = stdout::get_stdout().blocking_write_and_flush(&bytes).is_ok();
    reply(out, 200, &said.to_string());
}
