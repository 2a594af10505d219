//! No acknowledged write is lost by `kill -9` at any point: a child of this binary writes and says what was
//! acknowledged, is killed, and what it left must be the state before or after the write in flight, of each worker.
//!
//! `SIDEREAL_KILLS` sets the number of kills (200).

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use bytes::Bytes;
use store::data::{Answer, DataEngine, Op};
use store::redb::RedbStore;
use store::{Expect, Store, StoreError};

const WORKERS: u64 = 4;
const FILES: [&str; 4] = ["store.redb", "store.redb.last", "data.redb", "data.redb.last"];

/// A number that looks random and is the same in both processes.
fn mix(a: u64, b: u64) -> u64 {
    let mut x = (a << 32 ^ b).wrapping_add(0x9e37_79b9_7f4a_7c15);
    x = (x ^ x >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ x >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ x >> 31
}

/// What one worker's writes up to some number leave.
#[derive(Clone, Debug, Default, PartialEq)]
struct Model {
    keys: BTreeMap<String, Vec<u8>>,
    data: BTreeMap<String, Vec<u8>>,
    counter: i64,
}

enum Act {
    Put,
    CompareAndSet,
    Delete,
    Increment,
    Data,
}

fn act(worker: u64, n: u64) -> (Act, String, Vec<u8>) {
    let kind = match mix(worker, n) % 8 {
        0 | 1 => Act::Put,
        2 | 3 => Act::CompareAndSet,
        4 => Act::Delete,
        5 | 6 => Act::Increment,
        _ => Act::Data,
    };
    let value = n.to_string().repeat((mix(n, worker) % 300) as usize + 1).into_bytes();
    (kind, format!("{worker}/{}", mix(worker ^ 77, n) % 6), value)
}

impl Model {
    fn after(&self, worker: u64, n: u64) -> Self {
        let mut next = self.clone();
        let (kind, key, value) = act(worker, n);
        match kind {
            Act::Put | Act::CompareAndSet => drop(next.keys.insert(key, value)),
            Act::Delete => drop(next.keys.remove(&key)),
            Act::Increment => next.counter += 1,
            Act::Data => drop(next.data.insert(key, value)),
        }
        next
    }
}

async fn perform(store: &RedbStore, data: &DataEngine, worker: u64, n: u64) -> u64 {
    let (kind, key, value) = act(worker, n);
    let call = async |op| {
        let place = ("t".parse().unwrap(), "a".parse().unwrap(), "p".parse().unwrap());
        data.call(&place.0, &place.1, &place.2, &format!("w{worker}"), op).await.unwrap();
        0
    };
    match kind {
        Act::Put => store.put(&key, value.into(), Expect::Any, None).await.unwrap(),
        Act::CompareAndSet => {
            let entry = store.get(&key).await.unwrap();
            let expect = entry.map_or(Expect::Absent, |entry| Expect::Revision(entry.revision));
            store.put(&key, value.into(), expect, None).await.unwrap()
        }
        Act::Delete => store.delete(&key, Expect::Any).await.unwrap(),
        Act::Increment => call(Op::Increment { key: "counter".into(), delta: 1 }).await,
        Act::Data => call(Op::Set { key, value }).await,
    }
}

/// Run by the parent test in a process of its own, and killed there.
#[test]
#[ignore = "started by the kill tests"]
fn child() {
    let Ok(dir) = std::env::var("SIDEREAL_CRASH_DIR") else { return };
    let from: Vec<u64> = std::env::var("SIDEREAL_CRASH_FROM").unwrap().split(',').map(|n| n.parse().unwrap()).collect();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let store = RedbStore::open(Path::new(&dir).join("store.redb")).unwrap();
        let data = DataEngine::open(Path::new(&dir).join("data.redb")).unwrap();
        // Leased writes among the others, which must leave no trace.
        let lease = store.grant(Duration::from_secs(600)).await.unwrap();
        let workers = (0..WORKERS).map(|worker| {
            let (store, data, from) = (&store, &data, from[worker as usize]);
            async move {
                for n in from.. {
                    if n % 5 == 0 {
                        let value = Bytes::from_static(b"leased");
                        store.put(&format!("leased/{worker}"), value, Expect::Any, Some(lease)).await.unwrap();
                    }
                    let revision = perform(store, data, worker, n).await;
                    // One write to the pipe: what is in it stays when this process is killed.
                    std::io::stdout().write_all(format!("@{worker} {n} {revision}\n").as_bytes()).unwrap();
                    std::io::stdout().flush().unwrap();
                }
            }
        });
        futures::future::join_all(workers).await;
    });
}

fn start(dir: &Path, from: &[u64]) -> Child {
    let from: Vec<String> = from.iter().map(u64::to_string).collect();
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "crash::child", "--ignored", "--nocapture", "--test-threads=1"])
        .env("SIDEREAL_CRASH_DIR", dir)
        .env("SIDEREAL_CRASH_FROM", from.join(","))
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

fn copy(from: &Path, to: &Path) {
    for file in FILES {
        let _ = std::fs::remove_file(to.join(file));
        if from.join(file).exists() {
            std::fs::copy(from.join(file), to.join(file)).unwrap();
        }
    }
}

