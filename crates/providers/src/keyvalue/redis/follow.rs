//! Changes of a bucket in Redis. The server tells, where it was told to, that a hash was written, and not which of its
//! fields: a notification only says when to look. What it looks at are digests, which the server makes of the values.
//!
//! Notifications are lost with their connection, and a server that does not send them says so to nobody. So a write to a
//! key of our own must come back as one before they are relied on, each time a connection is made.

use std::sync::Arc;
use std::time::Duration;

use futures::{FutureExt, StreamExt};
use model::watch::Keys;
use redis::aio::PubSub;
use redis::cmd;
use tokio::sync::Notify;

use super::super::count::Found;
use super::super::follow::{Eye, Followed, Follower, State};
use super::{AbortOnDrop, Answer, Backend as _, BackendError, Redis, TIMEOUT, translate};

/// Keys whose digests are asked for at once.
const AT_ONCE: usize = 500;
/// Between two questions whether the connection for notifications is there.
const PING: Duration = Duration::from_secs(10);
/// How long the notification of our own write may take.
const PROBE: Duration = Duration::from_secs(2);
/// After a notification others are waited for, so that many writes are looked at once.
const TOGETHER: Duration = Duration::from_millis(5);

/// For each field its SHA-1, or nothing where it is not there.
const DIGESTS: &str = "local out = {} for i, field in ipairs(ARGV) do \
    local value = redis.call('HGET', KEYS[1], field) out[i] = value and redis.sha1hex(value) or '' end return out";
/// Writes a record whose version is still the first argument.
const SWAP: &str = "if (redis.call('HGET', KEYS[1], 'version') or '0') ~= ARGV[1] then return 0 end \
    redis.call('HSET', KEYS[1], 'version', ARGV[2], 'text', ARGV[3]) return 1";

impl Redis {
    /// Who is told of changes of `keys` of `bucket`.
    pub fn follow(self: &Arc<Self>, bucket: &str, keys: Keys) -> impl crate::messaging::Backend + use<> {
        Follower::new(self.clone(), bucket, keys)
    }

    /// Fails where the server does not tell of changes.
    ///
    /// # Errors
    /// [`BackendError`], with what is to be switched on.
    pub async fn check_notifications(&self) -> Result<(), BackendError> {
        self.listen("").await.map(drop)
    }

    /// A key that is no bucket's: an app has a name.
    fn record(&self, name: &str) -> String {
        let (tenant, app) = (self.prefix.split('/').next().unwrap_or_default(), &self.connector.target.app);
        format!("{tenant}//watch/{app}/{name}")
    }

    fn channel(&self, key: &str) -> String {
        format!("__keyspace@{}__:{key}", self.connector.info.db())
    }

    /// A connection on which the server is seen to tell of changes of the bucket.
    async fn listen(&self, bucket: &str) -> Result<PubSub, BackendError> {
        let late = BackendError::TimedOut { ms: TIMEOUT.as_millis() as u64 };
        let probe = self.record("probe");
        let connecting = async {
            let stream = self.connector.logged_in().await?;
            let failed = |cause: redis::RedisError| translate(&cause, "");
            let mut listening = PubSub::new(&self.connector.info, stream).await.map_err(failed)?;
            let channels = [self.channel(&self.hash(bucket)), self.channel(&probe)];
            listening.subscribe(&channels).await.map_err(failed)?;
            Ok(listening)
        };
        let mut listening = tokio::time::timeout(TIMEOUT, connecting).await.unwrap_or(Err(late))?;
        let mut write = redis::pipe();
        write.cmd("HSET").arg(&probe).arg("written").arg(1).ignore();
        write.cmd("PEXPIRE").arg(&probe).arg(60_000).ignore();
        self.ask::<()>(false, super::Question::Together(&write), "").await?;
        let wanted = self.channel(&probe);
        let mut messages = listening.on_message();
        let comes = async {
            while let Some(message) = messages.next().await {
                if message.get_channel_name() == wanted && message.get_payload::<String>().is_ok_and(|p| p == "hset") {
                    return true;
                }
            }
            false
        };
        let told = tokio::time::timeout(PROBE, comes).await.unwrap_or(false);
        drop(messages);
        if told {
            return Ok(listening);
        }
        Err(BackendError::Unavailable(
            "Redis tells nobody of changes, so its keys cannot be watched: set `notify-keyspace-events` to `Khg` \
             (`CONFIG SET notify-keyspace-events Khg`, and in its configuration file)"
                .to_owned(),
        ))
    }

