//! Never finishes starting: the endless loop is in the initialiser, before any call.
use guests::{Guest, IncomingRequest, ResponseOutparam};

struct Never;

impl Guest for Never {
    fn handle(_: IncomingRequest, out: ResponseOutparam) {
        guests::reply(out, 200, "started");
    }
}

#[unsafe(no_mangle)]
extern "C" fn _initialize() {
    loop {
        core::hint::black_box(());
    }
}

guests::export!(Never);
