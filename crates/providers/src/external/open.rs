//! A call under way of which a part comes, or goes, bit by bit: the streams and futures of wRPC, told apart by their
//! paths. Read as it is asked for, so that one which is slow holds up the other end and nothing grows here.

use std::collections::BTreeMap;
use std::io;

use bytes::{BufMut, Bytes, BytesMut};
use futures::StreamExt;
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::OwnedSemaphorePermit;
use tokio_util::codec::{Decoder, FramedRead};
use wrpc_transport::FrameDecoder;

use super::wire::{Answered, Params, WireError, call, is_lost};

/// How deep the values of our contracts are: a result, and a tuple in it.
const MAX_DEPTH: u32 = 2;
/// Paths of one call that anything is expected on.
const MAX_PATHS: usize = 3;

/// One such call.
pub(crate) struct Open {
    frames: FramedRead<OwnedReadHalf, FrameDecoder>,
    /// Gone once nothing more is sent.
    writer: Option<OwnedWriteHalf>,
    /// What came on each path and was not asked for yet.
    here: BTreeMap<Box<[usize]>, BytesMut>,
    /// The most bytes that one value has, and that wait on all paths together.
    limit: u64,
    /// Why the parameters did not go out whole: one that refuses early may have said why.
    unsent: Option<io::Error>,
    _permit: OwnedSemaphorePermit,
}

impl Open {
    /// Sends the call with those of its parameters that are known.
    pub(super) async fn begin<P: Params>(
        stream: UnixStream,
        instance: &str,
        function: &str,
        params: P,
        limit: u64,
        permit: OwnedSemaphorePermit,
    ) -> Result<Self, WireError> {
        let (reader, mut writer) = stream.into_split();
        let call = call(instance, function, params)?;
        let unsent = writer.write_all(&call).await.err();
        let frames = FramedRead::new(reader, FrameDecoder::new(MAX_DEPTH, limit));
        Ok(Self { frames, writer: Some(writer), here: BTreeMap::new(), limit, unsent, _permit: permit })
    }

    /// The next value on a path. One that is given up in its middle leaves the call of no use.
    pub(crate) async fn value<R: Answered>(&mut self, path: &[usize]) -> Result<R, WireError> {
        let mut decoder = R::Decoder::default();
        let mut taken = 0_u64;
        loop {
            if let Some(here) = self.here.get_mut(path) {
                let before = here.len() as u64;
                let decoded = decoder.decode(here).map_err(WireError::Garbage)?;
                if let Some(value) = decoded {
                    return Ok(value);
                }
                taken = taken.saturating_add(before.saturating_sub(here.len() as u64));
            }
            self.frame().await?;
            let waiting: u64 = self.here.values().map(|bytes| bytes.len() as u64).sum();
            if waiting.saturating_add(taken) > self.limit {
                return Err(WireError::TooLarge(self.limit));
            }
        }
    }

    /// Reads one frame.
    async fn frame(&mut self) -> Result<(), WireError> {
        let lost = |unsent: &mut Option<io::Error>, cause| WireError::HungUp(unsent.take().unwrap_or(cause));
        let frame = match self.frames.next().await {
            Some(Ok(frame)) => frame,
            Some(Err(cause)) if is_lost(&cause) => return Err(lost(&mut self.unsent, cause)),
            Some(Err(cause)) => return Err(WireError::Garbage(cause)),
            None => return Err(lost(&mut self.unsent, io::ErrorKind::UnexpectedEof.into())),
        };
        if !self.here.contains_key(&*frame.path) {
            if self.here.len() >= MAX_PATHS {
                let what = io::Error::new(io::ErrorKind::InvalidData, "it has more parts than the contract has");
                return Err(WireError::Garbage(what));
            }
            self.here.insert((*frame.path).into(), BytesMut::new());
        }
        if let Some(here) = self.here.get_mut(&*frame.path) {
            here.extend_from_slice(&frame.data);
        }
        Ok(())
    }

    /// Sends bytes of a `stream<u8>` on a path; none ends it.
    pub(crate) async fn send(&mut self, path: u32, bytes: &Bytes) -> io::Result<()> {
        let mut chunk = BytesMut::with_capacity(16);
        number(bytes.len() as u64, &mut chunk);
        let mut head = BytesMut::with_capacity(32);
        number(1, &mut head);
        number(path.into(), &mut head);
        number(chunk.len() as u64 + bytes.len() as u64, &mut head);
        head.unsplit(chunk);
        let writer = self.writer.as_mut().ok_or(io::ErrorKind::BrokenPipe)?;
        writer.write_all(&head).await?;
        writer.write_all(bytes).await
    }

