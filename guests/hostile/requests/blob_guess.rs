//! Row 46: opens containers and objects by guessing what those of others may be called.
use guests::wasi::blobstore::blobstore;
use guests::wasi::blobstore::types::{IncomingValue, ObjectId};
use guests::{IncomingRequest, ResponseOutparam, reply};

const CONTAINERS: [&str; 10] =
    ["default", "victim", "..", "../victim", "/", "", "victim\0", "%2e%2e", ".", "../../../../../../etc"];
const OBJECTS: [&str; 10] = [
    "secret",
    "../victim/secret",
    "../../secret",
    "/etc/passwd",
    "..",
    "",
    "\0",
    "a/../secret",
    "%2e%2e/secret",
    "../../../../../../etc/passwd",
];

pub fn run(_: IncomingRequest, out: ResponseOutparam) {
    let mut seen = Vec::new();
    for name in CONTAINERS {
        let container = match blobstore::get_container(name) {
            Ok(container) => container,
            Err(_) if name != "default" => continue,
            Err(_) => match blobstore::create_container(name) {
                Ok(container) => container,
                Err(_) => continue,
            },
        };
        for object in OBJECTS {
            if let Ok(value) = container.get_data(object, 0, 100)
                && let Ok(bytes) = IncomingValue::incoming_value_consume_sync(value)
            {
                seen.push(format!("{name:?}/{object:?}={}", String::from_utf8_lossy(&bytes)));
            }
            let id = |container: &str| ObjectId { container: container.to_owned(), object: object.to_owned() };
            for other in ["victim", "..", "../victim"] {
                let _ = blobstore::copy_object(&id(other), &id("default"));
            }
        }
    }
    reply(out, 200, &format!("seen: {}", seen.join(" ")));
}
