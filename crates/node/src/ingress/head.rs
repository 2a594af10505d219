//! Reads a request head of HTTP/1 with no leniency at all: what two readers could understand differently is refused.

use super::bad::BadRequest;
use super::body::Framing;
use super::fields::{Class, Field, class, content_length, is_token, is_value, name_and_value, trim};
use super::target::{MAX_TARGET, RequestTarget, host_name};

/// Largest head, bytes.
pub(super) const MAX_HEAD: usize = 64 * 1024;
/// Most fields of a head.
pub(super) const MAX_FIELDS: usize = 100;
/// Longest method, bytes.
pub(super) const MAX_METHOD: usize = 32;
/// Most options of the Connection fields together.
const MAX_OPTIONS: usize = 16;

/// A request head, checked.
#[derive(Debug)]
pub(super) struct Head<'a> {
    pub(super) method: &'a [u8],
    pub(super) target: RequestTarget<'a>,
    /// The Host value as it came.
    pub(super) host: &'a [u8],
    /// The same without its port.
    pub(super) host_name: &'a [u8],
    pub(super) framing: Framing,
    /// The client waits for `100 Continue` before it sends the body.
    pub(super) expects_continue: bool,
    /// HTTP/1.1; 1.0 otherwise.
    pub(super) is_11: bool,
    /// The connection may serve another request.
    pub(super) keep_alive: bool,
    /// Exactly one, unchecked.
    pub(super) traceparent: Option<&'a [u8]>,
    /// What is carried on.
    pub(super) fields: Vec<Field<'a>>,
}

/// Looks for the end of a head in bytes that arrive in pieces.
#[derive(Debug, Default)]
pub(super) struct HeadScan {
    looked_at: usize,
    line_start: usize,
    lines: usize,
}

impl HeadScan {
    /// The length of the head with its empty line, once it is all there. Refuses at once what can no longer become one.
    pub(super) fn look(&mut self, bytes: &[u8]) -> Result<Option<usize>, BadRequest> {
        if bytes.first().is_some_and(|&byte| !is_token(byte)) {
            return Err(BadRequest::RequestLine);
        }
        let fresh = bytes.get(self.looked_at..).unwrap_or_default();
        for (offset, _) in fresh.iter().enumerate().filter(|&(_, &byte)| byte == b'\n') {
            let at = self.looked_at.saturating_add(offset);
            let line = bytes.get(self.line_start..at).unwrap_or_default();
            if line.last() != Some(&b'\r') {
                return Err(BadRequest::LineEnd);
            }
            if line.len() == 1 {
                return Ok(Some(at.saturating_add(1)));
            }
            self.line_start = at.saturating_add(1);
            self.lines = self.lines.saturating_add(1);
            if self.lines > MAX_FIELDS.saturating_add(1) {
                return Err(BadRequest::HeadTooLarge);
            }
            if at >= MAX_HEAD {
                return Err(BadRequest::HeadTooLarge);
            }
        }
        self.looked_at = bytes.len();
        if self.lines == 0 && bytes.len() > MAX_TARGET.saturating_add(64) {
            return Err(BadRequest::TargetTooLong);
        }
        if bytes.len() >= MAX_HEAD {
            return Err(BadRequest::HeadTooLarge);
        }
        Ok(None)
    }
}

impl<'a> Head<'a> {
    /// Reads a head whose end [`HeadScan`] found, so every line feed comes after a carriage return.
    pub(super) fn parse(bytes: &'a [u8]) -> Result<Self, BadRequest> {
        let mut lines = Lines(bytes);
        let (method, target, is_11) = request_line(lines.next().ok_or(BadRequest::RequestLine)?)?;
        let target = RequestTarget::parse(target)?;
        let mut seen = Seen::default();
        let mut fields = Vec::with_capacity(24);
        for line in lines {
            if line.is_empty() {
                break;
            }
            let field = name_and_value(line).ok_or(BadRequest::FieldName)?;
            if !field.value.iter().all(|&byte| is_value(byte)) {
                return Err(BadRequest::FieldValue);
            }
            seen.fields = seen.fields.saturating_add(1);
            if seen.fields > MAX_FIELDS {
                return Err(BadRequest::HeadTooLarge);
            }
            if seen.take(field)? {
                fields.push(field);
            }
        }
        seen.finish(method, target, is_11, fields)
    }

    /// Sending the same request twice does what sending it once does (RFC 9110, 9.2.2).
    pub(super) fn is_idempotent(method: &[u8]) -> bool {
        matches!(method, b"GET" | b"HEAD" | b"OPTIONS" | b"TRACE" | b"PUT" | b"DELETE")
    }
}

fn request_line(line: &[u8]) -> Result<(&[u8], &[u8], bool), BadRequest> {
    let mut parts = line.split(|&byte| byte == b' ');
    let (Some(method), Some(target), Some(version), None) = (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return Err(BadRequest::RequestLine);
    };
    if method.is_empty() || method.len() > MAX_METHOD || !method.iter().all(|&byte| is_token(byte)) {
        return Err(BadRequest::RequestLine);
    }
    if method == b"CONNECT" {
        return Err(BadRequest::Upgrade);
    }
    let is_11 = match version {
        b"HTTP/1.1" => true,
        b"HTTP/1.0" => false,
        [b'H', b'T', b'T', b'P', b'/', major, b'.', minor] if major.is_ascii_digit() && minor.is_ascii_digit() => {
            return Err(BadRequest::Version);
        }
        _ => return Err(BadRequest::RequestLine),
    };
    Ok((method, target, is_11))
}

