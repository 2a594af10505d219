//! The protocol's lines, from bytes and to bytes: no I/O and no state but what is half read.

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::connect::ServerInfo;
use super::headers::Headers;
use super::message::{Message, Outgoing};

/// The longest line we read, bytes: `INFO` of a large cluster names many addresses.
const MAX_LINE: usize = 64 << 10;
/// The largest message we read whatever the server says its limit is, bytes.
pub(super) const MAX_MESSAGE: usize = 17 << 20;
/// A payload up to this size is copied out, so that one small message that waits does not hold a large read buffer.
const COPIED: usize = 16 << 10;

/// What a server says.
#[derive(Debug, PartialEq)]
pub(super) enum ServerOp {
    Info(Box<ServerInfo>),
    Deliver { sid: u64, message: Message },
    Ping,
    Pong,
    Ok,
    Error(String),
}

/// The server does not speak the protocol.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum WireError {
    #[error("it does not speak the NATS protocol (it sent `{0}`)")]
    Unknown(String),
    #[error("it sent a line of more than {MAX_LINE} bytes")]
    Line,
    #[error("it sent a message of {0} bytes; at most {MAX_MESSAGE} are taken")]
    Message(usize),
}

/// Reads lines and messages as they arrive.
#[derive(Debug, Default)]
pub(super) struct Decoder {
    /// Bytes already searched for the end of the line.
    searched: usize,
    head: Option<Head>,
}

/// The line before a message.
#[derive(Debug)]
struct Head {
    sid: u64,
    subject: String,
    reply: Option<String>,
    headers: usize,
    total: usize,
}

impl Decoder {
    /// The next thing said, or `None` until more bytes are there.
    pub(super) fn decode(&mut self, buf: &mut BytesMut) -> Result<Option<ServerOp>, WireError> {
        loop {
            if let Some(head) = self.head.take_if(|head| buf.len() >= head.total + 2) {
                return deliver(head, buf).map(Some);
            }
            if self.head.is_some() {
                return Ok(None);
            }
            let from = self.searched.min(buf.len());
            let Some(end) = buf.iter().skip(from).position(|byte| *byte == b'\n').map(|at| at + from) else {
                self.searched = buf.len();
                return if buf.len() > MAX_LINE { Err(WireError::Line) } else { Ok(None) };
            };
            self.searched = 0;
            let line = buf.split_to(end + 1);
            let text = std::str::from_utf8(&line).map_err(|_| unknown(&line))?.trim_end();
            match line_op(text)? {
                Line::Op(op) => return Ok(Some(op)),
                Line::Head(head) => self.head = Some(head),
                Line::Nothing => {}
            }
        }
    }

    /// How many bytes of a message are not there yet.
    pub(super) fn missing(&self, buf: &BytesMut) -> usize {
        self.head.as_ref().map_or(0, |head| (head.total + 2).saturating_sub(buf.len()))
    }
}

enum Line {
    Op(ServerOp),
    Head(Head),
    Nothing,
}

fn unknown(line: &[u8]) -> WireError {
    let start = String::from_utf8_lossy(line.get(..40).unwrap_or(line));
    WireError::Unknown(start.escape_debug().to_string())
}

fn line_op(text: &str) -> Result<Line, WireError> {
    let (verb, rest) = text.split_once([' ', '\t']).unwrap_or((text, ""));
    let bad = || unknown(text.as_bytes());
    Ok(match verb {
        "" => Line::Nothing,
        "MSG" | "HMSG" => Line::Head(head(verb == "HMSG", rest).ok_or_else(bad)?).bounded()?,
        "INFO" => Line::Op(ServerOp::Info(serde_json::from_str(rest.trim()).map_err(|_| bad())?)),
        "PING" => Line::Op(ServerOp::Ping),
        "PONG" => Line::Op(ServerOp::Pong),
        "+OK" => Line::Op(ServerOp::Ok),
        "-ERR" => Line::Op(ServerOp::Error(rest.trim().trim_matches('\'').to_owned())),
        _ => return Err(bad()),
    })
}

impl Line {
    fn bounded(self) -> Result<Self, WireError> {
        match self {
            Self::Head(head) if head.total > MAX_MESSAGE => Err(WireError::Message(head.total)),
            other => Ok(other),
        }
    }
}

/// `subject sid [reply] [header bytes] total bytes`.
fn head(with_headers: bool, rest: &str) -> Option<Head> {
    let words: Vec<&str> = rest.split_ascii_whitespace().collect();
    let (names, sizes) = words.split_at_checked(words.len().checked_sub(1 + usize::from(with_headers))?)?;
    let (headers, total) = match *sizes {
        [headers, total] => (headers.parse().ok()?, total.parse().ok()?),
        [total] => (0, total.parse().ok()?),
        _ => return None,
    };
    let (subject, sid, reply) = match *names {
        [subject, sid] => (subject, sid, None),
        [subject, sid, reply] => (subject, sid, Some(reply.to_owned())),
        _ => return None,
    };
    let head = Head { sid: sid.parse().ok()?, subject: subject.to_owned(), reply, headers, total };
    (head.headers <= head.total).then_some(head)
}

/// Takes the message of `head`, which is there whole, from `buf`.
fn deliver(head: Head, buf: &mut BytesMut) -> Result<ServerOp, WireError> {
    let block = buf.split_to(head.headers);
    let length = head.total - head.headers;
    let payload = if length <= COPIED {
        let copy = Bytes::copy_from_slice(buf.get(..length).unwrap_or_default());
        buf.advance(length);
        copy
    } else {
        buf.split_to(length).freeze()
    };
    let end = buf.split_to(2);
    if end != b"\r\n"[..] {
        return Err(unknown(&end));
    }
    let headers = match head.headers {
        0 => Headers::new(),
        _ => Headers::read(&block).ok_or_else(|| unknown(&block))?,
    };
    let message = Message { subject: head.subject, reply: head.reply, headers, payload };
    Ok(ServerOp::Deliver { sid: head.sid, message })
}

