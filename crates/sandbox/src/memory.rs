//! A folder in memory: files that this process sees alone, with what it starts, and that end with it. Nothing waits for a
//! disk there, and nothing of it is ever on one.

use std::io;
use std::path::Path;

use rustix::thread::UnshareFlags;
use sys_mount::MountFlags;

use crate::root::{FLAGS, SLAVE, mount};

/// Puts one in the place of the empty folder `at`. To be called while the process has one thread. What the machine mounts and
/// unmounts goes on to be seen.
///
/// # Errors
/// Where this user may not.
pub fn folder(at: &Path) -> io::Result<()> {
    crate::outer::unshare(UnshareFlags::NEWNS)?;
    mount("none", Path::new("/"), "none", SLAVE, "")?;
    mount("none", at, "tmpfs", FLAGS.union(MountFlags::NOATIME), "mode=0700")
}
