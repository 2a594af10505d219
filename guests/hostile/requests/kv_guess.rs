//! Row 46: opens buckets and keys by guessing what those of others may be called.
use guests::wasi::keyvalue::{atomics, store};
use guests::{IncomingRequest, ResponseOutparam, reply};

const BUCKETS: [&str; 16] = [
    "default",
    "victim",
    "secret",
    "..",
    "../victim",
    "../../default/victim",
    "/",
    "",
    "*",
    ">",
    "default/victim",
    "victim\0",
    "%2e%2e",
    "noisy/../default",
    "default:victim",
    "Victim",
];
const KEYS: [&str; 14] = [
    "secret",
    "../victim/secret",
    "victim/secret",
    "../../secret",
    "*",
    ">",
    "",
    "\0",
    "secret\0",
    "%2e%2e/secret",
    "/secret",
    "default\0secret",
    "secre",
    "\u{ff0f}secret",
];

pub fn run(_: IncomingRequest, out: ResponseOutparam) {
    let mut seen = Vec::new();
    for name in BUCKETS {
        let Ok(bucket) = store::open(name) else { continue };
        for key in KEYS {
            if let Ok(Some(value)) = bucket.get(key) {
                seen.push(format!("{name:?}/{key:?}={}", String::from_utf8_lossy(&value)));
            }
            let _ = bucket.set(key, b"hostile");
            let _ = bucket.delete(key);
            let _ = atomics::increment(&bucket, key, 1);
            let _ = bucket.delete(key);
        }
        if let Ok(page) = bucket.list_keys(None) {
            seen.extend(page.keys.into_iter().map(|key| format!("{name:?} has {key:?}")));
        }
    }
    reply(out, 200, &format!("seen: {}", seen.join(" ")));
}
