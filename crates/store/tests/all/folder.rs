//! Objects as files: what is on disk, what a crash leaves, what damage looks like, and who shares what.

use std::path::{Path, PathBuf};

use model::{AppName, ProviderName, TenantName};
use store::folder::{Folder, FolderError, Scope};

struct Whose(TenantName, AppName, ProviderName);

impl Whose {
    fn new(tenant: &str, app: &str, provider: &str) -> Self {
        Self(tenant.parse().unwrap(), app.parse().unwrap(), provider.parse().unwrap())
    }
    fn scope(&self) -> Scope<'_> {
        Scope { tenant: &self.0, app: &self.1, provider: &self.2 }
    }
}

fn files(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { found.extend(files(&path)) } else { found.push(path) }
    }
    found
}

fn put(folder: &Folder, whose: &Whose, container: &str, object: &str, bytes: &[u8]) {
    let mut partial = folder.write(whose.scope(), container, object).unwrap();
    partial.write(bytes).unwrap();
    partial.finish().unwrap();
}

fn get(folder: &Folder, whose: &Whose, container: &str, object: &str) -> Result<Vec<u8>, FolderError> {
    let mut opened = folder.read(whose.scope(), container, object)?;
    opened.read(0, usize::MAX >> 1)
}

/// The file of the only object.
fn only(dir: &Path) -> PathBuf {
    let mut objects = files(dir);
    objects.retain(|path| !path.ends_with("container.json"));
    assert_eq!(objects.len(), 1, "{objects:?}");
    objects.remove(0)
}

#[test]
fn a_crash_leaves_partial_files_only_and_the_next_start_sweeps_them() {
    let dir = tempfile::tempdir().unwrap();
    let whose = Whose::new("acme", "shop", "folder");
    let folder = Folder::open(dir.path()).unwrap();
    folder.create(whose.scope(), "c").unwrap();
    put(&folder, &whose, "c", "kept", b"old");
    let mut partial = folder.write(whose.scope(), "c", "kept").unwrap();
    partial.write(&[1; 100_000]).unwrap();
    // As `kill -9` would: nothing of it is cleaned up.
    std::mem::forget(partial);
    assert_eq!(get(&folder, &whose, "c", "kept").unwrap(), b"old");
    let elsewhere = dir.path().join(".partial");
    assert_eq!(files(&elsewhere).len(), 1);
    let folder = Folder::open(dir.path()).unwrap();
    assert_eq!(files(&elsewhere).len(), 0);
    assert_eq!(get(&folder, &whose, "c", "kept").unwrap(), b"old");
}

#[test]
fn what_is_dropped_or_removed_takes_no_room() {
    let dir = tempfile::tempdir().unwrap();
    let whose = Whose::new("acme", "shop", "folder");
    let folder = Folder::open(dir.path()).unwrap();
    folder.create(whose.scope(), "c").unwrap();
    folder.write(whose.scope(), "c", "o").unwrap().write(b"half").unwrap();
    for n in 0..10 {
        put(&folder, &whose, "c", &n.to_string(), b"x");
    }
    folder.remove(whose.scope(), "c", &["3".to_owned()]).unwrap();
    assert_eq!(files(dir.path()).len(), 10, "nine objects and the container");
    folder.clear(whose.scope(), "c").unwrap().empty();
    assert_eq!(files(dir.path()).len(), 1);
    put(&folder, &whose, "c", "again", b"x");
    folder.delete(whose.scope(), "c").unwrap().empty();
    assert_eq!(files(dir.path()).len(), 0);
}

#[test]
fn damage_is_said_and_never_read_as_content() {
    let dir = tempfile::tempdir().unwrap();
    let whose = Whose::new("acme", "shop", "folder");
    let folder = Folder::open(dir.path()).unwrap();
    folder.create(whose.scope(), "c").unwrap();
    let content = vec![7; 10_000];
    put(&folder, &whose, "c", "o", &content);
    let path = only(dir.path());
    let whole = std::fs::read(&path).unwrap();
    let mut flipped = whole.clone();
    flipped[5000] ^= 1;
    let grown = [&whole[..], b"more"].concat();
    for (what, bytes) in [
        ("cut", &whole[..whole.len() - 1]),
        ("half", &whole[..5000]),
        ("empty", &[]),
        ("short", &whole[1..]),
        ("grown", &grown),
        ("flipped", &flipped),
    ] {
        std::fs::write(&path, bytes).unwrap();
        let read = get(&folder, &whose, "c", "o");
        assert!(matches!(&read, Err(FolderError::Damaged { object, .. }) if object == "o"), "{what}: {read:?}");
    }
    std::fs::write(&path, &whole).unwrap();
    assert_eq!(get(&folder, &whose, "c", "o").unwrap(), content);
    // A file under another object's name is not that object.
    put(&folder, &whose, "c", "p", b"other");
    let other = files(dir.path()).into_iter().find(|file| *file != path && !file.ends_with("container.json")).unwrap();
    std::fs::copy(&path, &other).unwrap();
    assert!(matches!(get(&folder, &whose, "c", "p"), Err(FolderError::Damaged { .. })));
}

#[test]
fn whatever_a_name_is_no_path_escapes_and_nobody_meets() {
    let dir = tempfile::tempdir().unwrap();
    let inside = dir.path().join("objects");
    let folder = Folder::open(&inside).unwrap();
    let owners = [
        Whose::new("acme", "shop", "folder"),
        Whose::new("acme", "shop", "other"),
        Whose::new("acme", "shop-x", "folder"),
        Whose::new("shop", "acme", "folder"),
    ];
    let names = ["..", "../../x", "/etc/passwd", ".partial", "container.json", "objects", "a\0b", "C:\\x", "."];
    for (n, whose) in owners.iter().enumerate() {
        for name in names {
            folder.create(whose.scope(), name).unwrap();
            put(&folder, whose, name, name, format!("{n}{name}").as_bytes());
        }
    }
    for (n, whose) in owners.iter().enumerate() {
        for name in names {
            assert_eq!(get(&folder, whose, name, name).unwrap(), format!("{n}{name}").into_bytes());
            assert_eq!(folder.list(whose.scope(), name, None).unwrap().names, [name]);
        }
    }
    let outside: Vec<_> = std::fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert_eq!(outside, [inside]);
}

#[test]
fn writers_and_a_clearing_at_once_end_in_whole_objects() {
    let dir = tempfile::tempdir().unwrap();
    let whose = Whose::new("acme", "shop", "folder");
    let folder = Folder::open(dir.path()).unwrap();
    folder.create(whose.scope(), "c").unwrap();
    std::thread::scope(|scope| {
        for writer in 0..4 {
            let (folder, whose) = (&folder, &whose);
            scope.spawn(move || {
                for n in 0..50 {
                    put(folder, whose, "c", &format!("{}", n % 5), &[writer; 4096]);
                }
            });
        }
        scope.spawn(|| {
            for _ in 0..20 {
                folder.clear(whose.scope(), "c").unwrap().empty();
            }
        });
    });
    for name in folder.list(whose.scope(), "c", None).unwrap().names {
        let bytes = get(&folder, &whose, "c", &name).unwrap();
        assert!(bytes.len() == 4096 && bytes.iter().all(|byte| *byte == bytes[0]));
    }
}
