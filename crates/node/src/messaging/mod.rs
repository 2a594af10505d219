//! The message brokers of the node, two per tenant: one in memory, one on disk. They belong to the node, because every
//! shard and every app of a tenant must agree on who gets a message, and because a host may die with messages in its
//! hands and the node notices.
//!
//! Hosts fetch their messages ([`Messaging::take`]): a host takes no more than it has room for, a message goes to
//! whichever shard has room first, and one that is going away only has to stop asking. Which groups there are comes
//! from the revisions that serve ([`Messaging::declare`]), so a deploy changes them together with the routes.

mod broker;
mod disk;
mod queue;

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use api::services::ServiceFault;
use api::services::messaging::{BrokerKind, MAX_TAKE, MessagingAnswer, MessagingRequest, POLL, Settled, WireMessage};
use futures::FutureExt as _;
use futures::future::{BoxFuture, Shared, join_all, try_join_all};
use model::messaging::{Group, MAX_BODY, Subscription, check_subject};
use model::watch::Kept;
use model::{AppName, LockedApp, ProviderKind, TenantName};
use store::data::{DataEngine, Fault};
use tokio_util::sync::CancellationToken;

use broker::{Broker, INBOX};
use queue::{Fate, Held};

/// The longest a question waits for its answer.
const MAX_ASK: Duration = Duration::from_secs(60);
/// What a host gets beyond the wall time of a call: to find a place for it and to tell what became of it.
const SLACK: Duration = Duration::from_secs(30);

type Answer = Result<MessagingAnswer, ServiceFault>;

/// A broker's name: two of them share nothing.
type Place = (TenantName, BrokerKind);

/// What one link of a revision takes from a broker of the node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Declared {
    broker: BrokerKind,
    subscription: Subscription,
    lease: Duration,
}

/// What the links of an app take from the node's brokers.
pub fn declared(app: &LockedApp) -> Vec<Declared> {
    let built_in = |name: &str| ProviderKind::BUILT_IN.iter().find(|(known, _)| *known == name).map(|(_, kind)| *kind);
    let links = model::messaging::subscriptions(app).filter_map(|(link, subscription)| {
        let kind = app.providers.get(&link.provider).map(|spec| spec.kind);
        let broker = match kind.or_else(|| built_in(link.provider.as_str()))? {
            ProviderKind::MessagingLocal => BrokerKind::Local,
            ProviderKind::MessagingDurable => BrokerKind::Durable,
            _ => return None,
        };
        let wall = app.components.get(&link.component)?.limits.wall.duration();
        Some(Declared { broker, subscription, lease: wall.saturating_add(SLACK) })
    });
    let watched = model::watch::watches(app).filter_map(|watch| {
        let broker = match watch.kept {
            Kept::Memory => BrokerKind::Local,
            Kept::Disk => BrokerKind::Durable,
            Kept::Server => return None,
        };
        let wall = app.components.get(&watch.link.component)?.limits.wall.duration();
        Some(Declared { broker, subscription: watch.subscription(&app.name), lease: wall.saturating_add(SLACK) })
    });
    links.chain(watched).collect()
}

/// Ends when no message of an app is left on disk.
pub type Clearing = Shared<BoxFuture<'static, ()>>;

