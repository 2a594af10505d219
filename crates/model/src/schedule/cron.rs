//! Cron expressions, and when one is due next in a time zone. Pure: the zone and the moment are parameters.
//!
//! Our own reader, because what a schedule does when clocks change has to be one stated rule, and the libraries there
//! are either say nothing of it or bring a second calendar library.
//!
//! Where clocks are put forward, a time of day that does not exist is due at the moment they are (once, however many
//! there are); where they are put back, a time of day that comes twice is due the first time. An expression that names
//! every hour follows the time that passes instead: nothing is made up for, and an hour that comes twice counts twice.

use std::fmt;
use std::str::FromStr;

use jiff::civil::{Date, DateTime};
use jiff::tz::{AmbiguousOffset, TimeZone};
use jiff::{Span, Timestamp};

use crate::rules::{nearest, shown};

/// The longest expression, bytes.
pub const MAX_CRON: usize = 256;
/// Days that are looked at for a due time: 29 February comes back after eight years at the latest, on a given day of the
/// week after forty.
const HORIZON_DAYS: u32 = 41 * 366;

const NAMED: [(&str, &str); 7] = [
    ("@hourly", "0 * * * *"),
    ("@daily", "0 0 * * *"),
    ("@midnight", "0 0 * * *"),
    ("@weekly", "0 0 * * 0"),
    ("@monthly", "0 0 1 * *"),
    ("@yearly", "0 0 1 1 *"),
    ("@annually", "0 0 1 1 *"),
];
const MONTHS: [&str; 12] = ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"];
const DAYS: [&str; 7] = ["sun", "mon", "tue", "wed", "thu", "fri", "sat"];

/// Why a text is not a cron expression.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CronError {
    /// Not five or six fields.
    #[error(
        "it has {0} fields; it takes five (minute, hour, day of month, month, day of week), or six with the second first"
    )]
    Fields(usize),
    /// An `@name` that does not exist.
    #[error("`{written}` is none of the named ones; {help}")]
    Named {
        /// What stands there.
        written: String,
        /// The nearest, or all.
        help: String,
    },
    /// One field is not readable.
    #[error("the {field} is `{written}`; {why}")]
    Field {
        /// Which.
        field: &'static str,
        /// What stands there.
        written: String,
        /// What it takes.
        why: String,
    },
    /// Readable, and no calendar has such a day.
    #[error("no calendar has such a day, so it would never run")]
    Never,
    /// Too long.
    #[error("it has {0} characters; it has at most {MAX_CRON}")]
    TooLong(usize),
}

/// What one field takes.
struct Range {
    what: &'static str,
    min: u8,
    max: u8,
    names: &'static [&'static str],
}

const SECOND: Range = Range { what: "second", min: 0, max: 59, names: &[] };
const MINUTE: Range = Range { what: "minute", min: 0, max: 59, names: &[] };
const HOUR: Range = Range { what: "hour", min: 0, max: 23, names: &[] };
const DAY: Range = Range { what: "day of month", min: 1, max: 31, names: &[] };
const MONTH: Range = Range { what: "month", min: 1, max: 12, names: &MONTHS };
/// 7 is Sunday too.
const WEEKDAY: Range = Range { what: "day of week", min: 0, max: 7, names: &DAYS };

impl Range {
    fn error(&self, written: &str, why: String) -> CronError {
        CronError::Field { field: self.what, written: shown(written), why }
    }

