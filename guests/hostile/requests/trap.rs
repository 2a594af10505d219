//! Traps.
use guests::{IncomingRequest, ResponseOutparam};

pub fn run(_: IncomingRequest, _: ResponseOutparam) {
    core::arch::wasm32::unreachable()
}
