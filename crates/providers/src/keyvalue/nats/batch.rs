//! Several keys at once, all or none: JetStream's atomic batches, which a server has from 2.12 on. One that has none
//! is not asked to do the parts one by one: that would be another promise than the contract's other providers keep.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::bucket::Bucket;
use super::{Change, Nats, failed, names};
use crate::keyvalue::BackendError;
use crate::nats::jetstream::{JetStreamError, PubAck};
use crate::nats::{Headers, NatsError, Outgoing};

/// The most messages of a batch, where the server's own limit was left as it is.
pub const MAX_BATCH: usize = 1000;

impl Nats {
    /// Changes the keys, all or none; the last change of equal keys counts.
    pub(super) async fn change(&self, bucket: &str, changes: BTreeMap<String, Change>) -> Result<(), BackendError> {
        let n = changes.len();
        if n > MAX_BATCH {
            return Err(BackendError::TooLarge(format!(
                "NATS changes at most {MAX_BATCH} keys at once, all or none; this batch has {n}"
            )));
        }
        if n < 2 {
            for (key, change) in changes {
                self.put(bucket, &key, change, Headers::new()).await?.map_err(failed)?;
            }
            return Ok(());
        }
        if !self.bucket(bucket).await?.atomic {
            return Err(BackendError::Unsupported(format!(
                "this NATS bucket cannot change {n} keys all or none, so nothing was changed: it needs a server of \
                 version 2.12 or later and a stream with `allow_atomic`; change the keys one by one"
            )));
        }
        self.on(bucket, |bucket| self.commit(bucket, &changes)).await?.map(drop).map_err(failed)
    }

    /// Sends the batch; the server answers the last message alone.
    async fn commit(&self, bucket: Arc<Bucket>, changes: &BTreeMap<String, Change>) -> Result<PubAck, JetStreamError> {
        let id = self.js.client.inbox();
        let mut left = changes.len();
        let mut sequence = 0_usize;
        for (key, change) in changes {
            (left, sequence) = (left.saturating_sub(1), sequence.saturating_add(1));
            let mut headers = change.headers(Headers::new(), &bucket)?;
            headers.add("Nats-Batch-Id", &id)?;
            headers.add("Nats-Batch-Sequence", &sequence.to_string())?;
            let subject = format!("{}{}", bucket.prefix, names::encode(key));
            if left == 0 {
                headers.add("Nats-Batch-Commit", "1")?;
                return self.js.publish(&subject, headers, change.payload()).await;
            }
            let subject = self.js.inside(&subject);
            let part = Outgoing { subject, reply: None, headers, payload: change.payload() };
            self.js.client.publish(part).await?;
        }
        Err(NatsError::Invalid("a batch without changes".to_owned()).into())
    }
}
