//! Messages of a stream in its order, from a place on: a reader of the server's own that ends by itself, pulled batch by
//! batch, so that whoever is slow holds up nobody and nothing of it.

use super::jetstream::{JetStream, JetStreamError, Place};
use super::reader::Reader;
use super::{Buffer, Message, NatsError, Subscription, TIMEOUT};

/// Messages asked for at once.
const BATCH: usize = 250;

/// One passage through a stream.
pub struct Scan {
    js: JetStream,
    reader: Reader,
    inbox: String,
    arriving: Subscription,
    /// What the server has for us.
    pending: u64,
    /// What of a batch may still come.
    left: usize,
    /// Something of the batch came.
    some: bool,
}

impl Scan {
    /// Begins at `start` with messages of subjects that `filter` means; their bodies stay away with `headers_only`.
    ///
    /// # Errors
    /// [`JetStreamError`]; [`super::jetstream::NO_STREAM`] where there is no such stream.
    pub async fn open(
        js: &JetStream,
        stream: &str,
        filter: &str,
        start: u64,
        headers_only: bool,
    ) -> Result<Self, JetStreamError> {
        let reader = Reader::open(js, stream, filter, start, headers_only).await?;
        let inbox = js.client.inbox();
        let buffer = Buffer { messages: BATCH + 16, bytes: 64 << 20 };
        let arriving = js.client.subscribe(&inbox, None, buffer).await?;
        let pending = reader.pending;
        Ok(Self { js: js.clone(), reader, inbox, arriving, pending, left: 0, some: true })
    }

    /// The next message and where it stands; `None` at the end.
    ///
    /// # Errors
    /// [`JetStreamError`]
    pub async fn next(&mut self) -> Result<Option<(Message, Place)>, JetStreamError> {
        loop {
            if self.left == 0 {
                if self.pending == 0 || !self.some {
                    return Ok(None);
                }
                self.ask().await?;
            }
            // The reader lives on one connection's subscription; where that is lost nothing more may come.
            let late = NatsError::TimedOut { ms: TIMEOUT.as_millis() as u64 };
            let message = tokio::time::timeout(TIMEOUT, self.arriving.next()).await.map_err(|_| late)??;
            if self.arriving.dropped() > 0 {
                let why = "messages came faster than they could be read".to_owned();
                return Err(NatsError::Unavailable(why).into());
            }
            if message.status().is_some() {
                self.left = 0;
                continue;
            }
            let place = message.reply.as_deref().and_then(Place::read);
            let place = place.ok_or_else(|| JetStreamError::Garbage("a message without its place".to_owned()))?;
            (self.left, self.some, self.pending) = (self.left.saturating_sub(1), true, place.pending);
            if place.pending == 0 {
                self.left = 0;
            }
            return Ok(Some((message, place)));
        }
    }

    async fn ask(&mut self) -> Result<(), JetStreamError> {
        let ask = self.reader.ask(&self.js, BATCH, &self.inbox)?;
        self.js.client.publish(ask).await?;
        (self.left, self.some) = (BATCH, false);
        Ok(())
    }
}

impl Drop for Scan {
    fn drop(&mut self) {
        let client = self.js.client.clone();
        let delete = self.reader.end(&self.js);
        // Where this does not arrive the server ends the reader by itself.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move { client.publish(delete).await.ok() });
        }
    }
}
