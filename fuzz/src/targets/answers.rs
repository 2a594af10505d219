//! Response heads and bodies of hosts, which run the code of tenants: what is passed on another reader accepts with the same
//! meaning, as it came and as it is written for the client; there is one way to find its end; and pieces mean what the whole
//! means. The first byte says whether a HEAD request is answered.

use node::ingress::reading::{Body, Reply, chunked, pumped, reply};

use super::head1::by_lines;

/// Fields that another reader has room for: more than any that is passed on.
const ROOM: usize = 128;

pub(super) fn seeds() -> Vec<Vec<u8>> {
    super::texts(&[
        "gHTTP/1.1 200 OK\r\ncontent-length: 5\r\nx-a: b\r\n\r\nhello",
        "gHTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nx: y\r\n\r\n",
        "hHTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n",
        "hHTTP/1.1 404 Not Found\r\ntransfer-encoding: chunked\r\n\r\n",
        "gHTTP/1.1 204 No Content\r\n\r\n",
        "gHTTP/1.1 304 Not Modified\r\ncontent-length: 9\r\netag: \"a\"\r\n\r\n",
        "gHTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n",
        "gHTTP/1.1 503 x\r\nsidereal-fault: not-found\r\ncontent-length: 4\r\n\r\ngone",
        "gHTTP/1.1 200 OK\r\nconnection: close\r\nkeep-alive: 5\r\nsidereal-route: x\r\ncontent-length: 0\r\n\r\n",
        "gHTTP/1.1 200\r\ncontent-length: 0\r\n\r\n",
    ])
}

pub(super) fn run(bytes: &[u8]) {
    let Some((first, bytes)) = bytes.split_first() else { return };
    let to_head = *first == b'h';
    let whole = reply(bytes, bytes.len().max(1), to_head);
    for piece in [1, 7] {
        assert_eq!(reply(bytes, piece, to_head), whole, "in pieces of {piece} it means something else");
    }
    let Ok(Some(ours)) = whole else { return };
    as_it_came(bytes, &ours, to_head);
    as_it_is_written(&ours);
    body(&bytes[ours.length..], ours.body);
}

fn as_it_came(bytes: &[u8], ours: &Reply, to_head: bool) {
    let mut fields = [httparse::EMPTY_HEADER; ROOM];
    let mut theirs = httparse::Response::new(&mut fields);
    let status = theirs.parse(bytes).unwrap_or_else(|cause| panic!("another reader refuses it: {cause}"));
    assert_eq!(status, httparse::Status::Complete(ours.length), "the head ends somewhere else");
    assert_eq!((theirs.code, theirs.version), (Some(ours.status), Some(1)));
    let (lengths, codings) = ends(theirs.headers);
    assert!(lengths.len() + codings.len() <= 1, "two ways to find the end of the body");
    let bodiless = to_head || ours.status < 200 || [204, 304].contains(&ours.status);
    match ours.body {
        Body::None => assert!(bodiless, "a body is overlooked"),
        Body::Length(length) => {
            assert!(!bodiless, "a body where there is none");
            assert_eq!(lengths, [length]);
        }
        Body::Chunked => {
            assert!(!bodiless, "a body where there is none");
            assert!(codings == ["chunked"], "{codings:?}");
        }
    }
    let mut rest = theirs.headers.iter();
    for (name, value) in &ours.fields {
        let found = rest.any(|h| h.name.as_bytes() == name.as_slice() && h.value == value.as_slice());
        assert!(found, "a field that was not sent");
    }
}

/// The client's reader finds what ours found, and one end.
fn as_it_is_written(ours: &Reply) {
    let mut fields = [httparse::EMPTY_HEADER; ROOM];
    let mut theirs = httparse::Response::new(&mut fields);
    let status = theirs.parse(&ours.written).unwrap_or_else(|cause| panic!("the client's reader refuses it: {cause}"));
    assert_eq!(status, httparse::Status::Complete(ours.written.len()), "the head ends somewhere else");
    assert_eq!(theirs.code, Some(ours.status));
    let (lengths, codings) = ends(theirs.headers);
    match ours.body {
        // A length is said where there would be so much; nothing follows for another reason.
        Body::None => assert!(codings.is_empty() && lengths.len() <= 1),
        Body::Length(length) => assert!(lengths == [length] && codings.is_empty(), "another end for the client"),
        Body::Chunked => assert!(lengths.is_empty() && codings == ["chunked"], "another end for the client"),
    }
    let own = ["connection", "keep-alive", "upgrade", "te", "trailer", "sidereal-route"];
    for header in theirs.headers.iter() {
        let plain = header.name.to_ascii_lowercase().replace('_', "-");
        assert!(!own.contains(&plain.as_str()), "{plain} is passed on");
    }
}

/// What a head says of the end of its body: lengths, and codings in small letters.
fn ends(headers: &[httparse::Header<'_>]) -> (Vec<u64>, Vec<String>) {
    let values = |name: &str| {
        let found = headers.iter().filter(|h| h.name.eq_ignore_ascii_case(name));
        found.map(|h| String::from_utf8_lossy(h.value).to_ascii_lowercase()).collect::<Vec<_>>()
    };
    let number = |text: String| text.parse().unwrap_or_else(|_| panic!("{text:?} is no length"));
    (values("content-length").into_iter().map(number).collect(), values("transfer-encoding"))
}

fn body(bytes: &[u8], framing: Body) {
    let ours = pumped(bytes, bytes.len().max(1), framing);
    // In smaller pieces it is framed in smaller ones, and says the same.
    let in_pieces = pumped(bytes, 1, framing);
    assert_eq!(ours.as_ref().map(|one| one.1), in_pieces.as_ref().map(|one| one.1), "in pieces it ends elsewhere");
    let (Some((out, done)), Some((pieces, _))) = (ours, in_pieces) else { return };
    match framing {
        Body::None => assert!(out.is_empty() && done, "a body where there is none"),
        Body::Length(length) => {
            let there = usize::try_from(length).unwrap_or(usize::MAX).min(bytes.len());
            assert!(out == bytes[..there] && pieces == out, "another body than was sent");
            assert_eq!(done, there as u64 == length);
        }
        Body::Chunked if done => {
            let (sent, _) = by_lines(bytes).expect("another reader of chunks refuses what was sent");
            assert_eq!(by_lines(&out), Some((sent.clone(), out.len())), "the client gets another body");
            assert_eq!(by_lines(&pieces), Some((sent, pieces.len())), "in pieces the client gets another body");
        }
        Body::Chunked => {
            let data = |bytes: &[u8]| chunked(bytes, bytes.len().max(1)).map(|(data, _)| data);
            assert_eq!(data(&out), data(bytes), "the client gets other data");
            assert_eq!(data(&pieces), data(bytes), "in pieces the client gets other data");
        }
    }
}
