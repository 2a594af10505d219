//! What every backend must do: one suite, run over each of them.

use std::collections::BTreeSet;
use std::fmt::Debug;

use futures::future::join_all;
use futures::stream::{self, StreamExt as _};

use super::{Backend, BackendError, MAX_BATCH, MAX_BATCH_BYTES, MAX_VALUE, PAGE};

/// What a backend can do of what the contract has. Where one does less, the suite checks that it refuses the rest with
/// an error that says so and changes nothing.
#[derive(Debug, Clone, Copy)]
pub struct Promises {
    /// It adds to a number in one step.
    pub increments: bool,
    /// The largest value, bytes.
    pub max_value: usize,
    /// The most keys that are changed together, all or none; 1 is no batches.
    pub max_batch: usize,
    /// The most bytes of values that are set together.
    pub max_batch_bytes: usize,
}

impl Promises {
    /// Everything, up to the limits of the contract.
    pub const ALL: Self =
        Self { increments: true, max_value: MAX_VALUE, max_batch: MAX_BATCH, max_batch_bytes: MAX_BATCH_BYTES };
}

/// Where a backend differs: what was done, what came back, what should have.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what}: expected {expected}, got {got}")]
pub struct Mismatch {
    what: String,
    expected: String,
    got: String,
}

fn same<T: PartialEq + Debug>(what: &str, got: T, expected: T) -> Result<(), Mismatch> {
    if got == expected {
        return Ok(());
    }
    Err(Mismatch { what: what.to_owned(), expected: shown(&expected), got: shown(&got) })
}

/// Values may be large.
fn shown(value: &impl Debug) -> String {
    format!("{value:?}").chars().take(300).collect()
}

/// Runs the suite. The backend holds no keys in the buckets `conformance` and `other` before it.
///
/// # Errors
/// The first [`Mismatch`].
pub async fn run(backend: &dyn Backend) -> Result<(), Mismatch> {
    run_with(backend, Promises::ALL).await
}

/// Runs the suite over a backend that does not do everything.
///
/// # Errors
/// The first [`Mismatch`].
pub async fn run_with(backend: &dyn Backend, promises: Promises) -> Result<(), Mismatch> {
    suite(backend, promises, Refusals::Typed).await
}

/// Runs the suite over a backend behind a contract on a wire, as another process or a component answers it: that has one
/// kind of refusal, a text.
///
/// # Errors
/// The first [`Mismatch`].
pub async fn run_on_a_wire(backend: &dyn Backend) -> Result<(), Mismatch> {
    suite(backend, Promises::ALL, Refusals::Text).await
}

/// How much a refusal says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Refusals {
    Typed,
    Text,
}

async fn suite(backend: &dyn Backend, promises: Promises, refusals: Refusals) -> Result<(), Mismatch> {
    values(backend).await?;
    buckets(backend).await?;
    match promises.increments {
        true => increments(backend, refusals).await?,
        false => no_increments(backend).await?,
    }
    match promises.max_batch {
        0 | 1 => no_batches(backend).await?,
        _ => batches(backend).await?,
    }
    limits(backend, promises).await?;
    large_answers(backend, promises).await?;
    listing(backend, promises).await
}

/// Calls at once where many keys are written one by one: more would wait for one another until their time is over.
const AT_ONCE: usize = 32;

const BUCKET: &str = "conformance";
const OTHER: &str = "other";

async fn values(kv: &dyn Backend) -> Result<(), Mismatch> {
    same("get of a missing key", kv.get(BUCKET, "k").await, Ok(None))?;
    same("exists of a missing key", kv.exists(BUCKET, "k").await, Ok(false))?;
    same("delete of a missing key", kv.delete(BUCKET, "k").await, Ok(()))?;
    let awkward = ["k", " ", "a/b", "../x", "*", "\0", "ключ", "{}", "a:b", "\"'\\", "k\nl", "%2f", "K"];
    for key in awkward {
        for value in [&b"one"[..], b"", b"\0\xff\n", &[7; 100_000]] {
            same("set", kv.set(BUCKET, key, value.to_vec()).await, Ok(()))?;
            same("get after set", kv.get(BUCKET, key).await, Ok(Some(value.to_vec())))?;
        }
        same("exists after set", kv.exists(BUCKET, key).await, Ok(true))?;
    }
    same("keys are told apart", kv.get(BUCKET, "l").await, Ok(None))?;
    for key in awkward {
        same("delete", kv.delete(BUCKET, key).await, Ok(()))?;
        same("get after delete", kv.get(BUCKET, key).await, Ok(None))?;
    }
    Ok(())
}

