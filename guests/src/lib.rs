//! Bindings and the few lines every WASI 0.2 guest repeats. What a guest does not call is not imported by its component.

wit_bindgen::generate!({
    path: ["../wit/p2", "../wit/keyvalue", "../wit/blobstore", "../wit/config", "../wit/logging", "../wit/messaging", "../wit/secrets", "../wit/sql", "../wit/postgres"],
    inline: "
        package sidereal:guests;
        world guest {
            import wasi:cli/environment@0.2.12;
            import wasi:cli/stdout@0.2.12;
            import wasi:cli/stderr@0.2.12;
            import wasi:cli/exit@0.2.12;
            import wasi:clocks/monotonic-clock@0.2.12;
            import wasi:clocks/wall-clock@0.2.12;
            import wasi:random/random@0.2.12;
            import wasi:http/outgoing-handler@0.2.12;
            import wasi:sockets/instance-network@0.2.12;
            import wasi:sockets/ip-name-lookup@0.2.12;
            import wasi:sockets/tcp@0.2.12;
            import wasi:sockets/tcp-create-socket@0.2.12;
            import wasi:sockets/udp@0.2.12;
            import wasi:sockets/udp-create-socket@0.2.12;
            import wasi:keyvalue/store@0.2.0-draft;
            import wasi:keyvalue/atomics@0.2.0-draft;
            import wasi:keyvalue/batch@0.2.0-draft;
            import wasi:blobstore/types@0.2.0-draft;
            import wasi:blobstore/container@0.2.0-draft;
            import wasi:blobstore/blobstore@0.2.0-draft;
            import wasi:config/store@0.2.0-rc.1;
            import wasi:logging/logging@0.1.0-draft;
            import wasmcloud:messaging/consumer@0.2.0;
            import wasmcloud:secrets/store@0.1.0-draft;
            import wasmcloud:secrets/reveal@0.1.0-draft;
            import sidereal:sql/client@0.1.0;
            import wasmcloud:postgres/query@0.1.1-draft;
            import wasmcloud:postgres/prepared@0.1.1-draft;
            export wasi:http/incoming-handler@0.2.12;
        }
    ",
    world: "sidereal:guests/guest",
    pub_export_macro: true,
    default_bindings_module: "guests",
    generate_all,
});

mod query;

pub use exports::wasi::http::incoming_handler::Guest;
pub use query::{decode, number, param};
pub use wasi::http::types::{Fields, IncomingRequest, OutgoingBody, OutgoingResponse, ResponseOutparam};

/// Starts a response and gives back its body, still empty.
pub fn start(out: ResponseOutparam, status: u16, headers: Fields) -> OutgoingBody {
    let response = OutgoingResponse::new(headers);
    response.set_status_code(status).expect("a valid status");
    let body = response.body().expect("the body is taken once");
    ResponseOutparam::set(out, Ok(response));
    body
}

/// Answers with a whole body.
pub fn reply(out: ResponseOutparam, status: u16, text: &str) {
    let body = start(out, status, Fields::new());
    {
        let stream = body.write().expect("the stream is taken once");
        for part in text.as_bytes().chunks(4096) {
            if stream.blocking_write_and_flush(part).is_err() {
                return;
            }
        }
    }
    let _ = OutgoingBody::finish(body, None);
}

/// The path without the query, and the query.
pub fn target(request: &IncomingRequest) -> (String, String) {
    let target = request.path_with_query().unwrap_or_default();
    match target.split_once('?') {
        Some((path, query)) => (path.to_owned(), query.to_owned()),
        None => (target, String::new()),
    }
}
