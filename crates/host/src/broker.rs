//! The node's message brokers as a backend: the node owns them, this asks. Messages are fetched, a few at a time, and no more
//! than can be handled at once: from when it is handed out, a message is to be settled within the time of one call.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use api::services::client::{CallError, CallsClient};
use api::services::messaging::{BrokerKind, Handed, MessagingAnswer, MessagingRequest, Settled, WireMessage};
use api::services::{ServiceAnswer, ServiceFault, ServiceRequest};
use futures::FutureExt;
use futures::future::BoxFuture;
use model::AppName;
use model::messaging::{Group, Subscription};
use model::trace::TraceContext;
use providers::messaging::{Answer, Backend, BackendError, Deliveries, Delivery, Message, Outcome, Settle};
use runtime::trace::CallTrace;
use tokio::task::JoinHandle;

/// Messages fetched at once: the rest is for other shards.
const AT_ONCE: u32 = 8;

/// One app's way to a broker of the node.
#[derive(Clone)]
pub struct NodeBroker {
    client: Arc<CallsClient>,
    app: AppName,
    kind: BrokerKind,
}

impl NodeBroker {
    /// The broker, by way of `client`, which must wait longer for an answer than a request or a poll may take.
    pub fn new(client: Arc<CallsClient>, app: AppName, kind: BrokerKind) -> Self {
        Self { client, app, kind }
    }

    async fn call(&self, request: MessagingRequest) -> Result<MessagingAnswer, BackendError> {
        match self.client.call(&self.app, &ServiceRequest::Messaging(request)).await {
            Ok(ServiceAnswer::Messaging(answer)) => Ok(answer),
            #[allow(unreachable_patterns, reason = "other services may answer on this line")]
            Ok(other) => Err(wrong(&other)),
            Err(CallError::Fault(ServiceFault::Refused(why))) | Err(CallError::Unsendable(why)) => {
                Err(BackendError::Refused(why))
            }
            Err(CallError::TimedOut(limit)) => Err(BackendError::TimedOut { ms: limit.as_millis() as u64 }),
            Err(other) => Err(BackendError::Unavailable(other.to_string())),
        }
    }
}

impl NodeBroker {
    /// Puts which keys changed into a queue of the app.
    ///
    /// # Errors
    /// Why the queue does not have them.
    pub(crate) async fn tell(&self, group: &str, keys: Vec<String>) -> Result<(), BackendError> {
        let trace = trace();
        let told =
            |key: String| WireMessage { subject: "watch".to_owned(), body: key.into_bytes(), reply_to: None, trace };
        let messages = keys.into_iter().map(told).collect();
        match self.call(MessagingRequest::Tell { broker: self.kind, group: group.to_owned(), messages }).await? {
            MessagingAnswer::Done => Ok(()),
            other => Err(wrong(&other)),
        }
    }
}

impl NodeBroker {
    /// Leaves a message of a group with the node; `false` where nobody would take it there.
    ///
    /// # Errors
    /// Why the node does not have it.
    pub(crate) async fn leave(
        &self,
        group: &Group,
        message: Message,
        trace: Option<TraceContext>,
    ) -> Result<bool, BackendError> {
        let message = WireMessage { trace, ..wire(message) };
        match self.call(MessagingRequest::Leave { group: group.name.clone(), message }).await? {
            MessagingAnswer::Done => Ok(true),
            MessagingAnswer::NotSubscribed => Ok(false),
            other => Err(wrong(&other)),
        }
    }
}

fn wrong(answer: &impl std::fmt::Debug) -> BackendError {
    BackendError::Unavailable(format!("the node answered another question: {answer:?}"))
}

/// Where the call that sends is, in a trace.
fn trace() -> Option<TraceContext> {
    CallTrace::current().map(|trace| trace.context())
}

fn wire(message: Message) -> WireMessage {
    let Message { subject, body, reply_to } = message;
    WireMessage { subject, body, reply_to, trace: trace() }
}

fn guests(message: WireMessage) -> Message {
    let WireMessage { subject, body, reply_to, trace: _ } = message;
    Message { subject, body, reply_to }
}

