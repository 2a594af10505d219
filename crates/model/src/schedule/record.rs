//! What is remembered of a schedule, in the store and in answers of the API. A run is written down before it begins, so
//! that no due time is run twice, whatever ends in between.

use serde::{Deserialize, Serialize};

use super::{Past, Schedule};
use crate::app::Revision;
use crate::name::NodeName;

/// One schedule's past.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// The expression it is of: with another one, counting begins anew.
    pub cron: String,
    /// Its time zone.
    pub timezone: String,
    /// Everything due up to here was decided on, milliseconds since 1970.
    pub decided_ms: u64,
    /// The run that is under way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub running: Option<Run>,
    /// The last one that ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last: Option<Ended>,
    /// Runs that were begun.
    #[serde(default)]
    pub runs: u64,
    /// Runs that ended with an error.
    #[serde(default)]
    pub failed: u64,
    /// Due times that were passed over.
    #[serde(default)]
    pub passed: u64,
    /// What the last write of this record said.
    #[serde(default)]
    pub change: Change,
}

/// What a write of a record says.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Change {
    /// The schedule is followed from now on.
    #[default]
    Followed,
    /// A run began.
    Began,
    /// A run ended.
    Ended,
    /// Due times were passed over.
    Passed,
}

/// A run that is under way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Run {
    /// The due time it is for, milliseconds since 1970; when it was asked for, where somebody did.
    pub due_ms: u64,
    /// When it began, milliseconds since 1970.
    pub began_ms: u64,
    /// When it must have ended by the component's limits, milliseconds since 1970.
    pub until_ms: u64,
    /// Where it runs.
    pub node: NodeName,
    /// Tells the node's process from an earlier or later one.
    pub process: u64,
    /// Of which revision.
    pub revision: Revision,
    /// Somebody asked for it.
    #[serde(default)]
    pub manual: bool,
}

/// A run that ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Ended {
    /// The due time it was for, milliseconds since 1970; when it was asked for, where somebody did.
    pub due_ms: u64,
    /// When it began, milliseconds since 1970.
    pub began_ms: u64,
    /// When it ended, milliseconds since 1970.
    pub ended_ms: u64,
    /// Of which revision.
    pub revision: Revision,
    /// Somebody asked for it.
    #[serde(default)]
    pub manual: bool,
    /// Why it failed; absent where it did not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

impl Record {
    /// A schedule that is followed from `now_ms` on: nothing before that was missed.
    pub fn begin(schedule: &Schedule, now_ms: u64) -> Self {
        Self {
            cron: schedule.cron.clone(),
            timezone: schedule.timezone.clone(),
            decided_ms: now_ms,
            running: None,
            last: None,
            runs: 0,
            failed: 0,
            passed: 0,
            change: Change::Followed,
        }
    }

    /// Whether it is of this schedule as it is now.
    pub fn is_of(&self, schedule: &Schedule) -> bool {
        self.cron == schedule.cron && self.timezone == schedule.timezone
    }

    /// The same counts for a schedule that changed: due times of the old one were not missed.
    #[must_use]
    pub fn renewed(self, schedule: &Schedule, now_ms: u64) -> Self {
        let decided_ms = self.decided_ms.max(now_ms);
        let Schedule { cron, timezone, .. } = schedule.clone();
        Self { cron, timezone, decided_ms, change: Change::Followed, ..self }
    }

    /// What the decision needs.
    pub fn past(&self) -> Past {
        Past { decided_ms: self.decided_ms, ended_ms: self.last.as_ref().map_or(0, |last| last.ended_ms) }
    }

    /// The run begins; a due time counts as decided with it.
    #[must_use]
    pub fn began(mut self, run: Run, passed: u64) -> Self {
        if !run.manual {
            self.decided_ms = self.decided_ms.max(run.due_ms);
        }
        self.runs = self.runs.saturating_add(1);
        self.passed = self.passed.saturating_add(passed);
        self.running = Some(run);
        self.change = Change::Began;
        self
    }

    /// What it was before a run began that was not called after all: its due time is still to come.
    #[must_use]
    pub fn not_begun(self) -> Self {
        // Nothing that is told.
        Self { change: Change::Followed, ..self }
    }

    /// Due times up to this one are passed over.
    #[must_use]
    pub fn pass(mut self, due_ms: u64, passed: u64) -> Self {
        self.decided_ms = self.decided_ms.max(due_ms);
        self.passed = self.passed.saturating_add(passed);
        self.change = Change::Passed;
        self
    }

    /// The run under way ended.
    #[must_use]
    pub fn ended(mut self, ended_ms: u64, error: Option<String>) -> Self {
        if let Some(run) = self.running.take() {
            let Run { due_ms, began_ms, revision, manual, .. } = run;
            self.failed = self.failed.saturating_add(u64::from(error.is_some()));
            self.last = Some(Ended { due_ms, began_ms, ended_ms, revision, manual, error });
            self.change = Change::Ended;
        }
        self
    }
}
