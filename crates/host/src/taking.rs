//! Messages on their way to components. The host that holds a revision follows its subscriptions itself, whichever
//! broker they are of: it knows how much room its components have, and its node may not speak to the brokers of others.
//!
//! A message is acknowledged after its handler returned ok. One that fails comes again, later each time, and is put away
//! when it was tried as often as its link allows; one that nobody tried is given back. Following stops first when a
//! revision is to leave, and what is under way then is finished like any other call. While an app is held its messages stay
//! with their broker, and those that are here already wait as calls do: they go on with the revision that calls go on with.
//! Where that is on another host, or no place is found, the broker gets them back; of one that keeps none, the node has them.

mod follow;
mod treat;

use std::collections::hash_map::RandomState;
use std::sync::{Arc, Mutex, PoisonError};

use model::messaging::Subscription;
use providers::messaging::Backend;
use providers::meter::LinkMeter;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::apps::Apps;
use crate::untried::Untried;
use follow::{Follower, Source};

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
