//! One look at one schedule: read what is remembered, decide, write that down, call, write down what became of it.

use std::sync::Arc;
use std::time::Duration;

use api::{Code, Problem};
use model::Revision;
use model::schedule::{Decision, Ended, Record, Run};
use store::{Expect, StoreError, keys};
use tokio_util::sync::CancellationToken;

use super::{Key, Planned, Setup, busy};

/// What a run may take beyond the wall time of the component: to find a place, and to tell how it ended.
const SLACK_MS: u64 = 60_000;
/// When a schedule whose turn it is, but cannot begin yet, is looked at again, milliseconds.
const AGAIN_MS: u64 = 250;
/// The same where the store does not answer, another node runs it, or the host that was asked did not call it.
const LATER_MS: u64 = 1000;
/// How often the end of a run is tried to be written down.
const TRIES: u32 = 20;

/// What every look needs.
pub(super) struct Context {
    pub(super) setup: Setup,
    /// Tells the runs of this process from those of an earlier one.
    pub(super) process: u64,
}

/// A record and the revision of the store it was read at.
type Read = (Record, Expect);

impl Context {
    fn now_ms(&self) -> u64 {
        self.setup.clock.now_ms()
    }

    /// What is remembered. A run of a process that has ended is counted as failed: it is not known how far it came.
    async fn read(&self, key: &str, planned: &Planned) -> Result<Read, StoreError> {
        let Some(entry) = self.setup.store.get(key).await? else {
            let record = Record::begin(&planned.schedule, self.now_ms());
            return self.write(key, record, Expect::Absent).await;
        };
        let at = Expect::Revision(entry.revision);
        let mut record: Record = match serde_json::from_slice(&entry.value) {
            Ok(record) => record,
            Err(cause) => {
                tracing::error!(key, %cause, "what is remembered of a schedule cannot be read; it begins anew");
                return self.write(key, Record::begin(&planned.schedule, self.now_ms()), at).await;
            }
        };
        let mut changed = false;
        let lost = record.running.as_ref().is_some_and(|run| {
            // Nobody looks while a run of this process is under way.
            run.node == self.setup.node || run.until_ms < self.now_ms()
        });
        if lost {
            let why = "the node ended while it ran; how far it came is not known, and it is not repeated";
            tracing::warn!(key, "a run of a schedule was lost with its node");
            record = record.ended(self.now_ms(), Some(why.to_owned()));
            changed = true;
        }
        if !record.is_of(&planned.schedule) {
            record = record.renewed(&planned.schedule, self.now_ms());
            changed = true;
        }
        if changed { self.write(key, record, at).await } else { Ok((record, at)) }
    }

    async fn write(&self, key: &str, record: Record, expect: Expect) -> Result<Read, StoreError> {
        let value = serde_json::to_vec(&record).map_err(|cause| StoreError::Unreachable(cause.to_string()))?;
        let at = self.setup.store.put(key, value.into(), expect, None).await?;
        Ok((record, Expect::Revision(at)))
    }

    /// Calls the component for a run that is claimed, and writes down what became of it. Where it certainly was not called,
    /// what was remembered `before` is remembered again.
    ///
    /// # Errors
    /// Why it was not called.
    async fn carry_out(
        &self,
        at: &Key,
        key: &str,
        planned: &Planned,
        (record, mut expect): Read,
        before: Record,
    ) -> Result<Record, Problem> {
        let (tenant, app, name) = at;
        let Some(run) = record.running.clone() else { return Ok(record) };
        let within = planned.wall + Duration::from_millis(SLACK_MS);
        let called = self.setup.source.call(tenant, app, planned, run.due_ms);
        let error = match tokio::time::timeout(within, called).await {
            Ok(Ok(called)) => called.error,
            Ok(Err(problem)) if problem.code == Code::NotFound => {
                // Where that is not written, it stays claimed, and has failed.
                match self.write(key, before.not_begun(), expect).await {
                    Ok(_) => return Err(problem),
                    Err(cause) => Some(format!("{}; that cannot be written down: {cause}", problem.detail)),
                }
            }
            Ok(Err(problem)) => Some(problem.detail),
            Err(_) => Some("it did not end in time".to_owned()),
        };
        if let Some(error) = &error {
            tracing::warn!(%tenant, %app, schedule = %name, due_ms = run.due_ms, error, "a run of a schedule failed");
        }
        let mut record = record.ended(self.now_ms(), error);
        for _ in 0..TRIES {
            match self.write(key, record.clone(), expect).await {
                Ok((written, _)) => return Ok(written),
                Err(StoreError::Conflict { current: None, .. }) => {
                    tracing::debug!(key, "the schedule is gone; so is what its last run became");
                    return Ok(record);
                }
                // Somebody else wrote: only if the run is still ours is its end ours to tell.
                Err(StoreError::Conflict { .. }) => match self.setup.store.get(key).await {
                    Ok(Some(entry)) => {
                        let read = serde_json::from_slice::<Record>(&entry.value).ok();
                        let Some(theirs) = read.filter(|theirs| theirs.running.as_ref() == Some(&run)) else {
                            return Ok(record);
                        };
                        let error = record.last.as_ref().and_then(|last| last.error.clone());
                        record = theirs.ended(self.now_ms(), error);
                        expect = Expect::Revision(entry.revision);
                    }
                    Ok(None) => return Ok(record),
                    Err(cause) => self.pause(key, &cause).await,
                },
                Err(cause) => self.pause(key, &cause).await,
            }
        }
        Ok(record)
    }

