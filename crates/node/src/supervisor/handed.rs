//! What a host process is handed when it is started: its sockets, and the folder of compiled code. It can open nothing by itself.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

use api::agent::{AGENT_SOCKET, DATA_SOCKET, HANDED};

use super::{Scoped, Supervisor};
use crate::services::Client;

/// What a unix socket's path may have, bytes.
const MAX_SOCKET_PATH: usize = 107;

/// What a process is handed, in the order of [`HANDED`].
pub(super) struct Opened {
    agent: UnixListener,
    data: UnixListener,
    line: UnixListener,
    node: UnixStream,
    code: OwnedFd,
}

impl Opened {
    pub(super) fn fds(&self) -> [BorrowedFd<'_>; HANDED] {
        [self.agent.as_fd(), self.data.as_fd(), self.line.as_fd(), self.node.as_fd(), self.code.as_fd()]
    }
}

impl Supervisor {
    /// Makes everything the process is handed, and serves the node's end of it. Which connection it is, is who the host is.
    pub(super) fn open(&self, serving: &mut Vec<Scoped>) -> std::io::Result<Opened> {
        crate::artifacts::make_dir(&self.dir)?;
        let data = self.dir.join(DATA_SOCKET);
        let line = api::data_line::socket(&data);
        let (ours, node) = UnixStream::pair()?;
        let opened = Opened {
            agent: listen(&self.dir.join(AGENT_SOCKET))?,
            data: listen(&data)?,
            line: listen(&line)?,
            node,
            code: self.plan.services.artifacts.folder()?,
        };
        ours.set_nonblocking(true)?;
        let ours = tokio::net::UnixStream::from_std(ours)?;
        let client = Client { tenant: self.plan.tenant.clone(), shard: self.shard, info: self.info.clone() };
        // What an earlier process had asked for ends by itself.
        serving.retain(|earlier| !earlier.0.is_finished());
        serving.push(Scoped(tokio::spawn(crate::services::serve(ours, client, self.plan.services.clone()))));
        Ok(opened)
    }
}

/// Listens at `path`, in a directory that is this user's alone; a socket left behind there is replaced.
fn listen(path: &Path) -> std::io::Result<UnixListener> {
    if path.as_os_str().len() > MAX_SOCKET_PATH {
        let why = format!("{} is longer than {MAX_SOCKET_PATH} bytes; choose a shorter data directory", path.display());
        return Err(std::io::Error::new(std::io::ErrorKind::InvalidInput, why));
    }
    match std::fs::remove_file(path) {
        Err(cause) if cause.kind() != std::io::ErrorKind::NotFound => return Err(cause),
        _ => {}
    }
    UnixListener::bind(path)
}
