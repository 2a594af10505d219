//! What every backend must do, run against each of them. It works in four containers of its own and leaves nothing
//! behind.

use std::collections::BTreeSet;
use std::fmt;

use bytes::Bytes;
use futures::StreamExt;

use super::{Backend, BackendError, CHUNK, MAX_OBJECT_NAME, PAGE, Reading, Upload};

const ONE: &str = "conformance";
const TWO: &str = "conformance/..";
const CASE: &str = "Conformance";
const NONE: &str = "conformance-never-made";

/// A backend that does something else.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{step}: expected {expected}, got {got}")]
pub struct Mismatch {
    /// What was tried.
    pub step: String,
    /// What the contract says.
    pub expected: String,
    /// What happened.
    pub got: String,
}

fn same<T: PartialEq + fmt::Debug>(step: &str, got: T, expected: T) -> Result<(), Mismatch> {
    if got == expected {
        return Ok(());
    }
    let cut = |text: String| text.chars().take(400).collect();
    let (expected, got) = (cut(format!("{expected:?}")), cut(format!("{got:?}")));
    Err(Mismatch { step: step.to_owned(), expected, got })
}

/// Runs everything.
///
/// # Errors
/// The first thing that is not as the contract says.
pub async fn run(store: &dyn Backend) -> Result<(), Mismatch> {
    run_up_to(store, MAX_OBJECT_NAME).await
}

/// The same with no name longer than `longest` bytes: for a backend whose server in the test takes no longer one.
///
/// # Errors
/// As [`run`].
pub async fn run_up_to(store: &dyn Backend, longest: usize) -> Result<(), Mismatch> {
    containers(store).await?;
    for container in [ONE, TWO, CASE] {
        same("create", store.create(container).await, Ok(()))?;
    }
    whole_objects(store).await?;
    ranges(store).await?;
    visibility(store).await?;
    names(store, longest).await?;
    removal(store).await?;
    copies(store).await?;
    missing_containers(store).await?;
    listing(store).await?;
    for container in [ONE, TWO, CASE] {
        same("delete", store.delete(container).await, Ok(()))?;
        same("a deleted container is gone", store.container(container).await, Ok(None))?;
    }
    Ok(())
}

/// Bytes that differ everywhere.
fn content(size: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let step = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 24) as u8
    };
    std::iter::repeat_with(step).take(size).collect()
}

async fn begin(
    store: &dyn Backend,
    container: &str,
    object: &str,
    bytes: &[u8],
) -> Result<Box<dyn Upload>, BackendError> {
    let mut upload = store.write(container, object).await?;
    for chunk in bytes.chunks(CHUNK) {
        upload.write(Bytes::copy_from_slice(chunk)).await?;
    }
    Ok(upload)
}

async fn put(store: &dyn Backend, container: &str, object: &str, bytes: &[u8]) -> Result<(), BackendError> {
    begin(store, container, object, bytes).await?.finish().await
}

async fn rest(mut reading: Reading) -> Result<Vec<u8>, BackendError> {
    let mut all = Vec::new();
    while let Some(chunk) = reading.chunks.next().await {
        all.extend_from_slice(&chunk?);
    }
    Ok(all)
}

async fn part(store: &dyn Backend, object: &str, start: u64, end: u64) -> Result<Vec<u8>, BackendError> {
    let reading = store.read(ONE, object, start, end).await?;
    let size = reading.size;
    let all = rest(reading).await?;
    if all.len() as u64 == size {
        return Ok(all);
    }
    Err(BackendError::Damaged { object: object.to_owned(), why: format!("{} bytes of {size} came", all.len()) })
}

async fn get(store: &dyn Backend, container: &str, object: &str) -> Result<Vec<u8>, BackendError> {
    rest(store.read(container, object, 0, u64::MAX).await?).await
}