async fn buckets(kv: &dyn Backend) -> Result<(), Mismatch> {
    same("set", kv.set(BUCKET, "k", b"here".to_vec()).await, Ok(()))?;
    same("another bucket", kv.get(OTHER, "k").await, Ok(None))?;
    same("set in another bucket", kv.set(OTHER, "k", b"there".to_vec()).await, Ok(()))?;
    same("delete in another bucket", kv.delete(OTHER, "k").await, Ok(()))?;
    same("the first bucket", kv.get(BUCKET, "k").await, Ok(Some(b"here".to_vec())))?;
    same("delete", kv.delete(BUCKET, "k").await, Ok(()))
}

async fn increments(kv: &dyn Backend, refusals: Refusals) -> Result<(), Mismatch> {
    same("increment of a missing key", kv.increment(BUCKET, "n", 5).await, Ok(5))?;
    same("increment", kv.increment(BUCKET, "n", 7).await, Ok(12))?;
    numbers(kv, refusals).await?;
    same("delete", kv.delete(BUCKET, "n").await, Ok(()))?;
    let sums = join_all((0..100).map(|_| kv.increment(BUCKET, "n", 1))).await;
    let mut seen = BTreeSet::new();
    for sum in sums {
        same("increments at once each see another sum", sum.map(|sum| seen.insert(sum)), Ok(true))?;
    }
    same("increments at once all count", seen.into_iter().eq(1..=100), true)?;
    same("delete", kv.delete(BUCKET, "n").await, Ok(()))
}

/// What is there, what is added, and the sum: the same text for the same number behind every backend.
const SUMS: [(Option<&str>, u64, u64); 12] = [
    (None, 0, 0),
    (None, MOST, MOST),
    (Some("0"), 0, 0),
    (Some("0"), 1, 1),
    (Some("41"), 1, 42),
    (Some("10"), 0, 10),
    (Some("-5"), 5, 0),
    (Some("-5"), 7, 2),
    (Some("-9223372036854775807"), MOST, 0),
    (Some("9223372036854775806"), 1, MOST),
    (Some("9223372036854775807"), 0, MOST),
    (Some("1"), MOST - 1, MOST),
];

/// What is no number, or makes none: below 0, above the largest, or spelled otherwise.
const NO_SUMS: [(Option<&[u8]>, u64); 34] = [
    (None, MOST + 1),
    (None, u64::MAX),
    (Some(b"0"), MOST + 1),
    (Some(b"-5"), MOST + 1),
    (Some(b"-5"), u64::MAX),
    (Some(b"1"), MOST),
    (Some(b"9223372036854775807"), 1),
    (Some(b"9223372036854775807"), MOST),
    (Some(b"-5"), 0),
    (Some(b"-5"), 4),
    (Some(b"-9223372036854775808"), 1),
    (Some(b"-9223372036854775808"), MOST),
    (Some(b"9223372036854775808"), 0),
    (Some(b"-9223372036854775809"), 1),
    (Some(b"18446744073709551616"), 1),
    (Some(b"00000000000000000000000000000001"), 1),
    (Some(b""), 1),
    (Some(b"-"), 1),
    (Some(b"-0"), 1),
    (Some(b"00"), 1),
    (Some(b"007"), 1),
    (Some(b"-05"), 7),
    (Some(b"+5"), 1),
    (Some(b" 5"), 1),
    (Some(b"5 "), 1),
    (Some(b"5\n"), 1),
    (Some(b"5\0"), 1),
    (Some(b"1.5"), 1),
    (Some(b"1e3"), 1),
    (Some(b"0x10"), 1),
    (Some(b"1_000"), 1),
    (Some("\u{663}".as_bytes()), 1),
    (Some(b"x"), 1),
    (Some(b"\0\0\0\0\0\0\0\x05"), 1),
];

