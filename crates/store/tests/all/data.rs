//! The embedded data: what each operation does, that nobody sees what is not theirs, and how fast it is.

use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::future::{MaybeDone, maybe_done};
use model::{AppName, ProviderName, TenantName};
use store::data::{Answer, DataEngine, Fault, MAX_BATCH, MAX_LIST, MAX_VALUE, Op, Reads};
use tokio::sync::Semaphore;

/// For what comes at once, also on a slow machine with much to do.
const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Clone)]
struct Bucket {
    engine: DataEngine,
    tenant: TenantName,
    app: AppName,
    provider: ProviderName,
    name: String,
}

impl Bucket {
    fn new(engine: &DataEngine, place: &str, name: &str) -> Self {
        let mut parts = place.split('/');
        let mut part = || parts.next().unwrap();
        Self {
            engine: engine.clone(),
            tenant: part().parse().unwrap(),
            app: part().parse().unwrap(),
            provider: part().parse().unwrap(),
            name: name.to_owned(),
        }
    }

    async fn call(&self, op: Op) -> Result<Answer, Fault> {
        self.engine.call(&self.tenant, &self.app, &self.provider, &self.name, op).await
    }

    async fn set(&self, key: &str, value: &[u8]) {
        assert_eq!(self.call(Op::Set { key: key.into(), value: value.into() }).await, Ok(Answer::Done));
    }

    async fn get(&self, key: &str) -> Option<Vec<u8>> {
        match self.call(Op::Get { key: key.into() }).await {
            Ok(Answer::Value(value)) => value,
            other => panic!("{other:?}"),
        }
    }

    async fn add(&self, key: &str, delta: u64) -> Result<u64, Fault> {
        match self.call(Op::Increment { key: key.into(), delta }).await? {
            Answer::Number(number) => Ok(number),
            other => panic!("{other:?}"),
        }
    }

    async fn swap(&self, key: &str, expected: Option<&[u8]>, value: &[u8]) -> bool {
        let op = Op::CompareAndSet { key: key.into(), expected: expected.map(Vec::from), value: value.into() };
        self.call(op).await == Ok(Answer::Bool(true))
    }

    async fn keys(&self, limit: u32) -> Vec<String> {
        let (mut all, mut from) = (Vec::new(), None);
        loop {
            match self.call(Op::ListKeys { cursor: from, limit }).await {
                Ok(Answer::Keys { keys, cursor }) => {
                    assert!(keys.len() <= limit as usize);
                    all.extend(keys);
                    from = cursor;
                }
                other => panic!("{other:?}"),
            }
            if from.is_none() {
                return all;
            }
        }
    }
}

fn engine() -> (tempfile::TempDir, DataEngine) {
    let dir = tempfile::tempdir().unwrap();
    let engine = DataEngine::open(dir.path().join("data.redb")).unwrap();
    (dir, engine)
}

#[tokio::test]
async fn each_operation_does_what_it_says() {
    let (_dir, engine) = engine();
    let bucket = Bucket::new(&engine, "t/a/p", "b");
    assert_eq!(bucket.get("k").await, None);
    bucket.set("k", b"v").await;
    bucket.set("", b"the empty key is a key").await;
    assert_eq!(bucket.get("k").await.unwrap(), b"v");
    assert_eq!(bucket.call(Op::Exists { key: "k".into() }).await, Ok(Answer::Bool(true)));
    assert_eq!(bucket.call(Op::Exists { key: "l".into() }).await, Ok(Answer::Bool(false)));
    assert_eq!(bucket.keys(1).await, ["", "k"]);

    assert_eq!(bucket.add("n", 5).await, Ok(5));
    assert_eq!(bucket.add("n", 7).await, Ok(12));
    assert_eq!(bucket.get("n").await.unwrap(), b"12");
    bucket.set("n", b"-5").await;
    assert_eq!(bucket.add("n", 4).await, Err(Fault::NotANumber("n".into())));
    assert_eq!(bucket.get("n").await.unwrap(), b"-5");
    assert_eq!(bucket.add("n", 7).await, Ok(2));
    assert_eq!(bucket.add("k", 1).await, Err(Fault::NotANumber("k".into())));
    bucket.set("max", i64::MAX.to_string().as_bytes()).await;
    assert_eq!(bucket.add("max", 1).await, Err(Fault::NotANumber("max".into())));
    assert_eq!(bucket.add("max", 0).await, Ok(i64::MAX.unsigned_abs()));

    assert!(!bucket.swap("c", Some(b"x"), b"1").await);
    assert!(bucket.swap("c", None, b"1").await);
    assert!(!bucket.swap("c", None, b"2").await);
    assert!(bucket.swap("c", Some(b"1"), b"2").await);
    assert_eq!(bucket.get("c").await.unwrap(), b"2");

    let pairs = vec![("x".to_owned(), b"1".to_vec()), ("y".to_owned(), b"2".to_vec())];
    assert_eq!(bucket.call(Op::SetMany { pairs: pairs.clone() }).await, Ok(Answer::Done));
    let keys = vec!["y".to_owned(), "none".to_owned(), "x".to_owned()];
    let values =
        vec![("y".to_owned(), Some(b"2".to_vec())), ("none".to_owned(), None), ("x".to_owned(), Some(b"1".to_vec()))];
    assert_eq!(bucket.call(Op::GetMany { keys: keys.clone() }).await, Ok(Answer::Values(values)));
    assert_eq!(bucket.call(Op::DeleteMany { keys }).await, Ok(Answer::Done));
    assert_eq!(bucket.call(Op::Delete { key: "gone".into() }).await, Ok(Answer::Done));
    assert_eq!(bucket.keys(2).await, ["", "c", "k", "max", "n"]);
}

