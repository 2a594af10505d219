//! The disk module under a disk that fails at every point, and files that were damaged at every point.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use ::redb::TableDefinition;

use super::*;

const ROWS: TableDefinition<'static, u64, &[u8]> = TableDefinition::new("rows");

const KIND: Kind = Kind {
    format: 0x7e57_0001,
    cache: 1 << 20,
    verify_up_to: u64::MAX,
    prepare: |txn| {
        txn.open_table(ROWS)?;
        Ok(())
    },
    check: |txn| {
        txn.open_table(ROWS)?;
        Ok(())
    },
};

/// A disk that does so many more acts and then refuses all; negative: never refuses.
#[derive(Debug)]
pub(crate) struct Faults(AtomicI64);

impl Faults {
    pub(crate) fn act<T>(&self, act: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        let left = self.0.load(Ordering::Relaxed);
        if left == 0 {
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.0.store(left - 1, Ordering::Relaxed);
        act()
    }

    /// As a disk that never refuses.
    pub(crate) fn none() -> Self {
        Self((-1).into())
    }

    pub(crate) fn allow(&self, acts: i64) {
        self.0.store(acts, Ordering::Relaxed);
    }
}

/// A file on such a disk.
pub(crate) fn faulty(path: &Path, kind: Kind, faults: &Arc<Faults>) -> Disk {
    let faults = faults.clone();
    Disk::open_with(path, kind, Box::new(move |file| Backend::faulty(file, faults.clone()))).unwrap()
}

fn put(disk: &Disk, row: u64, value: &[u8]) -> Result<(), Fail> {
    disk.commit(|txn| {
        txn.open_table(ROWS)?.insert(row, value)?;
        Ok(())
    })
}

fn rows(disk: &Disk) -> Vec<u64> {
    let table = disk.read().unwrap().open_table(ROWS).unwrap();
    table.range::<u64>(..).unwrap().map(|row| row.unwrap().0.value()).collect()
}

#[test]
fn a_disk_that_fails_at_any_act_loses_nothing_and_recovers_by_itself() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("f.redb");
    let faults = Arc::new(Faults::none());
    let disk = faulty(&path, KIND, &faults);
    let mut kept = Vec::new();
    let mut refused = 0;
    let value = vec![5; 3000];
    for row in 0..400 {
        faults.allow(row as i64 % 40);
        match put(&disk, row, &value) {
            Ok(()) => kept.push(row),
            Err(Fail::Disk(_)) => refused += 1,
            // Both the write and the sync after it failed: either is right, but it must be one of them.
            Err(Fail::Unknown(_)) => {
                faults.allow(-1);
                put(&disk, 1000, b"").unwrap();
                if rows(&disk).contains(&row) {
                    kept.push(row);
                }
            }
            Err(other) => panic!("{row}: {other:?}"),
        }
        faults.allow(-1);
        put(&disk, 1000, b"").unwrap();
        let now = rows(&disk);
        assert!(now.iter().filter(|row| **row != 1000).eq(&kept), "after {row}: {now:?} {kept:?}");
    }
    assert!(refused > 50 && kept.len() > 50, "{refused} refused, {} kept", kept.len());
    drop(disk);
    let disk = Disk::open(&path, KIND).unwrap();
    assert!(rows(&disk).iter().filter(|row| **row != 1000).eq(&kept));
}

/// Writes ten rows and returns the file as it is after a clean end, or as `kill -9` leaves it.
fn sample(path: &Path, clean: bool) -> Vec<u8> {
    let disk = Disk::open(path, KIND).unwrap();
    for row in 0..10 {
        put(&disk, row, &[row as u8; 900]).unwrap();
    }
    let running = std::fs::read(path).unwrap();
    drop(disk);
    if clean { std::fs::read(path).unwrap() } else { running }
}

fn damaged_or_whole(path: &Path, what: &str) -> bool {
    let before = std::fs::read(path).unwrap();
    let checked = check(path, KIND);
    assert!(std::fs::read(path).unwrap() == before, "{what}: looking changed the file");
    match Disk::open(path, KIND) {
        Ok(disk) => {
            assert!(checked.is_ok(), "{what}: {checked:?}");
            let table = disk.read().unwrap().open_table(ROWS).unwrap();
            for row in 0..10u64 {
                let value = table.get(row).unwrap().unwrap_or_else(|| panic!("{what}: row {row} vanished"));
                assert!(value.value() == [row as u8; 900], "{what}: row {row} changed");
            }
            put(&disk, 11, b"more").unwrap();
            false
        }
        Err(StoreError::Damaged { path: named, .. }) => {
            assert_eq!(named, path.display().to_string());
            assert!(std::fs::read(path).unwrap() == before, "{what}: the damaged file was changed");
            assert!(matches!(checked, Err(StoreError::Damaged { .. })), "{what}: {checked:?}");
            true
        }
        Err(other) => panic!("{what}: {other}"),
    }
}

