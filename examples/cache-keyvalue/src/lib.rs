//! A provider of `wasi:keyvalue` that keeps what was read in a second store, its link `cache`. Nothing that was read
//! before a write is answered after it: each entry carries the number of writes there had been.

use keyvalue_provider::{Bucket, Provider, Result, atomics, export, link};

struct Cached {
    cache: Bucket,
    /// Of the cache's keys: how many writes there were, and before those of entries.
    writes: String,
}

impl Provider for Cached {
    fn open(bucket: &str) -> Result<Self> {
        Ok(Self { cache: link("cache")?, writes: format!("{bucket}/") })
    }

    fn get(&self, store: &Bucket, key: &str) -> Result<Option<Vec<u8>>> {
        // A cache that fails is none.
        let Ok(writes) = atomics::increment(&self.cache, &self.writes, 0) else { return store.get(key) };
        let (entry, writes) = (format!("{}{key}", self.writes), writes.to_le_bytes());
        if let Ok(Some(kept)) = self.cache.get(&entry)
            && let Some(value) = kept.strip_prefix(&writes)
        {
            return Ok(Some(value.to_vec()));
        }
        let value = store.get(key)?;
        if let Some(value) = &value {
            let _ = self.cache.set(&entry, &[&writes, value.as_slice()].concat());
        }
        Ok(value)
    }

    fn changed(&self, _: &str) -> Result<()> {
        atomics::increment(&self.cache, &self.writes, 1).map(drop)
    }
}

export!(Cached);
