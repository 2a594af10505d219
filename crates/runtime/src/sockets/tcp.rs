//! A TCP socket of a guest, whichever contract it speaks. Connecting is all that one can do; its options are those the
//! node sets.

use std::net::SocketAddr;
use std::sync::Arc;
use std::task::{Context, Poll};

use super::addresses::Family;
use super::grant::{Code, Wanted};
use super::line::Line;
use super::{Connection, Opening, SocketFault};
use crate::call::Subrequest;

/// What an unset option says: the value of Linux.
pub(super) const HOP_LIMIT: u8 = 64;
pub(super) const BUFFER: u64 = 128 << 10;
pub(super) const IDLE_NS: u64 = 7_200_000_000_000;
pub(super) const INTERVAL_NS: u64 = 75_000_000_000;
pub(super) const PROBES: u32 = 9;

/// A socket of a guest.
#[allow(unreachable_pub, reason = "generated modules name it as public")]
pub struct TcpSocket {
    family: Family,
    state: State,
    /// Its place among what the call has open, until it is connected: then the [`Line`] has it.
    open: Option<Subrequest>,
}

enum State {
    New,
    Connecting(SocketAddr, Opening<Connection>),
    /// Known, and not asked for yet.
    Known(SocketAddr, Result<Connection, SocketFault>),
    Connected(SocketAddr, Arc<Line>),
    Failed,
}

/// Where a socket is on its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    New,
    Connecting,
    /// Connected once, or never to be.
    Done,
}

impl TcpSocket {
    pub(super) fn new(family: Family) -> Self {
        Self { family, state: State::New, open: None }
    }

    pub(super) fn family(&self) -> Family {
        self.family
    }

    pub(super) fn stage(&self) -> Stage {
        match &self.state {
            State::New => Stage::New,
            State::Connecting(..) | State::Known(..) => Stage::Connecting,
            State::Connected(..) | State::Failed => Stage::Done,
        }
    }

    /// Begins to connect a socket that is new.
    pub(super) fn begin(&mut self, wanted: Wanted, remote: SocketAddr) {
        self.open = Some(wanted.open);
        self.state = State::Connecting(remote, wanted.sockets.connect(wanted.host, wanted.port));
    }

    /// Takes what a connection attempt has come to, if it has.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let State::Connecting(remote, opening) = &mut self.state else { return Poll::Ready(()) };
        let Poll::Ready(result) = opening.as_mut().poll(cx) else { return Poll::Pending };
        self.state = State::Known(*remote, result);
        Poll::Ready(())
    }

    /// What the attempt has come to, told once; `None` where there is nothing to tell.
    pub(super) fn finish(&mut self) -> Option<Result<Arc<Line>, SocketFault>> {
        let (remote, result) = match std::mem::replace(&mut self.state, State::Failed) {
            State::Known(remote, result) => (remote, result),
            other => {
                self.state = other;
                return None;
            }
        };
        let open = self.open.take();
        Some(result.map(|connection| {
            let line = Line::new(connection, open);
            self.state = State::Connected(remote, line.clone());
            line
        }))
    }

    pub(super) fn line(&self) -> Result<&Arc<Line>, Code> {
        match &self.state {
            State::Connected(_, line) => Ok(line),
            _ => Err(Code::InvalidState),
        }
    }

    /// Its own end, as a guest is told.
    pub(super) fn local(&self) -> Result<SocketAddr, Code> {
        let port = self.line()?.socket().local_addr().map_err(|_| Code::InvalidState)?.port();
        Ok(self.family.own_end(port))
    }

    /// What it was connected to, as the guest wrote it.
    pub(super) fn remote(&self) -> Result<SocketAddr, Code> {
        match &self.state {
            State::Connected(remote, _) => Ok(*remote),
            _ => Err(Code::InvalidState),
        }
    }
}
