//! Row 12: a hundred thousand tasks, each with a timer of its own.
use crate::{Answer, Request, reply, wasi::clocks::monotonic_clock};

pub async fn run(_: Request) -> Answer {
    for _ in 0..100_000 {
        wit_bindgen::spawn_local(monotonic_clock::wait_for(3_600_000_000_000));
    }
    monotonic_clock::wait_for(1_000_000).await;
    reply("spawned".to_owned())
}
