//! The stream that the provider's settings name, found or made; and the one for what was put away.

use std::sync::Arc;
use std::time::{Duration, Instant};

use model::AppName;
use model::messaging::{DEAD_LETTER, Pattern, Subscription, covers};
use serde::{Deserialize, Serialize};

use super::{BackendError, Jetstream, failed, lock};
use crate::nats::jetstream::StreamInfo;

/// How long a server knows the ids of messages, nanoseconds: what it does by itself.
const DUPLICATES_NS: u64 = 120_000_000_000;
/// The first release whose consumers take several patterns.
const SEVERAL: (u32, u32) = (2, 10);

/// What is known of a stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Stream {
    pub(super) name: String,
    subjects: Vec<String>,
    /// What was handled is gone, and no two groups take the same.
    pub(super) workqueue: bool,
    /// When it was looked at.
    pub(super) last_seq: u64,
    /// How long it knows the id of a message.
    pub(super) window: Duration,
}

impl Stream {
    fn of(name: &str, info: &StreamInfo) -> Self {
        Self {
            name: name.to_owned(),
            subjects: info.config.subjects.clone(),
            workqueue: info.config.retention == "workqueue",
            last_seq: info.state.last_seq,
            window: Duration::from_nanos(match info.config.duplicate_window {
                0 => DUPLICATES_NS,
                known => known,
            }),
        }
    }

    /// Whether it keeps every message that the subject or pattern means.
    pub(super) fn takes(&self, subject: &str) -> bool {
        self.subjects.iter().any(|own| covers(own, subject))
    }

    /// Says that it does not.
    pub(super) fn missing(&self, subject: &str) -> BackendError {
        BackendError::Refused(format!(
            "the stream `{}` does not keep messages of `{subject}`, only of {}: add it to the stream's subjects, \
             or use a provider of type `messaging-nats` for it",
            self.name,
            self.listed()
        ))
    }

    fn listed(&self) -> String {
        let shown: Vec<String> = self.subjects.iter().take(8).map(|subject| format!("`{subject}`")).collect();
        match shown.as_slice() {
            [] => "no subject at all (it is a mirror, or fed from other streams)".to_owned(),
            some => some.join(", "),
        }
    }
}

#[derive(Serialize)]
struct Wanted<'a> {
    name: &'a str,
    subjects: Vec<&'a str>,
    retention: &'a str,
    storage: &'a str,
    discard: &'a str,
    num_replicas: u32,
    max_age: u64,
    max_bytes: i64,
    max_msgs: i64,
    max_consumers: i64,
    max_msg_size: i64,
    duplicate_window: u64,
    allow_direct: bool,
}

#[derive(Serialize)]
struct BySubject<'a> {
    subject: &'a str,
}

#[derive(Deserialize)]
struct Names {
    #[serde(default)]
    streams: Option<Vec<String>>,
}

impl Jetstream {
    /// The stream of the settings, looked for once and made where it may be.
    pub(super) async fn stream(&self) -> Result<Arc<Stream>, BackendError> {
        if let Some((known, _)) = lock(&self.0.known).clone() {
            return Ok(known);
        }
        let settings = &self.0.settings;
        let info = match self.0.js.stream(&settings.name).await.map_err(failed)? {
            Some(found) => found,
            None if settings.subjects.is_empty() => {
                return Err(BackendError::Unavailable(format!(
                    "there is no stream `{0}`: make it (`nats stream add {0}`), or give the provider `subjects`, with which it is made",
                    settings.name
                )));
            }
            None => self.make(&settings.name, settings.subjects.iter().map(Pattern::as_str).collect()).await?,
        };
        let stream = Stream::of(&settings.name, &info);
        if let Some(other) = settings.subjects.iter().find(|subject| !stream.takes(subject.as_str())) {
            return Err(BackendError::Unavailable(format!(
                "the stream `{}` is there and keeps {}, and not `{other}` as the provider's `subjects` say: change one of the two",
                stream.name,
                stream.listed()
            )));
        }
        let stream = Arc::new(stream);
        *lock(&self.0.known) = Some((stream.clone(), Instant::now()));
        Ok(stream)
    }

