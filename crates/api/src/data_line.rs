//! The line of a host: requests from the ingress to one host, many at once over one connection, so that those of a moment
//! travel in one write and their answers in another. Only messages that are whole when they are sent travel on it; a body that
//! still grows goes over a connection of its own on the data socket, where the kernel holds back whoever is too fast.
//!
//! A frame is a kind (1 byte), the length of its content (4 bytes), the number of the call (8 bytes), both little-endian, and
//! the content. What a request or an answer looks like inside is HTTP/1.1 as on the data socket, with a length.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use rustix::io::Errno;
use rustix::net::{SendFlags, send};
use tokio::io::AsyncWrite as _;
use tokio::net::UnixStream;
use tokio::net::unix::pipe;
use tokio::time::Sleep;
use tokio_util::io::poll_read_buf;

/// Set by the ingress on a request on the data socket that asks for an answer it was told of on the line, and nothing else.
pub const CLAIM_HEADER: &str = "sidereal-claim";
/// Largest content of a frame, bytes: a head, and the most of a body that either side gathers before it streams.
pub const MAX_CONTENT: usize = 512 << 10;
/// Largest message that is sent on a line, bytes: whoever has a larger one uses a connection of its own.
pub const MAX_MESSAGE: usize = 256 << 10;

const HEAD: usize = 13;
/// How much room is made before a read, bytes.
const READ: usize = 64 << 10;
/// How soon a full line that cannot be watched for room is tried again.
const SOON: Duration = Duration::from_millis(2);

/// Where a host listens for its line, beside its data socket.
pub fn socket(data_socket: &Path) -> PathBuf {
    data_socket.with_extension("line")
}

/// What a frame is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// To the host: a whole request.
    Call = 1,
    /// To the host: nobody waits for the answer any more.
    Cancel = 2,
    /// From the host: a whole answer.
    Answer = 3,
    /// From the host: the answer is there but not whole. The content is what a request with [`CLAIM_HEADER`] asks for it by.
    Claim = 4,
}

impl Kind {
    fn read(byte: u8) -> Option<Self> {
        [Self::Call, Self::Cancel, Self::Answer, Self::Claim].into_iter().find(|kind| *kind as u8 == byte)
    }
}

/// One frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// What it is.
    pub kind: Kind,
    /// The call it is about; chosen by the ingress, unique on its line.
    pub call: u64,
    /// Shares the buffer it was read into.
    pub content: Bytes,
}

/// Why a line cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum LineError {
    /// The socket failed.
    #[error("the line failed: {0}")]
    Io(#[from] io::Error),
    /// The other side closed it, or did so in the middle of a frame.
    #[error("the line was closed")]
    Closed,
    /// The other side sent what is no frame.
    #[error("what came over the line is no frame")]
    Malformed,
}

/// Appends a frame whose content `write` appends. A content above [`MAX_CONTENT`] is taken back: `false`.
pub fn push(out: &mut BytesMut, kind: Kind, call: u64, write: impl FnOnce(&mut BytesMut)) -> bool {
    let start = out.len();
    out.put_u8(kind as u8);
    out.put_u32_le(0);
    out.put_u64_le(call);
    write(out);
    let size = out.len().saturating_sub(start.saturating_add(HEAD));
    match (u32::try_from(size), out.get_mut(start.saturating_add(1)..start.saturating_add(5))) {
        (Ok(length), Some(head)) if size <= MAX_CONTENT => {
            head.copy_from_slice(&length.to_le_bytes());
            true
        }
        _ => {
            out.truncate(start);
            false
        }
    }
}

/// Takes a whole frame off the front of `buffer`; `None` where more bytes are needed.
///
/// # Errors
/// [`LineError::Malformed`] for an unknown kind or a content above [`MAX_CONTENT`].
pub fn take(buffer: &mut BytesMut) -> Result<Option<Frame>, LineError> {
    let Some((&[kind, a, b, c, d], rest)) = buffer.split_first_chunk::<5>() else { return Ok(None) };
    let kind = Kind::read(kind).ok_or(LineError::Malformed)?;
    let length = u32::from_le_bytes([a, b, c, d]) as usize;
    if length > MAX_CONTENT {
        return Err(LineError::Malformed);
    }
    let Some(call) = rest.first_chunk::<8>() else { return Ok(None) };
    let call = u64::from_le_bytes(*call);
    let whole = HEAD.saturating_add(length);
    if buffer.len() < whole {
        buffer.reserve(whole.saturating_sub(buffer.len()));
        return Ok(None);
    }
    buffer.advance(HEAD);
    Ok(Some(Frame { kind, call, content: buffer.split_to(length).freeze() }))
}

