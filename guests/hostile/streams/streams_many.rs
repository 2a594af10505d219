//! Rows 6, 11: a million streams, both ends kept.
use crate::{Answer, Request, reply, wit_stream};

pub async fn run(_: Request) -> Answer {
    let all: Vec<_> = (0..1_000_000).map(|_| wit_stream::new::<u8>()).collect();
    reply(all.len().to_string())
}
