//! Secrets of a process beside the platform that speaks wRPC: `sidereal:secrets/store`, one function (see
//! `docs/providers/external.md`). Nothing is kept here: each use asks the process, so a new value is used from the next
//! call on. What an answer holds is in memory that is wiped, so it is read here and not by the library.

use std::sync::{Arc, Once, Weak};
use std::time::Duration;

use bytes::BytesMut;
use futures::FutureExt as _;
use futures::future::BoxFuture;
use model::secret::MAX_SECRET;
use model::{AppName, ProviderName, SecretRef, SecretValue};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::sync::{Semaphore, watch};
use wrpc_transport::frame::encode_invocation;
use zeroize::Zeroizing;

use super::{Resolver, Revealed, SecretError};
use crate::external::open::number;
use crate::external::{CALL, CONNECT, CallError, Connect, FIRST, Process, place, words};

const STORE: &str = "sidereal:secrets/store@0.1.0";

/// The largest answer, with what goes around a secret, bytes.
const MAX_ANSWER: usize = MAX_SECRET + 1024;
/// Calls of one app under way at once; the rest waits.
const MAX_CALLS: usize = 16;
/// How often whoever holds a secret asks whether it has another value.
const REFRESH: Duration = Duration::from_secs(10);

/// One app's secrets in one external process.
pub struct External {
    process: Process,
    calls: Semaphore,
    changes: Arc<watch::Sender<u64>>,
    /// Started when somebody first wants to know of changes.
    watching: Once,
}

/// What the process answers.
#[derive(Debug, PartialEq)]
enum Said {
    Value { version: u64, value: SecretValue },
    NotFound,
    Denied(String),
    Unavailable(String),
}

impl External {
    /// The secrets behind `connect`. Nothing is connected before the first call.
    pub fn new(name: ProviderName, connect: Arc<dyn Connect>) -> Arc<Self> {
        Arc::new(Self {
            process: Process::new(name, connect),
            calls: Semaphore::new(MAX_CALLS),
            changes: Arc::new(watch::Sender::new(0)),
            watching: Once::new(),
        })
    }

    /// Asks for a secret that nobody has: says early and with its reason what every call would say.
    ///
    /// # Errors
    /// What a call would answer.
    pub async fn check(&self) -> Result<(), SecretError> {
        match self.ask("sidereal-health", None, FIRST).await {
            Ok(_) => Ok(()),
            Err(cause) => Err(failed("sidereal-health", cause)),
        }
    }

    async fn ask(&self, secret: &str, field: Option<&str>, patience: Duration) -> Result<Said, CallError> {
        let (_permit, patience) = place(&self.calls, patience).await?;
        let mut again = true;
        loop {
            let stream = self.process.stream(patience).await?;
            let asked = tokio::time::timeout(CALL, get(stream, secret, field)).await;
            let name = self.process.name();
            match asked.map_err(|_| CallError::TimedOut { ms: CALL.as_millis() as u64 })? {
                Ok(said) => return Ok(said),
                // The process ended under it; the next one may as well answer.
                Err(Ended::HungUp) if again => again = false,
                Err(Ended::HungUp) => {
                    return Err(CallError::Away(format!(
                        "external provider `{name}` hung up before its answer was whole"
                    )));
                }
                Err(Ended::Garbage) => {
                    return Err(CallError::Away(
                        self.process.garbage("what is no secret of wRPC, or one that is too large"),
                    ));
                }
            }
        }
    }

    async fn revealed(&self, secret: &SecretRef) -> Result<Revealed, SecretError> {
        let name = secret.secret.as_str();
        let field = secret.field.as_ref().map(model::secret::SecretField::as_str);
        let denied = |cause: String| SecretError::Denied { secret: name.to_owned(), cause };
        match self.ask(name, field, CONNECT).await.map_err(|cause| failed(name, cause))? {
            Said::Value { value, .. } if value.expose().len() > MAX_SECRET => {
                let cause = format!("it has more than {MAX_SECRET} bytes");
                Err(SecretError::Unusable { secret: name.to_owned(), cause })
            }
            Said::Value { version, value } => Ok(Revealed { value, version }),
            Said::NotFound => {
                Err(SecretError::NotKept { secret: secret.to_string(), by: self.process.name().to_string() })
            }
            Said::Denied(why) => Err(denied(words(&why))),
            Said::Unavailable(why) => Err(SecretError::Unavailable { secret: name.to_owned(), cause: words(&why) }),
        }
    }
}

fn failed(secret: &str, cause: CallError) -> SecretError {
    let secret = secret.to_owned();
    match cause {
        CallError::Away(cause) | CallError::TooLarge(cause) => SecretError::Unavailable { secret, cause },
        CallError::TimedOut { ms } => SecretError::TimedOut { secret, ms },
    }
}

impl Resolver for External {
    fn reveal<'a>(&'a self, _app: &'a AppName, secret: &'a SecretRef) -> BoxFuture<'a, Result<Revealed, SecretError>> {
        self.revealed(secret).boxed()
    }

    /// A process does not say that something changed: whoever wants to know looks again and again.
    fn changes(&self) -> watch::Receiver<u64> {
        self.watching.call_once(|| {
            tokio::spawn(look_again(Arc::downgrade(&self.changes)));
        });
        self.changes.subscribe()
    }
}

async fn look_again(changes: Weak<watch::Sender<u64>>) {
    loop {
        tokio::time::sleep(REFRESH).await;
        let Some(changes) = changes.upgrade() else { return };
        changes.send_modify(|n| *n += 1);
    }
}

/// Why there is no answer.
#[derive(Debug, PartialEq, Eq)]
enum Ended {
    HungUp,
    Garbage,
}

