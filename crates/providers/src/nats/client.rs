//! The handle: what callers ask of the task that owns the connection, each call within its time.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use model::{AppName, ProviderName, TenantName};
use rand::Rng;
use rand::distr::Alphanumeric;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch};

use super::connect::{Door, ServerInfo};
use super::credentials::Login;
use super::driver::Driver;
use super::endpoint::Endpoint;
use super::error::NatsError;
use super::message::{Message, Outgoing, check_subject};
use super::subscription::{Buffer, Sink, Subscription, pipe};
use super::{TIMEOUT, wire};
use crate::dial::{Caller, Dialer, Target};
use crate::http_out::Tls;

/// Commands that wait for the task.
const COMMANDS: usize = 1024;
/// Payloads that wait to be written, bytes; a caller beyond waits for room.
const ROOM: usize = 32 << 20;

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
}

/// What is asked of the task.
pub(super) enum Command {
    Publish {
        message: Outgoing,
        done: Done<()>,
        room: OwnedSemaphorePermit,
    },
    Request {
        message: Outgoing,
        token: u64,
        done: Done<Message>,
        room: OwnedSemaphorePermit,
    },
    Subscribe {
        subject: String,
        queue: Option<String>,
        sid: u64,
        sink: Sink,
        done: Done<()>,
    },
    Flush {
        done: Done<ServerInfo>,
    },
    /// The same where nothing was sent before: any connection will do.
    Check {
        done: Done<ServerInfo>,
    },
}

pub(super) type Done<T> = oneshot::Sender<Result<T, NatsError>>;

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
        let driver = Mutex::new(Some(Driver::new(door, inbox, asked, left, tell)));
        let room = Arc::new(Semaphore::new(ROOM));
        let tokens = AtomicU64::new(super::session::FIRST_SID);
        Self(Arc::new(Inner { commands, gone, room, tokens, driver, trouble }))
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
        let ask = || self.asked(|done| Command::Check { done });
        match ask().await {
            // A connection that nobody used may have ended meanwhile: that says nothing of the server as it is now.
            Err(NatsError::Lost(_)) => ask().await,
            answer => answer,
        }
    }

    async fn asked(&self, command: impl FnOnce(Done<ServerInfo>) -> Command) -> Result<ServerInfo, NatsError> {
        let answer = self.within(TIMEOUT, self.ask(command)).await;
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
            let room = self.room(&message).await?;
            self.ask(|done| Command::Publish { message, done, room }).await
        })
        .await
    }

    /// Waits until the server has taken everything that was published before.
    ///
    /// # Errors
    /// [`NatsError`]
    pub async fn flush(&self) -> Result<(), NatsError> {
        // On another connection it would speak of nothing that was published on this one.
        self.asked(|done| Command::Flush { done }).await.map(drop)
    }

    /// Sends a message and waits for the first answer.
    ///
    /// # Errors
    /// [`NatsError`]; [`NatsError::NoResponders`] at once where nobody listens.
    pub async fn request(&self, message: Outgoing, limit: Duration) -> Result<Message, NatsError> {
        message.check()?;
        self.within(limit, async { self.ask_for(message).await?.answer().await }).await
    }

    /// Sends a message whose answer is waited for later. What is asked first is sent first.
    ///
    /// # Errors
    /// [`NatsError`]
    pub async fn begin(&self, message: Outgoing) -> Result<Waiting, NatsError> {
        message.check()?;
        self.within(TIMEOUT, self.ask_for(message)).await
    }

    async fn ask_for(&self, message: Outgoing) -> Result<Waiting, NatsError> {
        let subject = message.subject.clone();
        let room = self.room(&message).await?;
        let token = self.0.tokens.fetch_add(1, Relaxed);
        let (done, answer) = oneshot::channel();
        self.send(Command::Request { message, token, done, room }).await?;
        Ok(Waiting { client: self.clone(), token, subject, answer: Some(answer) })
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
        self.within(TIMEOUT, self.ask(|done| Command::Subscribe { subject, queue, sid, sink, done })).await?;
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

    async fn ask<T>(&self, command: impl FnOnce(Done<T>) -> Command) -> Result<T, NatsError> {
        let (done, answer) = oneshot::channel();
        self.send(command(done)).await?;
        answer.await.unwrap_or_else(|_| Err(ended()))
    }

    async fn send(&self, command: Command) -> Result<(), NatsError> {
        self.start();
        self.0.commands.send(command).await.map_err(|_| ended())
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
        self.0.room.clone().acquire_many_owned(wanted).await.map_err(|_| ended())
    }

    async fn within<T>(
        &self,
        limit: Duration,
        work: impl Future<Output = Result<T, NatsError>>,
    ) -> Result<T, NatsError> {
        let late = NatsError::TimedOut { ms: u64::try_from(limit.as_millis()).unwrap_or(u64::MAX) };
        tokio::time::timeout(limit, work).await.unwrap_or(Err(late))
    }
}

/// A request under way; dropped before its answer it is forgotten.
pub struct Waiting {
    client: Client,
    token: u64,
    subject: String,
    answer: Option<oneshot::Receiver<Result<Message, NatsError>>>,
}

impl Waiting {
    /// The first answer, within [`TIMEOUT`].
    ///
    /// # Errors
    /// As [`Client::request`].
    pub async fn in_time(self) -> Result<Message, NatsError> {
        let client = self.client.clone();
        client.within(TIMEOUT, self.answer()).await
    }

    async fn answer(mut self) -> Result<Message, NatsError> {
        let Some(answer) = &mut self.answer else { return Err(ended()) };
        let answer = answer.await;
        self.answer = None;
        let answer = answer.unwrap_or_else(|_| Err(ended()))?;
        if answer.status() == Some(503) && answer.payload.is_empty() {
            return Err(NatsError::NoResponders(std::mem::take(&mut self.subject)));
        }
        Ok(answer)
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        // The receiver goes first: a command that is still in the queue then sees that nobody waits.
        if self.answer.take().is_some() {
            self.client.gone(Gone::Request(self.token));
        }
    }
}

fn ended() -> NatsError {
    NatsError::Unavailable("the client has ended".into())
}

fn random() -> String {
    rand::rng().sample_iter(Alphanumeric).take(22).map(char::from).collect()
}
