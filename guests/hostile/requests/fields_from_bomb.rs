//! Row 7: a list of a million names and values that are all the same megabyte: a terabyte, were the host to copy it.
use guests::{IncomingRequest, ResponseOutparam, reply};

#[link(wasm_import_module = "wasi:http/types@0.2.12")]
unsafe extern "C" {
    #[link_name = "[static]fields.from-list"]
    fn from_list(list: *const [usize; 4], length: usize, result: *mut u8);
}

pub fn run(_: IncomingRequest, out: ResponseOutparam) {
    let (name, megabyte) = ("x-bomb", vec![b'x'; 1 << 20]);
    let entry = [name.as_ptr() as usize, name.len(), megabyte.as_ptr() as usize, megabyte.len()];
    let list = vec![entry; 1_000_000];
    let mut result = [0_u8; 64];
    unsafe { from_list(list.as_ptr(), list.len(), result.as_mut_ptr()) };
    reply(out, 200, "copied");
}
