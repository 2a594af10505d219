//! The one place that changes what is wanted: revisions, deletions, tenant settings. Writes are made one after another,
//! so that two apps can never both win the same route, and no deploy is judged by settings that were just replaced. Here
//! is what every change begins with: the turn, and what is there. Each kind of change has its own file.
//!
//! The turn is one for all tenants, so nobody holds it for longer the more apps or routes there are: what a change asks about
//! all of them, `State` keeps ready, and what concerns many apps takes a turn for each. Of those that wait for it the next is
//! one of another tenant, so that nobody waits behind all that one of them has to do. Whoever has waited is asked again whether
//! he still may.

mod configs;
mod gone;
mod hosts;
mod judge;
mod kept;
mod links;
mod offers;
mod revisions;
mod secrets;
mod tenants;

use std::sync::Arc;

use api::client::Require;
use api::control::Origin;
use api::problem::Code;
use bytes::Bytes;
use model::TenantName;
use model::app::Revision;
use model::plan::AppId;
use model::tenant::TenantSettings;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use store::keys::{self, Head, RevisionRecord};
use store::secrets::Secrets;
use store::{Entry, Store};

pub(crate) use self::judge::{counted, refuse, whole};
pub(crate) use self::kept::counted as kept_for;
pub(crate) use self::links::Planned;
use crate::http::{Answer, Refusal, stopped};
use crate::left::Left;
use crate::state::Shared;
use crate::tokens::{self, Caller};
use crate::trust::{self, Vetter};
use crate::turns::{Turn, Turns};

/// How often what no client would ask for again is seen anew, where another revision came before its turn.
pub(crate) const SEES: u32 = 3;

/// Apps that a refusal names, of those that are in the way: a tenant may have thousands.
const SHOWN: usize = 16;

/// The last finding of a refusal that names only some of all apps.
fn and_more(shown: usize, all: usize) -> Option<String> {
    all.checked_sub(shown).filter(|more| *more > 0).map(|more| format!("and {more} apps more"))
}

/// Makes all changes.
pub(crate) struct Writer {
    pub(crate) store: Arc<dyn Store>,
    pub(crate) vetter: Vetter,
    pub(crate) secrets: Arc<Secrets>,
    pub(crate) state: Arc<Shared>,
    left: std::sync::Mutex<Left>,
    /// Whoever has the turn is the only one who changes what is wanted.
    turns: Arc<Turns>,
    /// Whoever reads many apps has one of these.
    looks: Arc<Turns>,
    /// A tenant brings its apps the values of one config at a time.
    roll_outs: Arc<Turns>,
}

/// How a revision comes about.
pub(crate) struct Cause {
    pub(crate) origin: Origin,
    pub(crate) message: Option<String>,
    pub(crate) require: Require,
    pub(crate) key: Option<String>,
    /// Made whatever else the tenant keeps.
    pub(crate) free: bool,
}

