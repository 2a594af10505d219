//! An object on its way to a guest: the guest's reads pull the chunks, so that one which is slow holds one chunk and no
//! more.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use futures::StreamExt;
use wasmtime_wasi::p2::{InputStream, Pollable, StreamError, StreamResult};

use super::{BackendError, MAX_WHOLE, Reading, cut};
use crate::meter::{Kind, LinkMeter};

/// How long a backend may take for one chunk.
const TIMEOUT: Duration = Duration::from_secs(30);

/// What `incoming-value` is, and the stream it becomes.
#[allow(unreachable_pub, reason = "the generated module names it as public")]
pub struct Incoming {
    object: String,
    reading: Reading,
    meter: Arc<LinkMeter>,
    /// Arrived and not yet read.
    here: Bytes,
    /// Bytes that are still to arrive.
    left: u64,
    failed: Option<BackendError>,
}

impl Incoming {
    pub(super) fn new(object: String, reading: Reading, meter: Arc<LinkMeter>) -> Self {
        let left = reading.size;
        Self { object, reading, meter, here: Bytes::new(), left, failed: None }
    }

    pub(super) fn size(&self) -> u64 {
        self.reading.size
    }

    /// The whole of it.
    pub(super) async fn whole(mut self) -> Result<Vec<u8>, BackendError> {
        let size = self.size();
        if size > MAX_WHOLE {
            let why = format!(
                "the value has {size} bytes; at most {MAX_WHOLE} can be had in one piece: use incoming-value-consume-async"
            );
            return Err(BackendError::TooLarge(why));
        }
        let mut all = BytesMut::new();
        while !self.is_over() {
            self.fetch().await;
            all.extend_from_slice(&std::mem::take(&mut self.here));
        }
        match self.failed {
            Some(cause) => Err(cause),
            None => Ok(all.into()),
        }
    }

    fn is_over(&self) -> bool {
        self.failed.is_some() || (self.left == 0 && self.here.is_empty())
    }

    /// Waits for the next chunk where none is here.
    async fn fetch(&mut self) {
        let began = Instant::now();
        while self.here.is_empty() && self.left > 0 && self.failed.is_none() {
            let next = tokio::time::timeout(TIMEOUT, self.reading.chunks.next()).await;
            match next {
                Ok(Some(Ok(chunk))) => {
                    self.left = match self.left.checked_sub(chunk.len() as u64) {
                        Some(left) => left,
                        None => {
                            let why = "more bytes came than it has".to_owned();
                            return self.fail(began, BackendError::Damaged { object: self.object.clone(), why });
                        }
                    };
                    self.here = chunk;
                }
                Ok(Some(Err(cause))) => self.fail(began, cause),
                Ok(None) => self.fail(began, cut(&self.object, self.left)),
                Err(_) => self.fail(began, BackendError::TimedOut { ms: TIMEOUT.as_millis() as u64 }),
            }
        }
    }

    fn fail(&mut self, began: Instant, cause: BackendError) {
        self.meter.ended(began, Some(cause.kind()));
        self.failed = Some(cause);
    }
}

#[async_trait::async_trait]
impl Pollable for Incoming {
    async fn ready(&mut self) {
        self.fetch().await;
    }
}

impl InputStream for Incoming {
    fn read(&mut self, size: usize) -> StreamResult<Bytes> {
        if !self.here.is_empty() {
            return Ok(self.here.split_to(size.min(self.here.len())));
        }
        match &self.failed {
            Some(cause) => Err(StreamError::LastOperationFailed(wasmtime::Error::msg(cause.to_string()))),
            None if self.left == 0 => Err(StreamError::Closed),
            None => Ok(Bytes::new()),
        }
    }
}
