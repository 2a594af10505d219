//! Key-value in Redis or Valkey, over connections that the `Dialer` makes.
//!
//! Layout: one hash per bucket, its key `<tenant>/<app>/<bucket>`. Tenant and app are typed names, which cannot hold a
//! `/`, and the bucket comes last, so no two tenants and no two apps can name the same hash whatever their buckets are
//! called. A batch is one command on one hash, and one command is atomic.
//!
//! Each link has a connection of its own: answers come in the order of the questions, and nobody is to wait for a value
//! that another component asked for.

mod add;
mod connect;
mod follow;
mod get;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use connect::{Connector, forget};
use get::{Bounded, Scripts};

use futures::FutureExt;
use model::{AppName, ProviderName, TenantName};
use redis::aio::MultiplexedConnection;
use redis::{
    Cmd, ConnectionAddr, ErrorKind, FromRedisValue, IntoConnectionInfo, Pipeline, RedisError, ServerErrorKind, cmd,
};

use rustls::pki_types::ServerName;
use tokio_rustls::TlsConnector;

use super::{Answer, Backend, BackendError, Gathered, PAGE, Page, check_answer, check_length};
use crate::breaker::{Breaker, Pass, Pauses};
use crate::dial::{Caller, Dialer, Target};
use crate::http_json::trust;
use crate::per_link::{LinkId, PerLink};
use crate::secrets::Credentials;

/// For one call: connecting, introducing ourselves, and the answer.
const TIMEOUT: Duration = Duration::from_secs(5);
/// After a failure calls are held back; one that finds out whether the server is back waits for it alone.
const PAUSES: Pauses = Pauses { after: 1, least: Duration::from_millis(50), most: Duration::from_secs(2) };

/// Fields per step of a listing where the server sends each with its value: what is held at once is this many values.
const STEP_WITH_VALUES: u32 = 8;

/// The settings of the provider are wrong. Never holds the URL: it may hold a password.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SettingsError {
    /// No `url`.
    #[error("the provider needs `url`, for example `redis://127.0.0.1:6379`")]
    NoUrl,
    /// Not a URL of Redis over TCP, or one with a user name or password in it.
    #[error("the provider's `url` is not `redis[s]://host[:port][/db]`; `username` and `password` stand beside it")]
    Url,
    /// The certificates cannot be read, or prove nothing.
    #[error("the provider's `ca` is not used: {0}")]
    Ca(String),
}

/// Who the provider is to the server. What the secrets `username` and `password` hold is asked for at each connection.
pub struct Login {
    /// The user, where it is written as a text.
    pub username: Option<String>,
    /// The secrets of the provider's settings.
    pub secrets: Credentials,
}

/// One app's keys in one Redis.
pub struct Redis {
    prefix: String,
    connector: Arc<Connector>,
    lanes: PerLink<Lane>,
    /// The server is older than `HSCAN … NOVALUES` (Redis 7.4, Valkey 8).
    sends_values: AtomicBool,
    /// How values are read, and added to.
    scripts: Scripts,
}

/// What one link calls on.
#[derive(Default)]
struct Lane {
    connecting: tokio::sync::Mutex<()>,
    line: Arc<Mutex<Line>>,
    /// Follows the secrets from the first connection on.
    renewing: OnceLock<AbortOnDrop>,
}

impl Lane {
    fn open(&self) -> Option<(MultiplexedConnection, u64)> {
        let line = self.line.lock().unwrap_or_else(PoisonError::into_inner);
        line.connection.clone().map(|connection| (connection, line.generation))
    }
}

/// Its one connection.
#[derive(Default)]
struct Line {
    connection: Option<MultiplexedConnection>,
    /// The versions of the secrets it was made with.
    versions: Vec<u64>,
    /// Tells a connection from the one that replaced it.
    generation: u64,
}

