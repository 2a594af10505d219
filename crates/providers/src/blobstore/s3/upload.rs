//! An object on its way up: a small one in one request, a larger one in parts.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use futures::FutureExt;
use futures::future::BoxFuture;
use object_store::aws::AmazonS3;
use object_store::path::Path;
use object_store::{MultipartUpload, ObjectStoreExt as _};

use super::MAX_UPLOADS;
use super::answer::guarded;
use crate::blobstore::{Answer, BackendError, Upload, busy};
use crate::breaker::Breaker;
use crate::share::Later;

/// What goes up in one request: S3 takes no smaller part but the last.
const PART: usize = 5 << 20;

/// An object on its way up.
pub(super) struct Sending {
    pub(super) store: AmazonS3,
    pub(super) breaker: Arc<Breaker<BackendError>>,
    pub(super) path: Path,
    /// What the next request carries.
    pub(super) part: BytesMut,
    /// Begun with the first part: an object of one part needs none.
    pub(super) parts: Option<Box<dyn MultipartUpload>>,
    /// Taken with the first bytes: who has written none yet holds nobody up.
    pub(super) place: Later,
}

impl Sending {
    /// Sends the part that is full, or the last one.
    async fn send(&mut self, part: Bytes) -> Result<(), BackendError> {
        if self.parts.is_none() {
            self.parts = Some(guarded(&self.breaker, self.store.put_multipart(&self.path)).await?);
        }
        if let Some(parts) = &mut self.parts {
            guarded(&self.breaker, parts.put_part(part.into())).await?;
        }
        Ok(())
    }
}

impl Sending {
    async fn complete(&mut self) -> Result<(), BackendError> {
        if let Some(parts) = &mut self.parts {
            guarded(&self.breaker, parts.complete()).await?;
        }
        Ok(())
    }
}

impl Upload for Sending {
    fn write(&mut self, chunk: Bytes) -> Answer<'_, ()> {
        async move {
            if !self.place.take() {
                return Err(busy(MAX_UPLOADS));
            }
            self.part.extend_from_slice(&chunk);
            while self.part.len() > PART {
                let part = self.part.split_to(PART).freeze();
                self.send(part).await?;
            }
            Ok(())
        }
        .boxed()
    }

    fn finish(mut self: Box<Self>) -> Answer<'static, ()> {
        async move {
            let last = self.part.split().freeze();
            if self.parts.is_none() {
                guarded(&self.breaker, self.store.put(&self.path, last.into())).await?;
                return Ok(());
            }
            let sent = match self.send(last).await {
                Ok(()) => self.complete().await,
                failed => failed,
            };
            if sent.is_err() {
                self.abandon().await;
            }
            sent
        }
        .boxed()
    }

    fn abandon(mut self: Box<Self>) -> BoxFuture<'static, ()> {
        async move {
            if let Some(parts) = &mut self.parts
                && let Err(failed) = guarded(&self.breaker, parts.abort()).await
            {
                let cause = BackendError::from(failed);
                tracing::warn!(%cause, "the parts of an unfinished object stay in the bucket until its own rules remove them");
            }
        }
        .boxed()
    }
}
