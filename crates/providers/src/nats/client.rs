//! The handle: what callers ask of the task that owns the connection, each call within its time.
//!
//! All links of a provider share the connection, and each has breakers of its own: one for whether there is a connection to
//! be had, one for whether JetStream answers what the link asks. The connection is left behind only where the server says
//! nothing on it at all, so a stream that hangs holds back those who ask it and nobody else. A server that takes connections
//! and lets nobody in is not waited for by each call: whoever gives up while it is knocked at has found that out.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use model::{AppName, ProviderName, TenantName};
use rand::Rng;
use rand::distr::Alphanumeric;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch};

use super::connect::{Door, ServerInfo};
use super::credentials::Login;
use super::driver::{Driver, unsent};
use super::endpoint::Endpoint;
use super::error::NatsError;
use super::message::{Message, Outgoing, check_subject};
use super::subscription::{Buffer, Sink, Subscription, pipe};
use super::{TIMEOUT, wire};
use crate::breaker::{Breaker, Pass, Pauses};
use crate::dial::{Caller, Dialer, Target};
use crate::http_out::Tls;

/// Commands that wait for the task.
const COMMANDS: usize = 1024;
/// Payloads that wait to be written, bytes; a caller beyond waits for room.
const ROOM: usize = 32 << 20;

/// After a try to connect that failed, a link's calls are held back.
const PAUSES: Pauses = Pauses { after: 1, least: Duration::from_millis(50), most: Duration::from_secs(2) };
/// After questions that JetStream did not answer: one alone may be to a stream that was removed, of which an older server
/// says nothing.
const SLOW: Pauses = Pauses { after: 3, least: Duration::from_millis(200), most: Duration::from_secs(5) };

/// A server that has not let us in for so long is one that does not answer, for whoever gives up then.
const SHUT: Duration = Duration::from_secs(1);

/// What a client is made from.
pub struct Options {
    /// On whose behalf.
    pub tenant: TenantName,
    /// On whose behalf.
    pub app: AppName,
    /// Which provider of the app.
    pub provider: ProviderName,
    /// Where to.
    pub endpoint: Endpoint,
    /// Who we are, where the server asks.
    pub login: Login,
    /// Whom we trust, where the server has TLS.
    pub tls: Tls,
}

/// One connection to one server, shared by everyone who clones it. Nothing is connected before the first call.
#[derive(Clone)]
pub struct Client(Arc<Inner>);

struct Inner {
    commands: mpsc::Sender<Command>,
    gone: mpsc::UnboundedSender<Gone>,
    room: Arc<Semaphore>,
    tokens: AtomicU64,
    /// Until the first call, which starts it.
    driver: Mutex<Option<Driver>>,
    trouble: watch::Receiver<Option<NatsError>>,
    /// Since when a connection is being made, while one is.
    opening: watch::Receiver<Option<Instant>>,
    /// Two kinds of failure with patience of their own.
    down: Breaker<NatsError>,
    silent: Breaker<NatsError>,
}

/// What is asked of the task.
pub(super) enum Command {
    Publish { message: Outgoing, done: Done<()>, room: OwnedSemaphorePermit },
    Request { message: Outgoing, token: u64, done: Done<Message>, room: OwnedSemaphorePermit },
    Subscribe { subject: String, queue: Option<String>, sid: u64, sink: Sink, done: Done<()> },
    Flush { done: Done<ServerInfo> },
}

/// Told the answer, or what the server has against the question; or why nobody could be asked.
pub(super) type Done<T> = oneshot::Sender<Told<T>>;
pub(super) type Told<T> = Result<Result<T, NatsError>, Down>;

/// There is no connection, or no more.
#[derive(Debug, Clone)]
pub(super) struct Down {
    pub(super) why: NatsError,
    /// It was a good one until then: the next call may make another at once.
    pub(super) worked: bool,
}

/// What JetStream's answer to a question says of whether it answers the next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Says {
    /// It does.
    All,
    /// Nothing: where a stream is can be told without it.
    Nothing,
}

/// Who no longer waits. Each follows a command, so there are never more of these than calls under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Gone {
    Subscription(u64),
    /// As before, and what is on its way is still wanted.
    Draining(u64),
    Request(u64),
    /// Who asked whether the server is there.
    Flush,
}

