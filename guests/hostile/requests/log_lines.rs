//! Row 9: a hundred thousand short lines.
use guests::wasi::cli::stdout;
use guests::{IncomingRequest, ResponseOutparam, reply};

pub fn run(_: IncomingRequest, out: ResponseOutparam) {
    let stream = stdout::get_stdout();
    let written =
        (0..100_000).take_while(|at| stream.blocking_write_and_flush(format!("{at}\n").as_bytes()).is_ok()).count();
    reply(out, 200, &written.to_string());
}
