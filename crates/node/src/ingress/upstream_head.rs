//! Writes the request head a host gets. Everything is written anew: nothing a client sent decides framing or identity.

use http::HeaderMap;

use super::body::Framing;
use super::fields::{Class, Field, class};
use super::shard::Target;
use super::trace;

/// What the ingress knows of a client and says in every request of its connection; written once per connection.
#[derive(Debug, Clone)]
pub(super) struct Forwarded(Vec<u8>);

impl Forwarded {
    pub(super) fn new(client: std::net::IpAddr) -> Self {
        Self(format!("x-forwarded-for: {}\r\nx-forwarded-proto: http\r\n", client.to_canonical()).into_bytes())
    }
}

/// The parts of a request a host gets, from whatever protocol it came by.
pub(super) struct Parts<'a> {
    pub(super) method: &'a [u8],
    pub(super) path_and_query: &'a [u8],
    pub(super) host: &'a [u8],
    pub(super) framing: Framing,
    pub(super) traceparent: Option<&'a [u8]>,
}

/// Writes the head; `fields` are those that are carried on.
pub(super) fn write<'a>(
    out: &mut Vec<u8>,
    parts: &Parts<'_>,
    fields: impl Iterator<Item = Field<'a>>,
    forwarded: &Forwarded,
    target: &Target,
) {
    out.clear();
    for piece in [parts.method, b" ", parts.path_and_query, b" HTTP/1.1\r\nhost: ", parts.host, b"\r\n"] {
        out.extend_from_slice(piece);
    }
    out.extend_from_slice(api::agent::ROUTE_HEADER.as_bytes());
    for piece in [b": ", target.header.as_bytes(), b"\r\n", &forwarded.0, b"x-forwarded-host: ", parts.host] {
        out.extend_from_slice(piece);
    }
    out.extend_from_slice(b"\r\ntraceparent: ");
    match parts.traceparent {
        Some(value) => out.extend_from_slice(value),
        None => trace::generate(out),
    }
    out.extend_from_slice(b"\r\n");
    for field in fields {
        for piece in [field.name, b": ", field.value, b"\r\n"] {
            out.extend_from_slice(piece);
        }
    }
    write_framing(out, parts.framing);
    out.extend_from_slice(b"\r\n");
}

/// Appends the framing field, if there is one.
pub(super) fn write_framing(out: &mut Vec<u8>, framing: Framing) {
    match framing {
        Framing::None => {}
        Framing::Chunked => out.extend_from_slice(b"transfer-encoding: chunked\r\n"),
        Framing::Length(length) => {
            use std::io::Write as _;
            // Writing to a Vec does not fail.
            let _ = write!(out, "content-length: {length}\r\n");
        }
    }
}

/// The fields of a parsed header map that are carried on.
pub(super) fn carried_on(headers: &HeaderMap, keep_tracestate: bool) -> impl Iterator<Item = Field<'_>> {
    headers
        .iter()
        .filter(move |(name, _)| match class(name.as_str().as_bytes()) {
            Class::Plain => true,
            Class::TraceState => keep_tracestate,
            _ => false,
        })
        .map(|(name, value)| Field { name: name.as_str().as_bytes(), value: value.as_bytes() })
}

/// The one well-formed `traceparent` of a parsed header map.
pub(super) fn traceparent(headers: &HeaderMap) -> Option<&[u8]> {
    let mut all = headers.get_all("traceparent").iter();
    let first = all.next()?.as_bytes();
    (all.next().is_none() && trace::is_valid(first)).then_some(first)
}
