//! What readers see: a snapshot of the file, the leased keys, and the revision, swapped together after each batch.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::{Arc, PoisonError, RwLock};

use ::redb::{ReadOnlyTable, TableDefinition};
use bytes::Bytes;

use crate::disk::{Disk, Fail, META};
use crate::{Entry, LeaseId, Snapshot, StoreError, seal};

/// Durable keys. A value is its revision, eight bytes little-endian, and the content; sealed.
pub(super) const ENTRIES: TableDefinition<'static, &str, &[u8]> = TableDefinition::new("entries");

/// Bytes in front of the content: the seal's and the revision.
const FRONT: usize = seal::CHECK + 8;

/// A key that lives as long as its lease.
#[derive(Debug, Clone)]
pub(super) struct Leased {
    pub value: Bytes,
    pub revision: u64,
    pub lease: LeaseId,
}

/// Leased keys.
pub(super) type LeasedKeys = BTreeMap<Arc<str>, Leased>;

#[derive(Clone)]
struct Durable(Arc<ReadOnlyTable<&'static str, &'static [u8]>>);

/// The file and what readers see of it.
pub(super) struct State {
    pub disk: Disk,
    published: RwLock<Published>,
}

struct Published {
    revision: u64,
    leased: LeasedKeys,
    /// `None` while the file could not be opened again after an I/O error.
    durable: Option<Durable>,
}

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("State").field("disk", &self.disk).finish_non_exhaustive()
    }
}

/// A value as it is stored.
pub(super) fn encode(key: &str, revision: u64, value: &[u8]) -> Vec<u8> {
    seal::seal(key.as_bytes(), &[&revision.to_le_bytes(), value].concat())
}

/// Revision and content of a stored value.
pub(super) fn decode<'a>(key: &str, stored: &'a [u8]) -> Result<(u64, &'a [u8]), Fail> {
    seal::open(key.as_bytes(), stored)
        .and_then(|opened| opened.split_first_chunk::<8>())
        .map(|(revision, value)| (u64::from_le_bytes(*revision), value))
        .ok_or_else(|| Fail::Damaged(format!("the value of `{key}` is not the one that was written")))
}

impl State {
    /// What is in the file, at revision 0 until something is published.
    pub(super) fn new(disk: Disk) -> Result<Self, Fail> {
        let durable = Some(snapshot(&disk)?);
        Ok(Self { disk, published: RwLock::new(Published { revision: 0, leased: LeasedKeys::new(), durable }) })
    }

    pub(super) fn revision(&self) -> u64 {
        self.published.read().unwrap_or_else(PoisonError::into_inner).revision
    }

    /// One key.
    pub(super) fn get(&self, key: &str) -> Result<Option<Entry>, StoreError> {
        self.again_if_closed(
            |published| {
                if let Some(leased) = published.leased.get(key) {
                    return Ok(Ok(Some(entry(key, leased))));
                }
                let durable = published.durable()?;
                Ok(Err(durable))
            },
            |durable| {
                let Some(stored) = durable.0.get(key)? else { return Ok(None) };
                let (revision, value) = decode(key, stored.value())?;
                Ok(Some(Entry { key: key.to_owned(), value: Bytes::copy_from_slice(value), revision }))
            },
        )
    }

    /// The revision of a key in the file, whatever leased key may be in front of it.
    pub(super) fn durable_revision(&self, key: &str) -> Result<Option<u64>, StoreError> {
        self.again_if_closed(
            |published| Ok(Err(published.durable()?)),
            |durable| match durable.0.get(key)? {
                Some(stored) => Ok(Some(decode(key, stored.value())?.0)),
                None => Ok(None),
            },
        )
    }

    /// All keys under a prefix.
    pub(super) fn list(&self, prefix: &str) -> Result<Snapshot, StoreError> {
        let mut leased = Vec::new();
        let mut at = 0;
        let mut entries = self.again_if_closed(
            |published| {
                leased = under(&published.leased, prefix).map(|(key, leased)| entry(key, leased)).collect();
                at = published.revision;
                Ok(Err(published.durable()?))
            },
            |durable| {
                let mut entries = Vec::new();
                for row in durable.0.range::<&str>((Bound::Included(prefix), Bound::Unbounded))? {
                    let (key, stored) = row?;
                    let key = key.value();
                    if !key.starts_with(prefix) {
                        break;
                    }
                    let (revision, value) = decode(key, stored.value())?;
                    entries.push(Entry { key: key.to_owned(), value: Bytes::copy_from_slice(value), revision });
                }
                Ok(entries)
            },
        )?;
        if !leased.is_empty() {
            entries.append(&mut leased);
            entries.sort_by(|a, b| a.key.cmp(&b.key));
        }
        Ok(Snapshot { entries, revision: at })
    }

