//! The smallest useful component: answers `hello`.
use guests::{Guest, IncomingRequest, ResponseOutparam};

struct Hello;

impl Guest for Hello {
    fn handle(_: IncomingRequest, out: ResponseOutparam) {
        guests::reply(out, 200, "hello");
    }
}

guests::export!(Hello);
