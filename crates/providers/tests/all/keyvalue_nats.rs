//! Key-value in NATS against real servers: Debian's, which is old, and where it can be had one with atomic batches.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::{Duration, Instant};

use futures::future::join_all;
use model::SecretRef;
use providers::http_out::{Tls, public_roots};
use providers::keyvalue::conformance::{self, Promises};
use providers::keyvalue::nats::{self, Settings};
use providers::keyvalue::{Backend, BackendError, Nats, PAGE};
use providers::nats::jetstream::JetStream;
use providers::nats::{Credentials, Headers, Login, Outgoing};
use providers::secrets::Credentials as Secrets;
use tokio::io::AsyncWriteExt;

use crate::nats_server::NatsServer;
use crate::support::{Direct, Vault};

const SECOND: Duration = Duration::from_secs(1);

pub(crate) fn settings(url: &str) -> Settings<'_> {
    Settings { url, replicas: None, jetstream_domain: None, login: Login::Nobody }
}

pub(crate) fn made(tenant: &str, app: &str, settings: Settings<'_>, dialer: Arc<Direct>) -> Nats {
    let (tenant, app) = (tenant.parse().unwrap(), app.parse().unwrap());
    let tls = Tls::new(public_roots()).unwrap();
    Nats::new(&tenant, &app, &"store".parse().unwrap(), settings, tls, dialer).unwrap()
}

fn nats_of(server: &NatsServer, tenant: &str, app: &str) -> Nats {
    made(tenant, app, settings(&server.url()), Direct::to(server.address))
}

/// What is asked of JetStream itself.
async fn told(server: &NatsServer, call: &str) -> serde_json::Value {
    JetStream::new(server.client(), None).unwrap().call(call, &()).await.unwrap()
}