/// Every broker of the node.
#[derive(Debug)]
pub struct Messaging {
    data: DataEngine,
    /// Apps that are gone and whose messages are being removed: nothing of theirs is read or written until then.
    clearing: Mutex<HashMap<(TenantName, AppName), Clearing>>,
    brokers: Mutex<HashMap<Place, Arc<Mutex<Broker>>>>,
    /// Numbers deliveries and holders.
    numbers: AtomicU64,
    /// Tells the messages of this process from those of another one.
    boot: u32,
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
        let (clearing, brokers) = (Mutex::default(), Mutex::default());
        Arc::new(Self { data, clearing, brokers, numbers: AtomicU64::new(1), boot: rand::random() })
    }

    /// Somebody who will take messages of a tenant.
    pub fn holder(self: &Arc<Self>, tenant: &TenantName) -> Holder {
        Holder {
            messaging: self.clone(),
            tenant: tenant.clone(),
            number: self.number(),
            left: CancellationToken::new(),
        }
    }

    fn number(&self) -> u64 {
        self.numbers.fetch_add(1, Relaxed)
    }

    /// Names a message: sorts by time, and no two are the same.
    fn id(&self) -> String {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
        format!("{now:012x}{:012x}{:08x}", self.number(), self.boot)
    }

    fn known(&self, tenant: &TenantName, kind: BrokerKind) -> Option<Arc<Mutex<Broker>>> {
        lock(&self.brokers).get(&(tenant.clone(), kind)).cloned()
    }

    fn broker(&self, tenant: &TenantName, kind: BrokerKind) -> Arc<Mutex<Broker>> {
        lock(&self.brokers).entry((tenant.clone(), kind)).or_default().clone()
    }

    /// A revision of the app serves from now on: these are the groups of the app. Must run inside a tokio runtime: what
    /// is on disk for new groups is read by a task of its own.
    pub fn declare(self: &Arc<Self>, tenant: &TenantName, app: &AppName, wanted: &[Declared]) {
        for kind in [BrokerKind::Local, BrokerKind::Durable] {
            let of_kind = wanted.iter().filter(|one| one.broker == kind);
            let groups: Vec<_> = of_kind.map(|one| (one.subscription.clone(), one.lease)).collect();
            if groups.is_empty() && self.known(tenant, kind).is_none() {
                continue;
            }
            let durable = kind == BrokerKind::Durable;
            for group in lock(&self.broker(tenant, kind)).declare(app, &groups, durable) {
                if durable {
                    tokio::spawn(self.clone().load(tenant.clone(), group));
                }
            }
        }
    }

    /// The app is gone from this node, and with it every message kept for it: the next app of that name gets none of
    /// them. Must run inside a tokio runtime; what is on disk is removed also where nobody waits for the answer.
    pub fn forget(self: &Arc<Self>, tenant: &TenantName, app: &AppName) -> Clearing {
        for kind in [BrokerKind::Local, BrokerKind::Durable] {
            if let Some(broker) = self.known(tenant, kind) {
                lock(&broker).forget(app);
            }
        }
        let whose = (tenant.clone(), app.clone());
        let mut all = lock(&self.clearing);
        if let Some(running) = all.get(&whose) {
            return running.clone();
        }
        let task = tokio::spawn(self.clone().clear(whose.clone()));
        let clearing = async move { drop(task.await) }.boxed().shared();
        all.insert(whose, clearing.clone());
        clearing
    }

    async fn clear(self: Arc<Self>, whose: (TenantName, AppName)) {
        let (tenant, app) = &whose;
        let mut pause = Duration::from_millis(100);
        while let Err(cause) = disk::clear(&self.data, tenant, app).await {
            tracing::error!(%tenant, %app, %cause, "messages kept for an app that is gone cannot be removed; trying again");
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(Duration::from_secs(30));
        }
        lock(&self.clearing).remove(&whose);
    }

    /// Waits until what an earlier app of that name left is gone.
    async fn cleared(&self, tenant: &TenantName, app: &AppName) {
        let running = lock(&self.clearing).get(&(tenant.clone(), app.clone())).cloned();
        if let Some(running) = running {
            running.await;
        }
    }

    /// Reads what a group had on disk; until that is done nothing of the group is handed out.
    async fn load(self: Arc<Self>, tenant: TenantName, group: Group) {
        self.cleared(&tenant, &group.app).await;
        let mut pause = Duration::from_millis(100);
        let found = loop {
            match disk::read(&self.data, &tenant, &group).await {
                Ok(found) => break found,
                Err(cause) => {
                    tracing::error!(%tenant, app = %group.app, group = group.name, %cause, "kept messages cannot be read");
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(Duration::from_secs(30));
                }
            }
        };
        let broker = self.broker(&tenant, BrokerKind::Durable);
        if let Some(state) = lock(&broker).groups.get_mut(&group) {
            state.queue.restore(found);
            state.loaded = true;
            state.changed.notify_one();
        }
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
                self.settle(tenant, broker, &group, delivery, outcome).await
            }
        }
    }

    /// Gives a message to every group that takes it; how many there are.
    async fn publish(
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

    /// Puts a message into a group, where that takes any.
    async fn tell(
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

    /// Puts a message into all of these groups, or into none that has no room.
    async fn give(
        &self,
        tenant: &TenantName,
        kind: BrokerKind,
        broker: &Mutex<Broker>,
        groups: Vec<Group>,
        message: WireMessage,
    ) -> Result<usize, ServiceFault> {
        {
            let broker = lock(broker);
            let bytes = message.subject.len() + message.body.len();
            for group in &groups {
                if broker.groups.get(group).is_some_and(|state| !state.queue.has_room(bytes)) {
                    let (app, name) = (&group.app, &group.name);
                    return Err(unavailable(format!(
                        "the queue of `{app}` {name} is full; messages wait for its handler"
                    )));
                }
            }
        }
        let (id, message): (Arc<str>, _) = (self.id().into(), Arc::new(message));
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
        // The group went while its message was written: the next one of that name must not find it.
        for group in left.into_iter().filter(|_| kind == BrokerKind::Durable) {
            disk::remove(&self.data, tenant, group, &id).await.map_err(unavailable)?;
        }
        // Groups that have it keep it: a sender who tries again sends it twice, one who gives up has not lost it.
        failed.map_or(Ok(groups.len()), Err)
    }

    /// Writes a message down for a group, behind what an earlier app of that name left.
    async fn keep(&self, tenant: &TenantName, group: &Group, id: &str, message: &WireMessage) -> Result<(), Fault> {
        self.cleared(tenant, &group.app).await;
        disk::write(&self.data, tenant, group, id, message).await
    }

    async fn ask(&self, tenant: &TenantName, kind: BrokerKind, mut message: WireMessage, timeout: Duration) -> Answer {
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

    async fn take(&self, tenant: &TenantName, kind: BrokerKind, group: &Group, max: u32, holder: &Holder) -> Answer {
        let Some(broker) = self.known(tenant, kind) else { return Ok(MessagingAnswer::NotSubscribed) };
        let deadline = Instant::now() + POLL;
        loop {
            let Some(changed) = lock(&broker).groups.get(group).map(|state| state.changed.clone()) else {
                return Ok(MessagingAnswer::NotSubscribed);
            };
            let mut notified = std::pin::pin!(changed.notified());
            // A message that comes between the look and the wait is not missed.
            notified.as_mut().enable();
            let now = Instant::now();
            let due = {
                let mut broker = lock(&broker);
                let Some(state) = broker.groups.get_mut(group) else { return Ok(MessagingAnswer::NotSubscribed) };
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
                    let taken = state.queue.take(now, max, until, holder.number, || self.number());
                    if state.queue.has_ready() && !state.one_by_one {
                        state.changed.notify_one();
                    }
                    if !taken.is_empty() {
                        return Ok(MessagingAnswer::Taken(taken));
                    }
                    if !state.active && state.queue.is_empty() {
                        broker.groups.remove(group);
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
        }
    }

    async fn settle(
        &self,
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
            self.publish(tenant, kind, dead).await?;
        }
        let fate = match outcome {
            Settled::Done | Settled::PutAway { .. } => Fate::Gone,
            Settled::Again { after_ms } => Fate::Again(Duration::from_millis(after_ms).min(Duration::from_secs(3600))),
            Settled::GivenBack => Fate::Back,
        };
        let held = {
            let mut broker = lock(&broker);
            let state = broker.groups.get_mut(group).ok_or_else(refused)?;
            let held = state.queue.settle(delivery, fate, Instant::now()).ok_or_else(refused)?;
            state.changed.notify_one();
            held
        };
        if kind == BrokerKind::Durable && fate == Fate::Gone {
            // Where this fails the message comes again after a restart of the node, and only then.
            disk::remove(&self.data, tenant, group, &held.id).await.map_err(unavailable)?;
        }
        Ok(MessagingAnswer::Done)
    }
}

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
