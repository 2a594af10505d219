//! Ends a revision, or the work of the whole host: what is under way may finish within its time, and what is left then is
//! ended and counted.

use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use api::agent::Drained;
use futures::future::join_all;
use model::{AppName, Revision};
use tokio::time::Instant;

use super::drain::{Drain, Until};
use super::{Apps, Running, Told, lock, route};
use crate::entry::Entry;
use crate::totals;

/// After a drain is asked for, calls that were sent before the sender knew of it are still taken.
const LATE: Duration = Duration::from_millis(250);
/// How long ended calls may take to be gone.
const ENDED: Duration = Duration::from_secs(1);
/// How long it may take then to say what becomes of their messages.
const TOLD: Duration = Duration::from_millis(500);

impl Apps {
    /// Ends a revision: late calls are taken for a moment, those in flight may finish until `deadline`. One that is
    /// not here is ended already; one that is being ended already is waited for.
    pub(crate) async fn drain_revision(
        self: &Arc<Self>,
        app: &AppName,
        revision: Revision,
        deadline: Duration,
    ) -> Drained {
        let Some(running) = self.running(app, revision) else { return Drained { ended: 0 } };
        running.draining.store(true, Relaxed);
        let done = Drain::of(self, app, revision, &running, Instant::now() + deadline);
        drop(running);
        done.await
    }

    pub(super) async fn end_revision(
        &self,
        app: &AppName,
        revision: Revision,
        running: Arc<Running>,
        mut until: Until,
    ) -> u64 {
        // No more messages. Those that are here already still find their component.
        let messages = running.taking.end();
        let ended = {
            let _told = Told::new(&self.drains);
            drop(tokio::time::timeout(LATE, until.passed()).await);
            tokio::select! {
                biased;
                () = messages => {}
                () = until.passed() => {}
            }
            {
                let mut routes = self.routes.write().unwrap_or_else(PoisonError::into_inner);
                for entry in &running.entries {
                    let route = route(app, revision, entry);
                    if routes.get(&route).is_some_and(|routed| Arc::ptr_eq(routed, entry)) {
                        routes.remove(&route);
                    }
                }
            }
            self.finish(&running.entries, until).await
        };
        {
            let mut revisions = lock(&self.revisions);
            let key = (app.clone(), revision);
            if revisions.get(&key).is_some_and(|known| Arc::ptr_eq(known, &running)) {
                revisions.remove(&key);
                self.holds.forget(app, revision);
                for entry in &running.entries {
                    self.totals.keep(app, entry.component(), &totals::counts(&entry.status()));
                }
            }
        }
        drop(running);
        self.forget_if_gone(app);
        self.providers.prune();
        self.code.prune();
        ended
    }

    /// Ends the host's work: as [`Apps::drain_revision`], for everything.
    pub(crate) async fn drain(&self, deadline: Duration) -> Drained {
        let _told = Told::new(&self.drains);
        let until = Instant::now() + deadline;
        let messages: Vec<_> = lock(&self.revisions).values().map(|running| running.taking.end()).collect();
        if self.in_flight.load(Relaxed) > 0 || !lock(&self.revisions).is_empty() {
            tokio::time::sleep(LATE.min(deadline)).await;
        }
        self.closed.store(true, Relaxed);
        self.ending.cancel();
        self.holds.close();
        self.left.notify_waiters();
        // Those that wait here go to others; that takes a word to their broker, or to the node.
        let mut messages = std::pin::pin!(join_all(messages));
        let told = tokio::time::timeout_at(until, messages.as_mut()).await.is_ok();
        let all: Vec<Arc<Entry>> = lock(&self.revisions).values().flat_map(|running| running.entries.clone()).collect();
        let drained = Drained { ended: self.finish(&all, until.into()).await };
        if !told && tokio::time::timeout(TOLD, messages).await.is_err() {
            for ((app, revision), running) in &*lock(&self.revisions) {
                let messages = running.taking.under_way();
                if messages > 0 {
                    tracing::warn!(%app, %revision, messages, "the host ends and could not say of messages what becomes of them; those of a broker that keeps none are lost");
                }
            }
        }
        drained
    }

    /// Waits for the calls of `entries` until `until`, then ends them; how many.
    async fn finish(&self, entries: &[Arc<Entry>], mut until: Until) -> u64 {
        let calls = || entries.iter().map(|entry| u64::from(entry.in_flight())).sum::<u64>();
        tokio::select! {
            biased;
            () = self.none_left(&calls) => return 0,
            () = until.passed() => {}
        }
        let ended = calls();
        for entry in entries {
            entry.ended().cancel();
        }
        if tokio::time::timeout(ENDED, self.none_left(&calls)).await.is_err() {
            tracing::warn!(calls = calls(), "calls are still there after they were ended");
        }
        ended
    }

    pub(super) async fn none_left(&self, calls: &impl Fn() -> u64) {
        loop {
            let mut left = std::pin::pin!(self.left.notified());
            left.as_mut().enable();
            if calls() == 0 {
                return;
            }
            left.await;
        }
    }

    /// An app without a revision here has nothing to count.
    pub(super) fn forget_if_gone(&self, app: &AppName) {
        let revisions = lock(&self.revisions);
        if !revisions.keys().any(|(known, _)| known == app) {
            self.totals.forget(app);
        }
    }
}
