//! What each operation does to the table. Nothing here waits, syncs or knows of callers.

use std::collections::HashMap;
use std::ops::Bound;

use ::redb::{ReadableTable, Table, TableDefinition};
use model::TenantName;

use super::key::{self, Scope};
use super::op::{Answer, Fault, MAX_BATCH, MAX_BYTES, MAX_LIST, MAX_VALUE, Op};
use crate::disk::Fail;
use crate::room::Room;
use crate::seal::{self, CHECK};

/// All data of all tenants.
pub(super) const DATA: TableDefinition<'static, &[u8], &[u8]> = TableDefinition::new("data");

/// The most keys and, about, bytes that one write of a purge removes: everybody's writes wait for it.
const PIECE: usize = 2000;
const PIECE_BYTES: u64 = 16 << 20;

/// What the writer does: one bucket's operation, or one piece of a purge.
#[derive(Debug)]
pub(super) enum Write {
    Op(Scope, Op),
    /// Removes the first keys of this range. Answers with the last of them, after which the next piece begins.
    Purge(key::Range),
}

/// Refused for itself, or by the disk.
#[derive(Debug)]
pub(super) enum Stop {
    Fault(Fault),
    Disk(Fail),
}

impl From<Fault> for Stop {
    fn from(fault: Fault) -> Self {
        Self::Fault(fault)
    }
}

impl<E: Into<Fail>> From<E> for Stop {
    fn from(fail: E) -> Self {
        Self::Disk(fail.into())
    }
}

/// Whether the operation changes nothing.
pub(super) fn is_read(op: &Op) -> bool {
    matches!(op, Op::Get { .. } | Op::Exists { .. } | Op::ListKeys { .. } | Op::GetMany { .. })
}

/// Bytes an operation brings, for back-pressure.
pub(super) fn weight(op: &Op) -> usize {
    match op {
        Op::Get { key } | Op::Delete { key } | Op::Exists { key } | Op::Increment { key, .. } => key.len(),
        Op::Set { key, value } => key.len() + value.len(),
        Op::CompareAndSet { key, expected, value } => key.len() + value.len() + expected.as_ref().map_or(0, Vec::len),
        Op::ListKeys { .. } => 0,
        Op::GetMany { keys } | Op::DeleteMany { keys } => keys.iter().map(String::len).sum(),
        Op::SetMany { pairs } => pairs.iter().map(|(key, value)| key.len() + value.len()).sum(),
    }
}

/// Refuses what is above a limit, before anything of the operation is done.
pub(super) fn check(scope: &Scope, op: &Op) -> Result<(), Fault> {
    let count = match op {
        Op::Get { key } | Op::Delete { key } | Op::Exists { key } | Op::Increment { key, .. } => {
            return scope.key(key).map(drop);
        }
        Op::Set { key, value } | Op::CompareAndSet { key, value, .. } => {
            value_fits(key, value)?;
            return scope.key(key).map(drop);
        }
        Op::ListKeys { cursor, .. } => return scope.key(cursor.as_deref().unwrap_or_default()).map(drop),
        Op::GetMany { keys } | Op::DeleteMany { keys } => {
            keys.iter().try_for_each(|key| scope.key(key).map(drop))?;
            keys.len()
        }
        Op::SetMany { pairs } => {
            for (key, value) in pairs {
                scope.key(key)?;
                value_fits(key, value)?;
            }
            pairs.len()
        }
    };
    if count > MAX_BATCH {
        return Err(Fault::TooLarge(format!("the batch has {count} keys; at most {MAX_BATCH} are allowed")));
    }
    let bytes = weight(op);
    if bytes > MAX_BYTES {
        return Err(Fault::TooLarge(format!("the batch has {bytes} bytes; at most {MAX_BYTES} are allowed")));
    }
    Ok(())
}

fn value_fits(key: &str, value: &[u8]) -> Result<(), Fault> {
    if value.len() > MAX_VALUE {
        let length = value.len();
        return Err(Fault::TooLarge(format!(
            "the value of `{key}` has {length} bytes; at most {MAX_VALUE} are allowed"
        )));
    }
    Ok(())
}

