//! An object on its way in: chunks of the size that the official clients use, a few on their way at once, then its
//! description.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use futures::FutureExt;
use futures::future::BoxFuture;
use sha2::{Digest as _, Sha256};

use super::bucket::Bucket;
use super::meta::{Meta, Options, digest};
use super::{Answer, BackendError, MAX_UPLOADS, Nats, Upload, busy, failed, now, unheard};
use crate::nats::Headers;
use crate::nats::jetstream::{JetStreamError, Storing};
use crate::share::Later;

/// The size of a chunk, bytes; only the last is smaller.
const PIECE: usize = 128 << 10;
/// Chunks on their way at once.
const WINDOW: usize = 8;

pub(super) struct Sending {
    nats: Nats,
    bucket: Arc<Bucket>,
    container: String,
    object: String,
    /// Of this content alone.
    id: String,
    hash: Sha256,
    rest: BytesMut,
    size: u64,
    chunks: u64,
    under_way: VecDeque<Storing>,
    /// Nothing is left to be removed.
    over: bool,
    /// Taken with the first bytes: who has written none yet holds nobody up.
    place: Later,
}

impl Sending {
    pub(super) fn new(nats: Nats, bucket: Arc<Bucket>, container: &str, object: &str, place: Later) -> Self {
        let inbox = nats.0.js.client.inbox();
        let id = inbox.rsplit('.').next().unwrap_or_default().to_owned();
        Self {
            nats,
            bucket,
            container: container.to_owned(),
            object: object.to_owned(),
            id,
            hash: Sha256::new(),
            rest: BytesMut::new(),
            size: 0,
            chunks: 0,
            under_way: VecDeque::new(),
            over: false,
            place,
        }
    }

    fn subject(&self) -> String {
        format!("{}{}", self.bucket.chunks, self.id)
    }

    fn failed(&self, cause: JetStreamError) -> BackendError {
        if unheard(&cause) {
            return BackendError::NoContainer(self.container.clone());
        }
        failed(cause)
    }

    /// Sends one chunk, after at most [`WINDOW`] that are not stored yet.
    async fn piece(&mut self, piece: Bytes) -> Result<(), BackendError> {
        self.settled(WINDOW - 1).await?;
        self.chunks += 1;
        let sent = self.nats.0.js.begin(&self.subject(), Headers::new(), piece).await;
        self.under_way.push_back(sent.map_err(|cause| self.failed(cause))?);
        Ok(())
    }

    /// Waits until no more than `most` chunks are not stored yet.
    async fn settled(&mut self, most: usize) -> Result<(), BackendError> {
        while self.under_way.len() > most {
            if let Some(first) = self.under_way.pop_front() {
                first.stored().await.map_err(|cause| self.failed(cause))?;
            }
        }
        Ok(())
    }

    async fn complete(&mut self) -> Result<(), BackendError> {
        if !self.rest.is_empty() {
            let rest = self.rest.split().freeze();
            self.piece(rest).await?;
        }
        self.settled(0).await?;
        let meta = Meta {
            name: self.object.clone(),
            options: Some(Options { link: None, max_chunk_size: Some(PIECE as u64) }),
            bucket: self.bucket.name.clone(),
            nuid: self.id.clone(),
            size: self.size,
            mtime: now(),
            chunks: self.chunks,
            digest: digest(&self.hash.finalize_reset()),
            deleted: false,
        };
        // Whoever drops this from here on does not know whether the description is there: the chunks stay, for it may be.
        self.over = true;
        let described = self.nats.describe(&self.bucket, &self.object, |_| Some(meta.clone())).await;
        described.map(drop).map_err(|cause| self.failed(cause))
    }

    /// Nobody refers to the chunks: they go.
    async fn remove(&mut self) {
        self.over = true;
        let (under_way, subject) = (std::mem::take(&mut self.under_way), self.subject());
        if self.chunks > 0 {
            remove(self.nats.clone(), self.bucket.clone(), subject, under_way).await;
        }
    }
}

async fn remove(nats: Nats, bucket: Arc<Bucket>, subject: String, under_way: VecDeque<Storing>) {
    for one in under_way {
        // One that is stored after the others were removed would stay.
        one.stored().await.ok();
    }
    nats.0.readers.release(&bucket, &subject).await;
}

impl Upload for Sending {
    fn write(&mut self, chunk: Bytes) -> Answer<'_, ()> {
        async move {
            if !self.place.take() {
                return Err(busy(MAX_UPLOADS));
            }
            self.hash.update(&chunk);
            self.size += chunk.len() as u64;
            self.rest.extend_from_slice(&chunk);
            while self.rest.len() >= PIECE {
                let piece = self.rest.split_to(PIECE).freeze();
                self.piece(piece).await?;
            }
            Ok(())
        }
        .boxed()
    }

    fn finish(mut self: Box<Self>) -> Answer<'static, ()> {
        async move {
            let done = self.complete().await;
            match &done {
                // The same where it ends without an answer.
                Ok(()) | Err(BackendError::Unavailable(_) | BackendError::TimedOut { .. }) => self.over = true,
                Err(_) => self.remove().await,
            }
            done
        }
        .boxed()
    }

    fn abandon(mut self: Box<Self>) -> BoxFuture<'static, ()> {
        async move { self.remove().await }.boxed()
    }
}

impl Drop for Sending {
    fn drop(&mut self) {
        if self.over || self.chunks == 0 {
            return;
        }
        let (under_way, subject) = (std::mem::take(&mut self.under_way), self.subject());
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(remove(self.nats.clone(), self.bucket.clone(), subject, under_way));
        }
    }
}
