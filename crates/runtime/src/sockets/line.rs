//! A TCP connection, as a socket and its streams share it. Nothing runs beside the guest: bytes move when it reads, writes
//! or waits.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use rustix::net::Shutdown;
use tokio::net::TcpStream;

use super::Connection;
use crate::call::Subrequest;

/// Bytes that may be queued at once; at most so many wait here for the other side to take them.
pub(super) const QUEUE: usize = 64 << 10;

/// What the socket and its streams share.
pub(super) struct Line {
    connection: Connection,
    outgoing: Mutex<Outgoing>,
    /// Whether somebody has its two ends, where each is given out once.
    reader: AtomicBool,
    writer: AtomicBool,
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

/// What became of bytes that were to be written later.
pub(super) enum Queued {
    Taken,
    /// Others wait already, or they are too many.
    Full,
    /// Nothing is written any more.
    Ended,
}

impl Line {
    pub(super) fn new(connection: Connection, open: Option<Subrequest>) -> Arc<Self> {
        let (reader, writer) = (AtomicBool::new(false), AtomicBool::new(false));
        Arc::new(Self { connection, outgoing: Mutex::default(), reader, writer, _open: open })
    }

    pub(super) fn socket(&self) -> &TcpStream {
        self.connection.as_ref().as_ref()
    }

    fn outgoing(&self) -> MutexGuard<'_, Outgoing> {
        self.outgoing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether it is the first that asks to read.
    pub(super) fn first_reader(&self) -> bool {
        !self.reader.swap(true, Relaxed)
    }

    /// Whether it is the first that asks to write.
    pub(super) fn first_writer(&self) -> bool {
        !self.writer.swap(true, Relaxed)
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

    /// Whether nothing is written any more.
    pub(super) fn is_last(&self) -> bool {
        self.outgoing().last
    }

    /// Keeps bytes until the other side takes them.
    pub(super) fn queue(&self, bytes: Bytes) -> Queued {
        let mut outgoing = self.outgoing();
        if outgoing.last {
            return Queued::Ended;
        }
        if !outgoing.waiting.is_empty() || bytes.len() > QUEUE {
            return Queued::Full;
        }
        outgoing.waiting = bytes;
        Queued::Taken
    }

    /// Writes what waits, as far as it goes. Whether everything went.
    pub(super) fn move_on(&self) -> io::Result<bool> {
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

    /// Reads what is there, 0 bytes where no more will come. One task at a time waits so.
    pub(super) fn poll_read(&self, cx: &mut Context<'_>, into: &mut [u8]) -> Poll<io::Result<usize>> {
        loop {
            match self.socket().try_read(into) {
                Err(cause) if cause.kind() == io::ErrorKind::WouldBlock => {
                    ready!(self.socket().poll_read_ready(cx))?;
                }
                done => return Poll::Ready(done),
            }
        }
    }

    /// Writes what there is room for. One task at a time waits so, and nothing was [queued](Self::queue).
    pub(super) fn poll_write(&self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        loop {
            match self.socket().try_write(bytes) {
                Err(cause) if cause.kind() == io::ErrorKind::WouldBlock => {
                    ready!(self.socket().poll_write_ready(cx))?;
                }
                done => return Poll::Ready(done),
            }
        }
    }
}
