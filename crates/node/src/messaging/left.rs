//! What is on disk for the groups of an app: read when a group is made, and removed when the app is gone, before the next
//! one of its name writes or reads anything.

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

/// Ends when no message of an app is left on disk.
pub type Clearing = Shared<BoxFuture<'static, ()>>;

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

    /// Reads what a group had on disk; until that is done nothing of the group is handed out. What is more than a queue
    /// holds follows when most of that is handled.
    pub(super) async fn load(self: Arc<Self>, tenant: TenantName, group: Group, made: Arc<Notify>) {
        self.cleared(&tenant, &group.app).await;
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
        let mut pause = Duration::from_millis(100);
        loop {
            let most = MAX_OF_TENANT.saturating_sub(lock(broker).bytes()).max(LEAST);
            let but = after.is_some().then_some(own);
            match disk::read(&self.data, tenant, group, Part { after: after.clone(), but, most }).await {
                Ok(found) => return found,
                Err(cause) => {
                    tracing::error!(%tenant, app = %group.app, group = group.name, %cause, "kept messages cannot be read");
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(Duration::from_secs(30));
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
        self.cleared(tenant, &group.app).await;
        disk::write(&self.data, tenant, group, id, message).await
    }
}
