//! The connections of one provider that are at rest, and the rotation of what they log in with.

use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::{Duration, Instant};

use model::sql::SqlError;
use tokio::sync::watch;

use super::connect::Connector;
use super::session::Session;
use crate::breaker::pause;

/// A connection nobody used for this long is closed.
const IDLE: Duration = Duration::from_secs(60);
/// Pauses between tries to log in with secrets that were set anew.
const LEAST: Duration = Duration::from_millis(50);
const MOST: Duration = Duration::from_secs(5);
/// One such try.
const TRY: Duration = Duration::from_secs(5);

pub(super) struct Pool {
    connector: Connector,
    state: Mutex<State>,
    /// Follows the secrets from the first connection on.
    renewing: OnceLock<AbortOnDrop>,
}

#[derive(Default)]
struct State {
    /// The one used last comes first.
    idle: Vec<(Session, Instant)>,
    /// Grows when the secrets are others: what was made before is not used again.
    generation: u64,
    /// The versions of the secrets of this generation.
    versions: Vec<u64>,
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
        Self { connector, state: Mutex::default(), renewing: OnceLock::new() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A connection at rest, or a new one.
    pub(super) async fn lease(self: &Arc<Self>) -> Result<Lease<'_>, SqlError> {
        loop {
            let found = self.lock().idle.pop();
            match found {
                Some((session, since)) if session.is_open() && since.elapsed() < IDLE => {
                    return Ok(Lease { pool: self, session: Some(session) });
                }
                Some(_) => {}
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
        Ok(Lease { pool: self, session: Some(self.connect().await?) })
    }

    /// No connection that is at rest now is used again.
    pub(super) fn forget(&self) {
        self.lock().idle.clear();
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
        state.idle.push((session, Instant::now()));
        Ok(())
    }
}

async fn renew(pool: Weak<Pool>, mut changes: watch::Receiver<u64>) {
    let mut failures = 0_u32;
    loop {
        let told = match failures {
            0 => Ok(changes.changed().await),
            failures => {
                let wait = pause(failures, LEAST, MOST, u64::from(failures));
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

/// A connection in the hands of one call. Dropped without [`Lease::settle`] it is closed.
pub(super) struct Lease<'a> {
    pool: &'a Pool,
    session: Option<Session>,
}

impl Lease<'_> {
    pub(super) fn session(&mut self) -> Result<&Session, SqlError> {
        self.session.as_ref().ok_or_else(|| SqlError::Unavailable("the connection is gone".to_owned()))
    }

    /// Gives the connection back where the call left nothing on it.
    pub(super) fn settle<T>(mut self, result: Result<T, SqlError>) -> Result<T, SqlError> {
        let clean = match &result {
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
        if let Some(session) = self.session.take().filter(|session| clean && session.is_at_rest()) {
            let mut state = self.pool.lock();
            if session.generation == state.generation {
                let now = Instant::now();
                state.idle.retain(|(_, since)| now.saturating_duration_since(*since) < IDLE);
                state.idle.push((session, now));
            }
        }
        result
    }
}