fn no_object<T>(container: &str, object: &str) -> Result<T, BackendError> {
    Err(BackendError::NoObject { container: container.to_owned(), object: object.to_owned() })
}

async fn containers(store: &dyn Backend) -> Result<(), Mismatch> {
    same("a container that was never made", store.container(ONE).await, Ok(None))?;
    same("create", store.create(ONE).await, Ok(()))?;
    let again = store.create(ONE).await;
    same("create again", again, Err(BackendError::ContainerExists(ONE.to_owned())))?;
    let info = store.container(ONE).await;
    let recent = |at: u64| at > 1_600_000_000 && at < 10_000_000_000;
    let plausible = matches!(&info, Ok(Some(info)) if recent(info.created_at));
    same(&format!("a container knows when it was made: {info:?}"), plausible, true)?;
    same("a new container is empty", all_names(store, ONE).await?, BTreeSet::new())?;
    same("put", put(store, ONE, "left", b"behind").await, Ok(()))?;
    same("delete with an object in it", store.delete(ONE).await, Ok(()))?;
    same("delete again", store.delete(ONE).await, Ok(()))?;
    same("a deleted container is gone", store.container(ONE).await, Ok(None))?;
    same("create after delete", store.create(ONE).await, Ok(()))?;
    same("its objects are gone", store.object(ONE, "left").await, Ok(None))?;
    same("delete", store.delete(ONE).await, Ok(()))
}

async fn whole_objects(store: &dyn Backend) -> Result<(), Mismatch> {
    let sizes = [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 5 * 1024 * 1024, 11 * 1024 * 1024 + 7];
    for (seed, size) in sizes.into_iter().enumerate() {
        let bytes = content(size, seed as u64);
        same(&format!("put of {size} bytes"), put(store, ONE, "whole", &bytes).await, Ok(()))?;
        let info = store.object(ONE, "whole").await;
        let plausible = matches!(&info, Ok(Some(info)) if info.size == size as u64 && info.created_at > 1_600_000_000);
        same(&format!("info of an object of {size} bytes: {info:?}"), plausible, true)?;
        let read = get(store, ONE, "whole").await;
        same(&format!("{size} bytes come back"), read.map(|read| read == bytes), Ok(true))?;
    }
    same("a missing object", store.object(ONE, "missing").await, Ok(None))?;
    same("a missing object's bytes", get(store, ONE, "missing").await, no_object(ONE, "missing"))?;
    same("remove", store.remove(ONE, vec!["whole".to_owned()]).await, Ok(()))
}

async fn ranges(store: &dyn Backend) -> Result<(), Mismatch> {
    let bytes = content(3 * CHUNK + 11, 99);
    let size = bytes.len() as u64;
    same("put", put(store, ONE, "ranged", &bytes).await, Ok(()))?;
    let chunk = CHUNK as u64;
    for (start, end) in [
        (0, 0),
        (0, 9),
        (chunk - 1, chunk),
        (chunk, 2 * chunk + 5),
        (size - 1, size - 1),
        (size - 1, u64::MAX),
        (7, size),
    ] {
        let wanted = bytes.get(start as usize..=(end.min(size - 1)) as usize).unwrap_or_default();
        let got = part(store, "ranged", start, end).await;
        same(&format!("bytes {start} to {end}"), got.map(|got| got == wanted), Ok(true))?;
    }
    for (start, end) in [(size, u64::MAX), (5, 4)] {
        let refused = Err(BackendError::Range { start, end, size });
        same(&format!("bytes {start} to {end} of {size}"), part(store, "ranged", start, end).await, refused)?;
    }
    same("put of nothing", put(store, ONE, "ranged", b"").await, Ok(()))?;
    same("all of nothing", part(store, "ranged", 0, u64::MAX).await, Ok(Vec::new()))?;
    same("remove", store.remove(ONE, vec!["ranged".to_owned()]).await, Ok(()))
}

