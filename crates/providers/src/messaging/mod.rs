//! `wasmcloud:messaging` 0.2.0: the [`Backend`] every message broker implements, and the [`MessagingLink`] by which a
//! component sends. What a component takes, it takes by a [`Subscription`] of its link: whoever runs the component
//! follows the [`Deliveries`] and tells what became of each.
//!
//! The limits here hold for every backend, so an app that works on one works on the others.

mod adapter;
mod component;
pub mod conformance;
pub mod external;
pub mod jetstream;
pub mod nats;
pub mod outcome;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

pub use adapter::{HandleError, Messaging, handle};
pub use component::ComponentSender;
use futures::future::BoxFuture;
use futures::stream::{self, BoxStream};
use model::Label;
use model::messaging::{MAX_BODY, Subscription, check_subject};
use model::trace::TraceContext;
pub use outcome::Outcome;

use crate::meter::{ErrorKind, Kind, LinkMeter};

/// The longest a request waits for its answer; a guest that asks for more gets this.
pub const MAX_REQUEST: Duration = Duration::from_secs(60);

/// A message, as the contract has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// What it is about.
    pub subject: String,
    /// What it says.
    pub body: Vec<u8>,
    /// Where an answer goes, if one is wanted.
    pub reply_to: Option<String>,
}

/// Why a backend refused or failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BackendError {
    /// A subject that is none, a body above its limit.
    #[error("{0}")]
    Refused(String),
    /// The backend refuses this app: credentials, policy.
    #[error("the message broker denies access: {0}")]
    Denied(String),
    /// Nobody takes messages of this subject, so nobody will answer.
    #[error("nobody answers requests to `{0}`")]
    NoResponder(String),
    /// The backend cannot be reached or cannot do it now. Whether a message was sent is not known.
    #[error("the message broker is not available: {0}")]
    Unavailable(String),
    /// No answer in time. Whether a message was sent is not known.
    #[error("no answer within {ms} ms")]
    TimedOut {
        /// The limit, milliseconds.
        ms: u64,
    },
}

impl Kind for BackendError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Refused(_) | Self::NoResponder(_) => ErrorKind::Refused,
            Self::Denied(_) => ErrorKind::Denied,
            Self::Unavailable(_) => ErrorKind::Unavailable,
            Self::TimedOut { .. } => ErrorKind::TimedOut,
        }
    }
}

/// What hosts of the platform say to each other on a server that they share with components.
const OURS: &str = "_INBOX.sidereal.";

/// Refuses a subject that no component sends to.
fn not_ours(subject: &str) -> Result<(), BackendError> {
    match subject.starts_with(OURS) {
        true => Err(BackendError::Refused(format!("subjects below `{OURS}` are the platform's own"))),
        false => Ok(()),
    }
}

/// How a backend delivers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Delivers {
    /// What failed does not come again.
    AtMostOnce,
    /// What was not acknowledged comes again.
    AtLeastOnce,
}

/// An answer that may take a while.
pub type Answer<'a, T> = BoxFuture<'a, Result<T, BackendError>>;

/// One message broker, narrowed to one provider of one app of one tenant.
pub trait Backend: Send + Sync + 'static {
    /// How it delivers.
    fn delivers(&self) -> Delivers {
        Delivers::AtLeastOnce
    }
    /// Sends a message. When it is answered, the message is as safe as the backend promises.
    fn publish(&self, message: Message) -> Answer<'_, ()>;
    /// Sends a message and waits for the first answer.
    fn request(&self, subject: String, body: Vec<u8>, timeout: Duration) -> Answer<'_, Message>;
    /// Takes the messages of a link, each one together with the other members of its group. Answered when no message
    /// sent from then on is missed.
    fn subscribe(&self, subscription: Arc<Subscription>) -> Answer<'_, Box<dyn Deliveries>>;
}

/// Messages as they come.
pub trait Deliveries: Send {
    /// The next one; `None` after [`Deliveries::stop`], when those that were taken before have been given out. Cancel
    /// safe. An error means that the subscription is lost and is to be made anew.
    fn next(&mut self) -> BoxFuture<'_, Option<Result<Delivery, BackendError>>>;
    /// So many may be handled at once from now on, the next one among them: a backend whose messages do not wait for ever
    /// once they are handed out fetches no more.
    fn room(&mut self, _free: usize) {}
    /// Takes no more messages from now on.
    fn stop(&mut self);
    /// Why no messages come for now, each time that changes: of a subscription that lives on while its server is away.
    fn troubles(&self) -> BoxStream<'static, Option<BackendError>> {
        Box::pin(stream::pending())
    }
}

