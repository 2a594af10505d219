//! Is it well? One cheap call of the contract itself, so that a provider needs nothing beside the contract: whatever it
//! answers, it is well if the answer has the shape the contract says.

use std::path::Path;
use std::time::Duration;

use bytes::{BufMut, BytesMut};
use futures::StreamExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_util::codec::FramedRead;
use wrpc_transport::frame::{Decoder, encode_invocation};

use super::reach;

/// What nobody has: a bucket, a container, a message, a secret of this name.
const NOBODYS: &str = "sidereal-health";
/// As much of an answer is read, bytes.
const MAX_ANSWER: u64 = 4096;

/// The call of one contract, and what its answers begin with.
#[derive(Debug, Clone, Copy)]
pub(super) struct Question {
    instance: &'static str,
    function: &'static str,
    /// Its parameters are texts, but for the last: of a secret no field, and of a database no statements.
    texts: &'static [&'static str],
    then_none: bool,
    /// Whether these bytes are how an answer begins; `None` where more of them have to be known.
    begins: fn(&[u8]) -> Option<bool>,
}

/// The question for a provider of this contract.
pub(super) fn question(contract: &str) -> Question {
    let of = |instance, function, texts, begins| Question { instance, function, texts, then_none: false, begins };
    match contract {
        // ok(bool), or a text.
        "wasi:blobstore" => {
            of("wrpc:blobstore/blobstore@0.2.0", "container-exists", &[NOBODYS], |answer| match answer {
                [0, 0 | 1, ..] | [1, _, ..] => Some(true),
                [] | [0 | 1] => None,
                _ => Some(false),
            })
        }
        // ok, or a text.
        model::messaging::CONTRACT => of("sidereal:broker/source@0.1.0", "done", &[NOBODYS], |answer| match answer {
            [0, ..] | [1, _, ..] => Some(true),
            [] | [1] => None,
            _ => Some(false),
        }),
        // A version and a value, or one of the three errors.
        model::secret::CONTRACT => Question {
            then_none: true,
            ..of("sidereal:secrets/store@0.1.0", "get", &[NOBODYS], |answer| match answer {
                [0, _, ..] | [1, 0..=2, ..] => Some(true),
                [] | [0 | 1] => None,
                _ => Some(false),
            })
        },
        // No counts, or one of the nine errors.
        model::sql::CONTRACT => Question {
            then_none: true,
            ..of("sidereal:sql/database@0.1.0", "batch", &[], |answer| match answer {
                [0, 0, ..] | [1, 0..=8, ..] => Some(true),
                [] | [0 | 1] => None,
                _ => Some(false),
            })
        },
        // ok(bool), or one of the three errors.
        _ => of("wrpc:keyvalue/store@0.2.0-draft", "exists", &[NOBODYS, "health"], |answer| match answer {
            [0, 0 | 1, ..] | [1, 0..=2, ..] => Some(true),
            [] | [0 | 1] => None,
            _ => Some(false),
        }),
    }
}

/// Asks once.
///
/// # Errors
/// What is wrong, as the end of a sentence that begins with its name.
pub(super) async fn ask(socket: &Path, owner: u32, question: Question, limit: Duration) -> Result<(), String> {
    let late = |_| Err(format!("did not answer within {limit:?}"));
    tokio::time::timeout(limit, call(socket, owner, question)).await.unwrap_or_else(late)
}