/// An app that is there.
pub(crate) struct Current {
    pub(crate) head: Head,
    pub(crate) record: RevisionRecord,
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
        turns: Arc<Turns>,
        looks: Arc<Turns>,
    ) -> Self {
        let (left, roll_outs) = (std::sync::Mutex::default(), Turns::new(usize::MAX, 1));
        Self { store, vetter, secrets, state, left, turns, looks, roll_outs }
    }

    /// Waits until nobody else changes what is wanted, for a change of a tenant's that `by` asked for; for one that the
    /// platform makes by itself, nobody did.
    pub(crate) async fn turn(&self, by: Option<&Caller>, tenant: &TenantName) -> Answer<Turn> {
        let turn = self.next(Some(tenant).filter(|_| by != Some(&Caller::Operator))).await?;
        if let Some(by) = by {
            self.may_still(by, tenant).await?;
        }
        Ok(turn)
    }

    /// Refuses whoever was let in and may not change anything any more: his token ended, or the tenant was suspended, while
    /// what he sent was on its way, or while he waited.
    pub(crate) async fn may_still(&self, by: &Caller, tenant: &TenantName) -> Answer<()> {
        tokens::still(&*self.store, by).await?;
        match by {
            Caller::Operator => Ok(()),
            Caller::Member { .. } => self.active(tenant).await,
        }
    }

    /// The turn of a tenant, or of the operator.
    async fn next(&self, whose: Option<&TenantName>) -> Answer<Turn> {
        self.turns.take(whose).await.ok_or_else(stopped)
    }

    /// The tenant is there and not suspended.
    pub(crate) async fn active(&self, name: &TenantName) -> Answer<()> {
        match &self.tenant(name).await?.settings.suspended {
            None => Ok(()),
            Some(why) => Err(trust::suspended(why).into()),
        }
    }

    /// The tenant's settings as they are in the store. One that is being deleted is not there: nothing of it changes any
    /// more, whoever has the turn meanwhile.
    pub(crate) async fn tenant(&self, name: &TenantName) -> Answer<Tenant> {
        let tenant = self.last_settings(name).await?;
        if self.store.get(&keys::gone(name)).await?.is_some() {
            return Err(no_tenant(name));
        }
        Ok(tenant)
    }

    /// The same of one that may be half deleted.
    async fn last_settings(&self, name: &TenantName) -> Answer<Tenant> {
        let entry = self.store.get(&keys::tenant(name)).await?.ok_or_else(|| no_tenant(name))?;
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

    /// One recorded revision, whether it was ever wanted or not.
    async fn record(&self, id: &AppId, revision: Revision) -> Answer<RevisionRecord> {
        let missing = || Refusal::new(Code::NotFound, format!("app `{}` has no revision {revision}", id.app));
        self.recorded(id, revision).await?.ok_or_else(missing)
    }

    /// The same where it may be gone: what is too old is not kept.
    pub(crate) async fn recorded(&self, id: &AppId, revision: Revision) -> Answer<Option<RevisionRecord>> {
        let entry = self.store.get(&keys::revision(&id.tenant, &id.app, revision)).await?;
        let record = entry.map(|entry| decode(&entry)).transpose()?;
        // A large one takes milliseconds, and whoever reads one may read thousands: this thread is everybody's.
        tokio::task::yield_now().await;
        Ok(record)
    }

    /// Which app of that name it is, as [`Head::since`] says it; the next one has another.
    pub(crate) async fn since(&self, id: &AppId) -> Answer<Option<Revision>> {
        let head = self.head(id).await?.map(|(head, _)| head).filter(|head| !head.deleted);
        Ok(head.ok_or_else(|| no_app(id))?.since)
    }

    /// The number of the wanted revision: the app's history begins there and goes on with the `previous` of each.
    pub(crate) async fn newest(&self, id: &AppId) -> Answer<Revision> {
        let head = self.head(id).await?.map(|(head, _)| head).filter(|head| !head.deleted);
        Ok(head.ok_or_else(|| no_app(id))?.revision)
    }

    /// One revision of the app's history.
    pub(crate) async fn past(&self, id: &AppId, revision: Revision) -> Answer<RevisionRecord> {
        let missing = || Refusal::new(Code::NotFound, format!("app `{}` has no revision {revision}", id.app));
        let newest = self.newest(id).await?;
        // Whatever was recorded next, be it wanted or not, names the one that was wanted then. Where that is another one, this one never was.
        let was_wanted =
            revision == newest || revision < newest && self.before_next(id, revision).await? == Some(revision);
        if !was_wanted {
            return Err(missing());
        }
        self.recorded(id, revision).await?.ok_or_else(missing)
    }

    /// The `previous` of what was recorded next after a revision.
    async fn before_next(&self, id: &AppId, revision: Revision) -> Answer<Option<Revision>> {
        /// Of a record, what it takes to go on from it.
        #[derive(Deserialize)]
        struct Step {
            previous: Option<Revision>,
        }
        let next = Revision(revision.0.saturating_add(1));
        let entry = self.store.get(&keys::revision(&id.tenant, &id.app, next)).await?;
        Ok(entry.map(|entry| decode::<Step>(&entry)).transpose()?.and_then(|step| step.previous))
    }
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

fn no_tenant(name: &TenantName) -> Refusal {
    Refusal::new(Code::NotFound, format!("there is no tenant `{name}`"))
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
