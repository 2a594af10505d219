//! `schedule`: what the clock calls, when it is due next, how the last run ended, and a run by hand.

use api::control::ScheduleView;
use model::AppName;
use model::schedule::Missed;
use serde::Serialize;

use crate::args::ScheduleCommand;
use crate::context::{Context, refused};
use crate::output::{moment, table};

/// A schedule and whose it is.
#[derive(Serialize)]
struct Row {
    app: AppName,
    #[serde(flatten)]
    view: ScheduleView,
}

/// `sidereal schedule`; false where a run failed.
///
/// # Errors
/// When the platform refuses.
pub async fn schedule(context: &Context, command: ScheduleCommand) -> anyhow::Result<bool> {
    let client = context.client()?;
    match command {
        ScheduleCommand::List { app } => {
            let apps = match app {
                Some(app) => vec![app],
                None => {
                    let all = client.apps(&context.tenant).await.map_err(refused)?;
                    let with = all.into_iter().filter(|app| !app.desired.app.schedules.is_empty());
                    with.map(|app| app.name).collect()
                }
            };
            let mut rows = Vec::new();
            for app in apps {
                let views = client.schedules(&context.tenant, &app).await.map_err(refused)?;
                rows.extend(views.into_iter().map(|view| Row { app: app.clone(), view }));
            }
            context.out.result(&rows, || match rows.is_empty() {
                true => "no schedules; `[schedules.<name>]` in app.toml makes one".to_owned(),
                false => {
                    let header = [
                        "APP", "SCHEDULE", "CRON", "ZONE", "NEXT", "LAST", "TOOK", "RESULT", "RUNS", "FAILED", "PASSED",
                    ];
                    table(&header, rows.iter().map(row).collect())
                }
            });
            Ok(true)
        }
        ScheduleCommand::Run { app, schedule } => {
            let ended = client.run_schedule(&context.tenant, &app, &schedule).await.map_err(refused)?;
            let took = ended.ended_ms.saturating_sub(ended.began_ms);
            context.out.result(&ended, || match &ended.error {
                None => format!("{app}/{schedule} ran, {took} ms"),
                Some(error) => format!("{app}/{schedule} failed after {took} ms: {error}"),
            });
            Ok(ended.error.is_none())
        }
    }
}

fn row(Row { app, view }: &Row) -> Vec<String> {
    let last = view.last.as_ref();
    let result = match (&view.running, last) {
        (Some(run), _) => format!("running since {}", moment(run.began_ms)),
        (None, None) => String::new(),
        (None, Some(last)) => last.error.clone().unwrap_or_else(|| "ok".to_owned()),
    };
    let missed = match view.schedule.missed {
        Missed::Skip => String::new(),
        other => format!(" (missed: {})", other.as_str()),
    };
    vec![
        app.to_string(),
        view.name.to_string(),
        format!("{}{missed}", view.schedule.cron),
        view.schedule.timezone.clone(),
        view.next_ms.map_or_else(|| "never".to_owned(), moment),
        last.map_or_else(String::new, |last| moment(last.due_ms)),
        last.map_or_else(String::new, |last| format!("{} ms", last.ended_ms.saturating_sub(last.began_ms))),
        result,
        view.runs.to_string(),
        view.failed.to_string(),
        view.passed.to_string(),
    ]
}