/// The largest number there is.
const MOST: u64 = i64::MAX.unsigned_abs();

async fn put(kv: &dyn Backend, value: Option<&[u8]>) -> Result<(), Mismatch> {
    match value {
        Some(value) => same("set", kv.set(BUCKET, "n", value.to_vec()).await, Ok(())),
        None => same("delete", kv.delete(BUCKET, "n").await, Ok(())),
    }
}

async fn numbers(kv: &dyn Backend, refusals: Refusals) -> Result<(), Mismatch> {
    for (value, delta, sum) in SUMS {
        put(kv, value.map(str::as_bytes)).await?;
        same(&format!("{value:?} incremented by {delta}"), kv.increment(BUCKET, "n", delta).await, Ok(sum))?;
        let text = sum.to_string().into_bytes();
        same("the number as text", kv.get(BUCKET, "n").await, Ok(Some(text)))?;
    }
    for (value, delta) in NO_SUMS {
        put(kv, value).await?;
        let what = format!("{:?} incremented by {delta}", value.map(String::from_utf8_lossy));
        let answer = kv.increment(BUCKET, "n", delta).await;
        match refusals {
            Refusals::Typed => same(&what, answer, Err(BackendError::NotANumber("n".into())))?,
            Refusals::Text => refused(&what, answer)?,
        }
        same("a refused increment changes nothing", kv.get(BUCKET, "n").await, Ok(value.map(<[u8]>::to_vec)))?;
    }
    // What was written by an increment is what one adds to.
    put(kv, None).await?;
    same("increment", kv.increment(BUCKET, "n", MOST - 1).await, Ok(MOST - 1))?;
    same("up to the largest", kv.increment(BUCKET, "n", 1).await, Ok(MOST))?;
    let past = kv.increment(BUCKET, "n", 1).await;
    same(&format!("and not past it: {past:?}"), past.is_err(), true)?;
    same("it stays", kv.get(BUCKET, "n").await, Ok(Some(MOST.to_string().into_bytes())))
}

async fn no_increments(kv: &dyn Backend) -> Result<(), Mismatch> {
    same("set", kv.set(BUCKET, "n", b"41".to_vec()).await, Ok(()))?;
    refused("an increment", kv.increment(BUCKET, "n", 1).await)?;
    same("a refused increment changes nothing", kv.get(BUCKET, "n").await, Ok(Some(b"41".to_vec())))?;
    same("delete", kv.delete(BUCKET, "n").await, Ok(()))
}

fn refused<T: Debug>(what: &str, answer: Result<T, BackendError>) -> Result<(), Mismatch> {
    same(&format!("{what} is refused: {answer:?}"), matches!(answer, Err(BackendError::Unsupported(_))), true)
}

fn too_large<T: Debug>(what: &str, answer: Result<T, BackendError>) -> Result<(), Mismatch> {
    same(&format!("{what} is too large: {answer:?}"), matches!(answer, Err(BackendError::TooLarge(_))), true)
}

/// A batch of one key is none.
async fn no_batches(kv: &dyn Backend) -> Result<(), Mismatch> {
    let two = || ["a", "b"].map(|key| (key.to_owned(), b"new".to_vec())).to_vec();
    let keys = || ["a", "b"].map(str::to_owned).to_vec();
    same("nothing set", kv.set_many(BUCKET, vec![]).await, Ok(()))?;
    same("nothing deleted", kv.delete_many(BUCKET, vec![]).await, Ok(()))?;
    same("set-many of one", kv.set_many(BUCKET, two().into_iter().take(1).collect()).await, Ok(()))?;
    refused("set-many of two", kv.set_many(BUCKET, two()).await)?;
    refused("delete-many of two", kv.delete_many(BUCKET, keys()).await)?;
    let found = vec![("a".to_owned(), Some(b"new".to_vec())), ("b".to_owned(), None)];
    same("get-many sees that nothing else was changed", kv.get_many(BUCKET, keys()).await, Ok(found))?;
    same("delete-many of one", kv.delete_many(BUCKET, keys().into_iter().take(1).collect()).await, Ok(()))?;
    same("get after delete-many of one", kv.get(BUCKET, "a").await, Ok(None))
}

