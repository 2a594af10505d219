//! Who reads which content in this process: chunks that are no longer an object's are removed when nobody here reads them
//! any more.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::Serialize;

use super::bucket::Bucket;
use crate::nats::jetstream::{JetStream, JetStreamError};

/// Contents that are being read, by the subject of their chunks.
pub(super) struct Readers {
    js: JetStream,
    open: Mutex<HashMap<String, Open>>,
}

#[derive(Default)]
struct Open {
    readers: usize,
    /// No object has the content any more.
    loose: bool,
}

#[derive(Serialize)]
struct Purge<'a> {
    filter: &'a str,
}

/// One reader, until this is dropped.
pub(super) struct Hold {
    readers: Arc<Readers>,
    bucket: Arc<Bucket>,
    subject: String,
}

impl Readers {
    pub(super) fn new(js: JetStream) -> Arc<Self> {
        Arc::new(Self { js, open: Mutex::default() })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Open>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn hold(self: &Arc<Self>, bucket: &Arc<Bucket>, subject: &str) -> Hold {
        self.lock().entry(subject.to_owned()).or_default().readers += 1;
        Hold { readers: self.clone(), bucket: bucket.clone(), subject: subject.to_owned() }
    }

    /// Removes content that is no object's, now or when its last reader here has ended. What cannot be removed takes
    /// room and does no other harm.
    pub(super) async fn release(&self, bucket: &Bucket, subject: &str) {
        if let Some(open) = self.lock().get_mut(subject) {
            open.loose = true;
            return;
        }
        purge(&self.js, bucket, subject).await;
    }
}

async fn purge(js: &JetStream, bucket: &Bucket, subject: &str) {
    let call = format!("STREAM.PURGE.{}", bucket.stream);
    let purged: Result<serde_json::Value, JetStreamError> = js.call(&call, &Purge { filter: subject }).await;
    if let Err(cause) = purged {
        tracing::warn!(bucket = bucket.name, subject, %cause, "chunks that belong to no object stay in a NATS bucket");
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        let mut open = self.readers.lock();
        let Some(own) = open.get_mut(&self.subject) else { return };
        own.readers = own.readers.saturating_sub(1);
        if own.readers > 0 {
            return;
        }
        let loose = own.loose;
        open.remove(&self.subject);
        drop(open);
        if let (true, Ok(runtime)) = (loose, tokio::runtime::Handle::try_current()) {
            let (js, bucket, subject) =
                (self.readers.js.clone(), self.bucket.clone(), std::mem::take(&mut self.subject));
            runtime.spawn(async move { purge(&js, &bucket, &subject).await });
        }
    }
}
