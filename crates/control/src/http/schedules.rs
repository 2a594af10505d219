//! Schedules of an app: when each is due next and what became of it so far, and a run by hand.

use std::sync::Arc;

use api::Problem;
use api::control::ScheduleView;
use api::problem::Code;
use axum::Extension;
use axum::extract::State;
use axum::response::Response;
use model::plan::AppId;
use model::schedule::{Ended, Record, Schedule, Timetable};
use model::{AppName, ScheduleName, TenantName};
use store::keys;

use super::Api;
use super::extract::{At, json};
use super::refusal::{Answer, Refusal};
use crate::tokens::Caller;
use crate::{clock, writer};

/// The schedules of the app's wanted revision.
#[utoipa::path(get, path = "/v1/tenants/{tenant}/apps/{app}/schedules", params(("tenant" = TenantName, Path), ("app" = AppName, Path)),
    responses((status = 200, body = Vec<ScheduleView>), (status = "default", body = Problem)))]
pub(super) async fn list(
    State(api): State<Arc<Api>>,
    At((tenant, app)): At<(TenantName, AppName)>,
) -> Answer<Response> {
    let id = AppId { tenant, app };
    let current = api.writer.current(&id).await?.record.app;
    let mut views = Vec::with_capacity(current.schedules.len());
    for (name, schedule) in current.schedules {
        let key = keys::schedule(&id.tenant, &id.app, &name);
        let entry = api.store.get(&key).await?;
        let record = entry.map(|entry| writer::decode::<Record>(&entry)).transpose()?;
        views.push(view(name, schedule, record));
    }
    Ok(json(&views))
}

fn view(name: ScheduleName, schedule: Schedule, record: Option<Record>) -> ScheduleView {
    let now = clock::millis();
    // What is remembered of another expression says nothing of when this one is due.
    let decided = record.as_ref().filter(|record| record.is_of(&schedule)).map_or(0, |record| record.decided_ms);
    let next_ms = Timetable::of(&schedule).ok().and_then(|timetable| timetable.next(decided.max(now)));
    let (runs, failed, passed) = record.as_ref().map_or((0, 0, 0), |r| (r.runs, r.failed, r.passed));
    let (running, last) = record.map_or((None, None), |record| (record.running, record.last));
    ScheduleView { name, schedule, next_ms, running, last, runs, failed, passed }
}

/// Runs a schedule now, and answers when that has ended. A run that failed is no error of the request: `error` says why.
#[utoipa::path(post, path = "/v1/tenants/{tenant}/apps/{app}/schedules/{schedule}/run",
    params(("tenant" = TenantName, Path), ("app" = AppName, Path), ("schedule" = ScheduleName, Path)),
    responses((status = 200, body = Ended), (status = "default", body = Problem)))]
pub(super) async fn run(
    State(api): State<Arc<Api>>,
    Extension(caller): Extension<Caller>,
    At((tenant, app, name)): At<(TenantName, AppName, ScheduleName)>,
) -> Answer<Response> {
    let id = AppId { tenant, app };
    if !api.writer.current(&id).await?.record.app.schedules.contains_key(&name) {
        return Err(Refusal::new(Code::NotFound, format!("app `{}` has no schedule `{name}`", id.app))
            .help("`sidereal schedule list APP` shows those there are"));
    }
    // It changes nothing that is wanted, so it goes on beside other changes.
    drop(api.writer.turn(Some(&caller), &id.tenant).await?);
    Ok(json(&api.nodes.run_schedule(&id.tenant, &id.app, &name).await?))
}
