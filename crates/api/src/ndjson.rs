//! Lines out of bytes that come in whatever pieces their writer likes. Each byte is looked at once: a writer that ends no
//! line, or sends one byte at a time, makes its reader work no more than another.

use bytes::BytesMut;

/// The bytes that are there, and how far into them there is no line end.
#[derive(Debug)]
pub struct LineBuffer {
    bytes: BytesMut,
    looked: usize,
    most: usize,
    skipping: bool,
}

impl LineBuffer {
    /// Lines of at most about so many bytes; a longer one is skipped.
    pub fn new(most: usize) -> Self {
        Self { bytes: BytesMut::new(), looked: 0, most, skipping: false }
    }

    /// Adds what came. What it holds is bounded where [`LineBuffer::line`] is asked before more is added.
    pub fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// The next whole line, with its end.
    pub fn line(&mut self) -> Option<BytesMut> {
        loop {
            let Some(at) = self.bytes.get(self.looked..)?.iter().position(|byte| *byte == b'\n') else {
                self.looked = self.bytes.len();
                if self.looked > self.most {
                    self.bytes.clear();
                    (self.looked, self.skipping) = (0, true);
                }
                return None;
            };
            let line = self.bytes.split_to(self.looked + at + 1);
            self.looked = 0;
            if !std::mem::take(&mut self.skipping) {
                return Some(line);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;

    fn lines(buffer: &mut LineBuffer) -> Vec<String> {
        std::iter::from_fn(|| buffer.line()).map(|line| String::from_utf8(line.to_vec()).unwrap()).collect()
    }

    #[test]
    fn lines_come_whole_in_whatever_pieces_they_are_sent() {
        for size in 1..12 {
            let mut buffer = LineBuffer::new(6);
            let mut all = Vec::new();
            for piece in b"one\ntwo\n\nmuch too long\nthree\nrest".chunks(size) {
                buffer.push(piece);
                all.extend(lines(&mut buffer));
            }
            all.retain(|line| line != "much too long\n");
            assert_eq!(all, ["one\n", "two\n", "\n", "three\n"], "in pieces of {size}");
        }
    }

    #[test]
    fn a_line_without_an_end_is_looked_at_once_and_not_kept() {
        let (most, began) = (256 << 10, Instant::now());
        let mut buffer = LineBuffer::new(most);
        for _ in 0..16 * most {
            buffer.push(b"x");
            assert!(buffer.line().is_none());
        }
        assert!(buffer.bytes.len() <= most && buffer.bytes.capacity() < 4 * most);
        buffer.push(b"\nnext\n");
        assert_eq!(lines(&mut buffer), ["next\n"]);
        // Looked through from its beginning at each byte this is half a million million bytes.
        assert!(began.elapsed() < Duration::from_secs(60), "{:?}", began.elapsed());
    }
}
