//! What becomes of one message: it is handled by its component, or why not, and its broker is told. What a broker keeps no more
//! that could not be handled is left with the node.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::sync::Arc;
use std::time::{Duration, Instant};

use model::trace::{SpanKind, TraceContext};
use providers::keyvalue::watch::{WatchError, changed};
use providers::messaging::outcome::after_failure;
use providers::messaging::{Delivers, Delivery, HandleError, Message, Outcome, Settle, handle};
use providers::meter::ErrorKind;
use runtime::trace::within;
use runtime::{Fault, Workload};
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio_util::sync::CancellationToken;

use super::{Taken, What};
use crate::apps::{Apps, NoPlace, Place};
use crate::spans::Traced;
use crate::untried::Untried;

/// How long a message waits for a place among the calls of its component before another shard gets it.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long one that was not tried stays here before it is given back.
const NOT_TRIED: Duration = Duration::from_secs(1);
/// A message that was handed out so many times more than it may be tried is tried no more: with each of them a host ended.
const LOST_TRIES: u32 = 5;

impl What {
    /// What becomes of what cannot be handled. A change that nobody could be told of is in the bucket still.
    fn put_away(&self, to: Option<String>, why: String) -> Outcome {
        match self {
            Self::Messages => Outcome::PutAway { to, why },
            Self::Changes(_) => Outcome::PutAway { to: None, why },
        }
    }

    /// Says what is handled; which key changed is not said.
    fn describe(&self, traced: &mut Traced, id: &str, subject: &str, tries: u32) {
        match self {
            Self::Messages => {
                traced.attribute("messaging.operation.type", "process");
                traced.attribute("messaging.destination.name", subject);
                traced.attribute("messaging.message.id", id);
            }
            Self::Changes(label) => {
                traced.attribute("sidereal.contract", "wasi:keyvalue");
                traced.attribute("sidereal.label", &**label);
            }
        }
        traced.attribute("sidereal.tries", tries);
    }
}

/// Has one message handled and tells its broker what became of it. What a broker keeps no more that could not be handled is
/// left in `untried`.
pub(super) async fn treat(
    apps: &Arc<Apps>,
    taken: &Taken,
    turns: &Semaphore,
    delivers: Delivers,
    untried: Option<&Untried>,
    delivery: Delivery,
    stop: &CancellationToken,
) {
    let Delivery { id, tries, message, trace, settle } = delivery;
    let subject = message.subject.clone();
    if tries > taken.subscription.tries.saturating_add(LOST_TRIES) {
        let why = format!("it was handed out {} times, and each time the host ended before its handler did", tries - 1);
        tracing::warn!(id, subject, why, "a message is put away without being tried");
        let to = taken.subscription.dead_letter(&subject);
        return tell(taken, &id, settle, taken.what.put_away(to, why)).await;
    }
    let came = Instant::now();
    let left = untried.map(|untried| (untried, message.clone()));
    let place = enter(apps, taken, turns, subject.len() + message.body.len()).await;
    let mut not_tried = place.as_ref().err().map(|why| format!("{why:?}"));
    let outcome = match &place {
        Err(_) => Outcome::GivenBack,
        Ok((_, place)) => {
            let began = Instant::now();
            let mut traced = apps.spans().join(trace, place.entry().origin(), SpanKind::Consumer);
            if let Some(traced) = &mut traced {
                taken.what.describe(traced, &id, &subject, tries);
            }
            taken.meter.begins();
            let trace = traced.as_ref().map(|traced| traced.trace.clone());
            match within(trace, call(apps, place, &taken.what, message)).await {
                Called::Handled => {
                    taken.meter.ends(Some((began, None)));
                    if let Some(traced) = &mut traced {
                        traced.end(None, None);
                    }
                    Outcome::Done
                }
                Called::NotTried(why) => {
                    not_tried = Some(why);
                    taken.meter.ends(None);
                    Outcome::GivenBack
                }
                Called::Ended(why) => {
                    taken.meter.ends(None);
                    match delivers {
                        Delivers::AtLeastOnce => Outcome::GivenBack,
                        // It may have done what it was to do.
                        Delivers::AtMostOnce => {
                            let group = &taken.subscription.group;
                            tracing::warn!(app = %group.app, group = group.name, id, subject, why, "a message comes once, and its handler was ended: it is lost");
                            taken.meter.ended(came, Some(ErrorKind::Unavailable));
                            Outcome::Done
                        }
                    }
                }
                Called::Failed { kind, why } => {
                    taken.meter.ends(Some((began, Some(kind))));
                    if let Some(traced) = &mut traced {
                        // What a handler says may quote what it was given: the kind is enough here.
                        traced.end(None, Some(kind.as_str().to_owned()));
                    }
                    let outcome = after_failure(
                        &taken.subscription,
                        delivers,
                        &subject,
                        tries,
                        &why,
                        RandomState::new().hash_one(&id),
                    );
                    let outcome = match outcome {
                        Outcome::PutAway { to, why } => taken.what.put_away(to, why),
                        other => other,
                    };
                    place.entry().remark(&sentence(&id, &subject, tries, &why, &outcome));
                    outcome
                }
            }
        }
    };
    match (&outcome, left) {
        (Outcome::GivenBack, Some((untried, message))) => {
            leave(taken, untried, &id, message, trace, (&not_tried.unwrap_or_default(), came)).await;
        }
        // At once, it would only move round.
        (Outcome::GivenBack, None) => tokio::select! {
            () = stop.cancelled() => {}
            () = tokio::time::sleep(NOT_TRIED) => {}
        },
        _ => {}
    }
    tell(taken, &id, settle, outcome).await;
    // Held until here: a host that ends waits until the broker knows.
    drop(place);
}

