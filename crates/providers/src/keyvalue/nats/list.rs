//! The keys of a bucket, page by page, in the order of their last change. A key that changes meanwhile moves to the
//! end, so a listing that goes on from where it stood misses none, and may name one twice.

use std::collections::HashSet;
use std::time::Duration;

use super::bucket::Bucket;
use super::{failed, marker, names};
use crate::keyvalue::{BackendError, PAGE, Page};
use crate::nats::jetstream::{JetStream, Place};
use crate::nats::reader::Reader;
use crate::nats::{Buffer, Message, NatsError, TIMEOUT};

/// Messages asked for at once.
const BATCH: usize = PAGE as usize;
/// Batches of one page: a bucket may hold nothing but markers of deleted keys for long.
const BATCHES: u32 = 20;

/// One page from `cursor` on, which is the sequence that comes next.
pub(super) async fn page(js: &JetStream, bucket: &Bucket, cursor: Option<&str>) -> Result<Page, BackendError> {
    let bad = || BackendError::Unavailable("the cursor of the listing is none of a NATS bucket".to_owned());
    let start = cursor.map_or(Ok(1), |cursor| cursor.parse::<u64>().map_err(|_| bad()))?.max(1);
    let filter = format!("{}>", bucket.prefix);
    let reader = Reader::open(js, &bucket.stream, &filter, start, true).await.map_err(failed)?;
    let page = read(js, bucket, &reader, start).await;
    js.client.publish(reader.end(js)).await.ok();
    page
}

async fn read(js: &JetStream, bucket: &Bucket, reader: &Reader, start: u64) -> Result<Page, BackendError> {
    let mut page = Page::default();
    let mut seen = HashSet::new();
    let mut at = Place { delivered: 0, seq: start.saturating_sub(1), pending: reader.pending };
    let inbox = js.client.inbox();
    let buffer = Buffer { messages: BATCH + 16, bytes: 64 << 20 };
    let mut arriving = js.client.subscribe(&inbox, None, buffer).await.map_err(|cause| failed(cause.into()))?;
    for _ in 0..BATCHES {
        if at.pending == 0 || page.keys.len() >= PAGE as usize {
            break;
        }
        let ask = reader.ask(js, BATCH, &inbox).map_err(|cause| failed(cause.into()))?;
        js.client.publish(ask).await.map_err(|cause| failed(cause.into()))?;
        for _ in 0..BATCH {
            let message = arrives(arriving.next()).await?;
            if message.status().is_some() {
                break;
            }
            let place = message.reply.as_deref().and_then(Place::read);
            at = place.ok_or_else(|| BackendError::Unavailable("JetStream says no place of a message".to_owned()))?;
            if let Some(key) = key(bucket, &message)
                && seen.insert(key.clone())
            {
                page.keys.push(key);
            }
            if at.pending == 0 {
                break;
            }
        }
        if arriving.dropped() > 0 {
            return Err(BackendError::Unavailable("a listing came faster than it could be read".to_owned()));
        }
    }
    page.cursor = (at.pending > 0).then(|| at.seq.saturating_add(1).to_string());
    Ok(page)
}

async fn arrives(next: impl Future<Output = Result<Message, NatsError>>) -> Result<Message, BackendError> {
    // The reader lives on one connection's subscription; where that is lost nothing more may come.
    let limit: Duration = TIMEOUT;
    let late = BackendError::TimedOut { ms: limit.as_millis() as u64 };
    tokio::time::timeout(limit, next).await.map_err(|_| late)?.map_err(|cause| failed(cause.into()))
}

/// The key a message is the value of; `None` for a marker, and for a key that somebody else named.
fn key(bucket: &Bucket, message: &Message) -> Option<String> {
    if marker(&message.headers) {
        return None;
    }
    names::decode(message.subject.strip_prefix(&bucket.prefix)?)
}
