//! Messages on their way to components. The host that holds a revision follows its subscriptions itself, whichever
//! broker they are of: it knows how much room its components have, and its node may not speak to the brokers of others.
//!
//! A message is acknowledged after its handler returned ok. One that fails comes again, later each time, and is put away
//! when it was tried as often as its link allows; one that nobody tried is given back. Following stops first when a
//! revision is to leave, and what is under way then is finished like any other call.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use model::messaging::Subscription;
use providers::keyvalue::watch::{WatchError, changed};
use providers::messaging::outcome::after_failure;
use providers::messaging::{Backend, BackendError, Deliveries, Delivery, HandleError, Message, Outcome, handle};
use providers::meter::{ErrorKind, LinkMeter};
use runtime::{Fault, Workload};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::apps::{Apps, Place};

/// How long a message waits for a place among the calls of its component before another shard gets it.
const PATIENCE: Duration = Duration::from_secs(10);
/// The longest pause between two attempts to subscribe.
const MAX_PAUSE: Duration = Duration::from_secs(10);

/// One subscription of a revision.
pub(crate) struct Taken {
    pub(crate) subscription: Arc<Subscription>,
    /// Of the component: see [`api::agent::ROUTE_HEADER`].
    pub(crate) route: Box<str>,
    pub(crate) backend: Arc<dyn Backend>,
    /// Brokers of the node that may still hold messages of the link, from when it was linked to them.
    pub(crate) former: Vec<Arc<dyn Backend>>,
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

/// The subscriptions of one revision, followed or not.
#[derive(Default)]
pub(crate) struct Taking {
    all: Vec<Arc<Taken>>,
    active: Mutex<Option<Active>>,
}

struct Active {
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl Taking {
    pub(crate) fn new(all: Vec<Taken>) -> Self {
        Self { all: all.into_iter().map(Arc::new).collect(), active: Mutex::default() }
    }

    fn active(&self) -> std::sync::MutexGuard<'_, Option<Active>> {
        self.active.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Follows every subscription from now on. The same again changes nothing.
    pub(crate) fn begin(&self, apps: &Arc<Apps>) {
        let mut active = self.active();
        if active.is_some() || self.all.is_empty() {
            return;
        }
        let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
        for taken in &self.all {
            let follower = |backend: &Arc<dyn Backend>, former| Follower {
                apps: apps.clone(),
                taken: taken.clone(),
                backend: backend.clone(),
                former,
                stop: stop.clone(),
                tasks: tasks.clone(),
                room: Arc::new(Semaphore::new(taken.subscription.in_flight as usize)),
                jitter: RandomState::new(),
            };
            tasks.spawn(follower(&taken.backend, false).run());
            for backend in &taken.former {
                tasks.spawn(follower(backend, true).run());
            }
        }
        *active = Some(Active { stop, tasks });
    }

    /// Takes no more messages; the future ends when no handler is under way.
    pub(crate) fn end(&self) -> impl Future<Output = ()> + Send + use<> {
        let active = self.active().take();
        if let Some(active) = &active {
            active.stop.cancel();
            active.tasks.close();
        }
        async move {
            if let Some(active) = active {
                active.tasks.wait().await;
            }
        }
    }
}

impl Drop for Taking {
    fn drop(&mut self) {
        drop(self.end());
    }
}

struct Follower {
    apps: Arc<Apps>,
    taken: Arc<Taken>,
    backend: Arc<dyn Backend>,
    /// Only what is left there is wanted.
    former: bool,
    stop: CancellationToken,
    tasks: TaskTracker,
    room: Arc<Semaphore>,
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
                End::Over => return,
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
            subscribed = self.backend.subscribe(self.taken.subscription.clone()) => subscribed,
        };
        let mut deliveries = match subscribed {
            Ok(deliveries) => deliveries,
            Err(cause) => return self.lost(&cause),
        };
        self.taken.meter.found(Ok::<(), &BackendError>(()));
        loop {
            let next = tokio::select! {
                biased;
                () = self.stop.cancelled() => {
                    deliveries.stop();
                    self.rest(deliveries).await;
                    return End::Over;
                }
                next = self.next(&mut *deliveries) => next,
            };
            match next {
                Some(Ok(())) => {}
                Some(Err(cause)) => return self.lost(&cause),
                None if self.former => return End::Over,
                None => return End::Lost("the broker has no such subscription".to_owned()),
            }
        }
    }