/// The backend's own limits, where they are below those of the contract.
async fn limits(kv: &dyn Backend, promises: Promises) -> Result<(), Mismatch> {
    let Promises { max_value, max_batch, max_batch_bytes, .. } = promises;
    if max_value < MAX_VALUE {
        same("set of the largest value", kv.set(BUCKET, "k", vec![7; max_value]).await, Ok(()))?;
        too_large("a value above it", kv.set(BUCKET, "k", vec![8; max_value + 1]).await)?;
        same("it changes nothing", kv.get(BUCKET, "k").await, Ok(Some(vec![7; max_value])))?;
        same("delete", kv.delete(BUCKET, "k").await, Ok(()))?;
    }
    let pairs = |count: usize, bytes: usize| -> Vec<_> {
        (0..count).map(|n| (format!("{n:05}"), vec![7; bytes / count])).collect()
    };
    if (2..MAX_BATCH).contains(&max_batch) {
        too_large("a batch of too many", kv.set_many(BUCKET, pairs(max_batch + 1, 0)).await)?;
        same("it sets nothing", all_keys(kv).await?, BTreeSet::new())?;
    }
    if max_batch > 1 && max_batch_bytes < MAX_BATCH_BYTES {
        too_large("a batch of too much", kv.set_many(BUCKET, pairs(2, max_batch_bytes + 2)).await)?;
        same("it sets nothing", all_keys(kv).await?, BTreeSet::new())?;
    }
    Ok(())
}

async fn batches(kv: &dyn Backend) -> Result<(), Mismatch> {
    let pair = |key: &str, value: &str| (key.to_owned(), value.as_bytes().to_vec());
    let keys = |keys: &[&str]| keys.iter().map(|key| (*key).to_owned()).collect::<Vec<_>>();
    same("nothing set", kv.set_many(BUCKET, vec![]).await, Ok(()))?;
    same("nothing got", kv.get_many(BUCKET, vec![]).await, Ok(vec![]))?;
    same("nothing deleted", kv.delete_many(BUCKET, vec![]).await, Ok(()))?;
    let pairs = vec![pair("a", "1"), pair("b", "2"), pair("c", "3"), pair("b", "4")];
    same("set-many", kv.set_many(BUCKET, pairs).await, Ok(()))?;
    let again = vec![pair("b", "longer than what comes after it"), pair("b", "4")];
    same("set-many of one key twice, which is there", kv.set_many(BUCKET, again).await, Ok(()))?;
    let found = |key: &str, value: Option<&str>| (key.to_owned(), value.map(|value| value.as_bytes().to_vec()));
    same(
        "get-many keeps the order, names what is missing, and the last of equal keys won",
        kv.get_many(BUCKET, keys(&["c", "x", "b", "a", "c"])).await,
        Ok(vec![
            found("c", Some("3")),
            found("x", None),
            found("b", Some("4")),
            found("a", Some("1")),
            found("c", Some("3")),
        ]),
    )?;
    same("delete-many", kv.delete_many(BUCKET, keys(&["a", "x", "c"])).await, Ok(()))?;
    same(
        "get-many after delete-many",
        kv.get_many(BUCKET, keys(&["a", "b", "c"])).await,
        Ok(vec![found("a", None), found("b", Some("4")), found("c", None)]),
    )?;
    same("delete-many", kv.delete_many(BUCKET, keys(&["b"])).await, Ok(()))
}

