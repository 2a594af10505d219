//! The connections that a tenant's hosts have open. The node keeps its hand on each: a TCP socket stays open here beside
//! the host, which uses it; a UDP socket is here alone, and its datagrams are relayed. So what the policy stops granting
//! ends at once, whatever the host makes of it, and what is open can be counted.
//!
//! A host that is done with a TCP socket shuts it down, which is seen here; one that does not uses up the number its
//! tenant may have, and nobody else's.

mod relay;

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use api::services::datagram::{self, DatagramEnd};
use api::services::{Caller, Dial};
use model::egress::Destination;
use rustix::net::Shutdown;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::net::UdpSocket;
use tokio::sync::OwnedSemaphorePermit;
use tokio_util::sync::CancellationToken;

use relay::Relayed;

/// What was asked for, what was decided on, and how to end it.
#[derive(Debug)]
pub(crate) struct Open {
    pub(crate) dial: Dial,
    pub(crate) destination: Destination,
    pub(crate) address: SocketAddr,
    /// Which host has it.
    shard: u32,
    end: CancellationToken,
}

impl Open {
    /// The provider that connected, if one did.
    pub(crate) fn provider(&self) -> Option<&model::ProviderName> {
        match &self.dial.caller {
            Caller::Provider(name) => Some(name),
            Caller::Component(_) => None,
        }
    }
}

/// A fresh connection.
#[derive(Debug)]
pub(crate) enum Socket {
    /// One that does not block.
    Tcp(OwnedFd),
    Udp(UdpSocket),
}

/// A descriptor for the host. Dropping it before [`Dialled::handed_over`] ends the connection.
#[derive(Debug)]
pub struct Dialled {
    fd: Fd,
    /// Where it is connected to.
    pub address: SocketAddr,
    end: CancellationToken,
    handed: bool,
}

#[derive(Debug)]
enum Fd {
    Shared(Arc<AsyncFd<OwnedFd>>),
    Owned(OwnedFd),
}

impl AsFd for Dialled {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match &self.fd {
            Fd::Shared(fd) => fd.get_ref().as_fd(),
            Fd::Owned(fd) => fd.as_fd(),
        }
    }
}

impl Dialled {
    /// The host has it now.
    pub fn handed_over(mut self) {
        self.handed = true;
    }
}

impl Drop for Dialled {
    fn drop(&mut self) {
        if !self.handed {
            self.end.cancel();
        }
    }
}

/// All of one tenant.
#[derive(Debug, Default)]
pub(crate) struct Connections {
    open: Mutex<Table>,
    relayed: Relayed,
}

#[derive(Debug, Default)]
struct Table {
    next: u64,
    by_id: HashMap<u64, Arc<Open>>,
}

impl Connections {
    fn lock(&self) -> MutexGuard<'_, Table> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a fresh connection in, and gives what the host is to get. `room` is free again when it has ended. Must run
    /// inside a tokio runtime.
    ///
    /// # Errors
    /// Where there are no more descriptors.
    pub(crate) fn add(
        self: &Arc<Self>,
        socket: Socket,
        dial: &Dial,
        destination: Destination,
        address: SocketAddr,
        shard: u32,
        room: OwnedSemaphorePermit,
    ) -> io::Result<(Dialled, Arc<Open>)> {
        let end = CancellationToken::new();
        let open = Arc::new(Open { dial: dial.clone(), destination, address, shard, end: end.clone() });
        let (fd, life) = match socket {
            Socket::Tcp(socket) => {
                let socket = Arc::new(watched(socket)?);
                (Fd::Shared(socket.clone()), Life::Tcp(socket))
            }
            Socket::Udp(socket) => {
                let (ours, theirs) = datagram::pair()?;
                (Fd::Owned(theirs), Life::Udp(socket, ours))
            }
        };
        let entered = self.enter(open.clone());
        tokio::spawn(async move {
            life.until(&entered.open.end, &entered.all.relayed).await;
            drop((entered, room));
        });
        Ok((Dialled { fd, address, end, handed: false }, open))
    }

    fn enter(self: &Arc<Self>, open: Arc<Open>) -> Entered {
        let mut table = self.lock();
        table.next += 1;
        let id = table.next;
        table.by_id.insert(id, open.clone());
        Entered { id, open, all: self.clone() }
    }

    /// Ends those that `check` refuses, and says which and why.
    pub(crate) fn end_refused(&self, check: impl Fn(&Open) -> Result<(), String>) -> Vec<(Arc<Open>, String)> {
        let all: Vec<_> = self.lock().by_id.values().cloned().collect();
        let alive = all.into_iter().filter(|open| !open.end.is_cancelled());
        let refused = alive.filter_map(|open| check(&open).err().map(|why| (open, why)));
        refused.inspect(|(open, _)| open.end.cancel()).collect()
    }

    /// A host's process is gone, and whatever it had.
    pub(crate) fn host_is_gone(&self, shard: u32) {
        let others = |open: &Open| if open.shard == shard { Err(String::new()) } else { Ok(()) };
        let ended = self.end_refused(others).len();
        tracing::debug!(shard, ended, "the connections of a host that is gone have ended");
    }

    /// How many there are.
    pub(crate) fn count(&self) -> usize {
        self.lock().by_id.len()
    }
}

/// A socket that tells of its end alone: the host reads and writes, and its data must wake nobody here.
#[expect(deprecated, reason = "its successor is unsafe for the sake of descriptors that change; an `OwnedFd` does not")]
fn watched(socket: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    AsyncFd::with_interest(socket, Interest::PRIORITY)
}

/// Its place in the table.
struct Entered {
    id: u64,
    open: Arc<Open>,
    all: Arc<Connections>,
}

impl Drop for Entered {
    fn drop(&mut self) {
        self.all.lock().by_id.remove(&self.id);
    }
}

enum Life {
    Tcp(Arc<AsyncFd<OwnedFd>>),
    Udp(UdpSocket, DatagramEnd),
}

impl Life {
    /// Ends when the host is done with it, or when it is to end.
    async fn until(self, end: &CancellationToken, relayed: &Relayed) {
        match self {
            Self::Tcp(socket) => tokio::select! {
                () = hung_up(&socket) => {}
                () = end.cancelled() => {
                    if let Err(cause) = rustix::net::shutdown(socket.get_ref(), Shutdown::Both) {
                        tracing::debug!(%cause, "a connection that is to end has ended");
                    }
                }
            },
            Self::Udp(socket, host) => tokio::select! {
                () = relay::outward(&socket, &host, relayed) => {}
                () = relay::inward(&socket, &host, relayed) => {}
                () = end.cancelled() => {}
            },
        }
    }
}

/// Both directions are closed, or the connection broke.
async fn hung_up(socket: &AsyncFd<OwnedFd>) {
    while let Ok(mut guard) = socket.ready(Interest::PRIORITY).await {
        if guard.ready().is_read_closed() {
            return;
        }
        guard.clear_ready();
    }
}
