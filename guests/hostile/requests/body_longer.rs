//! Row 10: writes more than the length it announced.
use guests::{Fields, IncomingRequest, OutgoingBody, ResponseOutparam, start};

pub fn run(_: IncomingRequest, out: ResponseOutparam) {
    let headers = Fields::from_list(&[("content-length".to_owned(), b"3".to_vec())]).expect("a length");
    let body = start(out, 200, headers);
    let _ =
        body.write().expect("the stream is taken once").blocking_write_and_flush(b"smuggled: HTTP/1.1 200 OK\r\n\r\n");
    let _ = OutgoingBody::finish(body, None);
}