/// What each worker's keys are in the files, and the store's revision.
async fn look(dir: &Path) -> Result<(Vec<Model>, u64), StoreError> {
    let store = RedbStore::open(dir.join("store.redb"))?;
    let data = DataEngine::open(dir.join("data.redb"))?;
    let listed = store.list("").await?;
    let mut models = vec![Model::default(); WORKERS as usize];
    for entry in listed.entries {
        let worker: usize = entry.key.split('/').next().unwrap().parse().expect("a leased key came back");
        assert!(entry.revision <= listed.revision);
        models[worker].keys.insert(entry.key, entry.value.to_vec());
    }
    let (tenant, app, provider) = ("t".parse().unwrap(), "a".parse().unwrap(), "p".parse().unwrap());
    for (worker, model) in models.iter_mut().enumerate() {
        let bucket = format!("w{worker}");
        let call = async |op| data.call(&tenant, &app, &provider, &bucket, op).await.unwrap();
        let Answer::Keys { keys, .. } = call(Op::ListKeys { cursor: None, limit: 100 }).await else { panic!() };
        let Answer::Values(values) = call(Op::GetMany { keys }).await else { panic!() };
        for (key, value) in values {
            match key.as_str() {
                "counter" => model.counter = String::from_utf8(value.unwrap()).unwrap().parse().unwrap(),
                _ => drop(model.data.insert(key, value.unwrap())),
            }
        }
    }
    Ok((models, listed.revision))
}

#[tokio::test]
async fn no_acknowledged_write_is_lost_by_kill_9() {
    let kills: u64 = std::env::var("SIDEREAL_KILLS").map_or(200, |kills| kills.parse().unwrap());
    let (dir, twin) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut models = vec![Model::default(); WORKERS as usize];
    let mut next = vec![0; WORKERS as usize];
    let (mut revision, mut acknowledged, mut kept_in_flight, mut slowest) = (0, 0u64, 0u64, Duration::ZERO);
    let seed = u64::from(std::process::id());
    for kill in 0..kills {
        let mut child = start(dir.path(), &next);
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let (began, begun) = std::sync::mpsc::channel();
        let reader = std::thread::spawn(move || {
            let seen = lines.map_while(Result::ok).inspect(|line| {
                if line.contains('@') {
                    let _ = began.send(());
                }
            });
            seen.collect::<Vec<_>>()
        });
        // One in four at any time since its start, while it opens its files; the others among its writes, of which there are
        // some by then on any machine.
        let some = if kill % 4 == 3 { 0 } else { 3 };
        for _ in 0..some {
            let _ = begun.recv_timeout(Duration::from_secs(30));
        }
        std::thread::sleep(Duration::from_micros(mix(seed, kill) % 30_000));
        child.kill().unwrap();
        assert!(!child.wait().unwrap().success(), "the child ended by itself at kill {kill}");
        let newest = revision;
        for line in reader.join().unwrap() {
            // The test harness writes before it, on the same line.
            let Some((_, line)) = line.split_once('@') else { continue };
            let mut words = line.split(' ').map(|word| word.parse::<u64>().unwrap());
            let (worker, n, at) = (words.next().unwrap(), words.next().unwrap(), words.next().unwrap());
            let index = worker as usize;
            assert_eq!(n, next[index]);
            models[index] = models[index].after(worker, n);
            next[index] += 1;
            acknowledged += 1;
            if at > 0 && !matches!(act(worker, n).0, Act::Delete) {
                assert!(at > newest, "revision {at} was given again (before: {newest})");
            }
            revision = revision.max(at);
        }
        // Every other time the files stay as the kill left them, for the next child to open.
        let place = if kill % 2 == 0 { dir.path() } else { twin.path() };
        if kill % 2 == 1 {
            copy(dir.path(), twin.path());
        }
        let before = Instant::now();
        let (seen, at) = look(place).await.unwrap_or_else(|error| panic!("after kill {kill}: {error}"));
        slowest = slowest.max(before.elapsed());
        assert!(at >= revision, "kill {kill}: the store is at {at}, {revision} was acknowledged");
        for (index, seen) in seen.into_iter().enumerate() {
            let after = models[index].after(index as u64, next[index]);
            if seen != models[index] {
                assert_eq!(seen, after, "kill {kill}, worker {index}: neither before nor after write {}", next[index]);
                next[index] += 1;
                kept_in_flight += 1;
                models[index] = seen;
            }
        }
        // A revision that was given out but not acknowledged may have been used by the write that was kept.
        revision = revision.max(at.min(revision + 1));
    }
    println!(
        "{kills} kills, {acknowledged} acknowledged writes, 0 lost; {kept_in_flight} in flight were kept; \
         slowest opening of both files {slowest:?}"
    );
    assert!(acknowledged > 2 * kills, "the children were killed too early to prove anything: {acknowledged} writes");
}

#[tokio::test]
async fn a_kill_while_the_files_are_made_leaves_nothing_in_the_way() {
    for kill in 0..30 {
        let dir = tempfile::tempdir().unwrap();
        let mut child = start(dir.path(), &[0; WORKERS as usize]);
        std::thread::sleep(Duration::from_micros(500 * kill));
        child.kill().unwrap();
        child.wait().unwrap();
        look(dir.path()).await.unwrap();
        let left = std::fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name());
        let left: Vec<_> = left.filter(|name| !FILES.iter().any(|file| *file == name)).collect();
        assert_eq!(left, [""; 0], "after {kill}");
    }
}
