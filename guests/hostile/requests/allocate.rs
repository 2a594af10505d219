//! Row 4: takes memory until none is given, and traps.
use guests::{IncomingRequest, ResponseOutparam};

pub fn run(_: IncomingRequest, _: ResponseOutparam) {
    while core::arch::wasm32::memory_grow(0, 16) != usize::MAX {
        // Touched, so that it is not only reserved.
        let end = core::arch::wasm32::memory_size(0) << 16;
        (end - (16 << 16)..end).step_by(4096).for_each(|at| unsafe { (at as *mut u8).write_volatile(1) });
    }
    core::arch::wasm32::unreachable()
}