/// An operation for which [`is_read`] holds.
pub(super) fn read(
    table: &impl ReadableTable<&'static [u8], &'static [u8]>,
    scope: &Scope,
    op: &Op,
) -> Result<Answer, Stop> {
    match op {
        Op::Get { key } => Ok(Answer::Value(value_of(table, scope, key)?)),
        Op::Exists { key } => Ok(Answer::Bool(table.get(scope.key(key)?.as_slice())?.is_some())),
        Op::GetMany { keys } => {
            let mut values = Vec::with_capacity(keys.len());
            let mut bytes = 0;
            for key in keys {
                let value = value_of(table, scope, key)?;
                bytes += key.len() + value.as_ref().map_or(0, Vec::len);
                if bytes > MAX_BYTES {
                    return Err(Fault::TooLarge(format!(
                        "the values asked for have more than {MAX_BYTES} bytes together; ask for fewer keys"
                    ))
                    .into());
                }
                values.push((key.clone(), value));
            }
            Ok(Answer::Values(values))
        }
        Op::ListKeys { cursor, limit } => list(table, scope, cursor.as_deref(), *limit),
        _ => Err(Fail::Damaged("a write was asked of a reader".into()).into()),
    }
}

fn value_of(
    table: &impl ReadableTable<&'static [u8], &'static [u8]>,
    scope: &Scope,
    key: &str,
) -> Result<Option<Vec<u8>>, Stop> {
    let stored = scope.key(key)?;
    let Some(sealed) = table.get(stored.as_slice())? else { return Ok(None) };
    match seal::open(&stored, sealed.value()) {
        Some(value) => Ok(Some(value.to_vec())),
        // Of this key only: the others of the batch must not suffer.
        None => Err(Fault::Unavailable(format!("the value of `{key}` is damaged; set or delete it")).into()),
    }
}

fn list(
    table: &impl ReadableTable<&'static [u8], &'static [u8]>,
    scope: &Scope,
    cursor: Option<&str>,
    limit: u32,
) -> Result<Answer, Stop> {
    let limit = limit.clamp(1, MAX_LIST) as usize;
    let mut keys: Vec<String> = Vec::new();
    let mut more = false;
    for row in table.range::<&[u8]>(borrow(&scope.after(cursor)))? {
        let (stored, _) = row?;
        if keys.len() == limit {
            more = true;
            break;
        }
        let key = scope.strip(stored.value()).ok_or_else(|| Fail::Damaged("a key is not text".into()))?;
        keys.push(key.to_owned());
    }
    let cursor = if more { keys.last().cloned() } else { None };
    Ok(Answer::Keys { keys, cursor })
}

/// Every bucket of a provider that has a key.
pub(super) fn buckets(
    table: &impl ReadableTable<&'static [u8], &'static [u8]>,
    of_provider: &key::Range,
) -> Result<Vec<String>, Fail> {
    let (mut found, mut left) = (Vec::new(), of_provider.clone());
    // One look for each, however many keys it has.
    while let Some(row) = table.range::<&[u8]>(borrow(&left))?.next() {
        let (stored, _) = row?;
        let (bucket, behind) =
            key::bucket(of_provider, stored.value()).ok_or_else(|| Fail::Damaged("a key is in no bucket".into()))?;
        found.push(bucket);
        left = behind;
    }
    Ok(found)
}

fn borrow(range: &key::Range) -> (Bound<&[u8]>, Bound<&[u8]>) {
    (range.0.as_ref().map(Vec::as_slice), range.1.as_ref().map(Vec::as_slice))
}

/// All bytes of a tenant's keys and values.
pub(super) fn size(table: &impl ReadableTable<&'static [u8], &'static [u8]>, tenant: &TenantName) -> Result<u64, Fail> {
    let mut bytes = 0;
    for row in table.range::<&[u8]>(borrow(&key::of_tenant(tenant)))? {
        let (stored, sealed) = row?;
        bytes += entry(stored.value().len(), sealed.value().len());
    }
    Ok(bytes)
}

/// What a key and its value count.
fn entry(stored: usize, sealed: usize) -> u64 {
    (stored + sealed) as u64
}

/// What writes take of a tenant's room and give back.
pub(super) struct Budget<'r> {
    room: Option<&'r Room>,
    /// Taken, less what was given back: to be undone where the disk does not take the writes.
    pub(super) net: i64,
}

impl<'r> Budget<'r> {
    /// Of a tenant that is counted; `None`: of one that is not.
    pub(super) fn new(room: Option<&'r Room>) -> Self {
        Self { room, net: 0 }
    }

    /// What is stored at a key counts, where anybody counts.
    fn there(&self, table: &Table<'_, &'static [u8], &'static [u8]>, stored: &[u8]) -> Result<u64, Stop> {
        match self.room {
            Some(_) => Ok(table.get(stored)?.map_or(0, |sealed| entry(stored.len(), sealed.value().len()))),
            None => Ok(0),
        }
    }