/// One message on its way to a handler. Dropped without a word it comes again, to somebody, as soon as the backend
/// notices.
pub struct Delivery {
    /// The same at every try, and of no other message of the backend.
    pub id: String,
    /// Which try this is, from 1.
    pub tries: u32,
    /// The message.
    pub message: Message,
    /// Where it was sent from, in a trace, where its sender said so.
    pub trace: Option<TraceContext>,
    /// Takes what became of it.
    pub settle: Box<dyn Settle>,
}

/// Tells the backend what became of a delivery.
pub trait Settle: Send {
    /// Once; answered when the backend has it.
    fn settle(self: Box<Self>, outcome: Outcome) -> BoxFuture<'static, Result<(), BackendError>>;
}

/// How one component of one revision sends: a binding, immutable. Another link is another revision.
#[derive(Clone)]
pub struct MessagingLink {
    backend: Arc<dyn Backend>,
    meter: Arc<LinkMeter>,
}

impl MessagingLink {
    /// Sends by `backend`.
    pub fn new(backend: Arc<dyn Backend>, meter: Arc<LinkMeter>) -> Self {
        Self { backend, meter }
    }

    /// Sends a message that is within the limits.
    ///
    /// # Errors
    /// What the limits or the backend say.
    pub async fn publish(&self, message: Message) -> Result<(), BackendError> {
        self.meter
            .call("publish", async {
                check(&message.subject, &message.body)?;
                if let Some(reply_to) = &message.reply_to {
                    check(reply_to, &[])?;
                }
                self.backend.publish(message).await
            })
            .await
    }

    /// Sends a message that is within the limits, and waits for an answer, at most [`MAX_REQUEST`].
    ///
    /// # Errors
    /// What the limits or the backend say.
    pub async fn request(&self, subject: String, body: Vec<u8>, timeout: Duration) -> Result<Message, BackendError> {
        self.meter
            .call("request", async {
                check(&subject, &body)?;
                self.backend.request(subject, body, timeout.min(MAX_REQUEST)).await
            })
            .await
    }
}

/// The links one component may send by, by label: a binding, immutable.
#[derive(Clone, Default)]
pub struct MessagingLinks(BTreeMap<Label, MessagingLink>);

impl MessagingLinks {
    /// Adds the link labelled `label`.
    #[must_use]
    pub fn with(mut self, label: Label, link: MessagingLink) -> Self {
        self.0.insert(label, link);
        self
    }

    /// The link that the component chose, or the one labelled `default`.
    ///
    /// # Errors
    /// The sentence that there is none, for the component and its log.
    fn chosen(&self, label: Option<&str>) -> Result<&MessagingLink, String> {
        let label = label.unwrap_or("default");
        self.0.iter().find(|(known, _)| known.as_str() == label).map(|(_, link)| link).ok_or_else(|| {
            let known: Vec<&str> = self.0.keys().map(Label::as_str).collect();
            let linked =
                if known.is_empty() { "nothing is linked".to_owned() } else { format!("linked: {}", known.join(", ")) };
            format!(
                "no messaging link has the label `{label}`, by which a component sends that chose no other; {linked}"
            )
        })
    }
}

/// Refuses a message that no backend takes.
///
/// # Errors
/// [`BackendError::Refused`].
pub fn check(subject: &str, body: &[u8]) -> Result<(), BackendError> {
    check_subject(subject).map_err(|cause| BackendError::Refused(cause.to_string()))?;
    match body.len() {
        0..=MAX_BODY => Ok(()),
        n => {
            Err(BackendError::Refused(format!("the body of a message has at most {MAX_BODY} bytes, this one has {n}")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limits_are_inclusive() {
        assert!(check("a.b", &[]).is_ok() && check("a.*", &[]).is_err() && check("", &[]).is_err());
        assert!(check("a", &vec![0; MAX_BODY]).is_ok());
        assert!(check("a", &vec![0; MAX_BODY + 1]).is_err());
    }
}
