//! The frames of the node's socket: a 4-byte little-endian length, then postcard. Both sides use these and nothing
//! else, so a frame above [`MAX_FRAME`] or one that does not decode is refused in one place.

use bytes::{Buf, BufMut, BytesMut};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::MAX_FRAME;

/// Bytes of the length before each frame.
const HEAD: usize = 4;
/// How much room a reader makes before it reads, bytes.
const READ_CHUNK: usize = 16 << 10;
/// A buffer that grew above this for one large frame is given back, bytes.
const KEEP: usize = 1 << 20;

/// Why a connection to or from the node cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    /// The socket failed.
    #[error("the node's socket failed: {0}")]
    Io(#[from] std::io::Error),
    /// The other side closed in the middle of a frame or of a call.
    #[error("the node's socket closed in the middle of a call")]
    Closed,
    /// A frame is above [`MAX_FRAME`].
    #[error("a frame of {0} bytes is above the limit of {MAX_FRAME}")]
    TooLarge(usize),
    /// A frame's bytes are not what the protocol says.
    #[error("a frame does not decode: {0}")]
    Malformed(String),
}

/// Appends one frame to `out`. On an error `out` is as it was.
///
/// # Errors
/// [`WireError::TooLarge`], or [`WireError::Malformed`] where the value cannot be encoded.
pub fn encode<T: Serialize + ?Sized>(value: &T, out: &mut BytesMut) -> Result<(), WireError> {
    let start = out.len();
    out.put_u32_le(0);
    let size = match postcard::to_io(value, (&mut *out).writer()) {
        Ok(_) => out.len() - start - HEAD,
        Err(cause) => {
            out.truncate(start);
            return Err(WireError::Malformed(cause.to_string()));
        }
    };
    let length = u32::try_from(size).ok().filter(|_| size <= MAX_FRAME);
    match (length, out.get_mut(start..start + HEAD)) {
        (Some(length), Some(head)) => {
            head.copy_from_slice(&length.to_le_bytes());
            Ok(())
        }
        _ => {
            out.truncate(start);
            Err(WireError::TooLarge(size))
        }
    }
}

/// Takes one whole frame off the front of `buffer`; `None` where more bytes are needed.
///
/// # Errors
/// [`WireError::TooLarge`] as soon as the length says so, [`WireError::Malformed`].
pub fn decode<T: DeserializeOwned>(buffer: &mut BytesMut) -> Result<Option<T>, WireError> {
    let Some(size) = size_within(buffer, MAX_FRAME)? else { return Ok(None) };
    let Some(body) = buffer.get(HEAD..HEAD + size) else {
        buffer.reserve(HEAD + size - buffer.len());
        return Ok(None);
    };
    let value = match postcard::take_from_bytes(body) {
        Ok((value, [])) => value,
        Ok((_, rest)) => return Err(WireError::Malformed(format!("{} bytes too many", rest.len()))),
        Err(cause) => return Err(WireError::Malformed(cause.to_string())),
    };
    buffer.advance(HEAD + size);
    Ok(Some(value))
}

/// How large the frame at the front of `buffer` says it is, bytes after its length; `None` where that is not there yet.
pub(super) fn size_within(buffer: &BytesMut, most: usize) -> Result<Option<usize>, WireError> {
    let Some(head) = buffer.first_chunk::<HEAD>() else { return Ok(None) };
    let size = u32::from_le_bytes(*head) as usize;
    if size > most { Err(WireError::TooLarge(size)) } else { Ok(Some(size)) }
}

/// Reads frames. Dropping a pending [`FrameReader::next`] or [`FrameReader::size`] loses nothing.
#[derive(Debug)]
pub struct FrameReader<R> {
    source: R,
    buffer: BytesMut,
    most: usize,
    /// The buffer was made larger than [`KEEP`]. What it says of its capacity later is without what was read already.
    grown: bool,
}

impl<R: AsyncRead + Unpin> FrameReader<R> {
    /// Reads from `source`.
    pub fn new(source: R) -> Self {
        Self::with_buffer(source, BytesMut::new())
    }

    /// Reads `buffer` first, then `source`.
    pub fn with_buffer(source: R, buffer: BytesMut) -> Self {
        Self { source, buffer, most: MAX_FRAME, grown: false }
    }

    /// From now on a frame of more than `most` bytes is refused, before its bytes are read.
    pub fn limited(self, most: usize) -> Self {
        Self { most: most.min(MAX_FRAME), ..self }
    }

