//! Moves message bodies between a client and a host, decoded and framed anew, with backpressure: a piece is read only
//! when the one before was taken.

use std::io;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};

use super::body::{Decoder, LAST_CHUNK, Malformed, begin_chunk, end_chunk};
use super::buffer::Buffer;
use super::head::HeadScan;
use super::response::{BadResponse, find_end};
use super::wire::{fill, write_all};

/// A piece is written at the latest when so much of it was gathered.
const PIECE: usize = 64 * 1024;

/// Interim responses of a host before the final one.
pub(super) const MAX_INTERIM: usize = 8;

/// Why a request body did not get to the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum BodyEnd {
    /// The client hung up.
    ClientGone,
    /// The client was silent for too long.
    Stalled,
    /// The bytes are no chunked body.
    Malformed,
    /// It is larger than the component takes.
    TooLarge,
    /// The host does not take it. No failure yet: it may have answered.
    HostGone,
}

/// Why there is no response, or only a part of one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ResponseEnd {
    /// The connection ended before any byte of a response.
    Nothing,
    /// It ended inside the response, or the response is malformed.
    Broken,
    /// The client does not take it.
    ClientGone,
}

impl From<BadResponse> for ResponseEnd {
    fn from(_: BadResponse) -> Self {
        Self::Broken
    }
}

impl From<Malformed> for ResponseEnd {
    fn from(_: Malformed) -> Self {
        Self::Broken
    }
}

/// Moves what the buffer has of a body to `out`.
pub(super) fn decode(
    buffer: &mut Buffer,
    decoder: &mut Decoder,
    chunks: bool,
    out: &mut Vec<u8>,
) -> Result<u64, Malformed> {
    let mut moved = 0u64;
    while !buffer.is_empty() && !decoder.is_done() && out.len() < PIECE {
        let input = buffer.data();
        let step = decoder.step(input)?;
        let data = input.get(step.data).unwrap_or_default();
        if !data.is_empty() {
            moved = moved.saturating_add(data.len() as u64);
            if chunks {
                begin_chunk(data.len(), out);
                out.extend_from_slice(data);
                end_chunk(out);
            } else {
                out.extend_from_slice(data);
            }
        }
        buffer.consume(step.consumed);
    }
    if chunks && decoder.is_done() {
        out.extend_from_slice(LAST_CHUNK);
    }
    Ok(moved)
}

/// Sends a request body to the host.
pub(super) async fn request_body<R: AsyncRead + Unpin, W: AsyncWrite + Unpin>(
    from: &mut R,
    buffer: &mut Buffer,
    mut decoder: Decoder,
    to: &mut W,
    limit: u64,
    stall: Duration,
) -> Result<(), BodyEnd> {
    let chunks = matches!(decoder, Decoder::Chunked(_));
    let mut out = Vec::new();
    let mut left = limit;
    loop {
        let moved = decode(buffer, &mut decoder, chunks, &mut out).map_err(|_| BodyEnd::Malformed)?;
        left = left.checked_sub(moved).ok_or(BodyEnd::TooLarge)?;
        // A host that takes nothing is bounded by the time of the whole request.
        write_all(to, &out, Duration::MAX).await.map_err(|_| BodyEnd::HostGone)?;
        out.clear();
        if decoder.is_done() {
            return Ok(());
        }
        if buffer.is_empty() {
            match fill(from, buffer, stall).await {
                Ok(0) => return Err(BodyEnd::ClientGone),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::TimedOut => return Err(BodyEnd::Stalled),
                Err(_) => return Err(BodyEnd::ClientGone),
            }
        }
    }
}

/// Keeps what the client sends ahead, as far as there is room, and resolves when it hangs up.
pub(super) async fn watch<R: AsyncRead + Unpin>(from: &mut R, buffer: &mut Buffer) {
    while !buffer.is_full() {
        if !matches!(buffer.fill(from).await, Ok(1..)) {
            return;
        }
    }
    std::future::pending().await
}

/// Reads until a whole response head is in the buffer; its length.
pub(super) async fn response_head<R: AsyncRead + Unpin>(
    from: &mut R,
    buffer: &mut Buffer,
) -> Result<usize, ResponseEnd> {
    let mut scan = HeadScan::default();
    loop {
        if !buffer.is_empty()
            && let Some(length) = find_end(&mut scan, buffer.data())?
        {
            return Ok(length);
        }
        if !matches!(buffer.fill(from).await, Ok(1..)) {
            return Err(if buffer.is_empty() { ResponseEnd::Nothing } else { ResponseEnd::Broken });
        }
    }
}

/// Sends a response to the client: what `out` has already (the head), then the body.
pub(super) async fn response_body<R: AsyncRead + Unpin, W: AsyncWrite + Unpin>(
    from: &mut R,
    buffer: &mut Buffer,
    mut decoder: Decoder,
    chunks: bool,
    to: &mut W,
    out: &mut Vec<u8>,
    stall: Duration,
) -> Result<(), ResponseEnd> {
    loop {
        decode(buffer, &mut decoder, chunks, out)?;
        write_all(to, out, stall).await.map_err(|_| ResponseEnd::ClientGone)?;
        out.clear();
        if decoder.is_done() {
            return Ok(());
        }
        if buffer.is_empty() && !matches!(buffer.fill(from).await, Ok(1..)) {
            return Err(ResponseEnd::Broken);
        }
    }
}
