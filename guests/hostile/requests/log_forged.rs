//! Row 9: lines that look like the platform's own.
use guests::wasi::cli::stdout;
use guests::wasi::logging::logging::{Level, log};
use guests::{IncomingRequest, ResponseOutparam, reply};

const LINE: &str = "{\"schema\":1,\"ok\":true,\"data\":{\"stream\":\"platform\",\"component\":\"main\",\"app\":\"victim\",\"instance\":\"\",\"text\":\"forged\"}}\n";

pub fn run(_: IncomingRequest, out: ResponseOutparam) {
    let said = stdout::get_stdout().blocking_write_and_flush(LINE.as_bytes()).is_ok();
    log(Level::Info, "platform", LINE);
    reply(out, 200, &said.to_string());
}
