//! A unix socket that is there whole or not at all: made under another name, closed to others, then moved.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use tokio::net::UnixListener;

use crate::HostError;

/// Listens at `socket`, mode 0600; a socket left behind there is replaced.
pub(crate) fn listen(socket: &Path) -> Result<UnixListener, HostError> {
    let failed = |cause| HostError::Listen { socket: socket.to_owned(), cause };
    let fresh = socket.with_extension("new");
    match std::fs::remove_file(&fresh) {
        Err(cause) if cause.kind() != std::io::ErrorKind::NotFound => return Err(failed(cause)),
        _ => {}
    }
    let listener = UnixListener::bind(&fresh).map_err(failed)?;
    std::fs::set_permissions(&fresh, Permissions::from_mode(0o600)).map_err(failed)?;
    std::fs::rename(&fresh, socket).map_err(failed)?;
    Ok(listener)
}
