//! Frames of the line between the ingress and a host, from either side: the same in whatever pieces they come, written
//! again as they were read, none larger than one may be. The first byte says how large the pieces are.

use api::data_line::{Frame, Kind, MAX_CONTENT, push, take};
use bytes::BytesMut;

pub(super) fn seeds() -> Vec<Vec<u8>> {
    let framed = |frames: &[(Kind, u64, &[u8])]| {
        // Pieces of three bytes: no head of a frame comes at once.
        let mut out = BytesMut::from(&[3][..]);
        for (kind, call, content) in frames {
            assert!(push(&mut out, *kind, *call, |out| out.extend_from_slice(content)));
        }
        out.to_vec()
    };
    vec![
        framed(&[(Kind::Call, 1, b"GET / HTTP/1.1\r\nhost: h\r\ncontent-length: 0\r\n\r\n")]),
        framed(&[(Kind::Answer, 1, b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"), (Kind::Claim, 2, b"7")]),
        framed(&[(Kind::Cancel, u64::MAX, b""), (Kind::Cancel, 0, b"")]),
        b"\x01HTTP/1.1 200 OK\r\n\r\n".to_vec(),
        vec![255, 3, 1],
    ]
}

/// The frames that come out, and whether what is left may still become one; `None` where it cannot.
fn taken(bytes: &[u8], size: usize) -> (Vec<Frame>, Option<usize>) {
    let (mut frames, mut buffer) = (Vec::new(), BytesMut::new());
    for piece in bytes.chunks(size) {
        buffer.extend_from_slice(piece);
        loop {
            match take(&mut buffer) {
                Ok(Some(frame)) => frames.push(frame),
                Ok(None) => break,
                Err(_) => return (frames, None),
            }
        }
    }
    (frames, Some(buffer.len()))
}

pub(super) fn run(bytes: &[u8]) {
    let Some((size, bytes)) = bytes.split_first() else { return };
    let (frames, left) = taken(bytes, bytes.len().max(1));
    let pieces = taken(bytes, usize::from(*size).max(1));
    assert_eq!(pieces, (frames.clone(), left), "in pieces of {size} it means something else");
    let mut again = BytesMut::new();
    for frame in frames {
        assert!(frame.content.len() <= MAX_CONTENT, "a frame larger than one may be");
        let written = push(&mut again, frame.kind, frame.call, |out| out.extend_from_slice(&frame.content));
        assert!(written, "what was read is not written");
    }
    assert!(bytes.starts_with(&again), "it is written as something else");
    assert!(left.is_none_or(|left| again.len() + left == bytes.len()), "bytes are lost");
}
