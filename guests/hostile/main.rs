//! Everything a component of WASI 0.2 can do to its host by way of a request: the path names the case, one file each.
use guests::{Guest, IncomingRequest, ResponseOutparam};

macro_rules! cases {
    ($($case:ident)+) => {
        mod requests { $(pub mod $case;)+ }

        struct Hostile;

        impl Guest for Hostile {
            fn handle(request: IncomingRequest, out: ResponseOutparam) {
                let (path, _) = guests::target(&request);
                match path.trim_start_matches('/') {
                    $(stringify!($case) => requests::$case::run(request, out),)+
                    "" => guests::reply(out, 200, "hostile"),
                    other => guests::reply(out, 404, other),
                }
            }
        }
    };
}

cases! {
    allocate
    answer_twice
    blob_guess
    body_dropped
    body_drip
    body_endless
    body_longer
    body_shorter
    body_unread
    cheap_calls
    clock
    connect
    exit
    fields_from_bomb
    handles_fields
    handles_pollables
    handles_requests
    header_huge
    header_invalid
    headers_many
    kv_bomb
    kv_guess
    kv_huge
    log_ansi
    log_flood
    log_forged
    log_invalid
    log_lines
    log_message
    never_answers
    outgoing_many
    outgoing_timeouts
    parked
    parked_body
    parked_many
    poll_empty
    random_huge
    recursion
    remember
    spin
    status_invalid
    stderr_flood
    surroundings
    trap
}

guests::export!(Hostile);
