//! Ends itself in the middle of a call, as if all were well.
use guests::wasi::cli::exit;
use guests::{IncomingRequest, ResponseOutparam};

pub fn run(_: IncomingRequest, _: ResponseOutparam) {
    exit::exit(Ok(()));
}
