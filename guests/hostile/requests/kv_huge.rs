//! Row 7, 46: keys and values above their limits, one by one: each an error value, none kept.
use guests::wasi::keyvalue::store;
use guests::{IncomingRequest, ResponseOutparam, reply};

pub fn run(_: IncomingRequest, out: ResponseOutparam) {
    let bucket = store::open("default").expect("its own bucket");
    let long = "k".repeat(1 << 20);
    let huge = vec![b'x'; 12 << 20];
    let said = [
        bucket.set(&long, b"v").is_err(),
        bucket.set("huge", &huge).is_err(),
        bucket.get("huge").is_ok_and(|v| v.is_none()),
    ];
    reply(out, 200, &format!("{said:?}"));
}
