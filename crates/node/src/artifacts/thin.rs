//! Compiled code that several nodes share and none of them knows the whole use of: what nobody has used for long goes, and of
//! the rest what was not used for longest while it takes more room than it may. When code was last used is the time of its MAC.
//! What it was made of, where a registry sent that, goes by the same rules and out of the same room.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use super::cache::{MAC, entries};

/// Code that was not used for so long is made anew when somebody wants it.
const UNUSED: Duration = Duration::from_secs(14 * 24 * 3600);
/// What all code together may take, bytes.
const ROOM: u64 = 4 << 30;
/// A file that has no name yet is nobody's any more when it is so old.
const UNFINISHED: Duration = Duration::from_secs(3600);
/// How often the folder is looked through, however many nodes use it.
const EVERY: Duration = Duration::from_secs(600);
/// Its age says when that was.
const LOOKED: &str = "looked";

/// A file of code with its MAC.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Code {
    path: PathBuf,
    size: u64,
    used: SystemTime,
}

/// Which code is to go.
fn surplus(mut all: Vec<Code>, now: SystemTime, unused: Duration, room: u64) -> Vec<PathBuf> {
    all.sort_by_key(|code| code.used);
    let mut taken: u64 = all.iter().map(|code| code.size).sum();
    let goes = |code: &Code| {
        let old = now.duration_since(code.used).is_ok_and(|age| age > unused);
        let goes = old || taken > room;
        if goes {
            taken -= code.size;
        }
        goes
    };
    let (gone, _): (Vec<_>, Vec<_>) = all.into_iter().partition(goes);
    gone.into_iter().map(|code| code.path).collect()
}

/// Looks through the folder, unless somebody did lately. Blocks on the disk. Whoever has a file open goes on using it.
pub(super) fn thin(dir: &Path) {
    let looked = dir.join(LOOKED);
    let lately = fs::metadata(&looked).and_then(|found| found.modified());
    if lately.is_ok_and(|when| when.elapsed().unwrap_or_default() < EVERY) {
        return;
    }
    if let Err(cause) = fs::write(&looked, "") {
        return tracing::warn!(path = %looked.display(), %cause, "unused code stays");
    }
    thin_to(dir, SystemTime::now(), UNUSED, ROOM);
}

fn thin_to(dir: &Path, now: SystemTime, unused: Duration, room: u64) {
    let engines: Vec<PathBuf> = entries(dir).into_iter().map(|(_, path)| path).filter(|path| path.is_dir()).collect();
    let mut all = Vec::new();
    for (name, path) in engines.iter().flat_map(|engine| entries(engine)) {
        let Ok(found) = path.metadata() else { continue };
        let Ok(written) = found.modified() else { continue };
        if name.ends_with(".cwasm") || name.ends_with(super::pulled::END) {
            // Without one it is just being kept, or is nobody's; what was pulled has none, and is touched itself.
            let used = fs::metadata(super::cache::mac_path(&path)).and_then(|mac| mac.modified()).unwrap_or(written);
            all.push(Code { path, size: found.len(), used });
        } else if name.ends_with(".partial") && now.duration_since(written).is_ok_and(|age| age > UNFINISHED) {
            remove(&path);
        } else if let Some(code) = name.strip_suffix(MAC)
            && !path.with_file_name(code).exists()
            && now.duration_since(written).is_ok_and(|age| age > UNFINISHED)
        {
            remove(&path);
        }
    }
    for path in surplus(all, now, unused, room) {
        tracing::info!(path = %path.display(), "removed code that was not used for long");
        // The code first: a MAC without it is nothing, and is found again.
        remove(&path);
        remove(&super::cache::mac_path(&path));
    }
    for engine in engines {
        // One that is not empty stays.
        drop(fs::remove_dir(engine));
    }
}

fn remove(path: &Path) {
    if let Err(cause) = fs::remove_file(path)
        && cause.kind() != std::io::ErrorKind::NotFound
    {
        tracing::warn!(path = %path.display(), %cause, "unused code stays");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: Duration = Duration::from_secs(24 * 3600);

    fn put(engine: &Path, name: &str, size: usize, used: SystemTime) {
        fs::create_dir_all(engine).unwrap();
        fs::write(engine.join(name), vec![0; size]).unwrap();
        fs::write(engine.join(format!("{name}{MAC}")), "mac").unwrap();
        fs::File::open(engine.join(format!("{name}{MAC}"))).unwrap().set_modified(used).unwrap();
    }

    fn names(dir: &Path) -> Vec<String> {
        let mut names: Vec<_> = entries(dir).into_iter().map(|(name, _)| name).collect();
        names.sort();
        names
    }

    #[test]
    fn what_nobody_uses_goes_and_what_is_used_stays() {
        let dir = tempfile::tempdir().unwrap();
        let now = SystemTime::now();
        let (new, old) = (dir.path().join("aa"), dir.path().join("bb"));
        put(&new, "used.p2.cwasm", 100, now - DAY);
        put(&new, "unused.p2.cwasm", 100, now - 15 * DAY);
        put(&old, "unused.p2.cwasm", 100, now - 20 * DAY);
        fs::write(new.join("x.cwasm.7-1.partial"), "half").unwrap();
        fs::File::open(new.join("x.cwasm.7-1.partial")).unwrap().set_modified(now - DAY).unwrap();
        fs::write(new.join("y.cwasm.7-2.partial"), "being written").unwrap();
        let pulled = dir.path().join("pulled");
        fs::create_dir(&pulled).unwrap();
        for (name, used) in [("used.wasm", now - DAY), ("unused.wasm", now - 15 * DAY)] {
            fs::write(pulled.join(name), [0; 100]).unwrap();
            fs::File::open(pulled.join(name)).unwrap().set_modified(used).unwrap();
        }
        thin_to(dir.path(), now, UNUSED, 1000);
        assert_eq!(names(&pulled), ["used.wasm"]);
        assert_eq!(names(&new), ["used.p2.cwasm", "used.p2.cwasm.mac", "y.cwasm.7-2.partial"]);
        assert!(!old.exists(), "an engine that has no code any more");
        // Too much: what was not used for longest.
        put(&new, "later.p2.cwasm", 100, now);
        put(&new, "latest.p2.cwasm", 100, now + DAY);
        thin_to(dir.path(), now, UNUSED, 250);
        let left = names(&new);
        assert!(!pulled.exists(), "it takes of the same room");
        assert!(!left.contains(&"used.p2.cwasm".to_owned()) && left.contains(&"later.p2.cwasm".to_owned()), "{left:?}");
        // Once in a while, however many nodes begin.
        thin(dir.path());
        put(&new, "unused.p2.cwasm", 100, now - 20 * DAY);
        thin(dir.path());
        assert!(names(&new).contains(&"unused.p2.cwasm".to_owned()));
        fs::File::open(dir.path().join(LOOKED)).unwrap().set_modified(now - DAY).unwrap();
        thin(dir.path());
        assert!(!names(&new).contains(&"unused.p2.cwasm".to_owned()));
    }
}
