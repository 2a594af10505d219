//! The two streams of a TCP connection. Nothing runs beside the guest: bytes move when it reads, writes or waits.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::{Buf, Bytes};
use rustix::net::Shutdown;
use tokio::net::TcpStream;
use wasmtime_wasi::p2::{InputStream, OutputStream, Pollable, StreamError, StreamResult};

use super::Connection;
use crate::call::Subrequest;

/// Bytes read at once.
const READ: usize = 64 << 10;
/// Bytes a guest may write at once; at most so many wait here for the other side to take them.
const WRITE: usize = 64 << 10;

/// What the socket and its streams share.
pub(super) struct Line {
    connection: Connection,
    outgoing: Mutex<Outgoing>,
    /// Its place among what the call has open: held until socket and streams are all gone.
    _open: Option<Subrequest>,
}

#[derive(Default)]
struct Outgoing {
    waiting: Bytes,
    /// To be shut down once everything is written; what follows is refused.
    last: bool,
    shut: bool,
}

impl Line {
    pub(super) fn new(connection: Connection, open: Option<Subrequest>) -> Arc<Self> {
        Arc::new(Self { connection, outgoing: Mutex::default(), _open: open })
    }

    pub(super) fn socket(&self) -> &TcpStream {
        self.connection.as_ref().as_ref()
    }

    fn outgoing(&self) -> MutexGuard<'_, Outgoing> {
        self.outgoing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Nothing is read any more.
    pub(super) fn shut_reading(&self) -> io::Result<()> {
        Ok(rustix::net::shutdown(self.socket(), Shutdown::Read)?)
    }

    /// Nothing is written any more, once what was written has gone.
    pub(super) fn shut_writing(&self) -> io::Result<()> {
        self.outgoing().last = true;
        self.move_on().map(drop)
    }

    /// Writes what waits, as far as it goes. Whether everything went.
    fn move_on(&self) -> io::Result<bool> {
        let mut outgoing = self.outgoing();
        while !outgoing.waiting.is_empty() {
            match self.socket().try_write(&outgoing.waiting) {
                Ok(count) => outgoing.waiting.advance(count),
                Err(cause) if cause.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(cause) => {
                    outgoing.waiting.clear();
                    return Err(cause);
                }
            }
        }
        if outgoing.last && !outgoing.shut {
            outgoing.shut = true;
            rustix::net::shutdown(self.socket(), Shutdown::Write)?;
        }
        Ok(true)
    }
}

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
        {
            let mut outgoing = self.line.outgoing();
            if outgoing.last {
                return Err(StreamError::Closed);
            }
            if !outgoing.waiting.is_empty() || bytes.len() > WRITE {
                return Err(StreamError::trap("more was written than `check-write` allowed"));
            }
            outgoing.waiting = bytes;
        }
        self.move_on().map(drop)
    }

    fn flush(&mut self) -> StreamResult<()> {
        self.move_on().map(drop)
    }

    fn check_write(&mut self) -> StreamResult<usize> {
        let gone = self.move_on()?;
        if self.line.outgoing().last {
            return Err(StreamError::Closed);
        }
        Ok(if gone { WRITE } else { 0 })
    }
}
