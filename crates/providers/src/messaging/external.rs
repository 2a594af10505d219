//! Messages of a process beside the platform that speaks wRPC. What components send goes by `wasmcloud:messaging/consumer`,
//! as providers of wasmCloud 1.x export it. There such a provider calls the component; here nothing calls into a host, so
//! what components take is asked for: `sidereal:broker/source` (see `docs/providers/external.md`), a stream of messages that
//! lasts as long as its connection. The process keeps each message until it is told what became of it, and gives those to
//! somebody else that a connection leaves behind.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use model::ProviderName;
use model::messaging::{MAX_BODY, Pattern, Subscription};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::{Answer, Backend, BackendError, Deliveries, Delivery, Message, Outcome, Settle};
use crate::external::open::Open;
use crate::external::{
    AT_FIRST, Answered, CALL, CONNECT, CallError, Connect, Function, Kind, Params, Patience, Process, SHORT, USUAL,
    words,
};

const CONSUMER: &str = "wasmcloud:messaging/consumer@0.2.0";
const SOURCE: &str = "sidereal:broker/source@0.1.0";
/// What a process says where nobody takes messages of the subject of a request.
const NO_RESPONDERS: &str = "no responders";
/// What it says where nobody answered within the time of a request.
const NO_ANSWER: &str = "no answer in time";

/// The most bytes of an answer with a message, and of messages that come at once.
const MESSAGE: u64 = MAX_BODY as u64 + SHORT;
const MESSAGES: u64 = 4 * MESSAGE;

/// What a function answers.
type Said<T> = Result<T, String>;
/// A message: subject, body, where an answer goes.
type Wire = (String, Bytes, Option<String>);
/// A message on its way: the word for it, its id, which try this is, and what [`Wire`] has.
type Handed = (String, String, u32, String, Bytes, Option<String>);

const ROOT: &[usize] = &[];
const STREAM: &[usize] = &[0];

/// One app's broker in one external process.
#[derive(Clone)]
pub struct External(Arc<Process>);

impl From<CallError> for BackendError {
    fn from(error: CallError) -> Self {
        match error {
            CallError::Away(why) => Self::Unavailable(why),
            CallError::TimedOut { ms } => Self::TimedOut { ms },
            CallError::TooLarge(why) => Self::Refused(why),
        }
    }
}

fn refused(text: &str) -> BackendError {
    BackendError::Refused(words(text))
}

impl External {
    /// The broker behind `connect`. Nothing is connected before the first call.
    pub fn new(name: ProviderName, connect: Arc<dyn Connect>) -> Self {
        Self(Arc::new(Process::new(name, connect)))
    }

    /// Settles a message that there is not: says early and with its reason what every call would say.
    ///
    /// # Errors
    /// What a call would answer.
    pub async fn check(&self) -> Result<(), BackendError> {
        let asked: Said<()> = self.source(AT_FIRST, "done", "sidereal-health").await?;
        // It answered; what, is of no matter.
        drop(asked);
        Ok(())
    }

    async fn source<P: Params + Clone, T: Answered>(
        &self,
        patience: Patience,
        name: &'static str,
        params: P,
    ) -> Result<Said<T>, CallError> {
        self.0.call(patience, &Function(SOURCE, name, Kind::Write, SHORT), params).await
    }

    async fn settled<P: Params + Clone>(&self, name: &'static str, params: P) -> Result<(), BackendError> {
        let said: Said<()> = self.source(USUAL, name, params).await?;
        said.map_err(|text| refused(&text))
    }
}

impl Backend for External {
    fn publish(&self, message: Message) -> Answer<'_, ()> {
        async move {
            let Message { subject, body, reply_to } = message;
            let function = Function(CONSUMER, "publish", Kind::Write, SHORT);
            let said: Said<()> = self.0.call(USUAL, &function, (subject, Bytes::from(body), reply_to)).await?;
            said.map_err(|text| refused(&text))
        }
        .boxed()
    }

    fn request(&self, subject: String, body: Vec<u8>, timeout: Duration) -> Answer<'_, Message> {
        async move {
            let ms = u32::try_from(timeout.as_millis()).unwrap_or(u32::MAX);
            let function = Function(CONSUMER, "request", Kind::Write, MESSAGE);
            let patience = Patience { connect: CONNECT.min(timeout), answer: timeout };
            let said: Said<Wire> =
                self.0.lasting(patience, &function, (subject.clone(), Bytes::from(body), ms)).await?;
            match said {
                Ok((subject, body, reply_to)) => Ok(Message { subject, body: body.into(), reply_to }),
                Err(text) if text == NO_ANSWER => Err(CallError::late(timeout).into()),
                Err(text) if text == NO_RESPONDERS => Err(BackendError::NoResponder(subject)),
                Err(text) => Err(refused(&text)),
            }
        }
        .boxed()
    }

    fn subscribe(&self, subscription: Arc<Subscription>) -> Answer<'_, Box<dyn Deliveries>> {
        async move {
            let function = Function(SOURCE, "subscribe", Kind::Write, MESSAGES);
            let patterns: Vec<String> = subscription.patterns.iter().map(Pattern::to_string).collect();
            let params = (subscription.group.name.clone(), patterns, subscription.in_flight);
            let mut open = self.0.open(&function, params).await?;
            let first: Said<Option<Vec<Handed>>> = self.0.next(&mut open, ROOT, CALL).await?;
            if first.map_err(|text| refused(&text))?.is_some() {
                let what = "a subscription with a list of messages, and not with a stream of them";
                return Err(BackendError::Unavailable(self.0.garbage(what)));
            }
            let (tell, told) = mpsc::channel(subscription.in_flight.max(1) as usize);
            let stop = CancellationToken::new();
            tokio::spawn(arriving(self.clone(), open, tell, stop.clone()));
            Ok(Box::new(Arriving { told, stop }) as Box<dyn Deliveries>)
        }
        .boxed()
    }
}

