//! Row 7: four gigabytes of random bytes.
use guests::wasi::random::random;
use guests::{IncomingRequest, ResponseOutparam, reply};

pub fn run(_: IncomingRequest, out: ResponseOutparam) {
    reply(out, 200, &random::get_random_bytes(1 << 32).len().to_string());
}
