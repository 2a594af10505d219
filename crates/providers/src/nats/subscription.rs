//! A subscription: what arrives waits here, within bounds, until it is read.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;

use super::client::{Client, Gone};
use super::error::NatsError;
use super::message::Message;

/// How much may wait for the reader of a subscription; what arrives beyond is dropped and counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Buffer {
    /// Messages.
    pub messages: usize,
    /// Bytes, about.
    pub bytes: usize,
}

impl Default for Buffer {
    fn default() -> Self {
        Self { messages: 1024, bytes: 16 << 20 }
    }
}

/// What both ends share.
#[derive(Debug, Default)]
pub(super) struct Shared {
    bytes: AtomicUsize,
    dropped: AtomicU64,
    ended: Mutex<Option<NatsError>>,
}

/// The end that the connection writes to.
#[derive(Debug)]
pub(super) struct Sink {
    messages: mpsc::Sender<Message>,
    shared: Arc<Shared>,
    limit: usize,
}

/// A sink and what reads it.
pub(super) fn pipe(buffer: Buffer) -> (Sink, mpsc::Receiver<Message>, Arc<Shared>) {
    let (messages, arrived) = mpsc::channel(buffer.messages.max(1));
    let shared = Arc::new(Shared::default());
    (Sink { messages, shared: shared.clone(), limit: buffer.bytes }, arrived, shared)
}

impl Sink {
    /// Never waits. `false` once nobody reads.
    pub(super) fn put(&self, message: Message) -> bool {
        let size = message.size();
        // A message larger than the whole buffer still passes where nothing else waits.
        let waiting = self.shared.bytes.load(Relaxed);
        if waiting > 0 && waiting.saturating_add(size) > self.limit {
            self.shared.dropped.fetch_add(1, Relaxed);
            return !self.messages.is_closed();
        }
        self.shared.bytes.fetch_add(size, Relaxed);
        match self.messages.try_send(message) {
            Ok(()) => true,
            Err(refused) => {
                self.shared.bytes.fetch_sub(size, Relaxed);
                self.shared.dropped.fetch_add(1, Relaxed);
                matches!(refused, TrySendError::Full(_))
            }
        }
    }

    /// Ends the subscription for a reason that no reconnection heals.
    pub(super) fn end(self, why: NatsError) {
        *self.shared.ended.lock().unwrap_or_else(PoisonError::into_inner) = Some(why);
    }
}

/// Messages of one subject, or of one member's part of a queue group. Lives on over reconnections: what is sent while
/// the connection is down is not seen. Dropping it unsubscribes.
pub struct Subscription {
    pub(super) client: Client,
    pub(super) sid: u64,
    pub(super) arrived: mpsc::Receiver<Message>,
    pub(super) shared: Arc<Shared>,
}

impl Subscription {
    /// The next message. May be dropped and called again without losing one.
    ///
    /// # Errors
    /// Why there will be no more: the server took the permission away ([`NatsError::Denied`]).
    pub async fn next(&mut self) -> Result<Message, NatsError> {
        if let Some(message) = self.arrived.recv().await {
            self.shared.bytes.fetch_sub(message.size(), Relaxed);
            return Ok(message);
        }
        let why = self.shared.ended.lock().unwrap_or_else(PoisonError::into_inner).clone();
        Err(why.unwrap_or_else(|| NatsError::Unavailable("the client has ended".into())))
    }

    /// Asks the server for no more. What has arrived can still be read; then [`Subscription::next`] fails.
    pub fn stop(&self) {
        self.client.gone(Gone::Subscription(self.sid));
    }

    /// As [`Subscription::stop`], and what the server sent before it heard of it can still be read too.
    pub fn drain(&self) {
        self.client.gone(Gone::Draining(self.sid));
    }

    /// How many messages were dropped because they were not read in time.
    pub fn dropped(&self) -> u64 {
        self.shared.dropped.load(Relaxed)
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        self.arrived.close();
        self.client.gone(Gone::Subscription(self.sid));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(bytes: usize) -> Message {
        Message { payload: vec![0; bytes].into(), ..Message::default() }
    }

    #[tokio::test]
    async fn what_waits_is_bounded_by_count_and_by_bytes() {
        let (sink, mut arrived, shared) = pipe(Buffer { messages: 3, bytes: 1000 });
        assert!(sink.put(message(5000)), "a single large one passes");
        assert!(sink.put(message(1)));
        assert_eq!((shared.dropped.load(Relaxed), arrived.len()), (1, 1));
        shared.bytes.fetch_sub(arrived.recv().await.unwrap().size(), Relaxed);
        for _ in 0..5 {
            assert!(sink.put(message(1)));
        }
        assert_eq!((shared.dropped.load(Relaxed), arrived.len()), (3, 3));
        drop(arrived);
        assert!(!sink.put(message(1)), "nobody reads");
    }
}
