//! What can go wrong with Vault, each in its own words: what happened, and what to do.

use serde::Deserialize;

use crate::http_json::{HttpError, Told};
use crate::meter::{ErrorKind, Kind};

/// Of what Vault says itself, this many characters are repeated.
const MAX_WORDS: usize = 200;

/// Why Vault did not do what was asked. Never holds a token, a credential or a value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum VaultError {
    /// It is there and keeps its data locked.
    #[error(
        "Vault at {0} is sealed: unseal it with `vault operator unseal`; nothing can be read or written until then"
    )]
    Sealed(String),
    /// Nobody answers.
    #[error("Vault at {place} cannot be reached: {cause}")]
    Unreachable {
        /// Scheme, host and port.
        place: String,
        /// Why.
        cause: String,
    },
    /// The node does not let us connect there.
    #[error("{0}")]
    NotGranted(String),
    /// No answer in time. Whether a write happened is not known.
    #[error("Vault at {place} did not answer within {ms} ms")]
    Slow {
        /// Scheme, host and port.
        place: String,
        /// The limit, milliseconds.
        ms: u64,
    },
    /// The token is no token any more.
    #[error(
        "Vault does not accept the token: it is expired or revoked, or may not look itself up (`auth/token/lookup-self`, part of the policy `default`); set the secret anew"
    )]
    Expired,
    /// What we log in with is refused.
    #[error("Vault refuses the login by {method}: {said}; set the secret anew, or correct the role in Vault")]
    LoginRefused {
        /// `approle` or `jwt`.
        method: &'static str,
        /// Vault's words.
        said: String,
    },
    /// The login ended in its own time, and a new one is refused: nothing was taken from us.
    #[error("{0}")]
    RanOut(Box<Self>),
    /// What we log in with cannot be had.
    #[error("{cause}")]
    NoCredential {
        /// Why.
        cause: String,
        /// Whether asking again may help.
        passing: bool,
    },
    /// The token is good, and its policies do not allow this.
    #[error("the token's policies in Vault do not allow this: {0}")]
    Denied(String),
    /// There is no such mount.
    #[error("Vault has nothing mounted there: {0}; check `mount` and `namespace`")]
    NoMount(String),
    /// Another engine is mounted there than the settings say.
    #[error("what Vault has mounted at `{mount}` is `{is}`; set `engine = \"{set}\"`, or correct `mount`")]
    OtherEngine {
        /// Where.
        mount: String,
        /// What is there.
        is: String,
        /// What the setting would have to be.
        set: &'static str,
    },
    /// The version is not the one that was expected. Nothing was written.
    #[error("the key was written by another in between")]
    Conflict,
    /// A mount or a key with `cas_required` takes no write that does not say which version it replaces. Nothing was written.
    #[error("Vault takes no write here that does not say which version it replaces (`cas_required`)")]
    VersionNeeded,
    /// What was sent or would be answered is too large.
    #[error("too large for Vault: {0}")]
    TooLarge(String),
    /// A limit on requests is reached.
    #[error("Vault answers no more requests for now: a rate limit or lease quota is reached")]
    Busy,
    /// A standby that does not pass requests on.
    #[error(
        "Vault at {0} is a standby and sends us elsewhere: let `url` name the active one or what balances over all"
    )]
    Standby(String),
    /// What answers is not Vault.
    #[error("what answers at {place} is not Vault: {cause}")]
    Garbage {
        /// Scheme, host and port.
        place: String,
        /// Why.
        cause: String,
    },
    /// Anything else.
    #[error("Vault answered with status {status}: {said}")]
    Other {
        /// The status.
        status: u16,
        /// Vault's words.
        said: String,
    },
}

impl Kind for VaultError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::RanOut(cause) => cause.kind(),
            Self::Slow { .. } => ErrorKind::TimedOut,
            Self::NotGranted(_)
            | Self::Expired
            | Self::LoginRefused { .. }
            | Self::Denied(_)
            | Self::NoCredential { passing: false, .. } => ErrorKind::Denied,
            Self::TooLarge(_) | Self::Conflict | Self::VersionNeeded | Self::OtherEngine { .. } => ErrorKind::Refused,
            Self::Sealed(_)
            | Self::Unreachable { .. }
            | Self::NoCredential { passing: true, .. }
            | Self::NoMount(_)
            | Self::Busy
            | Self::Standby(_)
            | Self::Garbage { .. }
            | Self::Other { .. } => ErrorKind::Unavailable,
        }
    }
}

impl VaultError {
    /// Whether Vault cannot be asked now, so that what it said before still holds.
    pub fn is_away(&self) -> bool {
        match self {
            Self::Sealed(_)
            | Self::Unreachable { .. }
            | Self::Slow { .. }
            | Self::Busy
            | Self::Standby(_)
            | Self::Garbage { .. }
            | Self::NoCredential { passing: true, .. } => true,
            Self::Other { status, .. } => *status >= 500,
            _ => false,
        }
    }
}

