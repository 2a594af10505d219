//! Files and folders of a task. Whatever runs in the same job may put a link, a pipe or another folder under any of their
//! names at any time, and this process may be root: so each is opened from the scheduler's own folder down, below which the
//! kernel keeps it, and what was opened is looked at. Nothing is ever checked by a name and used by it later.

use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::{AsFd, AsRawFd as _, OwnedFd};
use std::path::{Component, Path};
use std::sync::Mutex;

use api::task::Place;
use rustix::fs::{FileType, Mode, OFlags, ResolveFlags, Stat, fstat, major, minor, mkdirat, openat2};
use rustix::io::Errno;
use rustix::process::umask;

/// How often an opening is tried again that a renaming elsewhere got in the way of.
const TRIES: u32 = 64;
/// Nothing leads out of the folder, and no name of `/proc` leads anywhere.
const INSIDE: ResolveFlags = ResolveFlags::BENEATH.union(ResolveFlags::NO_MAGICLINKS);
/// Nor is any link followed.
const PLAIN: ResolveFlags = INSIDE.union(ResolveFlags::NO_SYMLINKS);
const FOLDER: OFlags = OFlags::DIRECTORY.union(OFlags::CLOEXEC);
/// What everybody in the job may use, as the scheduler makes its own folders.
const SHARED: Mode = Mode::RWXU.union(Mode::RWXG).union(Mode::RWXO);
/// `/dev/null`, wherever it lies.
const NULL: (u32, u32) = (1, 3);

/// Opens what `path` says below `root`.
fn open(root: impl AsFd, path: &Path, flags: OFlags, how: ResolveFlags) -> io::Result<OwnedFd> {
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    for _ in 0..TRIES {
        match openat2(&root, path, flags | OFlags::CLOEXEC, Mode::empty(), how) {
            // The kernel cannot say whether it stayed inside.
            Err(Errno::AGAIN | Errno::INTR) => {}
            Err(Errno::XDEV) => {
                return Err(io::Error::new(io::ErrorKind::PermissionDenied, "it leads out of its folder"));
            }
            Err(Errno::LOOP) => return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is a link, or behind one")),
            Err(Errno::NOTDIR) if flags.contains(OFlags::DIRECTORY) => {
                return Err(no_folder());
            }
            opened => return Ok(opened?),
        }
    }
    Err(io::Error::new(io::ErrorKind::ResourceBusy, "the folders around it do not come to rest"))
}

fn no_folder() -> io::Error {
    io::Error::new(io::ErrorKind::NotADirectory, "it is no folder")
}

/// The scheduler's own folder. What its name leads to is for the scheduler to say.
fn root(place: &Place) -> io::Result<OwnedFd> {
    match rustix::fs::open(&place.root, OFlags::PATH | FOLDER, Mode::empty()) {
        Err(Errno::NOTDIR) => Err(no_folder()),
        opened => Ok(opened?),
    }
}

/// Holds what `path` says, without doing anything to it. Links below the folder that it begins in are followed where they stay in
/// that one: what is beside it may be the scheduler's own.
fn hold(place: &Place, how: ResolveFlags) -> io::Result<OwnedFd> {
    let mut parts = place.path.components();
    match (parts.next(), parts.as_path()) {
        (Some(first), rest) if !rest.as_os_str().is_empty() => {
            let begins = open(root(place)?, Path::new(first.as_os_str()), OFlags::PATH | FOLDER, PLAIN)?;
            open(begins, rest, OFlags::PATH, how)
        }
        _ => open(root(place)?, &place.path, OFlags::PATH, PLAIN),
    }
}

/// Opens what `path` says for use, once `fits` says of what is found there that it may be. To open is to do something already:
/// some devices end the machine's watch over itself, or read on, as soon as somebody has them open. So it is held first, looked
/// at, and the very same thing is opened then.
fn open_looked_at(
    place: &Place,
    (flags, how): (OFlags, ResolveFlags),
    fits: impl FnOnce(&Stat) -> io::Result<()>,
) -> io::Result<File> {
    let held = hold(place, how)?;
    fits(&fstat(&held)?)?;
    // Another name of what is held, which nobody can exchange. Neither a pipe nor a terminal does anything to whoever opens it so.
    let name = format!("/proc/self/fd/{}", held.as_raw_fd());
    let flags = flags | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    Ok(File::from(rustix::fs::open(name, flags, Mode::empty())?))
}

/// Reads a whole file, of at most `most` bytes. Links that stay in the folder that the path begins in are followed: artifacts may
/// hold some.
///
/// # Errors
/// Where there is none, it is none, or it is larger.
pub fn read(place: &Place, most: usize) -> io::Result<Vec<u8>> {
    let file = open_looked_at(place, (OFlags::RDONLY, INSIDE), |found| match kind(found) {
        FileType::RegularFile => Ok(()),
        _ => Err(io::Error::new(io::ErrorKind::InvalidInput, "it is no file")),
    })?;
    let mut bytes = Vec::with_capacity(usize::try_from(file.metadata()?.len()).unwrap_or(most).min(most));
    file.take(most as u64 + 1).read_to_end(&mut bytes)?;
    match bytes.len() > most {
        true => Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("it is larger than {most} bytes"))),
        false => Ok(bytes),
    }
}