/// One end of a line. The event loop is asked for what can be read alone: a unix socket says that it has room whenever the
/// other side has read something, so one that is also watched for room wakes its process twice for each message.
#[derive(Debug)]
pub struct Wire {
    /// A socket, whose readable side is all that is watched: what the library calls a pipe's.
    input: pipe::Receiver,
    read: BytesMut,
    /// While there is no room.
    full: Option<Full>,
}

/// How the end of a full line learns that there is room again.
#[derive(Debug)]
enum Full {
    /// The same socket, watched for room.
    Watched(pipe::Sender),
    /// To watch it takes a descriptor, and this process has none left: what is on the line is not lost for that.
    Tried(Pin<Box<Sleep>>),
}

impl Full {
    fn of(socket: &impl AsFd) -> Self {
        let watched = socket.as_fd().try_clone_to_owned().and_then(pipe::Sender::from_owned_fd_unchecked);
        watched.map_or_else(|_| Self::Tried(Box::pin(tokio::time::sleep(SOON))), Self::Watched)
    }
}

impl Wire {
    /// The end that `stream` is.
    ///
    /// # Errors
    /// When the event loop does not take it.
    pub fn new(stream: UnixStream) -> io::Result<Self> {
        let socket = OwnedFd::from(stream.into_std()?);
        Ok(Self { input: pipe::Receiver::from_owned_fd_unchecked(socket)?, read: BytesMut::new(), full: None })
    }

    /// Writes what is in `out`, as far as the other side takes it; ready once nothing is left.
    ///
    /// # Errors
    /// [`LineError::Io`], [`LineError::Closed`].
    pub fn poll_flush(&mut self, cx: &mut Context<'_>, out: &mut BytesMut) -> Poll<Result<(), LineError>> {
        while !out.is_empty() {
            if let Some(Full::Tried(until)) = &mut self.full {
                ready!(until.as_mut().poll(cx));
                self.full = None;
            }
            let count = match &mut self.full {
                Some(Full::Watched(full)) => ready!(Pin::new(full).poll_write(cx, out))?,
                Some(Full::Tried(_)) | None => match send(&self.input, out, SendFlags::NOSIGNAL) {
                    Ok(count) => count,
                    Err(Errno::INTR) => continue,
                    Err(Errno::AGAIN) => {
                        self.full = Some(Full::of(&self.input));
                        continue;
                    }
                    Err(cause) => return Poll::Ready(Err(io::Error::from(cause).into())),
                },
            };
            match count {
                0 => return Poll::Ready(Err(LineError::Closed)),
                count => out.advance(count),
            }
        }
        self.full = None;
        Poll::Ready(Ok(()))
    }

