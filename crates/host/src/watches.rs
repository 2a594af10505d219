//! Watched buckets: which key changed goes to a queue of the node before the write is acknowledged, and from there to
//! whichever shard calls the component that watches (see [`crate::taking`]).

use std::sync::Arc;
use std::time::Instant;

use api::services::messaging::BrokerKind;
use futures::FutureExt;
use futures::future::BoxFuture;
use model::watch::Kept;
use providers::keyvalue::watch::Listener;
use providers::meter::{Kind as _, LinkMeter};

use crate::broker::NodeBroker;

/// Which broker of the node keeps changes of such a provider, if one does.
pub(crate) fn broker(kept: Kept) -> Option<BrokerKind> {
    match kept {
        Kept::Memory => Some(BrokerKind::Local),
        Kept::Disk => Some(BrokerKind::Durable),
        Kept::Server => None,
    }
}

/// The queue of one watch.
pub(crate) struct Queue {
    pub(crate) broker: NodeBroker,
    /// The queue's name.
    pub(crate) group: String,
    /// Of the link that watches: counts what it loses.
    pub(crate) meter: Arc<LinkMeter>,
}

impl Listener for Queue {
    fn changed(&self, keys: Vec<String>) -> BoxFuture<'_, ()> {
        async move {
            let began = Instant::now();
            let lost = keys.len();
            if let Err(cause) = self.broker.tell(&self.group, keys).await {
                tracing::warn!(group = self.group, lost, %cause, "changes of a watched bucket are not told");
                (0..lost).for_each(|_| self.meter.ended(began, Some(cause.kind())));
            }
        }
        .boxed()
    }
}
