//! The message brokers of the node, two per tenant: one in memory, one on disk. They belong to the node, because every
//! shard and every app of a tenant must agree on who gets a message, and because a host may die with messages in its
//! hands and the node notices.
//!
//! Hosts fetch their messages ([`Messaging::take`]): a host takes no more than it has room for, a message goes to
//! whichever shard has room first, and one that is going away only has to stop asking. Which groups there are comes
//! from the revisions that serve ([`Messaging::declare`]), so a deploy changes them together with the routes.

mod broker;
mod bury;
mod declared;
mod disk;
mod handed;
mod left;
mod queue;
mod ready;
mod sent;
mod told;

use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use api::services::ServiceFault;
use api::services::messaging::{BrokerKind, MAX_TAKE, MessagingAnswer, MessagingRequest, WireMessage};
use futures::future::try_join_all;
use model::messaging::{Group, MAX_BODY, check_subject};
use model::{AppName, TenantName};
use store::data::DataEngine;
use tokio_util::sync::CancellationToken;

use crate::pace::LineRate;
use broker::Broker;
pub use declared::{Declared, declared};
pub use left::Clearing;
use queue::NOBODY;

/// The longest a question waits for its answer.
const MAX_ASK: Duration = Duration::from_secs(60);
/// Bytes of messages that all groups of one tenant hold in one broker.
const MAX_OF_TENANT: usize = 64 << 20;

/// Tenants whose lines in the node's log are counted at once.
const REMEMBERED: usize = 1024;

type Answer = Result<MessagingAnswer, ServiceFault>;

/// A broker's name: two of them share nothing.
type Place = (TenantName, BrokerKind);

/// Every broker of the node.
#[derive(Debug)]
pub struct Messaging {
    data: DataEngine,
    /// Apps that are gone and whose messages are being removed: nothing of theirs is read or written until then.
    clearing: Mutex<HashMap<(TenantName, AppName), Clearing>>,
    /// The same of groups that no link names any more.
    dropping: Mutex<HashMap<(TenantName, Group), Clearing>>,
    brokers: Mutex<HashMap<Place, Arc<Mutex<Broker>>>>,
    /// Numbers holders.
    numbers: AtomicU64,
    /// Tells the messages of this process from those of another one.
    boot: u32,
    /// Lines of the node's log that hosts bring about here.
    said: Mutex<HashMap<TenantName, LineRate>>,
}

/// Somebody who takes messages; when it is gone, what it held is given to others.
#[derive(Debug)]
pub struct Holder {
    messaging: Arc<Messaging>,
    tenant: TenantName,
    number: u64,
    left: CancellationToken,
}

