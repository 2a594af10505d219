//! Headers of a message, and the status line that the server's own answers carry.

use bytes::{BufMut, BytesMut};

use super::error::NatsError;

const VERSION: &str = "NATS/1.0";

/// Headers in the order they were sent. Names are compared without regard to case.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Headers {
    status: Option<(u16, String)>,
    fields: Vec<(String, String)>,
}

impl Headers {
    /// No headers.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a header; one of the same name stays.
    ///
    /// # Errors
    /// [`NatsError::Invalid`] for a name or value that cannot be sent.
    pub fn add(&mut self, name: &str, value: &str) -> Result<(), NatsError> {
        let name_ok = !name.is_empty() && name.bytes().all(|byte| (0x21..0x7f).contains(&byte) && byte != b':');
        if !name_ok {
            return Err(NatsError::Invalid(format!("`{}` is not the name of a NATS header", name.escape_debug())));
        }
        if value.contains(['\r', '\n']) {
            return Err(NatsError::Invalid(format!("the NATS header `{name}` has a line break in its value")));
        }
        self.fields.push((name.to_owned(), value.to_owned()));
        Ok(())
    }

    /// The same with one more header.
    ///
    /// # Errors
    /// See [`Self::add`].
    pub fn with(mut self, name: &str, value: &str) -> Result<Self, NatsError> {
        self.add(name, value)?;
        Ok(self)
    }

    /// The first header of that name.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.iter().find(|(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, value)| value)
    }

    /// Every header.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.fields.iter().map(|(name, value)| (name.as_str(), value.as_str()))
    }

    /// The status of an answer that the server itself gives, for example 404, with its words.
    pub fn status(&self) -> Option<(u16, &str)> {
        self.status.as_ref().map(|(code, words)| (*code, words.as_str()))
    }

    /// Nothing to send.
    pub fn is_empty(&self) -> bool {
        self.fields.is_empty()
    }

    /// Bytes on the wire; 0 where there are none.
    pub(super) fn wire_len(&self) -> usize {
        if self.is_empty() {
            return 0;
        }
        let fields = self.fields.iter().map(|(name, value)| name.len() + value.len() + 4).sum::<usize>();
        VERSION.len() + 4 + fields
    }

    /// Writes [`Self::wire_len`] bytes.
    pub(super) fn write(&self, out: &mut BytesMut) {
        if self.is_empty() {
            return;
        }
        out.put_slice(VERSION.as_bytes());
        out.put_slice(b"\r\n");
        for (name, value) in &self.fields {
            out.put_slice(name.as_bytes());
            out.put_slice(b": ");
            out.put_slice(value.as_bytes());
            out.put_slice(b"\r\n");
        }
        out.put_slice(b"\r\n");
    }

    /// Reads the block before a payload; `None` where it is none.
    pub(crate) fn read(block: &[u8]) -> Option<Self> {
        let text = String::from_utf8_lossy(block);
        let mut lines = text.strip_suffix("\r\n\r\n")?.split("\r\n");
        let first = lines.next()?.strip_prefix(VERSION)?.trim();
        let status = match first.split_once(' ').unwrap_or((first, "")) {
            ("", _) => None,
            (code, words) => Some((code.parse().ok()?, words.trim().to_owned())),
        };
        let fields = lines.map(|line| {
            let (name, value) = line.split_once(':')?;
            Some((name.to_owned(), value.trim().to_owned()))
        });
        Some(Self { status, fields: fields.collect::<Option<_>>()? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_again() {
        let headers = Headers::new().with("A", "1").unwrap().with("a", "x: y ").unwrap();
        let mut out = BytesMut::new();
        headers.write(&mut out);
        assert_eq!(out.len(), headers.wire_len());
        let read = Headers::read(&out).unwrap();
        assert_eq!(read.iter().collect::<Vec<_>>(), [("A", "1"), ("a", "x: y")]);
        assert_eq!(read.get("A"), Some("1"));
        assert_eq!((Headers::new().wire_len(), read.status()), (0, None));
    }

    #[test]
    fn a_status_is_read_with_its_words() {
        let read = Headers::read(b"NATS/1.0 404 Message Not Found\r\n\r\n").unwrap();
        assert_eq!(read.status(), Some((404, "Message Not Found")));
        assert_eq!(Headers::read(b"NATS/1.0 503\r\n\r\n").unwrap().status(), Some((503, "")));
        for bad in [&b""[..], b"HTTP/1.1 200\r\n\r\n", b"NATS/1.0\r\n", b"NATS/1.0 x\r\n\r\n", b"NATS/1.0\r\nA\r\n\r\n"]
        {
            assert_eq!(Headers::read(bad), None, "{}", String::from_utf8_lossy(bad));
        }
    }

    #[test]
    fn a_header_cannot_smuggle_another() {
        for (name, value) in [("", "x"), ("a b", "x"), ("a:", "x"), ("a\r\nb", "x"), ("a", "x\r\nb: y"), ("é", "x")] {
            assert!(Headers::new().with(name, value).is_err(), "{name:?} {value:?}");
        }
    }
}
