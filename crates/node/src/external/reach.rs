//! A connection to the socket that a program made: to nothing else that its name may stand for, since the program may put there
//! what it likes, and this process may open more than the program.

use std::io;
use std::os::fd::AsRawFd as _;
use std::path::Path;

use rustix::fs::{CWD, FileType, Mode, OFlags, fstat, openat};
use tokio::net::UnixStream;

/// Connects to the socket of this name if it is one, and if a process of the user `owner` listens there.
///
/// # Errors
/// Where it is neither, or nobody listens.
pub(super) async fn connect(socket: &Path, owner: u32) -> io::Result<UnixStream> {
    let found = openat(CWD, socket, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
    if FileType::from_raw_mode(fstat(&found)?.st_mode) != FileType::Socket {
        return Err(io::Error::other("what has the name of its socket is none"));
    }
    // By the descriptor, so that it is what was looked at.
    let stream = UnixStream::connect(format!("/proc/self/fd/{}", found.as_raw_fd())).await?;
    let listens = stream.peer_cred()?.uid();
    if listens != owner {
        return Err(io::Error::other(format!("its socket is that of user {listens} and not of {owner}")));
    }
    Ok(stream)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_a_socket_of_its_own_user_is_connected_to() {
        let dir = tempfile::tempdir().unwrap();
        let own = rustix::process::geteuid().as_raw();
        let path = |name: &str| dir.path().join(name);
        let _listener = std::os::unix::net::UnixListener::bind(path("s")).unwrap();
        connect(&path("s"), own).await.unwrap();
        let another = connect(&path("s"), own + 1).await.unwrap_err().to_string();
        assert!(another.contains("is that of user"), "{another}");
        // Somebody else's socket, that the program could not connect to.
        std::os::unix::fs::symlink(path("s"), path("link")).unwrap();
        let link = connect(&path("link"), own).await.unwrap_err().to_string();
        assert!(link.contains("is none"), "{link}");
        std::fs::write(path("file"), "").unwrap();
        assert!(connect(&path("file"), own).await.is_err());
        assert_eq!(connect(&path("nothing"), own).await.unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