    async fn pause(&self, key: &str, cause: &StoreError) {
        tracing::warn!(key, %cause, "how a run ended cannot be written down; trying again");
        tokio::time::sleep(Duration::from_millis(LATER_MS)).await;
    }

    fn run(&self, planned: &Planned, revision: Revision, due_ms: Option<u64>) -> Run {
        let began_ms = self.now_ms();
        let wall = u64::try_from(planned.wall.as_millis()).unwrap_or(u64::MAX);
        Run {
            due_ms: due_ms.unwrap_or(began_ms),
            began_ms,
            until_ms: began_ms.saturating_add(wall).saturating_add(2 * SLACK_MS),
            node: self.setup.node.clone(),
            process: self.process,
            revision,
            manual: due_ms.is_none(),
        }
    }
}

/// Looks at a schedule until nothing of it is due; when to look again.
pub(super) async fn due(
    context: Arc<Context>,
    at: Key,
    revision: Revision,
    planned: Planned,
    stop: CancellationToken,
) -> (Key, u64) {
    let key = keys::schedule(&at.0, &at.1, &at.2);
    let wake_ms = match look(&context, &at, &key, revision, &planned, &stop).await {
        Ok(wake_ms) => wake_ms,
        // Another node was faster: what it wrote is looked at.
        Err(StoreError::Conflict { .. }) => context.now_ms(),
        Err(cause) => {
            tracing::warn!(key, %cause, "a schedule cannot be looked at now");
            context.now_ms() + LATER_MS
        }
    };
    (at, wake_ms)
}

async fn look(
    context: &Context,
    at: &Key,
    key: &str,
    revision: Revision,
    planned: &Planned,
    stop: &CancellationToken,
) -> Result<u64, StoreError> {
    let (record, expect) = context.read(key, planned).await?;
    let now = context.now_ms();
    if let Some(run) = &record.running {
        return Ok(run.until_ms.min(now + LATER_MS));
    }
    match planned.timetable.decide(record.past(), now) {
        Decision::Wait(next) => Ok(next.unwrap_or(u64::MAX)),
        Decision::Pass { due_ms, passed } => {
            let (tenant, app, name) = at;
            tracing::info!(%tenant, %app, schedule = %name, passed, "due times were passed over");
            context.write(key, record.pass(due_ms, passed), expect).await?;
            Ok(now)
        }
        Decision::Run { due_ms, passed } => {
            if stop.is_cancelled() || !context.setup.source.ready(&at.0, &at.1) {
                return Ok(now + AGAIN_MS);
            }
            let run = context.run(planned, revision, Some(due_ms));
            let claimed = context.write(key, record.clone().began(run, passed), expect).await?;
            match context.carry_out(at, key, planned, claimed, record).await {
                Ok(_) => Ok(context.now_ms()),
                Err(problem) => {
                    let (tenant, app, name) = at;
                    tracing::info!(%tenant, %app, schedule = %name, due_ms, cause = %problem, "a run was not called; trying again");
                    Ok(context.now_ms() + LATER_MS)
                }
            }
        }
    }
}

/// Runs a schedule because somebody asked for it.
pub(super) async fn now(
    context: Arc<Context>,
    at: &Key,
    revision: Revision,
    planned: Planned,
) -> Result<Ended, Problem> {
    let key = keys::schedule(&at.0, &at.1, &at.2);
    let refused = |cause: StoreError| match cause {
        StoreError::Conflict { .. } => busy(&at.2),
        cause => Problem::new(Code::StoreUnavailable, format!("the run cannot be written down: {cause}")),
    };
    let (record, expect) = context.read(&key, &planned).await.map_err(refused)?;
    if record.running.is_some() {
        return Err(busy(&at.2));
    }
    if !context.setup.source.ready(&at.0, &at.1) {
        return Err(Problem::new(Code::Unreachable, "no host is ready to run it; try again"));
    }
    let run = context.run(&planned, revision, None);
    let claimed = context.write(&key, record.clone().began(run, 0), expect).await.map_err(refused)?;
    let record = context.carry_out(at, &key, &planned, claimed, record).await.map_err(|problem| {
        Problem::new(Code::Unreachable, format!("it was not run: {}", problem.detail)).help("try again")
    })?;
    record.last.ok_or_else(|| Problem::new(Code::Internal, "the run has no end"))
}