fn word(out: &mut BytesMut, text: &str) {
    out.put_u8(b' ');
    out.put_slice(text.as_bytes());
}

/// `PUB` or `HPUB`; `reply` where the message names none.
pub(super) fn publish(out: &mut BytesMut, message: &Outgoing, reply: Option<&str>) {
    let (headers, total) = (message.headers.wire_len(), message.size());
    out.reserve(total + message.subject.len() + 128);
    out.put_slice(if headers > 0 { b"HPUB" } else { b"PUB" });
    word(out, &message.subject);
    if let Some(reply) = message.reply.as_deref().or(reply) {
        word(out, reply);
    }
    if headers > 0 {
        word(out, &headers.to_string());
    }
    word(out, &total.to_string());
    out.put_slice(b"\r\n");
    message.headers.write(out);
    out.put_slice(&message.payload);
    out.put_slice(b"\r\n");
}

/// `SUB`.
pub(super) fn subscribe(out: &mut BytesMut, subject: &str, queue: Option<&str>, sid: u64) {
    out.put_slice(b"SUB");
    word(out, subject);
    if let Some(queue) = queue {
        word(out, queue);
    }
    word(out, &sid.to_string());
    out.put_slice(b"\r\n");
}

/// `UNSUB`.
pub(super) fn unsubscribe(out: &mut BytesMut, sid: u64) {
    out.put_slice(b"UNSUB");
    word(out, &sid.to_string());
    out.put_slice(b"\r\n");
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Everything in `bytes`, given `step` bytes at a time.
    fn all(bytes: &[u8], step: usize) -> Result<Vec<ServerOp>, WireError> {
        let (mut decoder, mut buf, mut ops) = (Decoder::default(), BytesMut::new(), Vec::new());
        for part in bytes.chunks(step) {
            buf.extend_from_slice(part);
            while let Some(op) = decoder.decode(&mut buf)? {
                ops.push(op);
            }
        }
        assert!(buf.is_empty(), "left over: {buf:?}");
        Ok(ops)
    }

    fn message(subject: &str, reply: Option<&str>, payload: &'static [u8]) -> Message {
        let payload = Bytes::from_static(payload);
        Message { subject: subject.into(), reply: reply.map(str::to_owned), headers: Headers::new(), payload }
    }

    #[test]
    fn what_a_server_says_is_read_however_it_is_cut() {
        let said = b"PING\r\nPONG\r\n+OK\r\n-ERR 'Stale Connection'\r\nMSG a.b 9 2\r\nhi\r\nMSG a 9 r.x 0\r\n\r\n\
            HMSG a 7 r 23 26\r\nNATS/1.0\r\nA: \r\nB: b\r\n\r\nxyz\r\n";
        for step in [1, 2, 3, 7, 1000] {
            let ops = all(said, step).unwrap();
            assert_eq!(ops.len(), 7, "{ops:?}");
            assert_eq!(ops[3], ServerOp::Error("Stale Connection".into()));
            assert_eq!(ops[4], ServerOp::Deliver { sid: 9, message: message("a.b", None, b"hi") });
            assert_eq!(ops[5], ServerOp::Deliver { sid: 9, message: message("a", Some("r.x"), b"") });
            let ServerOp::Deliver { sid: 7, message } = &ops[6] else { panic!("{ops:?}") };
            assert_eq!((message.headers.get("b"), &message.payload[..]), (Some("b"), &b"xyz"[..]));
        }
    }

    #[test]
    fn garbage_and_sizes_that_cannot_be_are_refused() {
        for bad in [
            "HTTP/1.1 400 Bad Request\r\n",
            "MSG a\r\n",
            "MSG a 1 -1\r\n",
            "MSG a x 1\r\n",
            "MSG a 1 r s 1\r\n",
            "HMSG a 1 9 2\r\nxx\r\n",
            "HMSG a 1 5\r\n",
            "INFO {\r\n",
            "MSG a 1 18446744073709551615\r\n",
            "MSG a 1 2\r\nhixx",
            "HMSG a 1 4 4\r\nabcd\r\n",
        ] {
            assert!(all(bad.as_bytes(), 1000).is_err(), "{bad}");
        }
        assert!(matches!(all(&b"x".repeat(MAX_LINE + 1), 4096), Err(WireError::Line)));
        let large = format!("MSG a 1 {}\r\n", MAX_MESSAGE + 1);
        assert_eq!(all(large.as_bytes(), 100), Err(WireError::Message(MAX_MESSAGE + 1)));
    }

    #[test]
    fn what_we_say_has_its_sizes() {
        let mut out = BytesMut::new();
        publish(&mut out, &Outgoing::new("a", "hi"), Some("r"));
        let headers = Headers::new().with("A", "1").unwrap();
        publish(&mut out, &Outgoing { headers, ..Outgoing::new("a", "hi") }, None);
        subscribe(&mut out, "a.*", Some("q"), 3);
        unsubscribe(&mut out, 3);
        assert_eq!(
            out,
            "PUB a r 2\r\nhi\r\nHPUB a 18 20\r\nNATS/1.0\r\nA: 1\r\n\r\nhi\r\nSUB a.* q 3\r\nUNSUB 3\r\n".as_bytes()
        );
    }
}
