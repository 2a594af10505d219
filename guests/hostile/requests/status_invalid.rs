//! Row 8: statuses that are none.
use guests::wasi::http::types::OutgoingResponse;
use guests::{Fields, IncomingRequest, ResponseOutparam, reply};

pub fn run(_: IncomingRequest, out: ResponseOutparam) {
    let taken = |status: &u16| OutgoingResponse::new(Fields::new()).set_status_code(*status).is_ok();
    let taken: Vec<u16> = [0, 1, 99, 1000, 9999, u16::MAX].into_iter().filter(taken).collect();
    reply(out, 200, &format!("taken: {taken:?}"));
}
