//! The root of a program that is not ours: the system for reading, the folders it is given, and nothing else of the machine.
//! An interpreter needs its libraries, so it cannot be empty; but neither homes, nor services' sockets, nor the platform's
//! own files are in it.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStringExt as _;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use rustix::process::{chdir, pivot_root};
use serde::{Deserialize, Serialize};
use sys_mount::{MountFlags, UnmountFlags, unmount};

use crate::root::{PRIVATE, mount};

/// What a program finds in its root beside the system.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct View {
    /// Files and folders it may read and run.
    #[serde(default)]
    pub read: Vec<PathBuf>,
    /// Folders it may write in.
    #[serde(default)]
    pub write: Vec<PathBuf>,
    /// Folders that are empty for it, also where they are below one that it may read.
    #[serde(default)]
    pub hide: Vec<PathBuf>,
    /// It has the machine's network.
    #[serde(default)]
    pub network: bool,
    /// Bytes that one file of its may have, where that is bounded.
    #[serde(default)]
    pub largest: Option<u64>,
}

/// Where systems keep programs, libraries and their settings.
const SYSTEM: [&str; 11] =
    ["/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/etc", "/opt", "/nix/store", "/gnu/store"];
/// Devices that are nobody's.
pub(crate) const DEVICES: [&str; 5] = ["null", "zero", "full", "random", "urandom"];
/// Folders of its own for what it does not keep, in memory.
pub(crate) const SCRATCH: [&str; 2] = ["/tmp", "/dev/shm"];
/// Folders a machine may have to put the new root on; one that something is bound from cannot be it.
const PLACES: [&str; 7] = ["/mnt", "/media", "/srv", "/run", "/tmp", "/home", "/var"];

const FLAGS: MountFlags = MountFlags::NOSUID.union(MountFlags::NODEV);
const BIND: MountFlags = MountFlags::BIND.union(MountFlags::REC);
const REMOUNT: MountFlags = MountFlags::REMOUNT.union(MountFlags::BIND);

/// Replaces the root of this process, which is in a mount namespace of its own.
pub(crate) fn build(view: &View) -> io::Result<()> {
    mount("none", Path::new("/"), "none", PRIVATE, "")?;
    let bound: Vec<&Path> =
        view.read.iter().chain(&view.write).map(PathBuf::as_path).chain(SYSTEM.map(Path::new)).collect();
    let free = |place: &&str| Path::new(place).is_dir() && !bound.iter().any(|path| path.starts_with(place));
    let place = PLACES.into_iter().find(free).ok_or_else(|| io::Error::other("there is no folder to put it on"))?;
    let place = Path::new(place);
    mount("none", place, "tmpfs", FLAGS, "size=1m,nr_inodes=1024,mode=0755")?;
    for path in SYSTEM.map(Path::new) {
        match fs::symlink_metadata(path) {
            // Where they are one with those of /usr.
            Ok(found) if found.is_symlink() => symlink(fs::read_link(path)?, inside(place, path))?,
            Ok(found) if found.is_dir() => graft(place, path, Some(FLAGS | MountFlags::RDONLY))?,
            _ => {}
        }
    }
    fs::create_dir_all(place.join("dev"))?;
    for device in DEVICES {
        let path = Path::new("/dev").join(device);
        if path.exists() {
            graft(place, &path, None)?;
        }
    }
    for (name, to) in [("fd", "/proc/self/fd"), ("stdin", "/proc/self/fd/0"), ("stdout", "/proc/self/fd/1")] {
        symlink(to, place.join("dev").join(name))?;
    }
    symlink("/proc/self/fd/2", place.join("dev/stderr"))?;
    // The second stage covers it with that of its own pid namespace.
    graft(place, Path::new("/proc"), None)?;
    let scratch = |path: &&PathBuf| SCRATCH.iter().any(|scratch| path.starts_with(scratch));
    see(place, view.read.iter().filter(|path| !scratch(path)))?;
    for path in view.hide.iter().filter(|path| inside(place, path).exists()) {
        mount("none", &inside(place, path), "tmpfs", FLAGS, "size=64k,nr_inodes=64,mode=0755")?;
    }
    for path in SCRATCH.map(Path::new) {
        fs::create_dir_all(inside(place, path))?;
        mount("none", &inside(place, path), "tmpfs", FLAGS, "size=64m,nr_inodes=8192,mode=1777")?;
    }
    see(place, view.read.iter().filter(scratch))?;
    for path in &view.write {
        graft(place, path, Some(FLAGS))?;
    }
    chdir(place)?;
    pivot_root(".", ".")?;
    // What is on top now is the old root.
    unmount(".", UnmountFlags::DETACH)?;
    chdir("/")?;
    mount("none", Path::new("/"), "none", FLAGS | REMOUNT | MountFlags::RDONLY, "")
}

