//! What comes of one request: an answer in time, or why there is none, told from what the client says. Of what the server
//! says its status and its code are repeated, and nothing else.

use std::error::Error as _;

use super::TIMEOUT;
use super::http::{Late, dial_error};
use crate::blobstore::BackendError;
use crate::breaker::Breaker;
use crate::dial::DialError;
use crate::meter::{ErrorKind, Kind as _};
use crate::secrets::SecretError;

/// Why a request has no answer.
pub(super) enum Failed {
    /// What was asked for is not there.
    Missing,
    Other(BackendError),
}

impl From<BackendError> for Failed {
    fn from(cause: BackendError) -> Self {
        Self::Other(cause)
    }
}

impl From<Failed> for BackendError {
    fn from(failed: Failed) -> Self {
        match failed {
            Failed::Missing => Self::Unavailable("the server says that it is not there".to_owned()),
            Failed::Other(cause) => cause,
        }
    }
}

pub(super) fn late() -> BackendError {
    BackendError::TimedOut { ms: TIMEOUT.as_millis() as u64 }
}

/// One operation, bounded in time, held back while the server is not there.
pub(super) async fn guarded<T>(
    breaker: &Breaker<BackendError>,
    work: impl Future<Output = object_store::Result<T>>,
) -> Result<T, Failed> {
    let pass = breaker.enter()?;
    let answer = match tokio::time::timeout(TIMEOUT, work).await {
        Ok(answer) => answer.map_err(translate),
        Err(_) => Err(late().into()),
    };
    match &answer {
        Err(Failed::Other(cause @ BackendError::Unavailable(_))) => pass.failed(cause.clone()),
        Err(Failed::Other(cause @ BackendError::TimedOut { .. })) => drop(pass.late(cause.clone())),
        _ => pass.answered(),
    }
    answer
}

pub(super) fn translate(error: object_store::Error) -> Failed {
    use object_store::Error;
    let denied = |what: &str| BackendError::Denied(format!("{what}; check the access key and what it may do"));
    let status = match &error {
        Error::NotFound { .. } => Some(404),
        Error::PermissionDenied { .. } => Some(403),
        Error::Unauthenticated { .. } => Some(401),
        Error::Precondition { .. } => Some(412),
        Error::AlreadyExists { .. } => Some(409),
        other => status(&other.to_string()),
    };
    match status {
        Some(404) => return Failed::Missing,
        Some(403) => return denied("the server refuses the request (403)").into(),
        Some(401) => return denied("the server refuses the access key (401)").into(),
        _ => {}
    }
    let mut cause = error.source();
    while let Some(at) = cause {
        if let Some(late) = at.downcast_ref::<Late>() {
            return BackendError::TimedOut { ms: late.0.as_millis() as u64 }.into();
        }
        if let Some(secret) = at.downcast_ref::<SecretError>() {
            return match secret.kind() {
                ErrorKind::Denied | ErrorKind::Refused => BackendError::Denied(secret.to_string()),
                _ => BackendError::Unavailable(secret.to_string()),
            }
            .into();
        }
        cause = at.source();
    }
    if let Some(DialError::Denied(why)) = dial_error(&error) {
        return BackendError::Denied(why.clone()).into();
    }
    let text = error.to_string();
    match code(&text).filter(|code| REFUSED.contains(code)) {
        Some(code) => denied(&format!("the server refuses the access key ({code})")).into(),
        // It is there and well: what it says of one request holds back no other.
        None if status.is_some_and(refuses) && code(&text) != Some(TOO_SLOW) => {
            BackendError::Misuse(told(&text)).into()
        }
        None => BackendError::Unavailable(told(&text)).into(),
    }
}

/// Codes of a key that is not taken, which come with the status of a bad request: those of temporary keys above all.
const REFUSED: [&str; 5] =
    ["ExpiredToken", "InvalidToken", "TokenRefreshRequired", "InvalidAccessKeyId", "SignatureDoesNotMatch"];

/// The code of a request whose bytes did not come in time, which has the status of a bad request.
const TOO_SLOW: &str = "RequestTimeout";

/// Whether a server that answers so refuses the request itself; with 408 and 429 it cannot do it now.
fn refuses(status: u16) -> bool {
    (400..500).contains(&status) && !matches!(status, 408 | 429)
}

/// Where the client's errors go on with what the server said.
const SAID: [&str; 2] = ["Server returned non-2xx status code: ", "Server returned error response: "];

/// The code in what the server said.
fn code(text: &str) -> Option<&str> {
    let said = SAID.iter().find_map(|mark| text.split_once(mark))?.1;
    let code = said.split_once("<Code>")?.1.split_once("</Code>")?.0;
    (code.len() <= 64 && code.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'.')).then_some(code)
}

/// An error of the client as far as it is repeated: of what the server said its status and its code, for the rest may
/// repeat what it was sent, as AWS does with the session token of a temporary key.
fn told(text: &str) -> String {
    let short = |text: &str| text.chars().take(400).collect::<String>();
    let [status, response] = SAID.map(|mark| text.split_once(mark));
    let code = code(text).unwrap_or("it gives no code");
    match (status, response) {
        (Some((before, said)), _) => {
            let status: String = said.split(':').next().unwrap_or_default().chars().take(40).collect();
            format!("{}the server answers {status} ({code})", short(before))
        }
        (None, Some((before, _))) => format!("{}the server answers an error ({code})", short(before)),
        (None, None) => short(text),
    }
}

/// The status in the text of an error of the client, which has a variant for it with some requests only.
fn status(text: &str) -> Option<u16> {
    text.split_once("non-2xx status code: ")?.1.split(' ').next()?.parse().ok()
}
