//! Calls of a component by the clock: what a schedule is, and which of its due times is to run now. Pure: the clock, the
//! zone and what ran before are parameters; the node acts ([`decide`] says what it does next).

mod cron;
mod record;
mod zone;

use std::collections::VecDeque;
use std::str::FromStr;

use jiff::Timestamp;
use jiff::tz::TimeZone;
use serde::{Deserialize, Serialize};

pub use cron::{Cron, CronError, MAX_CRON};
pub use record::{Change, Ended, Record, Run};
pub use zone::{ZoneError, zone};

use crate::interface::InterfaceId;
use crate::name::ComponentName;
use crate::offers::Offered;

/// The most schedules of one app.
pub const MAX_SCHEDULES: usize = 64;
/// Missed due times that are made up for with `missed = "all"`, where the schedule does not say.
pub const DEFAULT_MISSED_MAX: u32 = 10;
/// The most a schedule may say.
pub const MAX_MISSED_MAX: u32 = 100;
/// A due time that nobody looked at for this long was missed, milliseconds.
pub const GRACE_MS: u64 = 30_000;
/// Due times that were passed over are counted up to this many at a time.
const MAX_COUNTED: usize = 1000;

/// When a component is called by the clock.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Schedule {
    /// Who is called.
    pub component: ComponentName,
    /// Five fields (minute, hour, day of month, month, day of week), six with the second first, or `@daily` and the like.
    pub cron: String,
    /// An IANA time zone, for example `Europe/Berlin`.
    pub timezone: String,
    /// What becomes of due times at which nothing could run.
    #[serde(default)]
    pub missed: Missed,
    /// With `missed = "all"`: at most this many are made up for, the latest.
    #[serde(default = "default_missed_max")]
    pub missed_max: u32,
}

fn default_missed_max() -> u32 {
    DEFAULT_MISSED_MAX
}

/// What becomes of due times at which nothing could run: the node was down, or the run before was still under way.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Missed {
    /// They are passed over.
    #[default]
    Skip,
    /// One run makes up for all of them: that of the latest.
    Once,
    /// Each is run, one after another, up to [`Schedule::missed_max`].
    All,
}

impl Missed {
    /// Every choice.
    pub const ALL: [Self; 3] = [Self::Skip, Self::Once, Self::All];

    /// The name in manifests.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Skip => "skip",
            Self::Once => "once",
            Self::All => "all",
        }
    }
}

impl FromStr for Missed {
    type Err = ();
    fn from_str(text: &str) -> Result<Self, ()> {
        Self::ALL.into_iter().find(|missed| missed.as_str() == text).ok_or(())
    }
}

/// What a component is called by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Entrance {
    /// `sidereal:schedule/handler@0.1.0`: it is told the schedule's name and the due time.
    Handler,
    /// `wasi:cli/run` of WASI 0.2: it is told nothing.
    Command,
}

/// How a component with these exports is called by a schedule: the name of the instance that has `run`.
pub fn entrance(exports: &[InterfaceId]) -> Option<(Entrance, String)> {
    let is = |export: &&InterfaceId, contract: &str, interface: &str, version: Offered| {
        export.contract.to_string() == contract
            && &*export.interface == interface
            && version.accepts(export.version.as_ref())
    };
    let handler = exports.iter().find(|e| is(e, "sidereal:schedule", "handler", Offered::Exact("0.1.0")));
    let command = || exports.iter().find(|e| is(e, "wasi:cli", "run", Offered::Track(0, 2, 12)));
    let found = handler.map(|export| (Entrance::Handler, export));
    let found = found.or_else(|| command().map(|export| (Entrance::Command, export)));
    found.map(|(entrance, export)| (entrance, export.to_string()))
}

/// A schedule whose texts were read.
#[derive(Debug, Clone)]
pub struct Timetable {
    cron: Cron,
    zone: TimeZone,
    missed: Missed,
    missed_max: usize,
}

