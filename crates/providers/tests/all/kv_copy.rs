//! Copying keys between stores: what is held at once is bounded in bytes, what is read back is compared, and a store that
//! fails or keeps something else is said to.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use futures::FutureExt;
use providers::keyvalue::copy::{self, Copied, CopyError, End};
use providers::keyvalue::{Answer, Backend, BackendError, MAX_BATCH_BYTES, Memory, Page, Redis};

use crate::keyvalue::{login, redis_as};
use crate::support::{Direct, RedisServer, Vault};

/// Bytes of values that were read and not written yet, now and at most.
#[derive(Default)]
struct Held {
    now: AtomicUsize,
    most: AtomicUsize,
}

/// What a store does with what it is to keep.
#[derive(Clone, Copy, PartialEq)]
enum Keeps {
    All,
    Another,
    Nothing,
}

/// A store that counts what is read from it, and what is written to it as written.
struct Probe {
    store: Memory,
    held: Arc<Held>,
    source: bool,
    keeps: Keeps,
}

impl Probe {
    fn read<T>(&self, answer: T, bytes: usize) -> T {
        if self.source {
            let now = self.held.now.fetch_add(bytes, SeqCst) + bytes;
            self.held.most.fetch_max(now, SeqCst);
        }
        answer
    }

    fn altered(&self, mut value: Vec<u8>) -> Vec<u8> {
        self.held.now.fetch_sub(if self.source { 0 } else { value.len() }, SeqCst);
        if self.keeps == Keeps::Another
            && let Some(first) = value.first_mut()
        {
            *first = first.wrapping_add(1);
        }
        value
    }

    fn refusal(&self) -> Result<(), BackendError> {
        match self.keeps {
            Keeps::Nothing => Err(BackendError::Denied("it is read only".into())),
            _ => Ok(()),
        }
    }
}

impl Backend for Probe {
    fn get<'a>(&'a self, bucket: &'a str, key: &'a str) -> Answer<'a, Option<Vec<u8>>> {
        async move {
            let found = self.store.get(bucket, key).await?;
            let bytes = found.as_ref().map_or(0, Vec::len);
            Ok(self.read(found, bytes))
        }
        .boxed()
    }
    fn set<'a>(&'a self, bucket: &'a str, key: &'a str, value: Vec<u8>) -> Answer<'a, ()> {
        async move {
            self.refusal()?;
            self.store.set(bucket, key, self.altered(value)).await
        }
        .boxed()
    }
    fn delete<'a>(&'a self, bucket: &'a str, key: &'a str) -> Answer<'a, ()> {
        self.store.delete(bucket, key)
    }
    fn exists<'a>(&'a self, bucket: &'a str, key: &'a str) -> Answer<'a, bool> {
        self.store.exists(bucket, key)
    }
    fn list_keys<'a>(&'a self, bucket: &'a str, cursor: Option<&'a str>) -> Answer<'a, Page> {
        self.store.list_keys(bucket, cursor)
    }
    fn increment<'a>(&'a self, bucket: &'a str, key: &'a str, delta: u64) -> Answer<'a, u64> {
        self.store.increment(bucket, key, delta)
    }
    fn get_many<'a>(&'a self, bucket: &'a str, keys: Vec<String>) -> Answer<'a, Vec<(String, Option<Vec<u8>>)>> {
        async move {
            let found = self.store.get_many(bucket, keys).await?;
            let bytes = found.iter().map(|(_, value)| value.as_ref().map_or(0, Vec::len)).sum();
            Ok(self.read(found, bytes))
        }
        .boxed()
    }
    fn set_many<'a>(&'a self, bucket: &'a str, pairs: Vec<(String, Vec<u8>)>) -> Answer<'a, ()> {
        async move {
            self.refusal()?;
            let pairs = pairs.into_iter().map(|(key, value)| (key, self.altered(value))).collect();
            self.store.set_many(bucket, pairs).await
        }
        .boxed()
    }
    fn delete_many<'a>(&'a self, bucket: &'a str, keys: Vec<String>) -> Answer<'a, ()> {
        self.store.delete_many(bucket, keys)
    }
}

