//! The one task that makes assignments follow what is wanted. It sleeps until the store changes, claims expire, or a
//! failed write is due again; then it asks `model::plan` and writes what that says. Every transition it sees becomes an
//! event.

mod changes;
mod fair;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use api::control::event;
use futures::stream::{self, BoxStream, StreamExt as _};
use model::TenantName;
use model::plan::{Action, AppId, plan, plan_some};
use model::tenant::TenantSettings;
use store::keys::{self, Assignment};
use store::{Change, Expect, Store, StoreError};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::config::ControlError;
use crate::etags::Etags;
use crate::events::{Events, Subject};
use crate::load::{Loaded, load};
use crate::state::Shared;
use crate::turns::Turns;
use crate::{clock, writer};

pub(crate) use self::fair::Settled;
use self::fair::{Left, Reviews, SHARE, share};

/// Writes that are under way at once; the store commits them in groups.
const AT_ONCE: usize = 64;
/// Changes that are taken in before the plan is made.
const BATCH: usize = 1024;
/// Deleted apps whose history is removed before others' changes are looked at again, and records that are removed then.
const CLEANED: (usize, usize) = (16, 1024);
/// The first and the longest pause before a failed write or watch is tried again.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(10));
/// The wall clock can jump and the machine can sleep: expiry is looked at this often at least.
const CLOCK_CHECK: Duration = Duration::from_secs(30);
/// Revisions of an app that are kept.
pub(crate) const HISTORY: u64 = 50;

