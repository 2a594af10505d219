//! How a connection to Redis comes about: dialled, logged in with what the secrets hold now, and replaced when they are
//! set anew. A password passes through memory of ours that is wiped, and through no library that would keep it
//! but, with `rediss`, that of TLS.

use std::hash::{BuildHasher as _, RandomState};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, RedisConnectionInfo};
use rustls::pki_types::ServerName;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::watch;
use tokio_rustls::TlsConnector;
use zeroize::Zeroizing;

use super::{BackendError, Line, Login, PAUSES, TIMEOUT, translate};
use crate::breaker::{self, Breaker};
use crate::dial::{DialError, Dialer, Target};
use crate::http_out::Stream;
use crate::secrets::Unlocked;

/// The longest answer to a login, bytes.
const MAX_ANSWER: usize = 1024;

/// What every connection is made from.
pub(super) struct Connector {
    pub(super) target: Target,
    pub(super) info: RedisConnectionInfo,
    pub(super) login: Login,
    /// For `rediss`: whom to believe, and the name to prove.
    pub(super) tls: Option<(TlsConnector, ServerName<'static>)>,
    pub(super) dialer: Arc<dyn Dialer>,
    pub(super) breaker: Breaker<BackendError>,
}

/// A new connection, which nobody drives yet.
pub(super) struct Connected<D> {
    connection: MultiplexedConnection,
    driver: D,
    versions: Vec<u64>,
}

impl Connector {
    /// A connection with what the secrets hold now.
    pub(super) async fn connect(&self) -> Result<Connected<impl Future<Output = ()> + Send + 'static>, BackendError> {
        let connecting = async { self.connect_with(self.login.secrets.all().await?).await };
        let connected = tokio::time::timeout(TIMEOUT, connecting).await;
        connected.unwrap_or(Err(BackendError::TimedOut { ms: TIMEOUT.as_millis() as u64 }))
    }

    /// A connection that is logged in with what the secrets hold now, and on which nothing was said yet.
    pub(super) async fn logged_in(&self) -> Result<Stream, BackendError> {
        self.stream(&self.login.secrets.all().await?).await
    }

    async fn stream(&self, unlocked: &Unlocked) -> Result<Stream, BackendError> {
        let dialled = self.dialer.dial(self.target.clone()).await.map_err(|cause| match cause {
            DialError::Denied(why) => BackendError::Denied(why),
            other => BackendError::Unavailable(other.to_string()),
        })?;
        let mut stream = match &self.tls {
            None => Stream::Plain(dialled.stream),
            Some((tls, name)) => {
                let secured = tls.connect(name.clone(), dialled.stream).await;
                Stream::Tls(Box::new(
                    secured.map_err(|cause| BackendError::Unavailable(format!("TLS failed: {cause}")))?,
                ))
            }
        };
        if let Some(password) = unlocked.bytes("password") {
            let username = unlocked.text("username")?.or(self.login.username.as_deref());
            log_in(&mut stream, username, password).await?;
        }
        Ok(stream)
    }

    async fn connect_with(
        &self,
        unlocked: Unlocked,
    ) -> Result<Connected<impl Future<Output = ()> + Send + 'static>, BackendError> {
        let stream = self.stream(&unlocked).await?;
        let config = AsyncConnectionConfig::new().set_response_timeout(Some(TIMEOUT));
        let (connection, driver) = MultiplexedConnection::new_with_config(&self.info, stream, config)
            .await
            .map_err(|cause| translate(&cause, ""))?;
        Ok(Connected { connection, driver, versions: unlocked.versions() })
    }
}

impl<D: Future<Output = ()> + Send + 'static> Connected<D> {
    /// Makes it the one that calls are sent on, until it ends: then it is forgotten, and the next call connects anew.
    /// Calls under way on the one before finish there.
    pub(super) fn install(self, line: &Arc<Mutex<Line>>) -> (MultiplexedConnection, u64) {
        let generation = {
            let mut line = line.lock().unwrap_or_else(PoisonError::into_inner);
            line.generation += 1;
            line.versions = self.versions;
            line.connection = Some(self.connection.clone());
            line.generation
        };
        let line = Arc::downgrade(line);
        let driver = self.driver;
        tokio::spawn(async move {
            driver.await;
            if let Some(line) = line.upgrade() {
                forget(&line, generation);
            }
        });
        (self.connection, generation)
    }
}

