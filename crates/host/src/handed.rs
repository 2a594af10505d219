//! The sockets a host begins with, made by its node: a host can make none.

use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener as StdListener, UnixStream};

use api::agent::HANDED;
use tokio::net::UnixListener;

use crate::HostError;

/// What the node hands a host when it starts it.
#[derive(Debug)]
pub struct Handed {
    /// Where the agent API is asked.
    pub agent: StdListener,
    /// Where requests come in.
    pub data: StdListener,
    /// Where requests come in many at a time.
    pub line: StdListener,
    /// The first connection to the node.
    pub node: UnixStream,
}

impl Handed {
    /// From the descriptors in the order that [`HANDED`] says, and the folder that compiled code is read from.
    pub fn take(fds: [OwnedFd; HANDED]) -> (Self, OwnedFd) {
        let [agent, data, line, node, code] = fds;
        (Self { agent: agent.into(), data: data.into(), line: line.into(), node: node.into() }, code)
    }
}

/// A listener of the node's, in this process's event loop.
pub(crate) fn listener(handed: StdListener) -> Result<UnixListener, HostError> {
    handed.set_nonblocking(true)?;
    Ok(UnixListener::from_std(handed)?)
}