impl Backend for NodeBroker {
    fn publish(&self, message: Message) -> Answer<'_, ()> {
        async move {
            let request = MessagingRequest::Publish { broker: self.kind, message: wire(message) };
            match self.call(request).await? {
                MessagingAnswer::Done => Ok(()),
                other => Err(wrong(&other)),
            }
        }
        .boxed()
    }

    fn request(&self, subject: String, body: Vec<u8>, timeout: Duration) -> Answer<'_, Message> {
        async move {
            let message = WireMessage { subject: subject.clone(), body, reply_to: None, trace: trace() };
            let timeout_ms = u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX);
            let request = MessagingRequest::Ask { broker: self.kind, message, timeout_ms };
            match self.call(request).await? {
                MessagingAnswer::Answered(message) => Ok(guests(message)),
                MessagingAnswer::NoResponder => Err(BackendError::NoResponder(subject)),
                MessagingAnswer::NotAnswered => Err(BackendError::TimedOut { ms: timeout_ms }),
                other => Err(wrong(&other)),
            }
        }
        .boxed()
    }

    fn subscribe(&self, subscription: Arc<Subscription>) -> Answer<'_, Box<dyn Deliveries>> {
        // The node knows the group from the revision: there is nothing to tell it.
        let fetched = Fetched {
            broker: self.clone(),
            group: subscription.group.name.clone(),
            most: 1,
            ready: VecDeque::new(),
            poll: None,
            stopped: false,
        };
        async move { Ok(Box::new(fetched) as Box<dyn Deliveries>) }.boxed()
    }
}

type Polled = Result<MessagingAnswer, BackendError>;

/// Messages of a group, fetched when they are asked for.
struct Fetched {
    broker: NodeBroker,
    group: String,
    most: u32,
    ready: VecDeque<Handed>,
    /// A task of its own: what the node has handed out must not be dropped with whoever waited for it.
    poll: Option<JoinHandle<Polled>>,
    stopped: bool,
}

impl Fetched {
    fn delivery(&self, handed: Handed) -> Delivery {
        let Handed { delivery, id, tries, message } = handed;
        let settle = Settler { broker: self.broker.clone(), group: self.group.clone(), delivery };
        Delivery { id, tries, trace: message.trace, message: guests(message), settle: Box::new(settle) }
    }
}

impl Deliveries for Fetched {
    fn next(&mut self) -> BoxFuture<'_, Option<Result<Delivery, BackendError>>> {
        async move {
            loop {
                if let Some(handed) = self.ready.pop_front() {
                    return Some(Ok(self.delivery(handed)));
                }
                if self.stopped {
                    return None;
                }
                let poll = self.poll.get_or_insert_with(|| {
                    let (broker, group, max) = (self.broker.clone(), self.group.clone(), self.most);
                    tokio::spawn(async move {
                        broker.call(MessagingRequest::Take { broker: broker.kind, group, max }).await
                    })
                });
                let polled = poll.await;
                self.poll = None;
                match polled {
                    Ok(Ok(MessagingAnswer::Taken(handed))) => self.ready.extend(handed),
                    Ok(Ok(MessagingAnswer::NotSubscribed)) => return None,
                    Ok(Ok(other)) => return Some(Err(wrong(&other))),
                    Ok(Err(error)) => return Some(Err(error)),
                    Err(cause) => return Some(Err(BackendError::Unavailable(cause.to_string()))),
                }
            }
        }
        .boxed()
    }

    fn room(&mut self, free: usize) {
        self.most = u32::try_from(free).unwrap_or(AT_ONCE).clamp(1, AT_ONCE);
    }

    fn stop(&mut self) {
        self.stopped = true;
        // What a poll under way still brings is given back when it comes; nobody waits for that.
        let Some(poll) = self.poll.take() else { return };
        let (broker, group) = (self.broker.clone(), self.group.clone());
        tokio::spawn(async move {
            if let Ok(Ok(MessagingAnswer::Taken(handed))) = poll.await {
                for one in handed {
                    let settler = Settler { broker: broker.clone(), group: group.clone(), delivery: one.delivery };
                    if let Err(cause) = Box::new(settler).settle(Outcome::GivenBack).await {
                        tracing::debug!(%cause, "a message cannot be given back");
                    }
                }
            }
        });
    }
}

impl Drop for Fetched {
    fn drop(&mut self) {
        self.stop();
    }
}

struct Settler {
    broker: NodeBroker,
    group: String,
    delivery: u64,
}

impl Settle for Settler {
    fn settle(self: Box<Self>, outcome: Outcome) -> BoxFuture<'static, Result<(), BackendError>> {
        async move {
            let outcome = match outcome {
                Outcome::Done => Settled::Done,
                Outcome::Again(pause) => {
                    Settled::Again { after_ms: u64::try_from(pause.as_millis()).unwrap_or(u64::MAX) }
                }
                Outcome::PutAway { to, .. } => Settled::PutAway { subject: to },
                Outcome::GivenBack => Settled::GivenBack,
            };
            let Self { broker, group, delivery } = *self;
            let request = MessagingRequest::Settle { broker: broker.kind, group, delivery, outcome };
            match broker.call(request).await? {
                MessagingAnswer::Done => Ok(()),
                other => Err(wrong(&other)),
            }
        }
        .boxed()
    }
}
