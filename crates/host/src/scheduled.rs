//! Calls by the clock. The node decides when, writes it down, and asks for the call once; here it is a call like any
//! other, with the component's limits and its place among them.

use std::sync::Arc;
use std::time::Duration;

use api::agent::{Called, ScheduledCall};
use api::{Code, Problem};
use model::trace::SpanKind;
use model::{AppName, Revision};
use providers::schedule::{RunError, run};
use runtime::trace::within;

use crate::apps::{Apps, NoPlace};
use crate::fault::describe;

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
    // A move of data may begin while it waits.
    let place = match apps.enter_when_free(&route, PATIENCE).await {
        Err(NoPlace::Held) => apps.enter_later(&route, 0).await,
        other => other,
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
    // Nobody asked for it: a trace begins here.
    let mut traced = apps.spans().join(None, entry.origin(), SpanKind::Server);
    if let Some(traced) = &mut traced {
        traced.attribute("faas.trigger", "timer");
        traced.attribute("sidereal.schedule", schedule.as_str());
    }
    let run = run(&workload, entrance, export, schedule.to_string(), due_ms);
    let ran = tokio::select! {
        biased;
        ran = within(traced.as_ref().map(|traced| traced.trace.clone()), run) => ran,
        () = entry.ended().cancelled() => return Ok(Called { error: Some("it was ended with its revision".to_owned()) }),
    };
    if let Some(traced) = &mut traced {
        traced.end(
            None,
            ran.as_ref().err().map(|error| match error {
                RunError::Fault(fault) => describe(fault).0.as_str().to_owned(),
                RunError::Component(_) => "the component says so".to_owned(),
            }),
        );
    }
    let Err(error) = ran else { return Ok(Called { error: None }) };
    if let RunError::Fault(fault) = &error {
        entry.failed(fault);
    }
    entry.remark(&format!("schedule `{schedule}`: {error}"));
    Ok(Called { error: Some(error.to_string()) })
}
