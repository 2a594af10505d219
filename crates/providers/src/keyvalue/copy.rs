//! Copying the keys of one store to another, a page at a time. Each page is read back: what was counted as copied is
//! there, byte for byte. Copying the same page twice writes nothing the second time.
//!
//! It runs in the process that serves the app: what it holds at once is bounded in bytes, whatever the values are. Keys
//! whose values are together above one batch are taken in halves, and of what was written a digest is kept.
//!
//! Two names may stand for one store. A copy within it would write what was read over what the app has written since, so
//! [`same`] is asked first.

use sha2::{Digest as _, Sha256};

use super::{Backend, BackendError, MAX_BATCH, MAX_BATCH_BYTES};

/// Keys per step: small enough that one step of a slow store stays well below any time-out.
const STEP: usize = 100;
/// The key by which two names of one store are found out. It is there for a moment; one that an interruption left behind is
/// replaced, and removed, the next time.
const MARKER: &str = "sidereal-one-store-5d0f3f8e6bfa4c3c9b3a";

/// A bucket of a store.
#[derive(Clone, Copy)]
pub struct End<'a> {
    /// The store.
    pub backend: &'a dyn Backend,
    /// The bucket.
    pub bucket: &'a str,
}

/// What one step did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Copied {
    /// Keys looked at.
    pub read: u64,
    /// Keys written or removed, because the target had something else.
    pub written: u64,
    /// Bytes of the values written.
    pub bytes: u64,
    /// Where to go on; `None` at the end.
    pub next: Option<String>,
}

/// Why a copy cannot go on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CopyError {
    /// Reading.
    #[error("reading from the present provider failed: {0}")]
    Source(BackendError),
    /// Writing, or reading back.
    #[error("writing to the new provider failed: {0}")]
    Target(BackendError),
    /// What was written is not what is read back.
    #[error("key `{0}` reads back from the new provider with another value than was written")]
    Differs(String),
}

/// Whether both sides reach the same keys: what is written through the one is found through the other.
///
/// # Errors
/// Any [`CopyError`]; nothing is left behind but where the target does not remove what it was given.
pub async fn same(from: End<'_>, to: End<'_>) -> Result<bool, CopyError> {
    let mark = rand::random::<[u8; 16]>().to_vec();
    to.backend.set(to.bucket, MARKER, mark.clone()).await.map_err(CopyError::Target)?;
    let found = from.backend.get(from.bucket, MARKER).await.map_err(CopyError::Source);
    to.backend.delete(to.bucket, MARKER).await.map_err(CopyError::Target)?;
    Ok(found? == Some(mark))
}

/// Copies the keys of one listing step.
///
/// # Errors
/// Any [`CopyError`]; what was copied until then stays.
pub async fn page(from: End<'_>, to: End<'_>, cursor: Option<&str>) -> Result<Copied, CopyError> {
    let page = from.backend.list_keys(from.bucket, cursor).await.map_err(CopyError::Source)?;
    let mut copied = keys(from, to, page.keys).await?;
    copied.next = page.cursor;
    Ok(copied)
}

/// Makes these keys in the target what they are in the source: set, or not there.
///
/// # Errors
/// Any [`CopyError`].
pub async fn keys(from: End<'_>, to: End<'_>, keys: Vec<String>) -> Result<Copied, CopyError> {
    let mut sum = Copied::default();
    for chunk in keys.chunks(STEP.min(MAX_BATCH)) {
        let mut left = vec![chunk];
        while let Some(some) = left.pop() {
            if !few(from, to, some, &mut sum).await? {
                left.extend(halves(some));
            }
        }
    }
    Ok(sum)
}

/// The later half first: what is taken next is at the end.
fn halves<T>(keys: &[T]) -> [&[T]; 2] {
    let (one, two) = keys.split_at(keys.len() / 2);
    [two, one]
}

/// Makes keys the same whose values are read at once; `false`, and nothing done, where they are too large for that.
async fn few(from: End<'_>, to: End<'_>, keys: &[String], sum: &mut Copied) -> Result<bool, CopyError> {
    let Some(wanted) = read(from, keys).await.map_err(CopyError::Source)? else { return Ok(false) };
    let Some(present) = read(to, keys).await.map_err(CopyError::Target)? else { return Ok(false) };
    let differing = |(want, have): (Pair, Pair)| (want.1 != have.1).then_some(want);
    let work: Vec<Pair> = wanted.into_iter().zip(present).filter_map(differing).collect();
    sum.read += keys.len() as u64;
    sum.written += work.len() as u64;
    let mut written = Vec::with_capacity(work.len());
    let mut batch = Vec::new();
    let mut bytes = 0;
    for (key, value) in work {
        written.push((key.clone(), digest(value.as_deref())));
        match value {
            None => to.backend.delete(to.bucket, &key).await.map_err(CopyError::Target)?,
            Some(value) => {
                let size = key.len() + value.len();
                if bytes + size > MAX_BATCH_BYTES / 2 && !batch.is_empty() {
                    write(to, std::mem::take(&mut batch)).await?;
                    bytes = 0;
                }
                bytes += size;
                sum.bytes += value.len() as u64;
                batch.push((key, value));
            }
        }
    }
    if !batch.is_empty() {
        write(to, batch).await?;
    }
    verify(to, &written).await?;
    Ok(true)
}

