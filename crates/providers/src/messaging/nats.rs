//! Messages over core NATS: at most once. The server keeps nothing; a message goes to whoever listens when it is sent.
//!
//! Subjects are the server's own, so that components and programs that are not components speak to each other. Queue
//! groups are named `<tenant>.<app>.<group>`: no two apps share one by accident.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use futures::future::{BoxFuture, select_all};
use futures::stream::{self, BoxStream};
use futures::{FutureExt, StreamExt};
use model::TenantName;
use model::messaging::{MAX_BODY, Subscription};
use model::trace::TraceContext;
use runtime::trace::{CallTrace, TRACEPARENT};
use tokio::sync::watch;

use super::{Answer, Backend, BackendError, Deliveries, Delivers, Delivery, Message, Outcome, Settle, not_ours};
use crate::nats::{self, Buffer, Client, Headers, NatsError, Outgoing};

/// What waits for the handlers of one link, for each of its patterns; the server's messages beyond are lost.
const BUFFER: Buffer = Buffer { messages: 1024, bytes: 8 << 20 };

/// A NATS server as a message broker.
#[derive(Clone)]
pub struct Nats {
    client: Client,
    tenant: TenantName,
    /// Tells the messages of this client from those of another one.
    origin: Arc<str>,
    seen: Arc<AtomicU64>,
}

pub(super) fn refused(cause: NatsError) -> BackendError {
    match cause {
        NatsError::Denied(why) => BackendError::Denied(why),
        NatsError::TimedOut { ms } => BackendError::TimedOut { ms },
        NatsError::NoResponders(subject) => BackendError::NoResponder(subject),
        NatsError::TooLarge { .. } | NatsError::Invalid(_) => BackendError::Refused(cause.to_string()),
        NatsError::Unavailable(_) | NatsError::Lost(_) | NatsError::Silent { .. } => {
            BackendError::Unavailable(cause.to_string())
        }
    }
}

impl Nats {
    /// The broker behind `client`, for apps of `tenant`.
    pub fn new(client: Client, tenant: TenantName) -> Self {
        let origin = client.inbox().rsplit('.').next().unwrap_or_default().into();
        Self { client, tenant, origin, seen: Arc::default() }
    }

    /// Connects if need be and asks the server whether it is there.
    ///
    /// # Errors
    /// What a call would answer.
    pub async fn check(&self) -> Result<(), BackendError> {
        self.client.check().await.map(drop).map_err(refused)
    }
}

/// The same headers with the trace of the call that sends, as other programs on NATS put it there.
pub(super) fn traced(headers: Headers) -> Result<Headers, NatsError> {
    match CallTrace::current() {
        Some(trace) => headers.with(TRACEPARENT, &trace.context().to_string()),
        None => Ok(headers),
    }
}

/// Where the sender of a message was, in a trace.
pub(super) fn trace_of(headers: &Headers) -> Option<TraceContext> {
    headers.get(TRACEPARENT)?.parse().ok()
}

fn guests(message: nats::Message) -> Message {
    Message { subject: message.subject, body: message.payload.to_vec(), reply_to: message.reply }
}

impl Backend for Nats {
    fn delivers(&self) -> Delivers {
        Delivers::AtMostOnce
    }

