//! A reader of a stream that the server keeps for whoever asks, and that ends by itself: what it is made with, asked and ended.

use serde::{Deserialize, Serialize};

use super::jetstream::{JetStream, JetStreamError};
use super::{NatsError, Outgoing};

/// How long the server keeps a reader that was given up, nanoseconds.
const IDLE_NS: u64 = 30_000_000_000;

#[derive(Serialize)]
struct Create<'a> {
    stream_name: &'a str,
    config: Config<'a>,
}

#[derive(Serialize)]
struct Config<'a> {
    deliver_policy: &'a str,
    opt_start_seq: u64,
    ack_policy: &'a str,
    replay_policy: &'a str,
    filter_subject: &'a str,
    headers_only: bool,
    mem_storage: bool,
    inactive_threshold: u64,
}

#[derive(Deserialize)]
struct Created {
    name: String,
    #[serde(default)]
    num_pending: u64,
}

#[derive(Serialize)]
struct Next {
    batch: usize,
    no_wait: bool,
}

/// One that was made.
pub(crate) struct Reader {
    /// Its stream and its name, as they end the subjects of what is asked of it.
    name: String,
    /// Messages it had for us when it was made.
    pub(crate) pending: u64,
}

impl Reader {
    /// Of the messages of a stream from `start` on, of subjects that `filter` means; their bodies stay away with
    /// `headers_only`.
    pub(crate) async fn open(
        js: &JetStream,
        stream: &str,
        filter: &str,
        start: u64,
        headers_only: bool,
    ) -> Result<Self, JetStreamError> {
        let config = Config {
            deliver_policy: "by_start_sequence",
            opt_start_seq: start.max(1),
            ack_policy: "none",
            replay_policy: "instant",
            filter_subject: filter,
            headers_only,
            mem_storage: true,
            inactive_threshold: IDLE_NS,
        };
        let create = Create { stream_name: stream, config };
        let made: Created = js.call(&format!("CONSUMER.CREATE.{stream}"), &create).await?;
        Ok(Self { name: format!("{stream}.{}", made.name), pending: made.num_pending })
    }

    /// What asks it for so many messages, to be sent to `inbox`.
    pub(crate) fn ask(&self, js: &JetStream, batch: usize, inbox: &str) -> Result<Outgoing, NatsError> {
        let ask = serde_json::to_vec(&Next { batch, no_wait: true });
        let ask = ask.map_err(|cause| NatsError::Invalid(cause.to_string()))?;
        let subject = js.subject(&format!("CONSUMER.MSG.NEXT.{}", self.name));
        Ok(Outgoing { reply: Some(inbox.to_owned()), ..Outgoing::new(subject, ask) })
    }

    /// What ends it. Where that does not arrive the server ends it by itself.
    pub(crate) fn end(&self, js: &JetStream) -> Outgoing {
        Outgoing::new(js.subject(&format!("CONSUMER.DELETE.{}", self.name)), "")
    }
}