impl Client {
    /// A client of the server that `options` names.
    pub fn new(options: Options, dialer: Arc<dyn Dialer>) -> Self {
        let Options { tenant, app, provider, endpoint, login, tls } = options;
        let name = format!("sidereal {tenant}/{app}/{provider}");
        let target =
            Target { app, caller: Caller::Provider(provider), host: endpoint.host.clone(), port: endpoint.port };
        let door = Door { endpoint, target, name, login, tls: tls.config(), dialer };
        let (commands, asked) = mpsc::channel(COMMANDS);
        let (gone, left) = mpsc::unbounded_channel();
        let inbox = format!("_INBOX.{}", random());
        let (tell, trouble) = watch::channel(None);
        let (knocks, opening) = watch::channel(None);
        let driver = Mutex::new(Some(Driver::new(door, inbox, asked, left, tell, knocks)));
        let room = Arc::new(Semaphore::new(ROOM));
        let tokens = AtomicU64::new(super::session::FIRST_SID);
        let silent = NatsError::Silent { ms: TIMEOUT.as_millis() as u64 };
        let (down, silent) = (Breaker::new(PAUSES), Breaker::new(SLOW).or_silent(silent));
        Self(Arc::new(Inner { commands, gone, room, tokens, driver, trouble, opening, down, silent }))
    }

    /// Why there is no connection, where the last one broke or there was none to be had.
    pub fn trouble(&self) -> watch::Receiver<Option<NatsError>> {
        self.0.trouble.clone()
    }

    /// Connects if need be and asks the server whether it is there.
    ///
    /// # Errors
    /// What a call would answer.
    pub async fn check(&self) -> Result<ServerInfo, NatsError> {
        match self.flushed().await {
            // A connection that nobody used may have ended meanwhile: that says nothing of the server as it is now.
            Err(NatsError::Lost(_)) => self.flushed().await,
            answer => answer,
        }
    }

    async fn flushed(&self) -> Result<ServerInfo, NatsError> {
        let asked = async { self.ask(self.enter()?, |done| Command::Flush { done }).await };
        let answer = self.within(TIMEOUT, asked).await;
        if matches!(answer, Err(NatsError::TimedOut { .. })) {
            self.gone(Gone::Flush);
        }
        answer
    }

    /// Sends a message, at most once: it is on its way when this returns, and whether anybody got it is not known.
    ///
    /// # Errors
    /// [`NatsError`]; after [`NatsError::Unavailable`] nothing was sent.
    pub async fn publish(&self, message: Outgoing) -> Result<(), NatsError> {
        message.check()?;
        self.within(TIMEOUT, async {
            let pass = self.enter()?;
            let room = self.room(&message).await?;
            self.ask(pass, |done| Command::Publish { message, done, room }).await
        })
        .await
    }

    /// Waits until the server has taken everything that was published before.
    ///
    /// # Errors
    /// [`NatsError`]
    pub async fn flush(&self) -> Result<(), NatsError> {
        // On another connection it would speak of nothing that was published on this one.
        self.flushed().await.map(drop)
    }

    /// Sends a message and waits for the first answer, from whoever listens: that it does not come says nothing of the
    /// server.
    ///
    /// # Errors
    /// [`NatsError`]; [`NatsError::NoResponders`] at once where nobody listens.
    pub async fn request(&self, message: Outgoing, limit: Duration) -> Result<Message, NatsError> {
        message.check()?;
        self.within(limit, async { self.ask_for(message, None).await?.answer().await }).await
    }

    /// Asks JetStream, which owes an answer within [`TIMEOUT`]. While it does not answer the link that calls here, an error
    /// at once.
    ///
    /// # Errors
    /// As [`Client::request`]; [`NatsError::Silent`].
    pub(super) async fn served(&self, message: Outgoing, says: Says) -> Result<Message, NatsError> {
        message.check()?;
        let deadline = tokio::time::Instant::now() + TIMEOUT;
        let asked = tokio::time::timeout_at(deadline, self.ask_for(message, Some(says))).await;
        asked.map_err(|_| late(TIMEOUT))??.by(deadline).await
    }