/// Why a schedule cannot be followed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ScheduleError {
    /// Its expression.
    #[error("`{written}` is not a cron expression: {cause}")]
    Cron {
        /// What stands there, escaped and cut.
        written: String,
        /// Why.
        cause: CronError,
    },
    /// Its time zone.
    #[error(transparent)]
    Zone(#[from] ZoneError),
}

/// What one schedule has done, as it decides what is next.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Past {
    /// Everything due up to here was decided on, milliseconds since 1970.
    pub decided_ms: u64,
    /// When the last run ended, milliseconds since 1970; 0 where none did.
    pub ended_ms: u64,
}

/// What is next for a schedule on which no run is under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// Nothing before this moment, milliseconds since 1970; `None`: never again.
    Wait(Option<u64>),
    /// Everything up to `due_ms` is passed over.
    Pass {
        /// The latest of them, milliseconds since 1970.
        due_ms: u64,
        /// How many; 1000 may stand for more.
        passed: u64,
    },
    /// Run for this due time.
    Run {
        /// The due time, milliseconds since 1970.
        due_ms: u64,
        /// How many due times before it are passed over; 1000 may stand for more.
        passed: u64,
    },
}

fn moment(ms: u64) -> Timestamp {
    i64::try_from(ms).ok().and_then(|ms| Timestamp::from_millisecond(ms).ok()).unwrap_or(Timestamp::MAX)
}

fn millis(at: Timestamp) -> u64 {
    u64::try_from(at.as_millisecond()).unwrap_or(0)
}

impl Timetable {
    /// Reads the texts of a schedule.
    ///
    /// # Errors
    /// Which of them cannot be read, and why.
    pub fn of(schedule: &Schedule) -> Result<Self, ScheduleError> {
        let cron = schedule.cron.parse();
        let cron = cron.map_err(|cause| ScheduleError::Cron { written: crate::rules::shown(&schedule.cron), cause })?;
        Ok(Self {
            cron,
            zone: zone(&schedule.timezone)?,
            missed: schedule.missed,
            missed_max: usize::try_from(schedule.missed_max).unwrap_or(1).max(1),
        })
    }

    /// The first due time after `after_ms`, both in milliseconds since 1970.
    pub fn next(&self, after_ms: u64) -> Option<u64> {
        self.cron.next(&self.zone, moment(after_ms)).map(millis)
    }

    /// The latest due times in `(after, until]`, at most [`MAX_COUNTED`], oldest first. Reads backwards in growing steps,
    /// so that a node that was down for a year does not count every second of it.
    fn due(&self, after_ms: u64, until_ms: u64) -> VecDeque<u64> {
        let mut step = 60_000;
        loop {
            let from = after_ms.max(until_ms.saturating_sub(step));
            let mut found = VecDeque::new();
            let mut at = from;
            while let Some(next) = self.next(at).filter(|next| *next <= until_ms) {
                if found.len() == MAX_COUNTED {
                    found.pop_front();
                }
                found.push_back(next);
                at = next;
            }
            if from == after_ms || found.len() == MAX_COUNTED {
                return found;
            }
            step *= 4;
        }
    }

    /// What is to be done at `now_ms`. A clock that was put back finds everything decided already.
    pub fn decide(&self, past: Past, now_ms: u64) -> Decision {
        let mut due = self.due(past.decided_ms, now_ms);
        let Some(latest) = due.back().copied() else {
            return Decision::Wait(self.next(past.decided_ms.max(now_ms)));
        };
        let count = |list: &VecDeque<u64>| list.len() as u64;
        let before = count(&due).saturating_sub(1);
        match self.missed {
            Missed::Once => Decision::Run { due_ms: latest, passed: before },
            Missed::Skip if now_ms - latest <= GRACE_MS && latest >= past.ended_ms => {
                Decision::Run { due_ms: latest, passed: before }
            }
            Missed::Skip => Decision::Pass { due_ms: latest, passed: count(&due) },
            Missed::All => {
                let kept = due.split_off(due.len().saturating_sub(self.missed_max));
                let first = kept.front().copied().unwrap_or(latest);
                Decision::Run { due_ms: first, passed: count(&due) }
            }
        }
    }
}

#[cfg(test)]
mod tests;
