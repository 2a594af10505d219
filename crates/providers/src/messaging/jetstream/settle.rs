//! What the server is told of a message, and what is said of one that is put away.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::FutureExt;
use futures::future::BoxFuture;
use model::messaging::Subscription;

use super::group::Group;
use super::keeper::Kept;
use super::{BackendError, Jetstream, failed, refused};
use crate::messaging::{Outcome, Settle};
use crate::nats::jetstream::{JetStreamError, Place};
use crate::nats::{self, Headers, NatsError, Outgoing, TIMEOUT};
use crate::per_link::LinkId;

/// How long the server is told again what it does not confirm.
const PATIENCE: Duration = Duration::from_secs(10);
/// Between two of these tries.
const PAUSE: Duration = Duration::from_millis(200);
/// Gives a message back for another time, five seconds from now.
const LATER: &str = "-NAK {\"delay\":5000000000}";
/// The longest reason in a header, characters.
const MAX_WHY: usize = 500;

/// One message of a group, until the server knows what became of it. Dropped before, it is given back.
pub(super) struct Settler {
    broker: Jetstream,
    group: Group,
    subscription: Arc<Subscription>,
    place: Place,
    tries: u32,
    message: nats::Message,
    /// Gone when the server knows.
    kept: Option<Kept>,
    /// What became of it could not be told: it is not to come again at once, and fail again at once.
    later: bool,
    /// Somebody has it, and may try it: until then it is given back untried where it is dropped.
    handed: bool,
}

impl Settler {
    pub(super) fn new(
        broker: &Jetstream,
        group: &Group,
        subscription: &Arc<Subscription>,
        place: Place,
        tries: u32,
        kept: Kept,
        message: nats::Message,
    ) -> Self {
        let (broker, group, subscription) = (broker.clone(), group.clone(), subscription.clone());
        Self { broker, group, subscription, place, tries, message, kept: Some(kept), later: false, handed: false }
    }

    /// As who tries it has it.
    pub(super) fn handed(mut self) -> Self {
        self.handed = true;
        self
    }

    /// Tells the server until it confirms.
    async fn tell(&self, word: String) -> Result<(), BackendError> {
        let Some(kept) = &self.kept else { return Ok(()) };
        let began = Instant::now();
        loop {
            // Asked whatever else of the link goes unanswered: a message that is handled is not to come again for that.
            let told = self.broker.client().request(Outgoing::new(&*kept.subject, word.clone()), TIMEOUT).await;
            match told {
                Ok(_) => return Ok(()),
                Err(NatsError::Lost(_) | NatsError::Unavailable(_) | NatsError::TimedOut { .. })
                    if began.elapsed() < PATIENCE =>
                {
                    tokio::time::sleep(PAUSE).await;
                }
                Err(cause) => return Err(refused(cause)),
            }
        }
    }

    /// Sends it on with the reason. Sent twice it is there once: its id says what it is.
    async fn put_away(&self, subject: &str, why: &str) -> Result<(), BackendError> {
        let headers = self.told_of(why).map_err(refused)?;
        match self.broker.store(subject, &headers, &self.message.payload).await {
            // The stream for it was removed.
            Err(JetStreamError::Nats(NatsError::NoResponders(_))) => {
                self.broker.dead_letters(&self.subscription).await?;
                self.broker.store(subject, &headers, &self.message.payload).await.map(drop).map_err(failed)
            }
            done => done.map(drop).map_err(failed),
        }
    }

    fn told_of(&self, why: &str) -> Result<Headers, NatsError> {
        let mut headers = Headers::new();
        // What the server, or we for it, said of the first journey is not true of the next.
        for (name, value) in self.message.headers.iter().filter(|(name, _)| !name.starts_with("Nats-")) {
            headers.add(name, value)?;
        }
        let Group { stream, durable, .. } = &self.group;
        let plain = |c: char| if c.is_control() { ' ' } else { c };
        let why: String = why.chars().take(MAX_WHY).map(plain).collect();
        for (name, value) in [
            ("Nats-Msg-Id", format!("dead-letter.{durable}.{stream}.{}", self.place.seq)),
            ("Sidereal-Reason", why),
            ("Sidereal-Tries", self.tries.to_string()),
            ("Sidereal-Component", self.subscription.component.to_string()),
            ("Sidereal-Stream", stream.clone()),
            ("Sidereal-Sequence", self.place.seq.to_string()),
        ] {
            headers.add(name, &value)?;
        }
        Ok(headers)
    }

    async fn give_back(&self) {
        self.broker.give_back(&self.group, self.place.seq, self.place.delivered).await;
    }

    async fn forget(&self) {
        self.broker.forget(&self.group, self.place.seq).await;
    }
}

impl Settle for Settler {
    fn settle(mut self: Box<Self>, outcome: Outcome) -> BoxFuture<'static, Result<(), BackendError>> {
        async move {
            self.later = true;
            match outcome {
                Outcome::Done => {
                    self.tell("+ACK".to_owned()).await?;
                    self.forget().await;
                }
                Outcome::Again(pause) => {
                    let delay = u64::try_from(pause.as_nanos()).unwrap_or(u64::MAX);
                    self.tell(format!("-NAK {{\"delay\":{delay}}}")).await?;
                }
                Outcome::GivenBack => {
                    self.give_back().await;
                    self.tell("-NAK".to_owned()).await?;
                }
                Outcome::PutAway { to, why } => {
                    if let Some(to) = to {
                        self.put_away(&to, &why).await?;
                    }
                    self.tell("+TERM".to_owned()).await?;
                    self.forget().await;
                }
            }
            self.kept = None;
            Ok(())
        }
        .boxed()
    }
}

impl Drop for Settler {
    fn drop(&mut self) {
        let Some(kept) = self.kept.take() else { return };
        // Without a runtime the process is ending, and the server notices by itself.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            let (broker, group, place, handed) = (self.broker.clone(), self.group.clone(), self.place, self.handed);
            let word = if self.later { LATER } else { "-NAK" };
            let give_back = async move {
                if !handed {
                    broker.give_back(&group, place.seq, place.delivered).await;
                }
                broker.client().publish(Outgoing::new(&*kept.subject, word)).await.ok()
            };
            runtime.spawn(LinkId::carried(LinkId::calling(), give_back));
        }
    }
}
