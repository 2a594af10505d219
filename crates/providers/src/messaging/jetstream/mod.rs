//! Messages in a stream of NATS JetStream: at least once. A message is acknowledged to its sender when the stream has it,
//! and to the stream when its handler has returned ok.
//!
//! A queue group is one durable consumer, `<tenant>_<app>_<group>`, that every host of the app pulls from. The stream
//! is one that exists, or is made as the provider's settings say. A subject of the stream cannot be asked over core NATS,
//! since the stream itself would answer: a request for one is stored with a header that says where the answer goes.
//! Answers, and requests for other subjects, go over core NATS.

mod arriving;
mod given_back;
mod group;
mod keeper;
mod settle;
mod stream;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::FutureExt;
use model::TenantName;
use model::messaging::Subscription;
use model::stream::StreamSettings;

use self::arriving::Arriving;
use self::given_back::GivenBack;
use self::group::Taken;
use self::keeper::Keeper;
use self::stream::Stream;
use super::nats::{refused, traced};
use super::{Answer, Backend, BackendError, Deliveries, Message, not_ours};
use crate::nats::jetstream::{JetStream, JetStreamError, PubAck};
use crate::nats::{Buffer, Client, Headers, NatsError, Outgoing};

/// Where an answer to a message goes: JetStream keeps the subject and the headers of a message, and no reply subject.
pub const REPLY_TO: &str = "Sidereal-Reply-To";
/// What the subject of an answer begins with: the inboxes of every client of NATS.
const INBOX: &str = "_INBOX.";
/// How long a message whose acknowledgement did not come is sent again, under the id that it has.
const PATIENCE: Duration = Duration::from_secs(8);
/// How long what is known of the stream is believed where it says that a subject is none of its own.
const FRESH: Duration = Duration::from_secs(10);
/// Between two of these tries.
const PAUSE: Duration = Duration::from_millis(200);

/// A stream as a message broker.
#[derive(Clone)]
pub struct Jetstream(Arc<Inner>);

struct Inner {
    js: JetStream,
    tenant: TenantName,
    settings: StreamSettings,
    replicas: u32,
    known: Mutex<Option<(Arc<Stream>, Instant)>>,
    /// By durable consumer: up to which sequence everything is handled, as the server last said.
    floors: Mutex<HashMap<String, u64>>,
    given_back: GivenBack,
    keeper: Arc<Keeper>,
}

fn lock<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

fn failed(cause: JetStreamError) -> BackendError {
    match cause {
        JetStreamError::Nats(cause) => refused(cause),
        other => BackendError::Unavailable(other.to_string()),
    }
}

impl Jetstream {
    /// The broker behind `client`, for apps of `tenant`. A stream that is made has `replicas` copies.
    ///
    /// # Errors
    /// [`BackendError::Refused`] where `domain` is no name of a JetStream domain.
    pub fn new(
        client: Client,
        domain: Option<&str>,
        tenant: TenantName,
        settings: StreamSettings,
        replicas: u32,
    ) -> Result<Self, BackendError> {
        Ok(Self::over(JetStream::new(client, domain).map_err(refused)?, tenant, settings, replicas))
    }

    /// As [`Jetstream::new`], where somebody speaks to the server already.
    pub(crate) fn over(js: JetStream, tenant: TenantName, settings: StreamSettings, replicas: u32) -> Self {
        let (known, floors, given_back) = <(_, _, GivenBack)>::default();
        let keeper = Keeper::new(js.client.clone());
        Self(Arc::new(Inner { js, tenant, settings, replicas, known, floors, given_back, keeper }))
    }

    /// Takes what is new in the stream, one message after another over all hosts and without the bodies. Nothing of it is
    /// put away anywhere.
    pub(crate) async fn one_by_one(
        &self,
        subscription: Arc<Subscription>,
    ) -> Result<Box<dyn Deliveries>, BackendError> {
        let home = self.stream().await?;
        let group = self.group(&home, &subscription, Taken::OneByOne).await?;
        Ok(Box::new(Arriving::start(self.clone(), group, subscription).await?))
    }

    /// Connects, finds or makes the stream, and looks whether it has what the subscriptions take.
    ///
    /// # Errors
    /// What a call would answer.
    pub async fn check(&self, subscriptions: &[Subscription]) -> Result<(), BackendError> {
        self.stream().await?;
        for subscription in subscriptions {
            self.several(subscription).await?;
            self.home(subscription).await?;
        }
        Ok(())
    }

    /// The stream, looked at again where it does not take `subject` and may have been changed.
    async fn stream_for(&self, subject: &str) -> Result<Arc<Stream>, BackendError> {
        let stream = self.stream().await?;
        if !stream.takes(subject) && lock(&self.0.known).as_ref().is_some_and(|(_, at)| at.elapsed() > FRESH) {
            *lock(&self.0.known) = None;
            return self.stream().await;
        }
        Ok(stream)
    }