    /// What says that nothing more is sent, by being dropped.
    pub(crate) fn close(&mut self) -> Option<OwnedWriteHalf> {
        self.writer.take()
    }
}

/// An unsigned number as wRPC has it (LEB128).
pub(crate) fn number(mut n: u64, out: &mut BytesMut) {
    while n > 0x7f {
        out.put_u8((n & 0x7f) as u8 | 0x80);
        n >>= 7;
    }
    out.put_u8(n as u8);
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio::io::AsyncReadExt;
    use tokio::sync::Semaphore;

    use super::*;

    async fn opened(answer: &'static [u8], limit: u64) -> (Open, tokio::task::JoinHandle<Vec<u8>>) {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let server = tokio::spawn(async move {
            theirs.write_all(answer).await.unwrap();
            let mut all = Vec::new();
            drop(theirs.read_to_end(&mut all).await);
            all
        });
        let permit = Arc::new(Semaphore::new(1)).acquire_owned().await.unwrap();
        (Open::begin(ours, "i", "f", ("b", false), limit, permit).await.unwrap(), server)
    }

    type Said<T> = Result<T, String>;
    type Root = Said<(Option<Bytes>, Option<Said<()>>)>;

    #[tokio::test]
    async fn a_stream_comes_in_pieces_however_they_are_framed() {
        // ok, both pending; then "ab" and "c" in frames that are cut anywhere, the end, and that it went well.
        let answer = b"\0\x03\0\0\0\x02\0\0\x02\x02a\x02\0\0\x03b\x01c\x02\0\x01\x01\0\x02\0\0\x01\0";
        let (mut open, server) = opened(answer, 99).await;
        assert_eq!(open.value::<Root>(&[]).await.unwrap(), Ok((None, None)));
        for expected in [&b"ab"[..], b"c", b""] {
            assert_eq!(open.value::<Bytes>(&[0, 0]).await.unwrap(), expected);
        }
        assert_eq!(open.value::<Said<()>>(&[0, 1]).await.unwrap(), Ok(()));
        open.send(1, &Bytes::from_static(b"xyz")).await.unwrap();
        open.send(1, &Bytes::new()).await.unwrap();
        drop(open.close());
        let sent = server.await.unwrap();
        assert_eq!(sent, b"\0\x01i\x01f\0\x03\x01b\0\x01\x01\x04\x03xyz\x01\x01\x01\0");
    }

    #[tokio::test]
    async fn a_value_that_is_there_already_a_refusal_and_garbage_are_told_apart() {
        let (mut open, _server) = opened(b"\0\x07\0\x01\x02hi\x01\0", 99).await;
        assert_eq!(open.value::<Root>(&[]).await.unwrap(), Ok((Some(Bytes::from_static(b"hi")), Some(Ok(())))));
        let (mut open, _server) = opened(b"\0\x04\x01\x02no", 99).await;
        assert_eq!(open.value::<Root>(&[]).await.unwrap(), Err("no".to_owned()));
        for garbage in [
            &b"HTTP/1.1 400"[..],
            b"\0\x01\x07",
            b"\x03\0\0\0\x01\0",
            b"\x01\x05\x01a\x01\x06\x01a\x01\x07\x01a\x01\x08\x01a",
        ] {
            let (mut open, _server) = opened(garbage, 99).await;
            let said = open.value::<Root>(&[]).await.unwrap_err();
            assert!(matches!(said, WireError::Garbage(_)), "{garbage:?}: {said:?}");
        }
        let (mut open, _server) = opened(b"\0\x03\0\0\0\x02\0\0\x0a\x7faaaaaaaaa\x02\0\0\x0aaaaaaaaaaa", 12).await;
        assert_eq!(open.value::<Root>(&[]).await.unwrap(), Ok((None, None)));
        let said = open.value::<Bytes>(&[0, 0]).await.unwrap_err();
        assert!(matches!(said, WireError::TooLarge(12)), "{said:?}");
    }

    #[test]
    fn numbers_are_leb128() {
        for (n, bytes) in [(0, &b"\0"[..]), (127, b"\x7f"), (128, b"\x80\x01"), (300, b"\xac\x02")] {
            let mut out = BytesMut::new();
            number(n, &mut out);
            assert_eq!(&out[..], bytes, "{n}");
        }
    }
}