/// How Vault says what is wrong; RustyVault says it with one word less.
#[derive(Deserialize)]
struct Said {
    #[serde(default)]
    errors: Option<Vec<String>>,
    #[serde(default)]
    error: Option<String>,
}

/// Vault's own words, short and on one line; nothing where they repeat one of `hidden`.
pub(super) fn said(told: &Told, hidden: &[&str]) -> String {
    let said = told.json::<Said>().ok();
    let words = said.and_then(|said| said.errors.map(|all| all.join("; ")).or(said.error)).unwrap_or_default();
    if hidden.iter().any(|hidden| !hidden.is_empty() && words.contains(hidden)) {
        return "(its words are withheld: they repeat a secret)".to_owned();
    }
    let words: Vec<&str> = words.split_whitespace().collect();
    let line: String = words.join(" ").chars().filter(|c| !c.is_control()).take(MAX_WORDS).collect();
    if line.is_empty() { "nothing more".to_owned() } else { line }
}

/// The error of a request that got no answer.
pub(super) fn unanswered(place: &str, cause: HttpError) -> VaultError {
    let place = place.to_owned();
    match cause {
        HttpError::Unreachable(cause) => VaultError::Unreachable { place, cause },
        HttpError::Denied(why) => VaultError::NotGranted(why),
        HttpError::TimedOut { ms } => VaultError::Slow { place, ms },
        HttpError::TooLarge { limit } => VaultError::TooLarge(format!("its answer has more than {limit} bytes")),
        HttpError::Garbage(cause) | HttpError::Request(cause) => VaultError::Garbage { place, cause },
    }
}

/// The error that an answer is, if it is one. 403 is none yet: it has two meanings.
pub(super) fn fault(place: &str, told: &Told, hidden: &[&str]) -> Option<VaultError> {
    let status = told.status.as_u16();
    let said = || said(told, hidden);
    Some(match status {
        200 | 204 | 403 => return None,
        // Without words it is a path that holds nothing.
        404 => match said() {
            words if words.contains("no handler for route") || words.contains("Router mount not found") => {
                VaultError::NoMount(words)
            }
            _ => return None,
        },
        307 | 308 => VaultError::Standby(place.to_owned()),
        400 => match said() {
            words if words.contains("check-and-set parameter did not match") => VaultError::Conflict,
            words if words.contains("check-and-set parameter required") => VaultError::VersionNeeded,
            words => VaultError::Other { status, said: words },
        },
        413 => VaultError::TooLarge(format!("it does not take this much at once ({})", said())),
        429 => VaultError::Busy,
        500 | 503 => match said() {
            words if words.contains("is sealed") => VaultError::Sealed(place.to_owned()),
            words if words.contains("too large") => VaultError::TooLarge(words),
            words => VaultError::Other { status, said: words },
        },
        _ => VaultError::Other { status, said: said() },
    })
}

#[cfg(test)]
mod tests {
    use http::StatusCode;

    use super::*;

    fn told(status: u16, body: &str) -> Told {
        let body = zeroize::Zeroizing::new(body.as_bytes().to_vec());
        Told { status: StatusCode::from_u16(status).unwrap(), headers: http::HeaderMap::new(), body }
    }

    #[test]
    fn answers_are_told_apart() {
        let fault = |status, body| fault("http://v:8200", &told(status, body), &[]);
        assert_eq!(fault(200, ""), None);
        assert_eq!(fault(404, r#"{"errors":[]}"#), None);
        assert_eq!(fault(404, ""), None);
        assert!(matches!(fault(404, r#"{"errors":["no handler for route \"x\""]}"#), Some(VaultError::NoMount(_))));
        assert!(matches!(fault(503, r#"{"errors":["Vault is sealed"]}"#), Some(VaultError::Sealed(_))));
        assert!(matches!(fault(503, r#"{"error":"RustyVault is sealed."}"#), Some(VaultError::Sealed(_))));
        assert!(matches!(fault(503, "<html>maintenance"), Some(VaultError::Other { status: 503, .. })));
        assert_eq!(
            fault(400, r#"{"errors":["check-and-set parameter did not match the current version"]}"#),
            Some(VaultError::Conflict)
        );
        let needed = r#"{"errors":["check-and-set parameter required for this call"]}"#;
        assert_eq!(fault(400, needed), Some(VaultError::VersionNeeded));
        assert!(matches!(fault(307, ""), Some(VaultError::Standby(_))));
        assert_eq!(fault(429, ""), Some(VaultError::Busy));
    }

    #[test]
    fn vaults_words_are_short_and_repeat_no_secret() {
        let body = |words: &str| serde_json::json!({ "errors": [words] }).to_string();
        assert_eq!(
            said(&told(403, &body("1 error occurred:\n\t* permission denied\n\n")), &[]),
            "1 error occurred: * permission denied"
        );
        assert_eq!(said(&told(500, &body(&"long ".repeat(1000))), &[]).len(), MAX_WORDS);
        assert!(!said(&told(500, &body("bad token hvs.hunter2")), &["", "hvs.hunter2"]).contains("hunter2"));
    }
}
