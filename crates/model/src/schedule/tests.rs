//! Tables: when expressions are due, what clocks that change do to them, what runs, and what people are told.

use super::*;

fn at(text: &str) -> u64 {
    millis(text.parse().unwrap())
}

fn shown(ms: Option<u64>) -> String {
    ms.map_or_else(|| "never".to_owned(), |ms| moment(ms).to_string())
}

fn table(cron: &str, timezone: &str, missed: Missed) -> Timetable {
    let schedule = Schedule {
        component: "c".parse().unwrap(),
        cron: cron.to_owned(),
        timezone: timezone.to_owned(),
        missed,
        missed_max: 3,
    };
    Timetable::of(&schedule).unwrap()
}

fn nexts(cron: &str, timezone: &str, after: &str, count: usize) -> Vec<String> {
    let table = table(cron, timezone, Missed::Skip);
    let mut now = at(after);
    let mut found = Vec::new();
    for _ in 0..count {
        let next = table.next(now);
        found.push(shown(next));
        let Some(next) = next else { break };
        now = next;
    }
    found
}

#[test]
fn due_times_follow_the_calendar() {
    let cases: &[(&str, &str, &[&str])] = &[
        ("0 3 * * *", "2026-01-31T03:00:00Z", &["2026-02-01T03:00:00Z", "2026-02-02T03:00:00Z"]),
        ("*/20 * * * *", "2026-01-31T23:35:10Z", &["2026-01-31T23:40:00Z", "2026-02-01T00:00:00Z"]),
        ("5/25 4 * * *", "2026-01-01T00:00:00Z", &["2026-01-01T04:05:00Z", "2026-01-01T04:30:00Z"]),
        ("*/15 * * * * *", "2026-01-01T00:00:50Z", &["2026-01-01T00:01:00Z", "2026-01-01T00:01:15Z"]),
        ("* * * * * *", "2026-01-01T00:00:59.5Z", &["2026-01-01T00:01:00Z", "2026-01-01T00:01:01Z"]),
        ("0 0 29 2 *", "2026-01-01T00:00:00Z", &["2028-02-29T00:00:00Z", "2032-02-29T00:00:00Z"]),
        ("0 0 29 2 *", "2096-03-01T00:00:00Z", &["2104-02-29T00:00:00Z"]),
        // 2026-01-02 is a Friday; either day counts where both are named.
        ("0 12 13 * fri", "2026-01-10T00:00:00Z", &["2026-01-13T12:00:00Z", "2026-01-16T12:00:00Z"]),
        ("0 12 * * mon-wed,7", "2026-01-03T00:00:00Z", &["2026-01-04T12:00:00Z", "2026-01-05T12:00:00Z"]),
        ("0 0 31 * *", "2026-01-31T00:00:00Z", &["2026-03-31T00:00:00Z"]),
        ("@hourly", "2026-01-01T00:00:00Z", &["2026-01-01T01:00:00Z"]),
        ("@weekly", "2026-01-01T00:00:00Z", &["2026-01-04T00:00:00Z"]),
        ("@YEARLY", "2026-01-01T00:00:00Z", &["2027-01-01T00:00:00Z"]),
        ("0 9 * JAN,Jul MON", "2026-01-27T00:00:00Z", &["2026-07-06T09:00:00Z"]),
    ];
    for (cron, after, expected) in cases {
        assert_eq!(nexts(cron, "UTC", after, expected.len()), *expected, "{cron}");
    }
}

