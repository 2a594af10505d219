//! A message that goes out and one that comes in, and which subjects there are.

use bytes::Bytes;

use super::error::NatsError;
use super::headers::Headers;

/// The longest subject, bytes. A server reads a line of 4096 bytes: subject, reply subject and numbers.
const MAX_SUBJECT: usize = 3840;

/// A message to send.
#[derive(Debug, Clone, Default)]
pub struct Outgoing {
    /// Where to.
    pub subject: String,
    /// Where an answer may go. A request sets its own.
    pub reply: Option<String>,
    /// Its headers.
    pub headers: Headers,
    /// Its payload.
    pub payload: Bytes,
}

impl Outgoing {
    /// A message with neither headers nor a reply subject.
    pub fn new(subject: impl Into<String>, payload: impl Into<Bytes>) -> Self {
        Self { subject: subject.into(), payload: payload.into(), ..Self::default() }
    }

    /// What counts against the server's `max_payload`, bytes.
    pub(super) fn size(&self) -> usize {
        self.headers.wire_len() + self.payload.len()
    }

    pub(super) fn check(&self) -> Result<(), NatsError> {
        check_subject(&self.subject, false)?;
        self.reply.as_deref().map_or(Ok(()), |reply| check_subject(reply, false))
    }
}

/// A message that arrived.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Message {
    /// Where it was sent.
    pub subject: String,
    /// Where the sender waits for an answer.
    pub reply: Option<String>,
    /// Its headers.
    pub headers: Headers,
    /// Its payload.
    pub payload: Bytes,
}

impl Message {
    /// The status where the server itself answers.
    pub fn status(&self) -> Option<u16> {
        self.headers.status().map(|(code, _)| code)
    }

    /// What it holds in memory, about, bytes.
    pub(super) fn size(&self) -> usize {
        self.subject.len() + self.headers.wire_len() + self.payload.len() + 128
    }
}

/// Refuses what is not a subject. `*` and a last `>` stand for tokens only in `patterns`.
pub(super) fn check_subject(subject: &str, patterns: bool) -> Result<(), NatsError> {
    let bad = |why: &str| {
        let shown: String = subject.chars().take(60).flat_map(char::escape_debug).collect();
        Err(NatsError::Invalid(format!("`{shown}` is not a NATS subject: {why}")))
    };
    if subject.len() > MAX_SUBJECT {
        return bad("it is longer than a server reads");
    }
    if subject.chars().any(|c| c.is_whitespace() || c.is_control()) {
        return bad("it has a space or control character");
    }
    let mut tokens = subject.split('.').peekable();
    while let Some(token) = tokens.next() {
        match token {
            "" => return bad("it has an empty part between dots"),
            "*" if patterns => {}
            ">" if patterns && tokens.peek().is_none() => {}
            "*" | ">" => return bad("a wildcard stands where none may"),
            _ => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subjects_are_checked_before_they_reach_the_wire() {
        for good in ["a", "a.b", "$JS.API.INFO", "ключ.x", "a*b", "a>"] {
            assert_eq!(check_subject(good, false), Ok(()), "{good}");
        }
        for pattern in ["*", ">", "a.*.b", "a.>"] {
            assert_eq!(check_subject(pattern, true), Ok(()), "{pattern}");
            assert!(check_subject(pattern, false).is_err(), "{pattern}");
        }
        let long = "a".repeat(MAX_SUBJECT + 1);
        for bad in ["", ".", "a.", ".a", "a..b", "a b", "a\r\nPUB b 0", "a\tb", ">.a", &long] {
            assert!(check_subject(bad, true).is_err(), "{bad}");
        }
    }
}