    async fn digests(&self, bucket: &str, keys: &[String]) -> Result<State, BackendError> {
        let mut state = State::new();
        for some in keys.chunks(AT_ONCE) {
            let mut command = cmd("EVAL");
            command.arg(DIGESTS).arg(1).arg(self.hash(bucket)).arg(some);
            let digests: Vec<String> = self.run(true, &command, "").await?;
            for (key, digest) in some.iter().zip(digests) {
                if let Some(start) = digest.get(..16).and_then(|start| u64::from_str_radix(start, 16).ok()) {
                    state.insert(key.clone(), start);
                }
            }
        }
        Ok(state)
    }
}

impl Followed for Redis {
    fn eye(self: Arc<Self>, bucket: &str, keys: &Keys) -> Box<dyn Eye> {
        Box::new(Watched { redis: self, bucket: bucket.to_owned(), keys: keys.clone(), listening: None })
    }

    fn load<'a>(&'a self, name: &'a str) -> Answer<'a, Found> {
        async move {
            let mut command = cmd("HMGET");
            command.arg(self.record(name)).arg("version").arg("text");
            let (version, value): (Option<u64>, Option<Vec<u8>>) = self.run(true, &command, "").await?;
            Ok(Found { value, version: version.unwrap_or(0) })
        }
        .boxed()
    }

    fn swap<'a>(&'a self, name: &'a str, text: String, version: u64) -> Answer<'a, Option<u64>> {
        async move {
            let next = version.wrapping_add(1);
            let mut command = cmd("EVAL");
            command.arg(SWAP).arg(1).arg(self.record(name)).arg(version).arg(next).arg(text);
            let done: u8 = self.run(false, &command, "").await?;
            Ok((done == 1).then_some(next))
        }
        .boxed()
    }
}

struct Watched {
    redis: Arc<Redis>,
    bucket: String,
    keys: Keys,
    listening: Option<Listening>,
}

/// Reads notifications all the time, so that none wait.
struct Listening {
    told: Arc<Notify>,
    task: AbortOnDrop,
}

impl Listening {
    fn new(listening: PubSub) -> Self {
        let told = Arc::new(Notify::new());
        let tells = told.clone();
        let task = tokio::spawn(async move {
            let (mut sink, mut messages) = listening.split();
            loop {
                tokio::select! {
                    message = messages.next() => match message {
                        Some(_) => tells.notify_one(),
                        None => break,
                    },
                    () = tokio::time::sleep(PING) => {
                        let pong = tokio::time::timeout(TIMEOUT, sink.ping::<redis::Value>()).await;
                        if !matches!(pong, Ok(Ok(_))) {
                            break;
                        }
                    }
                }
            }
            // Whoever waits sees that this has ended.
            tells.notify_one();
        });
        Self { told, task: AbortOnDrop(task) }
    }
}

impl Eye for Watched {
    fn state(&mut self) -> Answer<'_, State> {
        async move {
            if self.listening.as_ref().is_none_or(|listening| listening.task.0.is_finished()) {
                self.listening = Some(Listening::new(self.redis.listen(&self.bucket).await?));
            }
            let keys = match &self.keys {
                Keys::One(key) => vec![key.clone()],
                Keys::Beginning(_) => {
                    let (mut found, mut cursor) = (std::collections::BTreeSet::new(), None);
                    loop {
                        let page = self.redis.list_keys(&self.bucket, cursor.as_deref()).await?;
                        found.extend(page.keys.into_iter().filter(|key| self.keys.has(key)));
                        cursor = page.cursor;
                        if cursor.is_none() {
                            break found.into_iter().collect();
                        }
                    }
                }
            };
            self.redis.digests(&self.bucket, &keys).await
        }
        .boxed()
    }

    fn moved(&mut self) -> Answer<'_, ()> {
        async move {
            let Some(listening) = &self.listening else { return Ok(()) };
            listening.told.notified().await;
            if listening.task.0.is_finished() {
                return Ok(());
            }
            tokio::time::sleep(TOGETHER).await;
            Ok(())
        }
        .boxed()
    }
}
