//! Follows one subscription at one broker: takes messages as there is room for them, and tries again where the broker is lost.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::StreamExt as _;
use providers::messaging::{Backend, BackendError, Deliveries, Delivery, Outcome};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::Taken;
use super::treat::{leave, tell, treat};
use crate::apps::Apps;
use crate::untried::Untried;

/// The longest pause between two attempts to subscribe.
const MAX_PAUSE: Duration = Duration::from_secs(10);

/// Where messages come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Source {
    /// The link's own broker.
    Own,
    /// One of the node, of which only what is left there is wanted.
    Former,
    /// The node, which keeps what hosts could not have handled.
    Untried,
}

/// One subscription, followed at one broker.
pub(super) struct Follower {
    pub(super) begun: CancellationToken,
    pub(super) apps: Arc<Apps>,
    pub(super) taken: Arc<Taken>,
    pub(super) backend: Arc<dyn Backend>,
    pub(super) from: Source,
    pub(super) stop: CancellationToken,
    pub(super) tasks: TaskTracker,
    /// For what it takes from where it takes it.
    pub(super) room: Arc<Semaphore>,
    /// For what is handled at once, wherever it comes from.
    pub(super) turns: Arc<Semaphore>,
    pub(super) jitter: RandomState,
}

/// Why following a subscription ended.
enum End {
    /// It was stopped, or nothing is left.
    Over,
    /// The subscription was lost, or could not be had.
    Lost(String),
}

impl Follower {
    /// Until it is stopped, or nothing is left.
    pub(super) async fn run(self) {
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
