//! Is it well? One cheap call of the contract itself, so that a provider needs nothing beside the contract: whatever it
//! answers, it is well if the answer has the shape the contract says.

use std::path::Path;
use std::time::Duration;

use bytes::{BufMut, BytesMut};
use futures::StreamExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio_util::codec::FramedRead;
use wrpc_transport::frame::{Decoder, encode_invocation};

/// The call: `exists` of a key that nobody sets.
const INSTANCE: &str = "wrpc:keyvalue/store@0.2.0-draft";
const FUNCTION: &str = "exists";
const BUCKET: &str = "sidereal-health";
const KEY: &str = "health";
/// As much of an answer is read, bytes.
const MAX_ANSWER: u64 = 4096;

/// Asks once.
///
/// # Errors
/// What is wrong, as the end of a sentence that begins with its name.
pub(super) async fn ask(socket: &Path, limit: Duration) -> Result<(), String> {
    let late = |_| Err(format!("did not answer within {limit:?}"));
    tokio::time::timeout(limit, call(socket)).await.unwrap_or_else(late)
}

async fn call(socket: &Path) -> Result<(), String> {
    let stream = UnixStream::connect(socket).await.map_err(|cause| format!("does not take calls: {cause}"))?;
    let (reader, mut writer) = stream.into_split();
    let mut params = BytesMut::new();
    for text in [BUCKET, KEY] {
        // A length below 128 is one byte.
        params.put_u8(text.len() as u8);
        params.put_slice(text.as_bytes());
    }
    let mut call = BytesMut::new();
    encode_invocation(&mut call, INSTANCE, FUNCTION, params.len()).map_err(|cause| cause.to_string())?;
    call.unsplit(params);
    writer.write_all(&call).await.map_err(|cause| format!("hung up on a call: {cause}"))?;
    let mut frames = FramedRead::new(reader.take(MAX_ANSWER), Decoder::new(0, MAX_ANSWER));
    let mut answer = BytesMut::new();
    while answer.len() < 2 {
        match frames.next().await {
            Some(Ok(frame)) => answer.extend_from_slice(&frame.data),
            Some(Err(cause)) => return Err(format!("answered what is not wRPC: {cause}")),
            None => return Err("hung up without an answer".to_owned()),
        }
    }
    // ok(bool), or one of the three errors of the contract.
    match answer.get(..2) {
        Some([0, 0 | 1] | [1, 0..=2]) => Ok(()),
        _ => Err("answered a call with something the contract does not have".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::UnixListener;

    /// What a server with this answer gets as a verdict.
    async fn verdict(answer: &'static [u8], then_hold: bool) -> Result<(), String> {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("s");
        let listener = UnixListener::bind(&socket).unwrap();
        let server = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut head = vec![0; 1 + 1 + INSTANCE.len() + 1 + FUNCTION.len() + 1 + 1];
            stream.read_exact(&mut head).await.unwrap();
            assert_eq!(head[0], 0);
            assert_eq!(&head[2..2 + INSTANCE.len()], INSTANCE.as_bytes());
            let mut params = vec![0; usize::from(*head.last().unwrap())];
            stream.read_exact(&mut params).await.unwrap();
            assert_eq!(params, [&[15][..], b"sidereal-health", &[6], b"health"].concat());
            stream.write_all(answer).await.unwrap();
            if then_hold {
                std::future::pending::<()>().await;
            }
        });
        let verdict = ask(&socket, Duration::from_millis(300)).await;
        server.abort();
        verdict
    }

    #[tokio::test]
    async fn well_is_what_answers_as_the_contract_says() {
        for well in [&[0, 2, 0, 0][..], &[0, 2, 0, 1], &[0, 1, 0, 0, 1, 0], &[0, 5, 1, 2, 2, b'n', b'o']] {
            assert_eq!(verdict(well, true).await, Ok(()), "{well:?}");
        }
        for (ill, why) in [
            (&b"HTTP/1.1 400 Bad Request\r\n\r\n"[..], "not wRPC"),
            (&[0, 2, 0, 7], "the contract does not have"),
            (&[0, 1, 0], "hung up without"),
            (&[], "hung up without"),
            (&[0xff; 64], "not wRPC"),
        ] {
            let said = verdict(ill, false).await.unwrap_err();
            assert!(said.contains(why), "{ill:?}: {said}");
        }
        let said = verdict(&[], true).await.unwrap_err();
        assert!(said.contains("did not answer within"), "{said}");
        let said = ask(Path::new("/nowhere/s"), Duration::from_secs(1)).await.unwrap_err();
        assert!(said.contains("does not take calls"), "{said}");
    }
}
