//! The follower over a server in memory, with time that stands still: what a connection that broke, a notification that was
//! lost, a host that died and a host that was overtaken do to what is told.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

use model::messaging::Group;
use tokio::sync::watch;

use super::*;
use crate::messaging::Backend as _;

const SOON: Duration = Duration::from_millis(500);

/// Keys and records, and faults of every kind.
struct Server {
    keys: Mutex<State>,
    records: Mutex<BTreeMap<String, (String, u64)>>,
    changed: watch::Sender<u64>,
    /// Whoever asks is told that it is away.
    away: AtomicBool,
    /// Changes are made without a word.
    silent: AtomicBool,
}

impl Server {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            keys: Mutex::default(),
            records: Mutex::default(),
            changed: watch::Sender::new(0),
            away: AtomicBool::new(false),
            silent: AtomicBool::new(false),
        })
    }

    fn set(&self, key: &str, version: u64) {
        self.keys.lock().unwrap().insert(key.to_owned(), version);
        if !self.silent.load(SeqCst) {
            self.changed.send_modify(|n| *n += 1);
        }
    }

    fn remove(&self, key: &str) {
        self.keys.lock().unwrap().remove(key);
        self.changed.send_modify(|n| *n += 1);
    }

    fn go(&self, away: bool) {
        self.away.store(away, SeqCst);
        // Whoever waits notices.
        self.changed.send_modify(|n| *n += 1);
    }

    fn there(&self) -> Result<(), BackendError> {
        match self.away.load(SeqCst) {
            true => Err(BackendError::Unavailable("the connection broke".to_owned())),
            false => Ok(()),
        }
    }

    fn record(&self, name: &str) -> String {
        self.records.lock().unwrap().get(name).map(|(text, _)| text.clone()).unwrap_or_default()
    }
}

impl Followed for Server {
    fn eye(self: Arc<Self>, _: &str, keys: &Keys) -> Box<dyn Eye> {
        let seen = self.changed.subscribe();
        Box::new(Looks { server: self, keys: keys.clone(), seen })
    }

    fn load<'a>(&'a self, name: &'a str) -> Answer<'a, Found> {
        let found = self.records.lock().unwrap().get(name).cloned();
        let (value, version) = found.map_or((None, 0), |(text, version)| (Some(text.into_bytes()), version));
        let answer = self.there().map(|()| Found { value, version });
        std::future::ready(answer).boxed()
    }

    fn swap<'a>(&'a self, name: &'a str, text: String, version: u64) -> Answer<'a, Option<u64>> {
        let answer = self.there().map(|()| {
            let mut records = self.records.lock().unwrap();
            let record = records.entry(name.to_owned()).or_default();
            (record.1 == version).then(|| {
                *record = (text, version + 1);
                version + 1
            })
        });
        std::future::ready(answer).boxed()
    }
}

struct Looks {
    server: Arc<Server>,
    keys: Keys,
    seen: watch::Receiver<u64>,
}

impl Eye for Looks {
    fn state(&mut self) -> Answer<'_, State> {
        self.seen.mark_unchanged();
        let keys = self.server.keys.lock().unwrap();
        let ours = keys.iter().filter(|(key, _)| self.keys.has(key)).map(|(key, version)| (key.clone(), *version));
        let answer = self.server.there().map(|()| ours.collect());
        std::future::ready(answer).boxed()
    }

    fn moved(&mut self) -> Answer<'_, ()> {
        async move {
            self.seen.changed().await.ok();
            self.server.there()
        }
        .boxed()
    }
}

async fn follow(server: &Arc<Server>) -> Box<dyn Deliveries> {
    follow_keys(server, "*").await
}

async fn follow_keys(server: &Arc<Server>, keys: &str) -> Box<dyn Deliveries> {
    let subscription = Subscription {
        component: "index".parse().unwrap(),
        label: "default".parse().unwrap(),
        group: Group { app: "shop".parse().unwrap(), name: "watch.index.default".to_owned() },
        patterns: Vec::new(),
        tries: 5,
        in_flight: 1,
    };
    let follower = Follower::new(server.clone(), "b", Keys::of(keys));
    let deliveries = follower.subscribe(Arc::new(subscription)).await.unwrap();
    // What is there before it leads is what was there before the watch.
    tokio::time::sleep(SOON).await;
    deliveries
}

async fn next(deliveries: &mut Box<dyn Deliveries>) -> Delivery {
    let next = tokio::time::timeout(Duration::from_secs(300), deliveries.next()).await.expect("a change is told");
    next.unwrap().unwrap()
}

