//! A message that is handed out: to a host that has room for it, until it says what became of it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use api::services::ServiceFault;
use api::services::messaging::{BrokerKind, MessagingAnswer, POLL, Settled, WireMessage};
use futures::future::join_all;
use model::TenantName;
use model::messaging::Group;

use super::broker::Broker;
use super::bury::Dead;
use super::queue::Fate;
use super::{Answer, Holder, Messaging, check, disk, lock, unavailable};

impl Messaging {
    pub(super) async fn take(
        &self,
        tenant: &TenantName,
        kind: BrokerKind,
        group: &Group,
        max: u32,
        holder: &Holder,
    ) -> Answer {
        let Some(broker) = self.known(tenant, kind) else { return Ok(MessagingAnswer::NotSubscribed) };
        let takers = lock(&broker).groups.get(group).map(|state| state.takers.clone());
        let Some(takers) = takers else { return Ok(MessagingAnswer::NotSubscribed) };
        let _waits = takers
            .try_acquire_owned()
            .map_err(|_| unavailable("as many calls wait for messages of this group as may; try again"))?;
        let deadline = Instant::now() + POLL;
        let taken = loop {
            let Some(changed) = lock(&broker).groups.get(group).map(|state| state.changed.clone()) else {
                return Ok(MessagingAnswer::NotSubscribed);
            };
            let mut notified = std::pin::pin!(changed.notified());
            // A message that comes between the look and the wait is not missed.
            notified.as_mut().enable();
            let now = Instant::now();
            let due = {
                let mut broker = lock(&broker);
                let Broker { groups, numbers, .. } = &mut *broker;
                let Some(state) = groups.get_mut(group) else { return Ok(MessagingAnswer::NotSubscribed) };
                // Looked at under the lock that leaving takes afterwards: nothing is handed to one who has left.
                if holder.left.is_cancelled() {
                    return Ok(MessagingAnswer::Taken(Vec::new()));
                }
                if state.loaded {
                    let until = now + state.lease;
                    state.queue.wake(now);
                    let max = match (state.one_by_one, state.queue.has_out()) {
                        (true, true) => 0,
                        (true, false) => 1,
                        (false, _) => max as usize,
                    };
                    let taken = state.queue.take(now, max, until, holder.number, || {
                        *numbers += 1;
                        *numbers
                    });
                    if state.queue.has_ready() && !state.one_by_one {
                        state.changed.notify_one();
                    }
                    if !taken.is_empty() {
                        break taken;
                    }
                    if !state.active && !state.rest && state.queue.is_empty() {
                        groups.remove(group);
                        return Ok(MessagingAnswer::NotSubscribed);
                    }
                }
                state.queue.next_due()
            };
            if now >= deadline {
                return Ok(MessagingAnswer::Taken(Vec::new()));
            }
            let wake = due.map_or(deadline, |due| due.min(deadline));
            tokio::select! {
                () = notified => {}
                () = holder.left.cancelled() => {}
                () = tokio::time::sleep_until(wake.into()) => {}
            }
        };
        if kind == BrokerKind::Durable {
            let told = taken.iter().map(|one| disk::tried(&self.data, tenant, group, &one.id, one.tries));
            for cause in join_all(told).await.into_iter().filter_map(Result::err) {
                // Missed only where the node ends as well.
                if let Some(left_out) = self.may_say(tenant) {
                    tracing::warn!(%tenant, app = %group.app, group = group.name, %cause, left_out, "how often a message was tried is not on disk");
                }
            }
        }
        Ok(MessagingAnswer::Taken(taken))
    }

    pub(super) async fn settle(
        self: &Arc<Self>,
        tenant: &TenantName,
        kind: BrokerKind,
        group: &Group,
        delivery: u64,
        outcome: Settled,
    ) -> Answer {
        let refused = || ServiceFault::Refused("the delivery is not this app's any more".to_owned());
        let broker = self.known(tenant, kind).ok_or_else(refused)?;
        if let Settled::PutAway { subject: Some(subject) } = &outcome {
            let held = lock(&broker).groups.get(group).and_then(|state| state.queue.handed(delivery).cloned());
            let held = held.ok_or_else(refused)?;
            let dead = WireMessage { subject: subject.clone(), ..WireMessage::clone(&held.message) };
            check(&dead)?;
            // Before it leaves the group: a crash in between leaves two, never none.
            let (tenant, group) = (tenant.clone(), group.clone());
            if !self.put_away(Dead { tenant, kind, group, delivery, message: dead }).await {
                return Ok(MessagingAnswer::Done);
            }
        }
        let fate = match outcome {
            Settled::Done | Settled::PutAway { .. } => Fate::Gone,
            Settled::Again { after_ms } => Fate::Again(Duration::from_millis(after_ms).min(Duration::from_secs(3600))),
            Settled::GivenBack => Fate::Back,
        };
        self.settled(tenant, kind, group, delivery, fate).await
    }

    /// What was handed out becomes what is said.
    pub(super) async fn settled(
        &self,
        tenant: &TenantName,
        kind: BrokerKind,
        group: &Group,
        delivery: u64,
        fate: Fate,
    ) -> Answer {
        let refused = || ServiceFault::Refused("the delivery is not this app's any more".to_owned());
        let broker = self.known(tenant, kind).ok_or_else(refused)?;
        let held = {
            let mut broker = lock(&broker);
            let state = broker.groups.get_mut(group).ok_or_else(refused)?;
            let held = state.queue.settle(delivery, fate, Instant::now()).ok_or_else(refused)?;
            state.changed.notify_one();
            held
        };
        if kind == BrokerKind::Durable {
            match fate {
                // Where this fails the message comes again after a restart of the node, and only then.
                Fate::Gone => disk::settled(&self.data, tenant, group, &held).await.map_err(unavailable)?,
                Fate::Back => {
                    disk::tried(&self.data, tenant, group, &held.id, held.tries).await.map_err(unavailable)?
                }
                Fate::Again(_) => {}
            }
        }
        Ok(MessagingAnswer::Done)
    }
}