/// Of a value; `None` of a key that is not there.
fn digest(value: Option<&[u8]>) -> Option<[u8; 32]> {
    value.map(|value| Sha256::digest(value).into())
}

/// Of one listing step of the target, the keys that the source does not have.
///
/// # Errors
/// Any [`CopyError`].
pub async fn extra(
    from: End<'_>,
    to: End<'_>,
    cursor: Option<&str>,
) -> Result<(Vec<String>, Option<String>), CopyError> {
    let page = to.backend.list_keys(to.bucket, cursor).await.map_err(CopyError::Target)?;
    let mut extra = Vec::new();
    for key in page.keys {
        if !from.backend.exists(from.bucket, &key).await.map_err(CopyError::Source)? {
            extra.push(key);
        }
    }
    Ok((extra, page.cursor))
}

type Pair = (String, Option<Vec<u8>>);

/// Several values; `None` where they are too large together.
async fn read(end: End<'_>, keys: &[String]) -> Result<Option<Vec<Pair>>, BackendError> {
    match (end.backend.get_many(end.bucket, keys.to_vec()).await, keys) {
        (Err(BackendError::TooLarge(_)), [key]) => {
            let value = end.backend.get(end.bucket, key).await?;
            Ok(Some(vec![(key.clone(), value)]))
        }
        (Err(BackendError::TooLarge(_)), _) => Ok(None),
        (other, _) => other.map(Some),
    }
}

/// A store that writes no batch takes the pairs one by one.
async fn write(to: End<'_>, pairs: Vec<(String, Vec<u8>)>) -> Result<(), CopyError> {
    match to.backend.set_many(to.bucket, pairs.clone()).await {
        // A batch is all or nothing; a copy need not be, since every key is read back.
        Err(BackendError::TooLarge(_) | BackendError::Unsupported(_)) => {
            for (key, value) in pairs {
                to.backend.set(to.bucket, &key, value).await.map_err(CopyError::Target)?;
            }
            Ok(())
        }
        other => other.map_err(CopyError::Target),
    }
}

async fn verify(to: End<'_>, written: &[(String, Option<[u8; 32]>)]) -> Result<(), CopyError> {
    let mut left = vec![written];
    while let Some(some) = left.pop().filter(|some| !some.is_empty()) {
        let keys: Vec<String> = some.iter().map(|(key, _)| key.clone()).collect();
        let Some(found) = read(to, &keys).await.map_err(CopyError::Target)? else {
            left.extend(halves(some));
            continue;
        };
        let differs = |((key, want), (_, have)): (&(String, Option<[u8; 32]>), Pair)| {
            (*want != digest(have.as_deref())).then(|| key.clone())
        };
        if let Some(key) = some.iter().zip(found).find_map(differs) {
            return Err(CopyError::Differs(key));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::Memory;
    use super::*;

    fn end<'a>(store: &'a Memory, bucket: &'a str) -> End<'a> {
        End { backend: store, bucket }
    }

    async fn whole(from: &Memory, to: &Memory) -> Copied {
        let mut sum = Copied::default();
        let mut cursor = None;
        loop {
            let step = page(end(from, "a"), end(to, "b"), cursor.as_deref()).await.unwrap();
            sum = Copied {
                read: sum.read + step.read,
                written: sum.written + step.written,
                bytes: sum.bytes + step.bytes,
                next: None,
            };
            cursor = step.next;
            if cursor.is_none() {
                return sum;
            }
        }
    }

    #[tokio::test]
    async fn every_key_arrives_and_a_second_time_costs_no_write() {
        let (from, to) = (Memory::new(64 << 20), Memory::new(64 << 20));
        for n in 0..2500 {
            from.set("a", &format!("k{n}"), vec![7; n % 50]).await.unwrap();
        }
        from.set("a", "large", vec![1; 8 << 20]).await.unwrap();
        from.set("a", "larger", vec![2; 8 << 20]).await.unwrap();
        to.set("b", "k3", b"old".to_vec()).await.unwrap();
        let first = whole(&from, &to).await;
        assert_eq!((first.read, first.written), (2502, 2502));
        assert_eq!(to.get("b", "k49").await.unwrap(), Some(vec![7; 49]));
        assert_eq!(to.get("b", "larger").await.unwrap(), Some(vec![2; 8 << 20]));
        let second = whole(&from, &to).await;
        assert_eq!((second.read, second.written, second.bytes), (2502, 0, 0));
    }

    #[tokio::test]
    async fn keys_that_went_away_go_away_and_extra_ones_are_found() {
        let (from, to) = (Memory::new(1 << 20), Memory::new(1 << 20));
        from.set("a", "kept", b"1".to_vec()).await.unwrap();
        to.set("b", "gone", b"1".to_vec()).await.unwrap();
        to.set("b", "kept", b"2".to_vec()).await.unwrap();
        let (found, next) = extra(end(&from, "a"), end(&to, "b"), None).await.unwrap();
        assert_eq!((found, next), (vec!["gone".to_owned()], None));
        let done = keys(end(&from, "a"), end(&to, "b"), vec!["gone".into(), "kept".into()]).await.unwrap();
        assert_eq!(done.written, 2);
        assert!(!to.exists("b", "gone").await.unwrap());
        assert_eq!(to.get("b", "kept").await.unwrap(), Some(b"1".to_vec()));
    }
}