/// What the fields said about the message itself.
#[derive(Debug, Default)]
struct Seen<'a> {
    fields: usize,
    host: Option<&'a [u8]>,
    length: Option<u64>,
    chunked: bool,
    expects_continue: bool,
    close: bool,
    options: Vec<&'a [u8]>,
    traceparent: Option<&'a [u8]>,
    traceparents: usize,
    tracestate: bool,
}

impl<'a> Seen<'a> {
    /// Notes a field; true if it is carried on as it is.
    fn take(&mut self, field: Field<'a>) -> Result<bool, BadRequest> {
        match class(field.name) {
            Class::Plain => return Ok(true),
            Class::TraceState => {
                self.tracestate = true;
                return Ok(true);
            }
            Class::Host => {
                if self.host.replace(field.value).is_some() {
                    return Err(BadRequest::Host);
                }
            }
            Class::ContentLength => {
                let length = content_length(field.value).ok_or(BadRequest::Framing)?;
                if self.length.replace(length).is_some() {
                    return Err(BadRequest::Framing);
                }
            }
            Class::TransferEncoding => {
                if self.chunked || !field.value.eq_ignore_ascii_case(b"chunked") {
                    return Err(BadRequest::TransferEncoding);
                }
                self.chunked = true;
            }
            Class::Expect => {
                if self.expects_continue || !field.value.eq_ignore_ascii_case(b"100-continue") {
                    return Err(BadRequest::Expect);
                }
                self.expects_continue = true;
            }
            Class::Connection => self.connection(field.value)?,
            Class::Upgrade => return Err(BadRequest::Upgrade),
            Class::Disguised => return Err(BadRequest::Framing),
            Class::TraceParent => {
                self.traceparents = self.traceparents.saturating_add(1);
                self.traceparent = Some(field.value);
            }
            Class::Drop => {}
        }
        Ok(false)
    }

    fn connection(&mut self, value: &'a [u8]) -> Result<(), BadRequest> {
        for option in value.split(|&byte| byte == b',').map(trim).filter(|option| !option.is_empty()) {
            if !option.iter().all(|&byte| is_token(byte)) || self.options.len() >= MAX_OPTIONS {
                return Err(BadRequest::Connection);
            }
            match class(option) {
                Class::Upgrade => return Err(BadRequest::Upgrade),
                Class::Host | Class::ContentLength | Class::TransferEncoding | Class::Disguised | Class::Expect => {
                    return Err(BadRequest::Connection);
                }
                _ if option.eq_ignore_ascii_case(b"close") => self.close = true,
                _ if option.eq_ignore_ascii_case(b"keep-alive") => {}
                _ => self.options.push(option),
            }
        }
        Ok(())
    }

    fn finish(
        self,
        method: &'a [u8],
        target: RequestTarget<'a>,
        is_11: bool,
        mut fields: Vec<Field<'a>>,
    ) -> Result<Head<'a>, BadRequest> {
        let host = self.host.ok_or(BadRequest::Host)?;
        let host_name = host_name(host)?;
        if target.authority.is_some_and(|authority| !authority.eq_ignore_ascii_case(host)) {
            return Err(BadRequest::HostMismatch);
        }
        let framing = match (self.length, self.chunked) {
            (Some(_), true) => return Err(BadRequest::Framing),
            (None, true) if !is_11 => return Err(BadRequest::TransferEncoding),
            (None, true) => Framing::Chunked,
            (Some(length), false) => Framing::Length(length),
            (None, false) => Framing::None,
        };
        if method == b"TRACE" && framing != Framing::None {
            return Err(BadRequest::Framing);
        }
        if self.expects_continue && !is_11 {
            return Err(BadRequest::Expect);
        }
        if !self.options.is_empty() {
            fields.retain(|field| !self.options.iter().any(|option| option.eq_ignore_ascii_case(field.name)));
        }
        let traceparent =
            self.traceparent.filter(|_| self.traceparents == 1).filter(|value| super::trace::is_valid(value));
        if self.tracestate && traceparent.is_none() {
            fields.retain(|field| class(field.name) != Class::TraceState);
        }
        Ok(Head {
            method,
            target,
            host,
            host_name,
            framing,
            expects_continue: self.expects_continue && framing.has_body(),
            is_11,
            keep_alive: is_11 && !self.close,
            traceparent,
            fields,
        })
    }
}

/// The lines of a head without their CR LF.
pub(super) struct Lines<'a>(pub(super) &'a [u8]);

impl<'a> Iterator for Lines<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        let end = self.0.iter().position(|&byte| byte == b'\n')?;
        let (line, rest) = self.0.split_at(end);
        self.0 = rest.get(1..).unwrap_or_default();
        Some(line.strip_suffix(b"\r").unwrap_or(line))
    }
}
