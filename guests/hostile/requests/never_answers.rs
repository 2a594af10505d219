//! Row 10: returns without an answer.
use guests::{IncomingRequest, ResponseOutparam};

pub fn run(_: IncomingRequest, out: ResponseOutparam) {
    drop(out);
}
