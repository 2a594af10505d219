//! Row 17: how many calls this instance remembers, in a variable, in fresh memory and in a global of the linker's.
use std::cell::Cell;

use guests::{IncomingRequest, ResponseOutparam, reply};

thread_local! {
    static CALLS: Cell<u32> = const { Cell::new(0) };
}

pub fn run(_: IncomingRequest, out: ResponseOutparam) {
    let calls = CALLS.replace(CALLS.get() + 1);
    let page = core::arch::wasm32::memory_grow(0, 16) << 16;
    let fresh = unsafe { core::slice::from_raw_parts_mut(page as *mut u8, 16 << 16) };
    let left = fresh.iter().filter(|byte| **byte != 0).count();
    fresh.fill(0xa5);
    reply(out, 200, &format!("{calls} {left}"));
}