#[test]
fn clocks_that_change_are_met_by_one_rule() {
    // Berlin 2026: 29 March 02:00 becomes 03:00 (01:00 UTC); 25 October 03:00 becomes 02:00 (01:00 UTC).
    // Lord Howe 2026: 4 October 02:00 becomes 02:30 (15:30 UTC the day before); 5 April 02:00 becomes 01:30 (15:00 UTC).
    let cases: &[(&str, &str, &str, &[&str])] = &[
        // A time that does not exist: at the moment of the change, once; the next day as ever.
        ("30 2 * * *", "Europe/Berlin", "2026-03-28T12:00:00Z", &["2026-03-29T01:00:00Z", "2026-03-30T00:30:00Z"]),
        ("*/10 2 * * *", "Europe/Berlin", "2026-03-29T00:59:00Z", &["2026-03-29T01:00:00Z", "2026-03-30T00:00:00Z"]),
        // One that does: unmoved.
        ("0 3 * * *", "Europe/Berlin", "2026-03-28T12:00:00Z", &["2026-03-29T01:00:00Z", "2026-03-30T01:00:00Z"]),
        // Both fall on the same moment: one run.
        ("30 2,3 * * *", "Europe/Berlin", "2026-03-28T12:00:00Z", &["2026-03-29T01:00:00Z", "2026-03-29T01:30:00Z"]),
        // A time that comes twice: the first one.
        ("30 2 * * *", "Europe/Berlin", "2026-10-24T12:00:00Z", &["2026-10-25T00:30:00Z", "2026-10-26T01:30:00Z"]),
        ("30 2 * * *", "Europe/Berlin", "2026-10-25T00:45:00Z", &["2026-10-26T01:30:00Z"]),
        // Every hour: the time that passes.
        (
            "30 * * * *",
            "Europe/Berlin",
            "2026-03-29T00:00:00Z",
            &["2026-03-29T00:30:00Z", "2026-03-29T01:30:00Z", "2026-03-29T02:30:00Z"],
        ),
        (
            "30 * * * *",
            "Europe/Berlin",
            "2026-10-25T00:00:00Z",
            &["2026-10-25T00:30:00Z", "2026-10-25T01:30:00Z", "2026-10-25T02:30:00Z"],
        ),
        (
            "0,30 * * * *",
            "Europe/Berlin",
            "2026-10-25T00:10:00Z",
            &["2026-10-25T00:30:00Z", "2026-10-25T01:00:00Z", "2026-10-25T01:30:00Z", "2026-10-25T02:00:00Z"],
        ),
        // Half an hour, on the other side of the world.
        (
            "15 2 * * *",
            "Australia/Lord_Howe",
            "2026-10-03T00:00:00Z",
            &["2026-10-03T15:30:00Z", "2026-10-04T15:15:00Z"],
        ),
        (
            "45 1 * * *",
            "Australia/Lord_Howe",
            "2026-04-04T00:00:00Z",
            &["2026-04-04T14:45:00Z", "2026-04-05T15:15:00Z"],
        ),
        (
            "45 * * * *",
            "Australia/Lord_Howe",
            "2026-04-04T14:00:00Z",
            &["2026-04-04T14:45:00Z", "2026-04-04T15:15:00Z", "2026-04-04T16:15:00Z"],
        ),
        // Samoa had no 30 December 2011: what was due then is due when the 31st begins, as is the 31st itself.
        ("0 12 30 * *", "Pacific/Apia", "2011-12-01T00:00:00Z", &["2011-12-30T10:00:00Z", "2012-01-29T22:00:00Z"]),
        // Midnight itself does not exist in Beirut at the end of March.
        ("@daily", "Asia/Beirut", "2026-03-28T12:00:00Z", &["2026-03-28T22:00:00Z", "2026-03-29T21:00:00Z"]),
    ];
    for (cron, zone, after, expected) in cases {
        assert_eq!(nexts(cron, zone, after, expected.len()), *expected, "{cron} in {zone} after {after}");
    }
}

#[test]
fn due_times_only_grow() {
    for cron in ["* * * * * *", "*/7 1-3 * * *", "30 2 * * *", "0 0 1 * *", "*/13 * * * *"] {
        for zone in ["Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "UTC"] {
            let table = table(cron, zone, Missed::Skip);
            for start in
                ["2026-03-08T06:00:00Z", "2026-03-29T00:00:00Z", "2026-10-25T00:00:00Z", "2026-11-01T05:00:00Z"]
            {
                let mut now = at(start);
                for _ in 0..200 {
                    let next = table.next(now).unwrap();
                    assert!(next > now, "{cron} in {zone} after {now}");
                    // Nothing lies between the two: asking from anywhere there gives the same.
                    assert_eq!(table.next(now + (next - now) / 2), Some(next), "{cron} in {zone}");
                    now = next;
                }
            }
        }
    }
}

#[test]
fn what_is_not_a_cron_expression_is_told_why() {
    let cases = [
        (
            "",
            "it has 0 fields; it takes five (minute, hour, day of month, month, day of week), or six with the second first",
        ),
        (
            "* * * *",
            "it has 4 fields; it takes five (minute, hour, day of month, month, day of week), or six with the second first",
        ),
        ("60 * * * *", "the minute is `60`; it takes 0 to 59"),
        ("* 24 * * *", "the hour is `24`; it takes 0 to 23"),
        ("* * 0 * *", "the day of month is `0`; it takes 1 to 31"),
        ("* * * 13 *", "the month is `13`; it takes 1 to 12, or jan to dec"),
        ("* * * * mom", "the day of week is `mom`; did you mean `mon`?"),
        ("* * * * 1-", "the day of week is `1-`; it takes 0 to 7, or sun to sat"),
        ("5-1 * * * *", "the minute is `5-1`; a range goes from the smaller to the larger number"),
        ("*/0 * * * *", "the minute is `*/0`; what follows `/` is a number from 1 to 59"),
        ("*/x * * * *", "the minute is `*/x`; what follows `/` is a number from 1 to 59"),
        ("+5 * * * *", "the minute is `+5`; it takes 0 to 59"),
        ("0 0 30 2 *", "no calendar has such a day, so it would never run"),
        ("@dayly", "`@dayly` is none of the named ones; did you mean `@daily`?"),
        (
            "@reboot",
            "`@reboot` is none of the named ones; they are `@hourly`, `@daily`, `@midnight`, `@weekly`, `@monthly`, `@yearly`, `@annually`",
        ),
    ];
    for (text, expected) in cases {
        assert_eq!(text.parse::<Cron>().unwrap_err().to_string(), expected, "{text}");
    }
}

