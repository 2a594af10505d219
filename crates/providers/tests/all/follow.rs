//! Changes of keys as real servers tell of them: to one of two hosts, whoever made them, over failed handlers, lost
//! connections, hosts that are killed and servers that are started again.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use model::messaging::{Group, Subscription};
use model::watch::Keys;
use providers::keyvalue::redis::Login;
use providers::keyvalue::{Backend, Redis};
use providers::messaging::{self, BackendError, Deliveries, Delivery, Outcome};
use providers::secrets::Credentials;
use tokio::sync::mpsc;

use crate::keyvalue_nats;
use crate::nats_server::NatsServer;
use crate::support::{Direct, RedisServer, Vault};

const SECOND: Duration = Duration::from_secs(1);
/// The longest until another host takes over from one that was killed, on a slow machine: NATS gives a change out again after 30 s.
const TAKEN_OVER: Duration = Duration::from_secs(90);

fn subscription() -> Arc<Subscription> {
    Arc::new(Subscription {
        component: "index".parse().unwrap(),
        label: "default".parse().unwrap(),
        group: Group { app: "shop".parse().unwrap(), name: "watch.index.default".to_owned() },
        patterns: Vec::new(),
        tries: 5,
        in_flight: 1,
    })
}

/// One host: what it writes by and what it is told by.
struct Host {
    kv: Arc<dyn Backend>,
    changes: Arc<dyn messaging::Backend>,
}