fn pair(keeps: Keeps) -> (Probe, Probe, Arc<Held>) {
    let held = Arc::<Held>::default();
    let store = |source, keeps| Probe { store: Memory::new(1 << 30), held: held.clone(), source, keeps };
    (store(true, Keeps::All), store(false, keeps), held.clone())
}

async fn page(from: &Probe, to: &Probe) -> Result<Copied, CopyError> {
    copy::page(End { backend: from, bucket: "a" }, End { backend: to, bucket: "b" }, None).await
}

#[tokio::test]
async fn large_values_are_never_held_many_at_once() {
    let (from, to, held) = pair(Keeps::All);
    let value = |n: usize| vec![n as u8; (1 << 20) * (1 + n % 7)];
    let (mut all, mut keys) = (0, 0);
    for n in 0..60 {
        all += value(n).len();
        keys += 1;
        from.store.set("a", &format!("k{n}"), value(n)).await.unwrap();
        // The target has as much, and something else.
        to.store.set("b", &format!("k{n}"), vec![255; 3 << 20]).await.unwrap();
    }
    let copied = page(&from, &to).await.unwrap();
    assert_eq!((copied.read, copied.written, copied.bytes, copied.next), (keys, keys, all as u64, None));
    for n in 0..60 {
        assert!(to.store.get("b", &format!("k{n}")).await.unwrap() == Some(value(n)), "k{n}");
    }
    let most = held.most.load(SeqCst);
    assert!(most <= MAX_BATCH_BYTES, "{} MiB of {} were held at once", most >> 20, all >> 20);
    let again = page(&from, &to).await.unwrap();
    assert_eq!((again.read, again.written), (keys, 0));
    for n in [7, 14, 21, 28] {
        to.store.set("b", &format!("k{n}"), vec![255; 8 << 20]).await.unwrap();
    }
    let again = page(&from, &to).await.unwrap();
    assert_eq!((again.read, again.written), (keys, 4));
    assert!(to.store.get("b", "k28").await.unwrap() == Some(value(28)));
}

#[tokio::test]
async fn a_store_that_keeps_something_else_or_nothing_is_said_to() {
    let (from, to, _) = pair(Keeps::Another);
    from.store.set("a", "k", b"1".to_vec()).await.unwrap();
    assert_eq!(page(&from, &to).await, Err(CopyError::Differs("k".into())));
    for n in 0..5 {
        from.store.set("a", &format!("large{n}"), vec![n; 8 << 20]).await.unwrap();
    }
    assert!(matches!(page(&from, &to).await, Err(CopyError::Differs(_))));
    let (_, to, _) = pair(Keeps::Nothing);
    assert!(matches!(page(&from, &to).await, Err(CopyError::Target(BackendError::Denied(_)))));
}

#[tokio::test]
async fn two_names_of_one_server_are_found_out_and_nothing_is_left_there() {
    let server = RedisServer::start();
    let redis = |app: &str| -> Redis {
        redis_as("acme", app, &server.url(), login(None, &[], &Vault::new()), Direct::to(server.address))
    };
    let (one, other_name, other_app) = (redis("shop"), redis("shop"), redis("stock"));
    let end = |backend| End { backend, bucket: "a" };
    one.set("a", "count", b"1".to_vec()).await.unwrap();
    for _ in 0..2 {
        assert_eq!(copy::same(end(&one), end(&other_name)).await, Ok(true));
        assert_eq!(copy::same(end(&one), end(&other_app)).await, Ok(false));
        assert_eq!(copy::same(end(&one), End { backend: &other_name, bucket: "b" }).await, Ok(false));
    }
    assert_eq!(one.list_keys("a", None).await.unwrap().keys, ["count"]);
    assert_eq!(other_app.list_keys("a", None).await.unwrap().keys, Vec::<String>::new());
    let (from, to, _) = pair(Keeps::Nothing);
    let refused = copy::same(End { backend: &from, bucket: "a" }, End { backend: &to, bucket: "a" }).await;
    assert!(matches!(refused, Err(CopyError::Target(BackendError::Denied(_)))), "{refused:?}");
}
