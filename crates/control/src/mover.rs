//! Moving an app's data to another provider and the link after it: copy while the app goes on, follow what it writes,
//! let its calls wait for a moment, copy the last writes, move the link, let the calls go on with the new provider.
//!
//! What is asked for is recorded first, so that a move that is interrupted goes on when the control plane is back. A
//! copy that begins again writes only what differs. Until the new revision is recorded the app is as it was.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use api::client::Require;
use api::control::{LinkRequest, MoveRequest};
use api::copy::{CopyEnd, CopyPhase, CopyRequest, CopyView, Cursor, Extra, Keys};
use api::node::{CopyOutcome, CopyStep, NodeApi};
use api::{Code, Problem};
use model::app::Revision;
use model::observed::Phase;
use model::plan::AppId;
use serde::{Deserialize, Serialize};
use store::audit::Outcome;
use store::{Expect, Store, StoreError, keys};
use tokio_util::sync::CancellationToken;

use crate::audit::{self, Audit, PLATFORM};
use crate::http::{Answer, Refusal};
use crate::state::Shared;
use crate::writer::{Planned, Writer, decode, encode};

/// Keys per step.
const CHUNK: usize = 500;
/// Rounds of following; an app that writes faster than is copied by then is not moved.
const ROUNDS: u64 = 30;
/// A round that found fewer keys is the last one before the switch.
const FEW: usize = 200;
/// So does one that found no more bytes: calls wait for the last ones.
const LITTLE: u64 = 16 << 20;
/// How long calls in flight may take to end before the switch.
const HOLD: Duration = Duration::from_secs(5);
/// How long the last writes may take to be copied, while calls wait.
const LAST: Duration = Duration::from_secs(5);
/// How long the new revision may take to serve, and the one before where the new one does not. Calls wait meanwhile.
const SERVE: Duration = Duration::from_secs(12);
// The hosts' patience is longer than all of it: a call that waits is answered.
const _: () = assert!(HOLD.as_secs() + LAST.as_secs() + 2 * SERVE.as_secs() < api::copy::PATIENCE.as_secs());
/// A copy that a host has lost, because it was started again, begins again.
const TRIES: u32 = 5;
/// Between two tries, and between two looks.
const PAUSE: Duration = Duration::from_millis(500);
const LOOK: Duration = Duration::from_millis(5);

/// What is recorded of a move.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Record {
    request: MoveRequest,
    /// What only the target has was looked at, and dealt with as asked.
    checked: bool,
    view: CopyView,
}

struct Moving {
    view: CopyView,
    cancel: CancellationToken,
}

