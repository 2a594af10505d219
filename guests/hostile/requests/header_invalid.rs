//! Row 8: names and values that are no header: each an error value.
use guests::{Fields, IncomingRequest, ResponseOutparam, reply};

const NAMES: [&str; 9] = ["", " ", "a b", "a:b", "a\r\nb", "a\0", "\u{20ac}", "(", "a\n"];
const VALUES: [&[u8]; 6] = [b"\r\n", b"a\r\nset-cookie: b", b"\0", b"\x7f", b"\n", b"a\x01"];
const FORBIDDEN: [&str; 5] = ["connection", "host", "keep-alive", "transfer-encoding", "upgrade"];

pub fn run(_: IncomingRequest, out: ResponseOutparam) {
    let taken = |name: &str, value: &[u8]| Fields::new().append(name, value).is_ok();
    let list = |name: &str, value: &[u8]| Fields::from_list(&[(name.to_owned(), value.to_vec())]).is_ok();
    let mut said = Vec::new();
    said.extend(NAMES.iter().filter(|name| taken(name, b"v") || list(name, b"v")).map(|name| format!("{name:?}")));
    said.extend(VALUES.iter().filter(|value| taken("x", value) || list("x", value)).map(|value| format!("{value:?}")));
    said.extend(FORBIDDEN.iter().filter(|name| taken(name, b"v")).map(|name| (*name).to_owned()));
    reply(out, 200, &format!("taken: {}", said.join(" ")));
}
