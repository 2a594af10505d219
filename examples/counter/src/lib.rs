//! The first component most people see run: every GET of `/` adds one to a number that something else remembers.
//!
//! It imports `wasi:keyvalue` and never learns what answers it; `app.toml` says so, and `sidereal link set` changes it
//! while it runs.

wit_bindgen::generate!({
    path: ["../../wit/p2", "../../wit/keyvalue"],
    inline: "
        package sidereal:counter;
        world counter {
            import wasi:cli/stdout@0.2.12;
            import wasi:keyvalue/store@0.2.0-draft;
            import wasi:keyvalue/atomics@0.2.0-draft;
            export wasi:http/incoming-handler@0.2.12;
        }
    ",
    world: "sidereal:counter/counter",
    generate_all,
});

use exports::wasi::http::incoming_handler::Guest;
use wasi::http::types::{Fields, IncomingRequest, Method, OutgoingBody, OutgoingResponse, ResponseOutparam};
use wasi::keyvalue::{atomics, store};

struct Counter;

impl Guest for Counter {
    fn handle(request: IncomingRequest, out: ResponseOutparam) {
        let target = request.path_with_query().unwrap_or_default();
        let path = target.split('?').next().unwrap_or_default();
        match (request.method(), path) {
            (Method::Get, "/") => match count() {
                Ok(count) => {
                    log(&format!("counted to {count}\n"));
                    reply(out, 200, &format!("counter: {count}\n"));
                }
                Err(reason) => {
                    log(&format!("cannot count: {reason}\n"));
                    reply(out, 503, &format!("cannot count: {reason}\n"));
                }
            },
            (_, "/") => reply(out, 405, "only GET counts\n"),
            _ => reply(out, 404, "nothing here: GET / counts\n"),
        }
    }
}

/// Adds one, and gives back the number it has become.
fn count() -> Result<u64, String> {
    store::open("default").and_then(|bucket| atomics::increment(&bucket, "count", 1)).map_err(|error| match error {
        store::Error::NoSuchStore => "no store is linked".to_owned(),
        store::Error::AccessDenied => "the store denies access".to_owned(),
        store::Error::Other(reason) => reason,
    })
}

/// Standard output is the component's log: `sidereal logs counter`.
fn log(line: &str) {
    // A log that cannot be written is no reason not to answer.
    let _ = wasi::cli::stdout::get_stdout().blocking_write_and_flush(line.as_bytes());
}

fn reply(out: ResponseOutparam, status: u16, text: &str) {
    let headers = Fields::new();
    let _ = headers.set("content-type", &[b"text/plain; charset=utf-8".to_vec()]);
    let response = OutgoingResponse::new(headers);
    let _ = response.set_status_code(status);
    let Ok(body) = response.body() else { return };
    ResponseOutparam::set(out, Ok(response));
    // The client may have gone; there is nobody left to tell.
    if let Ok(stream) = body.write() {
        let _ = stream.blocking_write_and_flush(text.as_bytes());
    }
    let _ = OutgoingBody::finish(body, None);
}

export!(Counter);