/// Every move.
pub(crate) struct Mover {
    writer: Arc<Writer>,
    store: Arc<dyn Store>,
    nodes: Arc<dyn NodeApi>,
    state: Arc<Shared>,
    audit: Arc<Audit>,
    stop: CancellationToken,
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
    ) -> Arc<Self> {
        Arc::new(Self { writer, store, nodes, state, audit, stop, moving: Mutex::default() })
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
            let Ok(record) = decode::<Record>(&entry) else {
                tracing::error!(key = entry.key, "the record of a move of data cannot be read; it is left as it is");
                continue;
            };
            let over = matches!(record.view.phase, CopyPhase::Done | CopyPhase::Failed);
            let (id, view) = (AppId { tenant, app }, record.view.clone());
            if matches!(self.writer.current(&id).await, Err(refusal) if refusal.problem.code == Code::NotFound) {
                self.unsave(&id).await;
                continue;
            }
            let cancel = self.stop.child_token();
            self.lock().insert(id.clone(), Moving { view, cancel: cancel.clone() });
            if !over {
                tracing::info!(tenant = %id.tenant, app = %id.app, "going on with a move of data");
                tokio::spawn(self.clone().run(id, record, cancel));
            }
        }
        Ok(())
    }

    /// Begins a move. The same again, while it is under way, is the one under way.
    pub(crate) async fn begin(self: &Arc<Self>, id: &AppId, request: MoveRequest) -> Answer<CopyView> {
        let planned = self.writer.planned(id, &link(&request)).await?;
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
        let record = Record { request, checked: false, view: view.clone() };
        let cancel = self.stop.child_token();
        {
            let mut moving = self.lock();
            if let Some(known) = moving.get(id).filter(|known| !is_over(&known.view)) {
                if known.view.from == view.from && known.view.to == view.to {
                    return Ok(known.view.clone());
                }
                let what =
                    format!("data of `{}` are being moved from `{}` to `{}`", id.app, known.view.from, known.view.to);
                return Err(Refusal::new(Code::Conflict, what).help("wait for its end, or cancel it"));
            }
            moving.insert(id.clone(), Moving { view: view.clone(), cancel: cancel.clone() });
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

    async fn save(&self, id: &AppId, record: &Record) -> Result<(), Problem> {
        if !self.lock().contains_key(id) {
            return Err(cancelled());
        }
        let value = encode(record).map_err(|refusal| refusal.problem)?;
        let put = self.store.put(&keys::copy(&id.tenant, &id.app), value, Expect::Any, None).await;
        put.map(drop).map_err(|cause| Refusal::from(cause).problem)
    }

    async fn run(self: Arc<Self>, id: AppId, record: Record, cancel: CancellationToken) {
        let copy = format!("{:016x}", rand::random::<u64>());
        let mut work = Work { mover: &self, id: &id, copy, record, round: 0, held: false };
        let result = work.persist(&cancel).await;
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
        work.show();
        self.write_down(&id, &work.record.view).await;
        if let Err(problem) = self.save(&id, &work.record).await {
            tracing::warn!(app = %id.app, cause = problem.detail, "the end of a move of data could not be recorded");
        }
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

/// From the link as it is and as it will be to what is copied.
fn copy_request(planned: &Planned) -> Answer<CopyRequest> {
    let (link, contract) = (&planned.link, planned.link.contract.to_string());
    let unsupported = |what: String| Refusal::new(Code::CopyUnsupported, what);
    let (setting, whole) = match contract.as_str() {
        "wasi:keyvalue" => ("bucket", false),
        "wasi:blobstore" => ("container", link.label == model::Label::default_label()),
        _ => {
            let what = format!(
                "data of `{contract}` cannot be copied, only keys of wasi:keyvalue and objects of wasi:blobstore"
            );
            return Err(unsupported(what).help("set the link without `--copy-data`"));
        }
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
    let named = link.config.get(setting);
    // A link without the name of one container answers for every one that no other label names.
    let all_but = (whole && named.is_none()).then(|| planned.others.iter().map(ToString::to_string).collect());
    let bucket = named.map_or(link.label.as_str(), String::as_str);
    let end = |(provider, spec): &(model::ProviderName, model::ProviderSpec)| CopyEnd {
        provider: provider.clone(),
        spec: spec.clone(),
        bucket: bucket.to_owned(),
    };
    Ok(CopyRequest { from: end(&planned.from), to: end(&planned.to), sources: planned.sources.clone(), all_but })
}

/// One move.
struct Work<'a> {
    mover: &'a Mover,
    id: &'a AppId,
    copy: String,
    record: Record,
    round: u64,
    /// Calls of the app wait, or may.
    held: bool,
}

impl Work<'_> {
    fn show(&self) {
        if let Some(moving) = self.mover.lock().get_mut(self.id) {
            moving.view = self.record.view.clone();
        }
    }

    async fn phase(&mut self, phase: CopyPhase) -> Result<(), Problem> {
        self.record.view.phase = phase;
        self.show();
        self.mover.save(self.id, &self.record).await
    }

    async fn step(&self, step: CopyStep) -> Result<CopyOutcome, Problem> {
        self.mover.nodes.copy(&self.id.tenant, &self.id.app, &self.copy, step).await
    }

    /// Tries again what may pass: a host that was started again, a node that is not up yet.
    async fn persist(&mut self, cancel: &CancellationToken) -> Result<(), Problem> {
        let mut tries = 0;
        loop {
            tries += 1;
            let result = self.once(cancel).await;
            self.release(None).await;
            let end = self.step(CopyStep::End).await;
            match result {
                Err(problem)
                    if tries < TRIES && matches!(problem.code, Code::NotFound | Code::Unreachable | Code::Conflict) =>
                {
                    tracing::info!(app = %self.id.app, cause = problem.detail, "a move of data begins again");
                    tokio::select! {
                        () = tokio::time::sleep(PAUSE * tries) => {}
                        () = cancel.cancelled() => return Err(cancelled()),
                    }
                }
                other => {
                    if let Err(problem) = end {
                        tracing::debug!(cause = problem.detail, "a copy was not ended everywhere");
                    }
                    return other;
                }
            }
        }
    }

    async fn once(&mut self, cancel: &CancellationToken) -> Result<(), Problem> {
        let request = link(&self.record.request);
        let planned = self.mover.writer.planned(self.id, &request).await.map_err(|refusal| refusal.problem)?;
        if planned.link.provider == request.provider {
            // The revision was recorded before an interruption; its data had been copied whole by then.
            self.record.view.revision = Some(planned.revision);
            self.served(planned.revision).await?;
            self.release(Some(planned.revision)).await;
            return Ok(());
        }
        let copy = copy_request(&planned).map_err(|refusal| refusal.problem)?;
        self.record.view = CopyView { read: 0, written: 0, bytes: 0, ..self.record.view.clone() };
        self.round = 0;
        self.step(CopyStep::Begin(Box::new(copy))).await?;
        tokio::select! {
            biased;
            () = cancel.cancelled() => return Err(cancelled()),
            result = self.approach() => result?,
        }
        self.phase(CopyPhase::Switching).await?;
        let begun = Instant::now();
        self.held = true;
        self.step(CopyStep::Hold(planned.revision, ms(HOLD))).await?;
        let revision = self.switch(&planned, &request).await?;
        let served = self.served(revision).await;
        let to = match &served {
            Ok(()) => revision,
            // Where not even that can be had, the calls go on where they are: they must not wait for ever.
            Err(_) => self.back(planned.revision).await.unwrap_or(planned.revision),
        };
        self.release(Some(to)).await;
        served?;
        self.record.view.held_ms = Some(ms(begun.elapsed()));
        self.record.view.revision = Some(revision);
        Ok(())
    }

    /// Lets the calls that wait go on. The new revision was held from its first moment, so none has been answered by a
    /// provider that the app does not stay with.
    async fn release(&mut self, to: Option<Revision>) {
        if std::mem::take(&mut self.held)
            && let Err(problem) = self.step(CopyStep::Release(to)).await
        {
            tracing::warn!(app = %self.id.app, cause = problem.detail, "calls that wait were not told to go on");
        }
    }

    /// Everything that is done while the app goes on.
    async fn approach(&mut self) -> Result<(), Problem> {
        if !self.record.checked {
            self.extra().await?;
            self.record.checked = true;
        }
        self.phase(CopyPhase::Copying).await?;
        let mut cursor = Cursor::default();
        loop {
            let step = self.step(CopyStep::Page(cursor)).await?;
            let CopyOutcome::Step(step) = step else { return Err(wrong()) };
            cursor = Cursor { cursor: step.cursor.clone() };
            self.count(&step);
            if cursor.cursor.is_none() {
                break;
            }
        }
        self.phase(CopyPhase::Following).await?;
        for _ in 0..ROUNDS {
            let bytes = self.record.view.bytes;
            if self.follow().await? < FEW && self.record.view.bytes - bytes < LITTLE {
                return Ok(());
            }
        }
        let what =
            format!("the app writes faster than `{}` takes it, so its data cannot be moved", self.record.view.to);
        Err(Problem::new(Code::Busy, what).help("nothing was changed; try again at a quieter time"))
    }

    /// Deals with keys that only the target has, as asked.
    async fn extra(&mut self) -> Result<(), Problem> {
        if self.record.request.extra == Extra::Keep {
            return Ok(());
        }
        let mut cursor = Cursor::default();
        loop {
            let CopyOutcome::Keys(Keys { keys, cursor: next }) = self.step(CopyStep::Extra(cursor)).await? else {
                return Err(wrong());
            };
            if let Some(first) = keys.first() {
                if self.record.request.extra == Extra::Refuse {
                    let to = &self.record.view.to;
                    let what = format!(
                        "`{to}` has data of this app that the present provider does not have, for example `{}`",
                        // A container, and after a line break the object in it.
                        first.replace('\n', "/").escape_debug()
                    );
                    return Err(Problem::new(Code::RequestInvalid, what)
                        .help("`--copy-data=remove` removes them, `--copy-data=keep` leaves them"));
                }
                self.copy_keys(keys).await?;
            }
            match next {
                Some(next) => cursor = Cursor { cursor: Some(next) },
                None => return Ok(()),
            }
        }
    }

    /// One round of following; how many keys there were.
    async fn follow(&mut self) -> Result<usize, Problem> {
        self.round += 1;
        let CopyOutcome::Keys(Keys { keys, .. }) = self.step(CopyStep::Noted(self.round)).await? else {
            return Err(wrong());
        };
        let count = keys.len();
        self.copy_keys(keys).await?;
        Ok(count)
    }

    async fn copy_keys(&mut self, keys: Vec<String>) -> Result<(), Problem> {
        for chunk in keys.chunks(CHUNK) {
            let CopyOutcome::Step(step) = self.step(CopyStep::Keys(chunk.to_vec())).await? else {
                return Err(wrong());
            };
            self.count(&step);
        }
        Ok(())
    }

    fn count(&mut self, step: &api::copy::Step) {
        let view = &mut self.record.view;
        view.read += step.read;
        view.written += step.written;
        view.bytes += step.bytes;
        self.show();
    }

    /// With calls held: the last writes, then the link. Until the link is written, everything can be taken back.
    async fn switch(&mut self, planned: &Planned, request: &LinkRequest) -> Result<Revision, Problem> {
        let last = async {
            while self.follow().await? > 0 {}
            Ok(())
        };
        tokio::time::timeout(LAST, last).await.unwrap_or_else(|_| {
            let what = format!("the last writes of the app were not copied within {} s", LAST.as_secs());
            Err(Problem::new(Code::Busy, what).help("nothing was changed; try again at a quieter time"))
        })?;
        let require = Require::At(planned.revision.0);
        let accepted = self.mover.writer.link(self.id, request, require).await.map_err(|refusal| refusal.problem)?;
        Ok(accepted.revision)
    }

    /// The new revision does not serve: what was before becomes a revision again, and that one must.
    async fn back(&self, to: Revision) -> Result<Revision, Problem> {
        let back = self.mover.writer.rollback(self.id, Some(to), Require::Exists).await;
        let revision = back.map_err(|refusal| refusal.problem)?.revision;
        self.served(revision).await?;
        Ok(revision)
    }

    /// Waits until a revision serves.
    async fn served(&self, revision: Revision) -> Result<(), Problem> {
        let until = Instant::now() + SERVE;
        loop {
            for report in self.mover.state.lock().reports_of(self.id).values() {
                if report.revision == revision && report.phase == Phase::Serving {
                    return Ok(());
                }
                if report.revision == revision && report.phase == Phase::Failed {
                    let why = report.reason.as_ref().map_or("the node gave no reason", |reason| &reason.message);
                    return Err(Problem::new(
                        Code::StartFailed,
                        format!("with the new provider the app does not start: {why}"),
                    )
                    .help("the app is answered by the provider it had"));
                }
            }
            if Instant::now() > until {
                let what = format!("revision {revision} did not serve within {} s", SERVE.as_secs());
                return Err(Problem::new(Code::TimedOut, what).help("the app is answered by the provider it had"));
            }
            tokio::time::sleep(LOOK).await;
        }
    }
}

fn ms(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

fn cancelled() -> Problem {
    Problem::new(Code::Busy, "the move of data was cancelled; nothing was moved")
}

fn wrong() -> Problem {
    Problem::new(Code::Internal, "the node answered another question than was asked")
}