/// A turn among the messages of the link, and a place among the calls of its component.
async fn enter<'a>(
    apps: &Arc<Apps>,
    taken: &Taken,
    turns: &'a Semaphore,
    bytes: usize,
) -> Result<(SemaphorePermit<'a>, Place), NoPlace> {
    let until = Instant::now() + PATIENCE;
    let turn = tokio::select! {
        biased;
        turn = turns.acquire() => turn.map_err(|_| NoPlace::Closed)?,
        () = apps.ending().cancelled() => return Err(NoPlace::Closed),
        () = tokio::time::sleep(PATIENCE) => return Err(NoPlace::Busy),
    };
    let left = until.saturating_duration_since(Instant::now());
    let place = match apps.enter_when_free(&taken.route, left).await {
        Err(NoPlace::Held) => apps.enter_later(&taken.route, bytes).await,
        other => other,
    };
    place.map(|place| (turn, place))
}

/// Leaves a message with the node that its broker does not keep, for this reason; it came then.
pub(super) async fn leave(
    taken: &Taken,
    untried: &Untried,
    id: &str,
    message: Message,
    trace: Option<TraceContext>,
    (why, came): (&str, Instant),
) {
    let subject = message.subject.clone();
    if let Err(cause) = untried.leave(&taken.subscription, message, trace).await {
        let group = &taken.subscription.group;
        tracing::warn!(app = %group.app, group = group.name, id, subject, why, %cause, "nobody had room for a message, its broker keeps none, and the node does not take it: it is lost");
        taken.meter.ended(came, Some(ErrorKind::Unavailable));
    }
}

pub(super) async fn tell(taken: &Taken, id: &str, settle: Box<dyn Settle>, outcome: Outcome) {
    if let Err(cause) = taken.meter.id().calls(settle.settle(outcome)).await {
        let group = &taken.subscription.group;
        tracing::warn!(app = %group.app, group = group.name, id, %cause, "what became of a message cannot be told; it may come again");
    }
}

fn sentence(id: &str, subject: &str, tries: u32, why: &str, outcome: &Outcome) -> String {
    let then = match outcome {
        Outcome::Again(pause) => format!("it comes again in {} ms", pause.as_millis()),
        Outcome::PutAway { to: Some(dead), .. } => format!("that was the last try; it goes to `{dead}`"),
        Outcome::PutAway { to: None, .. } => "that was the last try; it is dropped".to_owned(),
        Outcome::Done | Outcome::GivenBack => "nothing follows".to_owned(),
    };
    format!("message {id} of `{subject}`, try {tries}: {why}; {then}")
}

enum Called {
    Handled,
    /// The component did not begin.
    NotTried(String),
    /// It began, and was ended with its revision.
    Ended(String),
    Failed {
        kind: ErrorKind,
        why: String,
    },
}

/// Has a component handle what it is given.
async fn hand(work: &Arc<Workload>, what: &What, message: Message) -> Result<(), Failed> {
    let What::Changes(label) = what else {
        return handle(work, message).await.map_err(|error| match error {
            HandleError::Fault(fault) => Failed::Fault(fault),
            error @ HandleError::Handler(_) => Failed::Said(error.to_string()),
        });
    };
    let key = String::from_utf8_lossy(&message.body).into_owned();
    changed(work, label.to_string(), key).await.map_err(|error| match error {
        WatchError::Fault(fault) => Failed::Fault(fault),
        WatchError::Backend(cause) => Failed::Said(cause.to_string()),
    })
}

/// Why it was not handled.
enum Failed {
    /// Somebody said so.
    Said(String),
    /// The call failed.
    Fault(Fault),
}

async fn call(apps: &Arc<Apps>, place: &Place, what: &What, message: Message) -> Called {
    let entry = place.entry();
    let workload = match apps.ready(entry).await {
        Ok(workload) => workload,
        Err(error) => {
            tracing::warn!(%error, "a component could not be loaded for a message");
            return Called::NotTried(error.to_string());
        }
    };
    let result = tokio::select! {
        biased;
        result = hand(&workload, what, message) => result,
        () = entry.ended().cancelled() => return Called::Ended("its revision ended".to_owned()),
    };
    match result {
        Ok(()) => Called::Handled,
        Err(Failed::Fault(fault @ Fault::NoCapacity { .. })) => Called::NotTried(fault.to_string()),
        Err(Failed::Fault(fault @ Fault::Cancelled)) => Called::Ended(fault.to_string()),
        Err(Failed::Fault(fault)) => {
            entry.failed(&fault);
            let kind =
                if matches!(fault, Fault::WallTime { .. }) { ErrorKind::TimedOut } else { ErrorKind::Unavailable };
            Called::Failed { kind, why: fault.to_string() }
        }
        Err(Failed::Said(why)) => Called::Failed { kind: ErrorKind::Refused, why },
    }
}
