//! Row 3: waits for a request body that its client does not send.
use guests::{IncomingRequest, ResponseOutparam, reply};

pub fn run(request: IncomingRequest, out: ResponseOutparam) {
    let body = request.consume().expect("the body is taken once");
    let stream = body.stream().expect("the stream is taken once");
    let mut read = 0;
    while let Ok(part) = stream.blocking_read(1 << 16) {
        read += part.len();
    }
    drop(stream);
    reply(out, 200, &read.to_string());
}