/// The task's own things. What others read is in `state`.
pub(crate) struct Reconciler {
    store: Arc<dyn Store>,
    state: Arc<Shared>,
    events: Events,
    etags: Etags,
    tenants: BTreeMap<TenantName, Arc<TenantSettings>>,
    floors: [(&'static str, u64); 5],
    /// Apps whose plan may have changed.
    dirty: BTreeSet<AppId>,
    /// Tenants whose apps are to be judged again.
    stale: BTreeSet<TenantName>,
    /// Every app's plan may have changed.
    all_dirty: bool,
    /// Deleted apps whose history is to be removed.
    purge: Vec<(AppId, store::keys::Head)>,
    /// Records that are too old to keep.
    prune: Vec<String>,
    settled: watch::Sender<Settled>,
    /// One is held while all is read anew, so that no deploy is lost from the state in between.
    turns: Arc<Turns>,
    backoff: Duration,
}

impl Reconciler {
    /// Reads the state; `run` then follows it.
    pub(crate) async fn start(
        store: Arc<dyn Store>,
        state: Arc<Shared>,
        events: Events,
        etags: Etags,
        settled: watch::Sender<Settled>,
        turns: Arc<Turns>,
    ) -> Result<Self, ControlError> {
        let mut this = Self {
            store,
            state,
            events,
            etags,
            tenants: BTreeMap::new(),
            floors: [("", 0); 5],
            dirty: BTreeSet::new(),
            stale: BTreeSet::new(),
            all_dirty: true,
            purge: Vec::new(),
            prune: Vec::new(),
            settled,
            turns,
            backoff: BACKOFF.0,
        };
        this.adopt(load(&this.store).await?);
        Ok(this)
    }

    fn adopt(&mut self, loaded: Loaded) {
        {
            let mut state = self.state.lock();
            // Moves of data that are under way are in no store: whoever makes one says when it is over.
            let (moves, ended) = (std::mem::take(&mut state.moves), std::mem::take(&mut state.ended));
            *state = loaded.state;
            (state.moves, state.ended) = (moves, ended);
            // What ended meanwhile nobody has said.
            state.ended.add(loaded.tenants.keys().cloned());
        }
        self.tenants = loaded.tenants;
        self.purge = loaded.deleted;
        self.floors = loaded.floors;
        self.all_dirty = true;
    }

    fn watch(&self) -> BoxStream<'static, Result<Change, StoreError>> {
        // One watch over everything keeps the order of the store: what is seen at revision n follows all before n.
        self.store.watch("", self.floor())
    }

    fn floor(&self) -> u64 {
        self.floors.iter().map(|(_, floor)| *floor).min().unwrap_or_default()
    }

    /// Runs until told to stop.
    pub(crate) async fn run(mut self, stop: CancellationToken) {
        while !stop.is_cancelled() {
            let watch = self.watch();
            tokio::select! {
                () = stop.cancelled() => return,
                lost = self.follow(watch) => tracing::warn!(cause = %lost, "the watch on the store was lost; reading all again"),
            }
            loop {
                tokio::select! {
                    () = stop.cancelled() => return,
                    () = tokio::time::sleep(self.longer_backoff()) => {}
                }
                let _turn = self.turns.take(None).await;
                match load(&self.store).await {
                    Ok(loaded) => {
                        self.adopt(loaded);
                        self.events.control(event::MISSED, Subject::None, &serde_json::json!({}));
                        break;
                    }
                    Err(cause) => tracing::warn!(%cause, "the state cannot be read; trying again"),
                }
            }
        }
    }

    /// Plans and acts on each batch of changes, until the watch is lost.
    async fn follow(&mut self, watch: BoxStream<'static, Result<Change, StoreError>>) -> StoreError {
        let mut watch = watch.ready_chunks(BATCH);
        let mut seen = self.floor();
        // All that was read was judged then.
        self.stale.clear();
        let mut reviews = Reviews::default();
        loop {
            let left = self.act().await;
            self.review(&mut reviews);
            self.settle(seen, &reviews);
            let wake = if left.failed {
                Some(Instant::now() + self.longer_backoff())
            } else {
                self.backoff = BACKOFF.0;
                self.next_wake()
            };
            // None before the others: who asks for much gets a part of the rounds.
            let changes = tokio::select! {
                changes = watch.next() => changes,
                judged = reviews.next() => match self.judged(judged) {
                    Ok(()) => continue,
                    Err(cause) => {
                        tracing::warn!(cause = %cause.problem, "the apps of a tenant cannot be judged again");
                        return StoreError::Unreachable(cause.problem.detail);
                    }
                },
                () = std::future::ready(()), if left.more && !left.failed => continue,
                () = sleep_until(wake.unwrap_or_else(Instant::now)), if wake.is_some() => {
                    self.all_dirty = true;
                    continue;
                }
            };
            let Some(changes) = changes else { return StoreError::Unreachable("the watch ended".to_owned()) };
            for change in changes {
                match change {
                    Ok(change) => {
                        seen = seen.max(change.revision);
                        if let Err(cause) = self.take(&change).await {
                            tracing::warn!(key = %change.key, cause = %cause.problem, "a change cannot be taken in");
                            return StoreError::Unreachable(cause.problem.detail);
                        }
                    }
                    Err(cause) => return cause,
                }
            }
        }
    }

    fn longer_backoff(&mut self) -> Duration {
        let pause = self.backoff;
        self.backoff = (self.backoff * 2).min(BACKOFF.1);
        pause
    }

    /// When the passing of time alone changes something.
    fn next_wake(&self) -> Option<Instant> {
        let now = clock::seconds();
        let at = self.state.lock().desired.next_change(now)?;
        Some(Instant::now() + Duration::from_secs(at.saturating_sub(now)).min(CLOCK_CHECK))
    }

    /// Carries out what the plan says, and removes old records: of each as much as one round does.
    async fn act(&mut self) -> Left {
        let now = clock::seconds();
        let actions = {
            let state = self.state.lock();
            if self.all_dirty {
                plan(&state.desired, &state.observed, now)
            } else {
                plan_some(&self.dirty, &state.desired, &state.observed, now)
            }
        };
        self.all_dirty = false;
        let (actions, later) = share(actions, SHARE);
        self.dirty = later;
        let placed = self.placed(&actions);
        let failed: Vec<AppId> = {
            let this = &*self;
            let work = stream::iter(actions).map(|action| async move { this.carry_out(action).await });
            work.buffer_unordered(AT_ONCE).filter_map(|failed| async { failed }).collect().await
        };
        self.judge_placed(placed).await;
        let Left { failed: unclean, more } = self.clean().await;
        let left = Left { failed: unclean || !failed.is_empty(), more: more || !self.dirty.is_empty() };
        self.dirty.extend(failed);
        left
    }

    /// Apps of these actions that are placed anew.
    fn placed(&self, actions: &[Action]) -> Vec<AppId> {
        let state = self.state.lock();
        let new = |action: &&Action| {
            let (node, id) = action.target();
            action.assigned().is_some() && state.observed.nodes.get(node).is_none_or(|n| !n.apps.contains_key(id))
        };
        actions.iter().filter(new).map(|action| action.target().1.clone()).collect()
    }

    /// Where an app was placed anew its node may still serve something of one of that name.
    async fn judge_placed(&mut self, placed: Vec<AppId>) {
        for id in placed {
            if self.state.lock().unjudged(&id).is_empty() {
                continue;
            }
            if let Err(cause) = self.judge_older(&id).await {
                tracing::warn!(app = %id.app, cause = %cause.problem, "what serves cannot be judged; trying again");
            }
            self.dirty.insert(id);
        }
    }

    /// Writes one assignment; answers with the app where that failed.
    async fn carry_out(&self, action: Action) -> Option<AppId> {
        let (node, id) = action.target();
        let key = keys::assigned(node, &id.tenant, &id.app);
        let assigned = action.assigned();
        let written = match &assigned {
            None => self.store.delete(&key, Expect::Any).await,
            Some(assigned) => {
                let assignment = Assignment {
                    revision: assigned.revision,
                    suspended: assigned.suspended.as_deref().cloned(),
                    expiry: assigned.expiry.as_deref().cloned(),
                    older: assigned.older.as_deref().cloned(),
                };
                match writer::encode(&assignment) {
                    Ok(value) => self.store.put(&key, value, Expect::Any, None).await,
                    Err(refusal) => Err(StoreError::Unreachable(refusal.problem.detail)),
                }
            }
        };
        if let Err(cause) = written {
            tracing::warn!(%key, %cause, "an assignment cannot be written; trying again");
            return Some(id.clone());
        }
        {
            let mut state = self.state.lock();
            let apps = &mut state.node(node).apps;
            match assigned {
                Some(assigned) => drop(apps.insert(id.clone(), assigned)),
                None => drop(apps.remove(id)),
            }
        }
        let subject = Subject::App(id.clone());
        match &action {
            Action::Suspend { reason, .. } => {
                tracing::warn!(tenant = %id.tenant, app = %id.app, reason = %reason.message, "suspended");
                self.events.control(event::SUSPENDED, subject, reason);
            }
            Action::Resume { told, .. } => {
                let revision = told.older.as_ref().map_or(told.revision, |older| older.revision);
                self.events.control(event::RESUMED, subject, &serde_json::json!({ "revision": revision }));
            }
            Action::Assign { .. } | Action::Unassign { .. } => {}
        }
        None
    }

    /// Removes a record, and what it counted.
    async fn remove(&self, key: &str) -> Result<(), StoreError> {
        let size = self.store.get(key).await?.map_or(0, |entry| entry.value.len() as u64);
        self.store.delete(key, Expect::Any).await?;
        if let Some(tenant) = writer::kept_for(key) {
            self.state.lock().count(&tenant, size, 0);
        }
        Ok(())
    }

    /// Removes what the schedules of a deleted app have decided and run, at once: a later app of that name may come.
    async fn forget_schedules(&self, id: &AppId) -> Result<(), StoreError> {
        for (key, _) in self.store.sizes(&keys::schedules_of(&id.tenant, &id.app)).await? {
            self.remove(&key).await?;
        }
        Ok(())
    }

    /// Removes the history of deleted apps, and records that are too old: some of them, as a tenant may have very many.
    async fn clean(&mut self) -> Left {
        let (apps, records) = CLEANED;
        let later = self.purge.split_off(self.purge.len().min(apps));
        let mut unread = false;
        for (id, head) in std::mem::replace(&mut self.purge, later) {
            // The next app of that name has missed nothing; where it is there already, its own records have the same keys.
            let next = self.state.lock().revision(&id).is_some();
            if !next && let Err(cause) = self.forget_schedules(&id).await {
                tracing::warn!(app = %id.app, %cause, "a deleted app's schedules cannot be removed; trying again");
                self.purge.push((id, head));
                unread = true;
                continue;
            }
            match self.store.sizes(&keys::revisions_of(&id.tenant, &id.app)).await {
                Ok(listed) => {
                    let last = keys::revision(&id.tenant, &id.app, head.revision);
                    // What is above belongs to the next app of that name.
                    self.prune.extend(listed.into_iter().map(|(key, _)| key).filter(|key| *key <= last));
                }
                Err(cause) => {
                    tracing::warn!(app = %id.app, %cause, "the history of a deleted app cannot be read; trying again");
                    self.purge.push((id, head));
                    unread = true;
                }
            }
        }
        let mut keys = std::mem::take(&mut self.prune);
        // Counted once, however often it is to go.
        keys.sort();
        keys.dedup();
        let later = keys.split_off(keys.len().min(records));
        let more = !later.is_empty() || !self.purge.is_empty();
        self.prune = later;
        let this = &*self;
        let work = stream::iter(keys).map(|key| async move {
            this.remove(&key).await.err().map(|cause| {
                tracing::warn!(%key, %cause, "an old revision cannot be removed; trying again");
                key
            })
        });
        let failed: Vec<String> = work.buffer_unordered(AT_ONCE).filter_map(|failed| async { failed }).collect().await;
        let left = Left { failed: unread || !failed.is_empty(), more };
        self.prune.extend(failed);
        left
    }
}
