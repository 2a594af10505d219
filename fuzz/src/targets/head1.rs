//! Request heads and chunked bodies of HTTP/1: what we accept another reader accepts with the same meaning, there is
//! one way to find the end of the body, and pieces mean what the whole means.

use node::ingress::reading::{Body, chunked, head};

pub(super) fn seeds() -> Vec<Vec<u8>> {
    super::texts(&[
        "GET / HTTP/1.1\r\nHost: a.example\r\n\r\n",
        "POST /a/b?c=d HTTP/1.1\r\nHost: a:80\r\nContent-Length: 5\r\nX-A: b\r\n\r\nhello",
        "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nx: y\r\n\r\n",
        "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\ncontent-length: 3\r\n\r\n",
        "GET http://a/%7Ex HTTP/1.1\r\nhost: a\r\nConnection: close, x-b\r\nx-b: c\r\n\r\n",
        "GET / HTTP/1.0\r\nHost: a\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\n folded: b\r\n\r\n",
        "GET / HTTP/1.1\r\nHost : a\r\n\r\n",
        "GET / HTTP/1.1\nHost: a\n\n",
        "PUT /x HTTP/1.1\r\nHost: [::1]:8\r\nContent-Length: 0\r\nExpect: 100-continue\r\nTraceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer_Encoding: chunked\r\nContent-Length: 4\r\n\r\n0\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: 1\r\nSidereal-Route: x\r\nUpgrade: h2c\r\n\r\n",
    ])
}

pub(super) fn run(bytes: &[u8]) {
    let whole = head(bytes, bytes.len().max(1));
    for piece in [1, 7] {
        assert_eq!(head(bytes, piece), whole, "in pieces of {piece} it means something else");
    }
    let Ok(Some(ours)) = whole else {
        return body(bytes);
    };
    let mut fields = [httparse::EMPTY_HEADER; 128];
    let mut theirs = httparse::Request::new(&mut fields);
    let status = theirs.parse(bytes).unwrap_or_else(|cause| panic!("another reader refuses it: {cause}"));
    assert_eq!(status, httparse::Status::Complete(ours.length), "the head ends somewhere else");
    assert_eq!(theirs.method.map(str::as_bytes), Some(ours.method.as_slice()));
    assert_eq!(theirs.version, Some(if ours.is_11 { 1 } else { 0 }));
    let target = theirs.path.expect("it is complete").as_bytes();
    assert!(target.ends_with(&ours.path_and_query) || ours.path_and_query == b"/", "another target");
    let values = |name: &str| {
        theirs.headers.iter().filter(|h| h.name.eq_ignore_ascii_case(name)).map(|h| h.value).collect::<Vec<_>>()
    };
    assert_eq!(values("host"), [ours.host.as_slice()], "one Host, and that one");
    let (lengths, codings) = (values("content-length"), values("transfer-encoding"));
    match ours.body {
        Body::None => assert!(lengths.is_empty() && codings.is_empty()),
        Body::Length(length) => {
            assert!(codings.is_empty() && lengths.len() == 1, "two ways to find the end of the body");
            assert_eq!(std::str::from_utf8(lengths[0]).ok().and_then(|text| text.parse().ok()), Some(length));
        }
        Body::Chunked => {
            assert!(lengths.is_empty() && codings.len() == 1, "two ways to find the end of the body");
            assert!(codings[0].eq_ignore_ascii_case(b"chunked"));
        }
    }
    // What is carried on is there, in order, and nothing of it is ours to say or decides the message's end.
    let mut rest = theirs.headers.iter();
    for (name, value) in &ours.fields {
        let found = rest.any(|h| h.name.as_bytes() == name.as_slice() && h.value == value.as_slice());
        assert!(found, "a field that was not sent");
        let plain: String =
            name.iter().map(|b| if *b == b'_' { '-' } else { b.to_ascii_lowercase() as char }).collect();
        let ours =
            ["host", "content-length", "transfer-encoding", "connection", "upgrade", "keep-alive", "te", "trailer"];
        assert!(!ours.contains(&plain.as_str()), "{plain} is carried on");
        assert!(!plain.starts_with("x-forwarded-") && !plain.starts_with("sidereal-"), "{plain} is carried on");
    }
    body(&bytes[ours.length..]);
}

/// Chunks, against a reader that looks at whole lines.
fn body(bytes: &[u8]) {
    let ours = chunked(bytes, bytes.len().max(1));
    assert_eq!(chunked(bytes, 1), ours, "in pieces it means something else");
    if let Some((data, Some(used))) = ours {
        assert_eq!(by_lines(bytes), Some((data, used)), "another reader of chunks disagrees");
    }
}

/// The data of a chunked body and the bytes it took, where it is whole.
pub(super) fn by_lines(mut bytes: &[u8]) -> Option<(Vec<u8>, usize)> {
    let whole = bytes.len();
    let line = |bytes: &mut &[u8]| {
        let end = bytes.windows(2).position(|pair| pair == b"\r\n")?;
        let (line, rest) = bytes.split_at(end);
        *bytes = &rest[2..];
        Some(line.to_vec())
    };
    let mut data = Vec::new();
    loop {
        let size = usize::from_str_radix(std::str::from_utf8(&line(&mut bytes)?).ok()?, 16).ok()?;
        if size == 0 {
            break;
        }
        data.extend_from_slice(bytes.get(..size)?);
        bytes = bytes.get(size..)?.strip_prefix(b"\r\n")?;
    }
    while !line(&mut bytes)?.is_empty() {}
    Some((data, whole - bytes.len()))
}