    /// How large the next frame is, bytes, before its bytes are waited for; `None` where the other side closed between
    /// frames. So room can be found for it first.
    ///
    /// # Errors
    /// As [`FrameReader::next`].
    pub async fn size(&mut self) -> Result<Option<usize>, WireError> {
        loop {
            if let Some(size) = size_within(&self.buffer, self.most)? {
                return Ok(Some(size));
            }
            if !self.fill().await? {
                return Ok(None);
            }
        }
    }

    /// The next frame; `None` where the other side closed between frames.
    ///
    /// # Errors
    /// Any [`WireError`]; the connection is of no more use then.
    pub async fn next<T: DeserializeOwned>(&mut self) -> Result<Option<T>, WireError> {
        loop {
            size_within(&self.buffer, self.most)?;
            if let Some(value) = self.ready()? {
                return Ok(Some(value));
            }
            if !self.fill().await? {
                return Ok(None);
            }
        }
    }

    /// Reads what there is; false where the other side closed between frames.
    async fn fill(&mut self) -> Result<bool, WireError> {
        self.buffer.reserve(READ_CHUNK);
        self.grown |= self.buffer.capacity() > KEEP;
        match (self.source.read_buf(&mut self.buffer).await?, self.buffer.is_empty()) {
            (0, true) => Ok(false),
            (0, false) => Err(WireError::Closed),
            _ => Ok(true),
        }
    }

    /// How large a frame is that has arrived whole already, bytes.
    ///
    /// # Errors
    /// As [`FrameReader::next`].
    pub fn ready_size(&self) -> Result<Option<usize>, WireError> {
        let size = size_within(&self.buffer, self.most)?;
        Ok(size.filter(|size| self.buffer.len() >= HEAD + size))
    }

    /// A frame that has arrived already: lets a server gather what came together.
    ///
    /// # Errors
    /// As [`FrameReader::next`].
    pub fn ready<T: DeserializeOwned>(&mut self) -> Result<Option<T>, WireError> {
        let value = decode(&mut self.buffer)?;
        // What follows is the beginning of another frame, or small ones.
        if value.is_some() && self.grown && self.buffer.len() <= READ_CHUNK {
            self.buffer = BytesMut::from(&*self.buffer);
            self.grown = false;
        }
        Ok(value)
    }

    /// The source.
    pub fn get_ref(&self) -> &R {
        &self.source
    }

    /// The source, and bytes read from it that belong to later frames.
    pub fn into_parts(self) -> (R, BytesMut) {
        (self.source, self.buffer)
    }
}

/// Gathers frames and writes them together.
#[derive(Debug)]
pub struct FrameWriter<W> {
    sink: W,
    buffer: BytesMut,
    /// As that of a [`FrameReader`].
    grown: bool,
}

impl<W: AsyncWrite + Unpin> FrameWriter<W> {
    /// Writes to `sink`.
    pub fn new(sink: W) -> Self {
        Self { sink, buffer: BytesMut::new(), grown: false }
    }

