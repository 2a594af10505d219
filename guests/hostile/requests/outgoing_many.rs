//! Row 28: a thousand outgoing requests at once, kept open: all but the few that are allowed are errors.
use guests::wasi::http::outgoing_handler;
use guests::wasi::http::types::{OutgoingRequest, Scheme};
use guests::{Fields, IncomingRequest, ResponseOutparam, reply};

pub fn run(_: IncomingRequest, out: ResponseOutparam) {
    let ask = |_| {
        let request = OutgoingRequest::new(Fields::new());
        let _ = request.set_scheme(Some(&Scheme::Http));
        let _ = request.set_authority(Some("allowed.invalid"));
        outgoing_handler::handle(request, None)
    };
    let all: Vec<_> = (0..1000).map(ask).collect();
    let good = all.iter().flatten().filter(|future| {
        future.subscribe().block();
        future.get().is_some_and(|answer| answer.is_ok_and(|answer| answer.is_ok()))
    });
    reply(out, 200, &format!("answered: {}", good.count()));
}