#[tokio::test]
async fn nats_conforms() {
    let server = NatsServer::start();
    let dialer = Direct::to(server.address);
    let kv = made("acme", "shop", settings(&server.url()), dialer.clone());
    kv.check().await.unwrap();
    let old = Promises { max_batch: 1, ..Promises::ALL };
    conformance::run_with(&kv, old).await.unwrap();
    assert_eq!(dialer.dials.load(SeqCst), 1, "one connection carries everything");
    // The last one is taken away beside its answer.
    let start = Instant::now();
    while told(&server, "CONSUMER.NAMES.KV_acme_shop_conformance").await["total"] != 0 {
        assert!(start.elapsed() < Duration::from_secs(10), "a listing leaves no reader behind");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let refused = kv.set_many("b", vec![("a".into(), vec![]), ("b".into(), vec![])]).await.unwrap_err();
    assert!(matches!(&refused, BackendError::Unsupported(why) if why.contains("2.12")), "{refused:?}");
}

#[tokio::test]
async fn nats_with_atomic_batches_conforms() {
    let Some(server) = NatsServer::newer("") else { return };
    let kv = nats_of(&server, "acme", "shop");
    let promises = Promises { max_batch: nats::MAX_BATCH, ..Promises::ALL };
    conformance::run_with(&kv, promises).await.unwrap();
    let pairs = (0..=nats::MAX_BATCH).map(|n| (format!("k{n}"), vec![]));
    let refused = kv.set_many("b", pairs.collect()).await;
    assert!(matches!(&refused, Err(BackendError::TooLarge(why)) if why.contains("1000")), "{refused:?}");
    let info = told(&server, "STREAM.INFO.KV_acme_shop_conformance").await;
    assert_eq!(info["config"]["allow_atomic"], true);
}

#[tokio::test]
async fn deleted_keys_leave_markers_that_expire_where_the_server_can() {
    let Some(server) = NatsServer::newer("") else { return };
    let kv = nats_of(&server, "acme", "shop");
    kv.set("b", "k", vec![1]).await.unwrap();
    kv.delete("b", "k").await.unwrap();
    kv.delete("b", "never-was").await.unwrap();
    let read = |key: &str| {
        let client = server.client();
        let ask = Outgoing::new(format!("$JS.API.DIRECT.GET.KV_acme_shop_b.$KV.acme_shop_b.{key}"), "");
        async move { client.request(ask, 60 * SECOND).await.unwrap() }
    };
    assert_eq!(read("k").await.headers.get("Nats-TTL"), Some("3600"));
    assert_eq!(read("never-was").await.status(), Some(404), "no marker for what was never there");
}

#[tokio::test]
async fn a_batch_is_whole_or_not_there_when_the_server_is_killed_in_the_middle() {
    let Some(server) = NatsServer::newer("") else { return };
    let kv = nats_of(&server, "acme", "shop");
    let pairs = |n: u64| (0..200).map(|key| (format!("k{key}"), n.to_string().into_bytes())).collect::<Vec<_>>();
    kv.set_many("b", pairs(0)).await.unwrap();
    let mut server = Some(server);
    let mut n = 0;
    for round in 1..=5 {
        let mut acknowledged = n;
        let begun = AtomicBool::new(false);
        let write = async {
            loop {
                n += 1;
                match kv.set_many("b", pairs(n)).await {
                    Ok(()) => {
                        acknowledged = n;
                        begun.store(true, SeqCst);
                    }
                    Err(_) => break,
                }
            }
        };
        let kill = async {
            // An acknowledged one before it, and then somewhere in the middle of another one.
            while !begun.load(SeqCst) {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            tokio::time::sleep(Duration::from_millis(100 + round * 7)).await;
            server.take().unwrap().kill()
        };
        let ((), restart) = tokio::join!(write, kill);
        let again = restart();
        let fresh = nats_of(&again, "acme", "shop");
        let found = fresh.get_many("b", pairs(0).into_iter().map(|(key, _)| key).collect()).await.unwrap();
        let values: std::collections::BTreeSet<_> = found.into_iter().map(|(_, value)| value.unwrap()).collect();
        assert_eq!(values.len(), 1, "round {round}: half a batch: {values:?}");
        let value: u64 = String::from_utf8(values.into_iter().next().unwrap()).unwrap().parse().unwrap();
        assert!(value == acknowledged || value == n, "{acknowledged} acknowledged, {n} tried, {value} found");
        assert!(acknowledged > 0);
        server = Some(again);
        let start = Instant::now();
        while let Err(cause) = kv.get("b", "k0").await {
            assert!(start.elapsed() < 60 * SECOND, "not found again: {cause}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

#[tokio::test]
async fn the_leader_answers_where_replicas_may_be_behind() {
    // A stream that allows no direct reads is read like one with replicas.
    let server = NatsServer::start();
    let js = JetStream::new(server.client(), None).unwrap();
    for bucket in ["acme_shop_conformance", "acme_shop_other"] {
        let config = serde_json::json!({
            "name": format!("KV_{bucket}"), "subjects": [format!("$KV.{bucket}.>")], "max_msgs_per_subject": 1,
            "retention": "limits", "storage": "memory", "num_replicas": 1, "allow_rollup_hdrs": true,
        });
        js.call::<serde_json::Value>(&format!("STREAM.CREATE.KV_{bucket}"), &config).await.unwrap();
    }
    let kv = nats_of(&server, "acme", "shop");
    conformance::run_with(&kv, Promises { max_batch: 1, ..Promises::ALL }).await.unwrap();
}

#[tokio::test]
async fn a_domain_is_reached_through_its_own_api() {
    let server = NatsServer::with("jetstream { STORE, domain: hub }");
    let hub = Settings { jetstream_domain: Some("hub"), ..settings("nats://x") };
    let kv = made("acme", "shop", hub, Direct::to(server.address));
    kv.check().await.unwrap();
    assert_eq!(kv.increment("b", "n", 2).await.unwrap(), 2);
    assert_eq!(kv.get("b", "n").await.unwrap(), Some(b"2".to_vec()));
    assert_eq!(kv.list_keys("b", None).await.unwrap().keys, ["n"]);
    let other = Settings { jetstream_domain: Some("other"), ..settings("nats://x") };
    let none = made("acme", "shop", other, Direct::to(server.address)).check().await;
    assert!(matches!(none, Err(BackendError::Unavailable(_))), "{none:?}");
}

#[tokio::test]
async fn what_is_written_is_what_other_clients_write_and_read() {
    let server = NatsServer::start();
    let kv = nats_of(&server, "acme", "shop");
    kv.set("cart", "user.1", b"mine".to_vec()).await.unwrap();
    let config = &told(&server, "STREAM.INFO.KV_acme_shop_cart").await["config"];
    assert_eq!(config["subjects"], serde_json::json!(["$KV.acme_shop_cart.>"]));
    assert_eq!((&config["max_msgs_per_subject"], &config["storage"]), (&1.into(), &"file".into()));
    assert_eq!(config["allow_direct"], true);
    // What another client does: a value, a deletion, a purge.
    let js = JetStream::new(server.client(), None).unwrap();
    let put = |key: &str, headers: Headers, value: &'static str| {
        let subject = format!("$KV.acme_shop_cart.{key}");
        let js = js.clone();
        async move { js.publish(&subject, headers, value.into()).await.unwrap() }
    };
    put("theirs", Headers::new(), "1").await;
    assert_eq!(kv.get("cart", "theirs").await.unwrap(), Some(b"1".to_vec()));
    put("user.1", Headers::new().with("KV-Operation", "DEL").unwrap(), "").await;
    put("theirs", Headers::new().with("KV-Operation", "PURGE").unwrap().with("Nats-Rollup", "sub").unwrap(), "").await;
    for key in ["user.1", "theirs"] {
        assert_eq!(kv.get("cart", key).await.unwrap(), None, "{key}");
        assert!(!kv.exists("cart", key).await.unwrap());
    }
    assert!(kv.list_keys("cart", None).await.unwrap().keys.is_empty());
    assert_eq!(kv.increment("cart", "theirs", 1).await.unwrap(), 1, "a deleted key counts from 0");
    kv.delete("cart", "theirs").await.unwrap();
    let last = js
        .client
        .request(Outgoing::new("$JS.API.DIRECT.GET.KV_acme_shop_cart.$KV.acme_shop_cart.theirs", ""), 60 * SECOND);
    assert_eq!(last.await.unwrap().headers.get("KV-Operation"), Some("DEL"), "a deletion that others see");
}

#[tokio::test]
async fn neither_tenants_nor_apps_nor_buckets_meet_in_one_nats() {
    let server = NatsServer::start();
    let one = nats_of(&server, "acme", "shop");
    one.set("b", "k", b"mine".to_vec()).await.unwrap();
    for (tenant, app) in [("acme", "shop-x"), ("acme-shop", "shop"), ("shop", "acme")] {
        let other = nats_of(&server, tenant, app);
        for bucket in ["b", "../shop/b", "acme_shop_b", "shop_b", "*", ">", "_62"] {
            assert_eq!(other.get(bucket, "k").await.unwrap(), None);
            other.delete(bucket, "k").await.unwrap();
            assert!(other.list_keys(bucket, None).await.unwrap().keys.is_empty());
        }
    }
    assert_eq!(one.get("b", "k").await.unwrap(), Some(b"mine".to_vec()));
}

#[tokio::test]
async fn increments_of_many_hosts_all_count() {
    let server = NatsServer::start();
    let hosts: Vec<_> = (0..4).map(|_| nats_of(&server, "acme", "shop")).collect();
    // Each of a host's waits for those before it, and all of them have five seconds.
    let sums = join_all((0..80).map(|n| hosts[n % 4].increment("b", "n", 1))).await;
    let mut sums: Vec<u64> = sums.into_iter().map(Result::unwrap).collect();
    sums.sort_unstable();
    assert!(sums.into_iter().eq(1..=80));
}

#[tokio::test]
async fn a_listing_over_changes_misses_no_key() {
    let server = NatsServer::start();
    let kv = nats_of(&server, "acme", "shop");
    let all = PAGE * 2 + 10;
    for n in 0..all {
        kv.set("b", &format!("k{n}"), vec![]).await.unwrap();
    }
    let mut keys = std::collections::BTreeSet::new();
    let mut cursor: Option<String> = None;
    for turn in 0..50 {
        let page = kv.list_keys("b", cursor.as_deref()).await.unwrap();
        keys.extend(page.keys);
        // One that was listed and one that was not move to the end.
        kv.set("b", &format!("k{turn}"), vec![1]).await.unwrap();
        kv.set("b", &format!("k{}", all - 1 - turn), vec![1]).await.unwrap();
        cursor = page.cursor;
        if cursor.is_none() {
            break;
        }
    }
    assert_eq!((keys.len(), cursor), (all as usize, None));
}

#[tokio::test]
async fn a_killed_server_is_said_at_once_and_found_again_with_everything_acknowledged() {
    let server = NatsServer::start();
    let kv = nats_of(&server, "acme", "shop");
    assert_eq!(kv.increment("b", "n", 1).await.unwrap(), 1);
    let mut acknowledged = 1;
    let restart = server.kill();
    let start = Instant::now();
    for _ in 0..100 {
        let lost = kv.increment("b", "n", 1).await.unwrap_err();
        assert!(matches!(lost, BackendError::Unavailable(_)), "{lost:?}");
    }
    assert!(start.elapsed() < 60 * SECOND, "calls do not wait for a server that is down");
    let server = restart();
    let mut server = Some(server);
    // Killed again under calls.
    for round in 0..3 {
        let start = Instant::now();
        let work = async {
            let mut refused = 0;
            while refused < 5 {
                match kv.increment("b", "n", 1).await {
                    Ok(sum) => acknowledged = sum,
                    Err(_) => {
                        refused += 1;
                        tokio::time::sleep(Duration::from_millis(5)).await;
                    }
                }
                assert!(start.elapsed() < 60 * SECOND, "round {round}");
            }
        };
        let kill = async {
            tokio::time::sleep(Duration::from_millis(300)).await;
            server.take().unwrap().kill()
        };
        let ((), restart) = tokio::join!(work, kill);
        server = Some(restart());
        let start = Instant::now();
        let found = loop {
            match kv.get("b", "n").await {
                Ok(found) => break found.unwrap(),
                Err(cause) => assert!(start.elapsed() < 60 * SECOND, "not found again: {cause}"),
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        };
        let found: u64 = String::from_utf8(found).unwrap().parse().unwrap();
        // What was acknowledged is there; the one under way when the server died may be too.
        assert!((acknowledged..=acknowledged + 5).contains(&found), "{acknowledged} acknowledged, {found} found");
        acknowledged = found;
    }
    assert!(acknowledged > 1);
}

#[tokio::test]
async fn a_bucket_that_was_removed_is_made_again() {
    let server = NatsServer::start();
    let kv = nats_of(&server, "acme", "shop");
    kv.set("b", "k", vec![1]).await.unwrap();
    told(&server, "STREAM.DELETE.KV_acme_shop_b").await;
    // Debian's server says nothing at all to a direct read of a stream that is gone.
    let silent = kv.get("b", "k").await;
    assert!(matches!(silent, Ok(None) | Err(BackendError::TimedOut { .. })), "{silent:?}");
    assert_eq!(kv.get("b", "k").await.unwrap(), None);
    told(&server, "STREAM.DELETE.KV_acme_shop_b").await;
    kv.set("b", "k", vec![2]).await.unwrap();
    assert_eq!(kv.get("b", "k").await.unwrap(), Some(vec![2]));
}

#[tokio::test]
async fn refusals_are_told_apart() {
    let server = NatsServer::with("authorization { user: ann, password: right }");
    let with = |password: Option<&str>| {
        let user = |password: &str| Credentials::User { user: "ann".into(), password: password.to_owned().into() };
        let login = password.map_or(Login::Nobody, |password| Login::Fixed(user(password)));
        made("acme", "shop", Settings { login, ..settings("nats://x") }, Direct::to(server.address))
    };
    with(Some("right")).check().await.unwrap();
    for wrong in [Some("hunter2"), None] {
        let denied = with(wrong).check().await.unwrap_err();
        assert!(matches!(denied, BackendError::Denied(_)), "{denied:?}");
        assert!(!denied.to_string().contains("hunter2"));
    }
    // A server without JetStream.
    let plain = NatsServer::with("# no jetstream here");
    let none = nats_of(&plain, "acme", "shop").check().await.unwrap_err();
    assert!(matches!(&none, BackendError::Unavailable(why) if why.contains("no JetStream")), "{none:?}");
    // A server with its own idea of a large value.
    let small = NatsServer::with("max_payload: 1MB");
    let large = nats_of(&small, "acme", "shop").set("b", "k", vec![0; 2 << 20]).await.unwrap_err();
    assert!(matches!(&large, BackendError::TooLarge(why) if why.contains("max_payload")), "{large:?}");
    // More replicas than there are servers, which an older server does not notice.
    let Some(small) = NatsServer::newer("") else { return };
    let three = Settings { replicas: Some("3"), ..settings("nats://x") };
    let refused = made("acme", "shop", three, Direct::to(small.address)).set("b", "k", vec![]).await.unwrap_err();
    assert!(matches!(&refused, BackendError::Unavailable(why) if why.contains("replicas")), "{refused:?}");
}

#[tokio::test]
async fn a_password_that_was_set_anew_is_used_from_the_next_connection_on() {
    let config = |password: &str| format!("authorization {{ user: ann, password: {password} }}");
    let server = NatsServer::with(&config("first"));
    let vault = Vault::new();
    let secret = |name: &str| SecretRef::new(name.parse().unwrap());
    let secrets = Secrets::new("shop".parse().unwrap(), [("password".into(), secret("pw"))].into(), vault.clone());
    let login = Login::Secrets { username: Some("ann".into()), secrets };
    let kv = made("acme", "shop", Settings { login, ..settings("nats://x") }, Direct::to(server.address));
    let missing = kv.check().await.unwrap_err();
    assert!(matches!(&missing, BackendError::Denied(why) if why.contains("`pw` does not exist")), "{missing:?}");
    vault.set("pw", "first");
    let start = Instant::now();
    while let Err(cause) = kv.set("b", "k", vec![1]).await {
        assert!(start.elapsed() < 60 * SECOND, "not let in: {cause}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    // The server ends the connection of a password it takes no longer.
    vault.set("pw", "second");
    server.reload(&config("second"));
    let start = Instant::now();
    while let Err(cause) = kv.set("b", "k", vec![2]).await {
        assert!(start.elapsed() < 60 * SECOND, "not let in again: {cause}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    // On a machine with much to do one may not come about in time, and another one is made.
    assert!((3..=6).contains(&vault.revealed.load(SeqCst)), "asked once for each connection");
}

#[tokio::test]
async fn settings_that_are_none_are_refused_without_being_shown() {
    let refused = |settings: Settings<'_>| {
        let (tenant, app) = ("acme".parse().unwrap(), "shop".parse().unwrap());
        let tls = Tls::new(public_roots()).unwrap();
        let dialer = Direct::to("127.0.0.1:1".parse().unwrap());
        Nats::new(&tenant, &app, &"store".parse().unwrap(), settings, tls, dialer).err().unwrap().to_string()
    };
    for url in ["", "redis://a", "nats://user:hunter2@a"] {
        assert!(!refused(settings(url)).contains("hunter2"));
    }
    for replicas in ["0", "6", "x", "-1"] {
        assert!(refused(Settings { replicas: Some(replicas), ..settings("nats://a") }).contains("replicas"));
    }
    assert!(refused(Settings { jetstream_domain: Some("a.b"), ..settings("nats://a") }).contains("domain"));
}

#[tokio::test]
async fn a_server_whose_answers_are_garbage_is_said_to_be_away() {
    // Someone who answers every request with the same bytes.
    for answer in ["nonsense", "{}", "{\"error\":{}}", ""] {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            let (stream, _) = listener.accept().await.unwrap();
            let (read, mut write) = stream.into_split();
            write.write_all(b"INFO {\"max_payload\":1000000,\"headers\":true}\r\n").await.unwrap();
            let mut lines = tokio::io::AsyncBufReadExt::lines(tokio::io::BufReader::new(read));
            while let Ok(Some(line)) = lines.next_line().await {
                let words: Vec<&str> = line.split(' ').collect();
                let reply = match words.as_slice() {
                    ["PING"] => "PONG\r\n".to_owned(),
                    ["PUB", _, reply, _] => format!("MSG {reply} 1 {}\r\n{answer}\r\n", answer.len()),
                    _ => continue,
                };
                write.write_all(reply.as_bytes()).await.unwrap();
            }
        });
        let start = Instant::now();
        let said = made("acme", "shop", settings("nats://x"), Direct::to(address)).get("b", "k").await.unwrap_err();
        assert!(matches!(said, BackendError::Unavailable(_)), "{answer}: {said:?}");
        assert!(start.elapsed() < 60 * SECOND);
    }
}