/// One call over a connection of its own.
async fn get(mut stream: UnixStream, secret: &str, field: Option<&str>) -> Result<Said, Ended> {
    let mut params = BytesMut::new();
    let text = |text: &str, params: &mut BytesMut| {
        number(text.len() as u64, params);
        params.extend_from_slice(text.as_bytes());
    };
    text(secret, &mut params);
    params.extend_from_slice(&[u8::from(field.is_some())]);
    if let Some(field) = field {
        text(field, &mut params);
    }
    let mut call = BytesMut::new();
    encode_invocation(&mut call, STORE, "get", params.len()).map_err(|_| Ended::Garbage)?;
    call.unsplit(params);
    stream.write_all(&call).await.map_err(|_| Ended::HungUp)?;
    // As large as it can become: growing would leave copies of a secret behind.
    let mut answer = Zeroizing::new(Vec::with_capacity(MAX_ANSWER));
    let mut value = Zeroizing::new(Vec::with_capacity(MAX_ANSWER));
    let mut chunk = Zeroizing::new([0; 4096]);
    loop {
        let count = stream.read(chunk.as_mut_slice()).await.map_err(|_| Ended::HungUp)?;
        let here = chunk.get(..count).unwrap_or_default();
        if here.is_empty() {
            return Err(Ended::HungUp);
        }
        if answer.len() + here.len() > MAX_ANSWER {
            return Err(Ended::Garbage);
        }
        answer.extend_from_slice(here);
        value.clear();
        unframe(&answer, &mut value)?;
        if let Some(said) = read(&value)? {
            return Ok(said);
        }
    }
}

/// Bytes that are read from the front; `None` where there are too few.
struct Front<'a>(&'a [u8]);

impl<'a> Front<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    fn number(&mut self) -> Result<Option<u64>, Ended> {
        let mut n = 0_u64;
        for shift in (0..64).step_by(7) {
            let Some([byte]) = self.take(1) else { return Ok(None) };
            n |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(Some(n));
            }
        }
        Err(Ended::Garbage)
    }

    fn bytes(&mut self) -> Result<Option<&'a [u8]>, Ended> {
        let Some(length) = self.number()? else { return Ok(None) };
        let length = usize::try_from(length).ok().filter(|length| *length <= MAX_ANSWER).ok_or(Ended::Garbage)?;
        Ok(self.take(length))
    }

    fn text(&mut self) -> Result<Option<String>, Ended> {
        let text = self.bytes()?.map(|bytes| std::str::from_utf8(bytes).map(str::to_owned));
        text.transpose().map_err(|_| Ended::Garbage)
    }
}

/// Puts the data of the frames that are whole after one another.
fn unframe(answer: &[u8], into: &mut Vec<u8>) -> Result<(), Ended> {
    let mut front = Front(answer);
    while let Some(depth) = front.number()? {
        if depth != 0 {
            return Err(Ended::Garbage);
        }
        let Some(data) = front.bytes()? else { return Ok(()) };
        into.extend_from_slice(data);
    }
    Ok(())
}

/// Reads the answer; `None` where it is not whole.
fn read(value: &[u8]) -> Result<Option<Said>, Ended> {
    let mut front = Front(value);
    let (Some(failed), Some(kind)) = (front.number()?, front.number()?) else { return Ok(None) };
    Ok(match (failed, kind) {
        (0, version) => front.bytes()?.map(|value| Said::Value { version, value: SecretValue::new(value.to_vec()) }),
        (1, 0) => Some(Said::NotFound),
        (1, 1) => front.text()?.map(Said::Denied),
        (1, 2) => front.text()?.map(Said::Unavailable),
        _ => return Err(Ended::Garbage),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn answered(answer: &'static [u8]) -> Result<Said, Ended> {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let server = tokio::spawn(async move {
            let mut call = vec![0; 1 + 1 + STORE.len() + 1 + 3 + 1 + 1 + 4 + 1 + 2];
            theirs.read_exact(&mut call).await.unwrap();
            assert!(call.ends_with(b"\x03get\0\x07\x03key\x01\x01f"), "{call:?}");
            theirs.write_all(answer).await.unwrap();
        });
        let said = get(ours, "key", Some("f")).await;
        server.await.unwrap();
        said
    }

    #[tokio::test]
    async fn a_secret_and_every_refusal_arrive_in_any_number_of_frames() {
        let value = |version, value: &[u8]| Said::Value { version, value: SecretValue::new(value.to_vec()) };
        assert_eq!(answered(b"\0\x05\0\x07\x02hi").await, Ok(value(7, b"hi")));
        assert_eq!(answered(b"\0\x02\0\x80\0\x02\x01\x02\0\x01h\0\x01i").await, Ok(value(128, b"hi")));
        assert_eq!(answered(b"\0\x02\x01\0").await, Ok(Said::NotFound));
        assert_eq!(answered(b"\0\x05\x01\x01\x02no").await, Ok(Said::Denied("no".to_owned())));
        assert_eq!(answered(b"\0\x05\x01\x02\x02ww").await, Ok(Said::Unavailable("ww".to_owned())));
        for garbage in [
            &b"\x01\0\x01\0"[..],
            b"\0\x02\x02\0",
            b"\0\x02\x01\x09",
            b"\0\x05\x01\x01\x02\xff\xff",
            b"\0\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
        ] {
            assert_eq!(answered(garbage).await, Err(Ended::Garbage), "{garbage:?}");
        }
        for short in [&b""[..], b"\0", b"\0\x05\0\x07\x02h"] {
            assert_eq!(answered(short).await, Err(Ended::HungUp), "{short:?}");
        }
    }
}
