//! What the node tells the control plane, in the order it happened: reports that vanish with the node (leased), and
//! the few facts that outlive it. One task, so that a report never overtakes an earlier one.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use store::{Expect, LeaseId, Store, StoreError};
use tokio::sync::mpsc;
use tokio::time::MissedTickBehavior;

/// How long reports outlive a node that says nothing.
const TTL: Duration = Duration::from_secs(15);
/// How often the node says that it is there.
const BEAT: Duration = Duration::from_secs(4);

/// One thing to tell.
#[derive(Debug)]
pub(crate) enum Said {
    /// A report: there as long as the node is.
    Report(String, Bytes),
    /// The report's subject is gone.
    Withdraw(String),
    /// A fact that is kept; `None` removes it.
    Keep(String, Option<Bytes>),
}

/// Tells until the sender is gone, then withdraws every report.
pub(crate) async fn publish(store: Arc<dyn Store>, mut said: mpsc::UnboundedReceiver<Said>) {
    let mut publisher = Publisher { store, lease: None, reports: BTreeMap::new(), facts: BTreeMap::new() };
    let mut beat = tokio::time::interval(BEAT);
    beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let done = tokio::select! {
            _ = beat.tick() => publisher.beat().await,
            one = said.recv() => match one {
                Some(one) => publisher.say(one).await,
                None => break,
            },
        };
        if let Err(cause) = done {
            tracing::warn!(%cause, "the store does not take the node's reports; they are told again");
            publisher.lease = None;
        }
    }
    if let Some(lease) = publisher.lease
        && let Err(cause) = publisher.store.revoke(lease).await
    {
        tracing::debug!(%cause, "the node's reports vanish by themselves");
    }
}

struct Publisher {
    store: Arc<dyn Store>,
    /// Empty: everything has to be told again.
    lease: Option<LeaseId>,
    reports: BTreeMap<String, Bytes>,
    /// Facts the store has not taken yet.
    facts: BTreeMap<String, Option<Bytes>>,
}

impl Publisher {
    async fn beat(&mut self) -> Result<(), StoreError> {
        if let Some(lease) = self.lease {
            match self.store.keep_alive(lease).await {
                Err(StoreError::LeaseEnded(_)) => {}
                other => return other,
            }
        }
        self.tell_all().await
    }

    async fn tell_all(&mut self) -> Result<(), StoreError> {
        let lease = self.store.grant(TTL).await?;
        for (key, value) in &self.reports {
            self.store.put(key, value.clone(), Expect::Any, Some(lease)).await?;
        }
        self.lease = Some(lease);
        while let Some((key, value)) = self.facts.pop_first() {
            self.keep(key, value).await?;
        }
        Ok(())
    }

    async fn say(&mut self, one: Said) -> Result<(), StoreError> {
        match one {
            Said::Report(key, value) => {
                self.reports.insert(key.clone(), value.clone());
                match self.lease {
                    Some(lease) => match self.store.put(&key, value, Expect::Any, Some(lease)).await {
                        Err(StoreError::LeaseEnded(_)) => self.tell_all().await,
                        other => other.map(drop),
                    },
                    None => Ok(()),
                }
            }
            Said::Withdraw(key) => match self.reports.remove(&key) {
                Some(_) => self.store.delete(&key, Expect::Any).await.map(drop),
                None => Ok(()),
            },
            Said::Keep(key, value) => self.keep(key, value).await,
        }
    }

    async fn keep(&mut self, key: String, value: Option<Bytes>) -> Result<(), StoreError> {
        let result = match &value {
            Some(value) => self.store.put(&key, value.clone(), Expect::Any, None).await,
            None => self.store.delete(&key, Expect::Any).await,
        };
        // The last one counts: an earlier one that waits to be told again is out of date.
        match &result {
            Ok(_) => drop(self.facts.remove(&key)),
            Err(_) => drop(self.facts.insert(key, value)),
        }
        result.map(drop)
    }
}
