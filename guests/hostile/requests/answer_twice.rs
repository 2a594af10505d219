//! Row 10: answers, and uses the same handle once more.
use guests::{IncomingRequest, ResponseOutparam, reply};

pub fn run(_: IncomingRequest, out: ResponseOutparam) {
    let again = unsafe { ResponseOutparam::from_handle(out.handle()) };
    reply(out, 200, "once");
    reply(again, 200, "twice");
}