    async fn make(&self, name: &str, subjects: Vec<&str>) -> Result<StreamInfo, BackendError> {
        let settings = &self.0.settings;
        let own = name == settings.name;
        let max_age =
            settings.max_age.filter(|_| own).map_or(0, |age| age.0.saturating_mul(1_000_000).min(i64::MAX as u64));
        let wanted = Wanted {
            name,
            subjects,
            retention: if own { settings.retention.as_str() } else { "limits" },
            storage: "file",
            // Where only what is not handled yet is kept, what is new is refused before what is old is lost.
            discard: if own && settings.retention == model::stream::Retention::Limits { "old" } else { "new" },
            num_replicas: self.0.replicas,
            max_age,
            max_bytes: settings.max_bytes.filter(|_| own).map_or(-1, |size| i64::try_from(size.0).unwrap_or(i64::MAX)),
            max_msgs: -1,
            max_consumers: -1,
            max_msg_size: -1,
            duplicate_window: if max_age == 0 { DUPLICATES_NS } else { max_age.min(DUPLICATES_NS) },
            allow_direct: true,
        };
        self.0.js.make_stream(name, &wanted).await.map_err(failed)
    }

    /// Whether a consumer may have several patterns; refuses a subscription that needs it where it may not.
    pub(super) async fn several(&self, subscription: &Subscription) -> Result<bool, BackendError> {
        let info = self.client().check().await.map_err(super::refused)?;
        let several = info.release() >= SEVERAL;
        if several || subscription.patterns.len() < 2 {
            return Ok(several);
        }
        Err(BackendError::Refused(format!(
            "the NATS server is of version {}, whose consumers take one subscription each: give every one a link of its own, \
             or use a server of version 2.10 or later",
            info.version
        )))
    }

    /// The stream that has what is subscribed to: that of the settings, or for what was put away the one that has it.
    pub(super) async fn home(&self, subscription: &Subscription) -> Result<Arc<Stream>, BackendError> {
        let stream = self.stream().await?;
        let mut missing = subscription.patterns.iter().filter(|pattern| !stream.takes(pattern.as_str()));
        let Some(first) = missing.next() else { return Ok(stream) };
        let tokens: Vec<&str> = first.as_str().split('.').collect();
        if let [DEAD_LETTER, app, _, ..] = tokens.as_slice()
            && let Ok(app) = app.parse::<AppName>()
        {
            let dead = self.dead_letters_of(&app).await?;
            return match subscription.patterns.iter().find(|pattern| !dead.takes(pattern.as_str())) {
                None => Ok(dead),
                Some(_) => Err(BackendError::Refused(format!(
                    "`{first}` is kept by the stream `{}` and the link's other subscriptions by `{}`: give each a link of its own",
                    dead.name, stream.name
                ))),
            };
        }
        Err(stream.missing(first.as_str()))
    }

    /// Makes sure that what the group cannot handle has a place.
    pub(super) async fn dead_letters(&self, subscription: &Subscription) -> Result<(), BackendError> {
        let group = &subscription.group;
        let all = format!("{DEAD_LETTER}.{}.{}.{}.>", group.app, subscription.component, subscription.label);
        if self.stream().await?.takes(&all) {
            return Ok(());
        }
        self.dead_letters_of(&group.app).await.map(drop)
    }

    /// The stream that has what the app has put away, made where there is none.
    async fn dead_letters_of(&self, app: &AppName) -> Result<Arc<Stream>, BackendError> {
        let subject = format!("{DEAD_LETTER}.{app}.>");
        let names: Names = self.0.js.call("STREAM.NAMES", &BySubject { subject: &subject }).await.map_err(failed)?;
        for name in names.streams.unwrap_or_default() {
            let info = self.0.js.stream(&name).await.map_err(failed)?;
            let found = info.map(|info| Stream::of(&name, &info)).filter(|found| found.takes(&subject));
            if let Some(found) = found {
                return Ok(Arc::new(found));
            }
        }
        let name = format!("dead-letter_{}_{app}", self.0.tenant);
        let info = self.make(&name, vec![&subject]).await?;
        Ok(Arc::new(Stream::of(&name, &info)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_says_what_it_does_not_keep() {
        let stream = |subjects: &[&str]| Stream {
            name: "ORDERS".to_owned(),
            subjects: subjects.iter().map(|one| (*one).to_owned()).collect(),
            workqueue: false,
            last_seq: 0,
            window: Duration::from_nanos(DUPLICATES_NS),
        };
        let orders = stream(&["orders.*", "jobs.>"]);
        assert!(orders.takes("orders.new") && orders.takes("jobs.>") && orders.takes("jobs.a.b"));
        assert!(!orders.takes("orders.>") && !orders.takes("orders.new.late") && !orders.takes(">"));
        let said = orders.missing("invoices.new").to_string();
        assert!(said.contains("`ORDERS`") && said.contains("`orders.*`, `jobs.>`") && said.contains("`invoices.new`"));
        assert!(stream(&[]).missing("a").to_string().contains("mirror"));
    }
}
