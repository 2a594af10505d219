//! From a process that was started to a host that the ingress may use: it says who it is, and gets everything it is to run.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use api::agent::HostInfo;
use api::{Code, Problem};
use futures::future::join_all;
use futures::stream::StreamExt;
use model::{AppName, Revision};

use super::follow::{self, Lines};
use super::{HostChange, HostRef, Supervisor};
use crate::recompile::uncompiled;
use crate::taking;
use crate::tenant::Prepared;

/// A host that does not answer for so long after its start is ended.
pub(super) const READY: Duration = Duration::from_secs(30);
/// Revisions given to a fresh host at once.
const RESTORE_AT_ONCE: usize = 8;

impl Supervisor {
    /// Waits until the host answers, opens its log, and gives it every revision it is to have. What it refuses is told, and keeps
    /// nothing else from being served.
    pub(super) async fn bring_up(&self, pid: Option<u32>) -> Result<(HostChange, Lines), Problem> {
        let info = tokio::time::timeout(READY, self.first_answer()).await;
        let info = info.map_err(|_| Problem::new(Code::TimedOut, format!("did not answer within {READY:?}")))?;
        // In its own namespace its number is another one.
        let info = Arc::new(HostInfo { pid: pid.unwrap_or(info.pid), ..info });
        if info.tenant != self.plan.tenant.name || info.shard != self.shard {
            let detail = format!("says it is shard {} of tenant {}", info.shard, info.tenant);
            return Err(Problem::new(Code::Internal, detail));
        }
        // Each has the code of the tenant compiled and kept once more.
        if !self.plan.tenant.engines_of(info.fingerprints.values()) {
            return Err(Problem::new(
                Code::Internal,
                "says it has one engine after the other, or one of an unusable name",
            ));
        }
        self.info.store(Some(info.clone()));
        let lines = follow::open_lines(&self.client, &self.plan.tenant, &self.plan.logs);
        let lines = tokio::time::timeout(READY, lines).await;
        let lines =
            lines.map_err(|_| Problem::new(Code::TimedOut, format!("did not open its log within {READY:?}")))?;
        self.hold().await?;
        let revisions = self.plan.tenant.revisions_for(self.shard, self.plan.shards.load(Ordering::Acquire));
        let uncompiled = uncompiled(&self.plan.services.artifacts, &info, revisions.clone());
        let puts =
            futures::stream::iter(revisions).map(|prepared| self.put(prepared)).buffer_unordered(RESTORE_AT_ONCE);
        let refused = puts.filter_map(std::future::ready).collect::<Vec<_>>();
        let (uncompiled, refused) = tokio::join!(uncompiled, refused);
        // Nobody answers: that is not the fault of a revision.
        match refused.iter().find(|(_, _, problem)| problem.code == Code::Unreachable) {
            Some((_, _, problem)) => Err(problem.clone()),
            None => Ok((HostChange::Ready { refused, uncompiled }, lines)),
        }
    }

    /// Calls that wait elsewhere wait here as well. Whoever lets them go on changes the tenant's list first, and then
    /// tells every host, so none is held for ever.
    async fn hold(&self) -> Result<(), Problem> {
        let held = self.plan.tenant.held.lock().await;
        for (app, revision) in &*held {
            self.client.hold(app, *revision, Duration::ZERO).await?;
        }
        Ok(())
    }

    /// Has the host take messages for the revisions that do. It is ready already: one that begins from now on is told
    /// by whoever begins it.
    pub(super) fn taking(&self) -> impl Future<Output = ()> + use<> {
        let shards = self.plan.shards.load(Ordering::Acquire);
        let revisions = self.plan.tenant.revisions_for(self.shard, shards).into_iter();
        let all: Vec<_> = revisions.filter(|one| one.taking.load(Ordering::SeqCst)).collect();
        let host = HostRef {
            shard: self.shard,
            client: self.client.clone(),
            info: self.info.clone(),
            state: self.tell.subscribe(),
        };
        async move {
            join_all(all.into_iter().map(|one| taking::tell(one, vec![host.clone()]))).await;
        }
    }

    async fn put(&self, prepared: Arc<Prepared>) -> Option<(AppName, Revision, Problem)> {
        let (app, revision) = (&prepared.app, prepared.revision);
        let result = self.client.start_encoded(app, revision, prepared.start_request(false)).await;
        result.err().map(|problem| (app.clone(), revision, problem))
    }

    async fn first_answer(&self) -> HostInfo {
        let mut pause = Duration::from_millis(1);
        loop {
            // The question waits in the socket until the process takes it; where that ended, there is nothing to wait on.
            match self.client.info().await {
                Ok(info) => return info,
                Err(cause) => tracing::trace!(%cause, "a host is not ready yet"),
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(Duration::from_millis(20));
        }
    }
}
