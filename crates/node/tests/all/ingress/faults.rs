//! Hosts that die, refuse or talk nonsense, and an ingress that is told to stop.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use node::ingress::{Shard, ShardSet};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{UnixListener, UnixStream};
use tokio_util::sync::CancellationToken;

use super::rig::{ENDLESS, Host, PATIENCE, Rig, body, read_to_end, read_until, status, table};

/// A host that follows a script: for each connection, what it does with the bytes of each request.
pub(super) fn scripted(
    script: impl Fn(usize, usize, String) -> Option<String> + Send + Sync + 'static,
) -> (Arc<ShardSet>, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("0.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    let script = Arc::new(script);
    tokio::spawn(async move {
        for connection in 0.. {
            let (stream, _) = listener.accept().await.unwrap();
            tokio::spawn(follow(stream, connection, script.clone()));
        }
    });
    (ShardSet::new(vec![Shard::new(0, socket)]), dir)
}

async fn follow(
    mut stream: UnixStream,
    connection: usize,
    script: Arc<impl Fn(usize, usize, String) -> Option<String> + Send + Sync + 'static>,
) {
    for request in 0.. {
        let mut bytes = vec![0; 65536];
        match stream.read(&mut bytes).await {
            Ok(count @ 1..) => bytes.truncate(count),
            _ => return,
        }
        match script(connection, request, String::from_utf8_lossy(&bytes).into_owned()) {
            Some(answer) => stream.write_all(answer.as_bytes()).await.unwrap(),
            // The connection is closed without a word.
            None => return,
        }
    }
}

const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

/// Serves one request, so that the next one finds a pooled connection.
async fn warm(rig: &Rig) {
    assert_eq!(status(&rig.get("/warm").await), 200);
}

#[tokio::test]
async fn a_pooled_connection_that_turns_out_dead_costs_an_idempotent_request_nothing() {
    let seen = Arc::new(AtomicUsize::new(0));
    let count = seen.clone();
    let (shards, dir) = scripted(move |connection, request, _| {
        count.fetch_add(1, Ordering::SeqCst);
        (connection > 0 || request == 0).then(|| OK.into())
    });
    let rig = Rig::to(shards, dir, |_| {});
    warm(&rig).await;
    assert_eq!(status(&rig.get("/again").await), 200);
    assert_eq!(seen.load(Ordering::SeqCst), 3);
}

#[tokio::test]
async fn a_request_that_may_have_run_is_not_repeated() {
    for request in [
        "POST / HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\nConnection: close\r\n\r\nabc",
        "PUT / HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\nConnection: close\r\n\r\nabc",
        "PUT / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
    ] {
        let seen = Arc::new(AtomicUsize::new(0));
        let count = seen.clone();
        let (shards, dir) = scripted(move |connection, request, _| {
            count.fetch_add(1, Ordering::SeqCst);
            (connection > 0 || request == 0).then(|| OK.into())
        });
        let rig = Rig::to(shards, dir, |_| {});
        warm(&rig).await;
        let response = rig.exchange(request).await;
        assert_eq!(status(&response), 502, "{request}: {response}");
        assert!(response.contains("sidereal-fault: unreachable\r\n"), "{response}");
        assert_eq!(seen.load(Ordering::SeqCst), 2, "{request}");
    }
}

#[tokio::test]
async fn a_request_that_kills_its_host_on_a_new_connection_is_not_given_to_the_next_one() {
    let seen = Arc::new(AtomicUsize::new(0));
    let count = seen.clone();
    let (shards, dir) = scripted(move |_, _, _| {
        count.fetch_add(1, Ordering::SeqCst);
        None
    });
    let rig = Rig::to(shards, dir, |_| {});
    assert_eq!(status(&rig.get("/").await), 502);
    assert_eq!(seen.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn nonsense_from_a_host_is_not_passed_on() {
    let answers = [
        "HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 2\r\n\r\nok",
        "HTTP/1.1 200 OK\r\ncontent-length: 2\r\ntransfer-encoding: chunked\r\n\r\nok",
        "HTTP/1.1 200 OK\r\n\r\nok",
        "HTTP/1.1 200 OK\ncontent-length: 2\n\nok",
        "HTTP/1.1 200 OK\r\ncontent-length: 2\r\nx: a\0b\r\n\r\nok",
        "HTTP/1.1 101 Switching Protocols\r\n\r\n",
        "HTTP/1.0 200 OK\r\ncontent-length: 2\r\n\r\nok",
        "hello\r\n\r\n",
        "HTTP/1.1 200 OK\r\nfolded: a\r\n b\r\ncontent-length: 2\r\n\r\nok",
    ];
    let (shards, dir) = scripted(move |_, _, request| {
        let number = request.split(['/', ' ']).nth(2)?;
        Some(answers.get(number.parse::<usize>().ok()?)?.to_string())
    });
    let rig = Rig::to(shards, dir, |_| {});
    for (n, answer) in answers.iter().enumerate() {
        let response = rig.get(&format!("/{n}")).await;
        assert_eq!(status(&response), 502, "{answer}: {response}");
    }
}

#[tokio::test]
async fn interim_responses_stay_inside_and_extra_bytes_end_the_pooled_connection() {
    let connections = Arc::new(AtomicUsize::new(0));
    let count = connections.clone();
    let (shards, dir) = scripted(move |connection, _, request| {
        count.fetch_max(connection + 1, Ordering::SeqCst);
        let extra =
            if request.starts_with("GET /extra ") { "HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nevil" } else { "" };
        Some(format!("HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n{OK}{extra}"))
    });
    let rig = Rig::to(shards, dir, |_| {});
    for path in ["/", "/extra", "/", "/"] {
        let response = rig.get(path).await;
        assert_eq!((status(&response), body(&response)), (200, "ok"), "{response}");
    }
    assert_eq!(connections.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn a_revision_the_host_no_longer_has_is_looked_up_again() {
    let (shards, dir) = scripted(|_, _, request| {
        Some(if request.contains("sidereal-route: shop/1/") {
            "HTTP/1.1 503 x\r\nsidereal-fault: not-found\r\ncontent-length: 4\r\n\r\ngone".into()
        } else {
            let length = request.len();
            format!("HTTP/1.1 200 OK\r\ncontent-length: 2\r\nx-length: {length}\r\n\r\n{}", &request[length - 2..])
        })
    });
    let rig = Rig::to(shards, dir, |_| {});
    // The same route is still there: the host's answer stands.
    let response = rig.get("/").await;
    assert_eq!((status(&response), body(&response)), (503, "gone"));
    // The table changes between the look-up and the host's answer, as in a deploy: simulated by a look-up that is stale
    // from the start and a table that is right the second time.
    let enough = CancellationToken::new();
    let flipping = enough.clone().drop_guard();
    let flips = {
        let (routes, shards) = (rig.routes.clone(), rig.shards.clone());
        tokio::task::spawn_blocking(move || {
            while !enough.is_cancelled() {
                routes.store(table(&shards, "1"));
                routes.store(table(&shards, "2"));
            }
        })
    };
    let (mut good, mut asked, began) = (0, 0, Instant::now());
    while good == 0 || asked < 50 {
        assert!(began.elapsed() < PATIENCE, "none of {asked} is looked up again");
        asked += 1;
        let response =
            rig.exchange("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\nConnection: close\r\n\r\nab").await;
        assert!(matches!((status(&response), body(&response)), (200, "ab") | (503, "gone")), "{response}");
        good += usize::from(status(&response) == 200);
    }
    drop(flipping);
    flips.await.unwrap();
    let response = rig.get("/").await;
    assert_eq!(status(&response), 200);
}

#[tokio::test]
async fn a_shard_that_cannot_be_reached_is_passed_over() {
    let mut rig = Rig::new(2);
    let response = rig.get("/").await;
    let home: usize = body(&response).rsplit(' ').next().unwrap().parse().unwrap();
    rig.hosts.remove(home).unwrap().kill().await;
    let request = "POST /x HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\nConnection: close\r\n\r\nabc";
    for _ in 0..3 {
        let response = rig.exchange(request).await;
        assert_eq!(body(&response), format!("POST /x from {}", 1 - home), "{response}");
    }
}

#[tokio::test]
async fn requests_wait_for_a_shard_that_restarts() {
    let mut rig = Rig::with(1, |config| config.shard_wait = PATIENCE);
    rig.hosts.pop_front().unwrap().kill().await;
    rig.shards.set_healthy(0, false);
    let (addr, socket, record, shards) = (rig.addr, rig.socket(0), rig.record.clone(), rig.shards.clone());
    let restart = tokio::spawn(async move {
        wait_until(|| shards.waiting() == 20).await;
        let host = Host::start(0, &socket, record);
        shards.set_healthy(0, true);
        host
    });
    let ask = || async {
        let mut stream = tokio::net::TcpStream::connect(addr).await.unwrap();
        stream
            .write_all(b"POST /x HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\nConnection: close\r\n\r\nabc")
            .await
            .unwrap();
        read_to_end(&mut stream).await
    };
    for response in futures::future::join_all((0..20).map(|_| ask())).await {
        assert_eq!(status(&response), 200, "{response}");
    }
    drop(restart.await.unwrap());
}

#[tokio::test]
async fn requests_wait_neither_forever_nor_in_any_number() {
    // All six are there before the first two have waited for so long.
    const WAIT: Duration = Duration::from_secs(10);
    let mut rig = Rig::with(1, |config| {
        config.shard_wait = WAIT;
        config.shard_waiters = 2;
    });
    rig.hosts.pop_front().unwrap().kill().await;
    let began = Instant::now();
    let mut asked: FuturesUnordered<_> = (0..6).map(|_| rig.get("/")).collect();
    for refused in 1..=6 {
        let response = asked.next().await.unwrap();
        assert_eq!(status(&response), 503, "{response}");
        assert!(response.contains("retry-after: 1\r\n"), "{response}");
        assert!(response.contains("sidereal-fault: unreachable\r\n"), "{response}");
        // Four find both places taken.
        match refused {
            4 => wait_until(|| rig.shards.waiting() == 2).await,
            5.. => assert!(began.elapsed() >= WAIT, "{:?}", began.elapsed()),
            _ => {}
        }
    }
    wait_until(|| rig.shards.waiting() == 0).await;
}

#[tokio::test]
async fn requests_that_wait_for_one_tenants_hosts_take_no_place_of_anothers() {
    let rig = Rig::with(1, |config| {
        config.shard_wait = PATIENCE;
        config.shard_waiters = 2;
    });
    rig.routes.store(table(&ShardSet::new(Vec::new()), "1"));
    let mut waiting: FuturesUnordered<_> = (0..3).map(|_| rig.get("/")).collect();
    // The third: both places are taken.
    let refused = waiting.next().await.unwrap();
    assert!(status(&refused) == 503 && refused.contains("sidereal-fault: unreachable\r\n"), "{refused}");
    let other = ShardSet::new(Vec::new());
    rig.routes.store(table(&other, "1"));
    let back = async {
        while other.waiting() == 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        other.replace(rig.shards.shards().to_vec());
    };
    let (response, ()) = tokio::join!(rig.get("/"), back);
    assert_eq!(status(&response), 200, "{response}");
    assert_eq!(waiting.len(), 2, "those of the first tenant wait on");
}

#[tokio::test]
async fn a_shard_killed_under_load_fails_only_what_it_was_doing() {
    let mut rig = Rig::new(2);
    let total = Arc::new(AtomicUsize::new(0));
    let failed = Arc::new(AtomicUsize::new(0));
    let clients: Vec<_> = (0..16)
        .map(|_| {
            let (addr, total, failed) = (rig.addr, total.clone(), failed.clone());
            tokio::spawn(async move {
                let mut stream = tokio::net::TcpStream::connect(addr).await.unwrap();
                for _ in 0..300 {
                    stream.write_all(b"POST /x HTTP/1.1\r\nHost: h\r\n\r\n").await.unwrap();
                    let head = read_until(&mut stream, "\r\n\r\n").await;
                    let length: usize = head
                        .lines()
                        .find_map(|line| line.strip_prefix("content-length: "))
                        .and_then(|length| length.parse().ok())
                        .unwrap();
                    stream.read_exact(&mut vec![0; length]).await.unwrap();
                    total.fetch_add(1, Ordering::SeqCst);
                    match status(&head) {
                        200 => {}
                        502 => _ = failed.fetch_add(1, Ordering::SeqCst),
                        other => panic!("{other}: {head}"),
                    }
                }
            })
        })
        .collect();
    while total.load(Ordering::SeqCst) < 1000 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    rig.hosts.pop_front().unwrap().kill().await;
    for client in clients {
        client.await.unwrap();
    }
    assert_eq!(total.load(Ordering::SeqCst), 16 * 300);
    assert!(failed.load(Ordering::SeqCst) <= 16, "{failed:?}");
    // A call is over a little after its answer was read.
    wait_until(|| rig.shards.shards().iter().all(|shard| shard.in_flight() == 0)).await;
}

#[tokio::test]
async fn a_client_that_hangs_up_ends_its_call() {
    let rig = Rig::new(1);
    for request in
        ["GET /hang HTTP/1.1\r\nHost: h\r\n\r\n", "POST /hang HTTP/1.1\r\nHost: h\r\nContent-Length: 9\r\n\r\nx"]
    {
        let mut stream = rig.connect().await;
        stream.write_all(request.as_bytes()).await.unwrap();
        wait_until(|| rig.record.lock().unwrap().len() == 1).await;
        assert_eq!(rig.shards.shards()[0].in_flight(), 1);
        drop(stream);
        wait_until(|| rig.shards.shards()[0].in_flight() == 0).await;
        rig.seen();
    }
}

/// A host that answers requests and takes none of them: they stay in its socket, until no more fit.
fn deaf() -> (Arc<ShardSet>, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("0.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut bytes = vec![0; 4 << 20];
                for answered in 0.. {
                    let heads = |bytes: &[u8]| bytes.windows(4).filter(|end| end == b"\r\n\r\n").count();
                    loop {
                        let flags = rustix::net::RecvFlags::PEEK | rustix::net::RecvFlags::DONTWAIT;
                        match rustix::net::recv(&stream, bytes.as_mut_slice(), flags) {
                            Ok((0, _)) => return,
                            Ok((count, _)) if heads(&bytes[..count]) > answered => break,
                            _ => tokio::time::sleep(Duration::from_millis(2)).await,
                        }
                    }
                    if stream.write_all(OK.as_bytes()).await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    (ShardSet::new(vec![Shard::new(0, socket)]), dir)
}

#[tokio::test]
async fn a_host_that_takes_no_request_keeps_neither_those_nor_their_clients() {
    let request = format!("GET /x HTTP/1.1\r\nHost: h\r\n{}\r\n", format!("X: {}\r\n", "x".repeat(4000)).repeat(8));
    for leaves in [false, true] {
        let (shards, dir) = deaf();
        let within = if leaves { Duration::from_secs(3600) } else { Duration::from_secs(2) };
        let rig = Rig::to(shards.clone(), dir, |config| {
            config.workers = 1;
            config.request_timeout = within;
        });
        let mut client = rig.connect().await;
        let last = loop {
            client.write_all(request.as_bytes()).await.unwrap();
            match tokio::time::timeout(PATIENCE, read_head(&mut client, leaves)).await.unwrap() {
                Some(response) if status(&response) == 200 => {}
                other => break other,
            }
        };
        match last {
            Some(response) => assert_eq!(status(&response), 504),
            None => {
                drop(client);
                wait_until(|| shards.shards()[0].in_flight() == 0).await;
            }
        }
    }
}

/// The next response; where `soon` is said, `None` if there is none soon.
async fn read_head(client: &mut tokio::net::TcpStream, soon: bool) -> Option<String> {
    let within = if soon { Duration::from_secs(2) } else { PATIENCE };
    let mut text = Vec::new();
    let read = async {
        while !text.ends_with(b"ok") && !text.starts_with(b"HTTP/1.1 5") {
            let mut piece = [0; 4096];
            let count = client.read(&mut piece).await.unwrap();
            text.extend_from_slice(&piece[..count]);
        }
    };
    tokio::time::timeout(within, read).await.ok()?;
    Some(String::from_utf8(text).unwrap())
}

pub(super) async fn wait_until(done: impl Fn() -> bool) {
    let waiting = async {
        while !done() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(PATIENCE, waiting).await.unwrap();
}

#[tokio::test]
async fn draining_lets_requests_finish_and_takes_no_new_ones() {
    let mut rig = Rig::with(1, |config| config.workers = 2);
    let mut idle = rig.connect().await;
    idle.write_all(b"GET /x HTTP/1.1\r\nHost: h\r\n\r\n").await.unwrap();
    read_until(&mut idle, "GET /x from 0").await;
    let mut busy = rig.connect().await;
    busy.write_all(b"GET /held HTTP/1.1\r\nHost: h\r\n\r\n").await.unwrap();
    wait_until(|| rig.record.lock().unwrap().len() == 2).await;

    let drained = tokio::spawn(rig.ingress.take().unwrap().drain(PATIENCE));
    assert_eq!(read_to_end(&mut idle).await, "");
    rig.release();
    let response = read_to_end(&mut busy).await;
    assert_eq!(status(&response), 200, "{response}");
    assert!(response.contains("connection: close\r\n"), "{response}");
    drop((idle, busy));
    let began = Instant::now();
    assert_eq!(drained.await.unwrap(), 0, "none was cut");
    assert!(began.elapsed() < PATIENCE / 2, "it waits for nothing: {:?}", began.elapsed());
    assert!(tokio::net::TcpStream::connect(rig.addr).await.is_err());
}

#[tokio::test]
async fn draining_ends_at_its_deadline() {
    let mut rig = Rig::new(1);
    let mut stuck = rig.connect().await;
    stuck.write_all(b"GET /hang HTTP/1.1\r\nHost: h\r\n\r\n").await.unwrap();
    wait_until(|| rig.record.lock().unwrap().len() == 1).await;
    let began = Instant::now();
    let cut = rig.ingress.take().unwrap().drain(Duration::from_millis(200)).await;
    assert_eq!(cut, 1);
    assert!((Duration::from_millis(200)..PATIENCE).contains(&began.elapsed()), "{:?}", began.elapsed());
    // Cut off: an end or a reset, but no answer.
    let mut bytes = Vec::new();
    let _ = stuck.read_to_end(&mut bytes).await;
    assert!(bytes.is_empty());
}

#[tokio::test]
async fn a_suspended_app_says_so_at_once() {
    let rig = Rig::with(1, |config| config.shard_wait = ENDLESS);
    rig.routes.store(table(&ShardSet::suspended(), "1"));
    let began = Instant::now();
    let response = rig.get("/").await;
    assert_eq!(status(&response), 503, "{response}");
    assert!(response.contains("sidereal-fault: suspended\r\n"), "{response}");
    assert!(began.elapsed() < PATIENCE, "{:?}", began.elapsed());
}
