//! Row 6: holds requests, their bodies and their streams, three handles each.
use guests::wasi::http::types::OutgoingRequest;
use guests::{Fields, IncomingRequest, ResponseOutparam, reply};

pub fn run(_: IncomingRequest, out: ResponseOutparam) {
    let one = |_| {
        let request = OutgoingRequest::new(Fields::new());
        let body = request.body().expect("the body is taken once");
        let stream = body.write().expect("the stream is taken once");
        (stream, body, request)
    };
    let all: Vec<_> = (0..1_000_000).map(one).collect();
    reply(out, 200, &all.len().to_string());
}
