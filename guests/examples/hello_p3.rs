//! `hello` in WASI 0.3: an async handler whose body is a stream.
wit_bindgen::generate!({
    path: "../wit/p3",
    inline: "
        package sidereal:guests;
        world guest {
            export wasi:http/handler@0.3.0;
        }
    ",
    world: "sidereal:guests/guest",
    generate_all,
});

use exports::wasi::http::handler::Guest;
use wasi::http::types::{ErrorCode, Fields, Request, Response};

struct Hello;

impl Guest for Hello {
    async fn handle(_: Request) -> Result<Response, ErrorCode> {
        let (mut body, contents) = wit_stream::new();
        let (trailers, no_trailers) = wit_future::new(|| Ok(None));
        let (response, _sent) = Response::new(Fields::new(), Some(contents), no_trailers);
        wit_bindgen::spawn_local(async move {
            body.write_all(b"hello".to_vec()).await;
            drop(body);
            let _ = trailers.write(Ok(None)).await;
        });
        Ok(response)
    }
}

export!(Hello);
