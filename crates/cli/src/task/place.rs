//! Files and folders of a task. Whatever runs in the same job may put a link, a pipe or another folder under any of their
//! names at any time, and this process may be root: so each is opened from the scheduler's own folder down, below which the
//! kernel keeps it, and what was opened is looked at. Nothing is ever checked by a name and used by it later.

use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Component, Path};

use api::task::Place;
use rustix::fs::{Mode, OFlags, ResolveFlags, fchmod, mkdirat, openat2};
use rustix::io::Errno;

/// How often an opening is tried again that a renaming elsewhere got in the way of.
const TRIES: u32 = 64;
/// Nothing leads out of the folder, and no name of `/proc` leads anywhere.
const INSIDE: ResolveFlags = ResolveFlags::BENEATH.union(ResolveFlags::NO_MAGICLINKS);
/// Nor is any link followed.
const PLAIN: ResolveFlags = INSIDE.union(ResolveFlags::NO_SYMLINKS);
const FOLDER: OFlags = OFlags::DIRECTORY.union(OFlags::CLOEXEC);
/// What everybody in the job may use, as the scheduler makes its own folders.
const SHARED: Mode = Mode::RWXU.union(Mode::RWXG).union(Mode::RWXO);
/// How many of the last folders of a private place are nobody else's.
const PRIVATE: usize = 2;

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

/// Reads a whole file, of at most `most` bytes. Links that stay inside are followed: artifacts may hold some.
///
/// # Errors
/// Where there is none, it is none, or it is larger.
pub fn read(place: &Place, most: usize) -> io::Result<Vec<u8>> {
    // A pipe does not hold up whoever opens it so.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY;
    let file = File::from(open(root(place)?, &place.path, flags, INSIDE)?);
    let found = file.metadata()?;
    if !found.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is no file"));
    }
    let mut bytes = Vec::with_capacity(usize::try_from(found.len()).unwrap_or(most).min(most));
    file.take(most as u64 + 1).read_to_end(&mut bytes)?;
    match bytes.len() > most {
        true => Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("it is larger than {most} bytes"))),
        false => Ok(bytes),
    }
}

/// Opens an output, without waiting for its reader.
///
/// # Errors
/// As the kernel says.
pub fn output(place: &Place) -> io::Result<File> {
    let flags = OFlags::WRONLY | OFlags::APPEND | OFlags::NONBLOCK | OFlags::NOCTTY;
    open(root(place)?, &place.path, flags, PLAIN).map(File::from)
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
                here = step(&here, name, Some(SHARED))?;
            }
            Ok(here)
        }
        opened => opened,
    }
}

/// Opens a folder that is this user's alone, and so is the one it is in; both are made where they are not there.
///
/// # Errors
/// Where it cannot be made, or one of the two is somebody else's or open to others.
pub fn private(place: &Place) -> io::Result<OwnedFd> {
    let names: Vec<&Path> = names(&place.path)?.collect();
    let ours = names.len().saturating_sub(PRIVATE);
    let mut here = root(place)?;
    for (index, name) in names.into_iter().enumerate() {
        let mode = if index < ours { None } else { Some(Mode::RWXU) };
        here = step(&here, name, mode)?;
        if index < ours {
            continue;
        }
        let found = rustix::fs::fstat(&here)?;
        if found.st_uid != rustix::process::geteuid().as_raw() || found.st_mode & 0o077 != 0 {
            let why = format!("{} is not this user's alone; remove it, nobody but the driver makes it", name.display());
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, why));
        }
    }
    Ok(here)
}

/// The folder of this name in another; made with `mode` where it is not there.
fn step(from: &OwnedFd, name: &Path, mode: Option<Mode>) -> io::Result<OwnedFd> {
    let made = match mode {
        Some(mode) => match mkdirat(from, name, mode) {
            Ok(()) => true,
            Err(Errno::EXIST) => false,
            Err(cause) => return Err(cause.into()),
        },
        None => false,
    };
    let opened = open(from, name, OFlags::RDONLY | FOLDER, PLAIN)?;
    if let (true, Some(mode)) = (made, mode) {
        // Whatever mask this process was started with.
        fchmod(&opened, mode)?;
    }
    Ok(opened)
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
        for folder in [task.join("local/real"), other.clone()] {
            std::fs::create_dir_all(folder).unwrap();
        }
        std::fs::write(other.join("secret"), "secret").unwrap();
        std::fs::write(task.join("local/real/file"), "own").unwrap();
        for (link, to) in [
            ("local/inside", "real/file".into()),
            ("local/out", "../../other/secret".into()),
            ("local/absolute", other.join("secret")),
            ("local/folder", "../../other".into()),
            ("local/sub", "real".into()),
            ("local/magic", "/proc/self/cwd/Cargo.toml".into()),
        ] {
            symlink(to, task.join(link)).unwrap();
        }
        let read = |path: &str| read(&place(&task, path), 100);
        assert_eq!((read("local/inside").unwrap(), read("local/sub/file").unwrap()), (b"own".into(), b"own".into()));
        for path in ["local/out", "local/absolute", "local/folder/secret", "local/magic", "../other/secret"] {
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

    #[test]
    fn a_private_folder_is_nobody_elses() {
        let dir = tempfile::tempdir().unwrap();
        let (root, other) = (dir.path().join("alloc"), dir.path().join("other"));
        std::fs::create_dir_all(root.join("data")).unwrap();
        std::fs::create_dir_all(other.join("web")).unwrap();
        let own = place(&root, "data/.kept/web");
        private(&own).unwrap();
        private(&own).unwrap();
        for made in ["data/.kept", "data/.kept/web"] {
            let mode = std::fs::metadata(root.join(made)).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o700, "{made}");
        }
        // Somebody made it first, open to all; or put a link in its place, or in the place of what is above.
        std::fs::set_permissions(root.join("data/.kept"), PermissionsExt::from_mode(0o755)).unwrap();
        assert!(private(&own).unwrap_err().to_string().contains(".kept"));
        std::fs::rename(root.join("data/.kept"), root.join("data/away")).unwrap();
        symlink("../../other", root.join("data/.kept")).unwrap();
        assert!(private(&own).is_err());
        std::fs::remove_file(root.join("data/.kept")).unwrap();
        std::fs::rename(root.join("data"), root.join("moved")).unwrap();
        symlink("../other", root.join("data")).unwrap();
        assert!(private(&own).is_err());
        assert!(std::fs::read_dir(other).unwrap().count() == 1);
    }
}