    /// The next frame.
    ///
    /// # Errors
    /// Any [`LineError`]; [`LineError::Closed`] is also the ordinary end.
    pub fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Result<Frame, LineError>> {
        loop {
            if let Some(frame) = take(&mut self.read)? {
                return Poll::Ready(Ok(frame));
            }
            if self.read.capacity().saturating_sub(self.read.len()) < READ / 4 {
                self.read.reserve(READ);
            }
            if ready!(poll_read_buf(Pin::new(&mut self.input), cx, &mut self.read))? == 0 {
                return Poll::Ready(Err(LineError::Closed));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn framed(kind: Kind, call: u64, content: &[u8]) -> BytesMut {
        let mut out = BytesMut::new();
        assert!(push(&mut out, kind, call, |out| out.extend_from_slice(content)));
        out
    }

    #[test]
    fn frames_come_out_as_they_went_in_however_they_are_cut() {
        let mut sent = framed(Kind::Call, 7, b"GET / HTTP/1.1\r\n\r\n");
        sent.extend_from_slice(&framed(Kind::Cancel, u64::MAX, b""));
        sent.extend_from_slice(&framed(Kind::Answer, 0, &[9; 100_000]));
        let mut buffer = BytesMut::new();
        let mut seen = Vec::new();
        for piece in sent.chunks(11) {
            buffer.extend_from_slice(piece);
            while let Some(frame) = take(&mut buffer).unwrap() {
                seen.push((frame.kind, frame.call, frame.content.len()));
            }
        }
        assert_eq!(seen, [(Kind::Call, 7, 18), (Kind::Cancel, u64::MAX, 0), (Kind::Answer, 0, 100_000)]);
        assert!(buffer.is_empty());
    }

    #[tokio::test]
    async fn a_line_that_is_full_goes_on_when_the_other_side_reads() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let (mut ours, mut theirs) = (Wire::new(ours).unwrap(), Wire::new(theirs).unwrap());
        let content = vec![7; MAX_MESSAGE];
        let mut out = BytesMut::new();
        for call in 0..16 {
            assert!(push(&mut out, Kind::Answer, call, |out| out.extend_from_slice(&content)));
        }
        let mut cx = Context::from_waker(std::task::Waker::noop());
        assert!(ours.poll_flush(&mut cx, &mut out).is_pending() && ours.full.is_some());
        let write = std::future::poll_fn(|cx| ours.poll_flush(cx, &mut out));
        let read = async {
            for call in 0..16 {
                let frame = std::future::poll_fn(|cx| theirs.poll_frame(cx)).await.unwrap();
                assert_eq!((frame.call, frame.content.len()), (call, MAX_MESSAGE));
            }
        };
        let (written, ()) = tokio::join!(write, read);
        written.unwrap();
        assert!(ours.full.is_none());
        drop(theirs);
        assert!(push(&mut out, Kind::Cancel, 1, |_| {}));
        assert!(matches!(ours.poll_flush(&mut cx, &mut out), Poll::Ready(Err(LineError::Io(_)))));
    }

    /// Set in the process that [`without_descriptors`] is the body of.
    const STARVED: &str = "SIDEREAL_TEST_STARVED";

    #[test]
    fn a_line_that_is_full_goes_on_where_no_descriptor_can_be_had() {
        // In a process of its own: what it may not open, no other test of this one could either.
        let mut child = std::process::Command::new(std::env::current_exe().unwrap());
        child.args(["--exact", "data_line::tests::without_descriptors", "--ignored"]).env(STARVED, "1");
        let output = child.output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && said.contains("1 passed"), "{said}");
    }

    #[tokio::test]
    #[ignore = "the body of a child process"]
    async fn without_descriptors() {
        use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
        if std::env::var_os(STARVED).is_none() {
            return;
        }
        let (ours, theirs) = UnixStream::pair().unwrap();
        let (mut ours, mut theirs) = (Wire::new(ours).unwrap(), Wire::new(theirs).unwrap());
        let maximum = getrlimit(Resource::Nofile).maximum;
        setrlimit(Resource::Nofile, Rlimit { current: Some(0), maximum }).unwrap();
        assert!(ours.input.as_fd().try_clone_to_owned().is_err());
        let (mut out, content) = (BytesMut::new(), vec![7; MAX_MESSAGE]);
        for call in 0..16 {
            assert!(push(&mut out, Kind::Answer, call, |out| out.extend_from_slice(&content)));
        }
        let write = std::future::poll_fn(|cx| ours.poll_flush(cx, &mut out));
        let read = async {
            for call in 0..16 {
                let frame = std::future::poll_fn(|cx| theirs.poll_frame(cx)).await.unwrap();
                assert_eq!((frame.call, frame.content.len()), (call, MAX_MESSAGE));
            }
        };
        let (written, ()) = tokio::join!(write, read);
        written.unwrap();
    }

    /// What the event loops of this process watch a file for: the bits of `epoll`.
    fn watched(file: std::os::fd::BorrowedFd<'_>) -> Vec<u32> {
        let wanted = std::os::fd::AsRawFd::as_raw_fd(&file).to_string();
        let mut found = Vec::new();
        for info in std::fs::read_dir("/proc/self/fdinfo").unwrap().flatten() {
            // One may be gone by now.
            let text = std::fs::read_to_string(info.path()).unwrap_or_default();
            for line in text.lines().filter(|line| line.starts_with("tfd:")) {
                let words: Vec<&str> = line.split_whitespace().collect();
                if words[1] == wanted {
                    found.push(u32::from_str_radix(words[3], 16).unwrap());
                }
            }
        }
        found
    }

    #[tokio::test]
    async fn a_line_with_room_is_not_watched_for_room() {
        const READABLE: u32 = 1;
        const ROOM: u32 = 4;
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let wire = Wire::new(ours).unwrap();
        let bits = watched(wire.input.as_fd());
        // An event loop may have more than one descriptor, and each says the same.
        assert!(!bits.is_empty() && bits.iter().all(|bits| bits & (READABLE | ROOM) == READABLE), "{bits:x?}");
    }

    #[test]
    fn what_is_no_frame_is_refused_at_once() {
        assert!(matches!(take(&mut BytesMut::from(&[0, 0, 0, 0, 0][..])), Err(LineError::Malformed)));
        assert!(matches!(take(&mut BytesMut::from(&b"HTTP/1.1 200 OK\r\n"[..])), Err(LineError::Malformed)));
        let huge = u32::try_from(MAX_CONTENT + 1).unwrap().to_le_bytes();
        let mut head = BytesMut::from(&[3][..]);
        head.extend_from_slice(&huge);
        assert!(matches!(take(&mut head), Err(LineError::Malformed)));
        assert!(matches!(take(&mut BytesMut::from(&[3, 1][..])), Ok(None)));
    }

    #[test]
    fn a_content_that_is_too_large_leaves_nothing_behind() {
        let mut out = framed(Kind::Cancel, 1, b"");
        let before = out.clone();
        assert!(!push(&mut out, Kind::Answer, 2, |out| out.resize(out.len() + MAX_CONTENT + 1, 0)));
        assert_eq!(out, before);
    }
}
