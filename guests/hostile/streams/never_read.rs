//! Row 11: takes its request's body and reads none of it, for as long as it may.
use crate::{Answer, Request, reply, wasi::clocks::monotonic_clock, wit_future};

pub async fn run(request: Request) -> Answer {
    let (_result, processed) = wit_future::new(|| Ok(()));
    let kept = Request::consume_body(request, processed);
    monotonic_clock::wait_for(3_600_000_000_000).await;
    drop(kept);
    reply("read".to_owned())
}
