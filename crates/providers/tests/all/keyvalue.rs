//! Every backend does what the contract says; what Redis adds of its own: names, losses, refusals.

use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::time::{Duration, Instant};

use providers::dial::{Caller, DialError};
use providers::keyvalue::{Backend, BackendError, Memory, Redis, conformance};

use crate::support::{Direct, RedisServer};

fn redis_of(tenant: &str, app: &str, url: &str, dialer: Arc<Direct>) -> Redis {
    Redis::new(&tenant.parse().unwrap(), &app.parse().unwrap(), &"store".parse().unwrap(), url, dialer).unwrap()
}

#[tokio::test]
async fn memory_conforms() {
    conformance::run(&Memory::new(64 << 20)).await.unwrap();
}

#[tokio::test]
async fn redis_conforms() {
    let server = RedisServer::start();
    let dialer = Direct::to(server.address);
    let redis = redis_of("acme", "shop", &server.url(), dialer.clone());
    redis.check().await.unwrap();
    conformance::run(&redis).await.unwrap();
    assert_eq!(dialer.dials.load(SeqCst), 1, "one connection carries everything");
    let asked = dialer.asked.lock().unwrap()[0].clone();
    assert_eq!((asked.host.as_str(), asked.port), ("127.0.0.1", server.address.port()));
    assert_eq!(asked.caller, Caller::Provider("store".parse().unwrap()));
}

#[tokio::test]
async fn the_suite_sees_a_backend_that_lies() {
    struct Liar(Memory);
    use providers::keyvalue::{Answer, Page};
    impl Backend for Liar {
        fn get<'a>(&'a self, bucket: &'a str, key: &'a str) -> Answer<'a, Option<Vec<u8>>> {
            self.0.get(bucket, key)
        }
        fn set<'a>(&'a self, bucket: &'a str, key: &'a str, value: Vec<u8>) -> Answer<'a, ()> {
            self.0.set(bucket, key, value)
        }
        fn delete<'a>(&'a self, bucket: &'a str, key: &'a str) -> Answer<'a, ()> {
            self.0.delete(bucket, key)
        }
        fn exists<'a>(&'a self, bucket: &'a str, key: &'a str) -> Answer<'a, bool> {
            self.0.exists(bucket, key)
        }
        fn list_keys<'a>(&'a self, bucket: &'a str, _: Option<&'a str>) -> Answer<'a, Page> {
            self.0.list_keys(bucket, None)
        }
        fn increment<'a>(&'a self, bucket: &'a str, key: &'a str, delta: i64) -> Answer<'a, i64> {
            self.0.increment(bucket, key, delta)
        }
        fn get_many<'a>(&'a self, bucket: &'a str, keys: Vec<String>) -> Answer<'a, Vec<(String, Option<Vec<u8>>)>> {
            self.0.get_many(bucket, keys)
        }
        fn set_many<'a>(&'a self, bucket: &'a str, pairs: Vec<(String, Vec<u8>)>) -> Answer<'a, ()> {
            self.0.set_many(bucket, pairs)
        }
        fn delete_many<'a>(&'a self, bucket: &'a str, keys: Vec<String>) -> Answer<'a, ()> {
            self.0.delete_many(bucket, keys)
        }
    }
    let found = conformance::run(&Liar(Memory::new(64 << 20))).await.unwrap_err();
    assert!(found.to_string().contains("a listing ends"), "{found}");
}