async fn visibility(store: &dyn Backend) -> Result<(), Mismatch> {
    let (old, new) = (content(6 << 20, 1), content(6 << 20, 2));
    let begun = begin(store, ONE, "v", &old).await;
    same("an upload", begun.as_ref().err(), None)?;
    same("what is not finished is not there", store.object(ONE, "v").await, Ok(None))?;
    same("nor listed", all_names(store, ONE).await?, BTreeSet::new())?;
    if let Ok(begun) = begun {
        begun.abandon().await;
    }
    same("what was abandoned is not there", store.object(ONE, "v").await, Ok(None))?;
    same("put", put(store, ONE, "v", &old).await, Ok(()))?;
    let reading = store.read(ONE, "v", 0, u64::MAX).await;
    let began = begin(store, ONE, "v", &new).await;
    same("the old object until the new one is finished", get(store, ONE, "v").await.map(|v| v == old), Ok(true))?;
    if let Ok(began) = began {
        same("finish", began.finish().await, Ok(()))?;
    }
    same("the new object", get(store, ONE, "v").await.map(|v| v == new), Ok(true))?;
    let held = match reading {
        Ok(reading) => rest(reading).await.map(|read| read == old),
        Err(cause) => Err(cause),
    };
    same("a reader goes on with what it opened", held, Ok(true))?;
    let (one, two) = futures::join!(put(store, ONE, "v", &old), put(store, ONE, "v", &new));
    same("two writers at once", (one, two), (Ok(()), Ok(())))?;
    let left = get(store, ONE, "v").await;
    same("one of them wins whole", left.map(|left| left == old || left == new), Ok(true))?;
    same("remove", store.remove(ONE, vec!["v".to_owned()]).await, Ok(()))
}

async fn names(store: &dyn Backend, longest: usize) -> Result<(), Mismatch> {
    let long = "ö/".repeat(longest / 3);
    let odd = [
        "plain",
        "Plain",
        "a/b",
        "a//b",
        "/a",
        "a/",
        "/",
        "//",
        ".",
        "..",
        "x/../../y",
        "a/../b",
        "%2e",
        "%",
        "a%2Fb",
        "ü",
        "u\u{308}",
        "日本語",
        "🦀",
        " ",
        "a b",
        "a\\b",
        "*?<>|\":",
        "~",
        "con",
        "-",
        "#x",
        "a+b",
        "a=b&c",
        "{}[]^`'",
        &long,
    ];
    for (n, name) in odd.iter().enumerate() {
        same(&format!("put of {name:?}"), put(store, ONE, name, n.to_string().as_bytes()).await, Ok(()))?;
    }
    for (n, name) in odd.iter().enumerate() {
        let read = get(store, ONE, name).await;
        same(&format!("{name:?} is itself and no other"), read, Ok(n.to_string().into_bytes()))?;
    }
    let expected: BTreeSet<String> = odd.iter().map(|name| (*name).to_owned()).collect();
    same("every name is listed as it is", all_names(store, ONE).await?, expected)?;
    for other in [TWO, CASE] {
        same(&format!("nothing of it is in {other}"), all_names(store, other).await?, BTreeSet::new())?;
    }
    same("clear", store.clear(ONE).await, Ok(()))?;
    same("a cleared container is empty", all_names(store, ONE).await?, BTreeSet::new())?;
    same("a cleared container is there", store.container(ONE).await.map(|info| info.is_some()), Ok(true))
}

async fn removal(store: &dyn Backend) -> Result<(), Mismatch> {
    for name in ["ra", "rb", "rc"] {
        same("put", put(store, ONE, name, name.as_bytes()).await, Ok(()))?;
    }
    same("put elsewhere", put(store, TWO, "ra", b"there").await, Ok(()))?;
    let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
    same("remove, also what is not there", store.remove(ONE, names(&["ra", "absent", "rc", "ra"])).await, Ok(()))?;
    same("remove nothing", store.remove(ONE, Vec::new()).await, Ok(()))?;
    same("what is left", all_names(store, ONE).await?, names(&["rb"]).into_iter().collect())?;
    same("another container keeps its own", get(store, TWO, "ra").await, Ok(b"there".to_vec()))?;
    same("clear", store.clear(ONE).await, Ok(()))?;
    same("another container is not cleared", get(store, TWO, "ra").await, Ok(b"there".to_vec()))?;
    same("clear", store.clear(TWO).await, Ok(()))
}

