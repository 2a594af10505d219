//! One move, from the first key to the calls that go on: what [`super::Mover`] runs for each that is under way.

mod calls;

use std::time::{Duration, Instant};

use api::client::Require;
use api::control::LinkRequest;
use api::copy::{CopyPhase, CopyRequest, CopyView, Cursor, Extra, Keys, MoveRecord};
use api::node::{CopyOutcome, CopyStep};
use api::{Code, Problem};
use model::app::{LockedApp, Revision};
use model::observed::Phase;
use model::plan::AppId;
use tokio_util::sync::CancellationToken;

use self::calls::Calls;
use super::copied::copy_request;
use super::{Mover, cancelled, meant};
use crate::writer::Planned;

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
/// The hosts' patience is longer than all of it: a call that waits is answered, unless the store takes nothing.
const USUAL: MoveWaits = MoveWaits { last: Duration::from_secs(5), serve: Duration::from_secs(12) };
const _: () =
    assert!(HOLD.as_secs() + USUAL.last.as_secs() + 2 * USUAL.serve.as_secs() < api::copy::PATIENCE.as_secs());
/// A copy that a host has lost, because it was started again, begins again.
const TRIES: u32 = 5;
/// Between two tries, and between two looks.
const PAUSE: Duration = Duration::from_millis(500);
const LOOK: Duration = Duration::from_millis(5);

/// What a move waits for while calls of its app wait. Others than the usual are for tests, whose machine may stand still.
#[derive(Debug, Clone, Copy)]
pub struct MoveWaits {
    /// How long the last writes may take to be copied.
    pub last: Duration,
    /// How long the new revision may take to serve, and the one before where the new one does not.
    pub serve: Duration,
}

impl Default for MoveWaits {
    fn default() -> Self {
        USUAL
    }
}

/// One move.
pub(super) struct Work<'a> {
    mover: &'a Mover,
    id: &'a AppId,
    copy: String,
    pub(super) record: MoveRecord,
    round: u64,
    calls: Calls,
}

impl<'a> Work<'a> {
    pub(super) fn new(mover: &'a Mover, id: &'a AppId, copy: String, record: MoveRecord) -> Self {
        // The node lets them wait from its start on where the record says so.
        let interrupted = record.view.phase == CopyPhase::Switching;
        let calls = if interrupted { Calls::Undecided } else { Calls::GoOn };
        Self { mover, id, copy, record, round: 0, calls }
    }

