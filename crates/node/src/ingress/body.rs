//! Takes a message body of HTTP/1 out of the bytes of a connection. One decoder for both directions, without leniency:
//! no chunk extensions, no signs or spaces in sizes, CR LF at every line end. Trailers are checked and dropped.

use std::ops::Range;

use super::fields::{Class, class, is_value, name_and_value};

/// Digits of a chunk size; more than this many bytes no chunk has.
const MAX_SIZE_DIGITS: u32 = 15;
/// Bytes of all trailer lines together.
const MAX_TRAILERS: usize = 4096;

/// How the end of a body is found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Framing {
    /// There is none.
    None,
    /// After that many bytes.
    Length(u64),
    /// At the last chunk.
    Chunked,
}

impl Framing {
    pub(super) fn has_body(self) -> bool {
        !matches!(self, Self::None | Self::Length(0))
    }

    /// Starts reading a body of this framing.
    pub(super) fn decoder(self) -> Decoder {
        match self {
            Self::None => Decoder::Length(0),
            Self::Length(length) => Decoder::Length(length),
            Self::Chunked => Decoder::Chunked(Chunked::default()),
        }
    }
}

/// The bytes are not a body of this framing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the chunked body is malformed")]
pub(super) struct Malformed;

/// What one look at the input gave.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Step {
    /// Bytes of the input that are done with, the data among them.
    pub(super) consumed: usize,
    /// Where in the input body data is; empty if all of the input was needed for framing.
    pub(super) data: Range<usize>,
}

/// Reads one body.
#[derive(Debug)]
pub(super) enum Decoder {
    /// So many bytes are still to come.
    Length(u64),
    Chunked(Chunked),
}

impl Decoder {
    /// The body has ended.
    pub(super) fn is_done(&self) -> bool {
        match self {
            Self::Length(left) => *left == 0,
            Self::Chunked(chunked) => chunked.state == State::Done,
        }
    }

    /// Takes the next piece of data out of `input`. Call again with the rest until it consumes nothing.
    pub(super) fn step(&mut self, input: &[u8]) -> Result<Step, Malformed> {
        match self {
            Self::Length(left) => {
                let take = usize::try_from(*left).unwrap_or(usize::MAX).min(input.len());
                *left = left.saturating_sub(take as u64);
                Ok(Step { consumed: take, data: 0..take })
            }
            Self::Chunked(chunked) => chunked.step(input),
        }
    }
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum State {
    /// In a size line, after that many digits.
    #[default]
    Size,
    SizeLf,
    Data,
    DataCr,
    DataLf,
    /// In a trailer line or the empty line at the end.
    Trailer,
    Done,
}

/// Reads a chunked body.
#[derive(Debug, Default)]
pub(super) struct Chunked {
    state: State,
    digits: u32,
    /// Of the size line, then bytes of the chunk still to come.
    size: u64,
    line: Vec<u8>,
    trailer_bytes: usize,
}

impl Chunked {
    fn step(&mut self, input: &[u8]) -> Result<Step, Malformed> {
        let mut at = 0usize;
        while let Some(&byte) = input.get(at) {
            if self.state == State::Data {
                let left = input.len().saturating_sub(at);
                let take = usize::try_from(self.size).unwrap_or(usize::MAX).min(left);
                self.size = self.size.saturating_sub(take as u64);
                if self.size == 0 {
                    self.state = State::DataCr;
                }
                let end = at.saturating_add(take);
                return Ok(Step { consumed: end, data: at..end });
            }
            if self.state == State::Done {
                break;
            }
            at = at.saturating_add(1);
            self.framing_byte(byte)?;
        }
        Ok(Step { consumed: at, data: 0..0 })
    }

    fn framing_byte(&mut self, byte: u8) -> Result<(), Malformed> {
        self.state = match (self.state, byte) {
            (State::Size, b'\r') if self.digits > 0 => State::SizeLf,
            (State::Size, digit) => {
                let digit = char::from(digit).to_digit(16).ok_or(Malformed)?;
                self.digits = self.digits.saturating_add(1);
                if self.digits > MAX_SIZE_DIGITS {
                    return Err(Malformed);
                }
                self.size = self.size << 4 | u64::from(digit);
                State::Size
            }
            (State::SizeLf, b'\n') => {
                self.digits = 0;
                if self.size == 0 { State::Trailer } else { State::Data }
            }
            (State::DataCr, b'\r') => State::DataLf,
            (State::DataLf, b'\n') => State::Size,
            (State::Trailer, byte) => self.trailer_byte(byte)?,
            _ => return Err(Malformed),
        };
        Ok(())
    }

