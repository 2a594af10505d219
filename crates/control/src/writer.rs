//! The one place that changes what is wanted: revisions, deletions, tenant settings. Writes are made one after another,
//! so that two apps can never both win the same route, and no deploy is judged by settings that were just replaced.
//!
//! A deploy writes the revision's record first and then moves the head to it, with compare-and-set: the head is the commit
//! point. A crash in between leaves a record that nothing points to; its number is skipped by the next deploy.

mod configs;
mod gone;
mod secrets;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use api::client::Require;
use api::control::{Accepted, LinkRequest, Origin};
use api::problem::{Code, Problem};
use axum::http::StatusCode;
use bytes::Bytes;
use model::app::{LockedApp, ProviderSpec, Revision};
use model::observed::{AppObserved, Phase};
use model::plan::AppId;
use model::rules::{self, provider::built_in};
use model::tenant::TenantSettings;
use model::{NodeName, ProviderName, TenantName, admission};
use serde::Serialize;
use serde::de::DeserializeOwned;
use store::keys::{self, Head, Keyed, RevisionRecord};
use store::secrets::Secrets;
use store::{Entry, Expect, Store, StoreError};
use tokio::sync::Mutex;

use crate::clock;
use crate::http::{Answer, Refusal};
use crate::state::Shared;
use crate::trust::{self, Vetted, Vetter};

/// Idempotency keys that a head remembers.
const KEYS: usize = 16;
/// Numbers of abandoned records that one deploy skips: each is a crash at the same app between two writes.
const MAX_SKIPS: u64 = 1000;

/// Whoever holds it is the only one who changes what is wanted.
pub(crate) type Turn = Arc<Mutex<()>>;

/// Makes all changes.
pub(crate) struct Writer {
    pub(crate) store: Arc<dyn Store>,
    pub(crate) vetter: Vetter,
    pub(crate) secrets: Arc<Secrets>,
    pub(crate) state: Arc<Shared>,
    turn: Turn,
}

/// How a revision comes about.
pub(crate) struct Cause {
    pub(crate) origin: Origin,
    pub(crate) message: Option<String>,
    pub(crate) require: Require,
    pub(crate) key: Option<String>,
}

/// An app that is there.
pub(crate) struct Current {
    pub(crate) head: Head,
    pub(crate) record: RevisionRecord,
}

/// A link that is to be moved.
pub(crate) struct Planned {
    /// The revision it is in.
    pub(crate) revision: Revision,
    /// As it is.
    pub(crate) link: model::Link,
    /// Where it goes now.
    pub(crate) from: (ProviderName, ProviderSpec),
    /// Where it will go.
    pub(crate) to: (ProviderName, ProviderSpec),
    /// The providers that secrets of either come from.
    pub(crate) sources: BTreeMap<ProviderName, ProviderSpec>,
    /// The labels of the component's other links of this contract.
    pub(crate) others: Vec<model::Label>,
}

/// A tenant that is there.
pub(crate) struct Tenant {
    pub(crate) settings: Arc<TenantSettings>,
    pub(crate) etag: u64,
}

impl Writer {
    pub(crate) fn new(
        store: Arc<dyn Store>,
        vetter: Vetter,
        secrets: Arc<Secrets>,
        state: Arc<Shared>,
        turn: Turn,
    ) -> Self {
        Self { store, vetter, secrets, state, turn }
    }

