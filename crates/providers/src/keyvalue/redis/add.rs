//! A number that grows, and is never below 0. Redis itself adds also below 0, so a script looks at the sum and takes it back in
//! the same step: nobody sees it, and what another one writes meanwhile is not changed. For a user who may not run scripts
//! it takes two commands to do the same, and there somebody may come between them.

use std::sync::LazyLock;

use redis::{Script, cmd};

use super::get::{scripted, strange};
use super::{BackendError, Redis};

/// The sum, or nothing where it is below 0. A script knows whole numbers up to 2^53; a larger one is read as text.
const CODE: &str = "local n=redis.pcall('HINCRBY',KEYS[1],ARGV[1],ARGV[2]) \
                    if type(n)=='table' then return n end \
                    if n<0 then redis.call('HINCRBY',KEYS[1],ARGV[1],ARGV[3]) return false end \
                    if n<9007199254740992 then return n end \
                    return redis.call('HGET',KEYS[1],ARGV[1])";

static SCRIPT: LazyLock<Script> = LazyLock::new(|| Script::new(CODE));

/// Adds to what is at a key.
pub(super) async fn add(redis: &Redis, bucket: &str, key: &str, delta: u64) -> Result<u64, BackendError> {
    let not_a_number = || BackendError::NotANumber(key.to_owned());
    let delta = i64::try_from(delta).map_err(|_| not_a_number())?;
    if redis.scripts.are_denied() {
        return in_two(redis, bucket, key, delta).await;
    }
    match scripted(redis, false, (&SCRIPT, CODE), (bucket, key), &[delta, -delta]).await {
        Ok(redis::Value::Int(sum)) => u64::try_from(sum).map_err(|_| strange()),
        Ok(redis::Value::BulkString(sum)) => {
            let sum = std::str::from_utf8(&sum).ok().and_then(|sum| sum.parse().ok());
            sum.ok_or_else(strange)
        }
        Ok(redis::Value::Nil) => Err(not_a_number()),
        Ok(_) => Err(strange()),
        Err(BackendError::Denied(why)) => {
            let added = in_two(redis, bucket, key, delta).await;
            // What denies these too denies more than scripts.
            if added.is_ok() {
                redis.scripts.deny(&why);
            }
            added
        }
        Err(cause) => Err(cause),
    }
}

async fn in_two(redis: &Redis, bucket: &str, key: &str, delta: i64) -> Result<u64, BackendError> {
    let add = |number: i64| {
        let mut command = cmd("HINCRBY");
        command.arg(redis.hash(bucket)).arg(key).arg(number);
        command
    };
    let sum: i64 = redis.run(false, &add(delta), key).await?;
    if sum < 0 {
        redis.run::<redis::Value>(false, &add(-delta), key).await?;
    }
    u64::try_from(sum).map_err(|_| BackendError::NotANumber(key.to_owned()))
}
