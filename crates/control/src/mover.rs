//! Moving an app's data to another provider and the link after it: copy while the app goes on, follow what it writes,
//! let its calls wait for a moment, copy the last writes, move the link, let the calls go on with the new provider.
//!
//! What is asked for is recorded first, so that a move that is interrupted goes on when the control plane is back. A
//! copy that begins again writes only what differs. Until the new revision is recorded the app is as it was, and nobody
//! else changes its link. From then on calls go on with what is recorded and with nothing else, whatever is interrupted.

mod copied;
mod work;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use api::control::{LinkRequest, MoveRequest};
use api::copy::{CopyPhase, CopyView, MoveRecord};
use api::node::{CopyStep, NodeApi};
use api::{Code, Problem};
use model::app::Revision;
use model::plan::AppId;
use store::audit::Outcome;
use store::{Expect, Store, StoreError, keys};
use tokio_util::sync::CancellationToken;

use self::copied::copy_request;
pub use self::work::MoveWaits;
use crate::audit::{self, Audit, PLATFORM};
use crate::http::{Answer, Refusal};
use crate::moved::Moved;
use crate::state::Shared;
use crate::tokens::Caller;
use crate::writer::{Planned, SEES, Writer, decode, encode};

struct Moving {
    request: MoveRequest,
    view: CopyView,
    cancel: CancellationToken,
    /// Its work has not ended.
    runs: bool,
    /// Its app is deleted. The next one of that name is moved once nothing is done for this one any more.
    gone: bool,
}

impl Moving {
    /// How it stands, where it is under way and what is asked for.
    ///
    /// # Errors
    /// [`Code::Conflict`], where another one is under way; [`Code::Busy`], where one of an earlier app of that name has not ended.
    fn is(&self, id: &AppId, request: &MoveRequest) -> Answer<Option<CopyView>> {
        if self.gone {
            let what = format!("a move of data of an earlier app `{}`, which was deleted, has not ended yet", id.app);
            return Err(Refusal::new(Code::Busy, what).help("try again in a moment"));
        }
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
            let deleted = match self.writer.since(&id).await {
                // Another app of that name may be there already.
                Ok(since) => since != record.since,
                Err(refusal) => refusal.problem.code == Code::NotFound,
            };
            if deleted {
                if view.phase == CopyPhase::Switching {
                    // The next app of that name would wait.
                    self.release(&id, "", None).await;
                }
                self.unsave(&id).await;
                continue;
            }
            let cancel = self.stop.child_token();
            let request = record.request.clone();
            let moving = Moving { request, view, cancel: cancel.clone(), runs: !over, gone: false };
            self.lock().insert(id.clone(), moving);
            if !over {
                if let Err(cause) = self.claim(&id, &meant(&record), record.since).await {
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
        let since = planned.since;
        if self.writer.since(id).await? != since {
            let what = format!("app `{}` was deleted and deployed anew at the same moment", id.app);
            return Err(Refusal::new(Code::Conflict, what).help("look at it again, then decide anew"));
        }
        let meant = Some((planned.link.component.clone(), planned.link.label.clone()));
        let record = MoveRecord { since, request, meant, looked: None, before: None, view: view.clone() };
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
            let (view, cancel) = (view.clone(), cancel.clone());
            moving.insert(id.clone(), Moving { request, view, cancel, runs: true, gone: false });
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
        self.lock().get(id).filter(|moving| !moving.gone).map(|moving| moving.view.clone())
    }

    /// Ends a move that has not switched yet; nothing is moved then.
    pub(crate) fn cancel(&self, id: &AppId) -> Option<CopyView> {
        let moving = self.lock();
        let known = moving.get(id).filter(|known| !known.gone)?;
        known.cancel.cancel();
        Some(known.view.clone())
    }

    /// The apps are deleted: their moves end, and nothing of them is left.
    pub(crate) async fn forget(&self, gone: impl Fn(&AppId) -> bool) {
        let ended: Vec<AppId> = {
            let mut moving = self.lock();
            let gone = moving.iter_mut().filter(|(id, known)| gone(id) && !known.gone);
            let ended = gone.filter_map(|(id, known)| {
                known.gone = true;
                known.cancel.cancel();
                // One that runs removes what is left of it as it ends.
                (!known.runs).then(|| id.clone())
            });
            ended.collect()
        };
        for id in ended {
            self.remove(&id).await;
        }
    }

    /// Whether there is a move of an app that is not deleted.
    fn has(&self, id: &AppId) -> bool {
        self.lock().get(id).is_some_and(|known| !known.gone)
    }

    /// Nothing is left of a move whose app is deleted.
    async fn remove(&self, id: &AppId) {
        self.unsave(id).await;
        self.lock().remove(id);
    }

    /// The work of a move has ended so; whether its app was deleted meanwhile.
    fn ended(&self, id: &AppId, view: &CopyView) -> bool {
        let mut moving = self.lock();
        let Some(known) = moving.get_mut(id) else { return false };
        (known.view, known.runs) = (view.clone(), false);
        known.gone
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
        if !self.has(id) {
            return Err(cancelled());
        }
        let value = encode(record).map_err(|refusal| refusal.problem)?;
        let put = self.store.put(&keys::copy(&id.tenant, &id.app), value, Expect::Any, None).await;
        put.map(drop).map_err(|cause| Refusal::from(cause).problem)
    }

    /// The link that is to be moved, which nobody else changes from now on: of the app that it was, and of none that has its
    /// name since.
    async fn claim(&self, id: &AppId, request: &LinkRequest, since: Option<Revision>) -> Answer<Planned> {
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
                    if planned.since != since {
                        return Err(cancelled().into());
                    }
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
        if self.ended(&id, &work.record.view) {
            self.remove(&id).await;
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

fn cancelled() -> Problem {
    Problem::new(Code::Busy, "the move of data was cancelled; nothing was moved")
}
