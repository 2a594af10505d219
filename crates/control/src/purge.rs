//! The data of deleted apps, where that was asked for: the one task that has the nodes remove it. What is to go is
//! written down in the store first, so that it goes also when this process ends in between, and so that no new app of
//! that name is deployed over it meanwhile.

use std::sync::Arc;
use std::time::Duration;

use api::node::NodeApi;
use futures::StreamExt as _;
use model::plan::AppId;
use store::{Expect, Store, StoreError, keys};
use tokio_util::sync::CancellationToken;

use crate::load::app_id;
use crate::state::Shared;

/// The pause before what could not be removed yet is tried again.
const AGAIN: Duration = Duration::from_millis(500);

/// The task's own things.
pub(crate) struct Purger {
    pub(crate) store: Arc<dyn Store>,
    pub(crate) nodes: Arc<dyn NodeApi>,
    pub(crate) state: Arc<Shared>,
}

impl Purger {
    /// Runs until told to stop.
    pub(crate) async fn run(self, stop: CancellationToken) {
        loop {
            let wait = async {
                match self.round().await {
                    Ok(None) => tokio::time::sleep(AGAIN).await,
                    Ok(Some(seen)) => drop(self.store.watch(keys::PURGES, seen).next().await),
                    Err(cause) => {
                        tracing::warn!(%cause, "which data is to be removed cannot be read; trying again");
                        tokio::time::sleep(AGAIN).await;
                    }
                }
            };
            tokio::select! {
                () = stop.cancelled() => return,
                () = wait => {}
            }
        }
    }

    /// Has removed whatever can be; the store revision that was looked at where nothing is left.
    async fn round(&self) -> Result<Option<u64>, StoreError> {
        let snapshot = self.store.list(keys::PURGES).await?;
        let mut left = false;
        for entry in snapshot.entries {
            let Some(id) = app_id(&entry.key) else { continue };
            if self.purge(&id).await {
                self.store.delete(&entry.key, Expect::Any).await?;
                tracing::info!(tenant = %id.tenant, app = %id.app, "the data of a deleted app is removed");
            } else {
                left = true;
            }
        }
        Ok((!left).then_some(snapshot.revision))
    }

    async fn purge(&self, id: &AppId) -> bool {
        // A node that has not been told yet would start the app again, for example after a restart.
        let assigned = self.state.lock().observed.nodes.values().any(|node| node.apps.contains_key(id));
        if assigned {
            return false;
        }
        match self.nodes.purge(&id.tenant, &id.app).await {
            Ok(()) => true,
            Err(problem) => {
                tracing::debug!(tenant = %id.tenant, app = %id.app, %problem, "data of a deleted app stays for now");
                false
            }
        }
    }
}
