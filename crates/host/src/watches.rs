//! Watched buckets: which key changed goes to a queue of the node before the write is acknowledged, and from there to
//! whichever shard calls the component that watches (see [`crate::taking`]).

use std::time::Instant;

use api::services::KvTell;
use api::services::messaging::BrokerKind;
use futures::FutureExt;
use futures::future::BoxFuture;
use model::watch::{Kept, Keys};
use providers::keyvalue::watch::Listener;
use providers::meter::{ErrorKind, LinkMeter};
use runtime::trace::CallTrace;

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
    pub(crate) keys: Keys,
    pub(crate) broker: NodeBroker,
    /// The queue's name.
    pub(crate) group: String,
    /// Of the link that watches: counts what it loses.
    pub(crate) meter: std::sync::Arc<LinkMeter>,
}

impl Queue {
    /// What it is to be told of these keys.
    pub(crate) fn tell(&self, written: &[&str]) -> Option<KvTell> {
        let heard = (0..).zip(written).filter(|(_, key)| self.keys.has(key));
        let keys: Vec<u16> = heard.map(|(place, _)| place).collect();
        (!keys.is_empty()).then(|| KvTell {
            group: self.group.clone(),
            keys,
            trace: CallTrace::current().map(|trace| trace.context()),
        })
    }

    /// Counts changes that it is not told of.
    pub(crate) fn lost(&self, keys: u32) {
        let began = Instant::now();
        (0..keys).for_each(|_| self.meter.ended(began, Some(ErrorKind::Unavailable)));
    }
}

impl Listener for Queue {
    fn changed(&self, keys: Vec<String>) -> BoxFuture<'_, ()> {
        async move {
            let lost = u32::try_from(keys.len()).unwrap_or(u32::MAX);
            if let Err(cause) = self.broker.tell(&self.group, keys).await {
                tracing::warn!(group = self.group, lost, %cause, "changes of a watched bucket are not told");
                self.lost(lost);
            }
        }
        .boxed()
    }
}
