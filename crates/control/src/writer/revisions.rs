//! How a revision of an app comes to be wanted, and how an app ends.
//!
//! A deploy writes the revision's record first and then moves the head to it, with compare-and-set: the head is the commit
//! point. A crash in between leaves a record that nothing points to: its number is skipped by the next deploy, and it is
//! part of no history.

use api::client::Require;
use api::control::{Accepted, Origin};
use api::problem::Code;
use model::app::{LockedApp, Revision};
use model::observed::{AppObserved, Phase};
use model::plan::AppId;
use store::keys::{self, Head, Keyed, RevisionRecord};
use store::{Expect, StoreError};

use super::kept::is_operators;
use super::offers::refreshed;
use super::{Cause, Current, Writer, check, configs, counted, decode, defect, encode, no_app, refuse};
use crate::clock;
use crate::http::{Answer, Refusal};
use crate::tokens::Caller;
use crate::trust::{self, Seen};

/// Idempotency keys that a head remembers.
const KEYS: usize = 16;
/// Numbers of abandoned records that one deploy skips: each is a crash at the same app between two writes.
const MAX_SKIPS: u64 = 1000;

impl Writer {
    /// `deploy`.
    pub(crate) async fn deploy(&self, id: &AppId, mut app: LockedApp, cause: Cause, by: &Caller) -> Answer<Accepted> {
        self.tenant(&id.tenant).await?;
        let many = counted(&app);
        if !many.is_empty() {
            return Err(refuse(many));
        }
        let foreign = self.foreign(id, &app).await?;
        if !foreign.is_empty() {
            return Err(refuse(foreign));
        }
        // Reading artifacts takes time; done here first, the same check below has them read.
        let settings = self.tenant(&id.tenant).await?.settings;
        let vetted = self.vetter.vet(&app, (&id.tenant, &settings), None, clock::seconds()).await;
        let seen = vetted.map_err(refuse)?.seen;
        let _turn = self.turn(Some(by), &id.tenant).await?;
        let head = self.head(id).await?;
        if let Some(key) = &cause.key
            && let Some((head, _)) = &head
            && let Some(done) = head.keyed.iter().find(|k| k.key == *key).filter(|_| !head.deleted)
        {
            return self.repeated(id, &app, done).await;
        }
        check(id, head.as_ref().map(|(head, _)| head), cause.require)?;
        if self.store.get(&keys::purge(&id.tenant, &id.app)).await?.is_some() {
            // What the new app writes would be removed with what the old one left.
            let text = format!("the data of the deleted app `{}` is still being removed", id.app);
            return Err(Refusal::new(Code::Conflict, text)
                .help("deploy again in a moment; calls that were under way may take as long as their `wall` limit"));
        }
        self.fill(&id.tenant, &mut app).await?.map_or(Ok(()), |missing| Err(refuse(missing)))?;
        self.append(id, head, app, cause, &seen).await
    }

    async fn repeated(&self, id: &AppId, app: &LockedApp, done: &Keyed) -> Answer<Accepted> {
        match self.record(id, done.revision).await {
            Ok(record) if configs::same_wish(&record.app, app) => {
                Ok(Accepted { revision: done.revision, unchanged: false })
            }
            Ok(_) => Err(Refusal::new(
                Code::Conflict,
                format!("the idempotency key was used for revision {} with other content", done.revision),
            )
            .help("use a new key for new content")),
            Err(refusal) => Err(refusal),
        }
    }

    /// `rollback`: a new revision with the content of an earlier one.
    /// Where nobody asks for it, the platform takes back what it has done itself, and that is free of the quota: there must
    /// be a way back.
    pub(crate) async fn rollback(
        &self,
        id: &AppId,
        to: Option<Revision>,
        require: Require,
        by: Option<&Caller>,
    ) -> Answer<Accepted> {
        let (current, _) = self.there(id, require).await?;
        let seen = self.see(id, &self.earlier(id, &current, to).await?.app).await;
        let _turn = self.turn(by, &id.tenant).await?;
        let (current, head) = self.there(id, require).await?;
        let to = self.earlier(id, &current, to).await?;
        let origin = Origin::Rollback { to: to.revision };
        // The content of then, at the operator's providers of now. Shared configs come back as they were then; what the
        // operator offers of the environment is for now to say.
        let mut app = refreshed(to.app, &self.tenant(&id.tenant).await?.settings);
        self.fill_env(&mut app).await?;
        let cause = Cause { origin, message: to.message, require, key: None, free: by.is_none() };
        self.append(id, head, app, cause, &seen).await
    }

    /// The revision of an app that is meant; where none is named, what serves in the place of the wanted one, or what served
    /// before it. Only where nothing ever did it is the last one that was wanted: what never served mends nothing.
    async fn earlier(&self, id: &AppId, current: &Current, to: Option<Revision>) -> Answer<RevisionRecord> {
        if let Some(to) = to {
            return self.past(id, to).await;
        }
        let none = || {
            let text = format!("app `{}` has no revision before {}", id.app, current.head.revision);
            Refusal::new(Code::NotFound, text)
        };
        let back = self.state.lock().way_back(id, current.head.revision);
        if let Some(back) = back {
            match self.past(id, back).await {
                Err(refusal) if refusal.problem.code == Code::NotFound => {}
                found => return found,
            }
        }
        let previous = current.record.previous.ok_or_else(none)?;
        self.recorded(id, previous).await?.ok_or_else(none)
    }

