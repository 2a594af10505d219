//! One call over wRPC: a connection of its own, the name of the function and its parameters in one frame, the result in
//! frames until it is whole. Framing and values are the library's; how much is read and how long is ours, since what is
//! at the other end may be anything.

use std::io;

use bytes::BytesMut;
use futures::StreamExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio_util::codec::{Decoder, Encoder, FramedRead};
use wrpc_transport::frame::encode_invocation;
use wrpc_transport::{Decode, Encode, FrameDecoder, Packer, pack_ready};

/// Why a call has no answer of the contract.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WireError {
    /// The connection ended before the answer was whole. Whether a write happened is not known.
    #[error("it hung up before its answer was whole: {0}")]
    HungUp(io::Error),
    /// What came is no answer to the call.
    #[error("what it answered is not wRPC as the contract says: {0}")]
    Garbage(io::Error),
    /// The answer has more bytes than any may have.
    #[error("its answer has more than {0} bytes")]
    TooLarge(u64),
}

/// What a call can be made with.
pub(crate) trait Params: Encode<Packer, Encoder: Encoder<Self, Error = io::Error>> {}
impl<T: Encode<Packer, Encoder: Encoder<T, Error = io::Error>>> Params for T {}

/// What a call can be answered with.
pub(crate) trait Answered: Decode<Decoder: Decoder<Error = io::Error>> {}
impl<T: Decode<Decoder: Decoder<Error = io::Error>>> Answered for T {}

/// A call with those of its parameters that are known, as it goes out.
pub(super) fn call<P: Params>(instance: &str, function: &str, params: P) -> Result<BytesMut, WireError> {
    let mut encoded = BytesMut::new();
    pack_ready(params, &mut encoded).map_err(WireError::Garbage)?;
    let mut call = BytesMut::new();
    encode_invocation(&mut call, instance, function, encoded.len()).map_err(WireError::Garbage)?;
    call.unsplit(encoded);
    Ok(call)
}

/// Calls a function and reads its result, of which `limit` bytes are read at most.
pub(crate) async fn invoke<P: Params, R: Answered>(
    stream: UnixStream,
    instance: &str,
    function: &str,
    params: P,
    limit: u64,
) -> Result<R, WireError> {
    let (reader, mut writer) = stream.into_split();
    let call = call(instance, function, params)?;
    // One that refuses early does not read it all, and may have said why.
    let written = writer.write_all(&call).await;
    drop(call);
    // Depth 0: of what is asked like this nothing is a stream, so nothing is nested.
    let mut frames = FramedRead::new(reader.take(limit), FrameDecoder::new(0, limit));
    let mut answer = BytesMut::new();
    let mut decoder = R::Decoder::default();
    loop {
        match frames.next().await {
            Some(Ok(frame)) => answer.extend_from_slice(&frame.data),
            Some(Err(cause)) if is_lost(&cause) => {
                return Err(match frames.get_ref().limit() {
                    0 => WireError::TooLarge(limit),
                    _ => WireError::HungUp(written.err().unwrap_or(cause)),
                });
            }
            Some(Err(cause)) => return Err(WireError::Garbage(cause)),
            None if frames.get_ref().limit() == 0 => return Err(WireError::TooLarge(limit)),
            None => {
                let end = io::Error::from(io::ErrorKind::UnexpectedEof);
                return Err(WireError::HungUp(written.err().unwrap_or(end)));
            }
        }
        if let Some(result) = decoder.decode(&mut answer).map_err(WireError::Garbage)? {
            return Ok(result);
        }
    }
}

/// Errors of the connection, and not of what came over it. A frame that ends in the middle is told as `Other` by the
/// codec.
pub(crate) fn is_lost(cause: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionReset, NotConnected, Other, UnexpectedEof};
    matches!(cause.kind(), BrokenPipe | ConnectionReset | NotConnected | Other | UnexpectedEof)
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn answered<R: Answered>(answer: &'static [u8], limit: u64) -> Result<R, WireError> {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let server = tokio::spawn(async move {
            let mut call = [0; 1 + 1 + 1 + 1 + 1 + 1 + 1 + 2 + 3];
            theirs.read_exact(&mut call).await.unwrap();
            assert_eq!(&call, b"\0\x01i\x01f\0\x05\x01b\x02kk");
            theirs.write_all(answer).await.unwrap();
        });
        let result = invoke(ours, "i", "f", ("b", "kk"), limit).await;
        server.await.unwrap();
        result
    }

    use crate::keyvalue::external::Refusal;

    type Said<T> = Result<T, Refusal>;

    #[tokio::test]
    async fn values_and_refusals_arrive_in_any_number_of_frames() {
        let found: Said<Option<bytes::Bytes>> = answered(b"\0\x01\0\0\x02\x01\x02\0\x02hi", 99).await.unwrap();
        assert_eq!(found, Ok(Some("hi".into())));
        let done: Said<()> = answered(b"\0\x01\0", 99).await.unwrap();
        assert_eq!(done, Ok(()));
        let page: Said<(Vec<String>, Option<u64>)> = answered(b"\0\x08\0\x01\x01k\x01\xe8\x07\0", 99).await.unwrap();
        assert_eq!(page, Ok((vec!["k".to_owned()], Some(1000))));
        let many: Said<Vec<Option<(String, bytes::Bytes)>>> =
            answered(b"\0\x08\0\x02\0\x01\x01k\x01v", 99).await.unwrap();
        assert_eq!(many, Ok(vec![None, Some(("k".to_owned(), "v".into()))]));
        for (answer, refusal) in [
            (&b"\0\x02\x01\0"[..], Refusal::NoSuchStore),
            (b"\0\x02\x01\x01", Refusal::AccessDenied),
            (b"\0\x01\x01\0\x02\x02\x02\0\x02no", Refusal::Other("no".to_owned())),
        ] {
            assert_eq!(answered::<Said<bool>>(answer, 99).await.unwrap(), Err(refusal));
        }
    }

    #[tokio::test]
    async fn garbage_hanging_up_and_too_much_are_told_apart() {
        for garbage in
            [&b"HTTP/1.1 400 Bad Request\r\n"[..], b"\0\x02\x07\0", b"\0\x02\x01\x09", b"\0\x04\0\x01\x01\xff"]
        {
            let said = answered::<Said<Option<String>>>(garbage, 99).await.unwrap_err();
            assert!(matches!(said, WireError::Garbage(_)), "{garbage:?}: {said}");
        }
        for short in [&b""[..], b"\0", b"\0\x05\0\x01", b"\0\x01\0"] {
            let said = answered::<Said<Option<String>>>(short, 99).await.unwrap_err();
            assert!(matches!(said, WireError::HungUp(_)), "{short:?}: {said:?}");
        }
        let said = answered::<Said<Option<String>>>(b"\0\x05\0\x01\x7fab\0\x08cdefghij", 12).await.unwrap_err();
        assert!(matches!(said, WireError::TooLarge(12)), "{said:?}");
    }
}