    /// Waits until nobody else changes what is wanted.
    pub(crate) async fn turn(&self) -> tokio::sync::MutexGuard<'_, ()> {
        self.turn.lock().await
    }

    /// The tenant is there and not suspended.
    pub(crate) async fn active(&self, name: &TenantName) -> Answer<()> {
        match &self.tenant(name).await?.settings.suspended {
            None => Ok(()),
            Some(why) => Err(trust::suspended(why).into()),
        }
    }

    /// The tenant's settings as they are in the store.
    pub(crate) async fn tenant(&self, name: &TenantName) -> Answer<Tenant> {
        let entry = self.store.get(&keys::tenant(name)).await?;
        let entry = entry.ok_or_else(|| Refusal::new(Code::NotFound, format!("there is no tenant `{name}`")))?;
        Ok(Tenant { settings: Arc::new(decode(&entry)?), etag: entry.revision })
    }

    /// The app's wanted revision, from the store.
    pub(crate) async fn current(&self, id: &AppId) -> Answer<Current> {
        let head = self.head(id).await?.map(|(head, _)| head).filter(|head| !head.deleted);
        let head = head.ok_or_else(|| no_app(id))?;
        let record = self.record(id, head.revision).await?;
        Ok(Current { head, record })
    }

    /// The app that a request changes: it is there, and then it is as the request requires.
    async fn there(&self, id: &AppId, require: Require) -> Answer<(Current, Option<(Head, u64)>)> {
        let current = self.current(id).await?;
        let head = self.head(id).await?;
        check(id, head.as_ref().map(|(head, _)| head), require)?;
        Ok((current, head))
    }

    async fn head(&self, id: &AppId) -> Answer<Option<(Head, u64)>> {
        let entry = self.store.get(&keys::app(&id.tenant, &id.app)).await?;
        entry.map(|entry| Ok((decode(&entry)?, entry.revision))).transpose()
    }

    /// One recorded revision.
    pub(crate) async fn record(&self, id: &AppId, revision: Revision) -> Answer<RevisionRecord> {
        let entry = self.store.get(&keys::revision(&id.tenant, &id.app, revision)).await?;
        let missing = || Refusal::new(Code::NotFound, format!("app `{}` has no revision {revision}", id.app));
        decode(&entry.ok_or_else(missing)?)
    }

    /// The app's history, oldest first, without records that never became wanted.
    pub(crate) async fn history(&self, id: &AppId) -> Answer<Vec<RevisionRecord>> {
        let head = self.current(id).await?.head;
        let listed = self.store.list(&keys::revisions_of(&id.tenant, &id.app)).await?;
        let records = listed.entries.iter().map(decode::<RevisionRecord>).collect::<Answer<Vec<_>>>()?;
        Ok(records.into_iter().filter(|r| r.revision <= head.revision).collect())
    }

    /// Everything that keeps an app from being deployed now.
    pub(crate) async fn judge(&self, id: &AppId, app: &LockedApp, tenant: &Tenant) -> Result<Vetted, Vec<Problem>> {
        if app.name != id.app {
            let text = format!("the request is for app `{}` and contains app `{}`", id.app, app.name);
            return Err(vec![Problem::new(Code::RequestInvalid, text)]);
        }
        let vetted = self.vetter.vet(app, &tenant.settings, clock::seconds()).await?;
        let routes = self.state.lock().routes_near(id, app);
        let mut violations = admission::check(app, &vetted.infos, &id.tenant, &tenant.settings, &routes);
        violations.extend(self.unknown_programs(app));
        let missing = self.missing_secrets(&id.tenant, app).await?;
        let over = self.state.lock().over_quota(id, app, &tenant.settings.quotas);
        let over: Vec<Problem> = over
            .into_iter()
            .map(|text| {
                Problem::new(Code::QuotaExceeded, text).help("delete what is not needed, or ask your operator for more")
            })
            .collect();
        if violations.is_empty() && missing.is_empty() && over.is_empty() {
            return Ok(vetted);
        }
        let near = |v: &rules::Violation| {
            // A collision inside the app is a mistake of its manifest, one with another app a conflict.
            let ours = v.code == rules::Code::RouteCollision && routes.is_empty();
            if ours { Code::ManifestInvalid } else { code(v.code) }
        };
        Err(violations
            .into_iter()
            .map(|v| Problem { help: v.help.clone(), ..Problem::new(near(&v), v.message.clone()) })
            .chain(missing)
            .chain(over)
            .collect())
    }

    /// Programs the app names and no node has. Before a node has said what it has, the node itself refuses them.
    fn unknown_programs(&self, app: &LockedApp) -> Vec<rules::Violation> {
        let state = self.state.lock();
        if state.nodes.is_empty() {
            return Vec::new();
        }
        let known: BTreeSet<&str> =
            state.nodes.values().flat_map(|node| node.programs.iter().map(String::as_str)).collect();
        let known: Vec<&str> = known.into_iter().collect();
        let named = app.providers.iter().filter_map(|(name, spec)| Some((name, rules::external::program(spec)?)));
        let unknown = named.filter(|(_, program)| !known.contains(program));
        unknown.map(|(name, program)| rules::external::unknown_program(name, program, &known)).collect()
    }

    /// What the app names as secrets and the tenant does not have.
    async fn missing_secrets(&self, tenant: &TenantName, app: &LockedApp) -> Result<Vec<Problem>, Vec<Problem>> {
        let uses = model::secret::uses(app);
        if uses.is_empty() {
            return Ok(Vec::new());
        }
        let there = self.secrets.list(tenant).await.map_err(|cause| vec![Refusal::from(cause).problem])?;
        let missing = uses.iter().filter(|used| there.iter().all(|info| info.name != used.secret));
        Ok(missing
            .map(|used| {
                let text =
                    format!("{} is the secret `{}`, which tenant `{tenant}` does not have", used.by, used.secret);
                Problem::new(Code::SecretMissing, text)
                    .help(format!("set it with `sidereal secret set {}`, then deploy again", used.secret))
            })
            .collect())
    }

    /// Artifacts of the app that the tenant has not sent, and that the app does not have already: to the tenant they are
    /// not there, whoever else may have them.
    pub(crate) async fn foreign(&self, id: &AppId, app: &LockedApp) -> Answer<Vec<Problem>> {
        let had: BTreeSet<_> = match self.current(id).await {
            Ok(current) => current.record.app.components.values().map(|c| c.digest).collect(),
            Err(refusal) if refusal.problem.code == Code::NotFound => BTreeSet::new(),
            Err(refusal) => return Err(refusal),
        };
        let mut missing = Vec::new();
        for (name, component) in app.components.iter().filter(|(_, c)| !had.contains(&c.digest)) {
            if self.store.get(&keys::artifact(&id.tenant, &component.digest)).await?.is_none() {
                let cause = Refusal::from(store::blobs::BlobError::Missing(component.digest)).problem.detail;
                missing.push(Problem::new(Code::ArtifactMissing, format!("component `{name}`: {cause}")));
            }
        }
        Ok(missing)
    }

    /// `deploy`.
    pub(crate) async fn deploy(&self, id: &AppId, mut app: LockedApp, cause: Cause) -> Answer<Accepted> {
        self.tenant(&id.tenant).await?;
        let foreign = self.foreign(id, &app).await?;
        if !foreign.is_empty() {
            return Err(refuse(foreign));
        }
        // Reading artifacts takes time; done here first, the same check below finds them read.
        self.vetter.vet(&app, &self.tenant(&id.tenant).await?.settings, clock::seconds()).await.map_err(refuse)?;
        let _turn = self.turn.lock().await;
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
        self.append(id, head, app, cause).await
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
    pub(crate) async fn rollback(&self, id: &AppId, to: Option<Revision>, require: Require) -> Answer<Accepted> {
        let _turn = self.turn.lock().await;
        let (current, head) = self.there(id, require).await?;
        let current = current.head.revision;
        let to = match to {
            Some(to) if to <= current => self.record(id, to).await?,
            Some(to) => return Err(Refusal::new(Code::NotFound, format!("app `{}` has no revision {to}", id.app))),
            None => {
                let earlier = self.history(id).await?.into_iter().rfind(|r| r.revision < current);
                earlier.ok_or_else(|| {
                    Refusal::new(Code::NotFound, format!("app `{}` has no revision before {current}", id.app))
                })?
            }
        };
        let origin = Origin::Rollback { to: to.revision };
        // The content of then, at the operator's providers of now. Shared configs come back as they were then; what the
        // operator offers of the environment is for now to say.
        let mut app = refreshed(to.app, &self.tenant(&id.tenant).await?.settings);
        self.fill_env(&mut app).await?;
        self.append(id, head, app, Cause { origin, message: to.message, require, key: None }).await
    }

    /// `link set`: a new revision that differs in one link's provider.
    pub(crate) async fn link(&self, id: &AppId, request: &LinkRequest, require: Require) -> Answer<Accepted> {
        let _turn = self.turn.lock().await;
        let (current, head) = self.there(id, require).await?;
        let tenant = self.tenant(&id.tenant).await?;
        let app = relinked(current.record.app, request, &tenant.settings)?;
        self.append(id, head, app, Cause { origin: Origin::Link, message: None, require, key: None }).await
    }

    /// What [`Writer::link`] would do: the link as it is, and both providers. Refuses what it would refuse.
    pub(crate) async fn planned(&self, id: &AppId, request: &LinkRequest) -> Answer<Planned> {
        let current = self.current(id).await?;
        let tenant = self.tenant(&id.tenant).await?;
        let revision = current.record.revision;
        let (index, link) = meant(&current.record.app, request)?;
        let spec =
            |app: &LockedApp, name: &ProviderName| app.providers.get(name).cloned().or_else(|| built_in(name.as_str()));
        let from = spec(&current.record.app, &link.provider);
        let mut sources =
            from.as_ref().map(|from| model::secret::sources(&current.record.app, from)).unwrap_or_default();
        let others = current.record.app.links.iter().filter(|other| {
            (&other.component, &other.contract) == (&link.component, &link.contract) && other.label != link.label
        });
        let others = others.map(|other| other.label.clone()).collect();
        let app = relinked(current.record.app, request, &tenant.settings)?;
        self.judge(id, &app, &tenant).await.map_err(refuse)?;
        let to = spec(&app, &request.provider);
        match (from, to) {
            (Some(from), Some(to)) => {
                sources.extend(model::secret::sources(&app, &to));
                let (from, to) = ((link.provider.clone(), from), (request.provider.clone(), to));
                Ok(Planned { revision, from, to, sources, link, others })
            }
            _ => Err(Refusal::new(Code::Internal, format!("link {index} names a provider that is not there"))),
        }
    }

    /// Judges, records and commits. The caller holds the turn.
    async fn append(&self, id: &AppId, head: Option<(Head, u64)>, app: LockedApp, cause: Cause) -> Answer<Accepted> {
        let tenant = self.tenant(&id.tenant).await?;
        let vetted = self.judge(id, &app, &tenant).await.map_err(refuse)?;
        // Where the same content failed on its node, asking for it again means trying it again: as a new revision.
        if let Some((head, _)) = head.as_ref().filter(|(head, _)| !head.deleted)
            && self.record(id, head.revision).await?.app == app
            && !self.failed(id, head.revision).await?
        {
            return Ok(Accepted { revision: head.revision, unchanged: true });
        }
        let (old, expect) = match head {
            Some((head, at)) => (head, Expect::Revision(at)),
            None => (Head { revision: Revision(0), deleted: false, keyed: Vec::new() }, Expect::Absent),
        };
        let mut record = RevisionRecord {
            revision: old.revision,
            created_ms: clock::millis(),
            origin: serde_json::to_value(&cause.origin).map_err(defect)?,
            message: cause.message,
            app,
            claims: vetted.claims,
        };
        self.put_record(id, &mut record).await?;
        let mut head = Head { revision: record.revision, deleted: false, keyed: old.keyed };
        if old.deleted {
            head.keyed.clear();
        }
        if let Some(key) = cause.key {
            head.keyed.push(Keyed { key, revision: record.revision });
            let excess = head.keyed.len().saturating_sub(KEYS);
            head.keyed.drain(..excess);
        }
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
            match self.store.put(&key, encode(&*record)?, Expect::Absent, None).await {
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
    pub(crate) async fn delete(&self, id: &AppId, require: Require, purge: bool) -> Answer<u64> {
        let _turn = self.turn.lock().await;
        let there = self.head(id).await?.filter(|(head, _)| purge || !head.deleted);
        let (head, mut at) = there.ok_or_else(|| no_app(id))?;
        check(id, Some(&head), require)?;
        if !head.deleted {
            let head = Head { deleted: true, keyed: Vec::new(), ..head };
            let key = keys::app(&id.tenant, &id.app);
            at = self.store.put(&key, encode(&head)?, Expect::Revision(at), None).await?;
            self.state.lock().forget(id, at);
            self.remove(&keys::copy(&id.tenant, &id.app)).await?;
        }
        if purge {
            // After the head: a crash in between leaves data that can still be asked for, never an app without its data.
            at = self.store.put(&keys::purge(&id.tenant, &id.app), encode(&())?, Expect::Any, None).await?;
        }
        Ok(at)
    }

    /// The nodes that hold no tenant to a quota of memory or processor time.
    fn without_groups(&self) -> Vec<String> {
        const LAYER: &str = "cgroup";
        let state = self.state.lock();
        let without = state.nodes.iter().filter(|(_, record)| !record.layers.iter().any(|layer| layer == LAYER));
        let said = |(name, record): (&NodeName, &keys::NodeRecord)| {
            let why = record.waived.get(LAYER).map_or("it does not say why", String::as_str);
            format!("node {name} has no control groups ({why}): quotas of memory and processor time hold nobody there")
        };
        without.map(said).collect()
    }

    /// Writes a tenant's settings; answers with their etag and the fields that differ from before. Who is not the operator may say whom the tenant trusts, and
    /// nothing that gives it more of anything.
    pub(crate) async fn put_tenant(
        &self,
        name: &TenantName,
        settings: &TenantSettings,
        require: Require,
        operator: bool,
    ) -> Answer<(u64, Vec<String>)> {
        let mut problems = trust::settings_problems(settings);
        if settings.quotas.need_a_group() {
            problems.extend(self.without_groups());
        }
        if !problems.is_empty() {
            let mut refusal =
                Refusal::new(Code::RequestInvalid, format!("the settings of tenant `{name}` cannot be used"));
            refusal.problem.findings = problems;
            return Err(refusal);
        }
        let key = keys::tenant(name);
        let turn = self.turn.lock().await;
        let expect = match require {
            Require::Any => {
                return Err(Refusal::new(
                    Code::RequestInvalid,
                    format!("the request replaces all settings of tenant `{name}` without saying which ones"),
                )
                .status(StatusCode::PRECONDITION_REQUIRED)
                .help("send If-Match: <etag>, or If-None-Match: * for a new tenant"));
            }
            Require::Absent => Expect::Absent,
            Require::At(etag) => Expect::Revision(etag),
            Require::Exists => Expect::Revision(self.tenant(name).await?.etag),
        };
        if !operator {
            let now = self.tenant(name).await?.settings;
            // Again, and under the turn: it may have been suspended while the request's body was on its way.
            if let Some(why) = &now.suspended {
                return Err(trust::suspended(why).into());
            }
            let widened = differing(&bare(&now), &bare(settings));
            if !widened.is_empty() {
                let text = format!("only the operator may change {}", widened.join(", "));
                return Err(Refusal::new(Code::Forbidden, text)
                    .help("an owner may change `trust_anchors` and `revoked`; ask your operator for the rest"));
            }
        }
        if self.store.get(&keys::gone(name)).await?.is_some() {
            // Not `conflict`: that means "read again and retry", and this stays so for ever.
            return Err(Refusal::new(
                Code::RequestInvalid,
                format!("there was a tenant `{name}`; its name is not used again"),
            )
            .status(StatusCode::CONFLICT)
            .help("choose another name"));
        }
        self.kinds_kept(name, settings).await?;
        let before = self.store.get(&key).await?.map(|entry| decode::<TenantSettings>(&entry)).transpose()?;
        let changed = differing(&before.unwrap_or_default(), settings);
        let etag = self.store.put(&key, encode(settings)?, expect, None).await?;
        drop(turn);
        self.follow(name).await?;
        Ok((etag, changed))
    }

    /// What a crash kept [`Writer::put_tenant`] from doing.
    pub(crate) async fn follow_all(&self) -> Answer<()> {
        for entry in self.store.list(keys::TENANTS).await?.entries {
            let Some(name) = keys::parts(&entry.key).next().and_then(|name| name.parse().ok()) else { continue };
            self.follow(&name).await?;
        }
        Ok(())
    }

    /// Apps that link to a provider of the operator which is another now get a revision with it as it is now: the old
    /// address is granted to nobody any more. An app that could not be deployed as it is keeps what it has; the reason is
    /// in the log, and `deploy` tells it too. The turn is taken anew for each app: a tenant of thousands does not keep
    /// the others waiting.
    async fn follow(&self, tenant: &TenantName) -> Answer<()> {
        let ids: Vec<AppId> = self.state.lock().apps_of(tenant).map(|(id, _, _)| id.clone()).collect();
        for id in ids {
            let _turn = self.turn.lock().await;
            match self.follow_one(&id).await {
                // Deleted meanwhile, or its tenant.
                Err(refusal) if refusal.problem.code == Code::NotFound => {}
                done => done?,
            }
        }
        Ok(())
    }

    /// One app, by the settings as they are now. The caller holds the turn.
    async fn follow_one(&self, id: &AppId) -> Answer<()> {
        let settings = self.tenant(&id.tenant).await?.settings;
        if settings.providers.is_empty() {
            return Ok(());
        }
        let Current { record, .. } = self.current(id).await?;
        let app = refreshed(record.app.clone(), &settings);
        if app == record.app {
            return Ok(());
        }
        let cause = Cause { origin: Origin::Provider, message: record.message, require: Require::Any, key: None };
        let head = self.head(id).await?;
        match self.append(id, head, app, cause).await {
            Ok(accepted) => {
                let revision = accepted.revision;
                tracing::info!(tenant = %id.tenant, app = %id.app, %revision, "takes the operator's provider as it is now");
            }
            Err(cause) => {
                tracing::warn!(tenant = %id.tenant, app = %id.app, cause = %cause.problem, "keeps an operator's provider as it was: the app cannot be deployed as it is");
            }
        }
        Ok(())
    }

    /// An operator's provider keeps its type while links go there: their data would be in another place of another
    /// kind without anybody having said so. Its address may change.
    async fn kinds_kept(&self, name: &TenantName, settings: &TenantSettings) -> Answer<()> {
        let Some(entry) = self.store.get(&keys::tenant(name)).await? else { return Ok(()) };
        let old: TenantSettings = decode(&entry)?;
        // One that is new here may have been taken away a moment ago, under links that are still there.
        let turned: BTreeMap<_, _> = settings
            .providers
            .iter()
            .filter(|(provider, spec)| old.providers.get(*provider).is_none_or(|old| old.kind != spec.kind))
            .collect();
        if turned.is_empty() {
            return Ok(());
        }
        let ids: Vec<AppId> = self.state.lock().apps_of(name).map(|(id, _, _)| id.clone()).collect();
        let mut links = Vec::new();
        for id in ids {
            let app = self.current(&id).await?.record.app;
            for link in &app.links {
                let linked = app.providers.get(&link.provider).filter(|spec| spec.operator);
                let (Some(linked), Some(new)) = (linked, turned.get(&link.provider)) else { continue };
                if linked.kind != new.kind {
                    let at = format!("{}/{} {} {}", id.app, link.component, link.contract, link.label);
                    links.push(format!("{at} goes to `{}` of type {}", link.provider, linked.kind.as_str()));
                }
            }
        }
        if links.is_empty() {
            return Ok(());
        }
        let text = format!("the type of a provider cannot change while links go there: {}", links.join(", "));
        // Not `conflict`: that means "read again and retry", and this stays so however often it is tried.
        Err(Refusal::new(Code::RequestInvalid, text)
            .status(StatusCode::CONFLICT)
            .help("offer the new one under another name, move the links there, then remove the old one"))
    }
}

/// What only the operator decides.
fn bare(settings: &TenantSettings) -> TenantSettings {
    TenantSettings { trust_anchors: Vec::new(), revoked: Vec::new(), ..settings.clone() }
}

/// The fields that differ.
fn differing(now: &TenantSettings, new: &TenantSettings) -> Vec<String> {
    let fields = |settings: &TenantSettings| match serde_json::to_value(settings) {
        Ok(serde_json::Value::Object(fields)) => fields,
        _ => serde_json::Map::new(),
    };
    let (now, new) = (fields(now), fields(new));
    // Of both: a field that is left out of one of them differs too.
    let fields: BTreeSet<&String> = now.keys().chain(new.keys()).collect();
    fields.into_iter().filter(|field| now.get(*field) != new.get(*field)).map(|field| format!("`{field}`")).collect()
}

/// Compare-and-set, for people: which revision must be current.
fn check(id: &AppId, head: Option<&Head>, require: Require) -> Answer<()> {
    let current = head.filter(|head| !head.deleted).map(|head| head.revision.0);
    let conflict = |text: String| Err(Refusal::new(Code::Conflict, text).help("look at it again, then decide anew"));
    match (require, current) {
        (Require::Any, _) | (Require::Exists, Some(_)) | (Require::Absent, None) => Ok(()),
        (Require::At(wanted), Some(current)) if wanted == current => Ok(()),
        (Require::Absent, Some(current)) => conflict(format!("app `{}` exists already, at revision {current}", id.app)),
        (Require::At(wanted), Some(current)) => {
            conflict(format!("app `{}` is at revision {current}, not at {wanted}", id.app))
        }
        (Require::Exists | Require::At(_), None) => conflict(format!("app `{}` does not exist", id.app)),
    }
}

/// The one link that a request means, and its place.
fn meant(app: &LockedApp, request: &LinkRequest) -> Answer<(usize, model::Link)> {
    let fits = |link: &model::Link| {
        link.contract == request.contract
            && request.component.as_ref().is_none_or(|c| *c == link.component)
            && request.label.as_ref().is_none_or(|l| *l == link.label)
    };
    let what = &request.contract;
    let mut found = (0..).zip(&app.links).filter(|(_, link)| fits(link));
    match (found.next(), found.next()) {
        (Some((index, link)), None) => Ok((index, link.clone())),
        (None, _) => {
            let there = app.links.iter().map(|l| format!("{} {} {}", l.component, l.contract, l.label));
            let there = there.collect::<Vec<_>>().join(", ");
            let help = if there.is_empty() { "it has no links".to_owned() } else { format!("its links: {there}") };
            Err(Refusal::new(Code::NotFound, format!("app `{}` has no such link of `{what}`", app.name)).help(help))
        }
        (Some(_), Some(_)) => Err(Refusal::new(Code::RequestInvalid, format!("several links of `{what}` are meant"))
            .help("name the component and the label")),
    }
}

/// The app with one link moved. Providers that the lock added for a link only go when no link names them.
fn relinked(mut app: LockedApp, request: &LinkRequest, tenant: &TenantSettings) -> Answer<LockedApp> {
    app = refreshed(app, tenant);
    let (index, _) = meant(&app, request)?;
    if let Some(link) = app.links.get_mut(index) {
        link.provider = request.provider.clone();
    }
    if !app.providers.contains_key(&request.provider) {
        let spec = offered(&request.provider, tenant).ok_or_else(|| {
            Refusal::new(Code::NotFound, format!("there is no provider `{}` for app `{}`", request.provider, app.name))
                .help("`sidereal provider list` shows those there are")
        })?;
        app.providers.insert(request.provider.clone(), spec);
    }
    let links = &app.links;
    app.providers.retain(|name, spec| {
        let declared = !spec.operator && built_in(name.as_str()).is_none();
        declared || links.iter().any(|link| link.provider == *name)
    });
    model::lock::add_sources(&mut app, tenant);
    Ok(app)
}

/// The app with the operator's providers as they are now. One that is of another type now stays as it was: its data are
/// elsewhere, and whoever judges the app says so.
fn refreshed(mut app: LockedApp, tenant: &TenantSettings) -> LockedApp {
    for (name, spec) in app.providers.iter_mut().filter(|(_, spec)| spec.operator) {
        if let Some(now) = tenant.providers.get(name).filter(|now| now.kind == spec.kind) {
            *spec = ProviderSpec { operator: true, ..now.clone() };
        }
    }
    app
}

/// A provider that an app need not declare.
fn offered(name: &ProviderName, tenant: &TenantSettings) -> Option<ProviderSpec> {
    let operators = || tenant.providers.get(name).map(|spec| ProviderSpec { operator: true, ..spec.clone() });
    built_in(name.as_str()).or_else(operators)
}

/// One refusal for all findings: the first one's code, and every sentence.
pub(crate) fn refuse(mut findings: Vec<Problem>) -> Refusal {
    if findings.is_empty() {
        return Refusal::new(Code::Internal, "refused without a reason");
    }
    let mut first = findings.swap_remove(0);
    if !findings.is_empty() {
        let rest = findings.iter().map(|f| f.detail.clone());
        first.findings = std::iter::once(first.detail.clone()).chain(rest).collect();
        first.detail = format!("the app cannot be deployed, for {} reasons", first.findings.len());
    }
    first.into()
}

/// The API's code of a broken rule.
fn code(rule: rules::Code) -> Code {
    match rule {
        rules::Code::RouteCollision | rules::Code::RouteHostTaken => Code::RouteTaken,
        rules::Code::LimitAboveCeiling => Code::LimitAboveCeiling,
        rules::Code::ImportNotLinked | rules::Code::ImportNotOffered | rules::Code::ImportVersion => Code::LinkMissing,
        rules::Code::ArtifactUnknown | rules::Code::ArtifactMissing => Code::ArtifactMissing,
        rules::Code::ArtifactCoreModule | rules::Code::ArtifactInvalid | rules::Code::ArtifactNotWasm => {
            Code::ArtifactInvalid
        }
        _ => Code::ManifestInvalid,
    }
}

pub(crate) fn no_app(id: &AppId) -> Refusal {
    Refusal::new(Code::NotFound, format!("tenant `{}` has no app `{}`", id.tenant, id.app))
        .help("`sidereal status` shows the apps there are")
}

fn defect(cause: impl std::fmt::Display) -> Refusal {
    Refusal::new(Code::Internal, format!("a value cannot be written: {cause}"))
}

pub(crate) fn encode(value: &impl Serialize) -> Answer<Bytes> {
    serde_json::to_vec(value).map(Bytes::from).map_err(defect)
}

/// A value of the store as its type.
pub(crate) fn decode<T: DeserializeOwned>(entry: &Entry) -> Answer<T> {
    serde_json::from_slice(&entry.value)
        .map_err(|cause| Refusal::new(Code::Internal, format!("`{}` in the store cannot be read: {cause}", entry.key)))
}