/// What is asked in few bytes may not be answered in many.
async fn large_answers(kv: &dyn Backend, promises: Promises) -> Result<(), Mismatch> {
    // The smallest batch that is too large has one value more than fits.
    let large = vec![7; promises.max_value.min(6 << 20)];
    let fit = MAX_BATCH_BYTES / (large.len() + 16);
    let names: Vec<String> = (0..=fit).map(|n| format!("large-{n}")).collect();
    for key in &names {
        same("set of a large value", kv.set(BUCKET, key, large.clone()).await, Ok(()))?;
    }
    let ask = |times| kv.get_many(BUCKET, vec!["large-0".to_owned(); times]);
    let sizes = |found: Vec<(String, Option<Vec<u8>>)>| -> Vec<_> {
        found.into_iter().map(|(_, value)| value.map(|value| value.len())).collect()
    };
    same("get-many within the limit", ask(fit).await.map(sizes), Ok(vec![Some(large.len()); fit]))?;
    for times in [fit + 1, MAX_BATCH] {
        too_large(&format!("get-many of {times} times a large value"), ask(times).await.map(sizes))?;
    }
    too_large("get-many of large values", kv.get_many(BUCKET, names.clone()).await.map(sizes))?;
    let page = kv.list_keys(BUCKET, None).await.map(|page| page.keys.into_iter().collect::<BTreeSet<_>>());
    same("large values do not stand in the way of a listing", page, Ok(names.iter().cloned().collect()))?;
    delete_all(kv, &names, promises).await
}

async fn delete_all(kv: &dyn Backend, keys: &[String], promises: Promises) -> Result<(), Mismatch> {
    if promises.max_batch > 1 {
        for part in keys.chunks(promises.max_batch) {
            same("delete-many", kv.delete_many(BUCKET, part.to_vec()).await, Ok(()))?;
        }
        return Ok(());
    }
    let mut answers = stream::iter(keys).map(|key| kv.delete(BUCKET, key)).buffer_unordered(AT_ONCE);
    while let Some(answer) = answers.next().await {
        same("delete", answer, Ok(()))?;
    }
    Ok(())
}

async fn set_all(kv: &dyn Backend, keys: &BTreeSet<String>, promises: Promises) -> Result<(), Mismatch> {
    let pairs: Vec<_> = keys.iter().map(|key| (key.clone(), b"v".to_vec())).collect();
    if promises.max_batch > 1 {
        for part in pairs.chunks(promises.max_batch) {
            same("set-many", kv.set_many(BUCKET, part.to_vec()).await, Ok(()))?;
        }
        return Ok(());
    }
    let sets = stream::iter(pairs).map(|(key, value)| async move { kv.set(BUCKET, &key, value).await });
    let mut answers = std::pin::pin!(sets.buffer_unordered(AT_ONCE));
    while let Some(answer) = answers.next().await {
        same("set", answer, Ok(()))?;
    }
    Ok(())
}

async fn listing(kv: &dyn Backend, promises: Promises) -> Result<(), Mismatch> {
    same("an empty bucket", all_keys(kv).await?, BTreeSet::new())?;
    let expected: BTreeSet<String> = (0..PAGE * 2 + PAGE / 2).map(|n| format!("key-{n}")).collect();
    set_all(kv, &expected, promises).await?;
    same("set elsewhere", kv.set(OTHER, "not-here", vec![]).await, Ok(()))?;
    same("every key of the bucket and no other", all_keys(kv).await?, expected.clone())?;
    same("delete", kv.delete(OTHER, "not-here").await, Ok(()))?;
    let keys: Vec<_> = expected.into_iter().collect();
    delete_all(kv, &keys, promises).await?;
    same("nothing is left", all_keys(kv).await?, BTreeSet::new())
}

async fn all_keys(kv: &dyn Backend) -> Result<BTreeSet<String>, Mismatch> {
    let mut keys = BTreeSet::new();
    let mut cursor: Option<String> = None;
    for _ in 0..1000 {
        let page = kv.list_keys(BUCKET, cursor.as_deref()).await;
        same("list-keys", page.as_ref().err(), None)?;
        let page = page.unwrap_or_default();
        keys.extend(page.keys);
        match page.cursor {
            Some(next) => cursor = Some(next),
            None => return Ok(keys),
        }
    }
    same("a listing ends", false, true).map(|()| keys)
}
