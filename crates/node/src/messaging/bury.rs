//! Messages that were tried often enough while there is no room where they are put away. They stay in their queue, in
//! nobody's hands, until there is: given out once more they would be handled once more.

use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use api::services::ServiceFault;
use api::services::messaging::{BrokerKind, WireMessage};
use model::TenantName;
use model::messaging::Group;

use super::queue::Fate;
use super::{Messaging, lock};

/// Between two looks for room.
const LEAST: Duration = Duration::from_millis(500);
const MOST: Duration = Duration::from_secs(30);

/// A message on its way.
pub(super) struct Dead {
    pub(super) tenant: TenantName,
    pub(super) kind: BrokerKind,
    pub(super) group: Group,
    pub(super) delivery: u64,
    pub(super) message: WireMessage,
}

impl Messaging {
    /// Puts it away now, or as soon as there is room. Where `false` is answered it is still there.
    pub(super) async fn put_away(self: &Arc<Self>, dead: Dead) -> bool {
        let Err(cause) = self.publish(&dead.tenant, dead.kind, dead.message.clone()).await else { return true };
        let kept = self.known(&dead.tenant, dead.kind).is_some_and(|broker| {
            let mut broker = lock(&broker);
            broker.groups.get_mut(&dead.group).is_some_and(|state| state.queue.keep(dead.delivery, Instant::now()))
        });
        if kept {
            let Group { app, name } = &dead.group;
            let (tenant, subject) = (&dead.tenant, &dead.message.subject);
            if let Some(left_out) = self.may_say(tenant) {
                tracing::warn!(%tenant, %app, group = name, subject, %cause, left_out, "a message cannot be put away yet and waits");
            }
            tokio::spawn(bury(Arc::downgrade(self), dead));
        }
        false
    }

    fn keeps(&self, dead: &Dead) -> bool {
        let Some(broker) = self.known(&dead.tenant, dead.kind) else { return false };
        let broker = lock(&broker);
        broker.groups.get(&dead.group).is_some_and(|state| state.queue.handed(dead.delivery).is_some())
    }

    async fn try_again(&self, dead: &Dead) -> Result<(), ServiceFault> {
        // Before it leaves the group: a crash in between leaves two, never none.
        self.publish(&dead.tenant, dead.kind, dead.message.clone()).await?;
        self.settled(&dead.tenant, dead.kind, &dead.group, dead.delivery, Fate::Gone).await.map(drop)
    }
}

async fn bury(messaging: Weak<Messaging>, dead: Dead) {
    let mut pause = LEAST;
    loop {
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(MOST);
        // Its app may be gone, or the node ending.
        let Some(messaging) = messaging.upgrade().filter(|messaging| messaging.keeps(&dead)) else { return };
        if messaging.try_again(&dead).await.is_ok() {
            return;
        }
    }
}