/// Opens an output, without waiting for its reader.
///
/// # Errors
/// Where it is neither a FIFO, nor a file of one name, nor the null device, or as the kernel says.
pub fn output(place: &Place) -> io::Result<File> {
    let flags = OFlags::WRONLY | OFlags::APPEND;
    open_looked_at(place, (flags, PLAIN), |found| match kind(found) {
        FileType::Fifo => Ok(()),
        FileType::RegularFile if found.st_nlink == 1 => Ok(()),
        FileType::CharacterDevice if (major(found.st_rdev), minor(found.st_rdev)) == NULL => Ok(()),
        _ => Err(io::Error::new(io::ErrorKind::InvalidInput, "it is neither a FIFO nor a file of its own")),
    })
}

fn kind(found: &Stat) -> FileType {
    FileType::from_raw_mode(found.st_mode)
}

/// Opens a folder, and makes what of it is not there where `make` says so: for everybody, as the scheduler makes them.
///
/// # Errors
/// Where it is none, or cannot be made.
pub fn folder(place: &Place, make: bool) -> io::Result<OwnedFd> {
    let top = root(place)?;
    match open(&top, &place.path, OFlags::PATH | FOLDER, PLAIN) {
        Err(cause) if make && cause.kind() == io::ErrorKind::NotFound => {
            let mut here = top;
            for name in names(&place.path)? {
                here = step(&here, name)?;
            }
            Ok(here)
        }
        opened => opened,
    }
}

/// The folder of this name in another; made for everybody where it is not there. Its mode is given as it is made: by the time it
/// is opened, another one may stand in its place.
fn step(from: &OwnedFd, name: &Path) -> io::Result<OwnedFd> {
    static MASK: Mutex<()> = Mutex::new(());
    let one = MASK.lock();
    // What other threads make meanwhile is in folders that are this user's alone.
    let mask = umask(Mode::empty());
    let made = mkdirat(from, name, SHARED);
    umask(mask);
    drop(one);
    match made {
        Ok(()) | Err(Errno::EXIST) => open(from, name, OFlags::PATH | FOLDER, PLAIN),
        Err(cause) => Err(cause.into()),
    }
}

