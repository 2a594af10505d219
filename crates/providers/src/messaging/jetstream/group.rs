//! A queue group as a durable consumer: found, brought up to date or made. One that was removed under us is made again
//! from where everything before it was known to be handled.

use std::sync::Arc;

use model::messaging::{Pattern, Subscription};
use model::stream::Deliver;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::stream::Stream;
use super::{BackendError, Jetstream, failed, lock};
use crate::nats::jetstream::{JetStreamError, NO_CONSUMER};

/// How long the server waits for a word about a message before it gives it to another host, nanoseconds.
const ACK_WAIT_NS: u64 = 30_000_000_000;
/// The most messages that are given out and not handled, whether they are tried now or wait to be tried again.
const MAX_ACK_PENDING: u64 = 10_000;

/// A durable consumer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Group {
    pub(super) stream: String,
    pub(super) durable: Arc<str>,
    pub(super) taken: Taken,
}

/// How a group takes its messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Taken {
    /// As many as there is room for.
    Messages {
        /// The server's consumers take several patterns.
        several: bool,
    },
    /// One after another, without bodies: which subjects there were is all that is wanted.
    OneByOne,
}

#[derive(Deserialize)]
struct ConsumerInfo {
    config: Map<String, Value>,
    #[serde(default)]
    ack_floor: Floor,
}

#[derive(Default, Deserialize)]
struct Floor {
    #[serde(default)]
    stream_seq: u64,
}

#[derive(Serialize)]
struct Create<'a> {
    stream_name: &'a str,
    config: &'a Map<String, Value>,
}

/// What a consumer of ours has, whenever it was made. What is not there is taken away.
fn lasting(patterns: &[Pattern], taken: Taken) -> Vec<(&'static str, Option<Value>)> {
    let filters: Vec<&str> = patterns.iter().map(Pattern::as_str).collect();
    let (one, many) = match filters.as_slice() {
        [one] => (Some(json!(one)), None),
        _ if taken == (Taken::Messages { several: true }) => (None, Some(json!(filters))),
        _ => (None, None),
    };
    vec![
        ("filter_subject", one),
        ("filter_subjects", many),
        ("ack_wait", Some(json!(ACK_WAIT_NS))),
        // The cap is ours to keep: the server would stop without a word to anybody.
        ("max_deliver", Some(json!(-1))),
        ("max_ack_pending", Some(json!(if taken == Taken::OneByOne { 1 } else { MAX_ACK_PENDING }))),
        ("headers_only", (taken == Taken::OneByOne).then_some(json!(true))),
    ]
}

