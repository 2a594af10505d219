//! Whole messages of HTTP/1.1 on a host's line: reads a request, writes an answer. Pure. What is read comes from the ingress, which
//! has checked it; what is written is checked there again.

use std::cell::Cell;
use std::mem::MaybeUninit;
use std::time::{SystemTime, UNIX_EPOCH};

use api::agent::ROUTE_HEADER;
use bytes::{BufMut as _, Bytes, BytesMut};
use http::header::{CONNECTION, CONTENT_LENGTH, DATE, HOST, HeaderMap, HeaderName, HeaderValue, TRANSFER_ENCODING};
use http::uri::{Authority, Scheme};
use http::{Method, Request, Response, StatusCode, Uri};
use http_body_util::Full;

use crate::data::{Routed, is_ours};
use crate::serve::MAX_HEADERS;

/// What the ingress says in every request, beside the standard names: a name that is known needs no memory of its own.
static KNOWN: [HeaderName; 4] = [
    HeaderName::from_static("x-forwarded-for"),
    HeaderName::from_static("x-forwarded-proto"),
    HeaderName::from_static("x-forwarded-host"),
    HeaderName::from_static("traceparent"),
];

fn name(name: &[u8]) -> Option<HeaderName> {
    match KNOWN.iter().find(|known| known.as_str().as_bytes() == name) {
        Some(known) => Some(known.clone()),
        None => HeaderName::from_bytes(name).ok(),
    }
}

/// The target with whom it is asked of: where a component finds it, which sees no `Host`.
fn at(host: Bytes, path: Uri) -> Option<Uri> {
    let mut parts = path.into_parts();
    parts.scheme = Some(Scheme::HTTP);
    parts.authority = Some(Authority::from_maybe_shared(host).ok()?);
    Uri::from_parts(parts).ok()
}

/// Reads a request and its body, which is all that follows the head; `None` where it is none. Of the platform's own headers
/// the route is kept apart, and no other gets any further.
pub(crate) fn request(message: &Bytes) -> Option<Routed<Full<Bytes>>> {
    let mut fields = [const { MaybeUninit::uninit() }; MAX_HEADERS];
    let mut parsed = httparse::Request::new(&mut []);
    let httparse::Status::Complete(end) = parsed.parse_with_uninit_headers(message, &mut fields).ok()? else {
        return None;
    };
    let body = message.get(end..)?;
    let mut request = Request::new(Full::new(message.slice_ref(body)));
    *request.method_mut() = Method::from_bytes(parsed.method?.as_bytes()).ok()?;
    let path = Uri::from_maybe_shared(message.slice_ref(parsed.path?.as_bytes())).ok()?;
    let (mut route, mut host) = (None, None);
    let headers = request.headers_mut();
    headers.reserve(parsed.headers.len());
    for field in parsed.headers.iter() {
        let bytes = message.slice_ref(field.value);
        if host.is_none() && field.name.eq_ignore_ascii_case(HOST.as_str()) {
            host = Some(bytes);
            continue;
        }
        let value = HeaderValue::from_maybe_shared(bytes).ok()?;
        if field.name.eq_ignore_ascii_case(ROUTE_HEADER) {
            route = route.or(Some(value));
        } else if !is_ours(field.name) {
            headers.append(name(field.name.as_bytes())?, value);
        }
    }
    // The frame says how long the body is; a head that says otherwise is no head of the ingress.
    let said = match headers.get(CONTENT_LENGTH) {
        Some(length) => length.to_str().ok()?.parse().ok()?,
        None => 0,
    };
    if said != body.len() || headers.contains_key(TRANSFER_ENCODING) {
        return None;
    }
    *request.uri_mut() = match host {
        Some(host) => at(host, path)?,
        None => path,
    };
    Some(Routed { route, request })
}

/// Writes an answer and the pieces of its body.
pub(crate) fn answer<'a>(out: &mut BytesMut, head: &Response<()>, body: impl Iterator<Item = &'a Bytes> + Clone) {
    let status = head.status();
    out.put_slice(b"HTTP/1.1 ");
    out.put_slice(status.as_str().as_bytes());
    out.put_slice(b" \r\n");
    fields(out, head.headers());
    let length: usize = body.clone().map(Bytes::len).sum();
    match (status, head.headers().get(CONTENT_LENGTH)) {
        (StatusCode::NO_CONTENT, _) => {}
        // What a body would have had; there is none.
        (StatusCode::NOT_MODIFIED, Some(length)) => field(out, CONTENT_LENGTH.as_str(), length.as_bytes()),
        (StatusCode::NOT_MODIFIED, None) => {}
        _ => {
            use std::fmt::Write as _;
            // Writing to a buffer that grows does not fail.
            let _ = write!(out, "content-length: {length}\r\n");
        }
    }
    out.put_slice(b"\r\n");
    if status != StatusCode::NO_CONTENT && status != StatusCode::NOT_MODIFIED {
        for piece in body {
            out.put_slice(piece);
        }
    }
}