impl Holder {
    /// It takes nothing any more, and what it held is given to others.
    pub fn leave(&self) {
        self.left.cancel();
        for kind in [BrokerKind::Local, BrokerKind::Durable] {
            let Some(broker) = self.messaging.known(&self.tenant, kind) else { continue };
            for state in lock(&broker).groups.values_mut() {
                if state.queue.gone(self.number) {
                    state.changed.notify_one();
                }
            }
        }
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        self.leave();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn unavailable(cause: impl std::fmt::Display) -> ServiceFault {
    ServiceFault::Unavailable(cause.to_string())
}

impl Messaging {
    /// Brokers without groups; the durable ones keep their messages in `data`.
    pub fn new(data: DataEngine) -> Arc<Self> {
        let (clearing, dropping, brokers) = (Mutex::default(), Mutex::default(), Mutex::default());
        let (numbers, boot, said) = (AtomicU64::new(NOBODY + 1), rand::random(), Mutex::default());
        Arc::new(Self { data, clearing, dropping, brokers, numbers, boot, said })
    }

    /// Leave for one line of the node's log on account of a tenant, with the number of those that had none before it.
    fn may_say(&self, tenant: &TenantName) -> Option<u64> {
        let (now, mut said) = (Instant::now(), lock(&self.said));
        if said.len() >= REMEMBERED {
            // Each has its lines at once again, and nothing is kept of tenants that are gone.
            said.clear();
        }
        said.entry(tenant.clone()).or_insert_with(|| LineRate::of_tenant(now)).take(now)
    }

    /// Somebody who will take messages of a tenant.
    pub fn holder(self: &Arc<Self>, tenant: &TenantName) -> Holder {
        Holder {
            messaging: self.clone(),
            tenant: tenant.clone(),
            number: self.numbers.fetch_add(1, Relaxed),
            left: CancellationToken::new(),
        }
    }

    /// Names a message: sorts by time, and no two of a broker are the same.
    fn id(&self, broker: &mut Broker) -> String {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
        broker.numbers += 1;
        format!("{now:012x}{:012x}{:08x}", broker.numbers, self.boot)
    }

    fn known(&self, tenant: &TenantName, kind: BrokerKind) -> Option<Arc<Mutex<Broker>>> {
        lock(&self.brokers).get(&(tenant.clone(), kind)).cloned()
    }

    fn broker(&self, tenant: &TenantName, kind: BrokerKind) -> Arc<Mutex<Broker>> {
        lock(&self.brokers).entry((tenant.clone(), kind)).or_default().clone()
    }

    /// A revision of the app serves from now on: these are the groups of the app. Must run inside a tokio runtime: what
    /// is on disk for new groups is read by a task of its own, and what is there for groups that no link names is removed.
    pub fn declare(self: &Arc<Self>, tenant: &TenantName, app: &AppName, wanted: &[Declared]) {
        let named: BTreeSet<&Group> = wanted.iter().map(|one| &one.group).collect();
        for kind in [BrokerKind::Local, BrokerKind::Durable] {
            let of_kind = wanted.iter().filter(|one| one.broker == kind);
            let groups: Vec<_> = of_kind.collect();
            if groups.is_empty() && self.known(tenant, kind).is_none() {
                continue;
            }
            let durable = kind == BrokerKind::Durable;
            let changed = lock(&self.broker(tenant, kind)).declare(app, &groups, &named, durable);
            if durable {
                changed.dropped.into_iter().for_each(|group| self.drop_from_disk(tenant, group));
                for (group, made) in changed.fresh {
                    tokio::spawn(self.clone().load(tenant.clone(), group, made));
                }
            }
        }
        let named = named.into_iter().cloned().collect();
        tokio::spawn(self.clone().sweep(tenant.clone(), app.clone(), named));
    }

    /// Answers a host of `tenant` on behalf of `app`.
    ///
    /// # Errors
    /// Why the broker does not do it.
    pub async fn answer(
        &self,
        tenant: &TenantName,
        app: &AppName,
        holder: &Holder,
        request: MessagingRequest,
    ) -> Answer {
        match request {
            MessagingRequest::Publish { broker, message } => {
                check(&message)?;
                self.publish(tenant, broker, message).await.map(|_| MessagingAnswer::Done)
            }
            MessagingRequest::Ask { broker, message, timeout_ms } => {
                check(&message)?;
                self.ask(tenant, broker, message, Duration::from_millis(timeout_ms).min(MAX_ASK)).await
            }
            MessagingRequest::Take { broker, group, max } => {
                let group = Group { app: app.clone(), name: group };
                self.take(tenant, broker, &group, max.clamp(1, MAX_TAKE), holder).await
            }
            MessagingRequest::Tell { broker, group, messages } => {
                messages.iter().try_for_each(check)?;
                let group = Group { app: app.clone(), name: group };
                let told = messages.into_iter().map(|message| self.tell(tenant, broker, &group, message));
                try_join_all(told).await?;
                Ok(MessagingAnswer::Done)
            }
            MessagingRequest::Settle { broker, group, delivery, outcome } => {
                let group = Group { app: app.clone(), name: group };
                holder.messaging.settle(tenant, broker, &group, delivery, outcome).await
            }
            MessagingRequest::Leave { group, message } => {
                check(&message)?;
                match self.leave(tenant, &Group { app: app.clone(), name: group }, message).await? {
                    0 => Ok(MessagingAnswer::NotSubscribed),
                    _ => Ok(MessagingAnswer::Done),
                }
            }
        }
    }
}

/// What a host says is checked again: it may not be one of ours any more.
fn check(message: &WireMessage) -> Result<(), ServiceFault> {
    let subject = |text: &str| check_subject(text).map_err(|cause| ServiceFault::Refused(cause.to_string()));
    subject(&message.subject)?;
    message.reply_to.as_deref().map_or(Ok(()), subject)?;
    if message.body.len() > MAX_BODY {
        return Err(ServiceFault::Refused(format!("a message has {} bytes; at most {MAX_BODY}", message.body.len())));
    }
    Ok(())
}