#[tokio::test]
async fn what_is_above_a_limit_is_refused_whole() {
    let (_dir, engine) = engine();
    let bucket = Bucket::new(&engine, "t/a/p", "b");
    bucket.set("big", &vec![1; MAX_VALUE]).await;
    assert_eq!(bucket.get("big").await.unwrap().len(), MAX_VALUE);
    let too_large = |answer| assert!(matches!(answer, Err(Fault::TooLarge(_))), "{answer:?}");
    too_large(bucket.call(Op::Set { key: "k".into(), value: vec![1; MAX_VALUE + 1] }).await);
    too_large(bucket.call(Op::Set { key: "k".repeat(1025), value: vec![] }).await);
    too_large(bucket.call(Op::Get { key: "k".repeat(1025) }).await);
    let pair = |n: usize, size| (n.to_string(), vec![0; size]);
    too_large(bucket.call(Op::SetMany { pairs: (0..=MAX_BATCH).map(|n| pair(n, 1)).collect() }).await);
    too_large(bucket.call(Op::SetMany { pairs: (0..3).map(|n| pair(n, 7 << 20)).collect() }).await);
    too_large(bucket.call(Op::SetMany { pairs: vec![pair(1, 1), pair(2, MAX_VALUE + 1)] }).await);
    too_large(Bucket::new(&engine, "t/a/p", &"b".repeat(257)).call(Op::Exists { key: "k".into() }).await);
    assert_eq!(bucket.keys(10).await, ["big"]);
    // An answer has a limit too: three of 8 MiB are too much for one.
    bucket.set("big2", &vec![1; MAX_VALUE]).await;
    bucket.set("big3", &vec![1; MAX_VALUE]).await;
    too_large(bucket.call(Op::GetMany { keys: ["big", "big2", "big3"].map(String::from).to_vec() }).await);
}

#[tokio::test]
async fn buckets_apps_and_tenants_see_only_their_own() {
    let (_dir, engine) = engine();
    let places = ["t/a/p", "t/a/q", "t/ab/p", "ta/a/p", "t/a-b/p", "tt/a/p", "t/p/a"];
    let names = ["", "b", "b/", "/b", "a/p/b", "b\0", "\0\u{1}b", "..", "*", "bb", "\u{10ffff}"];
    let keys = ["", "k", "/k", "\0", "\0\u{1}bk", "\u{10ffff}"];
    let mut all = Vec::new();
    for place in places {
        for name in names {
            let bucket = Bucket::new(&engine, place, name);
            let pairs =
                keys.iter().map(|key| (key.to_string(), format!("{place}|{name}|{key}").into_bytes())).collect();
            bucket.call(Op::SetMany { pairs }).await.unwrap();
            all.push((place, name, bucket));
        }
    }
    let mut sorted = keys.to_vec();
    sorted.sort_unstable();
    let check = async |all: &[(&str, &str, Bucket)]| {
        for (place, name, bucket) in all {
            assert_eq!(bucket.keys(4).await, sorted, "{place} {name:?}");
            for key in keys {
                assert_eq!(bucket.get(key).await.unwrap(), format!("{place}|{name}|{key}").into_bytes());
            }
        }
    };
    check(&all).await;
    engine.purge(&"t".parse().unwrap(), &"a".parse().unwrap()).await.unwrap();
    let (gone, kept): (Vec<_>, Vec<_>) = all.into_iter().partition(|(place, ..)| place.starts_with("t/a/"));
    assert_eq!(gone.len(), 2 * names.len());
    for (place, name, bucket) in gone {
        assert_eq!(bucket.keys(4).await, [""; 0], "{place} {name:?}");
    }
    check(&kept).await;
}