    fn publish(&self, message: Message) -> Answer<'_, ()> {
        async move {
            not_ours(&message.subject)?;
            let mut outgoing = Outgoing::new(message.subject, message.body);
            outgoing.reply = message.reply_to;
            outgoing.headers = traced(Headers::new()).map_err(refused)?;
            self.client.publish(outgoing).await.map_err(refused)
        }
        .boxed()
    }

    fn request(&self, subject: String, body: Vec<u8>, timeout: Duration) -> Answer<'_, Message> {
        async move {
            not_ours(&subject)?;
            let mut outgoing = Outgoing::new(subject, body);
            outgoing.headers = traced(Headers::new()).map_err(refused)?;
            self.client.request(outgoing, timeout).await.map(guests).map_err(refused)
        }
        .boxed()
    }

    fn subscribe(&self, subscription: Arc<Subscription>) -> Answer<'_, Box<dyn Deliveries>> {
        async move {
            let group = &subscription.group;
            let queue = format!("{}.{}.{}", self.tenant, group.app, group.name);
            let mut open = Vec::with_capacity(subscription.patterns.len());
            for pattern in &subscription.patterns {
                let one = self.client.subscribe(pattern.as_str(), Some(&queue), BUFFER).await;
                open.push(one.map_err(refused)?);
            }
            Ok(Box::new(Arriving { nats: self.clone(), open, stopped: false, lost: 0 }) as Box<dyn Deliveries>)
        }
        .boxed()
    }
}

/// Messages of every pattern of a link.
struct Arriving {
    nats: Nats,
    open: Vec<nats::Subscription>,
    stopped: bool,
    /// Messages that came faster than they were handled, as far as the log tells.
    lost: u64,
}

impl Arriving {
    fn tell_of_lost(&mut self) {
        let lost: u64 = self.open.iter().map(nats::Subscription::dropped).sum();
        if lost > self.lost {
            tracing::warn!(lost = lost - self.lost, "messages came faster than they were handled, and are lost");
        }
        self.lost = lost;
    }
}

impl Deliveries for Arriving {
    fn next(&mut self) -> BoxFuture<'_, Option<Result<Delivery, BackendError>>> {
        async move {
            while !self.open.is_empty() {
                self.tell_of_lost();
                // The first that has something is taken: each pattern is the first in turn.
                self.open.rotate_left(1);
                let (next, index, _) = select_all(self.open.iter_mut().map(|one| one.next().boxed())).await;
                match next {
                    Ok(message) if message.payload.len() > MAX_BODY => {
                        let (subject, bytes) = (message.subject, message.payload.len());
                        tracing::warn!(subject, bytes, "a message is larger than a component takes, and is dropped");
                    }
                    Ok(message) => {
                        let id = format!("{}-{}", self.nats.origin, self.nats.seen.fetch_add(1, Relaxed));
                        let trace = trace_of(&message.headers);
                        let message = guests(message);
                        let settle = Settled { nats: self.nats.clone(), message: message.clone() };
                        return Some(Ok(Delivery { id, tries: 1, message, trace, settle: Box::new(settle) }));
                    }
                    Err(cause) => {
                        drop(self.open.swap_remove(index));
                        if !self.stopped {
                            return Some(Err(refused(cause)));
                        }
                    }
                }
            }
            None
        }
        .boxed()
    }

    fn troubles(&self) -> BoxStream<'static, Option<BackendError>> {
        let mut trouble = self.nats.client.trouble();
        // As it is now is known to whoever subscribed.
        trouble.mark_unchanged();
        let next = |mut trouble: watch::Receiver<Option<NatsError>>| async move {
            trouble.changed().await.ok()?;
            let now = trouble.borrow_and_update().clone().map(refused);
            Some((now, trouble))
        };
        stream::unfold(trouble, next).boxed()
    }

    fn stop(&mut self) {
        self.stopped = true;
        for one in &self.open {
            one.drain();
        }
    }
}

/// The server wants to know nothing; only what is put away is sent on.
struct Settled {
    nats: Nats,
    message: Message,
}

impl Settle for Settled {
    fn settle(self: Box<Self>, outcome: Outcome) -> BoxFuture<'static, Result<(), BackendError>> {
        async move {
            match outcome {
                Outcome::PutAway { to: Some(subject), .. } => {
                    let Self { nats, message } = *self;
                    nats.publish(Message { subject, ..message }).await
                }
                Outcome::Done | Outcome::PutAway { to: None, .. } | Outcome::Again(_) | Outcome::GivenBack => Ok(()),
            }
        }
        .boxed()
    }
}
