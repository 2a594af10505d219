//! Changes of keys, for those who watch them: written down before the change, told after it, dropped where it did not
//! happen.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use api::services::messaging::{BrokerKind, WireMessage};
use api::services::{KvTell, MAX_KEYS};
use futures::future::join_all;
use model::messaging::Group;
use model::{AppName, TenantName};
use store::data::Fault;

use super::queue::Held;
use super::{MAX_OF_TENANT, Messaging, check, disk, lock};

/// Keys announced to one queue after which others have the thread.
const MANY: usize = 64;

/// Changes of keys that are written down for those who watch them.
#[derive(Debug, Default)]
pub(crate) struct Announced {
    notes: Vec<(Group, Held)>,
    /// How many keys could not be, by group.
    lost: BTreeMap<String, u32>,
}

impl Announced {
    /// One key of this queue; whether it is the first.
    fn lose(&mut self, group: &str) -> bool {
        let lost = self.lost.entry(group.to_owned()).or_default();
        *lost += 1;
        *lost == 1
    }
}

impl Messaging {
    fn lose(&self, tenant: &TenantName, announced: &mut Announced, group: &str, why: &str) {
        if announced.lose(group)
            && let Some(left_out) = self.may_say(tenant)
        {
            tracing::warn!(%tenant, group, cause = why, left_out, "changes of a watched bucket are not told");
        }
    }

    /// Writes down for watches of an app that of these keys some may be about to change. Nobody is told before
    /// [`Messaging::told`]; a node that ends in between tells after it began again.
    pub(crate) async fn announce(
        &self,
        tenant: &TenantName,
        app: &AppName,
        keys: &[&str],
        tell: &[KvTell],
    ) -> Announced {
        let mut announced = Announced::default();
        let Some(broker) = self.known(tenant, BrokerKind::Durable) else { return announced };
        let mut notes = Vec::new();
        // What is only announced is in no queue yet, and has its room nevertheless.
        let (mut by_group, mut of_all) = (HashMap::<&str, (usize, usize)>::new(), 0);
        for KvTell { group: name, keys: places, trace } in tell {
            let group = Group { app: app.clone(), name: name.clone() };
            {
                let mut broker = lock(&broker);
                let held = broker.bytes();
                let (messages, of_group) = by_group.entry(name).or_default();
                for key in places.iter().filter_map(|place| keys.get(usize::from(*place))) {
                    // Nobody watches any more.
                    let Some(state) = broker.groups.get(&group).filter(|state| state.active) else { break };
                    let message = WireMessage {
                        subject: "watch".to_owned(),
                        body: key.as_bytes().to_vec(),
                        reply_to: None,
                        trace: *trace,
                    };
                    let bytes = message.subject.len() + message.body.len();
                    let fits = !state.rest
                        && state.queue.has_room_for(*messages + 1, of_group.saturating_add(bytes))
                        && held.saturating_add(of_all).saturating_add(bytes) <= MAX_OF_TENANT;
                    if !fits || check(&message).is_err() {
                        self.lose(tenant, &mut announced, name, "its queue is full; changes wait for its handler");
                        continue;
                    }
                    (*messages, *of_group, of_all) = (*messages + 1, *of_group + bytes, of_all + bytes);
                    notes.push((group.clone(), Arc::from(self.id(&mut broker)), message));
                }
            }
            if places.len() > MANY {
                // The thread serves others too.
                tokio::task::yield_now().await;
            }
        }
        let mut notes = notes.into_iter().map(|(group, id, message)| self.announce_one(tenant, group, id, message));
        loop {
            let part: Vec<_> = notes.by_ref().take(MAX_KEYS).collect();
            if part.is_empty() {
                return announced;
            }
            for (group, written) in join_all(part).await {
                match written {
                    Ok(held) => announced.notes.push((group, held)),
                    Err(cause) => self.lose(tenant, &mut announced, &group.name, &cause.to_string()),
                }
            }
        }
    }

    async fn announce_one(
        &self,
        tenant: &TenantName,
        group: Group,
        id: Arc<str>,
        message: WireMessage,
    ) -> (Group, Result<Held, Fault>) {
        let message = Arc::new(message);
        let kept = self.keep(tenant, &group, &id, &message).await;
        (group, kept.map(|()| Held { id, message, tries: 0 }))
    }

    /// What was announced has happened, or may have. Gives back who was not told of how many keys.
    pub(crate) async fn told(&self, tenant: &TenantName, announced: Announced) -> Vec<(String, u32)> {
        let Announced { notes, lost } = announced;
        let broker = self.broker(tenant, BrokerKind::Durable);
        let mut left = Vec::new();
        {
            let mut broker = lock(&broker);
            for (group, held) in notes {
                match broker.groups.get_mut(&group) {
                    Some(state) => {
                        state.queue.push(held);
                        state.changed.notify_one();
                    }
                    None => left.push((group, held)),
                }
            }
        }
        self.drop_notes(tenant, left).await;
        lost.into_iter().collect()
    }

    /// What was announced has not happened.
    pub(crate) async fn not_told(&self, tenant: &TenantName, announced: Announced) {
        self.drop_notes(tenant, announced.notes).await;
    }

    async fn drop_notes(&self, tenant: &TenantName, notes: Vec<(Group, Held)>) {
        for part in notes.chunks(MAX_KEYS) {
            let removed = part.iter().map(|(group, held)| disk::remove(&self.data, tenant, group, &held.id));
            for cause in join_all(removed).await.into_iter().filter_map(Result::err) {
                // It is told of after a restart of the node, and finds what is there.
                if let Some(left_out) = self.may_say(tenant) {
                    tracing::warn!(%tenant, %cause, left_out, "a change that did not happen is not forgotten");
                }
            }
        }
    }
}
