//! Row 8: outgoing requests with the shortest and the longest time-outs there are.
use guests::wasi::http::outgoing_handler;
use guests::wasi::http::types::{OutgoingRequest, RequestOptions, Scheme};
use guests::{Fields, IncomingRequest, ResponseOutparam, reply};

pub fn run(_: IncomingRequest, out: ResponseOutparam) {
    let mut said = Vec::new();
    for time in [0, 1, u64::MAX - 1, u64::MAX] {
        let options = RequestOptions::new();
        let set = [
            options.set_connect_timeout(Some(time)).is_ok(),
            options.set_first_byte_timeout(Some(time)).is_ok(),
            options.set_between_bytes_timeout(Some(time)).is_ok(),
        ];
        let request = OutgoingRequest::new(Fields::new());
        let _ = request.set_scheme(Some(&Scheme::Http));
        let _ = request.set_authority(Some("allowed.invalid"));
        let answer = outgoing_handler::handle(request, Some(options)).map(|future| {
            future.subscribe().block();
            future.get().is_some_and(|answer| answer.is_ok_and(|answer| answer.is_ok()))
        });
        said.push(set == [true; 3] && matches!(answer, Ok(false) | Err(_)));
    }
    reply(out, 200, &format!("{said:?}"));
}
