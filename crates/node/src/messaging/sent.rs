//! A message that is sent: to the groups that take it, and for a question to whoever answers first.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use api::services::ServiceFault;
use api::services::messaging::{BrokerKind, MessagingAnswer, WireMessage};
use futures::future::join_all;
use model::TenantName;
use model::messaging::Group;
use store::data::Fault;

use super::broker::{Broker, INBOX};
use super::queue::Held;
use super::{Answer, MAX_OF_TENANT, Messaging, disk, lock, unavailable};

/// Takes an inbox away with whoever waits there.
struct Open<'a> {
    broker: &'a Mutex<Broker>,
    inbox: &'a str,
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        lock(self.broker).close(self.inbox);
    }
}

impl Messaging {
    /// Gives a message to every group that takes it; how many there are.
    pub(super) async fn publish(
        &self,
        tenant: &TenantName,
        kind: BrokerKind,
        message: WireMessage,
    ) -> Result<usize, ServiceFault> {
        let Some(broker) = self.known(tenant, kind) else { return Ok(0) };
        if message.subject.starts_with(INBOX) {
            lock(&broker).answer(message);
            return Ok(0);
        }
        let groups = lock(&broker).takers(&message.subject);
        self.give(tenant, kind, &broker, groups, message).await
    }

    /// Puts a message into a group, where that takes any; into how many.
    pub(super) async fn tell(
        &self,
        tenant: &TenantName,
        kind: BrokerKind,
        group: &Group,
        message: WireMessage,
    ) -> Result<usize, ServiceFault> {
        let Some(broker) = self.known(tenant, kind) else { return Ok(0) };
        let active = lock(&broker).groups.get(group).is_some_and(|state| state.active);
        let groups = if active { vec![group.clone()] } else { Vec::new() };
        self.give(tenant, kind, &broker, groups, message).await
    }

    /// Keeps a message that a host had and could not have handled; in how many groups. Where the link goes to another
    /// provider by now, the message follows it.
    pub(super) async fn leave(
        &self,
        tenant: &TenantName,
        group: &Group,
        message: WireMessage,
    ) -> Result<usize, ServiceFault> {
        let untried = group.untried();
        let places = [
            (BrokerKind::Local, &untried, true),
            (BrokerKind::Local, group, true),
            (BrokerKind::Durable, group, true),
            // As long as it is there, hosts of the link look into it.
            (BrokerKind::Local, &untried, false),
        ];
        for (kind, group, active) in places {
            let Some(broker) = self.known(tenant, kind) else { continue };
            if lock(&broker).groups.get(group).is_some_and(|state| state.active || !active) {
                return self.give(tenant, kind, &broker, vec![group.clone()], message).await;
            }
        }
        Ok(0)
    }

    /// Puts a message into all of these groups, or into none that has no room.
    async fn give(
        &self,
        tenant: &TenantName,
        kind: BrokerKind,
        broker: &Mutex<Broker>,
        groups: Vec<Group>,
        message: WireMessage,
    ) -> Result<usize, ServiceFault> {
        let id: Arc<str> = {
            let mut broker = lock(broker);
            let bytes = message.subject.len() + message.body.len();
            let (held, more) = (broker.bytes(), bytes.saturating_mul(groups.len()));
            if held.saturating_add(more) > MAX_OF_TENANT {
                return Err(unavailable(format!(
                    "messages of {held} bytes wait for the handlers of this tenant; all its queues on a node hold at most \
                     {MAX_OF_TENANT} together"
                )));
            }
            for group in &groups {
                if broker.groups.get(group).is_some_and(|state| state.rest || !state.queue.has_room(bytes)) {
                    let (app, name) = (&group.app, &group.name);
                    return Err(unavailable(format!(
                        "the queue of `{app}` {name} is full; messages wait for its handler"
                    )));
                }
            }
            self.id(&mut broker).into()
        };
        let message = Arc::new(message);
        let mut failed = None;
        let written: Vec<_> = match kind {
            BrokerKind::Local => vec![Ok(()); groups.len()],
            BrokerKind::Durable => join_all(groups.iter().map(|group| self.keep(tenant, group, &id, &message))).await,
        };
        let mut left = Vec::new();
        {
            let mut broker = lock(broker);
            for (group, written) in groups.iter().zip(written) {
                match (written, broker.groups.get_mut(group)) {
                    (Ok(()), Some(state)) => {
                        state.queue.push(Held { id: id.clone(), message: message.clone(), tries: 0 });
                        state.changed.notify_one();
                    }
                    (Ok(()), None) => left.push(group),
                    (Err(cause @ Fault::OverQuota(_)), _) => failed = Some(ServiceFault::Refused(cause.to_string())),
                    (Err(cause), _) => failed = Some(unavailable(cause)),
                }
            }
        }
        let gone = left.len();
        // The group went while its message was written: the next one of that name must not find it.
        for group in left.into_iter().filter(|_| kind == BrokerKind::Durable) {
            disk::remove(&self.data, tenant, group, &id).await.map_err(unavailable)?;
        }
        // Where its link goes now, only the next try finds out.
        if gone > 0 && kind == BrokerKind::Durable {
            failed.get_or_insert_with(|| unavailable("a queue went while the message was written; try again"));
        }
        // Groups that have it keep it: a sender who tries again sends it twice, one who gives up has not lost it.
        failed.map_or(Ok(groups.len() - gone), Err)
    }

    pub(super) async fn ask(
        &self,
        tenant: &TenantName,
        kind: BrokerKind,
        mut message: WireMessage,
        timeout: Duration,
    ) -> Answer {
        let inbox = format!("{INBOX}{:032x}", rand::random::<u128>());
        let broker = self.broker(tenant, kind);
        let answer =
            lock(&broker).open(&inbox).ok_or_else(|| unavailable("too many requests wait for their answer"))?;
        let _open = Open { broker: &broker, inbox: &inbox };
        message.reply_to = Some(inbox.clone());
        if self.publish(tenant, kind, message).await? == 0 {
            return Ok(MessagingAnswer::NoResponder);
        }
        match tokio::time::timeout(timeout, answer).await {
            Ok(Ok(message)) => Ok(MessagingAnswer::Answered(message)),
            Ok(Err(_)) | Err(_) => Ok(MessagingAnswer::NotAnswered),
        }
    }
}
