//! The datagrams between a guest and one address: what it sends waits until the broker has connected, what comes is taken
//! when it asks.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;
use tokio::task::AbortHandle;

use super::grant::Wanted;
use super::{Datagrams, Received, SocketFault};
use crate::call::Subrequest;

/// Datagrams that wait for an address to be connected; contracts take and give as many with one call.
pub(super) const AT_ONCE: usize = 16;

/// An address that a socket sends to.
pub(super) struct Peer {
    pub(super) remote: SocketAddr,
    line: Mutex<Line>,
    changed: Notify,
    /// Calls that wait to send, each with its datagram.
    senders: AtomicUsize,
}

/// A call that waits to send.
pub(super) struct Sender(Arc<Peer>);

impl Drop for Sender {
    fn drop(&mut self) {
        self.0.senders.fetch_sub(1, Relaxed);
    }
}

enum Line {
    Opening { task: Option<AbortHandle>, waiting: VecDeque<Vec<u8>> },
    Open { datagrams: Arc<dyn Datagrams>, full: bool, _open: Subrequest },
    Failed(SocketFault),
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Drop for Line {
    fn drop(&mut self) {
        if let Self::Opening { task: Some(task), .. } = self {
            task.abort();
        }
    }
}

impl Peer {
    /// Begins to connect; what is sent meanwhile waits.
    pub(super) fn open(wanted: Wanted, remote: SocketAddr) -> Arc<Self> {
        let waiting = VecDeque::new();
        let line = Mutex::new(Line::Opening { task: None, waiting });
        let peer = Arc::new(Self { remote, line, changed: Notify::new(), senders: AtomicUsize::new(0) });
        let (weak, open) = (Arc::downgrade(&peer), wanted.open);
        let opening = wanted.sockets.datagrams(wanted.host, wanted.port);
        let task = tokio::spawn(async move {
            let opened = opening.await;
            let Some(peer) = weak.upgrade() else { return };
            let mut line = lock(&peer.line);
            if let Line::Opening { task, waiting } = &mut *line {
                *task = None;
                if let Ok(datagrams) = &opened {
                    // What finds no room is lost, as datagrams are.
                    waiting.drain(..).for_each(|datagram| drop(datagrams.try_send(&datagram)));
                }
            }
            *line = match opened {
                Ok(datagrams) => Line::Open { datagrams, full: false, _open: open },
                Err(fault) => Line::Failed(fault),
            };
            drop(line);
            peer.changed.notify_waiters();
        });
        if let Line::Opening { task: place, .. } = &mut *lock(&peer.line) {
            *place = Some(task.abort_handle());
        }
        peer
    }

    /// Takes a datagram; `false` where there is no room now.
    pub(super) fn send(&self, datagram: &[u8]) -> Result<bool, SocketFault> {
        let mut line = lock(&self.line);
        match &mut *line {
            Line::Opening { waiting, .. } if waiting.len() < AT_ONCE => waiting.push_back(datagram.to_vec()),
            Line::Opening { .. } => return Ok(false),
            Line::Open { datagrams, full, .. } => match datagrams.try_send(datagram) {
                Ok(()) => *full = false,
                Err(cause) if cause.kind() == io::ErrorKind::WouldBlock => {
                    *full = true;
                    return Ok(false);
                }
                Err(cause) => return Err(fail(&mut line, cause.to_string())),
            },
            Line::Failed(fault) => return Err(fault.clone()),
        }
        Ok(true)
    }

    /// The next datagram, if one is there.
    pub(super) fn receive(&self) -> Result<Option<Vec<u8>>, SocketFault> {
        let mut line = lock(&self.line);
        match &mut *line {
            Line::Opening { .. } => Ok(None),
            Line::Open { datagrams, .. } => match datagrams.try_recv() {
                Ok(Some(Received::Data(datagram))) => Ok(Some(datagram)),
                Ok(Some(Received::Refused)) => Err(SocketFault::Refused),
                Ok(None) => Err(fail(&mut line, "the connection has ended".to_owned())),
                Err(cause) if cause.kind() == io::ErrorKind::WouldBlock => Ok(None),
                Err(cause) => Err(fail(&mut line, cause.to_string())),
            },
            Line::Failed(fault) => Err(fault.clone()),
        }
    }

    pub(super) fn has_failed(&self) -> bool {
        matches!(&*lock(&self.line), Line::Failed(_))
    }

    /// A place among those who wait to send; `None` where too many do: what they hold is memory of the host.
    pub(super) fn sender(self: &Arc<Self>) -> Option<Sender> {
        let sender = Sender(self.clone());
        (self.senders.fetch_add(1, Relaxed) < AT_ONCE).then_some(sender)
    }

    /// Waits until it is known what became of connecting.
    async fn opened(&self) {
        loop {
            let mut changed = std::pin::pin!(self.changed.notified());
            changed.as_mut().enable();
            if !matches!(&*lock(&self.line), Line::Opening { .. }) {
                return;
            }
            changed.await;
        }
    }

    /// Waits for something to receive.
    pub(super) async fn readable(self: Arc<Self>) {
        loop {
            let mut changed = std::pin::pin!(self.changed.notified());
            changed.as_mut().enable();
            let datagrams = match &*lock(&self.line) {
                Line::Opening { .. } => None,
                Line::Open { datagrams, .. } => Some(datagrams.clone()),
                Line::Failed(_) => return,
            };
            match datagrams {
                Some(datagrams) => return datagrams.readable().await,
                None => changed.await,
            }
        }
    }

    /// Waits for room, where there was none.
    pub(super) async fn writable(self: Arc<Self>) {
        loop {
            let mut changed = std::pin::pin!(self.changed.notified());
            changed.as_mut().enable();
            let datagrams = match &*lock(&self.line) {
                Line::Opening { waiting, .. } if waiting.len() >= AT_ONCE => None,
                Line::Open { datagrams, full: true, .. } => Some(datagrams.clone()),
                _ => return,
            };
            match datagrams {
                Some(datagrams) => return datagrams.writable().await,
                None => changed.await,
            }
        }
    }
}

fn fail(line: &mut Line, why: String) -> SocketFault {
    let fault = SocketFault::Other(why);
    *line = Line::Failed(fault.clone());
    fault
}

impl Sender {
    /// Sends a datagram as soon as it is connected and there is room. Whoever waits anyway is told at once what may not be
    /// sent.
    pub(super) async fn send(&self, datagram: &[u8]) -> Result<(), SocketFault> {
        self.0.opened().await;
        while !self.0.send(datagram)? {
            self.0.clone().writable().await;
        }
        Ok(())
    }

    pub(super) fn peer(&self) -> &Arc<Peer> {
        &self.0
    }
}
