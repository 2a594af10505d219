//! What calls that wait go on with. From the moment that the link may have moved it is what is recorded of the app, and
//! nothing else: whatever is interrupted, and whatever the store does not take.

use std::time::{Duration, Instant};

use api::client::Require;
use api::control::LinkRequest;
use api::copy::CopyPhase;
use api::{Code, Problem};
use model::Link;
use model::app::Revision;
use model::observed::Phase;

use super::{LOOK, PAUSE, Work};
use crate::mover::{cancelled, meant};
use crate::writer::Current;

/// How long the app's hosts may take to come up again after a restart in the middle of the switch.
const RESUMED: Duration = Duration::from_secs(300);
/// How often the pause between two tries to write the way back doubles: it ends at five seconds.
const DOUBLES: u32 = 10;

/// What new calls of the app do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Calls {
    /// They are answered.
    GoOn,
    /// They wait, and may go on where they were: its link has not moved.
    Wait,
    /// They wait, and the link may have moved: they go on with what is recorded, and with nothing else.
    Undecided,
}

impl Work<'_> {
    /// Lets the calls that wait go on. The new revision was held from its first moment, so none has been answered by a
    /// provider that the app does not stay with.
    pub(super) async fn release(&mut self, to: Option<Revision>) {
        if std::mem::replace(&mut self.calls, Calls::GoOn) != Calls::GoOn {
            self.mover.release(self.id, &self.copy, to).await;
        }
    }

    /// The switch was interrupted, and calls wait since the start. Where the link has not moved they go on at once, and the
    /// move begins anew; where it has, the data had been copied whole by then. Whether that was the end of it.
    pub(super) async fn resumed(&mut self, request: &LinkRequest) -> Result<bool, Problem> {
        let current = self.current().await?;
        let link = current.record.app.links.iter().find(|link| is_meant(link, request));
        let to = link.map(|link| link.provider.clone());
        if to.as_ref() == Some(&self.record.view.from) {
            self.release(None).await;
            return Ok(false);
        }
        self.mover.lift(self.id);
        self.up().await;
        let revision = current.head.revision;
        self.settle(revision).await?;
        if to.as_ref() != Some(&request.provider) {
            return Ok(false);
        }
        self.record.view.revision = Some(revision);
        Ok(true)
    }

    /// Waits until the app's hosts have something of it again: before that nothing could answer.
    async fn up(&self) {
        let until = Instant::now() + RESUMED;
        let is_up = || {
            let state = self.mover.state.lock();
            state.reports_of(self.id).values().any(|app| app.serving.is_some() || app.phase == Phase::Failed)
        };
        while !is_up() && Instant::now() < until && !self.mover.stop.is_cancelled() && self.mover.has(self.id) {
            tokio::time::sleep(LOOK).await;
        }
    }

    /// What is recorded of the app, as soon as the store says it: whatever waits for it waits rightly.
    pub(super) async fn current(&mut self) -> Result<Current, Problem> {
        loop {
            match self.mover.writer.current(self.id).await {
                Ok(current) if current.head.since == self.record.since => return Ok(current),
                // The app is deleted, and another has its name.
                Ok(_) => {
                    self.calls = Calls::Wait;
                    return Err(cancelled());
                }
                Err(refusal) if refusal.problem.code == Code::NotFound => {
                    self.calls = Calls::Wait;
                    return Err(cancelled());
                }
                Err(refusal) => {
                    tracing::warn!(app = %self.id.app, cause = %refusal.problem, "calls wait until the store says where they go on");
                }
            }
            self.is_wanted()?;
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Fails where nothing is to be decided any more, or it is for the next start to decide.
    fn is_wanted(&mut self) -> Result<(), Problem> {
        if self.mover.stop.is_cancelled() {
            return Err(cancelled());
        }
        if !self.mover.has(self.id) {
            // The app is deleted.
            self.calls = Calls::Wait;
            return Err(cancelled());
        }
        Ok(())
    }

    /// Whether the link that is to be moved goes where it is to.
    async fn is_there(&mut self) -> Result<bool, Problem> {
        let request = meant(&self.record);
        let app = self.current().await?.record.app;
        let link = app.links.iter().find(|link| is_meant(link, &request));
        Ok(link.is_some_and(|link| link.provider == request.provider))
    }

    /// Records that it is over before the first call is answered by the new provider: from then on nothing may be taken back,
    /// whatever is interrupted.
    async fn done(&self, serving: Revision) -> Result<(), Problem> {
        let mut record = self.record.clone();
        (record.view.phase, record.view.revision) = (CopyPhase::Done, Some(serving));
        self.mover.save(self.id, &record).await
    }

    /// Calls wait, and the link has moved with `moved`, or may have gone elsewhere since. They go on with what serves of
    /// it; where that does not, with what was before, once that is recorded again. Until one of the two is so they wait: a
    /// call that is refused can be made again, a write that went where nobody looks cannot.
    pub(super) async fn settle(&mut self, moved: Revision) -> Result<(), Problem> {
        let serve = self.mover.waits.serve;
        let (mut newest, mut within, mut tries, mut why) = (moved, serve, 0, None);
        loop {
            let problem = match self.served(newest, within).await {
                Ok(serving) => {
                    // Whoever deployed in between may have left the link where it was moved.
                    let there = self.is_there().await?;
                    if there && let Err(cause) = self.done(serving).await {
                        self.is_wanted()?;
                        tracing::warn!(app = %self.id.app, %cause, "calls wait: that the move is done cannot be recorded");
                        tokio::time::sleep(PAUSE).await;
                        continue;
                    }
                    self.release(Some(serving)).await;
                    return why.filter(|_| !there && newest != moved).map_or(Ok(()), Err);
                }
                Err(problem) => why.get_or_insert(problem).clone(),
            };
            self.is_wanted()?;
            match self.mover.writer.rollback(self.id, self.record.before, Require::At(newest.0), None).await {
                Ok(accepted) => {
                    // Where not even that one comes up, the one it is made of goes on: it is answered by the same provider.
                    let to = self.served(accepted.revision, serve).await.ok().or(self.record.before);
                    self.release(to).await;
                    return Err(problem);
                }
                // Somebody has deployed another one since, or the store has the way back though it said that it has not.
                Err(refusal) if refusal.problem.code == Code::Conflict => {
                    (newest, within) = (self.current().await?.head.revision, serve);
                }
                Err(refusal) => {
                    let cause = refusal.problem;
                    tracing::warn!(app = %self.id.app, revision = %newest, %cause, "calls wait: the new revision does not serve, and the way back cannot be recorded");
                    tokio::time::sleep(LOOK * (1 << tries)).await;
                    (within, tries) = (Duration::ZERO, DOUBLES.min(tries + 1));
                }
            }
        }
    }
}

/// Whether this is the link that a move means.
fn is_meant(link: &Link, request: &LinkRequest) -> bool {
    link.contract == request.contract
        && request.component.as_ref().is_none_or(|component| *component == link.component)
        && request.label.as_ref().is_none_or(|label| *label == link.label)
}