#[tokio::test]
async fn a_purge_of_many_keys_lets_others_write_meanwhile() {
    let (_dir, engine) = engine();
    let (large, other) = (Bucket::new(&engine, "t/a/p", "b"), Bucket::new(&engine, "u/a/p", "b"));
    for part in 0..12 {
        let pairs = (0..MAX_BATCH).map(|n| (format!("{part}-{n}"), vec![])).collect();
        large.call(Op::SetMany { pairs }).await.unwrap();
    }
    // One piece has large values.
    for n in 0..4 {
        large.set(&format!("large-{n}"), &vec![1; MAX_VALUE]).await;
    }
    other.set("k", b"before").await;
    let (tenant, app) = ("t".parse().unwrap(), "a".parse().unwrap());
    let mut purge = std::pin::pin!(engine.purge(&tenant, &app));
    tokio::select! {
        biased;
        purged = &mut purge => panic!("{purged:?}: the other one waited for all of it"),
        () = other.set("k", b"meanwhile") => {}
    }
    purge.await.unwrap();
    assert_eq!(large.keys(MAX_LIST).await, [""; 0]);
    assert_eq!(other.get("k").await.unwrap(), b"meanwhile");
}

#[tokio::test]
async fn a_page_of_a_listing_has_a_bound() {
    let (_dir, engine) = engine();
    let bucket = Bucket::new(&engine, "t/a/p", "b");
    for part in 0..3 {
        let pairs = (0..500).map(|n| (format!("{part}-{n:03}"), vec![])).collect();
        bucket.call(Op::SetMany { pairs }).await.unwrap();
    }
    match bucket.call(Op::ListKeys { cursor: None, limit: u32::MAX }).await.unwrap() {
        Answer::Keys { keys, cursor } => assert!(keys.len() == MAX_LIST as usize && cursor == keys.last().cloned()),
        other => panic!("{other:?}"),
    }
    assert_eq!(bucket.keys(MAX_LIST).await.len(), 1500);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn concurrent_increments_are_each_counted_once_and_read_at_once() {
    let (dir, engine) = engine();
    let bucket = Bucket::new(&engine, "t/a/p", "b");
    let one = {
        let started = Instant::now();
        for _ in 0..200 {
            bucket.add("alone", 1).await.unwrap();
        }
        started.elapsed() / 200
    };
    let started = Instant::now();
    let tasks: Vec<_> = (0..32)
        .map(|_| {
            let bucket = bucket.clone();
            tokio::spawn(async move {
                let (mut seen, mut waits) = (Vec::new(), Vec::new());
                for _ in 0..200 {
                    let asked = Instant::now();
                    let number = bucket.add("n", 1).await.unwrap();
                    waits.push(asked.elapsed());
                    let read: u64 = String::from_utf8(bucket.get("n").await.unwrap()).unwrap().parse().unwrap();
                    assert!(read >= number, "read {read} after writing {number}");
                    seen.push(number);
                }
                (seen, waits)
            })
        })
        .collect();
    let (mut all, mut waits): (Vec<u64>, Vec<Duration>) = Default::default();
    for task in tasks {
        let (seen, waited) = task.await.unwrap();
        all.extend(seen);
        waits.extend(waited);
    }
    let rate = all.len() as f64 / started.elapsed().as_secs_f64();
    waits.sort_unstable();
    println!(
        "durable increments: 1 caller {one:?} each; 32 callers {rate:.0}/s, p50 {:?}, p99 {:?}",
        waits[waits.len() / 2],
        waits[waits.len() * 99 / 100]
    );
    all.sort_unstable();
    assert!(all.into_iter().eq(1..=6400));
    drop((bucket, engine));
    let engine = DataEngine::open(dir.path().join("data.redb")).unwrap();
    assert_eq!(Bucket::new(&engine, "t/a/p", "b").get("n").await.unwrap(), b"6400");
}

/// Begins each of them, in their order, as far as it goes without anybody waiting for it.
async fn begin<F: Future>(calls: impl IntoIterator<Item = F>) -> Vec<Pin<Box<MaybeDone<F>>>> {
    let mut begun: Vec<_> = calls.into_iter().map(|call| Box::pin(maybe_done(call))).collect();
    // More than tokio lets one task do in one go: what comes after that would not be begun.
    let all = async {
        for call in &mut begun {
            let _ = futures::poll!(call);
        }
    };
    tokio::task::unconstrained(all).await;
    begun
}

#[tokio::test]
async fn what_one_tenant_has_wait_for_room_holds_up_no_other() {
    let (_dir, engine) = engine();
    let (busy, other) = (Bucket::new(&engine, "busy/a/embedded", "b"), Bucket::new(&engine, "other/a/embedded", "b"));
    for round in 0..10_u8 {
        // Three times what it may have in the line. What waits for room comes into it only where somebody goes on with it,
        // and that is after the other one's write: nothing but room of its own lets that through.
        let begun = begin((0..96).map(|n| {
            let busy = busy.clone();
            async move { busy.set(&format!("k{n}"), &vec![round; 1 << 20]).await }
        }));
        let begun = begun.await;
        tokio::time::timeout(PATIENCE, other.set("k", b"v")).await.expect("it waits for what another one waits for");
        let waited = busy.get("k95").await.is_none_or(|value| value[0] != round);
        futures::future::join_all(begun).await;
        assert_eq!(busy.get("k95").await.unwrap()[0], round, "it was asked");
        if waited {
            return;
        }
    }
    panic!("nothing ever waited for room");
}

/// The other one's write is asked last of all. Were it written in its turn, it could not be there before the last of what
/// was asked before it, however fast or slow the machine is. So one try in which it is there shows that it was not; and a
/// try may miss that, where all that is left is written before this thread comes to look.
#[tokio::test]
async fn what_one_tenant_keeps_the_writer_busy_with_holds_up_no_other() {
    // As much as several transactions take, and all of it slower to write than to ask.
    let (asked, pairs) = (4096, 64);
    let (_dir, engine) = engine();
    let (busy, other) = (Bucket::new(&engine, "busy/a/embedded", "b"), Bucket::new(&engine, "other/a/embedded", "b"));
    for round in 0..10_u8 {
        let begun = begin((0..=asked).map(|n| {
            let busy = busy.clone();
            let mut pairs: Vec<_> = (0..pairs).map(|n| (n.to_string(), vec![round])).collect();
            if n == asked {
                pairs = vec![("last".to_owned(), vec![round])];
            }
            async move { assert_eq!(busy.call(Op::SetMany { pairs }).await, Ok(Answer::Done)) }
        }));
        let begun = begun.await;
        other.set("k", &[round]).await;
        let before = busy.get("last").await.is_none_or(|value| value != [round]);
        futures::future::join_all(begun).await;
        assert_eq!(busy.get("last").await.unwrap(), [round], "it was asked");
        if before {
            return;
        }
    }
    panic!("it is written after all that was asked before it");
}

#[tokio::test]
async fn who_has_read_much_reads_on_threads_of_its_own_as_many_as_it_may_have() {
    let (_dir, engine) = engine();
    let bucket = Bucket::new(&engine, "t/a/p", "b");
    bucket.set("small", b"v").await;
    bucket.set("large", &vec![7; MAX_VALUE]).await;
    let threads = Arc::new(Semaphore::new(0));
    let reads = Reads::new(threads.clone());
    let read = |op| {
        let (bucket, reads) = (bucket.clone(), &reads);
        async move {
            bucket.engine.call_within(reads, &bucket.tenant, &bucket.app, &bucket.provider, &bucket.name, op).await
        }
    };
    let get = |key: &str| Op::Get { key: key.into() };
    let small = Ok(Answer::Value(Some(b"v".to_vec())));
    for _ in 0..100 {
        // Here and now: there is no other thread for it.
        assert_eq!(futures::FutureExt::now_or_never(read(get("small"))), Some(small.clone()));
    }
    let keys = vec!["small".to_owned(); 100];
    assert_eq!(futures::FutureExt::now_or_never(read(Op::GetMany { keys })), None, "a hundred are long");
    assert!(futures::FutureExt::now_or_never(read(get("large"))).is_some_and(|large| large.is_ok()));
    // For half a second; where the machine has stood still for longer there is another try.
    let after = (0..10).any(|_| {
        let waits = futures::FutureExt::now_or_never(read(get("small"))).is_none();
        drop(futures::FutureExt::now_or_never(read(get("large"))));
        waits
    });
    assert!(after, "it goes on where others wait for it");
    threads.add_permits(1);
    assert_eq!(tokio::time::timeout(PATIENCE, read(get("small"))).await.unwrap(), small);
    assert_eq!(threads.available_permits(), 1, "it is given back");
}
