//! Connections to hosts. Each worker has its own pool: a connection is bound to the event loop it was opened on.

use std::collections::HashMap;
use std::io;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::net::UnixStream;
use tokio::time::Instant;

use super::buffer::Buffer;
use super::shard::Shard;

/// Unused connections kept per shard.
const KEEP: usize = 256;
/// A local socket that does not accept for so long belongs to a host that does nothing any more.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);

/// A connection to a host and what was read from it.
#[derive(Debug)]
pub(super) struct Upstream {
    pub(super) stream: UnixStream,
    pub(super) buffer: Buffer,
}

impl Upstream {
    /// Opens a connection to a shard.
    pub(super) async fn connect(shard: &Shard) -> io::Result<Self> {
        let stream = tokio::time::timeout(CONNECT_TIMEOUT, UnixStream::connect(shard.data_socket())).await??;
        Ok(Self { stream, buffer: Buffer::default() })
    }

    /// Nothing was sent on it unasked, and it was not closed, as far as the event loop has heard.
    fn is_quiet(&self) -> bool {
        let mut byte = [0u8; 1];
        matches!(self.stream.try_read(&mut byte), Err(error) if error.kind() == io::ErrorKind::WouldBlock)
    }
}

#[derive(Debug)]
struct Idle {
    upstream: Upstream,
    since: Instant,
}

/// The unused connections of one worker, by shard.
#[derive(Debug, Default)]
pub(super) struct Pool(Mutex<HashMap<u64, Vec<Idle>>>);

impl Pool {
    /// The connection used last, if one is left that is still good.
    pub(super) fn take(&self, shard: &Shard) -> Option<Upstream> {
        let mut idle = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let of_shard = idle.get_mut(&shard.id())?;
        while let Some(Idle { upstream, .. }) = of_shard.pop() {
            if upstream.is_quiet() {
                return Some(upstream);
            }
        }
        None
    }

    /// Keeps a connection whose last response was read to its end.
    pub(super) fn put(&self, shard: &Shard, mut upstream: Upstream) {
        if !upstream.buffer.is_empty() {
            return;
        }
        upstream.buffer.shrink();
        let mut idle = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let of_shard = idle.entry(shard.id()).or_default();
        if of_shard.len() < KEEP {
            of_shard.push(Idle { upstream, since: Instant::now() });
        }
    }

    /// Closes what was unused for longer than `age`.
    pub(super) fn sweep(&self, age: Duration) {
        let now = Instant::now();
        self.0.lock().unwrap_or_else(PoisonError::into_inner).retain(|_, of_shard| {
            of_shard.retain(|idle| now.duration_since(idle.since) < age);
            !of_shard.is_empty()
        });
    }
}