#[test]
fn flipped_bits_are_refused_or_harmless_and_the_file_is_not_touched() {
    let dir = tempfile::tempdir().unwrap();
    for clean in [true, false] {
        let path = dir.path().join(format!("{clean}.redb"));
        let witness = witness::path_of(&path);
        let good = sample(&path, clean);
        let last = std::fs::read(&witness).unwrap();
        let used = good.iter().rposition(|byte| *byte != 0).unwrap();
        // Bits all over the header and the two commit slots, all of the flags, then a walk through what is written.
        let pages: Vec<usize> = (320..used).filter(|byte| good[*byte] != 0).collect();
        let pages = pages.iter().step_by((pages.len() / 100).max(1)).copied();
        let bytes = (0..64).chain((64..320).step_by(5)).chain(pages);
        let bits = bytes.map(|byte| byte * 8 + byte % 8).chain(72..80);
        let (mut refused, mut tried) = (0, 0);
        for bit in bits {
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            std::fs::write(&path, &bad).unwrap();
            std::fs::write(&witness, &last).unwrap();
            refused += usize::from(damaged_or_whole(&path, &format!("clean {clean}, bit {bit}")));
            tried += 1;
        }
        assert!(refused > tried / 20, "only {refused} of {tried} flips were noticed");
    }
}

#[test]
fn a_file_cut_short_anywhere_is_refused_and_not_touched() {
    let dir = tempfile::tempdir().unwrap();
    for clean in [true, false] {
        let path = dir.path().join(format!("{clean}.redb"));
        let witness = witness::path_of(&path);
        let good = sample(&path, clean);
        let last = std::fs::read(&witness).unwrap();
        for length in (0..good.len()).step_by(good.len() / 150).chain([1, 319, 320, 4096, good.len() - 1]) {
            std::fs::write(&path, &good[..length]).unwrap();
            std::fs::write(&witness, &last).unwrap();
            let refused = damaged_or_whole(&path, &format!("clean {clean}, {length} bytes"));
            assert!(refused, "clean {clean}: {length} of {} bytes were accepted", good.len());
        }
    }
}

#[test]
fn an_older_copy_of_the_file_is_noticed() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("f.redb");
    let old = sample(&path, true);
    put(&Disk::open(&path, KIND).unwrap(), 50, b"newer").unwrap();
    std::fs::write(&path, old).unwrap();
    let error = Disk::open(&path, KIND).unwrap_err();
    assert!(error.to_string().contains("was acknowledged"), "{error}");
}

#[test]
fn a_vanished_file_is_not_replaced_by_an_empty_one() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("f.redb");
    sample(&path, true);
    std::fs::remove_file(&path).unwrap();
    let error = Disk::open(&path, KIND).unwrap_err();
    assert!(error.to_string().contains("gone"), "{error}");
    assert!(!path.exists());
    std::fs::remove_file(witness::path_of(&path)).unwrap();
    assert!(rows(&Disk::open(&path, KIND).unwrap()).is_empty());
}

#[test]
fn another_version_another_engine_and_other_files_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("f.redb");
    sample(&path, true);
    let open = |format| Disk::open(&path, Kind { format, ..KIND }).unwrap_err().to_string();
    assert!(open(0x7e57_0002).contains("format version 1, this program reads version 2"));
    assert!(open(0x1234_0001).contains("not a file of this engine"));
    std::fs::write(dir.path().join("text"), "hello\n".repeat(9999)).unwrap();
    assert!(matches!(Disk::open(&dir.path().join("text"), KIND), Err(StoreError::Damaged { .. })));
    assert!(matches!(Disk::open(dir.path(), KIND), Err(StoreError::Damaged { .. })));
    assert!(matches!(Disk::open(&dir.path().join("no/where"), KIND), Err(StoreError::CannotWrite { .. })));
}

#[test]
fn a_second_opener_is_told_so_and_leftovers_are_swept() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("f.redb");
    let leftover = dir.path().join("f.redb.new-1");
    std::fs::write(&leftover, b"half").unwrap();
    let disk = Disk::open(&path, KIND).unwrap();
    assert!(!leftover.exists());
    assert!(matches!(Disk::open(&path, KIND), Err(StoreError::InUse { .. })));
    put(&disk, 1, b"still mine").unwrap();
    drop(disk);
    assert_eq!(rows(&Disk::open(&path, KIND).unwrap()), [1]);
}

#[test]
fn looking_for_a_file_makes_none_and_misses_one_that_was_there() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("f.redb");
    check(&path, KIND).unwrap();
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    let disk = Disk::open(&path, KIND).unwrap();
    put(&disk, 1, b"one").unwrap();
    assert!(matches!(check(&path, KIND), Err(StoreError::InUse { .. })));
    drop(disk);
    check(&path, KIND).unwrap();
    std::fs::remove_file(&path).unwrap();
    assert!(matches!(check(&path, KIND), Err(StoreError::Damaged { .. })));
    assert!(!path.exists());
}
