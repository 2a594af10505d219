//! Writes keys on request, and counts in another bucket what it is told of changes.
use guests::wasi::keyvalue::{atomics, store};
use guests::{Guest, IncomingRequest, ResponseOutparam};

wit_bindgen::generate!({
    path: "../wit/keyvalue",
    world: "watches",
    with: { "wasi:keyvalue/store@0.2.0-draft": guests::wasi::keyvalue::store },
});

struct Watcher;

fn count(key: &str) -> u64 {
    let bucket = store::open("log").expect("a bucket");
    atomics::increment(&bucket, key, 1).expect("a number")
}

impl exports::wasi::keyvalue::watcher::Guest for Watcher {
    fn on_set(bucket: store::Bucket, key: String, value: Vec<u8>) {
        let times = count(&format!("told:{key}"));
        if key.starts_with("fail") && times < 3 {
            panic!("it was told to");
        }
        count(&format!("set:{key}:{}", String::from_utf8_lossy(&value)));
        if key.starts_with("echo") {
            // Were it told of its own writes, this would never end.
            bucket.set(&format!("{key}-again"), &value).expect("it is written");
        }
    }

    fn on_delete(bucket: store::Bucket, key: String) {
        assert!(!bucket.exists(&key).expect("an answer"));
        count(&format!("deleted:{key}"));
    }
}

impl Guest for Watcher {
    fn handle(request: IncomingRequest, out: ResponseOutparam) {
        let (path, query) = guests::target(&request);
        let text = |name: &str| guests::param(&query, name).unwrap_or_default();
        let bucket = store::open("default").expect("a bucket");
        let done = match path.as_str() {
            "/set" => bucket.set(&text("key"), text("value").as_bytes()).map(|()| "done".to_owned()),
            "/delete" => bucket.delete(&text("key")).map(|()| "done".to_owned()),
            // So many keys with their numbers as values.
            "/burst" => {
                let (from, to) = (guests::number(&query, "from", 0), guests::number(&query, "to", 0));
                let mut numbers = from..to;
                numbers
                    .try_for_each(|n| bucket.set(&format!("n{n}"), n.to_string().as_bytes()))
                    .map(|()| "done".to_owned())
            }
            _ => {
                let log = store::open("log").expect("a bucket");
                log.get(&text("key")).map(|value| String::from_utf8_lossy(&value.unwrap_or(b"0".to_vec())).into_owned())
            }
        };
        match done {
            Ok(text) => guests::reply(out, 200, &text),
            Err(why) => guests::reply(out, 500, &format!("{why:?}")),
        }
    }
}

guests::export!(Watcher);
export!(Watcher);
