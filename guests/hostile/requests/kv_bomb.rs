//! Row 7: the same to a provider: a hundred thousand pairs to be set, all of the same megabyte.
use guests::wasi::keyvalue::store;
use guests::{IncomingRequest, ResponseOutparam, reply};

#[link(wasm_import_module = "wasi:keyvalue/batch@0.2.0-draft")]
unsafe extern "C" {
    #[link_name = "set-many"]
    fn set_many(bucket: u32, list: *const [usize; 4], length: usize, result: *mut u8);
}

pub fn run(_: IncomingRequest, out: ResponseOutparam) {
    let bucket = store::open("default").expect("its own bucket");
    let (key, megabyte) = ("bomb", vec![b'x'; 1 << 20]);
    let list = vec![[key.as_ptr() as usize, key.len(), megabyte.as_ptr() as usize, megabyte.len()]; 100_000];
    let mut result = [0_u8; 64];
    unsafe { set_many(bucket.handle(), list.as_ptr(), list.len(), result.as_mut_ptr()) };
    reply(out, 200, "copied");
}
