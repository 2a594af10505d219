//! The plugin's socket. It is there before the handshake line is printed, and goes with the plugin.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::task::{Context, Poll};

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, UnixListener};
use tonic::transport::server::Connected;

use crate::handshake::{Address, Request};

/// The longest path a socket can have.
const MAX_PATH: usize = 107;
/// What a socket file is called, before the number of its process.
const SOCKET: &str = "sidereal-plugin-";
/// What asks for tcp in place of a unix socket.
pub const NETWORK_ENV: &str = "SIDEREAL_PLUGIN_NETWORK";

/// A bound socket.
#[derive(Debug)]
pub enum Listener {
    /// A socket file, removed when this is dropped.
    Unix(UnixListener, SocketFile),
    /// A port of the loopback address.
    Tcp(TcpListener),
}

/// The file of a socket; removed when dropped.
#[derive(Debug)]
pub struct SocketFile(PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        if let Err(cause) = std::fs::remove_file(&self.0) {
            tracing::debug!(path = %self.0.display(), %cause, "the plugin's socket is gone already");
        }
    }
}

impl Listener {
    /// Binds what the host asks for: a unix socket that only this user (and the group the host names) can connect to, or
    /// a port of the loopback address.
    ///
    /// # Errors
    /// When neither can be bound.
    pub async fn bind(request: &Request, tcp: bool) -> io::Result<(Self, Address)> {
        if tcp {
            return Self::tcp(request.ports).await;
        }
        let dir = request.socket_dir.clone().unwrap_or_else(std::env::temp_dir);
        forget(&dir);
        let path = dir.join(format!("{SOCKET}{}-{}.sock", std::process::id(), nanos()));
        if path.as_os_str().len() > MAX_PATH {
            let why = format!("{} is longer than the {MAX_PATH} bytes a socket's path may have", path.display());
            return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
        }
        let listener = UnixListener::bind(&path)?;
        let file = SocketFile(path.clone());
        let mode = if request.socket_group.is_some() { 0o660 } else { 0o600 };
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode))?;
        if let Some(group) = &request.socket_group {
            let group = group_id(group)?;
            std::os::unix::fs::chown(&path, None, Some(group))?;
        }
        Ok((Self::Unix(listener, file), Address::Unix(path)))
    }

    async fn tcp(ports: Option<(u16, u16)>) -> io::Result<(Self, Address)> {
        let mut last = io::Error::new(io::ErrorKind::AddrInUse, "no port of the host's range is free");
        let candidates = ports.map_or(0..=0, |(first, last)| first..=last);
        for port in candidates {
            match TcpListener::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, port))).await {
                Ok(listener) => {
                    let address = listener.local_addr()?;
                    return Ok((Self::Tcp(listener), Address::Tcp(address)));
                }
                Err(cause) => last = cause,
            }
        }
        Err(last)
    }

    /// The next connection.
    ///
    /// # Errors
    /// When it cannot be accepted.
    pub async fn accept(&self) -> io::Result<Connection> {
        match self {
            Self::Unix(listener, _) => Ok(Connection::new(listener.accept().await?.0)),
            Self::Tcp(listener) => {
                let (stream, _) = listener.accept().await?;
                stream.set_nodelay(true)?;
                Ok(Connection::new(stream))
            }
        }
    }
}

/// Removes the socket files of plugins that were killed: nobody else would.
fn forget(dir: &Path) {
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let of = name.to_str().and_then(|name| name.strip_prefix(SOCKET)?.strip_suffix(".sock")?.split('-').next());
        let is_gone = of.is_some_and(|pid| matches!(Path::new("/proc").join(pid).try_exists(), Ok(false)));
        // A process that this one does not see, as in another container, has it open.
        let refuses = |path: &Path| connects(path).is_err_and(|cause| cause == Errno::CONNREFUSED);
        if is_gone
            && refuses(&entry.path())
            && let Err(cause) = std::fs::remove_file(entry.path())
        {
            tracing::debug!(path = %entry.path().display(), %cause, "the socket of a plugin that was killed stays");
        }
    }
}

/// Connects and hangs up. Nothing is waited for: anybody may have made a socket in this folder, and take no connections.
fn connects(path: &Path) -> Result<(), Errno> {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    rustix::net::connect(&socket, &SocketAddrUnix::new(path)?)
}

fn nanos() -> u32 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |since| since.subsec_nanos())
}

/// The number of a group that is given by number or by its name in `/etc/group`.
fn group_id(group: &str) -> io::Result<u32> {
    if let Ok(id) = group.parse() {
        return Ok(id);
    }
    let file = std::fs::read_to_string(Path::new("/etc/group"))?;
    let found = file.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next() == Some(group)).then(|| fields.nth(1)?.parse().ok()).flatten()
    });
    found.ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, format!("this machine has no group `{group}`")))
}

/// Anything bytes go through in both directions.
pub trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

/// A connection of the host, with or without TLS.
pub struct Connection(Box<dyn Duplex>);

impl Connection {
    /// As tonic takes it.
    pub fn new(stream: impl Duplex + 'static) -> Self {
        Self(Box::new(stream))
    }
}

impl Connected for Connection {
    type ConnectInfo = ();
    fn connect_info(&self) {}
}

impl AsyncRead for Connection {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().0).poll_read(cx, buf)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().0).poll_write(cx, bytes)
    }
    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().0).poll_flush(cx)
    }
    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().0).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sockets_of_plugins_that_were_killed_are_removed_and_no_others() {
        let dir = tempfile::tempdir().unwrap();
        // No process has such a number.
        let at = |pid: u32| dir.path().join(format!("{SOCKET}{pid}-7.sock"));
        let (killed, own, answers) = (at(u32::MAX), at(std::process::id()), at(u32::MAX - 1));
        for path in [&killed, &own] {
            drop(std::os::unix::net::UnixListener::bind(path).unwrap());
        }
        let _listener = std::os::unix::net::UnixListener::bind(&answers).unwrap();
        let other = dir.path().join("other.sock");
        drop(std::os::unix::net::UnixListener::bind(&other).unwrap());
        forget(dir.path());
        assert_eq!([&killed, &own, &answers, &other].map(|path| path.exists()), [false, true, true, true]);
    }
}