    fn trailer_byte(&mut self, byte: u8) -> Result<State, Malformed> {
        self.trailer_bytes = self.trailer_bytes.saturating_add(1);
        if self.trailer_bytes > MAX_TRAILERS {
            return Err(Malformed);
        }
        if byte != b'\n' {
            self.line.push(byte);
            return Ok(State::Trailer);
        }
        let line = self.line.strip_suffix(b"\r").ok_or(Malformed)?;
        if line.is_empty() {
            self.line = Vec::new();
            return Ok(State::Done);
        }
        let field = name_and_value(line).ok_or(Malformed)?;
        let harmless = matches!(class(field.name), Class::Plain);
        if !harmless || !field.value.iter().all(|&byte| is_value(byte)) {
            return Err(Malformed);
        }
        self.line.clear();
        Ok(State::Trailer)
    }
}

/// Appends a chunk header for a piece of that many bytes; `end_chunk` follows the piece.
pub(super) fn begin_chunk(len: usize, out: &mut Vec<u8>) {
    use std::io::Write as _;
    // Writing to a Vec does not fail.
    let _ = write!(out, "{len:x}\r\n");
}

/// Appends what follows a piece.
pub(super) fn end_chunk(out: &mut Vec<u8>) {
    out.extend_from_slice(b"\r\n");
}

/// The last chunk.
pub(super) const LAST_CHUNK: &[u8] = b"0\r\n\r\n";

#[cfg(test)]
mod tests {
    use super::*;

    /// Decodes `input` in pieces of `piece` bytes; the body and what follows it.
    fn decode(input: &[u8], piece: usize) -> Result<(Vec<u8>, bool, usize), Malformed> {
        let mut decoder = Framing::Chunked.decoder();
        let mut body = Vec::new();
        let mut used = 0;
        for part in input.chunks(piece) {
            let mut rest = part;
            loop {
                let step = decoder.step(rest)?;
                body.extend_from_slice(&rest[step.data.clone()]);
                used += step.consumed;
                if step.consumed == 0 || decoder.is_done() {
                    break;
                }
                rest = &rest[step.consumed..];
            }
            if decoder.is_done() {
                break;
            }
        }
        Ok((body, decoder.is_done(), used))
    }

    #[test]
    fn bodies_in_any_pieces() {
        let input = b"5\r\nhello\r\n00a\r\n0123456789\r\n0\r\nx-sum: 1\r\n\r\nGET /next";
        for piece in 1..input.len() {
            let (body, done, used) = decode(input, piece).unwrap();
            assert_eq!(body, b"hello0123456789", "{piece}");
            assert!(done);
            assert_eq!(&input[used..], b"GET /next", "{piece}");
        }
    }

    #[test]
    fn malformed_chunks() {
        let flood = format!("1;{}\r\na\r\n0\r\n\r\n", "x".repeat(10_000));
        let trailers = format!("0\r\nx: {}\r\n\r\n", "x".repeat(10_000));
        for bad in [
            "\r\n",
            "g\r\n",
            "+1\r\na\r\n",
            "-1\r\n",
            "0x1\r\na\r\n",
            " 1\r\na\r\n",
            "1 \r\na\r\n",
            "1;a=b\r\na\r\n",
            "1\na\r\n",
            "1\r\na\n",
            "1\r\nab\r\n",
            "1\r\na\r\r\n",
            "1\r\r\na",
            "ffffffffffffffff\r\n",
            "0000000000000001\r\na\r\n",
            "1,1\r\n",
            "0\r\ncontent-length: 5\r\n\r\n",
            "0\r\nhost: b\r\n\r\n",
            "0\r\ntransfer-encoding: chunked\r\n\r\n",
            "0\r\nx-forwarded-for: b\r\n\r\n",
            "0\r\n bad\r\n\r\n",
            "0\r\nx : a\r\n\r\n",
            "0\r\nx: a\n\r\n",
            "0\r\nx: \u{0}\r\n\r\n",
            &flood,
            &trailers,
        ] {
            for piece in [1, 7, bad.len()] {
                assert_eq!(decode(bad.as_bytes(), piece), Err(Malformed), "{bad:?}");
            }
        }
    }

    #[test]
    fn truncated_bodies_are_not_done() {
        for part in ["", "5", "5\r", "5\r\n", "5\r\nhel", "5\r\nhello", "5\r\nhello\r\n", "0\r\n", "0\r\n\r"] {
            assert!(!decode(part.as_bytes(), 100).unwrap().1, "{part:?}");
        }
    }

    #[test]
    fn lengths() {
        let mut decoder = Framing::Length(5).decoder();
        assert_eq!(decoder.step(b"abc").unwrap(), Step { consumed: 3, data: 0..3 });
        assert!(!decoder.is_done());
        assert_eq!(decoder.step(b"defg").unwrap(), Step { consumed: 2, data: 0..2 });
        assert!(decoder.is_done());
        assert!(Framing::None.decoder().is_done());
    }
}
