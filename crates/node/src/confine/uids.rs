//! Which user id belongs to whom: given once, written down before it is used, and never given to another.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use model::Digest;
use serde::{Deserialize, Serialize};

/// The file, in the node's directory.
const FILE: &str = "uids.json";
/// User ids that Linux distributions leave alone: from here to 2^31.
const FREE: u32 = 1_900_000_000;
/// Below are people and services.
const LEAST: u32 = 1000;
/// Ids of one node, where nobody says otherwise.
const COUNT: u32 = 65_536;

/// User ids that are this node's to give, first and last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct UidRange {
    /// The first.
    pub first: u32,
    /// The last.
    pub last: u32,
}

impl std::str::FromStr for UidRange {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || "expected FIRST-LAST, for example 1900000000-1900065535".to_owned();
        let (first, last) = text.split_once('-').ok_or_else(wrong)?;
        let number = |text: &str| text.trim().parse::<u32>().map_err(|_| wrong());
        let range = Self { first: number(first)?, last: number(last)? };
        if range.first < LEAST || range.last < range.first || range.last == u32::MAX {
            return Err("the ids of people and services are not for tenants: 1000 is the least".to_owned());
        }
        Ok(range)
    }
}

impl UidRange {
    /// Two ids out of all that are free: for a node of one tenant, of which a machine has many.
    pub fn two(name: &str) -> Self {
        let slots = u64::from((i32::MAX.unsigned_abs() - FREE) / 2);
        let digest = Digest::of(name.as_bytes());
        let slot = digest.as_bytes().iter().take(8).fold(0u64, |sum, byte| (sum << 8) | u64::from(*byte)) % slots;
        let first = FREE + u32::try_from(slot).unwrap_or_default() * 2;
        Self { first, last: first + 1 }
    }

    /// Of a node in this directory: two nodes of a machine rarely have the same.
    pub(super) fn of(dir: &Path) -> Self {
        let slots = (i32::MAX.unsigned_abs() - FREE) / COUNT;
        let digest = Digest::of(dir.as_os_str().as_encoded_bytes());
        let slot = digest.as_bytes().iter().take(4).fold(0u32, |sum, byte| (sum << 8) | u32::from(*byte)) % slots;
        let first = FREE + slot * COUNT;
        Self { first, last: first + COUNT - 1 }
    }
}

#[derive(Debug, Serialize, Deserialize)]
struct Given {
    range: UidRange,
    ids: BTreeMap<String, u32>,
}

/// The ids of one node.
#[derive(Debug)]
pub(super) struct Uids {
    path: PathBuf,
    given: Given,
    taken: BTreeSet<u32>,
}

impl Uids {
    /// Reads what was given so far. A `range` is from where new ones come; what was given stays.
    pub(super) fn open(dir: &Path, range: Option<UidRange>) -> io::Result<Self> {
        let path = dir.join(FILE);
        let mut given = match fs::read(&path) {
            Ok(text) => serde_json::from_slice(&text)
                .map_err(|cause| io::Error::other(format!("{}: {cause}; restore it from a backup", path.display())))?,
            Err(cause) if cause.kind() == io::ErrorKind::NotFound => {
                Given { range: UidRange::of(dir), ids: BTreeMap::new() }
            }
            Err(cause) => return Err(cause),
        };
        // Whoever else has put root or a user of the machine there: nobody is run as that.
        if let Some((name, id)) = given.ids.iter().find(|(_, id)| **id < LEAST || **id == u32::MAX) {
            return Err(io::Error::other(format!(
                "{}: the id of {name} is {id}; restore it from a backup",
                path.display()
            )));
        }
        given.range = range.unwrap_or(given.range);
        let taken = given.ids.values().copied().collect();
        Ok(Self { path, given, taken })
    }

    /// The id of a name, for ever.
    pub(super) fn of(&mut self, name: &str) -> io::Result<u32> {
        if let Some(id) = self.given.ids.get(name) {
            return Ok(*id);
        }
        let UidRange { first, last } = self.given.range;
        let free = (first..=last).find(|id| !self.taken.contains(id));
        let id = free.ok_or_else(|| io::Error::other(format!("no user id is left from {first} to {last}")))?;
        self.given.ids.insert(name.to_owned(), id);
        if let Err(cause) = self.write() {
            self.given.ids.remove(name);
            return Err(cause);
        }
        self.taken.insert(id);
        Ok(id)
    }

    fn write(&self) -> io::Result<()> {
        let partial = self.path.with_extension("partial");
        let mut file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&partial)?;
        file.write_all(&serde_json::to_vec(&self.given)?)?;
        file.sync_all()?;
        fs::rename(&partial, &self.path)?;
        let dir = self.path.parent().unwrap_or(Path::new("/"));
        File::open(dir)?.sync_all()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_given_once_and_survives() {
        let dir = tempfile::tempdir().unwrap();
        let range = "2000-2001".parse().ok();
        let mut uids = Uids::open(dir.path(), range).unwrap();
        assert_eq!((uids.of("a").unwrap(), uids.of("b").unwrap(), uids.of("a").unwrap()), (2000, 2001, 2000));
        assert!(uids.of("c").unwrap_err().to_string().contains("no user id is left"));
        let mut again = Uids::open(dir.path(), None).unwrap();
        assert_eq!(again.of("b").unwrap(), 2001);
        assert!(again.of("c").is_err(), "the range is kept");
        let mut wider = Uids::open(dir.path(), "2000-2005".parse().ok()).unwrap();
        assert_eq!((wider.of("c").unwrap(), wider.of("a").unwrap()), (2002, 2000));
        fs::write(dir.path().join(FILE), r#"{"range":{"first":2000,"last":2001},"ids":{"a":0}}"#).unwrap();
        assert!(Uids::open(dir.path(), None).unwrap_err().to_string().contains("the id of a is 0"));
        fs::write(dir.path().join(FILE), "{").unwrap();
        assert!(Uids::open(dir.path(), None).is_err(), "a damaged file is refused, never emptied");
    }

    #[test]
    fn ranges_are_checked() {
        for bad in ["", "5", "0-10", "5000-4000", "1000-4294967295"] {
            assert!(bad.parse::<UidRange>().is_err(), "{bad}");
        }
        let pairs: BTreeSet<u32> = (0..500).map(|number| UidRange::two(&format!("a/web/{number}")).first).collect();
        assert_eq!(pairs.len(), 500, "many tasks of a machine have users of their own");
        assert!(pairs.iter().all(|first| *first >= FREE && *first < i32::MAX.unsigned_abs() && first % 2 == 0));
        let own = UidRange::of(Path::new("/var/lib/sidereal"));
        assert!(own.first >= FREE && own.last < 1 << 31 && own.last - own.first == COUNT - 1);
    }
}
