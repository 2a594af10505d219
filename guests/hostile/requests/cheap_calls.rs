//! Row 2: a loop that spends its time in the host: clocks, handles, random bytes, environment, one after the other.
use guests::wasi::cli::environment;
use guests::wasi::clocks::{monotonic_clock, wall_clock};
use guests::wasi::random::random;
use guests::{Fields, IncomingRequest, ResponseOutparam};

pub fn run(_: IncomingRequest, _: ResponseOutparam) {
    loop {
        monotonic_clock::now();
        wall_clock::now();
        random::get_random_u64();
        environment::get_environment();
        drop(Fields::new());
    }
}
