//! Row 5: calls itself for ever.
use guests::{IncomingRequest, ResponseOutparam, reply};

pub fn run(_: IncomingRequest, out: ResponseOutparam) {
    reply(out, 200, &deeper(u64::MAX).to_string());
}

#[inline(never)]
fn deeper(depth: u64) -> u64 {
    if core::hint::black_box(depth) == 0 { 0 } else { core::hint::black_box(deeper(depth - 1)) + 1 }
}
