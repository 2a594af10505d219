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

/// What is at a key.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Bounded {
    Value(Option<Vec<u8>>),
    /// Of a value that is too long.
    Length(usize),
}

/// Reads a value that has at most [`MAX_VALUE`] bytes.
pub(super) async fn bounded(redis: &Redis, bucket: &str, key: &str) -> Result<Bounded, BackendError> {
    if redis.scripts.denied.load(Ordering::Relaxed) {
        return in_two(redis, bucket, key).await;
    }
    let call = |how: &str, what: &str| -> Cmd {
        let mut call = cmd(how);
        call.arg(what).arg(1).arg(redis.hash(bucket)).arg(key).arg(MAX_VALUE);
        call
    };
    let answer = match redis.run(true, &call("EVALSHA", SCRIPT.get_hash()), key).await {
        // The server was started anew, or was never asked: from now on it knows the script.
        Err(BackendError::Unavailable(why)) if why.contains("NOSCRIPT") || why.contains("NoScript") => {
            redis.run(true, &call("EVAL", CODE), key).await
        }
        answer => answer,
    };
    match answer {
        Ok(redis::Value::Int(length)) => Ok(Bounded::Length(usize::try_from(length).unwrap_or(usize::MAX))),
        Ok(redis::Value::BulkString(value)) => Ok(Bounded::Value(Some(value))),
        Ok(redis::Value::Nil) => Ok(Bounded::Value(None)),
        Ok(_) => Err(BackendError::Unavailable("the server answers a script as Redis does not".to_owned())),
        Err(BackendError::Denied(why)) => {
            let found = in_two(redis, bucket, key).await;
            // What denies these too denies more than scripts.
            if found.is_ok() {
                redis.scripts.denied.store(true, Ordering::Relaxed);
                tracing::info!(why, "the user of a Redis may not run scripts: each `get` takes two commands");
            }
            found
        }
        Err(cause) => Err(cause),
    }
}

async fn in_two(redis: &Redis, bucket: &str, key: &str) -> Result<Bounded, BackendError> {
    let length: usize = redis.run(true, cmd("HSTRLEN").arg(redis.hash(bucket)).arg(key), key).await?;
    if length > MAX_VALUE {
        return Ok(Bounded::Length(length));
    }
    redis.run(true, cmd("HGET").arg(redis.hash(bucket)).arg(key), key).await.map(Bounded::Value)
}