#[test]
fn a_zone_is_found_or_the_nearest_is_named() {
    for name in ["Europe/Berlin", "UTC", "America/Argentina/Buenos_Aires"] {
        assert!(zone(name).is_ok(), "{name}");
    }
    let help = |name: &str| zone(name).unwrap_err().help;
    assert_eq!(help("Europe/Berlim"), "did you mean `Europe/Berlin`?");
    assert_eq!(help("new york"), "did you mean `America/New_York`?");
    assert_eq!(help("The Moon Base"), "write one of the IANA names, for example `Europe/Berlin` or `UTC`");
}

#[test]
fn what_runs_is_decided_from_the_past_and_the_clock() {
    let every_minute = |missed| table("* * * * *", "UTC", missed);
    let (noon, minute) = (at("2026-01-01T12:00:00Z"), 60_000);
    let past = |decided_ms| Past { decided_ms, ended_ms: 0 };
    let run = |due_ms, passed| Decision::Run { due_ms, passed };
    let pass = |due_ms, passed| Decision::Pass { due_ms, passed };
    let cases = [
        // In time, a little late, too late.
        (Missed::Skip, past(noon - 1), noon, run(noon, 0)),
        (Missed::Skip, past(noon - 1), noon + GRACE_MS, run(noon, 0)),
        (Missed::Skip, past(noon - 1), noon + GRACE_MS + 1, pass(noon, 1)),
        // Nothing is due; the same again; the clock was put back by a minute, by a year.
        (Missed::Skip, past(noon), noon, Decision::Wait(Some(noon + minute))),
        (Missed::Once, past(noon), noon + 59_999, Decision::Wait(Some(noon + minute))),
        (Missed::All, past(noon), noon - minute, Decision::Wait(Some(noon + minute))),
        (Missed::All, past(noon), noon - 365 * 1440 * minute, Decision::Wait(Some(noon + minute))),
        // Five were missed, the last long ago or just now.
        (Missed::Skip, past(noon), noon + 5 * minute + 40_000, pass(noon + 5 * minute, 5)),
        (Missed::Skip, past(noon), noon + 5 * minute, run(noon + 5 * minute, 4)),
        (Missed::Once, past(noon), noon + 5 * minute + 40_000, run(noon + 5 * minute, 4)),
        (Missed::All, past(noon), noon + 5 * minute + 40_000, run(noon + 3 * minute, 2)),
        (Missed::All, past(noon + 3 * minute), noon + 5 * minute + 40_000, run(noon + 4 * minute, 0)),
        // A year was missed: counted up to a bound, and not every minute of it looked at.
        (Missed::Once, past(noon), noon + 365 * 1440 * minute, run(noon + 365 * 1440 * minute, 999)),
        (Missed::All, past(noon), noon + 365 * 1440 * minute, run(noon + (365 * 1440 - 2) * minute, 997)),
    ];
    for (missed, past, now, expected) in cases {
        assert_eq!(every_minute(missed).decide(past, now), expected, "{missed:?} {past:?} at {now}");
    }
}

#[test]
fn a_due_time_during_a_run_is_a_missed_one() {
    let every_second = |missed| table("* * * * * *", "UTC", missed);
    let noon = at("2026-01-01T12:00:00Z");
    // The run for noon ended at 2.5 s: 1 and 2 fell into it, 3 did not.
    let past = Past { decided_ms: noon, ended_ms: noon + 2500 };
    let decide = |missed, now| every_second(missed).decide(past, now);
    assert_eq!(decide(Missed::Skip, noon + 2600), Decision::Pass { due_ms: noon + 2000, passed: 2 });
    assert_eq!(decide(Missed::Skip, noon + 3001), Decision::Run { due_ms: noon + 3000, passed: 2 });
    assert_eq!(decide(Missed::Once, noon + 2600), Decision::Run { due_ms: noon + 2000, passed: 1 });
    assert_eq!(decide(Missed::All, noon + 2600), Decision::Run { due_ms: noon + 1000, passed: 0 });
}