#[tokio::test]
async fn neither_tenants_nor_apps_nor_buckets_meet_in_one_redis() {
    let server = RedisServer::start();
    let dialer = Direct::to(server.address);
    let one = redis_of("acme", "shop", &server.url(), dialer.clone());
    let others = [
        redis_of("acme", "shop-x", &server.url(), dialer.clone()),
        redis_of("acme-shop", "shop", &server.url(), dialer.clone()),
        redis_of("shop", "acme", &server.url(), dialer.clone()),
    ];
    one.set("b", "k", b"mine".to_vec()).await.unwrap();
    for other in &others {
        for bucket in ["b", "../shop/b", "acme/shop/b", "x/b", "*"] {
            assert_eq!(other.get(bucket, "k").await.unwrap(), None);
            other.delete(bucket, "k").await.unwrap();
            assert!(other.list_keys(bucket, None).await.unwrap().keys.is_empty());
        }
    }
    assert_eq!(one.get("b", "k").await.unwrap(), Some(b"mine".to_vec()));
}

#[tokio::test]
async fn a_restarted_redis_is_found_again() {
    let server = RedisServer::start();
    let (address, url) = (server.address, server.url());
    let dialer = Direct::to(address);
    let redis = redis_of("acme", "shop", &url, dialer);
    redis.set("b", "k", b"1".to_vec()).await.unwrap();
    drop(server);
    let start = Instant::now();
    let lost = redis.increment("b", "n", 1).await.unwrap_err();
    assert!(matches!(lost, BackendError::Unavailable(_)), "{lost:?}");
    assert!(start.elapsed() < Duration::from_secs(5), "a dead server is said at once");
    // While it is down no call waits, and not every call connects.
    for _ in 0..100 {
        assert!(redis.get("b", "k").await.is_err());
    }
    assert!(start.elapsed() < Duration::from_secs(5));

    let _server = RedisServer::start_at(address, &[]);
    let start = Instant::now();
    while let Err(cause) = redis.set("b", "k", b"2".to_vec()).await {
        assert!(start.elapsed() < Duration::from_secs(10), "not found again: {cause}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(redis.get("b", "k").await.unwrap(), Some(b"2".to_vec()));
}

#[tokio::test]
async fn many_callers_share_one_attempt_to_connect() {
    let dialer = Direct::to("127.0.0.1:1".parse().unwrap());
    let redis = redis_of("acme", "shop", "redis://nowhere.example", dialer.clone());
    let calls = futures::future::join_all((0..50).map(|_| redis.get("b", "k"))).await;
    assert!(calls.iter().all(|call| matches!(call, Err(BackendError::Unavailable(_)))));
    assert_eq!(dialer.dials.load(SeqCst), 1);
}

#[tokio::test]
async fn refusals_are_told_apart() {
    let address = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let _server = RedisServer::start_at(address, &["--requirepass", "right"]);
    let dialer = Direct::to(address);
    for url in [format!("redis://{address}"), format!("redis://:wrong@{address}")] {
        let denied = redis_of("acme", "shop", &url, dialer.clone()).check().await.unwrap_err();
        assert!(matches!(denied, BackendError::Denied(_)), "{url}: {denied:?}");
        assert!(!denied.to_string().contains("wrong@"), "{denied}");
    }
    redis_of("acme", "shop", &format!("redis://:right@{address}"), dialer.clone()).check().await.unwrap();

    *dialer.refuse.lock().unwrap() = Some(DialError::Denied("10.0.0.1 (private) is not granted".into()));
    let denied = redis_of("acme", "shop", "redis://10.0.0.1", dialer).check().await.unwrap_err();
    assert!(matches!(denied, BackendError::Denied(_)), "{denied:?}");
}

#[tokio::test]
async fn a_url_that_is_none_is_refused_without_being_shown() {
    for url in ["", "redis:", "http://a", "unix:///run/redis.sock", "redis://user:hunter2@", "hunter2"] {
        let dialer = Direct::to("127.0.0.1:1".parse().unwrap());
        let names = ("acme".parse().unwrap(), "shop".parse().unwrap(), "store".parse().unwrap());
        let refused = match Redis::new(&names.0, &names.1, &names.2, url, dialer) {
            Err(refused) => refused.to_string(),
            Ok(_) => panic!("{url} was accepted"),
        };
        assert!(!refused.contains("hunter2"), "{refused}");
    }
}
