//! Rows 6, 11: a million futures, both ends kept.
use crate::{Answer, ErrorCode, Request, reply, wit_future};

pub async fn run(_: Request) -> Answer {
    let all: Vec<_> = (0..1_000_000).map(|_| wit_future::new(|| Ok::<(), ErrorCode>(()))).collect();
    reply(all.len().to_string())
}