    /// So many bytes come in place of so many.
    fn replace(&mut self, new: u64, old: u64) -> Result<(), Fault> {
        let Some(room) = self.room else { return Ok(()) };
        match new.checked_sub(old) {
            Some(more) => room.take(more)?,
            None => room.give(old - new),
        }
        self.net = self.net.saturating_add_unsigned(new).saturating_sub_unsigned(old);
        Ok(())
    }

    fn gone(&mut self, old: u64) {
        if let Some(room) = self.room {
            room.give(old);
            self.net = self.net.saturating_sub_unsigned(old);
        }
    }
}

/// One write. After a [`Stop::Fault`] the table is as before; it was checked by [`check`].
pub(super) fn write(
    table: &mut Table<'_, &'static [u8], &'static [u8]>,
    write: &Write,
    budget: &mut Budget<'_>,
) -> Result<Answer, Stop> {
    let (scope, op) = match write {
        Write::Op(scope, op) => (scope, op),
        Write::Purge(range) => return purge(table, range, budget),
    };
    match op {
        Op::Set { key, value } => set(table, scope, key, value, budget)?,
        Op::Delete { key } => remove(table, scope, key, budget)?,
        Op::SetMany { pairs } => {
            // All or none: there is room for all of them before the first is set.
            let (mut new, mut old) = (HashMap::new(), 0);
            for (key, value) in pairs {
                let stored = scope.key(key)?;
                let bytes = entry(stored.len(), CHECK + value.len());
                if !new.contains_key(&stored) {
                    old += budget.there(table, &stored)?;
                }
                new.insert(stored, bytes);
            }
            budget.replace(new.values().sum(), old)?;
            for (key, value) in pairs {
                put(table, &scope.key(key)?, value)?;
            }
        }
        Op::DeleteMany { keys } => {
            for key in keys {
                remove(table, scope, key, budget)?;
            }
        }
        Op::Increment { key, delta } => {
            let value = value_of(table, scope, key)?;
            let sum =
                model::number::incremented(value.as_deref(), *delta).ok_or_else(|| Fault::NotANumber(key.clone()))?;
            set(table, scope, key, sum.to_string().as_bytes(), budget)?;
            return Ok(Answer::Number(sum));
        }
        Op::CompareAndSet { key, expected, value } => {
            let same = value_of(table, scope, key)? == *expected;
            if same {
                set(table, scope, key, value, budget)?;
            }
            return Ok(Answer::Bool(same));
        }
        _ => return read(table, scope, op),
    }
    Ok(Answer::Done)
}

fn purge(
    table: &mut Table<'_, &'static [u8], &'static [u8]>,
    range: &key::Range,
    budget: &mut Budget<'_>,
) -> Result<Answer, Stop> {
    let (mut bytes, mut last) = (0, None);
    for row in table.range::<&[u8]>(borrow(range))?.take(PIECE) {
        let (stored, sealed) = row?;
        bytes += entry(stored.value().len(), sealed.value().len());
        last = Some(stored.value().to_vec());
        if bytes >= PIECE_BYTES {
            break;
        }
    }
    if let Some(last) = &last {
        let piece = (range.0.clone(), Bound::Included(last.clone()));
        table.retain_in::<&[u8], _>(borrow(&piece), |_, _| false)?;
        budget.gone(bytes);
    }
    Ok(Answer::Value(last))
}

fn set(
    table: &mut Table<'_, &'static [u8], &'static [u8]>,
    scope: &Scope,
    key: &str,
    value: &[u8],
    budget: &mut Budget<'_>,
) -> Result<(), Stop> {
    let stored = scope.key(key)?;
    let old = budget.there(table, &stored)?;
    budget.replace(entry(stored.len(), CHECK + value.len()), old)?;
    put(table, &stored, value)
}

fn put(table: &mut Table<'_, &'static [u8], &'static [u8]>, stored: &[u8], value: &[u8]) -> Result<(), Stop> {
    table.insert(stored, seal::seal(stored, value).as_slice())?;
    Ok(())
}

fn remove(
    table: &mut Table<'_, &'static [u8], &'static [u8]>,
    scope: &Scope,
    key: &str,
    budget: &mut Budget<'_>,
) -> Result<(), Stop> {
    let stored = scope.key(key)?;
    if let Some(sealed) = table.remove(stored.as_slice())? {
        budget.gone(entry(stored.len(), sealed.value().len()));
    }
    Ok(())
}
