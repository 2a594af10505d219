//! JetStream over the client: its API calls, and publishing with an acknowledgement.

use bytes::Bytes;
use data_encoding::BASE64;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::Message;
use super::client::{Client, Says, Waiting};
use super::error::NatsError;
use super::headers::Headers;
use super::message::Outgoing;

/// A stream is not there.
pub const NO_STREAM: u32 = 10059;
/// A stream of the name is there with another configuration, or its subjects are taken: both are said to whoever comes
/// second when two make the same one at once.
pub const STREAM_IN_USE: [u32; 2] = [10058, 10065];
/// The last sequence is not the expected one: where nothing is under way, and where another batch is.
pub const WRONG_SEQUENCE: [u32; 2] = [10071, 10164];
/// JetStream is not enabled: for the server, for the account.
const NOT_ENABLED: [u32; 2] = [10076, 10039];

/// No message is found, in the answer to a read from the leader.
pub const NO_MESSAGE: u32 = 10037;
/// A consumer is not there.
pub const NO_CONSUMER: u32 = 10014;

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

/// What is known of a stream.
#[derive(Debug, Clone, Deserialize)]
pub struct StreamInfo {
    /// When it was made, RFC 3339.
    #[serde(default)]
    pub created: String,
    /// What it is to do.
    pub config: StreamConfig,
    /// What it has.
    #[serde(default)]
    pub state: StreamState,
}

/// The part of a stream's configuration that we look at.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct StreamConfig {
    /// What it listens to.
    pub subjects: Vec<String>,
    /// `limits`, `interest` or `workqueue`.
    pub retention: String,
    /// How many servers have it.
    pub num_replicas: u32,
    /// Messages may be read without asking the leader.
    pub allow_direct: bool,
    /// A new message of a subject may take the place of the former ones.
    pub allow_rollup_hdrs: bool,
    /// Messages may not be removed.
    pub deny_purge: bool,
    /// How long the id of a message is known, nanoseconds; zero where the server does not say.
    pub duplicate_window: u64,
}

/// What a stream has.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct StreamState {
    /// The sequence of its last message.
    pub last_seq: u64,
}

/// Where a message that a consumer gave stands, as its reply subject says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// How often it was given out, with this time.
    pub delivered: u32,
    /// In the stream.
    pub seq: u64,
    /// How many the consumer has after it.
    pub pending: u64,
}

impl Place {
    /// Reads `$JS.ACK.…`: nine parts, or eleven and more where the server names domain and account too.
    pub fn read(reply: &str) -> Option<Self> {
        let parts: Vec<&str> = reply.strip_prefix("$JS.ACK.")?.split('.').collect();
        let skip = if parts.len() >= 9 { 2 } else { 0 };
        let part = |at: usize| parts.get(skip + at);
        let delivered = part(2)?.parse::<u64>().ok()?;
        Some(Self {
            delivered: u32::try_from(delivered).unwrap_or(u32::MAX),
            seq: part(3)?.parse().ok()?,
            pending: part(6)?.parse().ok()?,
        })
    }
}

/// Which message of a stream.
#[derive(Debug, Clone, Copy, Serialize)]
#[serde(untagged)]
pub enum Which<'a> {
    /// The last one of a subject.
    Last(#[serde(serialize_with = "last")] &'a str),
    /// The first one of a subject from a sequence on.
    Next {
        /// Of which subject.
        #[serde(rename = "next_by_subj")]
        subject: &'a str,
        /// From where on.
        seq: u64,
    },
}

fn last<S: serde::Serializer>(subject: &str, to: S) -> Result<S::Ok, S::Error> {
    use serde::ser::SerializeMap;
    let mut map = to.serialize_map(Some(1))?;
    map.serialize_entry("last_by_subj", subject)?;
    map.end()
}

/// A message of a stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// Its sequence.
    pub seq: u64,
    /// When it was stored, RFC 3339.
    pub time: String,
    /// Its headers, without those that only say where it was found.
    pub headers: Headers,
    /// Its payload.
    pub payload: Bytes,
}

