//! Row 9: lines that would clear, rename and reprogram the terminal of whoever reads them.
use guests::wasi::cli::stdout;
use guests::wasi::logging::logging::{Level, log};
use guests::{IncomingRequest, ResponseOutparam, reply};

const LINES: &str = "\x1b[2J\x1b[H cleared\n\x1b]0;owned\x07 renamed\n\u{9b}31m red\n\x1bP+q\x1b\\ asked\n\r overwritten\n\u{202e} reversed\n";

pub fn run(_: IncomingRequest, out: ResponseOutparam) {
    let said = stdout::get_stdout().blocking_write_and_flush(LINES.as_bytes()).is_ok();
    log(Level::Info, "\x1b[31mcontext", LINES);
    reply(out, 200, &said.to_string());
}