struct AbortOnDrop(tokio::task::JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// What is sent at once.
#[derive(Clone, Copy)]
enum Question<'a> {
    One(&'a Cmd),
    Together(&'a Pipeline),
}

impl Redis {
    /// The store that `url` names, for one app. Nothing is connected before the first call. With `rediss://` the server proves
    /// its name by a certificate: of `ca`, certificates in PEM, where there is one, else of the public authorities.
    ///
    /// # Errors
    /// [`SettingsError`] where `url` is not one.
    pub fn new(
        tenant: &TenantName,
        app: &AppName,
        provider: &ProviderName,
        url: &str,
        ca: Option<&str>,
        login: Login,
        dialer: Arc<dyn Dialer>,
    ) -> Result<Self, SettingsError> {
        let (url, secure) = match url.strip_prefix("rediss://") {
            Some(rest) => (format!("redis://{rest}"), true),
            None => (url.to_owned(), false),
        };
        let info = url.into_connection_info().map_err(|_| SettingsError::Url)?;
        let ConnectionAddr::Tcp(host, port) = info.addr() else { return Err(SettingsError::Url) };
        if info.redis_settings().username().is_some() || info.redis_settings().password().is_some() {
            return Err(SettingsError::Url);
        }
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        let tls = match (secure, ca) {
            (true, ca) => {
                let trust = trust(ca).map_err(|cause| SettingsError::Ca(cause.to_string()))?;
                let name = ServerName::try_from(host.clone()).map_err(|_| SettingsError::Url)?;
                Some((TlsConnector::from(trust.config()), name))
            }
            (false, Some(_)) => return Err(SettingsError::Ca("`url` is not `rediss`".to_owned())),
            (false, None) => None,
        };
        let target = Target { app: app.clone(), caller: Caller::Provider(provider.clone()), host, port: *port };
        Ok(Self {
            prefix: format!("{tenant}/{app}/"),
            connector: Arc::new(Connector {
                target,
                info: info.redis_settings().clone(),
                login,
                tls,
                dialer,
                breaker: Breaker::new(PAUSES).or_silent(late()),
            }),
            lanes: PerLink::default(),
            sends_values: AtomicBool::new(false),
            scripts: Scripts::default(),
        })
    }

    /// Connects and asks `PING`: says early and with its reason what every call would say.
    ///
    /// # Errors
    /// What a call would answer.
    pub async fn check(&self) -> Result<(), BackendError> {
        self.run::<redis::Value>(true, &cmd("PING"), "").await.map(|_| ())
    }

    fn hash(&self, bucket: &str) -> String {
        format!("{}{bucket}", self.prefix)
    }

    /// That of the link that calls here.
    fn lane(&self) -> Arc<Lane> {
        self.lanes.of(LinkId::calling().as_ref())
    }

    async fn connection(&self, asking: &Asking) -> Result<(MultiplexedConnection, u64), BackendError> {
        let lane = &asking.lane;
        if let Some(open) = lane.open() {
            return Ok(open);
        }
        let _one = lane.connecting.lock().await;
        if let Some(open) = lane.open() {
            return Ok(open);
        }
        // Whoever connected meanwhile may have failed for all who waited.
        asking.pass.as_ref().map_or(Ok(()), Pass::still)?;
        if !self.connector.login.secrets.is_empty() {
            // Before they are revealed: a change from here on is not missed.
            lane.renewing.get_or_init(|| {
                let changes = self.connector.login.secrets.changes();
                let renewing = connect::renew(self.connector.clone(), Arc::downgrade(&lane.line), changes);
                AbortOnDrop(tokio::spawn(renewing))
            });
        }
        Ok(self.connector.connect().await?.install(&lane.line))
    }

    /// One step of a listing.
    async fn scan(&self, bucket: &str, cursor: Option<&str>) -> Result<Page, BackendError> {
        let mut command = cmd("HSCAN");
        command.arg(self.hash(bucket)).arg(cursor.unwrap_or("0")).arg("COUNT");
        let (next, keys) = loop {
            if self.sends_values.load(Ordering::Relaxed) {
                let (next, fields): (String, Vec<(String, redis::Value)>) =
                    self.run(true, command.clone().arg(STEP_WITH_VALUES), "").await?;
                break (next, fields.into_iter().map(|(key, _)| key).collect());
            }
            match self.run(true, command.clone().arg(PAGE).arg("NOVALUES"), "").await {
                Err(BackendError::Unavailable(why)) if why.contains("syntax error") => {
                    self.sends_values.store(true, Ordering::Relaxed);
                }
                answer => break answer?,
            }
        };
        Ok(Page { keys, cursor: Some(next).filter(|next| next != "0") })
    }

    /// The length of each value, 0 for one that is not there: asked for together.
    async fn lengths(&self, bucket: &str, keys: &[&str]) -> Result<Vec<usize>, BackendError> {
        let hash = self.hash(bucket);
        let mut together = redis::pipe();
        for key in keys {
            together.cmd("HSTRLEN").arg(&hash).arg(*key);
        }
        self.ask(true, Question::Together(&together), "").await
    }

    /// One command. What only reads is tried once more where the connection broke under it.
    async fn run<T: FromRedisValue>(&self, reads: bool, command: &Cmd, key: &str) -> Result<T, BackendError> {
        self.ask(reads, Question::One(command), key).await
    }

    /// One call, bounded in time as a whole, held back while the server is not there.
    async fn ask<T: FromRedisValue>(&self, reads: bool, what: Question<'_>, key: &str) -> Result<T, BackendError> {
        let pass = Some(self.connector.breaker.enter()?);
        let asking = Asking { pass, lane: self.lane(), generation: AtomicU64::new(NONE) };
        let tried = tokio::time::timeout(TIMEOUT, self.attempt(reads, what, key, &asking)).await;
        let end = match tried.unwrap_or(Err(Failed::Late)) {
            Ok(answer) => return asking.answered(Ok(answer)),
            Err(Failed::Said(cause)) => return asking.answered(Err(cause)),
            Err(end) => end,
        };
        Err(asking.failed(end))
    }

    async fn attempt<T: FromRedisValue>(
        &self,
        reads: bool,
        what: Question<'_>,
        key: &str,
        asking: &Asking,
    ) -> Result<T, Failed> {
        let mut tries = if reads { 2 } else { 1 };
        loop {
            tries -= 1;
            // What the server says to a login counts as no answer too: nobody is to log in for every call.
            let (mut connection, generation) = self.connection(asking).await.map_err(Failed::Down)?;
            asking.generation.store(generation, Ordering::Relaxed);
            let answer = match what {
                Question::One(command) => command.query_async::<T>(&mut connection).await,
                Question::Together(pipeline) => pipeline.query_async::<T>(&mut connection).await,
            };
            match answer {
                Ok(value) => return Ok(value),
                Err(cause) if cause.is_timeout() => return Err(Failed::Late),
                Err(cause) if cause.is_connection_dropped() || cause.is_unrecoverable_error() => {
                    forget(&asking.lane.line, generation);
                    if tries == 0 {
                        return Err(Failed::Down(translate(&cause, key)));
                    }
                }
                Err(cause) => return Err(Failed::Said(translate(&cause, key))),
            }
        }
    }
}

/// The generation of no connection.
const NONE: u64 = 0;

/// A call under way, and the connection it is on. Given up while the server is silent, it leaves that behind as one that had
/// no answer in its time does: nobody may be at the other end any more, and nothing would ever tell.
struct Asking {
    pass: Option<Pass<BackendError>>,
    lane: Arc<Lane>,
    generation: AtomicU64,
}

impl Asking {
    fn answered<T>(mut self, answer: Result<T, BackendError>) -> Result<T, BackendError> {
        self.pass.take().into_iter().for_each(Pass::answered);
        answer
    }

    fn failed(mut self, end: Failed) -> BackendError {
        let pass = self.pass.take();
        match end {
            Failed::Said(cause) => cause,
            Failed::Down(cause) => {
                pass.into_iter().for_each(|pass| pass.failed(cause.clone()));
                cause
            }
            Failed::Late => {
                if pass.is_some_and(|pass| pass.late(late())) {
                    self.leave();
                }
                late()
            }
        }
    }

    fn leave(&self) {
        forget(&self.lane.line, self.generation.load(Ordering::Relaxed));
    }
}

impl Drop for Asking {
    fn drop(&mut self) {
        if self.pass.take().is_some_and(Pass::given_up) {
            self.leave();
        }
    }
}

fn late() -> BackendError {
    BackendError::TimedOut { ms: TIMEOUT.as_millis() as u64 }
}

/// Why a call has no value.
enum Failed {
    /// It had none in its time.
    Late,
    /// The server answered, and this is what.
    Said(BackendError),
    /// It did not.
    Down(BackendError),
}

fn translate(cause: &RedisError, key: &str) -> BackendError {
    let detail = cause.detail().unwrap_or_default();
    match cause.kind() {
        _ if cause.is_timeout() => late(),
        ErrorKind::AuthenticationFailed | ErrorKind::Server(ServerErrorKind::NoPerm) => {
            BackendError::Denied(detail.to_owned())
        }
        _ if matches!(cause.code(), Some("NOAUTH" | "WRONGPASS")) => BackendError::Denied(detail.to_owned()),
        ErrorKind::Server(ServerErrorKind::ResponseError)
            if detail.contains("not an integer") || detail.contains("would overflow") =>
        {
            BackendError::NotANumber(key.to_owned())
        }
        _ => BackendError::Unavailable(cause.to_string()),
    }
}

impl Backend for Redis {
    fn get<'a>(&'a self, bucket: &'a str, key: &'a str) -> Answer<'a, Option<Vec<u8>>> {
        async move {
            match get::bounded(self, bucket, key).await? {
                Bounded::Value(value) => Ok(value),
                Bounded::Length(length) => check_length(length).map(|()| None),
            }
        }
        .boxed()
    }

    fn set<'a>(&'a self, bucket: &'a str, key: &'a str, value: Vec<u8>) -> Answer<'a, ()> {
        async move { self.run(false, cmd("HSET").arg(self.hash(bucket)).arg(key).arg(value), key).await }.boxed()
    }

    fn delete<'a>(&'a self, bucket: &'a str, key: &'a str) -> Answer<'a, ()> {
        async move { self.run(false, cmd("HDEL").arg(self.hash(bucket)).arg(key), key).await }.boxed()
    }

    fn exists<'a>(&'a self, bucket: &'a str, key: &'a str) -> Answer<'a, bool> {
        async move { self.run(true, cmd("HEXISTS").arg(self.hash(bucket)).arg(key), key).await }.boxed()
    }

    /// In no order; a page may be larger than asked, and a key that is there all the time may come twice.
    fn list_keys<'a>(&'a self, bucket: &'a str, cursor: Option<&'a str>) -> Answer<'a, Page> {
        async move {
            let mut page = Page { keys: Vec::new(), cursor: cursor.map(str::to_owned) };
            let mut bytes = 0;
            loop {
                let step = self.scan(bucket, page.cursor.as_deref()).await?;
                bytes += step.keys.iter().map(String::len).sum::<usize>();
                check_answer(bytes)?;
                page.keys.extend(step.keys);
                page.cursor = step.cursor;
                if page.cursor.is_none() || page.keys.len() >= PAGE as usize {
                    return Ok(page);
                }
            }
        }
        .boxed()
    }

    fn increment<'a>(&'a self, bucket: &'a str, key: &'a str, delta: u64) -> Answer<'a, u64> {
        add::add(self, bucket, key, delta).boxed()
    }

    fn get_many<'a>(&'a self, bucket: &'a str, keys: Vec<String>) -> Answer<'a, Vec<(String, Option<Vec<u8>>)>> {
        async move {
            if keys.is_empty() {
                return Ok(Vec::new());
            }
            // Each key once: one that is asked for again must not be sent again.
            let mut times: BTreeMap<&str, usize> = BTreeMap::new();
            for key in &keys {
                *times.entry(key).or_default() += 1;
            }
            let unique: Vec<&str> = times.keys().copied().collect();
            let lengths = self.lengths(bucket, &unique).await?;
            let bytes = times.iter().zip(lengths).fold(0_usize, |bytes, ((key, times), length)| {
                bytes.saturating_add(key.len().saturating_add(length).saturating_mul(*times))
            });
            check_answer(bytes)?;
            let values: Vec<Option<Vec<u8>>> =
                self.run(true, cmd("HMGET").arg(self.hash(bucket)).arg(&unique), "").await?;
            let values: BTreeMap<&str, Option<Vec<u8>>> = unique.into_iter().zip(values).collect();
            // Counted again: a value may have grown since it was measured.
            let mut found = Gathered::default();
            for key in &keys {
                found.push(key.clone(), values.get(key.as_str()).and_then(Option::as_ref))?;
            }
            Ok(found.values)
        }
        .boxed()
    }

    fn set_many<'a>(&'a self, bucket: &'a str, pairs: Vec<(String, Vec<u8>)>) -> Answer<'a, ()> {
        async move {
            if pairs.is_empty() {
                return Ok(());
            }
            let mut command = cmd("HSET");
            command.arg(self.hash(bucket));
            for (key, value) in &pairs {
                command.arg(key).arg(value);
            }
            self.run(false, &command, "").await
        }
        .boxed()
    }

    fn delete_many<'a>(&'a self, bucket: &'a str, keys: Vec<String>) -> Answer<'a, ()> {
        async move {
            if keys.is_empty() {
                return Ok(());
            }
            self.run(false, cmd("HDEL").arg(self.hash(bucket)).arg(&keys), "").await
        }
        .boxed()
    }
}
