//! Whole messages of HTTP/1.1 on a host's line: reads a request, writes an answer. Pure. What is read comes from the ingress, which
//! has checked it; what is written is checked there again.

use std::cell::Cell;
use std::mem::MaybeUninit;
use std::time::{SystemTime, UNIX_EPOCH};

use bytes::{BufMut as _, Bytes, BytesMut};
use http::header::{CONNECTION, CONTENT_LENGTH, DATE, HeaderMap, HeaderName, HeaderValue, TRANSFER_ENCODING};
use http::{Method, Request, Response, StatusCode, Uri};
use http_body_util::Full;

use crate::serve::MAX_HEADERS;

/// Reads a request and its body, which is all that follows the head; `None` where it is none.
pub(crate) fn request(message: &Bytes) -> Option<Request<Full<Bytes>>> {
    let mut fields = [const { MaybeUninit::uninit() }; MAX_HEADERS];
    let mut parsed = httparse::Request::new(&mut []);
    let httparse::Status::Complete(end) = parsed.parse_with_uninit_headers(message, &mut fields).ok()? else {
        return None;
    };
    let body = message.get(end..)?;
    let mut request = Request::new(Full::new(message.slice_ref(body)));
    *request.method_mut() = Method::from_bytes(parsed.method?.as_bytes()).ok()?;
    *request.uri_mut() = Uri::from_maybe_shared(message.slice_ref(parsed.path?.as_bytes())).ok()?;
    let headers = request.headers_mut();
    headers.reserve(parsed.headers.len());
    for field in parsed.headers.iter() {
        let name = HeaderName::from_bytes(field.name.as_bytes()).ok()?;
        headers.append(name, HeaderValue::from_maybe_shared(message.slice_ref(field.value)).ok()?);
    }
    // The frame says how long the body is; a head that says otherwise is no head of the ingress.
    let said = match headers.get(CONTENT_LENGTH) {
        Some(length) => length.to_str().ok()?.parse().ok()?,
        None => 0,
    };
    (said == body.len() && !headers.contains_key(TRANSFER_ENCODING)).then_some(request)
}

/// Writes an answer and its body.
pub(crate) fn answer(out: &mut BytesMut, head: &Response<()>, body: &[Bytes]) {
    let status = head.status();
    out.put_slice(b"HTTP/1.1 ");
    out.put_slice(status.as_str().as_bytes());
    out.put_slice(b" \r\n");
    fields(out, head.headers());
    let length: usize = body.iter().map(Bytes::len).sum();
    match (status, head.headers().get(CONTENT_LENGTH)) {
        (StatusCode::NO_CONTENT, _) => {}
        // What a body would have had; there is none.
        (StatusCode::NOT_MODIFIED, Some(length)) => field(out, CONTENT_LENGTH.as_str(), length.as_bytes()),
        (StatusCode::NOT_MODIFIED, None) => {}
        _ => field(out, CONTENT_LENGTH.as_str(), length.to_string().as_bytes()),
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
        let text = b"POST /a?b HTTP/1.1\r\nhost: h\r\nX-A: 1\r\nx-a: 2\r\ncontent-length: 3\r\n\r\nabc";
        let read = request(&Bytes::from_static(text)).unwrap();
        assert_eq!((read.method(), read.uri().path_and_query().unwrap().as_str()), (&Method::POST, "/a?b"));
        assert_eq!(read.headers().get_all("x-a").iter().collect::<Vec<_>>(), ["1", "2"]);
        let body = futures::executor::block_on(read.into_body().collect()).unwrap().to_bytes();
        assert_eq!(body, "abc");
        for bad in [
            "GET / HTTP/1.1\r\nhost: h\r\n",
            "GET / HTTP/1.1\r\ncontent-length: 2\r\n\r\na",
            "GET / HTTP/1.1\r\n\r\na",
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
            answer(&mut out, &response, body);
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
