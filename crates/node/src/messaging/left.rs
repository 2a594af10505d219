//! What is on disk for the groups of an app: read when a group is made, and removed when no link names it any more or the
//! app is gone, before the next one of its name writes or reads anything.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use api::services::messaging::{BrokerKind, WireMessage};
use futures::FutureExt as _;
use futures::future::{BoxFuture, Shared};
use model::messaging::Group;
use model::{AppName, TenantName};
use store::data::Fault;
use tokio::sync::Notify;

use super::broker::{Broker, State};
use super::disk::Part;
use super::queue::{Held, MAX_MESSAGES};
use super::{MAX_OF_TENANT, Messaging, disk, lock};

/// Bytes of messages that a group reads whatever others of its tenant hold.
const LEAST: usize = 4 << 20;
/// Between two looks for room.
const LOOK: Duration = Duration::from_millis(500);

/// Ends when no message of an app, or of a group, is left on disk.
pub type Clearing = Shared<BoxFuture<'static, ()>>;

/// Between two tries of what the disk does not do.
struct Pause(Duration);

impl Default for Pause {
    fn default() -> Self {
        Self(Duration::from_millis(100))
    }
}

impl Pause {
    async fn next(&mut self) {
        tokio::time::sleep(self.0).await;
        self.0 = (self.0 * 2).min(Duration::from_secs(30));
    }
}

impl Messaging {
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
        let mut pause = Pause::default();
        while let Err(cause) = disk::clear(&self.data, tenant, app).await {
            tracing::error!(%tenant, %app, %cause, "messages kept for an app that is gone cannot be removed; trying again");
            pause.next().await;
        }
        lock(&self.clearing).remove(&whose);
    }

    /// Removes what is on disk for groups of an app that are none of `named`: the links of the revision that serves have no
    /// others, nor had they when the node ended.
    pub(super) async fn sweep(self: Arc<Self>, tenant: TenantName, app: AppName, named: BTreeSet<Group>) {
        let kept = match disk::groups(&self.data, &tenant, &app).await {
            Ok(kept) => kept,
            Err(cause) => {
                let what = "what is kept for links that are gone cannot be removed; the next revision tries again";
                return tracing::error!(%tenant, %app, %cause, "{what}");
            }
        };
        for name in kept {
            let group = Group { app: app.clone(), name };
            let broker = self.broker(&tenant, BrokerKind::Durable);
            // Held until it is noted: one that a later revision makes waits for that in `load`.
            let broker = lock(&broker);
            if !named.contains(&group) && !broker.groups.contains_key(&group) {
                self.drop_from_disk(&tenant, group);
            }
        }
    }

    /// Removes what is on disk for a group that is gone. From now on the next one of its name, and whoever writes into it,
    /// waits for that.
    pub(super) fn drop_from_disk(self: &Arc<Self>, tenant: &TenantName, group: Group) {
        let whose = (tenant.clone(), group);
        let mut all = lock(&self.dropping);
        if !all.contains_key(&whose) {
            let task = tokio::spawn(self.clone().drop_group(whose.clone()));
            all.insert(whose, async move { drop(task.await) }.boxed().shared());
        }
    }

    async fn drop_group(self: Arc<Self>, whose: (TenantName, Group)) {
        let (tenant, group) = &whose;
        let mut pause = Pause::default();
        while let Err(cause) = disk::clear_group(&self.data, tenant, group).await {
            tracing::error!(%tenant, app = %group.app, group = group.name, %cause, "messages whose link is gone cannot be removed; trying again");
            pause.next().await;
        }
        tracing::info!(%tenant, app = %group.app, group = group.name, "what was kept for a link that is gone is removed");
        lock(&self.dropping).remove(&whose);
    }

    /// Waits until what an earlier group of that name left, or one of an earlier app, is gone.
    async fn cleared(&self, tenant: &TenantName, group: &Group) {
        let running = lock(&self.clearing).get(&(tenant.clone(), group.app.clone())).cloned();
        if let Some(running) = running {
            running.await;
        }
        let running = lock(&self.dropping).get(&(tenant.clone(), group.clone())).cloned();
        if let Some(running) = running {
            running.await;
        }
    }

    /// Reads what a group had on disk; until that is done nothing of the group is handed out. What is more than a queue
    /// holds follows when most of that is handled.
    pub(super) async fn load(self: Arc<Self>, tenant: TenantName, group: Group, made: Arc<Notify>) {
        self.cleared(&tenant, &group).await;
        let broker = self.broker(&tenant, BrokerKind::Durable);
        // The next app of that name may have made the group anew meanwhile: it gets nothing of what is read for this one.
        let same = |state: &&mut State| Arc::ptr_eq(&state.changed, &made);
        // Messages of this process came after it had read the first ones, and were put into the queue themselves.
        let own = format!("{:08x}", self.boot);
        let mut after: Option<String> = None;
        loop {
            let loading = lock(&broker).loading.clone();
            let turn = loading.lock().await;
            let (found, rest) = self.part(&tenant, &group, &broker, after.clone(), &own).await;
            {
                let mut broker = lock(&broker);
                let Some(state) = broker.groups.get_mut(&group).filter(same) else { return };
                state.queue.restore(found);
                state.loaded = true;
                state.rest = rest.is_some();
                state.changed.notify_one();
                // Nothing was there for a link that goes elsewhere by now.
                broker.tidy(&group);
            }
            drop(turn);
            if rest.is_none() {
                return;
            }
            if after.is_none() {
                tracing::warn!(%tenant, app = %group.app, group = group.name, "more messages are kept than a queue holds; the others follow when most of these are handled");
            }
            after = rest;
            loop {
                tokio::time::sleep(LOOK).await;
                let broker = &mut *lock(&broker);
                let bytes = broker.bytes();
                let Some(state) = broker.groups.get_mut(&group).filter(same) else { return };
                if state.queue.count() <= MAX_MESSAGES / 2 && bytes <= MAX_OF_TENANT / 2 {
                    break;
                }
            }
        }
    }

    /// As much as there is room for, and where to go on.
    async fn part(
        &self,
        tenant: &TenantName,
        group: &Group,
        broker: &Mutex<Broker>,
        after: Option<String>,
        own: &str,
    ) -> (Vec<Held>, Option<String>) {
        let mut pause = Pause::default();
        loop {
            let most = MAX_OF_TENANT.saturating_sub(lock(broker).bytes()).max(LEAST);
            let but = after.is_some().then_some(own);
            match disk::read(&self.data, tenant, group, Part { after: after.clone(), but, most }).await {
                Ok(found) => return found,
                Err(cause) => {
                    tracing::error!(%tenant, app = %group.app, group = group.name, %cause, "kept messages cannot be read");
                    pause.next().await;
                }
            }
        }
    }

    /// Writes a message down for a group, behind what an earlier app of that name left.
    pub(super) async fn keep(
        &self,
        tenant: &TenantName,
        group: &Group,
        id: &str,
        message: &WireMessage,
    ) -> Result<(), Fault> {
        self.cleared(tenant, group).await;
        disk::write(&self.data, tenant, group, id, message).await
    }
}
