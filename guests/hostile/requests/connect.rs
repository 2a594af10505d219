//! Rows 19, 47: ways out it was not granted: the API, the ingress, the cloud's credentials.
use guests::wasi::http::outgoing_handler;
use guests::wasi::http::types::{OutgoingRequest, Scheme};
use guests::{Fields, IncomingRequest, ResponseOutparam, param, reply};

pub fn run(request: IncomingRequest, out: ResponseOutparam) {
    let (_, query) = guests::target(&request);
    let port = param(&query, "port").and_then(|port| port.parse::<u16>().ok()).unwrap_or(80);
    let mut reached = Vec::new();
    for host in ["127.0.0.1", "localhost", "[::1]", "0.0.0.0", "169.254.169.254", "[::ffff:127.0.0.1]", "2130706433"] {
        if http(&format!("{host}:{port}")) {
            reached.push(host);
        }
    }
    reply(out, 200, &format!("reached: {}", reached.join(" ")));
}

fn http(authority: &str) -> bool {
    let request = OutgoingRequest::new(Fields::new());
    let _ = request.set_scheme(Some(&Scheme::Http));
    let _ = request.set_authority(Some(authority));
    let Ok(future) = outgoing_handler::handle(request, None) else { return false };
    future.subscribe().block();
    future.get().is_some_and(|answer| answer.is_ok_and(|answer| answer.is_ok()))
}
