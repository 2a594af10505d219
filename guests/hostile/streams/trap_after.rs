//! Row 11: traps in a task once its answer has begun.
use crate::{Answer, Fields, Request, Response, wit_future, wit_stream};

pub async fn run(_: Request) -> Answer {
    let (mut body, contents) = wit_stream::new();
    let (_trailers, no_trailers) = wit_future::new(|| Ok(None));
    let (response, _sent) = Response::new(Fields::new(), Some(contents), no_trailers);
    wit_bindgen::spawn_local(async move {
        let _ = body.write_all(b"begun".to_vec()).await;
        core::arch::wasm32::unreachable()
    });
    Ok(response)
}
