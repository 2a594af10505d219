//! Row 1: an endless loop.
use guests::{IncomingRequest, ResponseOutparam};

pub fn run(_: IncomingRequest, _: ResponseOutparam) {
    loop {
        core::hint::black_box(());
    }
}
