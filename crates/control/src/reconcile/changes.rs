//! What one change in the store means: for the state, for the plan, and for everybody who listens.

use std::sync::Arc;

use api::control::event;
use model::app::Revision;
use model::observed::{AppObserved, Served};
use model::plan::AppId;
use model::schedule::{self, Record};
use model::tenant::TenantSettings;
use model::{NodeName, ScheduleName, TenantName};
use serde::de::DeserializeOwned;
use serde_json::json;
use store::keys::{self, Head, NodeRecord, RevisionRecord};
use store::{Change, Entry};

use super::{HISTORY, Reconciler};
use crate::events::Subject;
use crate::http::Answer;
use crate::load::{app_id, node_and_app, older, reported, schedule_of};
use crate::{clock, trust, writer};

/// What the key holds now; `None` where it is gone.
fn entry(change: &Change) -> Option<Entry> {
    let value = change.value.clone()?;
    Some(Entry { key: change.key.clone(), value, revision: change.revision })
}

fn decode<T: DeserializeOwned>(change: &Change) -> Answer<Option<T>> {
    entry(change).map(|entry| writer::decode(&entry)).transpose()
}

impl Reconciler {
    /// Takes in one change.
    pub(super) async fn take(&mut self, change: &Change) -> Answer<()> {
        let key = change.key.as_str();
        if self.floors.iter().any(|(prefix, floor)| key.starts_with(prefix) && change.revision <= *floor) {
            return Ok(());
        }
        let mut names = keys::parts(key);
        if key.starts_with(keys::APPS) {
            if let Some(id) = app_id(key) {
                return self.app(id, decode(change)?, change.revision).await;
            }
        } else if key.starts_with(keys::TENANTS) {
            if let Some(name) = names.next().and_then(|n| n.parse().ok()) {
                self.tenant(name, decode(change)?, change.revision);
            }
        } else if key.starts_with(keys::NODES) {
            if let Some(name) = names.next().and_then(|n| n.parse().ok()) {
                self.node(name, entry(change).and_then(|e| reported(&e)));
            }
        } else if key.starts_with(keys::SCHEDULES) {
            if let Some((id, name)) = schedule_of(key)
                && let Some(record) = entry(change).and_then(|e| reported(&e))
            {
                self.schedule(id, &name, &record);
            }
        } else if key.starts_with(keys::SERVED) {
            if let Some((node, id)) = node_and_app(key) {
                return self.served(&node, id, entry(change).and_then(|e| reported(&e))).await;
            }
        } else if key.starts_with(keys::OBSERVED)
            && let Some((node, id)) = node_and_app(key)
        {
            self.report(node, id, entry(change).and_then(|e| reported(&e)));
        }
        Ok(())
    }

    async fn app(&mut self, id: AppId, head: Option<Head>, at: u64) -> Answer<()> {
        let subject = Subject::App(id.clone());
        match head {
            Some(head) if !head.deleted => {
                let first = self.wanted(&id, &head, at, subject).await?.0;
                // Numbers that were skipped push out as many as those that were not.
                let old = (first..=head.revision.0).filter_map(|number| number.checked_sub(HISTORY));
                let old: Vec<_> = old.filter(|old| *old > 0).map(Revision).collect();
                self.let_go(&id, head.revision, old);
                self.judge_older(&id).await?;
            }
            deleted => {
                {
                    let mut state = self.state.lock();
                    state.forget(&id, at);
                    state.settle(&id, at);
                }
                let last = deleted.as_ref().map(|head| head.revision);
                self.events.control(event::DELETED, subject, &json!({ "revision": last }));
                self.purge.extend(deleted.map(|head| (id.clone(), head)));
            }
        }
        self.dirty.insert(id);
        Ok(())
    }

    /// Takes in which revision is wanted; answers with the first number after the one that was wanted before it.
    async fn wanted(&mut self, id: &AppId, head: &Head, at: u64, subject: Subject) -> Answer<Revision> {
        let entry = self.store.get(&keys::revision(&id.tenant, &id.app, head.revision)).await?;
        let Some(entry) = entry else {
            // Deleted since, with its history: that change is on its way.
            self.events.control(event::DEPLOYED, subject, &json!({ "revision": head.revision }));
            return Ok(head.revision);
        };
        let record: RevisionRecord = writer::decode(&entry)?;
        let settings = self.tenants.get(&id.tenant).cloned().unwrap_or_default();
        let wanted = trust::wanted(&record, &settings, clock::seconds());
        self.state.lock().want(id, at, &record.app, wanted);
        self.events.control(
            event::DEPLOYED,
            subject,
            &json!({ "revision": record.revision, "origin": record.origin, "message": record.message }),
        );
        Ok(record.previous.map_or(record.revision, |previous| Revision(previous.0.saturating_add(1))))
    }