    /// All keys under a prefix, and the size of each one's value: no value is copied, and none is checked.
    pub(super) fn sizes(&self, prefix: &str) -> Result<Vec<(String, u64)>, StoreError> {
        let mut leased = Vec::new();
        let mut sizes = self.again_if_closed(
            |published| {
                let of = |(key, leased): (&Arc<str>, &Leased)| (key.to_string(), leased.value.len() as u64);
                leased = under(&published.leased, prefix).map(of).collect();
                Ok(Err(published.durable()?))
            },
            |durable| {
                let mut sizes = Vec::new();
                for row in durable.0.range::<&str>((Bound::Included(prefix), Bound::Unbounded))? {
                    let (key, stored) = row?;
                    let key = key.value();
                    if !key.starts_with(prefix) {
                        break;
                    }
                    sizes.push((key.to_owned(), stored.value().len().saturating_sub(FRONT) as u64));
                }
                Ok(sizes)
            },
        )?;
        if !leased.is_empty() {
            sizes.append(&mut leased);
            sizes.sort();
        }
        Ok(sizes)
    }

    /// Looks under the lock by `look`, which either answers or leaves the rest to `read` without the lock. An I/O
    /// error of the writer closes the snapshot under a reader: then it takes the new one.
    fn again_if_closed<T>(
        &self,
        mut look: impl FnMut(&Published) -> Result<Result<T, Durable>, Fail>,
        read: impl Fn(&Durable) -> Result<T, Fail>,
    ) -> Result<T, StoreError> {
        let mut once = || {
            let looked = look(&self.published.read().unwrap_or_else(PoisonError::into_inner))?;
            looked.map_or_else(|durable| read(&durable), Ok)
        };
        let answer = match once() {
            Err(Fail::Disk(_)) => once(),
            other => other,
        };
        answer.map_err(|fail| match fail {
            Fail::Disk(cause) => StoreError::Unreachable(cause),
            other => other.explain(self.disk.path()),
        })
    }

    /// A number of the file's own.
    pub(super) fn stored(&self, name: &str) -> Result<u64, Fail> {
        let number = self.disk.read()?.open_table(META)?.get(name)?.map(|value| value.value());
        number.ok_or_else(|| Fail::Damaged(format!("it has no {name}")))
    }

    /// Looks at the leased keys.
    pub(super) fn leased<T>(&self, look: impl FnOnce(&LeasedKeys) -> T) -> T {
        look(&self.published.read().unwrap_or_else(PoisonError::into_inner).leased)
    }

    /// Swaps in what a batch changed.
    pub(super) fn publish(&self, revision: u64, leased: BTreeMap<Arc<str>, Option<Leased>>, durable: bool) {
        let fresh = durable.then(|| snapshot(&self.disk).ok());
        let mut published = self.published.write().unwrap_or_else(PoisonError::into_inner);
        published.revision = revision;
        if let Some(fresh) = fresh {
            published.durable = fresh;
        }
        for (key, change) in leased {
            match change {
                Some(leased) => published.leased.insert(key, leased),
                None => published.leased.remove(&key),
            };
        }
    }
}

impl Published {
    fn durable(&self) -> Result<Durable, Fail> {
        self.durable.clone().ok_or_else(|| Fail::Disk("the store file could not be opened again yet".into()))
    }
}

/// The keys that start with `prefix`.
pub(super) fn under<'a>(keys: &'a LeasedKeys, prefix: &'a str) -> impl Iterator<Item = (&'a Arc<str>, &'a Leased)> {
    keys.range::<str, _>((Bound::Included(prefix), Bound::Unbounded))
        .take_while(move |(key, _)| key.starts_with(prefix))
}

fn entry(key: &str, leased: &Leased) -> Entry {
    Entry { key: key.to_owned(), value: leased.value.clone(), revision: leased.revision }
}

fn snapshot(disk: &Disk) -> Result<Durable, Fail> {
    Ok(Durable(Arc::new(disk.read()?.open_table(ENTRIES)?)))
}
