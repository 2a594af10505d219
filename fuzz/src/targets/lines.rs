//! Lines of a host's log and spans: the same in whatever pieces they come, none longer than it may be but where it came at
//! once, and read as JSON without harm.

use api::agent::{LogLine, SpanBatch};
use api::ndjson::LineBuffer;

/// The longest line here, bytes.
const MOST: usize = 64;

pub(super) fn seeds() -> Vec<Vec<u8>> {
    let line = r#"{"time_ms":0,"app":"a","component":"c","revision":1,"shard":0,"instance":"","stream":"stdout","context":"","text":"x"}"#;
    let mut seeds = super::texts(&["\n", "one\ntwo\n\nthree", "{\"spans\":[],\"dropped\":0}\n", "[[[[[[[[\n"]);
    seeds.push(format!("{line}\n{line}\n").into_bytes());
    seeds.push(vec![b'x'; 3 * MOST]);
    seeds.push(vec![b'['; 4096]);
    seeds.iter_mut().for_each(|seed| seed.insert(0, 1));
    seeds
}

/// The lines that come out, and of what is longer than `most` nothing.
fn gathered(bytes: &[u8], size: usize, most: usize) -> Vec<Vec<u8>> {
    let (mut lines, mut buffer) = (Vec::new(), LineBuffer::new(most));
    for piece in bytes.chunks(size) {
        buffer.push(piece);
        lines.extend(std::iter::from_fn(|| buffer.line()).map(|line| line.to_vec()));
    }
    lines
}

pub(super) fn run(bytes: &[u8]) {
    let Some((size, bytes)) = bytes.split_first() else { return };
    let size = usize::from(*size).max(1);
    let whole: Vec<Vec<u8>> =
        bytes.split_inclusive(|byte| *byte == b'\n').filter(|line| line.ends_with(b"\n")).map(<[u8]>::to_vec).collect();
    assert_eq!(gathered(bytes, size, usize::MAX), whole, "in pieces of {size}");
    // A line that is too long is skipped whole, and takes no other one with it.
    let short = |lines: &[Vec<u8>]| lines.iter().filter(|line| line.len() <= MOST).cloned().collect::<Vec<_>>();
    assert_eq!(short(&gathered(bytes, size, MOST)), short(&whole), "in pieces of {size}, short");
    for line in whole {
        drop(serde_json::from_slice::<LogLine>(&line));
        drop(serde_json::from_slice::<SpanBatch>(&line));
    }
}