    /// Removes records of these revisions that are too old to keep, and that nobody keeps all the same.
    fn let_go(&mut self, id: &AppId, newest: Revision, revisions: Vec<Revision>) {
        let state = self.state.lock();
        let old = |revision: &Revision| revision.0.saturating_add(HISTORY) <= newest.0 && !state.keeps(id, *revision);
        let keys = revisions.into_iter().filter(old).map(|old| keys::revision(&id.tenant, &id.app, old));
        self.prune.extend(keys);
    }

    /// A node serves another revision of an app than before, or none.
    async fn served(&mut self, node: &NodeName, id: AppId, served: Option<Served>) -> Answer<()> {
        let (newest, revisions) = {
            let mut state = self.state.lock();
            (state.revision(&id), state.serves(node, &id, served))
        };
        if let Some(newest) = newest {
            self.let_go(&id, newest, revisions);
            self.judge_older(&id).await?;
            self.dirty.insert(id);
        }
        Ok(())
    }

    /// Judges what nodes serve of an app in the place of what is wanted, where nobody has yet.
    pub(super) async fn judge_older(&self, id: &AppId) -> Answer<()> {
        let unjudged = self.state.lock().unjudged(id);
        for revision in unjudged {
            let settings = self.tenants.get(&id.tenant).cloned().unwrap_or_default();
            let (app, judged) = older(&self.store, id, revision, &settings).await?;
            self.state.lock().stands(id, app.as_ref(), judged);
        }
        Ok(())
    }

    /// Where trust has changed, every app of the tenant is judged again, from its record, and what serves of it as well.
    fn tenant(&mut self, name: TenantName, settings: Option<TenantSettings>, at: u64) {
        let gone = settings.is_none();
        let settings = Arc::new(settings.unwrap_or_default());
        let before = self.tenants.insert(name.clone(), settings.clone()).unwrap_or_default();
        if !trust::same_judgement(&before, &settings) {
            self.stale.insert(name.clone());
        }
        self.events.control(
            event::TENANT_CHANGED,
            Subject::Tenant(name.clone()),
            &json!({ "etag": self.etags.of(at) }),
        );
        if gone {
            self.events.forget(&name);
        }
    }

    fn node(&mut self, name: NodeName, record: Option<NodeRecord>) {
        let mut state = self.state.lock();
        let was = state.nodes.get(&name).map(|r| r.pid);
        state.node(&name).alive = record.is_some();
        match record {
            Some(record) => {
                let data = json!({ "ingress": record.ingress, "pid": record.pid });
                if was != Some(record.pid) {
                    self.events.node(&name, event::NODE_JOINED, Subject::None, &data);
                }
                state.nodes.insert(name, record);
                // Apps may wait for a place.
                self.all_dirty = true;
            }
            None => {
                state.nodes.remove(&name);
                if was.is_some() {
                    tracing::warn!(node = %name, "lost; what it runs stays assigned to it");
                    self.events.node(&name, event::NODE_LOST, Subject::None, &json!({}));
                }
            }
        }
    }

    fn schedule(&self, id: AppId, name: &ScheduleName, record: &Record) {
        let subject = Subject::App(id);
        match (record.change, &record.last) {
            (schedule::Change::Ended, Some(last)) => {
                let data = json!({
                    "schedule": name, "due_ms": last.due_ms, "began_ms": last.began_ms, "ended_ms": last.ended_ms,
                    "manual": last.manual, "error": last.error,
                });
                self.events.control(event::SCHEDULE_RAN, subject, &data);
            }
            (schedule::Change::Passed, _) => {
                let data = json!({ "schedule": name, "decided_ms": record.decided_ms, "passed": record.passed });
                self.events.control(event::SCHEDULE_PASSED, subject, &data);
            }
            _ => {}
        }
    }

    fn report(&mut self, node: NodeName, id: AppId, report: Option<AppObserved>) {
        let mut state = self.state.lock();
        let reports = state.reports.entry(node.clone()).or_default();
        let subject = Subject::App(id.clone());
        match report {
            Some(report) => {
                if reports.get(&id) != Some(&report) {
                    self.events.node(&node, event::PHASE, subject, &report);
                    reports.insert(id, report);
                }
            }
            None => {
                if reports.remove(&id).is_some() {
                    self.events.node(&node, event::GONE, subject, &json!({}));
                }
                if reports.is_empty() {
                    state.reports.remove(&node);
                }
            }
        }
    }
}