pub(super) fn forget(line: &Mutex<Line>, generation: u64) {
    let mut line = line.lock().unwrap_or_else(PoisonError::into_inner);
    if line.generation == generation {
        line.connection = None;
    }
}

/// How long to wait after `failures` failures in a row.
fn pause(failures: u32) -> Duration {
    breaker::pause(failures.saturating_sub(1), PAUSES.least, PAUSES.most, RandomState::new().hash_one(failures))
}

/// Replaces the connection each time the secrets were set anew. The one there is stays until the new one answers: the
/// server may be told of the new password a little later than we are.
pub(super) async fn renew(connector: Arc<Connector>, line: Weak<Mutex<Line>>, mut changes: watch::Receiver<u64>) {
    let mut failures = 0_u32;
    loop {
        let told = match failures {
            0 => Ok(changes.changed().await),
            failures => tokio::time::timeout(pause(failures), changes.changed()).await,
        };
        if let Ok(Err(_)) = told {
            return;
        }
        let Some(line) = line.upgrade() else { return };
        match renew_once(&connector, &line).await {
            Ok(()) => failures = 0,
            Err(cause) => {
                failures = failures.saturating_add(1);
                if failures == 1 {
                    let Target { app, caller, .. } = &connector.target;
                    tracing::warn!(%app, ?caller, %cause, "secrets changed and a new connection cannot be made; the old one stays, and it is tried again");
                }
            }
        }
    }
}

async fn renew_once(connector: &Connector, line: &Arc<Mutex<Line>>) -> Result<(), BackendError> {
    let versions = {
        let line = line.lock().unwrap_or_else(PoisonError::into_inner);
        if line.connection.is_none() {
            // The next call connects with what there is now, and need not wait for it.
            connector.breaker.reset();
            return Ok(());
        }
        line.versions.clone()
    };
    let unlocked = connector.login.secrets.all().await?;
    if unlocked.versions() == versions {
        return Ok(());
    }
    let connected = tokio::time::timeout(TIMEOUT, connector.connect_with(unlocked)).await;
    let connected = connected.unwrap_or(Err(BackendError::TimedOut { ms: TIMEOUT.as_millis() as u64 }))?;
    connected.install(line);
    Ok(())
}

/// What a server says to a login. It may repeat what it was sent, as those do that know no `AUTH`: of its words only the
/// code is told, where it is one of Redis's.
fn refusal(said: &str) -> String {
    const CODES: [&str; 9] =
        ["WRONGPASS", "NOAUTH", "NOPERM", "ERR", "DENIED", "LOADING", "MASTERDOWN", "BUSY", "MISCONF"];
    match said.split_whitespace().next().filter(|code| CODES.contains(code)) {
        Some(code) => format!("the server refuses the login ({code}); check user name and password"),
        None => "the server refuses the login; check user name and password".to_owned(),
    }
}

/// `AUTH`, written here so that no other buffer than ours holds the password.
async fn log_in(stream: &mut Stream, username: Option<&str>, password: &[u8]) -> Result<(), BackendError> {
    let lost = |cause: std::io::Error| BackendError::Unavailable(cause.to_string());
    let parts: Vec<&[u8]> =
        [Some(&b"AUTH"[..]), username.map(str::as_bytes), Some(password)].into_iter().flatten().collect();
    // Large enough for all of it: growing would leave copies behind.
    let size = parts.iter().map(|part| part.len() + 32).sum::<usize>() + 32;
    let mut command = Zeroizing::new(Vec::with_capacity(size));
    command.extend_from_slice(format!("*{}\r\n", parts.len()).as_bytes());
    for part in parts {
        command.extend_from_slice(format!("${}\r\n", part.len()).as_bytes());
        command.extend_from_slice(part);
        command.extend_from_slice(b"\r\n");
    }
    stream.write_all(&command).await.map_err(lost)?;
    stream.flush().await.map_err(lost)?;
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n") && answer.len() < MAX_ANSWER {
        answer.push(stream.read_u8().await.map_err(lost)?);
    }
    if answer == b"+OK\r\n" {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&answer);
    match said.trim_end().strip_prefix('-') {
        Some(refused) => Err(BackendError::Denied(refusal(refused))),
        None => Err(BackendError::Unavailable("the server does not answer a login as Redis does".to_owned())),
    }
}