/// What is to change of `config`; `None` where nothing is.
fn changed(config: &Map<String, Value>, lasting: Vec<(&'static str, Option<Value>)>) -> Option<Map<String, Value>> {
    let mut new = config.clone();
    for (key, value) in lasting {
        match value {
            Some(value) => drop(new.insert(key.to_owned(), value)),
            None => drop(new.remove(key)),
        }
    }
    (new != *config).then_some(new)
}

impl Jetstream {
    fn durable(&self, subscription: &Subscription) -> Arc<str> {
        let group = &subscription.group;
        format!("{}_{}_{}", self.0.tenant, group.app, group.name.replace('.', "_")).into()
    }

    async fn consumer(&self, group: &Group) -> Result<Option<ConsumerInfo>, BackendError> {
        match self.0.js.call(&format!("CONSUMER.INFO.{}.{}", group.stream, group.durable), &()).await {
            Ok(info) => Ok(Some(info)),
            Err(JetStreamError::Refused { err_code: NO_CONSUMER, .. }) => Ok(None),
            Err(cause) => Err(failed(cause)),
        }
    }

    /// Finds or makes the consumer of the subscription.
    pub(super) async fn group(
        &self,
        home: &Stream,
        subscription: &Subscription,
        taken: Taken,
    ) -> Result<Group, BackendError> {
        let group = Group { stream: home.name.clone(), durable: self.durable(subscription), taken };
        let lasting = lasting(&subscription.patterns, taken);
        let config = match self.consumer(&group).await? {
            Some(found) => {
                if found.config.get("ack_policy") != Some(&json!("explicit"))
                    || found.config.contains_key("deliver_subject")
                {
                    return Err(BackendError::Unavailable(format!(
                        "the consumer `{}` of the stream `{}` is no pull consumer with explicit acknowledgement, so somebody else made it: remove it",
                        group.durable, group.stream
                    )));
                }
                self.note(&group, found.ack_floor.stream_seq);
                changed(&found.config, lasting)
            }
            None => Some(self.begin(home, subscription, &group, lasting)),
        };
        if let Some(config) = config {
            let create = Create { stream_name: &group.stream, config: &config };
            let call = format!("CONSUMER.DURABLE.CREATE.{}.{}", group.stream, group.durable);
            let made: ConsumerInfo = self.0.js.call(&call, &create).await.map_err(failed)?;
            self.note(&group, made.ack_floor.stream_seq);
        }
        Ok(group)
    }

    /// The configuration of a consumer that is not there.
    fn begin(
        &self,
        home: &Stream,
        subscription: &Subscription,
        group: &Group,
        lasting: Vec<(&'static str, Option<Value>)>,
    ) -> Map<String, Value> {
        let mut config = Map::new();
        let description = format!("sidereal: component {} of app {}", subscription.component, subscription.group.app);
        let floor = lock(&self.0.floors).get(&*group.durable).copied();
        let start = match floor {
            _ if home.workqueue => json!("all"),
            Some(_) => json!("by_start_sequence"),
            None if self.0.settings.deliver == Deliver::All => json!("all"),
            None => json!("new"),
        };
        if let Some(floor) = floor.filter(|_| !home.workqueue) {
            tracing::warn!(
                consumer = &*group.durable,
                stream = group.stream,
                "the consumer of a queue group was removed; it is made again, and some messages may come twice"
            );
            // Of a stream that was made anew the old numbers say nothing.
            config.insert("opt_start_seq".to_owned(), json!(floor.min(home.last_seq).saturating_add(1)));
        }
        for (key, value) in [
            ("durable_name", json!(&*group.durable)),
            ("description", json!(description)),
            ("deliver_policy", start),
            ("ack_policy", json!("explicit")),
            ("replay_policy", json!("instant")),
        ] {
            config.insert(key.to_owned(), value);
        }
        config.extend(lasting.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value?))));
        config
    }

    fn note(&self, group: &Group, floor: u64) {
        lock(&self.0.floors).insert(group.durable.to_string(), floor);
    }

    /// Asks the server up to where everything is handled. `false` where the consumer is gone.
    pub(super) async fn refresh(&self, group: &Group) -> bool {
        match self.consumer(group).await {
            Ok(Some(info)) => self.note(group, info.ack_floor.stream_seq),
            Ok(None) => return false,
            Err(cause) => tracing::debug!(%cause, consumer = &*group.durable, "a consumer cannot be looked at"),
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_consumer_is_changed_where_it_differs_and_only_there() {
        let patterns = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect::<Vec<Pattern>>();
        let config = |value: Value| value.as_object().unwrap().clone();
        let mut found =
            config(json!({ "durable_name": "d", "filter_subject": "a", "max_deliver": 3, "num_replicas": 0 }));
        let new = changed(&found, lasting(&patterns(&["a"]), Taken::Messages { several: false })).unwrap();
        assert_eq!(
            (&new["max_deliver"], &new["filter_subject"], &new["num_replicas"]),
            (&json!(-1), &json!("a"), &json!(0))
        );
        found = new;
        assert_eq!(changed(&found, lasting(&patterns(&["a"]), Taken::Messages { several: true })), None);
        let two = changed(&found, lasting(&patterns(&["a", "b"]), Taken::Messages { several: true })).unwrap();
        assert_eq!((two.get("filter_subject"), &two["filter_subjects"]), (None, &json!(["a", "b"])));
        let one = changed(&two, lasting(&patterns(&["b"]), Taken::Messages { several: true })).unwrap();
        assert_eq!((&one["filter_subject"], one.get("filter_subjects")), (&json!("b"), None));
    }
}
