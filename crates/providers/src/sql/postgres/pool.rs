//! The connections of one provider that are at rest, and the rotation of what they log in with.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher as _;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::{Duration, Instant};

use model::sql::SqlError;
use tokio::sync::{Notify, watch};

use super::connect::Connector;
use super::session::Session;
use crate::breaker::pause;

/// A connection nobody used for this long is closed.
const IDLE: Duration = Duration::from_secs(60);
/// How long one of which that is not sure has to answer.
const ANSWERS: Duration = Duration::from_millis(300);
/// Pauses between tries to log in with secrets that were set anew.
const LEAST: Duration = Duration::from_millis(50);
const MOST: Duration = Duration::from_secs(5);
/// One such try.
const TRY: Duration = Duration::from_secs(5);

pub(super) struct Pool {
    connector: Connector,
    state: Mutex<State>,
    /// A connection that was being cleared is at rest, or closed.
    cleared: Notify,
    /// Follows the secrets from the first connection on.
    renewing: OnceLock<AbortOnDrop>,
}

#[derive(Default)]
struct State {
    /// The one used last comes first.
    idle: Vec<Idle>,
    /// How many are cleared of what a call left.
    clearing: usize,
    /// Grows when the secrets are others: what was made before is not used again.
    generation: u64,
    /// The versions of the secrets of this generation.
    versions: Vec<u64>,
}

/// A connection at rest.
struct Idle {
    session: Session,
    since: Instant,
    /// Since it was put to rest a call had no answer on another one.
    doubtful: bool,
}

impl Idle {
    fn new(session: Session) -> Self {
        Self { session, since: Instant::now(), doubtful: false }
    }
}

pub(super) struct AbortOnDrop(pub(super) tokio::task::JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl State {
    /// The generation of a connection that was made with secrets of these versions.
    fn made_with(&mut self, versions: Vec<u64>) -> u64 {
        if self.versions != versions {
            self.versions = versions;
            self.generation += 1;
            self.idle.clear();
        }
        self.generation
    }
}

impl Pool {
    pub(super) fn new(connector: Connector) -> Self {
        Self { connector, state: Mutex::default(), cleared: Notify::new(), renewing: OnceLock::new() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A connection at rest, one that will be in a moment, or a new one.
    pub(super) async fn lease(self: &Arc<Self>) -> Result<Lease, SqlError> {
        loop {
            // Before the look: what is cleared from here on is not missed.
            let cleared = self.cleared.notified();
            let (found, clearing) = {
                let mut state = self.lock();
                (state.idle.pop(), state.clearing)
            };
            match found {
                Some(Idle { session, since, doubtful }) if session.is_open() && since.elapsed() < IDLE => {
                    if !doubtful || session.answers(ANSWERS).await {
                        return Ok(Lease { pool: self.clone(), session: Some(session) });
                    }
                    // What one of them says is said of all: nobody is to wait for each.
                    self.lock().idle.retain(|idle| !idle.doubtful);
                }
                Some(_) => {}
                None if clearing > 0 => cleared.await,
                None => break,
            }
        }
        if !self.connector.secrets.is_empty() {
            // Before they are revealed: a change from here on is not missed.
            self.renewing.get_or_init(|| {
                let changes = self.connector.secrets.changes();
                AbortOnDrop(tokio::spawn(renew(Arc::downgrade(self), changes)))
            });
        }
        Ok(Lease { pool: self.clone(), session: Some(self.connect().await?) })
    }

    /// Undoes what a call left on a connection and puts it to rest. The caller does not wait for it.
    fn clear(self: &Arc<Self>, session: Session) {
        let clearing = Clearing::new(self.clone());
        tokio::spawn(async move {
            if session.is_cleared().await {
                clearing.0.put(session);
            }
        });
    }

    fn put(&self, session: Session) {
        let mut state = self.lock();
        if session.generation == state.generation {
            state.idle.retain(|idle| idle.since.elapsed() < IDLE);
            state.idle.push(Idle::new(session));
        }
    }

    /// No connection that is at rest now is used again before it has answered.
    pub(super) fn doubt(&self) {
        self.lock().idle.iter_mut().for_each(|idle| idle.doubtful = true);
    }

    async fn connect(&self) -> Result<Session, SqlError> {
        let unlocked = self.connector.unlock().await?;
        let mut session = self.connector.connect(&unlocked).await?;
        session.generation = self.lock().made_with(unlocked.versions());
        Ok(session)
    }

    /// Logs in anew where the secrets are others now. Connections there are stay until the new one answers: the server
    /// may be told of the new password a little later than we are.
    async fn renew_once(&self) -> Result<(), SqlError> {
        let unlocked = self.connector.unlock().await?;
        if unlocked.versions() == self.lock().versions {
            return Ok(());
        }
        let connecting = tokio::time::timeout(TRY, self.connector.connect(&unlocked));
        let late = SqlError::TimedOut { ms: TRY.as_millis() as u64 };
        let mut session = connecting.await.unwrap_or(Err(late))?;
        let mut state = self.lock();
        session.generation = state.made_with(unlocked.versions());
        state.idle.push(Idle::new(session));
        Ok(())
    }
}

async fn renew(pool: Weak<Pool>, mut changes: watch::Receiver<u64>) {
    let jitter = RandomState::new();
    let mut failures = 0_u32;
    loop {
        let told = match failures {
            0 => Ok(changes.changed().await),
            failures => {
                let wait = pause(failures, LEAST, MOST, jitter.hash_one(failures));
                tokio::time::timeout(wait, changes.changed()).await
            }
        };
        if let Ok(Err(_)) = told {
            return;
        }
        let Some(pool) = pool.upgrade() else { return };
        match pool.renew_once().await {
            Ok(()) => failures = 0,
            Err(cause) => {
                failures = failures.saturating_add(1);
                if failures == 1 {
                    let target = &pool.connector.target;
                    tracing::warn!(app = %target.app, caller = ?target.caller, %cause, "secrets changed and a new connection cannot be made; the old ones stay, and it is tried again");
                }
            }
        }
    }
}

/// Counts a connection that is being cleared, whatever becomes of it.
struct Clearing(Arc<Pool>);

impl Clearing {
    fn new(pool: Arc<Pool>) -> Self {
        pool.lock().clearing += 1;
        Self(pool)
    }
}

impl Drop for Clearing {
    fn drop(&mut self) {
        self.0.lock().clearing -= 1;
        self.0.cleared.notify_waiters();
    }
}

/// A connection in the hands of one call. Dropped without [`Lease::settle`] it is closed.
pub(super) struct Lease {
    pool: Arc<Pool>,
    session: Option<Session>,
}

impl Lease {
    pub(super) fn session(&mut self) -> Result<&Session, SqlError> {
        self.session.as_ref().ok_or_else(|| SqlError::Unavailable("the connection is gone".to_owned()))
    }

    /// Gives the connection back where the call ended with an answer.
    pub(super) fn settle<T>(mut self, result: Result<T, SqlError>) -> Result<T, SqlError> {
        let ended = match &result {
            Ok(_) => true,
            Err(
                SqlError::Invalid(_)
                | SqlError::Value(_)
                | SqlError::Constraint { .. }
                | SqlError::Conflict(_)
                | SqlError::Denied(_),
            ) => true,
            Err(SqlError::TooLarge(_) | SqlError::TimedOut { .. } | SqlError::Unavailable(_)) => false,
        };
        if let Some(session) = self.session.take().filter(|_| ended) {
            self.pool.clear(session);
        }
        result
    }
}
