//! A bucket of the NATS object store and the stream it is: made as the official clients make one, and used where it can
//! do what they rely on.

use serde::Serialize;

use super::{BackendError, failed};
use crate::nats::jetstream::{JetStream, JetStreamError, STREAM_IN_USE, StreamConfig, StreamInfo};

/// What is known of a bucket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Bucket {
    pub(super) name: String,
    pub(super) stream: String,
    /// `$O.<bucket>.C.`
    pub(super) chunks: String,
    /// `$O.<bucket>.M.`
    pub(super) metas: String,
    /// Reads may be answered without the leader: there is one replica, so they see every write.
    pub(super) direct: bool,
}

#[derive(Serialize)]
struct Wanted {
    name: String,
    subjects: Vec<String>,
    retention: &'static str,
    storage: &'static str,
    discard: &'static str,
    num_replicas: u32,
    max_age: u64,
    max_bytes: i64,
    max_msgs: i64,
    max_consumers: i64,
    max_msg_size: i64,
    max_msgs_per_subject: i64,
    allow_rollup_hdrs: bool,
    allow_direct: bool,
}

pub(super) fn stream_of(bucket: &str) -> String {
    format!("OBJ_{bucket}")
}

/// Makes the bucket; `false` where it is there. Two at once may both have made it, since equal streams are one to a server.
pub(super) async fn make(js: &JetStream, bucket: &str, replicas: u32) -> Result<bool, BackendError> {
    let stream = stream_of(bucket);
    if js.stream(&stream).await.map_err(failed)?.is_some() {
        return Ok(false);
    }
    let wanted = Wanted {
        name: stream.clone(),
        subjects: vec![format!("$O.{bucket}.C.>"), format!("$O.{bucket}.M.>")],
        retention: "limits",
        storage: "file",
        discard: "new",
        num_replicas: replicas,
        max_age: 0,
        max_bytes: -1,
        max_msgs: -1,
        max_consumers: -1,
        max_msg_size: -1,
        max_msgs_per_subject: -1,
        allow_rollup_hdrs: true,
        allow_direct: true,
    };
    match js.call::<StreamInfo>(&format!("STREAM.CREATE.{stream}"), &wanted).await {
        Ok(_) => Ok(true),
        Err(JetStreamError::Refused { err_code, .. }) if STREAM_IN_USE.contains(&err_code) => Ok(false),
        Err(cause) => Err(failed(cause)),
    }
}

/// What a stream allows us; refuses one that would not keep what the object store promises.
pub(super) fn usable(name: &str, config: &StreamConfig) -> Result<Bucket, BackendError> {
    let refuse = |why: &str| Err(BackendError::Unavailable(format!("the NATS bucket `{name}` {why}")));
    let (chunks, metas) = (format!("$O.{name}.C."), format!("$O.{name}.M."));
    if ![&chunks, &metas].iter().all(|prefix| config.subjects.contains(&format!("{prefix}>"))) {
        return refuse("is a mirror or no bucket: its stream takes no objects");
    }
    if !config.allow_rollup_hdrs || config.deny_purge {
        return refuse("is sealed: its stream must allow `rollup_hdrs` and purges");
    }
    let direct = config.allow_direct && config.num_replicas <= 1;
    Ok(Bucket { name: name.to_owned(), stream: stream_of(name), chunks, metas, direct })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_bucket_that_can_keep_objects_is_used() {
        let config = |change: fn(&mut StreamConfig)| {
            let mut config = StreamConfig {
                subjects: vec!["$O.b.C.>".to_owned(), "$O.b.M.>".to_owned()],
                num_replicas: 1,
                allow_direct: true,
                allow_rollup_hdrs: true,
                ..StreamConfig::default()
            };
            change(&mut config);
            usable("b", &config)
        };
        let plain = config(|_| {}).unwrap();
        assert_eq!((plain.stream.as_str(), plain.metas.as_str(), plain.direct), ("OBJ_b", "$O.b.M.", true));
        assert!(!config(|c| c.num_replicas = 3).unwrap().direct, "a replica may be behind");
        assert!(!config(|c| c.allow_direct = false).unwrap().direct);
        let spoiled: [fn(&mut StreamConfig); 3] =
            [|c| c.subjects.clear(), |c| c.allow_rollup_hdrs = false, |c| c.deny_purge = true];
        for change in spoiled {
            assert!(config(change).is_err());
        }
    }
}
