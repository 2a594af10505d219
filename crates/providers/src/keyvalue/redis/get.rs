//! A value in one command and not more bytes than a value may have. Others may write to the same server, so what is there is
//! measured before it is sent; a script does both at once. A user who may not run scripts measures and fetches in two commands.

use std::sync::LazyLock;
use std::sync::atomic::{AtomicBool, Ordering};

use redis::{Cmd, Script, cmd};

use super::{BackendError, Redis};
use crate::keyvalue::MAX_VALUE;

/// The value, or its length where that is more than the second argument.
const CODE: &str = "local n=redis.call('HSTRLEN',KEYS[1],ARGV[1]) \
                    if n>tonumber(ARGV[2]) then return n end \
                    return redis.call('HGET',KEYS[1],ARGV[1])";

static SCRIPT: LazyLock<Script> = LazyLock::new(|| Script::new(CODE));

/// What is known of a server's scripts.
#[derive(Default)]
pub(super) struct Scripts {
    denied: AtomicBool,
}

impl Scripts {
    pub(super) fn are_denied(&self) -> bool {
        self.denied.load(Ordering::Relaxed)
    }

    pub(super) fn deny(&self, why: &str) {
        if !self.denied.swap(true, Ordering::Relaxed) {
            tracing::info!(why, "the user of a Redis may not run scripts: each `get` takes two commands");
        }
    }
}

/// What is at a key.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Bounded {
    Value(Option<Vec<u8>>),
    /// Of a value that is too long.
    Length(usize),
}

/// Reads a value that has at most [`MAX_VALUE`] bytes.
pub(super) async fn bounded(redis: &Redis, bucket: &str, key: &str) -> Result<Bounded, BackendError> {
    if redis.scripts.are_denied() {
        return in_two(redis, bucket, key).await;
    }
    match scripted(redis, true, (&SCRIPT, CODE), (bucket, key), &[MAX_VALUE as i64]).await {
        Ok(redis::Value::Int(length)) => Ok(Bounded::Length(usize::try_from(length).unwrap_or(usize::MAX))),
        Ok(redis::Value::BulkString(value)) => Ok(Bounded::Value(Some(value))),
        Ok(redis::Value::Nil) => Ok(Bounded::Value(None)),
        Ok(_) => Err(strange()),
        Err(BackendError::Denied(why)) => {
            let found = in_two(redis, bucket, key).await;
            // What denies these too denies more than scripts.
            if found.is_ok() {
                redis.scripts.deny(&why);
            }
            found
        }
        Err(cause) => Err(cause),
    }
}

/// Runs a script on the key of a bucket. One that `reads` is tried once more where the connection broke under it.
pub(super) async fn scripted(
    redis: &Redis,
    reads: bool,
    (script, code): (&Script, &str),
    (bucket, key): (&str, &str),
    more: &[i64],
) -> Result<redis::Value, BackendError> {
    let call = |how: &str, what: &str| -> Cmd {
        let mut call = cmd(how);
        call.arg(what).arg(1).arg(redis.hash(bucket)).arg(key).arg(more);
        call
    };
    match redis.run(reads, &call("EVALSHA", script.get_hash()), key).await {
        // The server was started anew, or was never asked: from now on it knows the script.
        Err(BackendError::Unavailable(why)) if why.contains("NOSCRIPT") || why.contains("NoScript") => {
            redis.run(reads, &call("EVAL", code), key).await
        }
        answer => answer,
    }
}

pub(super) fn strange() -> BackendError {
    BackendError::Unavailable("the server answers a script as Redis does not".to_owned())
}

async fn in_two(redis: &Redis, bucket: &str, key: &str) -> Result<Bounded, BackendError> {
    let length: usize = redis.run(true, cmd("HSTRLEN").arg(redis.hash(bucket)).arg(key), key).await?;
    if length > MAX_VALUE {
        return Ok(Bounded::Length(length));
    }
    redis.run(true, cmd("HGET").arg(redis.hash(bucket)).arg(key), key).await.map(Bounded::Value)
}