fn key(delivery: &Delivery) -> String {
    String::from_utf8(delivery.message.body.clone()).unwrap()
}

async fn done(deliveries: &mut Box<dyn Deliveries>) -> String {
    let delivery = next(deliveries).await;
    let key = key(&delivery);
    delivery.settle.settle(Outcome::Done).await.unwrap();
    key
}

async fn nothing(deliveries: &mut Box<dyn Deliveries>, within: Duration) {
    let told = tokio::time::timeout(within, deliveries.next()).await;
    assert!(told.is_err(), "{:?}", told.unwrap().unwrap().map(|delivery| key(&delivery)));
}

#[tokio::test(start_paused = true)]
async fn a_follower_that_stopped_is_resumed_where_it_was() {
    let server = Server::new();
    server.set("before", 1);
    let mut told = follow(&server).await;
    nothing(&mut told, SOON).await;
    server.set("one", 2);
    assert_eq!(done(&mut told).await, "one");
    told.stop();
    assert!(tokio::time::timeout(SOON, told.next()).await.unwrap().is_none());
    assert!(server.record("watch.index.default.leader").contains("\"holder\":\"\""), "it says that it leads no more");
    // While nobody follows: written, written again, removed, made and removed.
    server.set("two", 3);
    server.set("two", 4);
    server.remove("before");
    server.set("gone", 5);
    server.remove("gone");
    let mut told = follow(&server).await;
    let (first, second) = (done(&mut told).await, done(&mut told).await);
    assert_eq!((first.as_str(), second.as_str()), ("before", "two"), "each once, and not what came and went");
    nothing(&mut told, SOON).await;
}

