//! Messages on their way to components. The host that holds a revision follows its subscriptions itself, whichever
//! broker they are of: it knows how much room its components have, and its node may not speak to the brokers of others.
//!
//! A message is acknowledged after its handler returned ok. One that fails comes again, later each time, and is put away
//! when it was tried as often as its link allows; one that nobody tried is given back. Following stops first when a
//! revision is to leave, and what is under way then is finished like any other call. While an app is held its messages stay
//! with their broker, and those that are here already wait as calls do: they go on with the revision that calls go on with.
//! Where that is on another host, or no place is found, the broker gets them back; of one that keeps none, the node has them.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures::StreamExt as _;
use model::messaging::Subscription;
use model::trace::{SpanKind, TraceContext};
use providers::keyvalue::watch::{WatchError, changed};
use providers::messaging::outcome::after_failure;
use providers::messaging::{
    Backend, BackendError, Deliveries, Delivers, Delivery, HandleError, Message, Outcome, Settle, handle,
};
use providers::meter::{ErrorKind, LinkMeter};
use runtime::trace::within;
use runtime::{Fault, Workload};
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::apps::{Apps, NoPlace, Place};
use crate::spans::Traced;
use crate::untried::Untried;

/// How long a message waits for a place among the calls of its component before another shard gets it.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long one that was not tried stays here before it is given back.
const NOT_TRIED: Duration = Duration::from_secs(1);
/// A message that was handed out so many times more than it may be tried is tried no more: with each of them a host ended.
const LOST_TRIES: u32 = 5;
/// The longest pause between two attempts to subscribe.
const MAX_PAUSE: Duration = Duration::from_secs(10);

/// One subscription of a revision.
pub(crate) struct Taken {
    pub(crate) subscription: Arc<Subscription>,
    /// Of the component: see [`api::agent::ROUTE_HEADER`].
    pub(crate) route: Box<str>,
    pub(crate) backend: Arc<dyn Backend>,
    /// Brokers of the node that may still hold messages of the link, from when it was linked to them, or to one that keeps
    /// none.
    pub(crate) former: Vec<Arc<dyn Backend>>,
    /// Where messages are left that this host cannot have handled, and taken that others left, where the broker keeps none.
    pub(crate) untried: Option<Arc<Untried>>,
    pub(crate) meter: Arc<LinkMeter>,
    pub(crate) what: What,
}

/// What a queue holds, and so which export is called.
#[derive(Clone)]
pub(crate) enum What {
    /// Messages.
    Messages,
    /// Keys that changed in the bucket of the link with this label.
    Changes(Box<str>),
}

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

/// The subscriptions of one revision, followed or not.
#[derive(Default)]
pub(crate) struct Taking {
    all: Vec<Arc<Taken>>,
    active: Mutex<Option<Active>>,
}

struct Active {
    stop: CancellationToken,
    tasks: TaskTracker,
    /// One for each subscription: it is there, or could not be had.
    begun: Vec<CancellationToken>,
}

impl Taking {
    pub(crate) fn new(all: Vec<Taken>) -> Self {
        Self { all: all.into_iter().map(Arc::new).collect(), active: Mutex::default() }
    }

    fn active(&self) -> std::sync::MutexGuard<'_, Option<Active>> {
        self.active.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Follows every subscription from now on; the future ends when each is there, or could not be had and is tried
    /// again. The same again changes nothing.
    pub(crate) fn begin(&self, apps: &Arc<Apps>) -> impl Future<Output = ()> + Send + use<> {
        let begun = self.follow(apps);
        async move {
            for one in begun {
                one.cancelled().await;
            }
        }
    }

    fn follow(&self, apps: &Arc<Apps>) -> Vec<CancellationToken> {
        let mut active = self.active();
        if let Some(active) = active.as_ref().filter(|active| !active.stop.is_cancelled()) {
            return active.begun.clone();
        }
        if self.all.is_empty() {
            return Vec::new();
        }
        let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
        let begun: Vec<_> = self.all.iter().map(|_| CancellationToken::new()).collect();
        for (taken, begun) in self.all.iter().zip(&begun) {
            let turns = Arc::new(Semaphore::new(taken.subscription.in_flight as usize));
            let follower = |backend: &Arc<dyn Backend>, from| Follower {
                begun: begun.clone(),
                apps: apps.clone(),
                taken: taken.clone(),
                backend: backend.clone(),
                from,
                stop: stop.clone(),
                tasks: tasks.clone(),
                room: Arc::new(Semaphore::new(taken.subscription.in_flight as usize)),
                turns: turns.clone(),
                jitter: RandomState::new(),
            };
            tasks.spawn(follower(&taken.backend, Source::Own).run());
            for backend in &taken.former {
                tasks.spawn(follower(backend, Source::Former).run());
            }
            if let Some(untried) = &taken.untried {
                let backend: Arc<dyn Backend> = untried.clone();
                tasks.spawn(follower(&backend, Source::Untried).run());
            }
        }
        let waits = begun.clone();
        *active = Some(Active { stop, tasks, begun });
        waits
    }

    /// How many messages, and sources of them, are not done with yet.
    pub(crate) fn under_way(&self) -> usize {
        self.active().as_ref().map_or(0, |active| active.tasks.len())
    }

    /// Takes no more messages; the future ends when no handler is under way. Asked again, it waits for the same ones.
    pub(crate) fn end(&self) -> impl Future<Output = ()> + Send + use<> {
        let tasks = self.active().as_ref().map(|active| {
            active.stop.cancel();
            active.tasks.close();
            active.tasks.clone()
        });
        async move {
            if let Some(tasks) = tasks {
                tasks.wait().await;
            }
        }
    }
}

