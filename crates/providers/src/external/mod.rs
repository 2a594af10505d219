//! Processes beside the platform that speak wRPC, whatever contract they answer: the node runs them and makes the
//! connections, each call has one of its own, as wRPC over a unix socket does it, and so a slow call holds up no other.
//!
//! What is said to them stands with each contract: [`keyvalue`](crate::keyvalue::external),
//! [`blobstore`](crate::blobstore::external), [`messaging`](crate::messaging::external),
//! [`secrets`](crate::secrets::external).

pub(crate) mod open;
pub(crate) mod wire;

use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use model::ProviderName;
use open::Open;
use tokio::net::UnixStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, SemaphorePermit};
use tokio::time::Instant;
pub(crate) use wire::{Answered, Params};
use wire::{WireError, invoke};

/// A call that is not answered for so long has failed.
pub(crate) const CALL: Duration = Duration::from_secs(5);
/// A call waits this long for a process that is being started again.
pub(crate) const CONNECT: Duration = Duration::from_secs(5);
/// As [`CONNECT`], before a revision is first served: longer than a process may take for its start.
pub(crate) const FIRST: Duration = Duration::from_secs(12);
/// Calls of one app under way at once; the rest waits.
const MAX_CALLS: usize = 128;
/// As [`MAX_CALLS`], of those that last: objects on their way, requests, subscriptions. One more is refused.
const MAX_LASTING: usize = 256;
/// The most bytes of an answer that says done or not, or why not.
pub(crate) const SHORT: u64 = 64 << 10;
/// Of what a refusal says, this many characters are repeated.
const MAX_WORDS: usize = 300;

/// Why there is no connection to a process.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{why}")]
pub struct NotReady {
    /// The reason, as a sentence.
    pub why: String,
    /// Asking again in a moment may help.
    pub soon: bool,
}

/// Connects to the process of one provider.
pub trait Connect: Send + Sync + 'static {
    /// One connection, for one call. Answers at once.
    fn connect(&self) -> BoxFuture<'_, Result<UnixStream, NotReady>>;
}

/// Whether a call that came to nothing may be made again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Read,
    Write,
}

/// A function: where it is, its name, what it does, and the most bytes of its answer.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Function(pub(crate) &'static str, pub(crate) &'static str, pub(crate) Kind, pub(crate) u64);

/// Why a call has no answer of the contract.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum CallError {
    /// It cannot be asked, hung up or answered garbage: a sentence.
    Away(String),
    /// No answer in time.
    TimedOut {
        /// The limit, milliseconds.
        ms: u64,
    },
    /// It answered more than any answer may have: a sentence.
    TooLarge(String),
}

impl CallError {
    pub(crate) fn late(limit: Duration) -> Self {
        Self::TimedOut { ms: u64::try_from(limit.as_millis()).unwrap_or(u64::MAX) }
    }
}

/// How long the parts of a call may take.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Patience {
    /// For a process to call.
    pub(crate) connect: Duration,
    /// For its answer.
    pub(crate) answer: Duration,
}

/// Of most calls.
pub(crate) const USUAL: Patience = Patience { connect: CONNECT, answer: CALL };
/// Of the one that finds out whether it is there.
pub(crate) const AT_FIRST: Patience = Patience { connect: FIRST, answer: CALL };

/// The process of one provider of one app.
pub(crate) struct Process {
    name: ProviderName,
    connect: Arc<dyn Connect>,
    calls: Semaphore,
    lasting: Arc<Semaphore>,
}

impl Process {
    /// Nothing is connected before the first call.
    pub(crate) fn new(name: ProviderName, connect: Arc<dyn Connect>) -> Self {
        let lasting = Arc::new(Semaphore::new(MAX_LASTING));
        Self { name, connect, calls: Semaphore::new(MAX_CALLS), lasting }
    }

    /// The provider's name.
    pub(crate) fn name(&self) -> &ProviderName {
        &self.name
    }