    /// As [`Client::served`], and the answer is waited for later. What is asked first is sent first.
    ///
    /// # Errors
    /// [`NatsError`]
    pub(super) async fn begin(&self, message: Outgoing) -> Result<Waiting, NatsError> {
        message.check()?;
        self.within(TIMEOUT, self.ask_for(message, Some(Says::All))).await
    }

    async fn ask_for(&self, message: Outgoing, served: Option<Says>) -> Result<Waiting, NatsError> {
        let down = self.enter()?;
        let subject = message.subject.clone();
        let room = self.room(&message).await?;
        let served = match served {
            Some(says) => Some((self.0.silent.enter()?, says)),
            None => None,
        };
        let token = self.0.tokens.fetch_add(1, Relaxed);
        let (done, answer) = oneshot::channel();
        if let Err(cause) = self.send(&down, Command::Request { message, token, done, room }).await {
            served.into_iter().for_each(|(silent, _)| silent.untried());
            return Err(cause);
        }
        let (answer, down) = (Some(answer), Some(down));
        Ok(Waiting { client: self.clone(), token, subject, answer, down, served })
    }

    /// Subscribes to a subject, which may have wildcards; members of one `queue` share its messages. The server has
    /// the subscription when this returns.
    ///
    /// # Errors
    /// [`NatsError`]; [`NatsError::Denied`] where the server does not permit it.
    pub async fn subscribe(
        &self,
        subject: &str,
        queue: Option<&str>,
        buffer: Buffer,
    ) -> Result<Subscription, NatsError> {
        check_subject(subject, true)?;
        queue.map_or(Ok(()), |queue| check_subject(queue, false))?;
        let sid = self.0.tokens.fetch_add(1, Relaxed);
        let (sink, arrived, shared) = pipe(buffer);
        // Made first: where the call is given up, its drop unsubscribes.
        let subscription = Subscription { client: self.clone(), sid, arrived, shared };
        let (subject, queue) = (subject.to_owned(), queue.map(str::to_owned));
        let asked = async {
            let pass = self.enter()?;
            self.ask(pass, |done| Command::Subscribe { subject, queue, sid, sink, done }).await
        };
        self.within(TIMEOUT, asked).await?;
        Ok(subscription)
    }

    /// A subject that nobody else uses, for answers.
    pub fn inbox(&self) -> String {
        format!("_INBOX.{}", random())
    }

    pub(super) fn gone(&self, who: Gone) {
        // Fails only where the task has ended, and with it what it knew.
        self.0.gone.send(who).ok();
    }

    fn enter(&self) -> Result<Entry, NatsError> {
        Ok(Entry { pass: Some(self.0.down.enter()?), opening: self.0.opening.clone() })
    }

    async fn ask<T>(&self, pass: Entry, command: impl FnOnce(Done<T>) -> Command) -> Result<T, NatsError> {
        let (done, answer) = oneshot::channel();
        self.send(&pass, command(done)).await?;
        match answer.await.unwrap_or_else(|_| Err(ended())) {
            Ok(answer) => {
                pass.answered();
                answer
            }
            Err(down) => Err(down.tell(pass)),
        }
    }

    async fn send(&self, pass: &Entry, command: Command) -> Result<(), NatsError> {
        // It may have waited for room.
        pass.still()?;
        self.start();
        self.0.commands.send(command).await.map_err(|_| ended().why)
    }

    fn start(&self) {
        if let Some(driver) = self.0.driver.lock().unwrap_or_else(PoisonError::into_inner).take() {
            tokio::spawn(driver.run());
        }
    }

    /// Waits until the message may wait in memory.
    async fn room(&self, message: &Outgoing) -> Result<OwnedSemaphorePermit, NatsError> {
        let bytes = message.size();
        let large = NatsError::TooLarge { bytes, limit: wire::MAX_MESSAGE };
        let wanted = u32::try_from(bytes).ok().filter(|_| bytes <= wire::MAX_MESSAGE).ok_or(large)?;
        self.0.room.clone().acquire_many_owned(wanted).await.map_err(|_| ended().why)
    }

    async fn within<T>(
        &self,
        limit: Duration,
        work: impl Future<Output = Result<T, NatsError>>,
    ) -> Result<T, NatsError> {
        tokio::time::timeout(limit, work).await.unwrap_or(Err(late(limit)))
    }
}