impl Drop for Taking {
    fn drop(&mut self) {
        drop(self.end());
    }
}

/// Where messages come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Source {
    /// The link's own broker.
    Own,
    /// One of the node, of which only what is left there is wanted.
    Former,
    /// The node, which keeps what hosts could not have handled.
    Untried,
}

struct Follower {
    begun: CancellationToken,
    apps: Arc<Apps>,
    taken: Arc<Taken>,
    backend: Arc<dyn Backend>,
    from: Source,
    stop: CancellationToken,
    tasks: TaskTracker,
    /// For what it takes from where it takes it.
    room: Arc<Semaphore>,
    /// For what is handled at once, wherever it comes from.
    turns: Arc<Semaphore>,
    jitter: RandomState,
}

/// Why following a subscription ended.
enum End {
    /// It was stopped, or nothing is left.
    Over,
    /// The subscription was lost, or could not be had.
    Lost(String),
}

impl Follower {
    async fn run(self) {
        let mut failures = 0_u32;
        loop {
            let began = Instant::now();
            let why = match self.follow().await {
                End::Over => return self.stands(Ok(())),
                End::Lost(why) => why,
            };
            if began.elapsed() > MAX_PAUSE {
                failures = 0;
            }
            failures += 1;
            let group = &self.taken.subscription.group;
            tracing::warn!(app = %group.app, group = group.name, failures, cause = why, "messages cannot be followed; trying again");
            let full = Duration::from_millis(100).saturating_mul(1 << failures.min(10)).min(MAX_PAUSE);
            let pause = full / 2 + full.mul_f64((self.jitter.hash_one(failures) % 1000) as f64 / 2000.0);
            tokio::select! {
                () = self.stop.cancelled() => return,
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    async fn follow(&self) -> End {
        let subscribed = tokio::select! {
            biased;
            () = self.stop.cancelled() => return End::Over,
            subscribed = self.taken.meter.id().calls(self.backend.subscribe(self.taken.subscription.clone())) => subscribed,
        };
        if self.from == Source::Own {
            self.begun.cancel();
        }
        let mut deliveries = match subscribed {
            Ok(deliveries) => deliveries,
            Err(cause) => return self.lost(&cause),
        };
        self.stands(Ok(()));
        let mut troubles = deliveries.troubles();
        loop {
            let next = tokio::select! {
                biased;
                () = self.stop.cancelled() => {
                    deliveries.stop();
                    self.rest(deliveries).await;
                    return End::Over;
                }
                Some(trouble) = troubles.next() => {
                    self.stands(trouble.as_ref().map_or(Ok(()), Err));
                    continue;
                }
                next = self.next(&mut *deliveries) => next,
            };
            match next {
                Some(Ok(())) => {}
                Some(Err(cause)) => return self.lost(&cause),
                None if self.from == Source::Former => return End::Over,
                None => return End::Lost("the broker has no such subscription".to_owned()),
            }
        }
    }

    /// Says on the status whether messages come from where they are to come from.
    fn stands(&self, found: Result<(), &BackendError>) {
        if self.from == Source::Own {
            self.taken.meter.stands(found);
        }
    }

    /// Said on the status too, until following works again.
    fn lost(&self, cause: &BackendError) -> End {
        self.stands(Err(cause));
        End::Lost(cause.to_string())
    }

    /// Waits for room and for a message, and has the message handled.
    async fn next(&self, deliveries: &mut dyn Deliveries) -> Option<Result<(), BackendError>> {
        let permit = self.room.clone().acquire_owned().await.ok()?;
        self.apps.released(&self.taken.route).await;
        deliveries.room(self.room.available_permits() + 1);
        match deliveries.next().await? {
            Ok(delivery) => {
                let (apps, taken, stop) = (self.apps.clone(), self.taken.clone(), self.stop.clone());
                let delivers = self.backend.delivers();
                let untried = self.untried();
                let turns = self.turns.clone();
                self.tasks.spawn(async move {
                    treat(&apps, &taken, &turns, delivers, untried.as_deref(), delivery, &stop).await;
                    drop(permit);
                });
                Some(Ok(()))
            }
            Err(cause) => Some(Err(cause)),
        }
    }

    /// Where messages from here are left that cannot be handled. What came from the node it has still.
    fn untried(&self) -> Option<Arc<Untried>> {
        self.taken.untried.clone().filter(|_| self.from == Source::Own)
    }

    /// Messages that were taken before the end are handled after it. Of a broker that keeps none, a host that ends leaves them
    /// with the node at once: those that have the room may be handled for longer than the host is there.
    async fn rest(&self, mut deliveries: Box<dyn Deliveries>) {
        let untried = self.untried();
        loop {
            tokio::select! {
                biased;
                () = self.apps.ending().cancelled(), if untried.is_some() => break,
                next = self.next(&mut *deliveries) => match next {
                    Some(Ok(())) => {}
                    Some(Err(_)) | None => return,
                },
            }
        }
        let Some(untried) = untried else { return };
        while let Some(Ok(Delivery { id, message, trace, settle, .. })) = deliveries.next().await {
            let (taken, untried) = (self.taken.clone(), untried.clone());
            self.tasks.spawn(async move {
                leave(&taken, &untried, &id, message, trace, ("the host ends", Instant::now())).await;
                tell(&taken, &id, settle, Outcome::GivenBack).await;
            });
        }
    }
}

/// Has one message handled and tells its broker what became of it. What a broker keeps no more that could not be handled is
/// left in `untried`.
async fn treat(
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
async fn leave(
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

async fn tell(taken: &Taken, id: &str, settle: Box<dyn Settle>, outcome: Outcome) {
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