    /// Adds a frame to those that the next [`FrameWriter::flush`] writes.
    ///
    /// # Errors
    /// As [`encode`]; frames added before are kept.
    pub fn push<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), WireError> {
        encode(value, &mut self.buffer)
    }

    /// Adds frames that are encoded already.
    pub fn push_encoded(&mut self, frames: BytesMut) {
        if self.buffer.is_empty() {
            self.buffer = frames;
        } else {
            self.buffer.unsplit(frames);
        }
    }

    /// Bytes of the frames that wait for the next [`FrameWriter::flush`].
    pub fn waiting(&self) -> usize {
        self.buffer.len()
    }

    /// Writes every frame that was added.
    ///
    /// # Errors
    /// [`WireError::Io`].
    pub async fn flush(&mut self) -> Result<(), WireError> {
        self.grown |= self.buffer.capacity() > KEEP;
        self.sink.write_all_buf(&mut self.buffer).await?;
        if self.grown {
            self.buffer = BytesMut::new();
            self.grown = false;
        }
        Ok(self.sink.flush().await?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::services::{Hello, KvAnswer, KvReply};

    fn reply(size: usize) -> KvReply {
        KvReply { id: 7, result: Ok(KvAnswer::Value(Some(vec![3; size]))) }
    }

    #[test]
    fn frames_survive_any_cut() {
        let mut wire = BytesMut::new();
        encode(&reply(300), &mut wire).unwrap();
        encode(&Hello::Files, &mut wire).unwrap();
        for cut in 0..=wire.len() {
            let mut buffer = BytesMut::from(&wire[..cut]);
            let early: Option<KvReply> = decode(&mut buffer).unwrap();
            buffer.extend_from_slice(&wire[cut..]);
            let first = early.or_else(|| decode(&mut buffer).unwrap());
            assert_eq!(first, Some(reply(300)), "cut at {cut}");
            assert_eq!(decode::<Hello>(&mut buffer).unwrap(), Some(Hello::Files), "cut at {cut}");
            assert!(buffer.is_empty());
        }
    }

    #[test]
    fn a_frame_above_the_limit_is_refused_both_ways() {
        let mut out = BytesMut::from(&b"kept"[..]);
        assert!(matches!(encode(&reply(MAX_FRAME), &mut out), Err(WireError::TooLarge(_))));
        assert_eq!(&out[..], b"kept");
        let mut head = BytesMut::from(&u32::MAX.to_le_bytes()[..]);
        assert!(matches!(decode::<Hello>(&mut head), Err(WireError::TooLarge(_))));
    }

    #[tokio::test]
    async fn the_size_of_a_frame_is_known_before_its_bytes_are_there() {
        let mut wire = BytesMut::new();
        encode(&reply(300), &mut wire).unwrap();
        let size = wire.len() - HEAD;
        let (mut far, near) = tokio::io::duplex(1024);
        let mut reader = FrameReader::new(near).limited(size);
        far.write_all(&wire[..HEAD]).await.unwrap();
        assert_eq!(reader.size().await.unwrap(), Some(size));
        assert_eq!(reader.ready_size().unwrap(), None);
        far.write_all(&wire[HEAD..]).await.unwrap();
        assert_eq!(reader.next().await.unwrap(), Some(reply(300)));
        far.write_all(&wire).await.unwrap();
        far.write_all(&wire).await.unwrap();
        assert_eq!(reader.next().await.unwrap(), Some(reply(300)));
        assert_eq!((reader.ready_size().unwrap(), reader.size().await.unwrap()), (Some(size), Some(size)));
        let mut narrow = reader.limited(size - 1);
        assert!(matches!(narrow.size().await, Err(WireError::TooLarge(_))));
        assert!(matches!(narrow.ready_size(), Err(WireError::TooLarge(_))));
        assert!(matches!(narrow.next::<KvReply>().await, Err(WireError::TooLarge(_))));
    }

    /// Whether the allocation of a buffer that holds nothing has room for so many bytes.
    fn keeps(buffer: &mut BytesMut, bytes: usize) -> bool {
        assert!(buffer.is_empty());
        buffer.try_reclaim(bytes)
    }

    #[tokio::test]
    async fn what_large_frames_took_is_given_back_and_what_small_ones_take_is_kept() {
        let (near, far) = tokio::io::duplex(64 << 10);
        let (mut writer, mut reader) = (FrameWriter::new(near), FrameReader::new(far));
        for sizes in [vec![8 << 20; 5], vec![3 << 20, 10, 8 << 20, 10], vec![10; 5000]] {
            let writes = async {
                for size in &sizes {
                    writer.push(&reply(*size)).unwrap();
                    // Some of them together.
                    if writer.waiting() > 4 << 20 {
                        writer.flush().await.unwrap();
                    }
                }
                writer.flush().await.unwrap();
            };
            let reads = async {
                for size in &sizes {
                    assert_eq!(reader.next().await.unwrap(), Some(reply(*size)));
                }
            };
            tokio::join!(writes, reads);
            let large = 2 * KEEP + READ_CHUNK;
            assert!(!keeps(&mut writer.buffer, large) && !keeps(&mut reader.buffer, large), "{} frames", sizes.len());
        }
        assert!(keeps(&mut reader.buffer, READ_CHUNK), "it is used again");
    }

    #[test]
    fn garbage_is_refused() {
        let mut wire = BytesMut::from(&[1, 0, 0, 0, 9][..]);
        assert!(matches!(decode::<Hello>(&mut wire), Err(WireError::Malformed(_))));
        let mut wire = BytesMut::from(&[2, 0, 0, 0, 0, 0][..]);
        assert!(matches!(decode::<Hello>(&mut wire), Err(WireError::Malformed(_))));
    }

    #[tokio::test]
    async fn a_close_inside_a_frame_is_an_error_and_between_frames_the_end() {
        let mut wire = BytesMut::new();
        encode(&Hello::Alive, &mut wire).unwrap();
        let mut reader = FrameReader::new(&wire[..]);
        assert_eq!(reader.next::<Hello>().await.unwrap(), Some(Hello::Alive));
        assert_eq!(reader.next::<Hello>().await.unwrap(), None);
        let mut reader = FrameReader::new(&wire[..wire.len() - 1]);
        assert!(matches!(reader.next::<Hello>().await, Err(WireError::Closed)));
    }
}
