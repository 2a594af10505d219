//! Row 11: a stream without end, as fast as it is taken.
use crate::{Answer, Fields, Request, Response, wit_future, wit_stream};

pub async fn run(_: Request) -> Answer {
    let (mut body, contents) = wit_stream::new();
    let (trailers, no_trailers) = wit_future::new(|| Ok(None));
    let (response, _sent) = Response::new(Fields::new(), Some(contents), no_trailers);
    wit_bindgen::spawn_local(async move {
        while body.write_all(vec![b'x'; 1 << 20]).await.is_empty() {}
        drop(trailers);
    });
    Ok(response)
}
