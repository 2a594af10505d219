//! What the ingress makes of a client's bytes and of a host's, as plain data and with no connection: for whoever compares it
//! with another reader (`fuzz/`).

use std::task::{Context, Poll, Waker};

use super::body::Framing;
use super::buffer::Buffer;
use super::h2;
use super::head::{Head, HeadScan};
use super::pump;
use super::response::{ResponseHead, find_end};
use super::target::{check_path_and_query, host_name};

/// How the end of a body is found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Body {
    /// There is none.
    None,
    /// After that many bytes.
    Length(u64),
    /// At the last chunk.
    Chunked,
}

impl From<Framing> for Body {
    fn from(framing: Framing) -> Self {
        match framing {
            Framing::None => Self::None,
            Framing::Length(length) => Self::Length(length),
            Framing::Chunked => Self::Chunked,
        }
    }
}

impl From<Body> for Framing {
    fn from(body: Body) -> Self {
        match body {
            Body::None => Self::None,
            Body::Length(length) => Self::Length(length),
            Body::Chunked => Self::Chunked,
        }
    }
}

/// A request head of HTTP/1 that is accepted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Read {
    /// Its length with the empty line, bytes.
    pub length: usize,
    /// The method.
    pub method: Vec<u8>,
    /// Path and query in origin form.
    pub path_and_query: Vec<u8>,
    /// The Host value as it came.
    pub host: Vec<u8>,
    /// The same without its port.
    pub host_name: Vec<u8>,
    /// How its body ends.
    pub body: Body,
    /// HTTP/1.1; 1.0 otherwise.
    pub is_11: bool,
    /// The fields that are carried on.
    pub fields: Vec<(Vec<u8>, Vec<u8>)>,
}

/// Reads a head whose bytes arrive `piece` at a time; `None` where it is not all there.
///
/// # Errors
/// Why it is refused, in words.
pub fn head(bytes: &[u8], piece: usize) -> Result<Option<Read>, String> {
    let mut scan = HeadScan::default();
    let mut end = 0;
    while end < bytes.len() {
        end = end.saturating_add(piece.max(1)).min(bytes.len());
        let here = bytes.get(..end).unwrap_or_default();
        let Some(length) = scan.look(here).map_err(|bad| bad.to_string())? else { continue };
        let head = Head::parse(here.get(..length).unwrap_or_default()).map_err(|bad| bad.to_string())?;
        return Ok(Some(Read {
            length,
            method: head.method.to_vec(),
            path_and_query: head.target.path_and_query.to_vec(),
            host: head.host.to_vec(),
            host_name: head.host_name.to_vec(),
            body: head.framing.into(),
            is_11: head.is_11,
            fields: head.fields.iter().map(|field| (field.name.to_vec(), field.value.to_vec())).collect(),
        }));
    }
    Ok(None)
}

/// A request head of HTTP/2 that is accepted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReadParts {
    /// Its authority.
    pub host: String,
    /// The same without its port.
    pub host_name: String,
    /// Path and query.
    pub path_and_query: String,
}

/// Reads a head that a library of HTTP/2 has parsed.
///
/// # Errors
/// Why it is refused, in words.
pub fn head_of_parts(parts: &http::request::Parts) -> Result<ReadParts, String> {
    let host = h2::checked_host(parts).map_err(|bad| bad.to_string())?;
    let path_and_query = parts.uri.path_and_query().map_or("/", |path| path.as_str()).to_owned();
    check_path_and_query(path_and_query.as_bytes()).map_err(|bad| bad.to_string())?;
    let host_name = host_name(host.as_bytes()).map_err(|bad| bad.to_string())?;
    Ok(ReadParts { host_name: String::from_utf8_lossy(host_name).into_owned(), host, path_and_query })
}

/// A response head of a host that is passed on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    /// Its length with the empty line, bytes.
    pub length: usize,
    /// The status code.
    pub status: u16,
    /// How its body ends.
    pub body: Body,
    /// The fields that are carried on.
    pub fields: Vec<(Vec<u8>, Vec<u8>)>,
    /// What a client of HTTP/1.1 gets of it.
    pub written: Vec<u8>,
}

/// Reads a head of a host whose bytes arrive `piece` at a time; `None` where it is not all there. `to_head`: it answers a
/// HEAD request.
///
/// # Errors
/// Why it is refused, in words.
pub fn reply(bytes: &[u8], piece: usize, to_head: bool) -> Result<Option<Reply>, String> {
    let mut scan = HeadScan::default();
    let mut end = 0;
    while end < bytes.len() {
        end = end.saturating_add(piece.max(1)).min(bytes.len());
        let here = bytes.get(..end).unwrap_or_default();
        let Some(length) = find_end(&mut scan, here).map_err(|bad| bad.to_string())? else { continue };
        let head =
            ResponseHead::parse(here.get(..length).unwrap_or_default(), to_head).map_err(|bad| bad.to_string())?;
        let mut written = Vec::new();
        head.write(&mut written, true, false);
        return Ok(Some(Reply {
            length,
            status: head.status.as_u16(),
            body: head.framing.into(),
            fields: head.fields.iter().map(|field| (field.name.to_vec(), field.value.to_vec())).collect(),
            written,
        }));
    }
    Ok(None)
}

/// What a client of HTTP/1.1 gets of a body whose bytes arrive `piece` at a time, and whether that is all of it. `None` where
/// it is malformed.
pub fn pumped(bytes: &[u8], piece: usize, body: Body) -> Option<(Vec<u8>, bool)> {
    let mut decoder = Framing::from(body).decoder();
    let (mut buffer, mut out, mut all) = (Buffer::default(), Vec::new(), Vec::new());
    let mut cx = Context::from_waker(Waker::noop());
    for mut part in bytes.chunks(piece.max(1)) {
        while !decoder.is_done() && !part.is_empty() {
            // Bytes that are there are never waited for.
            let Poll::Ready(Ok(1..)) = buffer.poll_fill(&mut cx, &mut part) else { return None };
            while !buffer.is_empty() && !decoder.is_done() {
                pump::decode(&mut buffer, &mut decoder, body == Body::Chunked, &mut out).ok()?;
                all.append(&mut out);
            }
        }
    }
    Some((all, decoder.is_done()))
}

/// Takes a chunked body out of bytes that arrive `piece` at a time: its data so far, and once it has ended the bytes it
/// took. `None` where it is malformed.
pub fn chunked(bytes: &[u8], piece: usize) -> Option<(Vec<u8>, Option<usize>)> {
    let mut decoder = Framing::Chunked.decoder();
    let (mut data, mut used) = (Vec::new(), 0_usize);
    for part in bytes.chunks(piece.max(1)) {
        let mut rest = part;
        loop {
            let step = decoder.step(rest).ok()?;
            data.extend_from_slice(rest.get(step.data)?);
            used = used.saturating_add(step.consumed);
            if decoder.is_done() {
                return Some((data, Some(used)));
            }
            if step.consumed == 0 {
                break;
            }
            rest = rest.get(step.consumed..)?;
        }
    }
    Some((data, None))
}
