//! An empty root: a small read-only tmpfs in place of everything the machine has.

use std::fs;
use std::io;
use std::path::Path;

use rustix::process::{chdir, pivot_root};
use sys_mount::{Mount, MountFlags, UnmountFlags, unmount};

use crate::syscalls::Role;

/// Folders a machine may have to put the new root on; what is in them is not touched.
const PLACES: [&str; 4] = ["/tmp", "/run", "/mnt", "/dev"];
pub(crate) const FLAGS: MountFlags = MountFlags::NOSUID.union(MountFlags::NODEV).union(MountFlags::NOEXEC);
/// `MS_PRIVATE | MS_REC`, which the library has no name for.
pub(crate) const PRIVATE: MountFlags = MountFlags::from_bits_retain(libc::MS_PRIVATE | libc::MS_REC);

/// `MS_SLAVE | MS_REC`.
pub(crate) const SLAVE: MountFlags = MountFlags::from_bits_retain(libc::MS_SLAVE | libc::MS_REC);

/// One call of `mount`; a mount of these ends with its namespace.
pub(crate) fn mount(source: &str, target: &Path, kind: &str, flags: MountFlags, data: &str) -> io::Result<()> {
    let mut builder = Mount::builder().fstype(kind).flags(flags);
    if !data.is_empty() {
        builder = builder.data(data);
    }
    builder.mount(source, target).map(drop)
}

/// Replaces the root of this process, which is in a mount namespace of its own.
pub(crate) fn empty(role: Role) -> io::Result<()> {
    mount("none", Path::new("/"), "none", PRIVATE, "")?;
    let place = PLACES.into_iter().find(|place| Path::new(place).is_dir());
    let place = Path::new(place.ok_or_else(|| io::Error::other("there is no folder to put it on"))?);
    mount("none", place, "tmpfs", FLAGS, "size=64k,nr_inodes=16,mode=0755")?;
    if role != Role::Compiler {
        // The engine maps compiled code and opens folders by name, and the only name a descriptor has is here. Nothing else of /proc is.
        let own = place.join("proc/self/fd");
        fs::create_dir_all(&own)?;
        mount("/proc/self/fd", &own, "none", MountFlags::BIND, "")?;
        // Whatever the machine's own is mounted with.
        mount("none", &own, "none", FLAGS | MountFlags::REMOUNT | MountFlags::BIND | MountFlags::RDONLY, "")?;
    }
    chdir(place)?;
    pivot_root(".", ".")?;
    // What is on top now is the old root.
    unmount(".", UnmountFlags::DETACH)?;
    chdir("/")?;
    mount("none", Path::new("/"), "none", FLAGS | MountFlags::REMOUNT | MountFlags::RDONLY, "")?;
    Ok(())
}
