//! Calls by the clock. The node decides when, writes it down, and asks for the call once; here it is a call like any
//! other, with the component's limits and its place among them.

use std::sync::Arc;
use std::time::Duration;

use api::agent::{Called, ScheduledCall};
use api::{Code, Problem};
use model::{AppName, Revision};
use providers::schedule::{RunError, run};

use crate::apps::{Apps, NoPlace};

/// How long a run waits for a place among the calls of its component.
const PATIENCE: Duration = Duration::from_secs(10);

/// Calls the component, and says what became of it.
///
/// # Errors
/// [`Code::NotFound`] and [`Code::Busy`]: it was not called.
pub(crate) async fn call(
    apps: &Arc<Apps>,
    app: &AppName,
    revision: Revision,
    call: ScheduledCall,
) -> Result<Called, Problem> {
    let ScheduledCall { component, entrance, export, schedule, due_ms } = call;
    let route = format!("{app}/{revision}/{component}");
    let unknown = || Problem::new(Code::NotFound, format!("this host does not have `{route}`"));
    let place = match apps.enter(&route) {
        Ok(place) => Ok(place),
        Err(NoPlace::Held) => apps.enter_later(&route, 0).await,
        Err(NoPlace::Busy) => apps.enter_when_free(&route, PATIENCE).await.ok_or(NoPlace::Busy),
        Err(other) => Err(other),
    };
    let place = place.map_err(|why| match why {
        NoPlace::Busy | NoPlace::Held => {
            let text = format!("component `{component}` has all the calls it may have");
            Problem::new(Code::Busy, text).help("raise its `concurrency`, or let it be called less at that time")
        }
        NoPlace::Unknown | NoPlace::Closed => unknown(),
    })?;
    let entry = place.entry();
    let workload = apps.ready(entry).await?;
    let ran = tokio::select! {
        biased;
        ran = run(&workload, entrance, export, schedule.to_string(), due_ms) => ran,
        () = entry.ended().cancelled() => return Ok(Called { error: Some("it was ended with its revision".to_owned()) }),
    };
    let Err(error) = ran else { return Ok(Called { error: None }) };
    if let RunError::Fault(fault) = &error {
        entry.failed(fault);
    }
    entry.remark(&format!("schedule `{schedule}`: {error}"));
    Ok(Called { error: Some(error.to_string()) })
}
