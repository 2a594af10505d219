//! Cron expressions: what is due is due by every field, nothing that is due is passed over, and what is read is read
//! again the same.

use jiff::tz::TimeZone;
use jiff::{Timestamp, ToSpan};
use model::schedule::Cron;

pub(super) fn seeds() -> Vec<Vec<u8>> {
    super::texts(&[
        "* * * * *",
        "0 0 29 2 *",
        "*/5 9-17 * * mon-fri",
        "@daily",
        "@Weekly",
        "30 0 2 1,15 * 7",
        "0 0 31 2 *",
        "1/10 */2 1-7 jan,dec sun",
        "59 59 23 31 12 *",
        "0 0 13 * 5",
    ])
}

pub(super) fn run(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let Ok(cron) = text.parse::<Cron>() else { return };
    assert_eq!(cron.to_string().parse::<Cron>().ok().as_ref(), Some(&cron));
    // A moment that depends on the text, so that all of the calendar is met.
    let salt = bytes.iter().fold(7_i64, |sum, byte| sum.wrapping_mul(131).wrapping_add(i64::from(*byte)));
    let from = Timestamp::from_second(salt.rem_euclid(4_000_000_000)).expect("a moment");
    let Some(due) = cron.next(&TimeZone::UTC, from) else { panic!("{text}: never again after {from}") };
    assert!(due > from, "{text}: {due} is not after {from}");
    let before = due.checked_sub(1.second()).expect("a moment");
    assert_eq!(cron.next(&TimeZone::UTC, before.max(from)), Some(due), "{text}");
    let Some(fields) = plain(text) else { return };
    assert!(is_due(&fields, due), "{text}: {due} is not due");
    // Every second up to the next hour, looked at one by one.
    let end = due.min(from.checked_add(1.hour()).expect("a moment"));
    let mut at = from.checked_add(1.second()).expect("a moment");
    while at < end && from.as_second() % 16 == 0 {
        assert!(!is_due(&fields, at), "{text}: {at} is passed over");
        at = at.checked_add(1.second()).expect("a moment");
    }
}

/// The fields of an expression that uses numbers, stars and commas only; what else there is, is left to the unit tests.
fn plain(text: &str) -> Option<Vec<Option<Vec<i8>>>> {
    let mut fields: Vec<&str> = text.split_ascii_whitespace().collect();
    if fields.len() == 5 {
        fields.insert(0, "0");
    }
    let one = |field: &&str| match *field {
        "*" => Some(None),
        list => list.split(',').map(|n| n.parse().ok()).collect::<Option<Vec<i8>>>().map(Some),
    };
    fields.iter().map(one).collect()
}

fn is_due(fields: &[Option<Vec<i8>>], at: Timestamp) -> bool {
    let at = at.to_zoned(TimeZone::UTC);
    let [second, minute, hour, day, month, weekday] = fields else { return true };
    let fits = |field: &Option<Vec<i8>>, value: i8| field.as_ref().is_none_or(|list| list.contains(&value));
    let sunday = at.weekday().to_sunday_zero_offset();
    let on_day = fits(day, at.day());
    let on_weekday = fits(weekday, sunday) || (sunday == 0 && fits(weekday, 7));
    let right_day = if day.is_some() && weekday.is_some() { on_day || on_weekday } else { on_day && on_weekday };
    fits(second, at.second())
        && fits(minute, at.minute())
        && fits(hour, at.hour())
        && fits(month, at.month())
        && right_day
}