async fn copies(store: &dyn Backend) -> Result<(), Mismatch> {
    let bytes = content(6 << 20, 5);
    same("put", put(store, ONE, "from", &bytes).await, Ok(()))?;
    same("put", put(store, TWO, "to", b"replaced").await, Ok(()))?;
    same("copy to another name", store.copy((ONE, "from"), (ONE, "a b")).await, Ok(()))?;
    same("copy to another container", store.copy((ONE, "from"), (TWO, "to")).await, Ok(()))?;
    for (container, name) in [(ONE, "from"), (ONE, "a b"), (TWO, "to")] {
        let read = get(store, container, name).await;
        same(&format!("{name} in {container}"), read.map(|read| read == bytes), Ok(true))?;
    }
    same("copy of nothing", store.copy((ONE, "nothing"), (ONE, "to")).await, no_object(ONE, "nothing"))?;
    let nowhere = Err(BackendError::NoContainer(NONE.to_owned()));
    same("copy to no container", store.copy((ONE, "from"), (NONE, "to")).await, nowhere.clone())?;
    same("copy from no container", store.copy((NONE, "from"), (ONE, "to")).await, nowhere)?;
    same("clear", store.clear(ONE).await, Ok(()))?;
    same("clear", store.clear(TWO).await, Ok(()))
}

async fn missing_containers(store: &dyn Backend) -> Result<(), Mismatch> {
    let none = || BackendError::NoContainer(NONE.to_owned());
    same("write", store.write(NONE, "a").await.err(), Some(none()))?;
    same("read", store.read(NONE, "a", 0, 1).await.err(), Some(none()))?;
    same("list", store.list(NONE, None).await, Err(none()))?;
    same("object", store.object(NONE, "a").await, Err(none()))?;
    same("remove", store.remove(NONE, vec!["a".to_owned()]).await, Err(none()))?;
    same("clear", store.clear(NONE).await, Err(none()))?;
    same("delete", store.delete(NONE).await, Ok(()))
}

async fn listing(store: &dyn Backend) -> Result<(), Mismatch> {
    let expected: BTreeSet<String> = (0..PAGE + PAGE / 4).map(|n| format!("dir-{}/{n}", n % 7)).collect();
    let puts = futures::stream::iter(&expected).map(|name| put(store, ONE, name, b"x")).buffer_unordered(16);
    let failed: Vec<_> = puts.filter_map(|put| async { put.err() }).collect().await;
    same("puts", failed, Vec::new())?;
    same("put elsewhere", put(store, TWO, "not-here", b"").await, Ok(()))?;
    same("every object of the container and no other", all_names(store, ONE).await?, expected)
}

/// Every name, where none comes twice.
async fn all_names(store: &dyn Backend, container: &str) -> Result<BTreeSet<String>, Mismatch> {
    let mut names = BTreeSet::new();
    let mut cursor: Option<String> = None;
    for _ in 0..1000 {
        let page = store.list(container, cursor.as_deref()).await;
        same("list", page.as_ref().err(), None)?;
        let page = page.unwrap_or_default();
        same("a page is not longer than it may be", page.names.len() <= PAGE, true)?;
        for name in page.names {
            same(&format!("{name:?} is listed once"), names.insert(name), true)?;
        }
        match page.cursor {
            Some(next) => cursor = Some(next),
            None => return Ok(names),
        }
    }
    same("a listing ends", false, true).map(|()| names)
}
