//! Messages of a group as they come: a task pulls as many as there is room for, and starts to speak for each when it
//! arrives.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::FutureExt;
use futures::future::BoxFuture;
use model::messaging::{MAX_BODY, Subscription, check_subject};
use model::trace::TraceContext;
use serde::Serialize;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::given_back::Peers;
use super::group::{Group, Taken};
use super::settle::Settler;
use super::{BackendError, Deliveries, Jetstream, Message, REPLY_TO, refused};
use crate::messaging::nats::trace_of;
use crate::messaging::{Delivery, Outcome, Settle};
use crate::nats::jetstream::Place;
use crate::nats::{self, Buffer, Outgoing};
use crate::per_link::LinkId;

/// Messages that wait here at most: the rest is for other hosts.
const AT_ONCE: usize = 8;
/// How long the server keeps a pull for which it has nothing, nanoseconds. One that was lost with its connection is made
/// again after so long.
const EXPIRES_NS: u64 = 5_000_000_000;
/// After that, what the server says of the end of a pull has been lost.
const PATIENCE: Duration = Duration::from_secs(7);
/// Between two questions up to where everything is handled.
const FLOOR: Duration = Duration::from_secs(5);
/// A pull that the server refuses for now is made again after so long.
const PAUSE: Duration = Duration::from_millis(250);
/// So many times more than it may be tried a message is given out whose handlers never end: with each of them a host did.
const LOST_TRIES: u32 = 5;

#[derive(Serialize)]
struct Pull {
    batch: usize,
    expires: u64,
}

/// A delivery that nobody has yet.
struct Waiting {
    id: String,
    tries: u32,
    message: Message,
    trace: Option<TraceContext>,
    settle: Settler,
}

impl Waiting {
    fn handed(self) -> Delivery {
        let Self { id, tries, message, trace, settle } = self;
        Delivery { id, tries, message, trace, settle: Box::new(settle.handed()) }
    }
}

/// What one link takes.
pub(super) struct Arriving {
    arrived: mpsc::Receiver<Result<Waiting, BackendError>>,
    stop: CancellationToken,
}

struct Puller {
    broker: Jetstream,
    group: Group,
    subscription: Arc<Subscription>,
    inbox: String,
    arriving: nats::Subscription,
    peers: Peers,
    out: mpsc::Sender<Result<Waiting, BackendError>>,
    stop: CancellationToken,
    floor_at: Instant,
}

/// Why a pull ended.
enum End {
    Over,
    Wait,
    Lost(BackendError),
    Stopped,
}

impl Arriving {
    pub(super) async fn start(
        broker: Jetstream,
        group: Group,
        subscription: Arc<Subscription>,
    ) -> Result<Self, BackendError> {
        let room = AT_ONCE.min(subscription.in_flight as usize).max(1);
        let inbox = broker.client().inbox();
        // Never full: no more is asked for than waits for room below.
        let buffer = Buffer { messages: 4 * AT_ONCE, bytes: 64 << 20 };
        let arriving = broker.client().subscribe(&inbox, None, buffer).await.map_err(refused)?;
        let peers = Peers::join(&broker, &group).await;
        let (out, arrived) = mpsc::channel(room);
        let stop = CancellationToken::new();
        let floor_at = Instant::now();
        let puller = Puller { broker, group, subscription, inbox, arriving, peers, out, stop: stop.clone(), floor_at };
        tokio::spawn(LinkId::carried(LinkId::calling(), puller.run()));
        Ok(Self { arrived, stop })
    }
}

impl Deliveries for Arriving {
    fn next(&mut self) -> BoxFuture<'_, Option<Result<Delivery, BackendError>>> {
        async move { Some(self.arrived.recv().await?.map(Waiting::handed)) }.boxed()
    }

    fn stop(&mut self) {
        self.stop.cancel();
    }
}

impl Drop for Arriving {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl Puller {
    async fn run(mut self) {
        let half = self.out.max_capacity().div_ceil(2);
        loop {
            let stop = self.stop.clone();
            let room = tokio::select! {
                biased;
                () = stop.cancelled() => break,
                room = self.out.reserve_many(half) => room.is_ok(),
                () = self.peers.serve() => false,
            };
            if !room {
                break;
            }
            // A pull from a consumer that was removed is not answered by every server.
            if self.floor_at.elapsed() > FLOOR {
                if !self.broker.refresh(&self.group).await {
                    self.out.send(Err(self.gone())).await.ok();
                    break;
                }
                self.floor_at = Instant::now();
            }
            match self.pull().await {
                End::Over => {}
                End::Wait => tokio::time::sleep(PAUSE).await,
                End::Stopped => break,
                End::Lost(cause) => {
                    self.out.send(Err(cause)).await.ok();
                    break;
                }
            }
        }
        // What the server has sent meanwhile is given back at once, by being dropped.
        self.arriving.drain();
        while let Ok(message) = self.arriving.next().await {
            if message.status().is_none()
                && let Some(waiting) = self.delivery(message)
            {
                Box::new(waiting.settle).settle(Outcome::GivenBack).await.ok();
            }
        }
    }