/// Whoever handles a message of a subscription holds one: without any the connection is wanted no more.
type Handling = mpsc::Sender<()>;

/// Carries messages from the process to whoever follows them. After the stop no more are sent, those that come nevertheless
/// are given back, and the connection stays until those are settled that were taken before.
async fn arriving(
    broker: External,
    mut open: Open,
    tell: mpsc::Sender<Result<Delivery, BackendError>>,
    stop: CancellationToken,
) {
    let (handling, mut handled) = mpsc::channel::<()>(1);
    // Both are there until the stop.
    let mut following = Some((tell, handling));
    let mut sending = open.close();
    loop {
        let next = open.value::<Vec<Handed>>(STREAM);
        tokio::pin!(next);
        let next = loop {
            tokio::select! {
                biased;
                () = stop.cancelled(), if sending.is_some() => {
                    sending = None;
                    following = None;
                }
                _ = handled.recv() => return,
                next = &mut next => break next,
            }
        };
        match (next, &following) {
            (Ok(handed), _) if !handed.is_empty() => {
                for one in handed {
                    // Dropped it is given back.
                    let delivery = delivery(&broker, one, following.as_ref().map(|(_, handling)| handling.clone()));
                    if let Some((tell, _)) = &following {
                        tokio::select! {
                            biased;
                            () = stop.cancelled() => {}
                            sent = tell.send(Ok(delivery)) => drop(sent),
                        }
                    }
                }
            }
            // The end, as it should be.
            (Ok(_), None) => {
                handled.recv().await;
                return;
            }
            (Ok(_), Some((tell, _))) => {
                let what = broker.0.garbage("with the end of a subscription that was not stopped");
                return drop(tell.send(Err(BackendError::Unavailable(what))).await);
            }
            (Err(_), None) => return,
            (Err(cause), Some((tell, _))) => return drop(tell.send(Err(broker.0.failed(cause).into())).await),
        }
    }
}

fn delivery(broker: &External, handed: Handed, handling: Option<Handling>) -> Delivery {
    let (word, id, tries, subject, body, reply_to) = handed;
    let (broker, word) = (broker.clone(), Some(word));
    let settle = Settler { broker, word, subject: subject.clone(), body: body.clone(), _handling: handling };
    let message = Message { subject, body: body.into(), reply_to };
    Delivery { id, tries: tries.max(1), message, trace: None, settle: Box::new(settle) }
}

/// Messages of one subscription.
struct Arriving {
    told: mpsc::Receiver<Result<Delivery, BackendError>>,
    stop: CancellationToken,
}

impl Deliveries for Arriving {
    fn next(&mut self) -> BoxFuture<'_, Option<Result<Delivery, BackendError>>> {
        self.told.recv().boxed()
    }

    fn stop(&mut self) {
        self.stop.cancel();
        self.told.close();
    }
}

impl Drop for Arriving {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// One message, until the process knows what became of it. Dropped before, it is given back.
struct Settler {
    broker: External,
    /// The process's own word for it; gone when it knows.
    word: Option<String>,
    subject: String,
    body: Bytes,
    _handling: Option<Handling>,
}

impl Settle for Settler {
    fn settle(mut self: Box<Self>, outcome: Outcome) -> BoxFuture<'static, Result<(), BackendError>> {
        async move {
            let Some(word) = self.word.clone() else { return Ok(()) };
            let broker = self.broker.clone();
            match outcome {
                Outcome::Done => broker.settled("done", word).await?,
                Outcome::Again(pause) => {
                    let ms = u32::try_from(pause.as_millis()).unwrap_or(u32::MAX);
                    broker.settled("again", (word, ms)).await?;
                }
                Outcome::GivenBack => broker.settled("give-back", word).await?,
                Outcome::PutAway { to, why } => {
                    if let Some(subject) = to {
                        tracing::debug!(subject, was = self.subject, why, "a message is put away");
                        broker.publish(Message { subject, body: self.body.to_vec(), reply_to: None }).await?;
                    }
                    broker.settled("done", word).await?;
                }
            }
            self.word = None;
            Ok(())
        }
        .boxed()
    }
}

impl Drop for Settler {
    fn drop(&mut self) {
        let Some(word) = self.word.take() else { return };
        // Without a runtime the host is ending, and the process notices by itself.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            let broker = self.broker.clone();
            runtime.spawn(async move { broker.settled("give-back", word).await.ok() });
        }
    }
}
