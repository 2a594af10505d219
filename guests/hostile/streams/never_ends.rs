//! Row 10: begins an answer, and keeps it open without a word.
use crate::{Answer, Fields, Request, Response, wasi::clocks::monotonic_clock, wit_future, wit_stream};

pub async fn run(_: Request) -> Answer {
    let (mut body, contents) = wit_stream::new();
    let (trailers, no_trailers) = wit_future::new(|| Ok(None));
    let (response, _sent) = Response::new(Fields::new(), Some(contents), no_trailers);
    wit_bindgen::spawn_local(async move {
        let _ = body.write_all(b"begun".to_vec()).await;
        monotonic_clock::wait_for(3_600_000_000_000).await;
        drop((body, trailers));
    });
    Ok(response)
}
