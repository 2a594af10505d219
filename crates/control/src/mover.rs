//! Moving an app's data to another provider and the link after it: copy while the app goes on, follow what it writes,
//! let its calls wait for a moment, copy the last writes, move the link, let the calls go on with the new provider.
//!
//! What is asked for is recorded first, so that a move that is interrupted goes on when the control plane is back. A
//! copy that begins again writes only what differs. Until the new revision is recorded the app is as it was, and nobody
//! else changes its link. From then on calls go on with what is recorded and with nothing else, whatever is interrupted.

mod work;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use api::control::{LinkRequest, MoveRequest};
use api::copy::{CopyEnd, CopyPhase, CopyRequest, CopyView, MoveRecord};
use api::node::{CopyStep, NodeApi};
use api::{Code, Problem};
use model::app::Revision;
use model::plan::AppId;
use store::audit::Outcome;
use store::{Expect, Store, StoreError, keys};
use tokio_util::sync::CancellationToken;

pub use self::work::MoveWaits;
use crate::audit::{self, Audit, PLATFORM};
use crate::http::{Answer, Refusal};
use crate::moved::Moved;
use crate::place::Place;
use crate::state::Shared;
use crate::tokens::Caller;
use crate::writer::{Planned, SEES, Writer, decode, encode};

struct Moving {
    request: MoveRequest,
    view: CopyView,
    cancel: CancellationToken,
}

impl Moving {
    /// How it stands, where it is under way and what is asked for.
    ///
    /// # Errors
    /// [`Code::Conflict`], where another one is under way.
    fn is(&self, id: &AppId, request: &MoveRequest) -> Answer<Option<CopyView>> {
        if is_over(&self.view) {
            return Ok(None);
        }
        if self.request == *request {
            return Ok(Some(self.view.clone()));
        }
        let what = format!("data of `{}` are being moved from `{}` to `{}`", id.app, self.view.from, self.view.to);
        Err(Refusal::new(Code::Conflict, what).help("wait for its end, or cancel it"))
    }
}

/// Every move.
pub(crate) struct Mover {
    writer: Arc<Writer>,
    store: Arc<dyn Store>,
    nodes: Arc<dyn NodeApi>,
    state: Arc<Shared>,
    audit: Arc<Audit>,
    stop: CancellationToken,
    waits: MoveWaits,
    moving: Mutex<BTreeMap<AppId, Moving>>,
}