    /// A connection, waited for where that helps.
    pub(crate) async fn stream(&self, patience: Duration) -> Result<UnixStream, CallError> {
        let deadline = Instant::now() + patience;
        let mut pause = Duration::from_millis(2);
        loop {
            match self.connect.connect().await {
                Ok(stream) => return Ok(stream),
                Err(NotReady { soon: true, .. }) if Instant::now() + pause < deadline => {}
                Err(NotReady { why, .. }) => return Err(CallError::Away(why)),
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(Duration::from_millis(50));
        }
    }

    /// Calls a function and waits for its whole answer, among the calls of the app.
    pub(crate) async fn call<P: Params + Clone, R: Answered>(
        &self,
        patience: Patience,
        function: &Function,
        params: P,
    ) -> Result<R, CallError> {
        let (_permit, connect) = place(&self.calls, patience.connect).await?;
        self.ask(Patience { connect, ..patience }, function, params).await
    }

    /// The same for one that lasts: it has no place among the others.
    pub(crate) async fn lasting<P: Params + Clone, R: Answered>(
        &self,
        patience: Patience,
        function: &Function,
        params: P,
    ) -> Result<R, CallError> {
        let _permit = self.permit()?;
        self.ask(patience, function, params).await
    }

    async fn ask<P: Params + Clone, R: Answered>(
        &self,
        patience: Patience,
        function: &Function,
        params: P,
    ) -> Result<R, CallError> {
        let Function(instance, name, kind, limit) = *function;
        let mut again = kind == Kind::Read;
        loop {
            let stream = self.stream(patience.connect).await?;
            let call = invoke(stream, instance, name, params.clone(), limit);
            let late = |_| CallError::late(patience.answer);
            match tokio::time::timeout(patience.answer, call).await.map_err(late)? {
                Ok(answered) => return Ok(answered),
                // The process ended under it; a read changes nothing, so the next process may as well answer it.
                Err(WireError::HungUp(_)) if again => again = false,
                Err(cause) => return Err(self.failed(cause)),
            }
        }
    }

    /// Makes a call of whose parameters or answer a part comes bit by bit.
    pub(crate) async fn open<P: Params + Clone>(&self, function: &Function, params: P) -> Result<Open, CallError> {
        let permit = self.permit()?;
        let stream = self.stream(CONNECT).await?;
        let Function(instance, name, _, limit) = *function;
        let opened = Open::begin(stream, instance, name, params, limit, permit);
        let opened = tokio::time::timeout(CALL, opened).await.map_err(|_| CallError::late(CALL))?;
        opened.map_err(|cause| self.failed(cause))
    }

    /// The next value of a call under way.
    pub(crate) async fn next<R: Answered>(
        &self,
        open: &mut Open,
        path: &[usize],
        limit: Duration,
    ) -> Result<R, CallError> {
        let next = tokio::time::timeout(limit, open.value(path)).await;
        next.map_err(|_| CallError::late(limit))?.map_err(|cause| self.failed(cause))
    }

    fn permit(&self) -> Result<OwnedSemaphorePermit, CallError> {
        let full = |_| {
            let name = &self.name;
            CallError::Away(format!("external provider `{name}` has {MAX_LASTING} lasting calls of this app already"))
        };
        self.lasting.clone().try_acquire_owned().map_err(full)
    }

    /// Why a call came to nothing, as a sentence that names the provider.
    pub(crate) fn failed(&self, cause: WireError) -> CallError {
        let name = &self.name;
        match cause {
            WireError::TooLarge(limit) => CallError::TooLarge(format!(
                "the answer of external provider `{name}` has more than {limit} bytes; ask for less"
            )),
            cause => CallError::Away(format!("external provider `{name}`: {cause}")),
        }
    }

    /// Garbage of which the wire knows nothing.
    pub(crate) fn garbage(&self, what: &str) -> String {
        format!("external provider `{}` answered {what}", self.name)
    }
}

/// A place among the calls of an app, waited for as long as for a process; and what of that time is left. A process that
/// hangs holds up calls of others no longer than its own.
pub(crate) async fn place(calls: &Semaphore, patience: Duration) -> Result<(SemaphorePermit<'_>, Duration), CallError> {
    let began = Instant::now();
    let place = tokio::time::timeout(patience, calls.acquire()).await.map_err(|_| CallError::late(patience))?;
    let place = place.map_err(|_| CallError::Away("the host is ending".to_owned()))?;
    Ok((place, patience.saturating_sub(began.elapsed())))
}

/// What a refusal says, as far as it is repeated.
pub(crate) fn words(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(MAX_WORDS).collect()
}