    fn client(&self) -> &Client {
        &self.0.js.client
    }

    /// How long a message is sent again: no longer than the stream knows its id.
    fn patience(&self) -> Duration {
        lock(&self.0.known).as_ref().map_or(PATIENCE, |(stream, _)| stream.window.min(PATIENCE))
    }

    /// Sends until the stream has it. Sent again it has the same id, so that the stream keeps it once.
    async fn store(&self, subject: &str, headers: &Headers, body: &Bytes) -> Result<PubAck, JetStreamError> {
        let (began, patience) = (Instant::now(), self.patience());
        let mut sent = false;
        loop {
            let cause = match self.0.js.store(subject, headers.clone(), body.clone()).await {
                Ok(ack) => return Ok(ack),
                Err(cause) => cause,
            };
            let again = match &cause {
                JetStreamError::Nats(NatsError::Lost(_) | NatsError::TimedOut { .. }) => true,
                // Nothing was sent: only what may have been sent before is worth the wait.
                JetStreamError::Nats(NatsError::Unavailable(_) | NatsError::Silent { .. }) => sent,
                // Nobody listens: a server that has just started, or a stream that is gone.
                JetStreamError::Nats(NatsError::NoResponders(_)) => {
                    *lock(&self.0.known) = None;
                    self.stream().await.is_ok()
                }
                _ => false,
            };
            sent = true;
            if !again || began.elapsed() + PAUSE > patience {
                return Err(cause);
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    async fn send(&self, stream: &Stream, message: Message) -> Result<(), BackendError> {
        let Message { subject, body, reply_to } = message;
        let made = || {
            let id = self.client().inbox();
            let headers = Headers::new().with("Nats-Msg-Id", id.trim_start_matches(INBOX))?;
            let headers = traced(headers.with("Nats-Expected-Stream", &stream.name)?)?;
            reply_to.iter().try_fold(headers, |headers, reply_to| headers.with(REPLY_TO, reply_to))
        };
        let headers = made().map_err(refused)?;
        self.store(&subject, &headers, &body.into()).await.map(drop).map_err(failed)
    }

    async fn ask(
        &self,
        stream: &Stream,
        subject: String,
        body: Vec<u8>,
        timeout: Duration,
    ) -> Result<Message, BackendError> {
        let inbox = self.client().inbox();
        let one = Buffer { messages: 1, bytes: 1 << 20 };
        let asked = async {
            let mut answers = self.client().subscribe(&inbox, None, one).await.map_err(refused)?;
            self.send(stream, Message { subject, body, reply_to: Some(inbox.clone()) }).await?;
            let answer = answers.next().await.map_err(refused)?;
            Ok(Message { subject: answer.subject, body: answer.payload.to_vec(), reply_to: answer.reply })
        };
        let late = BackendError::TimedOut { ms: u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX) };
        tokio::time::timeout(timeout, asked).await.unwrap_or(Err(late))
    }
}

impl Backend for Jetstream {
    fn publish(&self, message: Message) -> Answer<'_, ()> {
        async move {
            not_ours(&message.subject)?;
            let stream = self.stream_for(&message.subject).await?;
            if stream.takes(&message.subject) {
                return self.send(&stream, message).await;
            }
            if message.subject.starts_with(INBOX) {
                let mut answer = Outgoing::new(message.subject, message.body);
                answer.reply = message.reply_to;
                answer.headers = traced(Headers::new()).map_err(refused)?;
                return self.client().publish(answer).await.map_err(refused);
            }
            Err(stream.missing(&message.subject))
        }
        .boxed()
    }

    fn request(&self, subject: String, body: Vec<u8>, timeout: Duration) -> Answer<'_, Message> {
        async move {
            not_ours(&subject)?;
            let stream = self.stream_for(&subject).await?;
            if stream.takes(&subject) {
                return self.ask(&stream, subject, body, timeout).await;
            }
            let mut asked = Outgoing::new(subject, body);
            asked.headers = traced(Headers::new()).map_err(refused)?;
            let answer = self.client().request(asked, timeout).await.map_err(refused)?;
            Ok(Message { subject: answer.subject, body: answer.payload.to_vec(), reply_to: answer.reply })
        }
        .boxed()
    }

    fn subscribe(&self, subscription: Arc<Subscription>) -> Answer<'_, Box<dyn Deliveries>> {
        async move {
            let several = self.several(&subscription).await?;
            let home = self.home(&subscription).await?;
            self.dead_letters(&subscription).await?;
            let group = self.group(&home, &subscription, Taken::Messages { several }).await?;
            let arriving = Arriving::start(self.clone(), group, subscription).await?;
            Ok(Box::new(arriving) as Box<dyn Deliveries>)
        }
        .boxed()
    }
}
