//! Row 11: pumps its request's body into its answer by way of a stream of its own, a byte at a time, and goes on when it ended.
use crate::{Answer, Fields, Request, Response, wit_future, wit_stream};

pub async fn run(request: Request) -> Answer {
    let (_result, processed) = wit_future::new(|| Ok(()));
    let (mut from, _trailers) = Request::consume_body(request, processed);
    let (mut body, contents) = wit_stream::new();
    let (trailers, no_trailers) = wit_future::new(|| Ok(None));
    let (response, _sent) = Response::new(Fields::new(), Some(contents), no_trailers);
    wit_bindgen::spawn_local(async move {
        loop {
            let byte = from.next().await.unwrap_or(b'.');
            if !body.write_all(vec![byte]).await.is_empty() {
                break;
            }
        }
        drop(trailers);
    });
    Ok(response)
}