#[tokio::test(start_paused = true)]
async fn a_watch_of_other_keys_loses_no_change_of_those_that_both_watch() {
    let server = Server::new();
    server.set("elsewhere", 1);
    let mut told = follow_keys(&server, "orders/*").await;
    server.set("orders/1", 1);
    assert_eq!(done(&mut told).await, "orders/1");
    told.stop();
    assert!(tokio::time::timeout(SOON, told.next()).await.unwrap().is_none());
    // Between the two: a key that both watch, and one that only the next does.
    server.set("orders/2", 2);
    server.set("before", 1);
    let mut told = follow_keys(&server, "*").await;
    assert_eq!(done(&mut told).await, "orders/2");
    nothing(&mut told, SOON).await;
    server.set("elsewhere", 2);
    assert_eq!(done(&mut told).await, "elsewhere");
    told.stop();
    assert!(tokio::time::timeout(SOON, told.next()).await.unwrap().is_none());
    server.set("before", 2);
    server.set("orders/1", 3);
    let mut told = follow_keys(&server, "orders/*").await;
    assert_eq!(done(&mut told).await, "orders/1");
    nothing(&mut told, SOON).await;
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_broke_is_told_and_what_changed_meanwhile_comes_after_it() {
    let server = Server::new();
    let mut told = follow(&server).await;
    server.set("one", 1);
    assert_eq!(done(&mut told).await, "one");
    // Recorded before anything breaks.
    tokio::time::sleep(SOON).await;
    server.go(true);
    let lost = tokio::time::timeout(SOON, told.next()).await.unwrap().unwrap().err().unwrap();
    assert!(
        matches!(&lost, messaging::BackendError::Unavailable(why) if why.contains("the connection broke")),
        "{lost}"
    );
    assert!(told.next().await.is_none());
    server.set("two", 2);
    server.go(false);
    // Its farewell did not arrive: the record still has its name, and the next one waits as for a host that died.
    let began = Instant::now();
    let mut told = follow(&server).await;
    assert_eq!(done(&mut told).await, "two");
    assert!(began.elapsed() >= TAKEOVER && began.elapsed() < TAKEOVER * 2, "{:?}", began.elapsed());
    nothing(&mut told, SOON).await;
}

#[tokio::test(start_paused = true)]
async fn a_gap_in_the_notifications_is_found_by_looking_again() {
    let server = Server::new();
    let mut told = follow(&server).await;
    server.silent.store(true, SeqCst);
    server.set("unsaid", 1);
    nothing(&mut told, RESCAN / 2).await;
    let began = Instant::now();
    assert_eq!(done(&mut told).await, "unsaid");
    assert!(began.elapsed() <= RESCAN, "{:?}", began.elapsed());
    // One notification for many: all of them are found.
    for n in 0..50 {
        server.set(&format!("k{n:02}"), n);
    }
    server.silent.store(false, SeqCst);
    server.set("k50", 50);
    let mut keys = Vec::new();
    for _ in 0..=50 {
        keys.push(done(&mut told).await);
    }
    keys.sort_unstable();
    assert!(keys.iter().enumerate().all(|(n, key)| *key == format!("k{n:02}")), "{keys:?}");
    nothing(&mut told, RESCAN * 2).await;
}

#[tokio::test(start_paused = true)]
async fn what_a_host_had_in_its_hands_when_it_died_is_told_by_the_next() {
    let server = Server::new();
    let mut dying = follow(&server).await;
    server.set("one", 1);
    let held = next(&mut dying).await;
    assert_eq!(key(&held), "one");
    // It shows signs of life for as long as it lives, so nobody takes over.
    let mut standby = follow(&server).await;
    nothing(&mut standby, TAKEOVER * 3).await;
    // Dead: no farewell, no signs. The record is all that is left of it.
    let leader = server.record("watch.index.default.leader");
    server.go(true);
    drop(held);
    drop(dying);
    tokio::time::sleep(SOON).await;
    drop(standby);
    server.go(false);
    assert_eq!(server.record("watch.index.default.leader"), leader);
    let mut told = follow(&server).await;
    let began = Instant::now();
    let again = next(&mut told).await;
    assert_eq!((key(&again).as_str(), again.tries), ("one", 1));
    assert!(began.elapsed() >= TAKEOVER - SOON, "{:?}", began.elapsed());
    again.settle.settle(Outcome::Done).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn who_was_overtaken_records_nothing_and_stands_by() {
    let server = Server::new();
    let mut one = follow(&server).await;
    server.set("one", 1);
    let held = next(&mut one).await;
    // Another host leads, by the record; what this one does from now on counts for nothing.
    let theirs = r#"{"holder":"another","beat":9}"#.to_owned();
    let version = server.load("watch.index.default.leader").await.unwrap().version;
    assert!(server.swap("watch.index.default.leader", theirs.clone(), version).await.unwrap().is_some());
    let recorded = server.record("watch.index.default.told");
    tokio::time::sleep(BEAT * 2).await;
    assert!(held.settle.settle(Outcome::Done).await.is_err(), "nobody waits for it any more");
    assert_eq!(server.record("watch.index.default.told"), recorded);
    assert_eq!(server.record("watch.index.default.leader"), theirs);
    // The other one never shows a sign of life: after a while this one leads again, and tells again.
    assert_eq!(done(&mut one).await, "one");
}

#[tokio::test(start_paused = true)]
async fn what_failed_and_what_nobody_had_room_for_comes_again_and_others_need_not_wait() {
    let server = Server::new();
    let mut told = follow(&server).await;
    server.set("a", 1);
    let failed = next(&mut told).await;
    let id = failed.id.clone();
    failed.settle.settle(Outcome::Again(Duration::from_secs(5))).await.unwrap();
    server.set("b", 2);
    let busy = next(&mut told).await;
    assert_eq!(key(&busy), "b", "what failed holds up no other");
    busy.settle.settle(Outcome::GivenBack).await.unwrap();
    let busy = next(&mut told).await;
    assert_eq!((key(&busy).as_str(), busy.tries), ("b", 1), "not a try");
    busy.settle.settle(Outcome::Done).await.unwrap();
    let again = next(&mut told).await;
    assert_eq!((key(&again).as_str(), again.tries, again.id), ("a", 2, id));
    again.settle.settle(Outcome::Again(Duration::from_secs(5))).await.unwrap();
    // Another value is another change.
    server.set("a", 3);
    tokio::time::sleep(SOON).await;
    let other = next(&mut told).await;
    assert_eq!(key(&other), "a");
    other.settle.settle(Outcome::Done).await.unwrap();
    nothing(&mut told, SOON).await;
}

#[tokio::test(start_paused = true)]
async fn more_keys_than_a_record_holds_are_refused_with_what_to_do() {
    let server = Server::new();
    for n in 0..MAX_RECORD / 64 {
        server.set(&format!("{n:064}"), 1);
    }
    let mut told = follow(&server).await;
    let said = tokio::time::timeout(SOON, told.next()).await.unwrap().unwrap().err().unwrap().to_string();
    assert!(said.contains("watch fewer keys"), "{said}");
}