    /// Judges, records and commits. The caller holds the turn, and has `seen` the artifacts before it.
    pub(super) async fn append(
        &self,
        id: &AppId,
        head: Option<(Head, u64)>,
        app: LockedApp,
        cause: Cause,
        seen: &Seen,
    ) -> Answer<Accepted> {
        let tenant = self.tenant(&id.tenant).await?;
        let vetted = self.judge(id, &app, &tenant, Some(seen)).await.map_err(refuse)?;
        // Where the same content failed on its node, asking for it again means trying it again: as a new revision.
        if let Some((head, _)) = head.as_ref().filter(|(head, _)| !head.deleted)
            && self.record(id, head.revision).await?.app == app
            && !self.failed(id, head.revision).await?
        {
            return Ok(Accepted { revision: head.revision, unchanged: true });
        }
        if let Some(moved) = self.state.lock().moves.get(id) {
            moved.check(&app)?;
        }
        let (old, expect) = match head {
            Some((head, at)) => (head, Expect::Revision(at)),
            None => {
                let none = Head { revision: Revision(0), deleted: false, since: None, keyed: Vec::new() };
                (none, Expect::Absent)
            }
        };
        let mut record = RevisionRecord {
            revision: old.revision,
            previous: (old.revision > Revision(0) && !old.deleted).then_some(old.revision),
            created_ms: clock::millis(),
            origin: serde_json::to_value(&cause.origin).map_err(defect)?,
            message: cause.message,
            app,
            claims: vetted.claims,
        };
        if !cause.free && !is_operators(&cause.origin) {
            let bytes = encode(&record)?.len();
            let unkept = self.unkept(id, record.revision, bytes, &tenant.settings).await?;
            unkept.map_or(Ok(()), |problem| Err(Refusal::from(problem)))?;
        }
        self.put_record(id, &mut record).await?;
        let since = if record.previous.is_some() { old.since } else { Some(record.revision) };
        let mut head = Head { revision: record.revision, deleted: false, since, keyed: old.keyed };
        if old.deleted {
            head.keyed.clear();
        }
        if let Some(key) = cause.key {
            head.keyed.push(Keyed { key, revision: record.revision });
            let excess = head.keyed.len().saturating_sub(KEYS);
            head.keyed.drain(..excess);
        }
        self.give_up_hosts(id, Some(&record.app)).await?;
        let at = self.store.put(&keys::app(&id.tenant, &id.app), encode(&head)?, expect, None).await?;
        let wanted = trust::wanted(&record, &tenant.settings, clock::seconds());
        self.state.lock().want(id, at, &record.app, wanted);
        Ok(Accepted { revision: record.revision, unchanged: false })
    }

    /// A node reports that the revision does not start there. One that is suspended is not meant: settings end that.
    async fn failed(&self, id: &AppId, revision: Revision) -> Answer<bool> {
        let nodes: Vec<_> = {
            let state = self.state.lock();
            if state.desired.apps.get(id).is_some_and(|wanted| wanted.barred(clock::seconds()).is_some()) {
                return Ok(false);
            }
            state.nodes.keys().cloned().collect()
        };
        for node in nodes {
            let entry = self.store.get(&keys::observed(&node, &id.tenant, &id.app)).await?;
            let report = entry.map(|entry| decode::<AppObserved>(&entry)).transpose()?;
            if report.is_some_and(|report| report.revision == revision && report.phase == Phase::Failed) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Writes the record under the next free number.
    async fn put_record(&self, id: &AppId, record: &mut RevisionRecord) -> Answer<()> {
        for _ in 0..MAX_SKIPS {
            record.revision = Revision(record.revision.0.saturating_add(1));
            let key = keys::revision(&id.tenant, &id.app, record.revision);
            match self.keep(&key, encode(&*record)?, Expect::Absent).await {
                Err(StoreError::Conflict { .. }) => {
                    tracing::info!(%key, "skipped the number of a revision that was never committed");
                }
                done => return done.map(drop).map_err(Refusal::from),
            }
        }
        Err(Refusal::new(Code::Internal, format!("app `{}` has no free revision number", id.app)))
    }

    /// Deletes an app. Its routes and assignments go at once, its history soon after; its data stays, unless `purge`:
    /// then it goes once the last call has ended, also where the app was deleted before. Answers with the store revision
    /// of the last write.
    pub(crate) async fn delete(&self, id: &AppId, require: Require, purge: bool, by: &Caller) -> Answer<u64> {
        let _turn = self.turn(Some(by), &id.tenant).await?;
        let there = self.head(id).await?.filter(|(head, _)| purge || !head.deleted);
        let (head, mut at) = there.ok_or_else(|| no_app(id))?;
        check(id, Some(&head), require)?;
        if !head.deleted {
            self.give_up_hosts(id, None).await?;
            let head = Head { deleted: true, keyed: Vec::new(), ..head };
            let key = keys::app(&id.tenant, &id.app);
            at = self.store.put(&key, encode(&head)?, Expect::Revision(at), None).await?;
            {
                let mut state = self.state.lock();
                state.forget(id, at);
                // What its move of data holds is not the next app's of that name.
                state.moves.remove(id);
            }
            self.remove(&keys::copy(&id.tenant, &id.app)).await?;
        }
        if purge {
            // After the head: a crash in between leaves data that can still be asked for, never an app without its data.
            at = self.store.put(&keys::purge(&id.tenant, &id.app), encode(&())?, Expect::Any, None).await?;
        }
        Ok(at)
    }
}
