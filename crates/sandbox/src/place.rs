//! A folder that others might exchange under its name, at a place where nobody can: a mount that this process and what it
//! starts see alone, and that ends with them.

use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd};
use std::path::Path;

use rustix::thread::UnshareFlags;

use crate::root::{SLAVE, mount};
use sys_mount::MountFlags;

/// Gives this process mounts of its own. What the machine mounts and unmounts goes on to be seen. To be called while the
/// process has one thread, and before what is shown is opened: what was opened before is of the machine's mounts.
///
/// # Errors
/// Where this user may not.
pub fn own_mounts() -> io::Result<()> {
    crate::outer::unshare(UnshareFlags::NEWNS)?;
    mount("none", Path::new("/"), "none", SLAVE, "")
}

/// Shows `folder` at `at`, an empty folder, to this process and to what it starts.
///
/// # Errors
/// Without [`own_mounts`], or where `at` is no folder.
pub fn show(folder: BorrowedFd<'_>, at: &Path) -> io::Result<()> {
    mount(&format!("/proc/self/fd/{}", folder.as_raw_fd()), at, "none", MountFlags::BIND, "")
}
