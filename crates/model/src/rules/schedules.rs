//! Schedules: a component that can be called, an expression that is due some day, a zone that exists.

use super::{Code, Found, Subject, Unknown, Violation, list, shown, suggest};
use crate::app::LockedApp;
use crate::name::ComponentName;
use crate::schedule::{Cron, MAX_MISSED_MAX, Missed, entrance, zone};

pub(super) fn check(app: &LockedApp, unknown: &Unknown, out: &mut Vec<Found>) {
    let names: Vec<&str> = app.components.keys().map(ComponentName::as_str).collect();
    for (name, schedule) in &app.schedules {
        let mut say = |key, violation| out.push(Found::at(Subject::Schedule(name.clone(), key), violation));
        let wanted = &schedule.component;
        match app.components.get(wanted) {
            None if unknown.all_components || unknown.components.contains(wanted.as_str()) => {}
            None => {
                let message = format!("schedule `{name}` calls component `{wanted}`, which the app does not have");
                let help = suggest(wanted.as_str(), &names, "its components");
                say("component", Violation::new(Code::ScheduleComponent, message).help(help));
            }
            Some(component) if !unknown.artifacts.contains(wanted) && entrance(&component.exports).is_none() => {
                let message = format!("schedule `{name}` calls component `{wanted}`, which has nothing it could call");
                let exports: Vec<String> = component.exports.iter().map(|e| shown(&e.to_string())).collect();
                let exports: Vec<&str> = exports.iter().map(String::as_str).collect();
                let has = if exports.is_empty() { "nothing".to_owned() } else { list(&exports) };
                let help = format!(
                    "export `sidereal:schedule/handler@0.1.0`, or `wasi:cli/run` of WASI 0.2; the component exports {has}"
                );
                say("component", Violation::new(Code::ScheduleComponent, message).help(help));
            }
            Some(_) => {}
        }
        if let Err(cause) = schedule.cron.parse::<Cron>() {
            let message = format!("`{}` is not a cron expression: {cause}", shown(&schedule.cron));
            let help = "for example `0 3 * * *` (daily at 3:00), `*/10 * * * *` (every ten minutes) or `@hourly`";
            say("cron", Violation::new(Code::ScheduleCron, message).help(help));
        }
        if let Err(cause) = zone(&schedule.timezone) {
            let message = format!("`{}` is not a time zone", cause.written);
            say("timezone", Violation::new(Code::ScheduleZone, message).help(cause.help));
        }
        if schedule.missed == Missed::All && !(1..=MAX_MISSED_MAX).contains(&schedule.missed_max) {
            let message = format!("`missed-max` is {}, outside 1 to {MAX_MISSED_MAX}", schedule.missed_max);
            say("missed-max", Violation::new(Code::BadValue, message).help("write a number in that range"));
        }
    }
}
