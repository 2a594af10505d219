//! Files that appear whole or not at all: made under another name, synced, then given their own.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use super::Fail;

/// Makes the names in a directory durable: a new file survives a power cut only after this.
pub(crate) fn sync_dir(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

/// The directory of a file.
pub(super) fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// The path with `suffix` after its last character.
pub(super) fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// Makes a file readable by its owner only, fills it by `fill`, and names it `path`. One that somebody else named
/// first is left alone.
pub(super) fn create(path: &Path, fill: impl FnOnce(File) -> Result<(), Fail>) -> Result<(), Fail> {
    let unfinished = beside(path, &format!(".new-{}", std::process::id()));
    let _ = fs::remove_file(&unfinished);
    let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&unfinished)?;
    let made = fill(file).and_then(|()| {
        File::open(&unfinished)?.sync_all()?;
        match fs::hard_link(&unfinished, path) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(e.into()),
            _ => {}
        }
        Ok(sync_dir(parent(path))?)
    });
    let _ = fs::remove_file(&unfinished);
    made
}

/// Opens a file that must be there.
pub(super) fn open_existing(path: &Path) -> Result<File, Fail> {
    open(path, OpenOptions::new().read(true).write(true))
}

/// Opens a file that must be there; the lock on it needs a writable descriptor where there can be one.
pub(super) fn open_for_reading(path: &Path) -> Result<File, Fail> {
    open_existing(path).or_else(|_| open(path, OpenOptions::new().read(true)))
}

fn open(path: &Path, options: &OpenOptions) -> Result<File, Fail> {
    options.open(path).map_err(|e| match e.kind() {
        io::ErrorKind::NotFound => Fail::Damaged("it is gone".into()),
        io::ErrorKind::IsADirectory => Fail::Damaged("it is a folder".into()),
        _ => e.into(),
    })
}

/// Whether the disk takes a little more: cheaper than to find out by another failed commit.
pub(super) fn probe(path: &Path) -> Result<(), Fail> {
    let probe = beside(path, ".new-probe");
    let written = File::create(&probe).and_then(|mut file| {
        file.write_all(&[0; 64 << 10])?;
        file.sync_all()
    });
    let _ = fs::remove_file(&probe);
    Ok(written?)
}

/// Removes what a process that was killed while making the file left. Only for whoever holds the file's lock.
pub(super) fn sweep(path: &Path) {
    let Some(name) = path.file_name() else { return };
    let prefix = format!("{}.new-", name.to_string_lossy());
    let Ok(entries) = fs::read_dir(parent(path)) else { return };
    for entry in entries.flatten().filter(|entry| entry.file_name().to_string_lossy().starts_with(&prefix)) {
        let _ = fs::remove_file(entry.path());
    }
}
