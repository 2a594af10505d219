//! Adds 1 to `hits` in bucket `default` and answers the number.
use guests::wasi::keyvalue::{atomics, store};
use guests::{Guest, IncomingRequest, ResponseOutparam};

struct Counter;

impl Guest for Counter {
    fn handle(_: IncomingRequest, out: ResponseOutparam) {
        let hits = store::open("default").and_then(|bucket| atomics::increment(&bucket, "hits", 1));
        match hits {
            Ok(hits) => guests::reply(out, 200, &hits.to_string()),
            Err(error) => guests::reply(out, 500, &format!("{error:?}")),
        }
    }
}

guests::export!(Counter);