    /// Asks for as many as there is room for, and passes on what comes.
    async fn pull(&mut self) -> End {
        let batch = self.out.capacity().max(1);
        let ask = match serde_json::to_vec(&Pull { batch, expires: EXPIRES_NS }) {
            Ok(ask) => ask,
            Err(cause) => return End::Lost(BackendError::Unavailable(cause.to_string())),
        };
        let call = format!("CONSUMER.MSG.NEXT.{}.{}", self.group.stream, self.group.durable);
        let mut ask = Outgoing::new(self.broker.0.js.subject(&call), ask);
        ask.reply = Some(self.inbox.clone());
        if let Err(cause) = self.broker.client().publish(ask).await {
            return End::Lost(refused(cause));
        }
        let end = tokio::time::sleep(PATIENCE);
        tokio::pin!(end);
        let stop = self.stop.clone();
        let mut left = batch;
        while left > 0 {
            let message = tokio::select! {
                biased;
                () = stop.cancelled() => return End::Stopped,
                message = self.arriving.next() => message,
                () = &mut end => return End::Over,
                () = self.peers.serve() => return End::Over,
            };
            let message = match message {
                Ok(message) => message,
                Err(cause) => return End::Lost(refused(cause)),
            };
            match message.headers.status() {
                None => {
                    left -= 1;
                    if let Some(waiting) = self.delivery(message) {
                        // Fails only where nobody reads, and then the message is given back by being dropped.
                        self.out.send(Ok(waiting)).await.ok();
                    }
                }
                Some((100, _)) => {}
                Some((404 | 408, _)) => return End::Over,
                Some((409, words)) if words.contains("Deleted") || words.contains("push based") => {
                    return End::Lost(self.gone());
                }
                Some((503, _)) => return End::Lost(self.gone()),
                Some((code, words)) => {
                    tracing::debug!(code, words, consumer = &*self.group.durable, "a pull is refused for now");
                    return End::Wait;
                }
            }
        }
        End::Over
    }

    fn gone(&self) -> BackendError {
        let Group { stream, durable, .. } = &self.group;
        BackendError::Unavailable(format!("the consumer `{durable}` of the stream `{stream}` is not there"))
    }

    /// What a component is given; `None` for what it is not.
    fn delivery(&mut self, message: nats::Message) -> Option<Waiting> {
        let place = message.reply.as_deref().and_then(Place::read);
        let kept = message.reply.as_deref().map(|reply| self.broker.0.keeper.keep(reply));
        let (Some(place), Some(kept)) = (place, kept) else {
            tracing::warn!(subject = message.subject, "a message came without its place in the stream");
            return None;
        };
        // Whoever gave it back has said so before it came here.
        self.peers.hear();
        let tries = self.broker.tries(&self.group, place.seq, place.delivered);
        let id = format!("{}-{}", self.group.stream, place.seq);
        let reply_to = message.headers.get(REPLY_TO).filter(|subject| check_subject(subject).is_ok());
        let reply_to = reply_to.map(str::to_owned);
        let guests = Message { subject: message.subject.clone(), body: message.payload.to_vec(), reply_to };
        let (length, trace) = (message.payload.len(), trace_of(&message.headers));
        let settle = Settler::new(&self.broker, &self.group, &self.subscription, place, tries, kept, message);
        let most = self.subscription.tries.saturating_add(LOST_TRIES);
        let why = if length > MAX_BODY {
            format!("it has {length} bytes, and a component takes at most {MAX_BODY}")
        } else if tries > most {
            format!("it was given out {tries} times to be tried, and each time the host ended before its handler did")
        } else {
            return Some(Waiting { id, tries, message: guests, trace, settle });
        };
        let to = self.subscription.dead_letter(&guests.subject).filter(|_| self.group.taken != Taken::OneByOne);
        tracing::warn!(id, subject = guests.subject, why, to, "a message is put away without being tried");
        let put_away = async move { Box::new(settle).settle(Outcome::PutAway { to, why }).await };
        tokio::spawn(LinkId::carried(LinkId::calling(), put_away));
        None
    }
}
