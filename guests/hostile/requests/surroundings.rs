//! Row 15: variables and arguments of its host: there are none.
use guests::wasi::cli::environment;
use guests::{IncomingRequest, ResponseOutparam, reply};

pub fn run(_: IncomingRequest, out: ResponseOutparam) {
    reply(out, 200, &format!("{} {}", environment::get_environment().len(), environment::get_arguments().len()));
}