impl Mover {
    pub(crate) fn new(
        writer: Arc<Writer>,
        store: Arc<dyn Store>,
        nodes: Arc<dyn NodeApi>,
        state: Arc<Shared>,
        audit: Arc<Audit>,
        stop: CancellationToken,
        waits: MoveWaits,
    ) -> Arc<Self> {
        Arc::new(Self { writer, store, nodes, state, audit, stop, waits, moving: Mutex::default() })
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<AppId, Moving>> {
        self.moving.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Goes on with what was under way when the control plane ended.
    pub(crate) async fn resume(self: &Arc<Self>) -> Result<(), store::StoreError> {
        for entry in self.store.list(keys::COPIES).await?.entries {
            let mut parts = keys::parts(&entry.key);
            let (Some(Ok(tenant)), Some(Ok(app))) = (parts.next().map(str::parse), parts.next().map(str::parse)) else {
                continue;
            };
            let Ok(record) = decode::<MoveRecord>(&entry) else {
                tracing::error!(key = entry.key, "the record of a move of data cannot be read; it is left as it is");
                continue;
            };
            let over = matches!(record.view.phase, CopyPhase::Done | CopyPhase::Failed);
            let (id, view) = (AppId { tenant, app }, record.view.clone());
            if matches!(self.writer.current(&id).await, Err(refusal) if refusal.problem.code == Code::NotFound) {
                if view.phase == CopyPhase::Switching {
                    // The next app of that name would wait.
                    self.release(&id, "", None).await;
                }
                self.unsave(&id).await;
                continue;
            }
            let cancel = self.stop.child_token();
            let request = record.request.clone();
            self.lock().insert(id.clone(), Moving { request, view, cancel: cancel.clone() });
            if !over {
                if let Err(cause) = self.claim(&id, &meant(&record)).await {
                    // The move itself says so when it comes to it.
                    tracing::info!(tenant = %id.tenant, app = %id.app, cause = %cause.problem, "a link is not to be moved as it is");
                }
                tracing::info!(tenant = %id.tenant, app = %id.app, "going on with a move of data");
                tokio::spawn(self.clone().run(id, record, cancel));
            }
        }
        Ok(())
    }

    fn under_way(&self, id: &AppId, request: &MoveRequest) -> Answer<Option<CopyView>> {
        self.lock().get(id).map_or(Ok(None), |known| known.is(id, request))
    }

    /// Begins a move. The same again, while it is under way, is the one under way.
    pub(crate) async fn begin(self: &Arc<Self>, id: &AppId, request: MoveRequest, by: &Caller) -> Answer<CopyView> {
        if let Some(view) = self.under_way(id, &request)? {
            return Ok(view);
        }
        let planned = self.writer.planned(id, &link(&request), None).await?;
        let copy = copy_request(&planned)?;
        let view = CopyView {
            from: copy.from.provider.clone(),
            to: copy.to.provider.clone(),
            phase: CopyPhase::Copying,
            read: 0,
            written: 0,
            bytes: 0,
            held_ms: None,
            revision: None,
            problem: None,
        };
        let _turn = self.writer.turn(Some(by), &id.tenant).await?;
        let meant = Some((planned.link.component.clone(), planned.link.label.clone()));
        let record = MoveRecord { request, meant, looked: None, before: None, view: view.clone() };
        let cancel = self.stop.child_token();
        {
            let mut moving = self.lock();
            if let Some(known) = moving.get(id) {
                // Begun since it was looked at above.
                if let Some(view) = known.is(id, &record.request)? {
                    return Ok(view);
                }
            }
            let request = record.request.clone();
            moving.insert(id.clone(), Moving { request, view: view.clone(), cancel: cancel.clone() });
        }
        if let Err(problem) = self.save(id, &record).await {
            self.lock().remove(id);
            return Err(problem.into());
        }
        tokio::spawn(self.clone().run(id.clone(), record, cancel));
        Ok(view)
    }

    /// How the last move of the app stands.
    pub(crate) fn view(&self, id: &AppId) -> Option<CopyView> {
        self.lock().get(id).map(|moving| moving.view.clone())
    }

    /// Ends a move that has not switched yet; nothing is moved then.
    pub(crate) fn cancel(&self, id: &AppId) -> Option<CopyView> {
        let moving = self.lock();
        let known = moving.get(id)?;
        known.cancel.cancel();
        Some(known.view.clone())
    }

    /// The apps are deleted: their moves end, and nothing of them is left.
    pub(crate) async fn forget(&self, gone: impl Fn(&AppId) -> bool) {
        let ended: Vec<AppId> = {
            let mut moving = self.lock();
            let ended: Vec<AppId> = moving.keys().filter(|id| gone(id)).cloned().collect();
            for known in ended.iter().filter_map(|id| moving.remove(id)) {
                known.cancel.cancel();
            }
            ended
        };
        for id in ended {
            self.unsave(&id).await;
        }
    }

    /// A move begins with a request and ends by itself: the audit log says how.
    async fn write_down(&self, id: &AppId, view: &CopyView) {
        let what = format!("move of data of app {} from {} to {}", id.app, view.from, view.to);
        let mut act = audit::act(PLATFORM.to_owned(), Some(id.tenant.clone()), String::new(), what);
        act.outcome = if view.phase == CopyPhase::Done { Outcome::Done } else { Outcome::Refused };
        act.code = view.problem.as_ref().map(|problem| problem.code.as_str().to_owned());
        if let Err(cause) = self.audit.write(act).await {
            tracing::warn!(app = %id.app, cause = %cause.problem, "the end of a move of data is not in the audit log");
        }
    }

    async fn unsave(&self, id: &AppId) {
        match self.store.delete(&keys::copy(&id.tenant, &id.app), Expect::Any).await {
            Ok(_) | Err(StoreError::Conflict { .. }) => {}
            Err(cause) => {
                tracing::warn!(app = %id.app, %cause, "the record of a move of data of a deleted app stays for now");
            }
        }
    }

    async fn save(&self, id: &AppId, record: &MoveRecord) -> Result<(), Problem> {
        if !self.lock().contains_key(id) {
            return Err(cancelled());
        }
        let value = encode(record).map_err(|refusal| refusal.problem)?;
        let put = self.store.put(&keys::copy(&id.tenant, &id.app), value, Expect::Any, None).await;
        put.map(drop).map_err(|cause| Refusal::from(cause).problem)
    }

    /// The link that is to be moved, which nobody else changes from now on.
    async fn claim(&self, id: &AppId, request: &LinkRequest) -> Answer<Planned> {
        let mut tries = 0;
        loop {
            tries += 1;
            let seen = self.writer.see_current(id).await?;
            let _turn = self.writer.turn(None, &id.tenant).await?;
            match self.writer.planned(id, request, Some(&seen)).await {
                // Another revision came in between.
                Err(refusal) if refusal.problem.code == Code::Busy && tries < SEES => {}
                planned => {
                    let planned = planned?;
                    self.state.lock().moves.insert(id.clone(), Moved::of(&planned));
                    return Ok(planned);
                }
            }
        }
    }

    /// Lets the calls that wait go on.
    async fn release(&self, id: &AppId, copy: &str, to: Option<Revision>) {
        if let Err(problem) = self.nodes.copy(&id.tenant, &id.app, copy, CopyStep::Release(to)).await {
            tracing::warn!(app = %id.app, cause = problem.detail, "calls that wait were not told to go on");
        }
    }

    /// The app's links are everybody's to change again.
    fn lift(&self, id: &AppId) {
        self.state.lock().moves.remove(id);
    }

    async fn run(self: Arc<Self>, id: AppId, record: MoveRecord, cancel: CancellationToken) {
        let copy = format!("{:016x}", rand::random::<u64>());
        let mut work = work::Work::new(&self, &id, copy, record);
        let result = work.persist(&cancel).await;
        self.lift(&id);
        if self.stop.is_cancelled() && result.is_err() {
            // Not its end: it goes on at the next start.
            return;
        }
        match result {
            Ok(()) => work.record.view.phase = CopyPhase::Done,
            Err(problem) => {
                work.record.view.phase = CopyPhase::Failed;
                work.record.view.problem = Some(problem);
            }
        }
        self.write_down(&id, &work.record.view).await;
        if let Err(problem) = self.save(&id, &work.record).await {
            tracing::warn!(app = %id.app, cause = problem.detail, "the end of a move of data could not be recorded");
        }
        // Shown last: the next move may begin, and its record must not be replaced by this one.
        work.show();
        // The app may have been deleted while that was written.
        if !self.lock().contains_key(&id) {
            self.unsave(&id).await;
        }
    }
}

fn is_over(view: &CopyView) -> bool {
    matches!(view.phase, CopyPhase::Done | CopyPhase::Failed)
}

fn link(request: &MoveRequest) -> LinkRequest {
    let MoveRequest { component, contract, label, provider, .. } = request.clone();
    LinkRequest { component, contract, label, provider }
}

/// The link that is moved, and where to.
fn meant(record: &MoveRecord) -> LinkRequest {
    let asked = link(&record.request);
    match record.meant.clone() {
        Some((component, label)) => LinkRequest { component: Some(component), label: Some(label), ..asked },
        None => asked,
    }
}

/// From the link as it is and as it will be to what is copied.
fn copy_request(planned: &Planned) -> Answer<CopyRequest> {
    let link = &planned.link;
    let unsupported = |what: String| Refusal::new(Code::CopyUnsupported, what);
    let Some(place) = &planned.place else {
        let what = format!(
            "data of `{}` cannot be copied, only keys of wasi:keyvalue and objects of wasi:blobstore",
            link.contract
        );
        return Err(unsupported(what).help("set the link without `--copy-data`"));
    };
    let ends = [&planned.from, &planned.to];
    if let Some((name, _)) = ends.into_iter().find(|(_, spec)| spec.kind == model::ProviderKind::Component) {
        let what = format!(
            "`{name}` is a component: which data are behind it, and in what form, only it knows, so they cannot be copied"
        );
        return Err(unsupported(what)
            .help("move the data of the provider that it links to, or set the link without `--copy-data`"));
    }
    if link.provider == planned.to.0 {
        let what = format!("the link goes to `{}` already", planned.to.0);
        return Err(Refusal::new(Code::RequestInvalid, what));
    }
    if let Some(other) = planned.shared.first() {
        return Err(if other.provider == link.provider { stays(other) } else { shared(other) });
    }
    let (bucket, all_but) = match place {
        Place::One(named) => (named.as_str(), None),
        Place::AllBut(labels) => (link.label.as_str(), Some(labels.iter().cloned().collect())),
    };
    let end = |(provider, spec): &(model::ProviderName, model::ProviderSpec)| CopyEnd {
        provider: provider.clone(),
        spec: spec.clone(),
        bucket: bucket.to_owned(),
    };
    let others = planned.others.clone().into_iter().map(|other| end(&other)).collect();
    let (from, to, sources) = (end(&planned.from), end(&planned.to), planned.sources.clone());
    Ok(CopyRequest { from, to, sources, all_but, others })
}

/// Another link goes on with some of what would be copied, or has it already where that would go.
fn shared(other: &model::Link) -> Refusal {
    let what = format!(
        "component `{}` has the same data at `{}` by its link `{}`: what it writes there would be replaced by older values",
        other.component, other.provider, other.label
    );
    let help = "set the link without `--copy-data`, or give it a bucket or container of its own";
    Refusal::new(Code::RequestInvalid, what).help(help)
}

/// Another link would stay with some of what is moved, where it is now.
fn stays(other: &model::Link) -> Refusal {
    let what = format!(
        "component `{}` has some of the same data at `{}` by its link `{}`, but not the same: it would go on there with what \
         is moved",
        other.component, other.provider, other.label
    );
    let help = "set the link without `--copy-data`, or let each of the two name the containers that are its own";
    Refusal::new(Code::RequestInvalid, what).help(help)
}

fn cancelled() -> Problem {
    Problem::new(Code::Busy, "the move of data was cancelled; nothing was moved")
}
