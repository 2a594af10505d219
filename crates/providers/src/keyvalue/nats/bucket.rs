//! A NATS bucket and the stream it is: found or made at first use, with what we rely on checked.

use serde::{Deserialize, Serialize};

use super::failed;
use crate::keyvalue::BackendError;
use crate::nats::jetstream::{JetStream, JetStreamError, NO_STREAM, STREAM_IN_USE};

/// How long a server remembers ids of messages: what the official clients ask for.
const DUPLICATES_NS: u64 = 120_000_000_000;
/// The first release that changes several keys all or none, and that lets markers of deleted keys expire.
const ATOMIC: (u32, u32) = (2, 12);

/// What is known of a bucket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Bucket {
    pub(super) stream: String,
    /// `$KV.<bucket>.`
    pub(super) prefix: String,
    /// Reads may be answered without the leader: there is one replica, so they see every write.
    pub(super) direct: bool,
    /// Several keys can be changed all or none.
    pub(super) atomic: bool,
    /// Markers of deleted keys can expire.
    pub(super) expiring: bool,
}

/// The part of a stream's configuration that we ask for and look at.
#[derive(Debug, Serialize, Deserialize)]
#[serde(default)]
struct Config {
    name: String,
    subjects: Vec<String>,
    max_msgs_per_subject: i64,
    num_replicas: u32,
    allow_direct: bool,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    allow_atomic: bool,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    allow_msg_ttl: bool,
    retention: String,
    storage: String,
    discard: String,
    max_consumers: i64,
    max_msgs: i64,
    max_bytes: i64,
    max_age: u64,
    max_msg_size: i64,
    duplicate_window: u64,
    deny_delete: bool,
    deny_purge: bool,
    allow_rollup_hdrs: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            name: String::new(),
            subjects: Vec::new(),
            max_msgs_per_subject: 1,
            num_replicas: 1,
            allow_direct: false,
            allow_atomic: false,
            allow_msg_ttl: false,
            retention: "limits".to_owned(),
            storage: "file".to_owned(),
            discard: "new".to_owned(),
            max_consumers: -1,
            max_msgs: -1,
            max_bytes: -1,
            max_age: 0,
            max_msg_size: -1,
            duplicate_window: DUPLICATES_NS,
            deny_delete: true,
            deny_purge: false,
            allow_rollup_hdrs: true,
        }
    }
}

#[derive(Deserialize)]
struct Info {
    config: Config,
}

/// Finds the bucket of that NATS name, or makes it.
pub(super) async fn ensure(js: &JetStream, name: &str, replicas: u32) -> Result<Bucket, BackendError> {
    let stream = format!("KV_{name}");
    let info = format!("STREAM.INFO.{stream}");
    let config = match js.look::<Info>(&info, &()).await {
        Ok(found) => found.config,
        Err(JetStreamError::Refused { err_code: NO_STREAM, .. }) => {
            let release = js.client.check().await.map_err(|cause| failed(cause.into()))?.release();
            let wanted = wanted(name, &stream, replicas, release);
            match js.call::<Info>(&format!("STREAM.CREATE.{stream}"), &wanted).await {
                Ok(made) => made.config,
                // Another host was first.
                Err(JetStreamError::Refused { err_code, .. }) if STREAM_IN_USE.contains(&err_code) => {
                    js.look::<Info>(&info, &()).await.map_err(failed)?.config
                }
                Err(cause) => return Err(failed(cause)),
            }
        }
        Err(cause) => return Err(failed(cause)),
    };
    usable(name, stream, &config)
}

/// As the official clients make one, with what a newer server has beside.
fn wanted(name: &str, stream: &str, replicas: u32, release: (u32, u32)) -> Config {
    Config {
        name: stream.to_owned(),
        subjects: vec![format!("$KV.{name}.>")],
        num_replicas: replicas,
        allow_direct: true,
        allow_atomic: release >= ATOMIC,
        allow_msg_ttl: release >= ATOMIC,
        ..Config::default()
    }
}

/// What a stream allows us; refuses one that somebody made in a way that would give wrong answers.
fn usable(name: &str, stream: String, config: &Config) -> Result<Bucket, BackendError> {
    let refuse = |why: &str| Err(BackendError::Unavailable(format!("the NATS bucket `{name}` {why}")));
    if !config.subjects.contains(&format!("$KV.{name}.>")) {
        return refuse("is a mirror or no bucket: its stream takes no writes of its keys");
    }
    if config.max_msgs_per_subject != 1 {
        return refuse("keeps a history; it must keep one value per key (`--history=1`)");
    }
    Ok(Bucket {
        stream,
        prefix: format!("$KV.{name}."),
        direct: config.allow_direct && config.num_replicas == 1,
        atomic: config.allow_atomic,
        expiring: config.allow_msg_ttl,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_bucket_that_answers_right_is_used() {
        let config = |change: fn(&mut Config)| {
            let mut config = wanted("b", "KV_b", 1, (2, 9));
            change(&mut config);
            usable("b", "KV_b".into(), &config)
        };
        let plain = config(|_| {}).unwrap();
        assert_eq!((plain.prefix.as_str(), plain.direct, plain.atomic), ("$KV.b.", true, false));
        assert!(!config(|c| c.num_replicas = 3).unwrap().direct, "a replica may be behind");
        assert!(config(|c| c.max_msgs_per_subject = 5).is_err());
        assert!(config(|c| c.subjects.clear()).is_err());
        assert!(usable("b", "KV_b".into(), &wanted("b", "KV_b", 1, (2, 12))).unwrap().atomic);
    }

    #[test]
    fn an_old_server_is_not_asked_for_what_it_does_not_know() {
        let json = serde_json::to_string(&wanted("b", "KV_b", 1, (2, 9))).unwrap();
        assert!(!json.contains("allow_atomic") && !json.contains("allow_msg_ttl"), "{json}");
    }
}