impl Host {
    async fn subscribe(&self) -> Box<dyn Deliveries> {
        let start = Instant::now();
        loop {
            match self.changes.subscribe(subscription()).await {
                Ok(deliveries) => return deliveries,
                Err(cause) => assert!(start.elapsed() < 60 * SECOND, "{cause}"),
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// As the host's follower does it: again whenever it is lost; every change is handled.
    fn handles(
        &self,
        name: &'static str,
        told: mpsc::UnboundedSender<(&'static str, String)>,
    ) -> tokio::task::JoinHandle<()> {
        let host = Self { kv: self.kv.clone(), changes: self.changes.clone() };
        tokio::spawn(async move {
            loop {
                let mut deliveries = host.subscribe().await;
                while let Some(Ok(delivery)) = deliveries.next().await {
                    let key = key(&delivery);
                    if delivery.settle.settle(Outcome::Done).await.is_ok() {
                        told.send((name, key)).ok();
                    }
                }
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        })
    }
}

fn key(delivery: &Delivery) -> String {
    String::from_utf8(delivery.message.body.clone()).unwrap()
}

async fn next(deliveries: &mut Box<dyn Deliveries>) -> Delivery {
    let next = tokio::time::timeout(TAKEN_OVER, deliveries.next()).await.expect("a change is told");
    next.unwrap().unwrap()
}

/// What shows that a watch has begun: it is told of no change that was before.
const BEGINS: &str = "a-begins";

/// The next change but for those of [`BEGINS`].
async fn next_other(deliveries: &mut Box<dyn Deliveries>) -> Delivery {
    loop {
        let next = next(deliveries).await;
        if key(&next) != BEGINS {
            return next;
        }
        next.settle.settle(Outcome::Done).await.unwrap();
    }
}

/// What every server does. `host` opens one more host with the watch `keys`.
async fn conforms(host: impl Fn(&str) -> Host) {
    let (one, two) = (host("a*"), host("a*"));
    one.kv.set("b", "a-before", vec![1]).await.unwrap();
    let mut told = one.subscribe().await;
    // The first look is what was there before the watch.
    assert!(tokio::time::timeout(2 * SECOND, told.next()).await.is_err(), "what was there before is not told");
    // Whether that was so, on a machine that is slow, shows once it tells of something.
    let writes = async {
        // Another value each time: the same one is no change.
        for n in 0.. {
            two.kv.set("b", BEGINS, vec![n]).await.unwrap();
            tokio::time::sleep(SECOND).await;
        }
    };
    let begun = tokio::select! {
        () = writes => unreachable!(),
        begun = next(&mut told) => begun,
    };
    assert_eq!(key(&begun), BEGINS, "what was there before is not told");
    begun.settle.settle(Outcome::Done).await.unwrap();
    two.kv.set("b", "x", vec![1]).await.unwrap();
    two.kv.set("other", "a0", vec![1]).await.unwrap();
    two.kv.set("b", "a1", vec![1]).await.unwrap();
    let first = next_other(&mut told).await;
    assert_eq!((key(&first).as_str(), first.tries), ("a1", 1));
    // One at a time, and again when it failed, with the same id.
    let id = first.id.clone();
    first.settle.settle(Outcome::Again(Duration::from_millis(50))).await.unwrap();
    let again = next_other(&mut told).await;
    assert_eq!((key(&again).as_str(), again.tries, &again.id), ("a1", 2, &id));
    again.settle.settle(Outcome::Done).await.unwrap();
    two.kv.delete("b", "a1").await.unwrap();
    let gone = next_other(&mut told).await;
    assert_eq!(key(&gone), "a1");
    assert_ne!(gone.id, id);
    assert_eq!(one.kv.get("b", "a1").await.unwrap(), None);
    gone.settle.settle(Outcome::Done).await.unwrap();
    // Put away: not told again.
    two.kv.set("b", "a2", vec![1]).await.unwrap();
    let away = next_other(&mut told).await;
    away.settle.settle(Outcome::PutAway { to: None, why: "no".to_owned() }).await.unwrap();
    two.kv.set("b", "a3", vec![1]).await.unwrap();
    let after = next_other(&mut told).await;
    assert_eq!(key(&after), "a3");
    after.settle.settle(Outcome::Done).await.unwrap();
    // It stops in an orderly way: what happens meanwhile is told to whoever comes next, and nothing twice.
    told.stop();
    assert!(tokio::time::timeout(60 * SECOND, told.next()).await.unwrap().is_none());
    two.kv.set("b", "a4", vec![1]).await.unwrap();
    let (sender, mut heard) = mpsc::unbounded_channel();
    let tasks = [one.handles("one", sender.clone()), two.handles("two", sender)];
    let writes: Vec<String> = (10..60).map(|n| format!("a{n}")).collect();
    for key in &writes {
        two.kv.set("b", key, vec![2]).await.unwrap();
    }
    let mut counts: BTreeMap<String, u32> = BTreeMap::new();
    while counts.len() < writes.len() + 1 {
        let (_, key) = tokio::time::timeout(TAKEN_OVER, heard.recv()).await.unwrap().unwrap();
        *counts.entry(key).or_default() += 1;
    }
    assert!(tokio::time::timeout(SECOND, heard.recv()).await.is_err(), "nothing comes after the last");
    assert!(counts.values().all(|n| *n == 1) && counts.contains_key("a4"), "{counts:?}");
    // A host dies with a change in its hands: the other one is told of it.
    tasks.iter().for_each(tokio::task::JoinHandle::abort);
    let (three, four) = (host("a*"), host("a*"));
    let (began, begun) = tokio::sync::oneshot::channel();
    // A runtime of its own, which ends with everything that runs on it, as a process does.
    let dying = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let held = runtime.block_on(async {
            let mut told = three.subscribe().await;
            began.send(()).unwrap();
            let last = next(&mut told).await;
            (told, last)
        });
        let key = key(&held.1);
        // Dropped they would say farewell.
        std::mem::forget(held);
        key
    });
    begun.await.unwrap();
    four.kv.set("b", "a-last", vec![1]).await.unwrap();
    let dying = tokio::task::spawn_blocking(move || dying.join().unwrap()).await.unwrap();
    assert_eq!(dying, "a-last");
    let mut told = four.subscribe().await;
    let last = next(&mut told).await;
    assert_eq!(key(&last), "a-last");
    last.settle.settle(Outcome::Done).await.unwrap();
}

#[tokio::test]
async fn nats_tells_of_changes() {
    let server = NatsServer::start();
    conforms(|keys| {
        let url = server.url();
        let nats = keyvalue_nats::made("acme", "shop", keyvalue_nats::settings(&url), Direct::to(server.address));
        let nats = Arc::new(nats);
        Host { changes: Arc::new(nats.follow("b", Keys::of(keys))), kv: nats }
    })
    .await;
}

#[tokio::test]
async fn consul_tells_of_changes() {
    let Some(server) = crate::consul::Server::start() else { return };
    let token = server.token_with(r#"key_prefix "sidereal/acme/shop/" { policy = "write" }"#);
    conforms(|keys| {
        let url = format!("http://{}", server.address);
        let consul = crate::consul::consul_of("acme", "shop", &url, &token, &Direct::to(server.address));
        let consul = Arc::new(consul);
        Host { changes: Arc::new(consul.follow("b", Keys::of(keys))), kv: consul }
    })
    .await;
}

fn redis(server: &RedisServer) -> Arc<Redis> {
    let login =
        Login { username: None, secrets: Credentials::new("shop".parse().unwrap(), BTreeMap::new(), Vault::new()) };
    let (tenant, app, name) = ("acme".parse().unwrap(), "shop".parse().unwrap(), "store".parse().unwrap());
    Arc::new(Redis::new(&tenant, &app, &name, &server.url(), None, login, Direct::to(server.address)).unwrap())
}

fn free() -> std::net::SocketAddr {
    crate::ports::free()
}

#[tokio::test]
async fn redis_tells_of_changes() {
    let server = RedisServer::start_at(free(), &["--notify-keyspace-events", "Khg"]);
    conforms(|keys| {
        let redis = redis(&server);
        Host { changes: Arc::new(redis.follow("b", Keys::of(keys))), kv: redis }
    })
    .await;
}

#[tokio::test]
async fn a_redis_that_tells_nobody_is_not_watched_and_says_what_to_switch_on() {
    let server = RedisServer::start_at(free(), &[]);
    let quiet = redis(&server);
    let said = quiet.check_notifications().await.unwrap_err().to_string();
    assert!(said.contains("notify-keyspace-events") && said.contains("Khg"), "{said}");
    let refused = messaging::Backend::subscribe(&quiet.follow("b", Keys::of("*")), subscription()).await;
    assert!(matches!(refused, Err(BackendError::Unavailable(why)) if why.contains("notify-keyspace-events")));
}

/// Everything that is lost while nobody listens is told afterwards, also where the server forgot who listened.
#[tokio::test]
async fn what_changed_while_the_connection_was_away_is_told() {
    let address = free();
    let server = RedisServer::start_at(address, &["--notify-keyspace-events", "Khg"]);
    let (one, writer) = (redis(&server), redis(&server));
    let host = Host { changes: Arc::new(one.follow("b", Keys::of("*"))), kv: one.clone() };
    let (sender, mut heard) = mpsc::unbounded_channel();
    let task = host.handles("one", sender);
    let mut told = async |wanted: &str| {
        let start = Instant::now();
        while start.elapsed() < 90 * SECOND {
            let next = tokio::time::timeout(60 * SECOND, heard.recv()).await;
            if next.unwrap_or_else(|_| panic!("{wanted} is not told")).unwrap().1 == wanted {
                return;
            }
        }
        panic!("{wanted} is not told");
    };
    // Until the watch has begun it is not told of what is written.
    let writes = async {
        // Another value each time: the same one is no change.
        for n in 0.. {
            writer.set("b", "first", vec![n]).await.unwrap();
            tokio::time::sleep(SECOND).await;
        }
    };
    tokio::select! {
        () = writes => {}
        () = told("first") => {}
    }
    // Redis closes every connection that listens, and the write comes before it is made anew.
    let mut cli = std::process::Command::new("redis-cli");
    let closed = cli.args(["-p", &address.port().to_string(), "CLIENT", "KILL", "TYPE", "pubsub"]).output().unwrap();
    assert!(closed.status.success());
    writer.set("b", "second", vec![1]).await.unwrap();
    told("second").await;
    task.abort();
}
