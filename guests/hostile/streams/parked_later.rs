//! Row 3: waits for an hour.
use crate::{Answer, Request, reply, wasi::clocks::monotonic_clock};

pub async fn run(_: Request) -> Answer {
    monotonic_clock::wait_for(3_600_000_000_000).await;
    reply("later".to_owned())
}