async fn call(socket: &Path, owner: u32, question: Question) -> Result<(), String> {
    let stream = reach::connect(socket, owner).await.map_err(|cause| format!("does not take calls: {cause}"))?;
    let (reader, mut writer) = stream.into_split();
    let mut params = BytesMut::new();
    for text in question.texts {
        // A length below 128 is one byte.
        params.put_u8(text.len() as u8);
        params.put_slice(text.as_bytes());
    }
    if question.then_none {
        params.put_u8(0);
    }
    let mut call = BytesMut::new();
    encode_invocation(&mut call, question.instance, question.function, params.len())
        .map_err(|cause| cause.to_string())?;
    call.unsplit(params);
    writer.write_all(&call).await.map_err(|cause| format!("hung up on a call: {cause}"))?;
    let mut frames = FramedRead::new(reader.take(MAX_ANSWER), Decoder::new(0, MAX_ANSWER));
    let mut answer = BytesMut::new();
    loop {
        match (question.begins)(&answer) {
            Some(true) => return Ok(()),
            Some(false) => return Err("answered a call with something the contract does not have".to_owned()),
            None => {}
        }
        match frames.next().await {
            Some(Ok(frame)) => answer.extend_from_slice(&frame.data),
            Some(Err(cause)) => return Err(format!("answered what is not wRPC: {cause}")),
            None => return Err("hung up without an answer".to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::UnixListener;

    /// What a server with this answer gets as a verdict.
    async fn verdict(contract: &str, answer: &'static [u8], then_hold: bool) -> Result<(), String> {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("s");
        let listener = UnixListener::bind(&socket).unwrap();
        let asked = question(contract);
        let server = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut head = vec![0; 1 + 1 + asked.instance.len() + 1 + asked.function.len() + 1 + 1];
            stream.read_exact(&mut head).await.unwrap();
            assert_eq!(head[0], 0);
            assert_eq!(&head[2..2 + asked.instance.len()], asked.instance.as_bytes());
            let mut params = vec![0; usize::from(*head.last().unwrap())];
            stream.read_exact(&mut params).await.unwrap();
            assert!(params == [0] || params.starts_with(b"\x0fsidereal-health"), "{params:?}");
            stream.write_all(answer).await.unwrap();
            if then_hold {
                std::future::pending::<()>().await;
            }
        });
        // What answers has its time; what does not is waited for by this test.
        let within = if then_hold && answer.is_empty() { Duration::from_millis(300) } else { Duration::from_secs(60) };
        let verdict = ask(&socket, rustix::process::geteuid().as_raw(), asked, within).await;
        server.abort();
        verdict
    }

    #[tokio::test]
    async fn well_is_what_answers_as_the_contract_says() {
        for (contract, well) in [
            ("wasi:keyvalue", &[0, 2, 0, 0][..]),
            ("wasi:keyvalue", &[0, 2, 0, 1]),
            ("wasi:keyvalue", &[0, 1, 0, 0, 1, 0]),
            ("wasi:keyvalue", &[0, 5, 1, 2, 2, b'n', b'o']),
            ("wasi:blobstore", &[0, 2, 0, 0]),
            ("wasi:blobstore", &[0, 4, 1, 2, b'n', b'o']),
            ("wasmcloud:messaging", &[0, 1, 0]),
            ("wasmcloud:messaging", &[0, 4, 1, 2, b'n', b'o']),
            ("wasmcloud:secrets", &[0, 2, 1, 0]),
            ("wasmcloud:secrets", &[0, 3, 0, 1, 0]),
            ("sidereal:sql", &[0, 2, 0, 0]),
            ("sidereal:sql", &[0, 5, 1, 8, 2, b'n', b'o']),
        ] {
            assert_eq!(verdict(contract, well, true).await, Ok(()), "{contract} {well:?}");
        }
        for (ill, why) in [
            (&b"HTTP/1.1 400 Bad Request\r\n\r\n"[..], "not wRPC"),
            (&[0, 2, 0, 7], "the contract does not have"),
            (&[0, 1, 0], "hung up without"),
            (&[], "hung up without"),
            (&[0xff; 64], "not wRPC"),
        ] {
            let said = verdict("wasi:keyvalue", ill, false).await.unwrap_err();
            assert!(said.contains(why), "{ill:?}: {said}");
        }
        for (contract, ill) in [
            ("wasi:blobstore", &[0, 2, 0, 7][..]),
            ("wasmcloud:messaging", &[0, 1, 7]),
            ("wasmcloud:secrets", &[0, 2, 1, 7]),
            ("sidereal:sql", &[0, 2, 1, 9]),
        ] {
            let said = verdict(contract, ill, false).await.unwrap_err();
            assert!(said.contains("the contract does not have"), "{contract} {ill:?}: {said}");
        }
        let said = verdict("wasi:keyvalue", &[], true).await.unwrap_err();
        assert!(said.contains("did not answer within"), "{said}");
        let said =
            ask(Path::new("/nowhere/s"), 0, question("wasi:keyvalue"), Duration::from_secs(1)).await.unwrap_err();
        assert!(said.contains("does not take calls"), "{said}");
    }
}