    fn number(&self, written: &str, whole: &str) -> Result<u8, CronError> {
        let lower = written.to_ascii_lowercase();
        if let Some(index) = self.names.iter().position(|name| *name == lower) {
            return Ok(u8::try_from(index).unwrap_or(0) + self.min);
        }
        let digits = !written.is_empty() && written.bytes().all(|b| b.is_ascii_digit());
        match written.parse::<u8>() {
            Ok(number) if digits && (self.min..=self.max).contains(&number) => Ok(number),
            _ => {
                let near = nearest(&lower, self.names.iter().copied()).filter(|_| !digits);
                let why = match near {
                    Some(near) => format!("did you mean `{near}`?"),
                    None if self.names.is_empty() => format!("it takes {} to {}", self.min, self.max),
                    None => {
                        let (first, last) = (self.names.first(), self.names.last());
                        let (first, last) = (first.copied().unwrap_or_default(), last.copied().unwrap_or_default());
                        format!("it takes {} to {}, or {first} to {last}", self.min, self.max)
                    }
                };
                Err(self.error(whole, why))
            }
        }
    }

    /// The numbers of a field, a bit each.
    fn bits(&self, written: &str) -> Result<u64, CronError> {
        let mut bits = 0;
        for part in written.split(',') {
            let (range, step) = match part.split_once('/') {
                Some((range, step)) => (range, Some(step)),
                None => (part, None),
            };
            let (first, last) = match range.split_once('-') {
                _ if range == "*" => (self.min, self.max.min(if self.max == 7 { 6 } else { self.max })),
                Some((first, last)) => (self.number(first, written)?, self.number(last, written)?),
                // `5/10` begins at 5 and goes on to the end.
                None if step.is_some() => (self.number(range, written)?, self.max),
                None => {
                    let one = self.number(range, written)?;
                    (one, one)
                }
            };
            if first > last {
                return Err(self.error(written, "a range goes from the smaller to the larger number".to_owned()));
            }
            let step = match step {
                None => 1,
                Some(text) => match text.parse::<u8>() {
                    Ok(step) if step > 0 && text.bytes().all(|b| b.is_ascii_digit()) && step <= self.max => step,
                    _ => {
                        let why = format!("what follows `/` is a number from 1 to {}", self.max);
                        return Err(self.error(written, why));
                    }
                },
            };
            for number in (first..=last).step_by(step.into()) {
                bits |= 1 << number;
            }
        }
        Ok(bits)
    }
}

/// A cron expression that was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cron {
    text: String,
    seconds: u64,
    minutes: u64,
    hours: u64,
    days: u64,
    months: u64,
    weekdays: u64,
    /// Both a day of the month and a day of the week are named: either of them makes the day.
    either_day: bool,
}

fn has(bits: u64, number: i8) -> bool {
    u32::try_from(number).is_ok_and(|number| bits >> number & 1 == 1)
}

fn numbers(bits: u64) -> impl Iterator<Item = i8> {
    (0..60).filter(move |number| has(bits, *number))
}

impl FromStr for Cron {
    type Err = CronError;

    fn from_str(text: &str) -> Result<Self, CronError> {
        if text.len() > MAX_CRON {
            return Err(CronError::TooLong(text.len()));
        }
        let text = text.trim();
        let long = match text.strip_prefix('@') {
            None => text,
            Some(_) => {
                let lower = text.to_ascii_lowercase();
                let known = NAMED.iter().find(|(name, _)| *name == lower);
                known.map(|(_, long)| *long).ok_or_else(|| {
                    let names = NAMED.map(|(name, _)| name);
                    let help = match nearest(text, names) {
                        Some(near) => format!("did you mean `{near}`?"),
                        None => format!("they are {}", crate::rules::list(&names)),
                    };
                    CronError::Named { written: shown(text), help }
                })?
            }
        };
        let fields: Vec<&str> = long.split_ascii_whitespace().collect();
        let (second, fields) = match fields.as_slice() {
            [second, rest @ ..] if rest.len() == 5 => (*second, rest),
            all => ("0", all),
        };
        let [minute, hour, day, month, weekday] = fields else { return Err(CronError::Fields(fields.len())) };
        let weekdays = WEEKDAY.bits(weekday)?;
        let cron = Self {
            text: text.to_owned(),
            seconds: SECOND.bits(second)?,
            minutes: MINUTE.bits(minute)?,
            hours: HOUR.bits(hour)?,
            days: DAY.bits(day)?,
            months: MONTH.bits(month)?,
            weekdays: weekdays & 0x7f | weekdays >> 7,
            either_day: !day.starts_with('*') && !weekday.starts_with('*'),
        };
        // In UTC every day has every time of day: what is never due there is due nowhere.
        match cron.next(&TimeZone::UTC, Timestamp::UNIX_EPOCH) {
            Some(_) => Ok(cron),
            None => Err(CronError::Never),
        }
    }
}

