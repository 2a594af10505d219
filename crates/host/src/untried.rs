//! Messages of a broker that keeps none, which a host held and could not have handled: the revision they wait for is on another
//! host, or this one ends. The node keeps them until a host of the revision that serves takes them from there.
//!
//! They are delivered as their broker delivers: at most once. One that was in the hands of a host that ended is not handed
//! out again, and what fails is put away where its broker would have put it. Where the link goes to another provider by now
//! they are handled for it just so, and what fails is put away there.

use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use model::messaging::Subscription;
use model::trace::TraceContext;
use providers::messaging::{Answer, Backend, BackendError, Deliveries, Delivers, Delivery, Message, Outcome, Settle};

use crate::broker::NodeBroker;

/// What the node keeps of the messages of one link.
pub(crate) struct Untried {
    node: NodeBroker,
    own: Arc<dyn Backend>,
}

impl Untried {
    /// What is kept for a link to `own`; `None` where that keeps its messages itself.
    pub(crate) fn of(own: &Arc<dyn Backend>, node: impl FnOnce() -> NodeBroker) -> Option<Arc<Self>> {
        (own.delivers() == Delivers::AtMostOnce).then(|| Arc::new(Self { node: node(), own: own.clone() }))
    }

    /// What was kept for a link to another broker, which goes to `own` now.
    pub(crate) fn left(own: &Arc<dyn Backend>, node: NodeBroker) -> Arc<dyn Backend> {
        Arc::new(Self { node, own: own.clone() })
    }

    /// Leaves a message of the link there.
    ///
    /// # Errors
    /// Why it is lost.
    pub(crate) async fn leave(
        &self,
        subscription: &Subscription,
        message: Message,
        trace: Option<TraceContext>,
    ) -> Result<(), BackendError> {
        match self.node.leave(&subscription.group, message, trace).await? {
            true => Ok(()),
            false => Err(BackendError::Unavailable("no revision takes such messages any more".to_owned())),
        }
    }
}

impl Backend for Untried {
    fn delivers(&self) -> Delivers {
        Delivers::AtMostOnce
    }

    fn publish(&self, message: Message) -> Answer<'_, ()> {
        self.own.publish(message)
    }

    fn request(&self, subject: String, body: Vec<u8>, timeout: Duration) -> Answer<'_, Message> {
        self.own.request(subject, body, timeout)
    }

    fn subscribe(&self, subscription: Arc<Subscription>) -> Answer<'_, Box<dyn Deliveries>> {
        let subscription = Subscription { group: subscription.group.untried(), ..Subscription::clone(&subscription) };
        async move {
            let kept = self.node.subscribe(Arc::new(subscription)).await?;
            Ok(Box::new(Arriving { kept, own: self.own.clone() }) as Box<dyn Deliveries>)
        }
        .boxed()
    }
}

struct Arriving {
    kept: Box<dyn Deliveries>,
    own: Arc<dyn Backend>,
}

impl Deliveries for Arriving {
    fn next(&mut self) -> BoxFuture<'_, Option<Result<Delivery, BackendError>>> {
        async move {
            loop {
                let delivery = match self.kept.next().await? {
                    Ok(delivery) => delivery,
                    Err(cause) => return Some(Err(cause)),
                };
                let Delivery { id, tries, message, trace, settle } = delivery;
                if tries > 1 {
                    let subject = message.subject;
                    tracing::warn!(id, subject, "a host ended with a message in its hands that comes once; it is lost");
                    tokio::spawn(settle.settle(Outcome::Done));
                    continue;
                }
                let settle = Settled { settle, own: self.own.clone(), message: message.clone() };
                return Some(Ok(Delivery { id, tries, message, trace, settle: Box::new(settle) }));
            }
        }
        .boxed()
    }

    fn stop(&mut self) {
        self.kept.stop();
    }
}

struct Settled {
    settle: Box<dyn Settle>,
    own: Arc<dyn Backend>,
    message: Message,
}

impl Settle for Settled {
    fn settle(self: Box<Self>, outcome: Outcome) -> BoxFuture<'static, Result<(), BackendError>> {
        async move {
            let Self { settle, own, message } = *self;
            let put_away = match outcome {
                // Not tried: it may be another host's.
                Outcome::GivenBack => return settle.settle(Outcome::GivenBack).await,
                Outcome::PutAway { to: Some(subject), .. } => own.publish(Message { subject, ..message }).await,
                Outcome::Done | Outcome::PutAway { to: None, .. } | Outcome::Again(_) => Ok(()),
            };
            settle.settle(Outcome::Done).await?;
            put_away
        }
        .boxed()
    }
}
