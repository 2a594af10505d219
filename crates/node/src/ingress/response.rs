//! Reads a host's response head and writes the one the client gets. A host runs a tenant's code, so its bytes are
//! trusted no more than a client's: one framing, valid fields, or the response is refused.

use http::StatusCode;

use super::bad::BadRequest;
use super::body::Framing;
use super::fields::{Class, Field, class, content_length, is_value, name_and_value};
use super::head::{HeadScan, Lines, MAX_FIELDS};
use super::upstream_head::write_framing;

/// The host's response cannot be passed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the host's response is malformed")]
pub(super) struct BadResponse;

impl From<BadRequest> for BadResponse {
    fn from(_: BadRequest) -> Self {
        Self
    }
}

/// A response head, checked.
#[derive(Debug)]
pub(super) struct ResponseHead<'a> {
    pub(super) status: StatusCode,
    /// Of the bytes that follow on the connection to the host.
    pub(super) framing: Framing,
    /// What `content-length` said, also where no body follows (HEAD, 304).
    length: Option<u64>,
    /// The host's own fault, not the component's answer.
    pub(super) fault: Option<&'a [u8]>,
    /// The connection to the host ends with this response.
    pub(super) close: bool,
    pub(super) fields: Vec<Field<'a>>,
}

/// The end of a response head in what was read so far.
pub(super) fn find_end(scan: &mut HeadScan, bytes: &[u8]) -> Result<Option<usize>, BadResponse> {
    Ok(scan.look(bytes)?)
}

/// The host does not have the revision (any more): nothing was executed, and the route may have changed meanwhile.
pub(super) fn is_stale(status: StatusCode, fault: Option<&[u8]>) -> bool {
    status == StatusCode::SERVICE_UNAVAILABLE && fault == Some(api::Code::NotFound.as_str().as_bytes())
}

impl<'a> ResponseHead<'a> {
    /// Reads a whole head; `to_head` says that it answers a HEAD request.
    pub(super) fn parse(bytes: &'a [u8], to_head: bool) -> Result<Self, BadResponse> {
        let mut lines = Lines(bytes);
        let status = status_line(lines.next().ok_or(BadResponse)?)?;
        let mut this = Self {
            status,
            framing: Framing::None,
            length: None,
            fault: None,
            close: false,
            fields: Vec::with_capacity(16),
        };
        let mut chunked = false;
        for line in lines.take_while(|line| !line.is_empty()) {
            let field = name_and_value(line).ok_or(BadResponse)?;
            if !field.value.iter().all(|&byte| is_value(byte)) || this.fields.len() >= MAX_FIELDS {
                return Err(BadResponse);
            }
            match class(field.name) {
                Class::ContentLength => {
                    let length = content_length(field.value).ok_or(BadResponse)?;
                    if this.length.replace(length).is_some() {
                        return Err(BadResponse);
                    }
                }
                Class::TransferEncoding => {
                    if chunked || !field.value.eq_ignore_ascii_case(b"chunked") {
                        return Err(BadResponse);
                    }
                    chunked = true;
                }
                Class::Connection => this.close |= field.value.eq_ignore_ascii_case(b"close"),
                Class::Disguised => return Err(BadResponse),
                Class::Drop if field.name.eq_ignore_ascii_case(api::agent::FAULT_HEADER.as_bytes()) => {
                    this.fault = Some(field.value);
                    this.fields.push(field);
                }
                Class::Plain | Class::TraceState | Class::TraceParent => this.fields.push(field),
                Class::Host | Class::Expect | Class::Upgrade | Class::Drop => {}
            }
        }
        let no_body = to_head || status.is_informational() || matches!(status.as_u16(), 204 | 304);
        this.framing = match (this.length, chunked) {
            (Some(_), true) => return Err(BadResponse),
            _ if no_body => Framing::None,
            (None, true) => Framing::Chunked,
            (Some(length), false) => Framing::Length(length),
            // A body that lasts until the connection ends cannot be told from one cut short.
            (None, false) => return Err(BadResponse),
        };
        Ok(this)
    }

    /// As [`is_stale`].
    pub(super) fn is_stale(&self) -> bool {
        is_stale(self.status, self.fault)
    }

    /// What `content-length` a client of HTTP/2 is told.
    pub(super) fn content_length(&self) -> Option<u64> {
        self.length.filter(|_| self.status != StatusCode::NO_CONTENT)
    }