impl fmt::Display for Cron {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl Cron {
    fn on(&self, date: Date) -> bool {
        let day = has(self.days, date.day());
        let weekday = has(self.weekdays, date.weekday().to_sunday_zero_offset());
        let right_day = if self.either_day { day || weekday } else { day && weekday };
        has(self.months, date.month()) && right_day
    }

    /// Whether it follows the time that passes, see the module.
    fn every_hour(&self) -> bool {
        self.hours == (1 << 24) - 1
    }

    /// The first due time after `after`; `None` where there is none before the end of the calendar.
    pub fn next(&self, zone: &TimeZone, after: Timestamp) -> Option<Timestamp> {
        // A day earlier than the date there: what is due where clocks were put forward may belong to the day before.
        let mut date = zone.to_datetime(after).date().checked_sub(Span::new().days(1)).ok()?;
        for _ in 0..HORIZON_DAYS {
            if self.on(date)
                && let Some(due) = self.on_day(date, zone, after)
            {
                return Some(due);
            }
            date = date.tomorrow().ok()?;
        }
        None
    }

    fn on_day(&self, date: Date, zone: &TimeZone, after: Timestamp) -> Option<Timestamp> {
        for hour in numbers(self.hours) {
            // The latest this hour can be over; most hours of the day are skipped by it.
            let end = date.at(hour, 59, 59, 0);
            if latest(end, zone).is_some_and(|end| end <= after) {
                continue;
            }
            for second_time in [false, true] {
                for minute in numbers(self.minutes) {
                    let end = date.at(hour, minute, 59, 0);
                    if latest(end, zone).is_some_and(|end| end <= after) {
                        continue;
                    }
                    let seconds = numbers(self.seconds).map(|second| date.at(hour, minute, second, 0));
                    let mut due = seconds.filter_map(|at| self.moment(at, zone, second_time));
                    if let Some(due) = due.find(|due| *due > after) {
                        return Some(due);
                    }
                }
            }
        }
        None
    }

    /// When the clocks show `at`, for the first or the second time.
    fn moment(&self, at: DateTime, zone: &TimeZone, second_time: bool) -> Option<Timestamp> {
        match (zone.to_ambiguous_timestamp(at).offset(), second_time) {
            (AmbiguousOffset::Unambiguous { offset }, false) => offset.to_timestamp(at).ok(),
            (AmbiguousOffset::Fold { before, .. }, false) => before.to_timestamp(at).ok(),
            (AmbiguousOffset::Fold { after, .. }, true) if self.every_hour() => after.to_timestamp(at).ok(),
            (AmbiguousOffset::Gap { after, .. }, false) if !self.every_hour() => {
                // By the new offset the time lies before the change, by the old one after it.
                let before = after.to_timestamp(at).ok()?;
                zone.following(before).next().map(|change| change.timestamp())
            }
            _ => None,
        }
    }
}

/// The last moment at which the clocks show `at`, or would.
fn latest(at: DateTime, zone: &TimeZone) -> Option<Timestamp> {
    match zone.to_ambiguous_timestamp(at).offset() {
        AmbiguousOffset::Unambiguous { offset } => offset,
        AmbiguousOffset::Fold { after, .. } => after,
        AmbiguousOffset::Gap { before, .. } => before,
    }
    .to_timestamp(at)
    .ok()
}