/// Lets these be read. What the system has already is there.
fn see<'a>(place: &Path, paths: impl Iterator<Item = &'a PathBuf>) -> io::Result<()> {
    for path in paths {
        if !inside(place, path).exists() {
            graft(place, path, Some(FLAGS | MountFlags::RDONLY))?;
        }
    }
    Ok(())
}

/// Shows only its own processes to a process in a pid namespace of its own. Where the kernel does not let it, it sees none.
pub(crate) fn own_processes() -> io::Result<()> {
    let proc = Path::new("/proc");
    let flags = FLAGS | MountFlags::NOEXEC | MountFlags::RDONLY;
    match mount("proc", proc, "proc", flags, "") {
        Ok(()) => Ok(()),
        Err(_) => mount("none", proc, "tmpfs", flags, "size=4k,nr_inodes=2,mode=0755"),
    }
}

fn inside(place: &Path, path: &Path) -> PathBuf {
    place.join(path.strip_prefix("/").unwrap_or(path))
}

/// Binds a file or folder of the machine, and what is mounted below it, at its own name. With `flags` added to those of each
/// mount; those that are there already stay, for nobody may take them away.
fn graft(place: &Path, path: &Path, flags: Option<MountFlags>) -> io::Result<()> {
    let target = inside(place, path);
    let failed = |cause: io::Error| io::Error::new(cause.kind(), format!("{}: {cause}", path.display()));
    if !target.exists() {
        if fs::metadata(path).map_err(failed)?.is_dir() {
            fs::create_dir_all(&target).map_err(failed)?;
        } else {
            target.parent().map_or(Ok(()), fs::create_dir_all).map_err(failed)?;
            fs::File::create(&target).map_err(failed)?;
        }
    }
    let source = path.to_str().ok_or_else(|| failed(io::Error::other("its name is no text")))?;
    mount(source, &target, "none", BIND, "").map_err(failed)?;
    let Some(flags) = flags else { return Ok(()) };
    for (at, has) in mounted(&fs::read_to_string("/proc/self/mountinfo")?, &target) {
        mount("none", &at, "none", REMOUNT | has | flags, "").map_err(failed)?;
    }
    Ok(())
}

/// The mounts at `target` and below, and the flags they have.
fn mounted(mountinfo: &str, target: &Path) -> Vec<(PathBuf, MountFlags)> {
    let of = |option: &str| match option {
        "ro" => MountFlags::RDONLY,
        "nosuid" => MountFlags::NOSUID,
        "nodev" => MountFlags::NODEV,
        "noexec" => MountFlags::NOEXEC,
        "noatime" => MountFlags::NOATIME,
        "nodiratime" => MountFlags::NODIRATIME,
        "relatime" => MountFlags::RELATIME,
        _ => MountFlags::empty(),
    };
    let lines = mountinfo.lines().filter_map(|line| {
        let mut fields = line.split(' ').skip(4);
        let at = plain(fields.next()?);
        let flags = fields.next()?.split(',').map(of).fold(MountFlags::empty(), MountFlags::union);
        at.starts_with(target).then_some((at, flags))
    });
    lines.collect()
}

/// A path as the kernel writes it there: with spaces, tabs, newlines and backslashes as octal numbers.
fn plain(text: &str) -> PathBuf {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, tail)) = rest.split_first() {
        let number = tail.get(..3).and_then(|digits| std::str::from_utf8(digits).ok());
        match number.and_then(|digits| u8::from_str_radix(digits, 8).ok()).filter(|_| *first == b'\\') {
            Some(byte) => {
                bytes.push(byte);
                rest = tail.get(3..).unwrap_or_default();
            }
            None => {
                bytes.push(*first);
                rest = tail;
            }
        }
    }
    OsString::from_vec(bytes).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_below_a_folder_are_found_with_their_flags_whatever_their_names() {
        let text = "31 1 0:29 / /mnt/usr rw,relatime shared:1 - ext4 /dev/vda rw\n\
                    32 31 0:30 / /mnt/usr/with\\040space\\134 ro,nosuid,nodev - tmpfs tmpfs rw\n\
                    33 1 0:31 / /mnt/usrlocal rw - tmpfs tmpfs rw\n";
        let found = mounted(text, Path::new("/mnt/usr"));
        let strict = MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV;
        let wanted = vec![("/mnt/usr".into(), MountFlags::RELATIME), ("/mnt/usr/with space\\".into(), strict)];
        assert_eq!(found, wanted);
    }
}