    /// Said on the status too, until following works again.
    fn lost(&self, cause: &BackendError) -> End {
        self.taken.meter.found(Err(cause));
        End::Lost(cause.to_string())
    }

    /// Waits for room and for a message, and has the message handled.
    async fn next(&self, deliveries: &mut dyn Deliveries) -> Option<Result<(), BackendError>> {
        let permit = self.room.clone().acquire_owned().await.ok()?;
        match deliveries.next().await? {
            Ok(delivery) => {
                let (apps, taken, stop) = (self.apps.clone(), self.taken.clone(), self.stop.clone());
                self.tasks.spawn(async move {
                    treat(&apps, &taken, delivery, &stop).await;
                    drop(permit);
                });
                Some(Ok(()))
            }
            Err(cause) => Some(Err(cause)),
        }
    }

    /// Messages that were taken before the end are handled after it.
    async fn rest(&self, mut deliveries: Box<dyn Deliveries>) {
        while let Some(Ok(())) = self.next(&mut *deliveries).await {}
    }
}

/// Has one message handled and tells its broker what became of it.
async fn treat(apps: &Arc<Apps>, taken: &Taken, delivery: Delivery, stop: &CancellationToken) {
    let Delivery { id, tries, message, settle } = delivery;
    let subject = message.subject.clone();
    let place = apps.enter_when_free(&taken.route, PATIENCE).await;
    let outcome = match &place {
        None => Outcome::GivenBack,
        Some(place) => {
            let began = Instant::now();
            match call(apps, place, &taken.what, message).await {
                Called::Handled => {
                    taken.meter.ended(began, None);
                    Outcome::Done
                }
                Called::NotTried => Outcome::GivenBack,
                Called::Failed { kind, why } => {
                    taken.meter.ended(began, Some(kind));
                    let outcome = after_failure(
                        &taken.subscription,
                        taken.backend.delivers(),
                        &subject,
                        tries,
                        &why,
                        RandomState::new().hash_one(&id),
                    );
                    let outcome = match (&taken.what, outcome) {
                        // What nobody could be told of is in the bucket still.
                        (What::Changes(_), Outcome::PutAway { why, .. }) => Outcome::PutAway { to: None, why },
                        (_, outcome) => outcome,
                    };
                    place.entry().remark(&sentence(&id, &subject, tries, &why, &outcome));
                    outcome
                }
            }
        }
    };
    let back = outcome == Outcome::GivenBack;
    if let Err(cause) = settle.settle(outcome).await {
        let group = &taken.subscription.group;
        tracing::warn!(app = %group.app, group = group.name, id, %cause, "what became of a message cannot be told; it may come again");
    }
    // Held until here: a host that ends waits until the broker knows.
    drop(place);
    if back && !stop.is_cancelled() {
        // Nobody had room: asking again at once would only move the message round.
        tokio::time::sleep(Duration::from_millis(100)).await;
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
    NotTried,
    Failed { kind: ErrorKind, why: String },
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
            return Called::NotTried;
        }
    };
    let result = tokio::select! {
        biased;
        result = hand(&workload, what, message) => result,
        () = entry.ended().cancelled() => return Called::NotTried,
    };
    match result {
        Ok(()) => Called::Handled,
        Err(Failed::Fault(Fault::NoCapacity { .. } | Fault::Cancelled)) => Called::NotTried,
        Err(Failed::Fault(fault)) => {
            entry.failed(&fault);
            let kind =
                if matches!(fault, Fault::WallTime { .. }) { ErrorKind::TimedOut } else { ErrorKind::Unavailable };
            Called::Failed { kind, why: fault.to_string() }
        }
        Err(Failed::Said(why)) => Called::Failed { kind: ErrorKind::Refused, why },
    }
}
