//! Changes of a bucket, from the stream that it is: a durable consumer for each watch, which every host pulls from. The
//! server gives each change to one of them, and remembers how far everything was told.

use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use model::messaging::{MessagingError, Pattern, Subscription};
use model::stream::StreamSettings;
use model::watch::Keys;

use super::super::follow::{broker_says, refuses};
use super::{Nats, names};
use crate::messaging::jetstream::Jetstream;
use crate::messaging::{Answer, Backend, BackendError, Deliveries, Delivery, Message, Outcome};

/// Changes of some keys of a bucket, as a broker that takes none from anybody.
pub struct Follower {
    nats: Arc<Nats>,
    bucket: String,
    keys: Keys,
}

impl Nats {
    /// Who is told of changes of `keys` of `bucket`.
    pub fn follow(self: &Arc<Self>, bucket: &str, keys: Keys) -> Follower {
        Follower { nats: self.clone(), bucket: bucket.to_owned(), keys }
    }
}

/// What of the bucket the server is asked for. It knows whole tokens and whole keys; what begins like a key is sorted
/// out when it is here.
fn pattern(prefix: &str, keys: &Keys) -> Result<Pattern, BackendError> {
    let one = match keys {
        Keys::One(key) => format!("{prefix}{}", names::encode(key)).parse().ok(),
        Keys::Beginning(_) => None,
    };
    if let Some(one) = one {
        return Ok(one);
    }
    format!("{prefix}>").parse().map_err(|cause: MessagingError| BackendError::Refused(cause.to_string()))
}

impl Backend for Follower {
    fn publish(&self, _: Message) -> Answer<'_, ()> {
        refuses()
    }

    fn request(&self, _: String, _: Vec<u8>, _: Duration) -> Answer<'_, Message> {
        refuses()
    }

    fn subscribe(&self, subscription: Arc<Subscription>) -> Answer<'_, Box<dyn Deliveries>> {
        async move {
            // Made anew where somebody removed it.
            self.nats.known().remove(&self.bucket);
            let bucket = self.nats.bucket(&self.bucket).await.map_err(broker_says)?;
            let wanted = Subscription {
                patterns: vec![pattern(&bucket.prefix, &self.keys)?],
                ..Subscription::clone(&subscription)
            };
            let settings = StreamSettings { name: bucket.stream.clone(), ..StreamSettings::default() };
            let stream = Jetstream::over(self.nats.js.clone(), self.nats.tenant.clone(), settings, self.nats.replicas);
            let arriving = stream.one_by_one(Arc::new(wanted)).await?;
            Ok(Box::new(Changes { arriving, prefix: bucket.prefix.clone(), keys: self.keys.clone() })
                as Box<dyn Deliveries>)
        }
        .boxed()
    }
}

struct Changes {
    arriving: Box<dyn Deliveries>,
    prefix: String,
    keys: Keys,
}

impl Changes {
    fn key(&self, subject: &str) -> Option<String> {
        subject.strip_prefix(&self.prefix).and_then(names::decode).filter(|key| self.keys.has(key))
    }
}

impl Deliveries for Changes {
    fn next(&mut self) -> BoxFuture<'_, Option<Result<Delivery, BackendError>>> {
        async move {
            loop {
                let mut delivery = match self.arriving.next().await? {
                    Ok(delivery) => delivery,
                    Err(cause) => return Some(Err(cause)),
                };
                if let Some(key) = self.key(&delivery.message.subject) {
                    delivery.message = Message { subject: "watch".to_owned(), body: key.into_bytes(), reply_to: None };
                    return Some(Ok(delivery));
                }
                // Where this is not heard it comes again, and is passed over again.
                delivery.settle.settle(Outcome::Done).await.ok();
            }
        }
        .boxed()
    }

    fn stop(&mut self) {
        self.arriving.stop();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_server_is_asked_for_a_key_or_for_the_bucket() {
        let asked = |keys: &str| pattern("$KV.b.", &Keys::of(keys)).unwrap().as_str().to_owned();
        assert_eq!(asked("a/b c"), "$KV.b.a/b=20c");
        assert_eq!((asked("a*"), asked("*")), ("$KV.b.>".to_owned(), "$KV.b.>".to_owned()));
        assert_eq!(asked(&"k".repeat(300)), "$KV.b.>", "too long for a subject of ours");
    }
}
