//! Two components of an app that share a provider: what one of them waits for, its neighbour does not.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::future::join_all;
use providers::keyvalue::Backend;
use providers::keyvalue::vault::Version;
use providers::meter::{ErrorKind, Kind as _, LinkMeter};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use crate::support::{Direct, RedisServer, Vault as Keeper};
use crate::{keyvalue, vault};

/// Longer than a call that waits for nobody takes, and shorter than one that waits for a key that never comes.
const FAST: Duration = Duration::from_secs(3);

/// Before a server: on a connection that asks for a key with `slow` in it, nothing passes from then on.
async fn tar_pit(server: SocketAddr) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (client, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                let (mut from_client, mut to_client) = client.into_split();
                let (mut from_server, mut to_server) = TcpStream::connect(server).await.unwrap().into_split();
                let answers = tokio::spawn(async move { tokio::io::copy(&mut from_server, &mut to_client).await });
                let mut piece = vec![0; 64 << 10];
                while let Ok(count @ 1..) = from_client.read(&mut piece).await {
                    if piece[..count].windows(4).any(|part| part == b"slow") {
                        std::future::pending::<()>().await;
                    }
                    to_server.write_all(&piece[..count]).await.unwrap();
                }
                answers.abort();
            });
        }
    });
    address
}

/// A store of its own for each try: one that is held back is so every time, and one that is not may be late on a machine that
/// stands still for a while.
async fn does_not_wait(store: impl Fn() -> Arc<dyn Backend>, at_once: usize) {
    let mut tries = Vec::new();
    while !tries.iter().any(|waited: &Duration| *waited < FAST) {
        assert!(tries.len() < 4, "it waited {tries:?}");
        tries.push(waited(store(), at_once).await);
    }
}

/// One component asks for keys that never come, `at_once` of them, until it is held back; the other one asks all the time. How long
/// a call of the second waited, or the next one of the first, whichever was longest.
async fn waited(store: Arc<dyn Backend>, at_once: usize) -> Duration {
    let (slow, neighbour) = (Arc::new(LinkMeter::default()), LinkMeter::default());
    neighbour.observe(store.set("b", "k", b"v".to_vec())).await.unwrap();
    let (asks, meter) = (store.clone(), slow.clone());
    let asked = tokio::spawn(async move {
        let mut calls = join_all((0..at_once).map(|_| meter.observe(asks.get("b", "slow")))).await;
        let start = Instant::now();
        calls.push(meter.observe(asks.get("b", "k")).await);
        let held = start.elapsed();
        assert!(calls.into_iter().all(|call| call.is_err_and(|cause| cause.kind() == ErrorKind::TimedOut)));
        held
    });
    let (mut last, mut longest) = (false, Duration::ZERO);
    loop {
        let start = Instant::now();
        let found = neighbour.observe(store.get("b", "k")).await;
        longest = longest.max(start.elapsed());
        assert_eq!(found, Ok(Some(b"v".to_vec())));
        if last {
            break;
        }
        last = asked.is_finished();
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    asked.await.expect("what never comes is late").max(longest)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_key_in_redis_is_its_own_components_only() {
    let server = RedisServer::start();
    let pit = tar_pit(server.address).await;
    let redis = || -> Arc<dyn Backend> {
        let login = keyvalue::login(None, &[], &Keeper::new());
        Arc::new(keyvalue::redis_as("acme", "shop", &format!("redis://{pit}"), login, Direct::to(pit)))
    };
    does_not_wait(redis, 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slow_keys_over_http_are_their_own_components_only() {
    let rig = vault::rigs().await.remove(0);
    let pit = tar_pit(rig.address).await;
    let (mount, dialer) = (rig.mount("2"), Direct::to(pit));
    let kv = || -> Arc<dyn Backend> {
        let url = format!("http://{pit}");
        Arc::new(vault::kv_at(&url, "shop", &mount, Version::V2, rig.root_login(), None, &dialer))
    };
    // More than one link may have under way.
    does_not_wait(kv, providers::http_json::MAX_OPEN + 8).await;
}