    /// Writes the head for a client of HTTP/1. `chunks` is false for a client of HTTP/1.0, whose body ends with the
    /// connection where its length is not known.
    pub(super) fn write(&self, out: &mut Vec<u8>, chunks: bool, close: bool) {
        write_status(out, self.status);
        for field in &self.fields {
            for piece in [field.name, b": ", field.value, b"\r\n"] {
                out.extend_from_slice(piece);
            }
        }
        match (self.framing, self.length) {
            (Framing::Chunked, _) if !chunks => {}
            (Framing::None, Some(length)) if self.status != StatusCode::NO_CONTENT => {
                write_framing(out, Framing::Length(length));
            }
            (framing, _) => write_framing(out, framing),
        }
        out.extend_from_slice(if close { b"connection: close\r\n\r\n" } else { b"\r\n" });
    }
}

/// Appends a status line.
pub(super) fn write_status(out: &mut Vec<u8>, status: StatusCode) {
    if status == StatusCode::OK {
        out.extend_from_slice(b"HTTP/1.1 200 OK\r\n");
        return;
    }
    let reason = status.canonical_reason().unwrap_or_default();
    for piece in ["HTTP/1.1 ", status.as_str(), " ", reason, "\r\n"] {
        out.extend_from_slice(piece.as_bytes());
    }
}

fn status_line(line: &[u8]) -> Result<StatusCode, BadResponse> {
    let rest = line.strip_prefix(b"HTTP/1.1 ").ok_or(BadResponse)?;
    let (code, reason) = rest.split_first_chunk::<3>().ok_or(BadResponse)?;
    if !reason.is_empty() && reason.first() != Some(&b' ') || !reason.iter().all(|&byte| is_value(byte)) {
        return Err(BadResponse);
    }
    StatusCode::from_bytes(code).ok().filter(|code| (100..600).contains(&code.as_u16())).ok_or(BadResponse)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(head: &str, to_head: bool) -> Result<String, BadResponse> {
        let parsed = ResponseHead::parse(head.as_bytes(), to_head)?;
        let mut out = Vec::new();
        parsed.write(&mut out, true, false);
        Ok(String::from_utf8(out).unwrap())
    }

    #[test]
    fn heads_are_written_anew() {
        let head = "HTTP/1.1 200 Fine\r\nContent-Length: 2\r\nX-A: b\r\nKeep-Alive: 5\r\nsidereal-route: x\r\nConnection: keep-alive\r\n\r\n";
        assert_eq!(written(head, false).unwrap(), "HTTP/1.1 200 OK\r\nX-A: b\r\ncontent-length: 2\r\n\r\n");
        let head = "HTTP/1.1 503 x\r\nsidereal-fault: busy\r\ntransfer-encoding: chunked\r\n\r\n";
        let want = "HTTP/1.1 503 Service Unavailable\r\nsidereal-fault: busy\r\ntransfer-encoding: chunked\r\n\r\n";
        assert_eq!(written(head, false).unwrap(), want);
        let head = "HTTP/1.1 304 x\r\ncontent-length: 9\r\n\r\n";
        assert_eq!(written(head, false).unwrap(), "HTTP/1.1 304 Not Modified\r\ncontent-length: 9\r\n\r\n");
        assert_eq!(written("HTTP/1.1 204 x\r\n\r\n", false).unwrap(), "HTTP/1.1 204 No Content\r\n\r\n");
        let head = "HTTP/1.1 200 x\r\ncontent-length: 9\r\n\r\n";
        assert_eq!(ResponseHead::parse(head.as_bytes(), true).unwrap().framing, Framing::None);
    }

    #[test]
    fn ambiguous_ones_are_refused() {
        for bad in [
            "HTTP/1.0 200 OK\r\ncontent-length: 0\r\n\r\n",
            "HTTP/1.1 20 OK\r\ncontent-length: 0\r\n\r\n",
            "HTTP/1.1 200OK\r\ncontent-length: 0\r\n\r\n",
            "HTTP/1.1 999 OK\r\ncontent-length: 0\r\n\r\n",
            "HTTP/1.1 200 OK\r\n\r\n",
            "HTTP/1.1 200 OK\r\ncontent-length: 0\r\ncontent-length: 0\r\n\r\n",
            "HTTP/1.1 200 OK\r\ncontent-length: 0\r\ntransfer-encoding: chunked\r\n\r\n",
            "HTTP/1.1 200 OK\r\ntransfer-encoding: gzip, chunked\r\n\r\n",
            "HTTP/1.1 200 OK\r\ncontent-length: 1\r\n folded\r\n\r\n",
            "HTTP/1.1 200 OK\r\ncontent-length: 1\r\nx: a\u{0}\r\n\r\n",
            "HTTP/1.1 200 OK\r\ncontent-length : 1\r\n\r\n",
        ] {
            assert!(written(bad, false).is_err(), "{bad}");
        }
    }
}