impl Down {
    /// Tells the link of the call, where it is to be held back for it.
    fn tell(self, pass: Entry) -> NatsError {
        if !self.worked {
            pass.failed(unsent(&self.why));
        }
        self.why
    }
}

/// Leave to use the connection, or to wait for one. Dropped without a verdict, as by a caller whose time is over, it says
/// nothing of the server, unless that lets nobody in.
struct Entry {
    pass: Option<Pass<NatsError>>,
    opening: watch::Receiver<Option<Instant>>,
}

impl Entry {
    fn still(&self) -> Result<(), NatsError> {
        self.pass.as_ref().map_or(Ok(()), Pass::still)
    }

    fn answered(mut self) {
        self.pass.take().into_iter().for_each(Pass::answered);
    }

    fn failed(mut self, why: NatsError) {
        self.pass.take().into_iter().for_each(|pass| pass.failed(why.clone()));
    }

    /// Whether the server was knocked at for a while, and has let nobody in.
    fn is_shut(&self) -> bool {
        self.opening.borrow().is_some_and(|since| since.elapsed() >= SHUT)
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        if self.pass.is_some() && self.is_shut() {
            let why = NatsError::Unavailable("it takes connections and lets nobody in".to_owned());
            self.pass.take().into_iter().for_each(|pass| pass.failed(why.clone()));
        }
    }
}

/// A request under way; dropped before its answer it is forgotten.
pub(super) struct Waiting {
    client: Client,
    token: u64,
    subject: String,
    answer: Option<oneshot::Receiver<Told<Message>>>,
    down: Option<Entry>,
    /// Where JetStream owes the answer.
    served: Option<(Pass<NatsError>, Says)>,
}

impl Waiting {
    /// The first answer, within [`TIMEOUT`] from now on.
    ///
    /// # Errors
    /// As [`Client::served`].
    pub(super) async fn in_time(self) -> Result<Message, NatsError> {
        self.by(tokio::time::Instant::now() + TIMEOUT).await
    }

    async fn by(mut self, deadline: tokio::time::Instant) -> Result<Message, NatsError> {
        if let Ok(answer) = tokio::time::timeout_at(deadline, self.answer()).await {
            return answer;
        }
        self.not_asked();
        if let Some((silent, _)) = self.served.take() {
            silent.late(NatsError::Silent { ms: TIMEOUT.as_millis() as u64 });
        }
        Err(late(TIMEOUT))
    }

    /// Where there is no connection to be had, that JetStream said nothing has that reason.
    fn not_asked(&mut self) {
        if self.down.as_ref().is_some_and(Entry::is_shut) {
            self.served.take().into_iter().for_each(|(silent, _)| silent.untried());
        }
    }

    async fn answer(&mut self) -> Result<Message, NatsError> {
        let Some(answer) = &mut self.answer else { return Err(ended().why) };
        let told = answer.await;
        self.answer = None;
        let answer = match told.unwrap_or_else(|_| Err(ended())) {
            Ok(answer) => {
                self.down.take().into_iter().for_each(Entry::answered);
                match self.served.take() {
                    Some((silent, Says::All)) => silent.answered(),
                    Some((silent, Says::Nothing)) => silent.untried(),
                    None => {}
                }
                answer?
            }
            Err(down) => {
                // That JetStream said nothing has another reason.
                self.served.take().into_iter().for_each(|(silent, _)| silent.untried());
                let Some(pass) = self.down.take() else { return Err(down.why) };
                return Err(down.tell(pass));
            }
        };
        if answer.status() == Some(503) && answer.payload.is_empty() {
            return Err(NatsError::NoResponders(std::mem::take(&mut self.subject)));
        }
        Ok(answer)
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.not_asked();
        // The receiver goes first: a command that is still in the queue then sees that nobody waits.
        if self.answer.take().is_some() {
            self.client.gone(Gone::Request(self.token));
        }
    }
}

fn ended() -> Down {
    Down { why: NatsError::Unavailable("the client has ended".into()), worked: false }
}

fn late(limit: Duration) -> NatsError {
    NatsError::TimedOut { ms: u64::try_from(limit.as_millis()).unwrap_or(u64::MAX) }
}

fn random() -> String {
    rand::rng().sample_iter(Alphanumeric).take(22).map(char::from).collect()
}
