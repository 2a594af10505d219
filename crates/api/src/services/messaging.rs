//! Messages between a host and the broker that its node keeps for the tenant: sent, asked for, taken and settled. The
//! node says who takes what from the revisions it runs; a host only names the group it takes for.

use model::trace::TraceContext;
use serde::{Deserialize, Serialize};

/// The longest a host waits for messages of a link in one call; the node answers earlier, with none.
pub const POLL: std::time::Duration = std::time::Duration::from_secs(20);
/// The most deliveries one call asks for.
pub const MAX_TAKE: u32 = 64;
/// Messages one call puts into a queue at most: as many as that holds.
pub const MAX_TOLD: usize = 10_000;

/// Which of the node's brokers: they share nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum BrokerKind {
    /// In memory.
    Local,
    /// On disk before acknowledged.
    Durable,
}

/// A message on the wire.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WireMessage {
    /// What it is about.
    pub subject: String,
    /// What it says.
    pub body: Vec<u8>,
    /// Where an answer goes.
    pub reply_to: Option<String>,
    /// Where it was sent from, in a trace. Stays the last field: messages that were kept before it was there end before it.
    pub trace: Option<TraceContext>,
}

/// What became of a delivery.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Settled {
    /// Handled.
    Done,
    /// To be delivered again after so many milliseconds.
    Again { after_ms: u64 },
    /// Tried often enough: send it to this subject, if there is one, and never deliver it again.
    PutAway { subject: Option<String> },
    /// Not tried.
    GivenBack,
}

/// What a host asks of a broker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum MessagingRequest {
    /// Sends a message.
    Publish { broker: BrokerKind, message: WireMessage },
    /// Sends a message and waits for the first answer.
    Ask { broker: BrokerKind, message: WireMessage, timeout_ms: u64 },
    /// Waits for messages of a queue group of the app, at most [`POLL`], and takes at most `max` of them.
    Take { broker: BrokerKind, group: String, max: u32 },
    /// Puts messages into a queue group of the app by its name, whatever its subjects.
    Tell {
        broker: BrokerKind,
        group: String,
        #[serde(deserialize_with = "model::listed::at_most::<_, _, MAX_TOLD>")]
        messages: Vec<WireMessage>,
    },
    /// What became of a delivery of the app.
    Settle { broker: BrokerKind, group: String, delivery: u64, outcome: Settled },
    /// Leaves a message of a broker that keeps none with the node, in memory: this host could not have it handled, and
    /// another one may. It is taken from the group's [`model::messaging::Group::untried`].
    Leave { group: String, message: WireMessage },
}

/// One message given to a host, which settles it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Handed {
    /// Names this delivery, to settle it.
    pub delivery: u64,
    /// Names the message: the same at every try.
    pub id: String,
    /// Which try this is, from 1.
    pub tries: u32,
    /// The message.
    pub message: WireMessage,
}

/// What a broker answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum MessagingAnswer {
    /// Publish, Tell, Settle, Leave.
    Done,
    /// Ask: the answer.
    Answered(WireMessage),
    /// Ask: nobody takes messages of the subject.
    NoResponder,
    /// Ask: nobody answered in time.
    NotAnswered,
    /// Take; none where none came in time.
    Taken(Vec<Handed>),
    /// Take: the group takes nothing here, and nothing is left for it. Leave: nobody would take it.
    NotSubscribed,
}