/// The names on the way, one by one.
fn names(path: &Path) -> io::Result<impl Iterator<Item = &Path>> {
    let plain = path.components().all(|part| matches!(part, Component::Normal(_) | Component::CurDir));
    if !plain {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it leads out of its folder"));
    }
    Ok(path.components().filter_map(|part| match part {
        Component::Normal(name) => Some(Path::new(name)),
        _ => None,
    }))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    fn place(root: &Path, path: &str) -> Place {
        Place { root: root.to_owned(), path: path.into() }
    }

    #[test]
    fn links_lead_nowhere_but_inside() {
        let dir = tempfile::tempdir().unwrap();
        let (task, other) = (dir.path().join("task"), dir.path().join("other"));
        for folder in [task.join("local/real"), task.join("private"), other.clone()] {
            std::fs::create_dir_all(folder).unwrap();
        }
        std::fs::write(other.join("secret"), "secret").unwrap();
        std::fs::write(task.join("local/real/file"), "own").unwrap();
        // The scheduler's, in the task's directory.
        std::fs::write(task.join("private/token"), "token").unwrap();
        for (link, to) in [
            ("local/inside", "real/file".into()),
            ("local/out", "../../other/secret".into()),
            ("local/absolute", other.join("secret")),
            ("local/folder", "../../other".into()),
            ("local/sub", "real".into()),
            ("local/magic", "/proc/self/cwd/Cargo.toml".into()),
            ("local/token", "../private/token".into()),
            ("local/beside", "../private".into()),
            ("token", "private/token".into()),
            ("beside", "private".into()),
        ] {
            symlink(to, task.join(link)).unwrap();
        }
        let read = |path: &str| read(&place(&task, path), 100);
        assert_eq!((read("local/inside").unwrap(), read("local/sub/file").unwrap()), (b"own".into(), b"own".into()));
        for path in ["local/out", "local/absolute", "local/folder/secret", "local/magic", "../other/secret"] {
            assert!(read(path).is_err(), "{path}");
        }
        for path in ["local/token", "local/beside/token", "token", "beside/token"] {
            assert!(read(path).is_err(), "{path}");
        }
        assert!(read("local").unwrap_err().to_string().contains("no file"));
        assert!(super::read(&place(&task, "local/real/file"), 2).unwrap_err().to_string().contains("larger"));
        // Folders and outputs follow none at all.
        for path in
            ["local/folder", "local/sub", "local/folder/made", "local/sub/made", "../made", "local/real/../../x"]
        {
            assert!(folder(&place(&task, path), true).is_err(), "{path}");
        }
        assert!(
            !other.join("made").exists() && !task.join("local/real/made").exists() && !dir.path().join("made").exists()
        );
        for path in ["local/out", "local/inside", "local/folder/secret"] {
            assert!(output(&place(&task, path)).is_err(), "{path}");
        }
        folder(&place(&task, "local/real/new/newer"), true).unwrap();
        let mode = std::fs::metadata(task.join("local/real/new")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o777);
        assert!(folder(&place(&task, "local/none"), false).is_err());
        assert!(folder(&place(&task, ""), false).is_ok());
    }

    /// Whoever runs as root in another task of the group, with what containers have, can put any device anywhere.
    #[test]
    fn no_device_is_opened_wherever_it_lies() {
        use rustix::fs::{CWD, FileType, makedev, mknodat};
        let dir = tempfile::tempdir().unwrap();
        let mode = Mode::RUSR | Mode::WUSR;
        let device = |name: &str, major, minor| {
            mknodat(CWD, dir.path().join(name), FileType::CharacterDevice, mode, makedev(major, minor))
        };
        let opened = |name: &str| (read(&place(dir.path(), name), 9), output(&place(dir.path(), name)));
        if device("null", 1, 3).is_err() {
            return println!("NOT RUN: devices in the place of a task's files: only root makes them");
        }
        let (read, written) = opened("null");
        assert!(read.unwrap_err().to_string().contains("no file"));
        if written.is_err_and(|cause| cause.raw_os_error() == Some(Errno::ACCESS.raw_os_error())) {
            return println!(
                "NOT RUN: devices in the place of a task's files: devices are off where temporary files are"
            );
        }
        // A number that no driver has tells whether it was opened: the kernel says then that there is no such device.
        for (name, major, minor) in [("full", 1, 7), ("zero", 1, 5), ("nobody's", 240, 77)] {
            device(name, major, minor).unwrap();
            let (read, written) = opened(name);
            assert!(read.unwrap_err().to_string().contains("it is no file"), "{name}");
            assert!(written.unwrap_err().to_string().contains("neither a FIFO"), "{name}");
        }
        // A socket, and a pipe where a file is to be read.
        let _socket = std::os::unix::net::UnixListener::bind(dir.path().join("socket")).unwrap();
        assert!(opened("socket").0.is_err() && opened("socket").1.is_err());
        mknodat(CWD, dir.path().join("pipe"), FileType::Fifo, mode, 0).unwrap();
        let (read, written) = opened("pipe");
        assert!(read.unwrap_err().to_string().contains("no file"));
        assert_eq!(written.unwrap_err().raw_os_error(), Some(Errno::NXIO.raw_os_error()), "nobody reads it yet");
    }

    /// Whatever stands in the place of a folder that was just made keeps the mode it has.
    #[test]
    fn a_folder_has_its_mode_from_the_beginning() {
        use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::Relaxed};
        let dir = tempfile::tempdir().unwrap();
        let (made, closed) = (dir.path().join("shared/made"), dir.path().join("closed"));
        std::fs::create_dir(dir.path().join("shared")).unwrap();
        let stop = AtomicBool::new(false);
        let exchanged = AtomicU32::new(0);
        std::thread::scope(|scope| {
            // As another task of the group would: something it keeps closed, in the place of what was just made.
            let other = scope.spawn(|| {
                while !stop.load(Relaxed) {
                    drop(std::fs::create_dir(&closed));
                    std::fs::set_permissions(&closed, PermissionsExt::from_mode(0o700)).unwrap();
                    std::fs::write(closed.join("own"), "").unwrap();
                    while !(stop.load(Relaxed) || made.exists() && std::fs::rename(&closed, &made).is_ok()) {
                        std::hint::spin_loop();
                    }
                    if !made.join("own").exists() {
                        break;
                    }
                    let times = exchanged.fetch_add(1, Relaxed) + 1;
                    for _ in 0..50 {
                        let mode = std::fs::metadata(&made).unwrap().permissions().mode() & 0o777;
                        assert_eq!(mode, 0o700, "after {times}");
                    }
                    std::fs::remove_dir_all(&made).unwrap();
                }
            });
            // On a machine with much to do the other one may have to wait for its turn.
            let until = std::time::Instant::now() + std::time::Duration::from_secs(60);
            let some = || exchanged.load(Relaxed) >= 10 || other.is_finished();
            for tries in 0.. {
                if tries >= 20_000 && (some() || std::time::Instant::now() > until) {
                    break;
                }
                drop(folder(&place(dir.path(), "shared/made"), true));
            }
            stop.store(true, Relaxed);
            other.join().unwrap();
        });
        assert!(exchanged.into_inner() > 0);
    }
}
