//! An object on its way out: one chunk after the other as it is asked for, and of a whole object the last one only if all
//! of them hash to what was written.

use std::sync::Arc;

use bytes::Bytes;
use futures::StreamExt;
use sha2::{Digest as _, Sha256};

use super::bucket::Bucket;
use super::meta::Meta;
use super::readers::Hold;
use super::{BackendError, Nats, Reading, failed};
use crate::blobstore::clamp;
use crate::nats::jetstream::{JetStream, JetStreamError, Which};
use crate::nats::scan::Scan;
use crate::per_link::LinkId;

/// How often an object that was replaced while it was opened is opened again.
const TRIES: u32 = 8;
/// A range that begins after more bytes than this is looked for by the sizes of the chunks before it.
const FAR: u64 = 1 << 20;

/// Where a reader stands.
struct Reader {
    js: JetStream,
    bucket: Arc<Bucket>,
    object: String,
    subject: String,
    /// The sequence from which the next chunk is looked for.
    next: u64,
    /// Bytes before the first that is wanted, from there.
    skip: u64,
    /// Bytes that are wanted.
    left: u64,
    /// Of a whole object: what was read, and what it should be.
    hash: Option<(Sha256, Vec<u8>)>,
    first: Option<Bytes>,
    /// In whose name it goes on where its chunks are asked for.
    link: Option<LinkId>,
    _hold: Hold,
}

impl Nats {
    pub(super) async fn open(
        &self,
        container: &str,
        object: &str,
        start: u64,
        end: u64,
    ) -> Result<Reading, BackendError> {
        let gone = || BackendError::NoObject { container: container.to_owned(), object: object.to_owned() };
        let mut tries = 1;
        loop {
            let found = self.existing(container, object).await?.ok_or_else(gone)?;
            let (offset, size) = clamp(start, end, found.meta.size)?;
            if size == 0 {
                return Ok(Reading { size, chunks: futures::stream::empty().boxed() });
            }
            let bucket = self.bucket(container).await?;
            let mut reader = self.reader(bucket, found.meta, offset, size);
            match reader.begin().await {
                Ok(()) => {
                    let chunks = futures::stream::try_unfold(reader, |mut reader| async move {
                        let chunk = LinkId::carried(reader.link.clone(), reader.chunk()).await?;
                        Ok(chunk.map(|chunk| (chunk, reader)))
                    });
                    return Ok(Reading { size, chunks: chunks.boxed() });
                }
                // Replaced since its description was read.
                Err(BackendError::Damaged { .. }) if tries < TRIES => tries += 1,
                Err(cause) => return Err(cause),
            }
        }
    }

    fn reader(&self, bucket: Arc<Bucket>, meta: Meta, offset: u64, size: u64) -> Reader {
        let subject = format!("{}{}", bucket.chunks, meta.nuid);
        let whole = offset == 0 && size == meta.size;
        Reader {
            js: self.0.js.clone(),
            _hold: self.0.readers.hold(&bucket, &subject),
            bucket,
            object: meta.name.clone(),
            subject,
            next: 1,
            skip: offset,
            left: size,
            hash: meta.sha256().filter(|_| whole).map(|expected| (Sha256::new(), expected)),
            first: None,
            link: LinkId::calling(),
        }
    }
}

impl Reader {
    /// Finds the first chunk that is wanted: says early what is not there.
    async fn begin(&mut self) -> Result<(), BackendError> {
        if self.skip > FAR {
            self.seek().await.map_err(failed)?;
        }
        self.first = Some(self.wanted().await?);
        Ok(())
    }

    /// Passes over chunks by their sizes alone.
    async fn seek(&mut self) -> Result<(), JetStreamError> {
        let mut scan = Scan::open(&self.js, &self.bucket.stream, &self.subject, 1, true).await?;
        while let Some((message, place)) = scan.next().await? {
            let size = message.headers.get("Nats-Msg-Size").and_then(|size| size.parse::<u64>().ok());
            let size = size.ok_or_else(|| JetStreamError::Garbage("a chunk without its size".to_owned()))?;
            if size > self.skip {
                self.next = place.seq;
                return Ok(());
            }
            (self.skip, self.next) = (self.skip.saturating_sub(size), place.seq.saturating_add(1));
        }
        Ok(())
    }

    /// The next bytes that are wanted.
    async fn wanted(&mut self) -> Result<Bytes, BackendError> {
        loop {
            let which = Which::Next { subject: &self.subject, seq: self.next };
            let found = self.js.message(&self.bucket.stream, self.bucket.direct, which).await.map_err(failed)?;
            let Some(found) = found else {
                return Err(self.damaged("chunks of it are gone: another host or program has replaced or removed it"));
            };
            self.next = found.seq.saturating_add(1);
            let mut chunk = found.payload;
            let size = chunk.len() as u64;
            if self.skip >= size {
                self.skip = self.skip.saturating_sub(size);
                continue;
            }
            drop(chunk.split_to(usize::try_from(self.skip).unwrap_or(chunk.len())));
            self.skip = 0;
            chunk.truncate(usize::try_from(self.left).unwrap_or(usize::MAX));
            return Ok(chunk);
        }
    }

    async fn chunk(&mut self) -> Result<Option<Bytes>, BackendError> {
        if self.left == 0 {
            return Ok(None);
        }
        let chunk = match self.first.take() {
            Some(first) => first,
            None => self.wanted().await?,
        };
        self.left = self.left.saturating_sub(chunk.len() as u64);
        if let Some((hash, expected)) = &mut self.hash {
            hash.update(&chunk);
            if self.left == 0 && hash.finalize_reset().as_slice() != expected.as_slice() {
                return Err(self.damaged("its content does not have the hash of what was written"));
            }
        }
        Ok(Some(chunk))
    }

    fn damaged(&self, why: &str) -> BackendError {
        BackendError::Damaged { object: self.object.clone(), why: why.to_owned() }
    }
}
