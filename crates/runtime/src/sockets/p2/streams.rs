//! The two streams of a TCP connection in WASI 0.2.

use std::io;
use std::sync::Arc;

use bytes::Bytes;
use wasmtime_wasi::p2::{InputStream, OutputStream, Pollable, StreamError, StreamResult};

use crate::sockets::line::{Line, QUEUE, Queued};

/// Bytes read at once.
const READ: usize = 64 << 10;

fn failed(cause: io::Error) -> StreamError {
    match cause.kind() {
        io::ErrorKind::BrokenPipe | io::ErrorKind::NotConnected => StreamError::Closed,
        _ => StreamError::LastOperationFailed(cause.into()),
    }
}

/// What comes in.
pub(super) struct In {
    line: Arc<Line>,
    ended: bool,
}

impl In {
    pub(super) fn new(line: Arc<Line>) -> Self {
        Self { line, ended: false }
    }
}

#[async_trait::async_trait]
impl Pollable for In {
    async fn ready(&mut self) {
        // A reactor that is gone is told by the read that follows.
        if !self.ended && self.line.socket().readable().await.is_err() {
            self.ended = true;
        }
    }
}

#[async_trait::async_trait]
impl InputStream for In {
    fn read(&mut self, size: usize) -> StreamResult<Bytes> {
        if self.ended {
            return Err(StreamError::Closed);
        }
        if size == 0 {
            return Ok(Bytes::new());
        }
        let mut bytes = Vec::with_capacity(size.min(READ));
        match self.line.socket().try_read_buf(&mut bytes) {
            Ok(0) => {
                self.ended = true;
                Err(StreamError::Closed)
            }
            Ok(_) => Ok(bytes.into()),
            Err(cause) if cause.kind() == io::ErrorKind::WouldBlock => Ok(Bytes::new()),
            Err(cause) => {
                self.ended = true;
                Err(failed(cause))
            }
        }
    }
}

/// What goes out.
pub(super) struct Out {
    line: Arc<Line>,
    failed: bool,
}

impl Out {
    pub(super) fn new(line: Arc<Line>) -> Self {
        Self { line, failed: false }
    }

    /// Whether nothing waits any more.
    fn move_on(&mut self) -> StreamResult<bool> {
        if self.failed {
            return Err(StreamError::Closed);
        }
        let moved = self.line.move_on();
        self.failed = moved.is_err();
        moved.map_err(failed)
    }
}

#[async_trait::async_trait]
impl Pollable for Out {
    async fn ready(&mut self) {
        while let Ok(false) = self.move_on() {
            if self.line.socket().writable().await.is_err() {
                return;
            }
        }
    }
}

#[async_trait::async_trait]
impl OutputStream for Out {
    fn write(&mut self, bytes: Bytes) -> StreamResult<()> {
        match self.line.queue(bytes) {
            Queued::Taken => self.move_on().map(drop),
            Queued::Full => Err(StreamError::trap("more was written than `check-write` allowed")),
            Queued::Ended => Err(StreamError::Closed),
        }
    }

    fn flush(&mut self) -> StreamResult<()> {
        self.move_on().map(drop)
    }

    fn check_write(&mut self) -> StreamResult<usize> {
        let gone = self.move_on()?;
        if self.line.is_last() {
            return Err(StreamError::Closed);
        }
        Ok(if gone { QUEUE } else { 0 })
    }
}