    pub(super) fn show(&self) {
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
    pub(super) async fn persist(&mut self, cancel: &CancellationToken) -> Result<(), Problem> {
        let mut tries = 0;
        loop {
            tries += 1;
            let result = self.once(cancel).await;
            if self.calls == Calls::Wait {
                self.release(None).await;
            }
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
        let request = meant(&self.record);
        if self.calls == Calls::Undecided && self.resumed(&request).await? {
            return Ok(());
        }
        let planned = self.claim().await?;
        if planned.link.provider != self.record.view.from {
            let what = format!(
                "the link goes to `{}` now and no longer to `{}`: somebody set it while its data were copied",
                planned.link.provider, self.record.view.from
            );
            return Err(Problem::new(Code::Conflict, what).help("move the data from where the link goes now"));
        }
        let copy = copy_request(&planned).map_err(|refusal| refusal.problem)?;
        self.answers(planned.revision).await?;
        self.record.view = CopyView { read: 0, written: 0, bytes: 0, ..self.record.view.clone() };
        self.round = 0;
        let approach = async {
            // Waits for hosts that are ending.
            self.step(CopyStep::Begin(Box::new(copy.clone()))).await?;
            self.approach(&copy).await
        };
        tokio::select! {
            biased;
            () = cancel.cancelled() => return Err(cancelled()),
            result = approach => result?,
        }
        // Revisions that came meanwhile write to the same provider: nothing else is let through. It is the newest one
        // that has to be held.
        let planned = self.claim().await?;
        if copy_request(&planned).map_err(|refusal| refusal.problem)? != copy {
            return Err(Problem::new(Code::Conflict, "a provider of the app was changed while its data were copied"));
        }
        self.answers(planned.revision).await?;
        self.record.before = Some(planned.revision);
        self.phase(CopyPhase::Switching).await?;
        let begun = Instant::now();
        self.calls = Calls::Wait;
        self.step(CopyStep::Hold(planned.revision, ms(HOLD))).await?;
        let revision = self.switch(&planned, &request).await?;
        self.settle(revision).await?;
        self.record.view.held_ms = Some(ms(begun.elapsed()));
        self.record.view.revision = Some(revision);
        Ok(())
    }

    async fn claim(&self) -> Result<Planned, Problem> {
        self.mover.claim(self.id, &meant(&self.record), self.record.since).await.map_err(|refusal| refusal.problem)
    }

    /// The revision that is to be held is the one that answers. Where an earlier one does, because the newest does not
    /// start, calls would go on where nothing holds them.
    async fn answers(&self, revision: Revision) -> Result<(), Problem> {
        match self.served(revision, self.mover.waits.serve).await {
            Ok(serving) if serving == revision => Ok(()),
            Ok(later) => Err(Problem::new(Code::Conflict, format!("revision {later} took the place of {revision}"))),
            Err(problem) => {
                let what =
                    format!("the newest revision of the app does not answer, so nothing is moved: {}", problem.detail);
                Err(Problem::new(Code::Busy, what)
                    .help("deploy one that starts, or `sidereal rollback`, and move then"))
            }
        }
    }

    /// Everything that is done while the app goes on.
    async fn approach(&mut self, copy: &CopyRequest) -> Result<(), Problem> {
        self.extra(copy).await?;
        self.record.looked = Some(copy.clone());
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

    /// Deals with keys that only the target has, as asked. Where the copy has begun before, all of them were copied by it:
    /// the app has removed them since, and nobody may have noted that.
    async fn extra(&mut self, copy: &CopyRequest) -> Result<(), Problem> {
        let to = &self.record.view.to;
        let again = self.record.looked.as_ref().is_some_and(|looked| covers(looked, copy));
        if self.record.request.extra == Extra::Keep {
            if self.record.looked.is_none() {
                return Ok(());
            }
            let what = format!(
                "the copy was interrupted, and with `--copy-data=keep` nobody can tell what it had copied from what `{to}` had \
                 before: what the app has removed since would come back"
            );
            return Err(Problem::new(Code::Busy, what).help(format!(
                "nothing was moved, and what was copied stays in `{to}`; `--copy-data=remove` makes it what the app has"
            )));
        }
        let mut cursor = Cursor::default();
        loop {
            let CopyOutcome::Keys(Keys { keys, cursor: next }) = self.step(CopyStep::Extra(cursor)).await? else {
                return Err(wrong());
            };
            if let Some(first) = keys.first() {
                if self.record.request.extra == Extra::Refuse && !again {
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
        let within = self.mover.waits.last;
        let last = async {
            while self.follow().await? > 0 {}
            Ok(())
        };
        tokio::time::timeout(within, last).await.unwrap_or_else(|_| {
            let what = format!("the last writes of the app were not copied within {} s", within.as_secs());
            Err(Problem::new(Code::Busy, what).help("nothing was changed; try again at a quieter time"))
        })?;
        let require = Require::At(planned.revision.0);
        // What comes between is a conflict, and is held like every revision that comes now.
        self.mover.lift(self.id);
        self.calls = Calls::Undecided;
        let refusal = match self.mover.writer.moved(self.id, request, require).await {
            Ok(accepted) => return Ok(accepted.revision),
            Err(refusal) => refusal,
        };
        // A store that failed may have written all the same: what counts is what it has.
        let current = self.current().await?;
        if current.record.revision > planned.revision && goes(&current.record.app, planned, request) {
            return Ok(current.record.revision);
        }
        self.calls = Calls::Wait;
        Err(refusal.problem)
    }

    /// Waits until a revision serves, or one that took its place; which it is.
    async fn served(&self, revision: Revision, within: Duration) -> Result<Revision, Problem> {
        let until = Instant::now() + within;
        loop {
            if !self.mover.has(self.id) {
                return Err(cancelled());
            }
            for report in self.mover.state.lock().reports_of(self.id).values() {
                if let Some(serving) = report.serving.filter(|serving| *serving >= revision) {
                    return Ok(serving);
                }
                if report.revision == revision && report.phase == Phase::Failed {
                    let why = report.reason.as_ref().map_or("the node gave no reason", |reason| &reason.message);
                    let what = format!("revision {revision} does not start: {why}");
                    return Err(
                        Problem::new(Code::StartFailed, what).help("the app is answered by the provider it had")
                    );
                }
            }
            if Instant::now() > until {
                let what = format!("revision {revision} did not serve within {} s", within.as_secs());
                return Err(Problem::new(Code::TimedOut, what).help("the app is answered by the provider it had"));
            }
            tokio::time::sleep(LOOK).await;
        }
    }
}

/// Whether whatever `now` would find in its target was looked at by `before`: it is the same place, and no more of it.
fn covers(before: &CopyRequest, now: &CopyRequest) -> bool {
    let no_more = match (&before.all_but, &now.all_but) {
        (None, None) => true,
        (Some(before), Some(now)) => before.iter().all(|container| now.contains(container)),
        _ => false,
    };
    before.to == now.to && no_more
}

/// Whether the links that were planned to move have moved.
fn goes(app: &LockedApp, planned: &Planned, request: &LinkRequest) -> bool {
    planned.with.iter().chain([&planned.link]).all(|was| {
        app.links.iter().any(|link| {
            (&link.component, &link.contract) == (&was.component, &was.contract)
                && link.label == was.label
                && link.provider == request.provider
        })
    })
}

fn ms(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

fn wrong() -> Problem {
    Problem::new(Code::Internal, "the node answered another question than was asked")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_was_copied_before_is_known_only_where_it_was_the_same_place_and_no_less() {
        let copy = |url: &str, all_but: Option<&[&str]>| -> CopyRequest {
            let spec = json!({ "type": "blobstore-s3", "config": { "url": url } });
            let from = json!({ "provider": "folder", "spec": { "type": "blobstore-folder" }, "bucket": "default" });
            let to = json!({ "provider": "s3", "spec": spec, "bucket": "default" });
            serde_json::from_value(json!({ "from": from, "to": to, "all_but": all_but })).unwrap()
        };
        let covers =
            |before: Option<&[&str]>, now: Option<&[&str]>| covers(&copy("http://a", before), &copy("http://a", now));
        assert!(covers(None, None) && covers(Some(&["a"]), Some(&["a"])));
        assert!(covers(Some(&["a"]), Some(&["a", "b"])), "a label has come");
        assert!(!covers(Some(&["a", "b"]), Some(&["a"])), "a label went: what is in its container was never looked at");
        assert!(!covers(None, Some(&[])) && !covers(Some(&[]), None));
        assert!(!super::covers(&copy("http://a", None), &copy("http://b", None)), "another server");
    }
}
