//! JetStream over the client: its API calls, and publishing with an acknowledgement.

use bytes::Bytes;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::client::Client;
use super::error::NatsError;
use super::headers::Headers;
use super::message::Outgoing;
use super::{Message, TIMEOUT};

/// A stream is not there.
pub const NO_STREAM: u32 = 10059;
/// A stream of the name is there with another configuration, or its subjects are taken: both are said to whoever comes
/// second when two make the same one at once.
pub const STREAM_IN_USE: [u32; 2] = [10058, 10065];
/// The last sequence is not the expected one: where nothing is under way, and where another batch is.
pub const WRONG_SEQUENCE: [u32; 2] = [10071, 10164];
/// JetStream is not enabled: for the server, for the account.
const NOT_ENABLED: [u32; 2] = [10076, 10039];

/// Why JetStream did not do it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum JetStreamError {
    /// It refused.
    #[error("JetStream refuses: {description} ({err_code})")]
    Refused {
        /// Its own code, see the constants.
        err_code: u32,
        /// Its words.
        description: String,
    },
    /// What answered is not JetStream.
    #[error("what answers is not JetStream: {0}")]
    Garbage(String),
    /// There is no JetStream.
    #[error("the NATS server has no JetStream for this account; enable it (`jetstream {{}}` in its configuration)")]
    NotEnabled,
    /// The call did not get through.
    #[error(transparent)]
    Nats(#[from] NatsError),
}

/// A message was stored.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct PubAck {
    /// In which stream.
    pub stream: String,
    /// As which.
    pub seq: u64,
    /// It was there already, by its `Nats-Msg-Id`.
    #[serde(default)]
    pub duplicate: bool,
}

#[derive(Deserialize)]
struct Refusal {
    #[serde(default)]
    err_code: u32,
    #[serde(default)]
    description: String,
}

#[derive(Deserialize)]
struct MaybeRefused {
    error: Option<Refusal>,
}

/// JetStream of one account, or of one domain of it.
#[derive(Clone)]
pub struct JetStream {
    /// The connection.
    pub client: Client,
    prefix: String,
    domain: bool,
}

impl JetStream {
    /// JetStream as `client` sees it; that of `domain` where one is named.
    ///
    /// # Errors
    /// [`NatsError::Invalid`] where `domain` is no name of one.
    pub fn new(client: Client, domain: Option<&str>) -> Result<Self, NatsError> {
        let prefix = match domain {
            None => "$JS.API".to_owned(),
            Some(name) if !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b)) => {
                format!("$JS.{name}.API")
            }
            Some(_) => {
                let why = "the JetStream domain is not letters, digits, `-` and `_`";
                return Err(NatsError::Invalid(why.to_owned()));
            }
        };
        Ok(Self { client, prefix, domain: domain.is_some() })
    }

    /// The subject of an API call.
    pub fn subject(&self, call: &str) -> String {
        format!("{}.{call}", self.prefix)
    }

    /// Where to publish what a stream of the domain listens to.
    pub fn inside(&self, subject: &str) -> String {
        if self.domain { self.subject(subject) } else { subject.to_owned() }
    }

    /// Whether JetStream is there.
    ///
    /// # Errors
    /// [`JetStreamError`]
    pub async fn check(&self) -> Result<(), JetStreamError> {
        self.call::<serde_json::Value>("INFO", &()).await.map(drop)
    }

    /// One API call: `call` is the subject after the prefix, `body` its JSON.
    ///
    /// # Errors
    /// [`JetStreamError`]
    pub async fn call<T: DeserializeOwned>(&self, call: &str, body: &impl Serialize) -> Result<T, JetStreamError> {
        let json = serde_json::to_vec(body).map_err(|cause| NatsError::Invalid(cause.to_string()))?;
        let json = if json == b"null" { Vec::new() } else { json };
        let answer = self.client.request(Outgoing::new(self.subject(call), json), TIMEOUT).await;
        match answer {
            Ok(answer) => read(&answer),
            Err(NatsError::NoResponders(_)) => Err(JetStreamError::NotEnabled),
            Err(cause) => Err(cause.into()),
        }
    }

    /// Publishes and waits until the stream has it. [`NatsError::NoResponders`] where no stream listens.
    ///
    /// # Errors
    /// [`JetStreamError`]
    pub async fn publish(&self, subject: &str, headers: Headers, payload: Bytes) -> Result<PubAck, JetStreamError> {
        let message = Outgoing { subject: self.inside(subject), reply: None, headers, payload };
        read(&self.client.request(message, TIMEOUT).await?)
    }
}

fn read<T: DeserializeOwned>(answer: &Message) -> Result<T, JetStreamError> {
    let garbage = |cause: serde_json::Error| JetStreamError::Garbage(cause.to_string());
    if let MaybeRefused { error: Some(Refusal { err_code, description }) } =
        serde_json::from_slice(&answer.payload).map_err(garbage)?
    {
        return Err(match NOT_ENABLED.contains(&err_code) {
            true => JetStreamError::NotEnabled,
            false => JetStreamError::Refused { err_code, description },
        });
    }
    serde_json::from_slice(&answer.payload).map_err(garbage)
}