fn fields(out: &mut BytesMut, headers: &HeaderMap) {
    for (name, value) in headers {
        if ![CONTENT_LENGTH, TRANSFER_ENCODING, CONNECTION].contains(name) {
            field(out, name.as_str(), value.as_bytes());
        }
    }
    if !headers.contains_key(DATE) {
        field(out, DATE.as_str(), &date());
    }
}

fn field(out: &mut BytesMut, name: &str, value: &[u8]) {
    for piece in [name.as_bytes(), b": ", value, b"\r\n"] {
        out.put_slice(piece);
    }
}

/// The time of day as HTTP says it; written anew once a second.
fn date() -> [u8; 29] {
    thread_local! {
        static WRITTEN: Cell<(u64, [u8; 29])> = const { Cell::new((u64::MAX, [0; 29])) };
    }
    let now = SystemTime::now();
    let second = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let (of, written) = WRITTEN.get();
    if of == second {
        return written;
    }
    let mut text = [b' '; 29];
    for (to, from) in text.iter_mut().zip(httpdate::fmt_http_date(now).bytes()) {
        *to = from;
    }
    WRITTEN.set((second, text));
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::BodyExt as _;

    #[test]
    fn a_request_is_its_head_and_what_follows() {
        let text = b"POST /a?b HTTP/1.1\r\nhost: h\r\nsidereal-route: a/1/c\r\nX-A: 1\r\nx-a: 2\r\n\
            x-forwarded-for: ::1\r\nsidereal-route: b/1/c\r\nSidereal-Claim: 0.0\r\ncontent-length: 3\r\n\r\nabc";
        let Routed { route, request: read } = request(&Bytes::from_static(text)).unwrap();
        assert_eq!(route.unwrap(), "a/1/c");
        let names: Vec<_> = read.headers().keys().map(HeaderName::as_str).collect();
        assert_eq!(names, ["x-a", "x-forwarded-for", "content-length"], "ours get no further");
        assert_eq!(read.uri(), "http://h/a?b");
        assert_eq!((read.method(), read.uri().path_and_query().unwrap().as_str()), (&Method::POST, "/a?b"));
        assert_eq!(read.headers().get_all("x-a").iter().collect::<Vec<_>>(), ["1", "2"]);
        let body = futures::executor::block_on(read.into_body().collect()).unwrap().to_bytes();
        assert_eq!(body, "abc");
        for bad in [
            "GET / HTTP/1.1\r\nhost: h\r\n",
            "GET / HTTP/1.1\r\ncontent-length: 2\r\n\r\na",
            "GET / HTTP/1.1\r\n\r\na",
            "GET / HTTP/1.1\r\nhost: a b\r\n\r\n",
            "GET / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n",
            "GET / HTTP/1.1\r\ncontent-length: x\r\n\r\n",
            "\r\n\r\n",
            "",
        ] {
            assert!(request(&Bytes::from(bad)).is_none(), "{bad}");
        }
    }

    #[test]
    fn an_answer_has_the_length_of_its_body() {
        let written = |response: Response<()>, body: &[Bytes]| {
            let mut out = BytesMut::new();
            answer(&mut out, &response, body.iter());
            String::from_utf8(out.to_vec()).unwrap()
        };
        let with = |status: u16, name: &str, value: &str| {
            let builder = Response::builder().status(status).header("date", "now");
            builder.header(name, value).body(()).unwrap()
        };
        let body = [Bytes::from_static(b"he"), Bytes::from_static(b"llo")];
        assert_eq!(
            written(with(200, "content-length", "99"), &body),
            "HTTP/1.1 200 \r\ndate: now\r\ncontent-length: 5\r\n\r\nhello"
        );
        assert_eq!(written(with(204, "x", "y"), &[]), "HTTP/1.1 204 \r\ndate: now\r\nx: y\r\n\r\n");
        assert_eq!(
            written(with(304, "content-length", "9"), &body),
            "HTTP/1.1 304 \r\ndate: now\r\ncontent-length: 9\r\n\r\n"
        );
        let dated = written(Response::new(()), &[]);
        let date = dated.lines().find_map(|line| line.strip_prefix("date: ")).unwrap();
        assert!(httpdate::parse_http_date(date).is_ok(), "{dated}");
    }
}
