//! Row 8: thirty-three thousand header fields.
use guests::{Fields, IncomingRequest, OutgoingBody, ResponseOutparam, reply, start};

pub fn run(_: IncomingRequest, out: ResponseOutparam) {
    let headers = Fields::new();
    for at in 0..33_000 {
        if headers.append(&format!("x-{at}"), b"").is_err() {
            return reply(out, 507, &at.to_string());
        }
    }
    let _ = OutgoingBody::finish(start(out, 200, headers), None);
}