/// A message as the leader tells it.
#[derive(Deserialize)]
struct Stored {
    message: StoredMessage,
}

#[derive(Deserialize)]
struct StoredMessage {
    seq: u64,
    #[serde(default)]
    time: String,
    #[serde(default)]
    hdrs: String,
    #[serde(default)]
    data: String,
}

/// A message that was published and may not be stored yet.
pub struct Storing(Waiting);

impl Storing {
    /// Waits until a stream has it.
    ///
    /// # Errors
    /// As [`JetStream::store`].
    pub async fn stored(self) -> Result<PubAck, JetStreamError> {
        read(&self.0.in_time().await?)
    }
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
        // First the connection: where the last one ended, that is no answer of JetStream's.
        self.client.check().await?;
        self.call::<serde_json::Value>("INFO", &()).await.map(drop)
    }

    /// One API call: `call` is the subject after the prefix, `body` its JSON.
    ///
    /// # Errors
    /// [`JetStreamError`]
    pub async fn call<T: DeserializeOwned>(&self, call: &str, body: &impl Serialize) -> Result<T, JetStreamError> {
        self.told(call, body, Says::All).await
    }

    /// As [`JetStream::call`], for where a stream is: that this is answered says nothing of whether the stream will.
    ///
    /// # Errors
    /// [`JetStreamError`]
    pub async fn look<T: DeserializeOwned>(&self, call: &str, body: &impl Serialize) -> Result<T, JetStreamError> {
        self.told(call, body, Says::Nothing).await
    }

    async fn told<T: DeserializeOwned>(
        &self,
        call: &str,
        body: &impl Serialize,
        says: Says,
    ) -> Result<T, JetStreamError> {
        let json = serde_json::to_vec(body).map_err(|cause| NatsError::Invalid(cause.to_string()))?;
        let json = if json == b"null" { Vec::new() } else { json };
        let answer = self.client.served(Outgoing::new(self.subject(call), json), says).await;
        match answer {
            Ok(answer) => read(&answer),
            Err(NatsError::NoResponders(_)) => Err(JetStreamError::NotEnabled),
            Err(cause) => Err(cause.into()),
        }
    }

    /// One question whose answer is a message, its status among the headers.
    ///
    /// # Errors
    /// [`NatsError`]
    pub async fn ask(&self, message: Outgoing) -> Result<Message, NatsError> {
        self.client.served(message, Says::All).await
    }

    /// As [`JetStream::store`], and what comes of it is asked later. What is begun first is stored first.
    ///
    /// # Errors
    /// [`JetStreamError`]
    pub async fn begin(&self, subject: &str, headers: Headers, payload: Bytes) -> Result<Storing, JetStreamError> {
        let message = Outgoing { subject: subject.to_owned(), reply: None, headers, payload };
        Ok(Storing(self.client.begin(message).await?))
    }

    /// A message of a stream; asked of any server that has it where it may be `direct`, of the leader otherwise.
    ///
    /// # Errors
    /// [`JetStreamError`]; [`NatsError::NoResponders`] or [`NO_STREAM`] where there is no such stream.
    pub async fn message(&self, stream: &str, direct: bool, which: Which<'_>) -> Result<Option<Found>, JetStreamError> {
        if direct { self.direct(stream, which).await } else { self.by_leader(stream, which).await }
    }

    async fn direct(&self, stream: &str, which: Which<'_>) -> Result<Option<Found>, JetStreamError> {
        let json = serde_json::to_vec(&which).map_err(|cause| NatsError::Invalid(cause.to_string()))?;
        let ask = Outgoing::new(self.subject(&format!("DIRECT.GET.{stream}")), json);
        let answer = self.ask(ask).await?;
        match answer.headers.status() {
            None => {}
            Some((404, _)) => return Ok(None),
            Some((code, words)) => return Err(JetStreamError::Garbage(format!("{code} {words}"))),
        }
        let seq = answer.headers.get("Nats-Sequence").and_then(|seq| seq.parse().ok());
        let seq = seq.ok_or_else(|| JetStreamError::Garbage("a message without its sequence".to_owned()))?;
        let time = answer.headers.get("Nats-Time-Stamp").unwrap_or_default().to_owned();
        Ok(Some(Found { seq, time, headers: answer.headers, payload: answer.payload }))
    }

    async fn by_leader(&self, stream: &str, which: Which<'_>) -> Result<Option<Found>, JetStreamError> {
        let StoredMessage { seq, time, hdrs, data } =
            match self.call::<Stored>(&format!("STREAM.MSG.GET.{stream}"), &which).await {
                Err(JetStreamError::Refused { err_code: NO_MESSAGE, .. }) => return Ok(None),
                answer => answer?.message,
            };
        let bytes = |text: &str| {
            BASE64.decode(text.as_bytes()).map_err(|_| JetStreamError::Garbage("a text that is not Base64".to_owned()))
        };
        let headers = Headers::read(&bytes(&hdrs)?).unwrap_or_default();
        Ok(Some(Found { seq, time, headers, payload: bytes(&data)?.into() }))
    }

    /// What is known of the stream, where there is one of the name.
    ///
    /// # Errors
    /// [`JetStreamError`]
    pub async fn stream(&self, name: &str) -> Result<Option<StreamInfo>, JetStreamError> {
        there(self.call(&format!("STREAM.INFO.{name}"), &()).await)
    }

    /// The same before something is asked of it, as [`JetStream::look`].
    ///
    /// # Errors
    /// [`JetStreamError`]
    pub async fn find(&self, name: &str) -> Result<Option<StreamInfo>, JetStreamError> {
        there(self.look(&format!("STREAM.INFO.{name}"), &()).await)
    }

    /// Makes a stream; the one that is there where another was first.
    ///
    /// # Errors
    /// [`JetStreamError`]
    pub async fn make_stream(&self, name: &str, config: &impl Serialize) -> Result<StreamInfo, JetStreamError> {
        match self.call(&format!("STREAM.CREATE.{name}"), config).await {
            Err(JetStreamError::Refused { err_code, description }) if STREAM_IN_USE.contains(&err_code) => {
                let refused = JetStreamError::Refused { err_code, description };
                self.stream(name).await?.ok_or(refused)
            }
            made => made,
        }
    }

    /// Publishes to a subject that is the same in every domain, and waits until a stream has it.
    /// [`NatsError::NoResponders`] where none listens.
    ///
    /// # Errors
    /// [`JetStreamError`]
    pub async fn store(&self, subject: &str, headers: Headers, payload: Bytes) -> Result<PubAck, JetStreamError> {
        let message = Outgoing { subject: subject.to_owned(), reply: None, headers, payload };
        read(&self.ask(message).await?)
    }

    /// Publishes and waits until the stream has it. [`NatsError::NoResponders`] where no stream listens.
    ///
    /// # Errors
    /// [`JetStreamError`]
    pub async fn publish(&self, subject: &str, headers: Headers, payload: Bytes) -> Result<PubAck, JetStreamError> {
        let message = Outgoing { subject: self.inside(subject), reply: None, headers, payload };
        read(&self.ask(message).await?)
    }
}

fn there(answer: Result<StreamInfo, JetStreamError>) -> Result<Option<StreamInfo>, JetStreamError> {
    match answer {
        Ok(info) => Ok(Some(info)),
        Err(JetStreamError::Refused { err_code: NO_STREAM, .. }) => Ok(None),
        Err(cause) => Err(cause),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_of_a_place_are_read() {
        let place = Some(Place { delivered: 1, seq: 42, pending: 3 });
        assert_eq!(Place::read("$JS.ACK.S.C.1.42.7.1700000000.3"), place);
        assert_eq!(Place::read("$JS.ACK.hub.AHASH.S.C.1.42.7.1700000000.3.RAND"), place);
        for bad in ["", "$JS.ACK.S", "_INBOX.x", "$JS.ACK.S.C.1.x.7.1.3"] {
            assert_eq!(Place::read(bad), None, "{bad}");
        }
    }
}
