//! Clients that are slow, silent or too many.

use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::h2::{frame, full, opened};
use super::rig::{ENDLESS, PATIENCE, Rig, gated, read_to_end, status};

const SHORT: Duration = Duration::from_millis(200);

fn rig(header: Duration, body: Duration, keep_alive: Duration) -> Rig {
    Rig::with(1, |config| {
        config.header_timeout = header;
        config.body_timeout = body;
        config.keep_alive = keep_alive;
    })
}

#[tokio::test]
async fn a_head_that_trickles_is_cut_off_in_time() {
    let rig = rig(SHORT, ENDLESS, ENDLESS);
    let mut stream = rig.connect().await;
    let began = Instant::now();
    let (mut reader, mut writer) = stream.split();
    let trickle = async {
        for byte in b"GET / HTTP/1.1\r\nHost: h\r\nX: yyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyy" {
            tokio::time::sleep(Duration::from_millis(20)).await;
            if writer.write_all(&[*byte]).await.is_err() {
                return;
            }
        }
        std::future::pending().await
    };
    let mut response = String::new();
    tokio::select! {
        () = trickle => panic!("the connection failed before its answer was read"),
        read = reader.read_to_string(&mut response) => { read.unwrap(); }
    }
    assert_eq!(status(&response), 408, "{response}");
    assert!(began.elapsed() < PATIENCE, "{:?}", began.elapsed());
    assert!(rig.seen().is_empty());
}

/// Ten thousand connections may each be given a large head for as long as a head may take: all of them together have a bound.
#[tokio::test]
async fn large_heads_that_come_in_part_have_a_bound_together() {
    let rig = Rig::with(1, |config| {
        (config.header_timeout, config.heads) = (ENDLESS, 52 << 10);
    });
    let large = format!("GET / HTTP/1.1\r\nHost: h\r\nConnection: close\r\nX: {}", "y".repeat(40 << 10));
    let mut first = rig.connect().await;
    first.write_all(large.as_bytes()).await.unwrap();
    // Once the first one has its room, a second one is told that there is none, and where the first one is slow the other way round.
    let mut second = rig.connect().await;
    second.write_all(large.as_bytes()).await.unwrap();
    let (mut one, mut other) = (String::new(), String::new());
    let refused = tokio::select! {
        read = first.read_to_string(&mut one) => { read.unwrap(); one }
        read = second.read_to_string(&mut other) => { read.unwrap(); other }
    };
    assert_eq!(status(&refused), 503, "{refused}");
    assert!(refused.contains("busy") && refused.to_ascii_lowercase().contains("retry-after"), "{refused}");
    assert_eq!(
        status(&rig.exchange("GET / HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n").await),
        200,
        "small ones pass"
    );
    drop((first, second));
    // What has gone takes no room; when that is noticed is the ingress's affair.
    let until = Instant::now() + PATIENCE;
    while status(&rig.exchange(format!("{large}\r\n\r\n")).await) != 200 {
        assert!(Instant::now() < until, "the room never comes back");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn a_connection_without_a_request_is_closed_without_a_word() {
    let rig = rig(SHORT, ENDLESS, ENDLESS);
    for bytes in ["", "P", "PRI * HT"] {
        let mut stream = rig.connect().await;
        stream.write_all(bytes.as_bytes()).await.unwrap();
        let began = Instant::now();
        assert_eq!(read_to_end(&mut stream).await, "", "{bytes}");
        assert!(began.elapsed() < PATIENCE, "{:?}", began.elapsed());
    }
}

#[tokio::test]
async fn an_idle_connection_is_closed_without_a_word() {
    let rig = rig(ENDLESS, ENDLESS, SHORT);
    let mut stream = rig.connect().await;
    // Before the request: its time may begin before this thread comes to go on.
    let began = Instant::now();
    stream.write_all(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n").await.unwrap();
    let response = read_to_end(&mut stream).await;
    assert!(response.ends_with("GET / from 0"), "{response}");
    assert!((Duration::from_millis(180)..PATIENCE).contains(&began.elapsed()), "{:?}", began.elapsed());
}

#[tokio::test]
async fn a_body_that_stops_is_answered_408() {
    let rig = rig(ENDLESS, SHORT, ENDLESS);
    for framing in ["Content-Length: 10\r\n\r\nabc", "Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n"] {
        let response = rig.exchange(format!("POST / HTTP/1.1\r\nHost: h\r\n{framing}")).await;
        assert_eq!(status(&response), 408, "{framing}: {response}");
        // Its host may come to look at it only now.
        super::faults::wait_until(|| !rig.record.lock().unwrap().is_empty()).await;
        assert_eq!(rig.seen()[0].body, None);
    }
}

#[tokio::test]
async fn a_body_that_goes_on_slowly_is_no_silence() {
    // All of it takes longer than a silence may, and each pause is much shorter.
    let silence = Duration::from_secs(8);
    let rig = rig(ENDLESS, silence, ENDLESS);
    let mut stream = rig.connect().await;
    stream.write_all(b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\nConnection: close\r\n\r\n").await.unwrap();
    for byte in b"abcde" {
        tokio::time::sleep(silence / 4).await;
        stream.write_all(&[*byte]).await.unwrap();
    }
    assert_eq!(status(&read_to_end(&mut stream).await), 200);
}

#[tokio::test]
async fn a_client_that_takes_nothing_is_cut_off() {
    let rig = rig(ENDLESS, SHORT, ENDLESS);
    let mut stream = rig.connect().await;
    stream.write_all(b"GET /large HTTP/1.1\r\nHost: h\r\n\r\n").await.unwrap();
    let waiting = async {
        while rig.record.lock().unwrap().is_empty() || rig.shards.shards()[0].in_flight() > 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, waiting).await.unwrap();
    drop(stream);
}

/// Settings of a client that gives no stream any room: `SETTINGS_INITIAL_WINDOW_SIZE` is 0.
const NO_ROOM: [u8; 6] = [0, 4, 0, 0, 0, 0];

#[tokio::test]
async fn a_client_that_gives_no_stream_room_keeps_no_place() {
    let rig = rig(ENDLESS, SHORT, ENDLESS);
    let gate = std::sync::Arc::new(node::ingress::Gate::default());
    gate.set(&model::tenant::Quotas { concurrent_requests: Some(2), ..model::tenant::Quotas::default() });
    rig.routes.store(gated(&rig.shards, "1", &gate));
    let mut stream = rig.connect().await;
    // One answer is longer than what lies between, one is handed over at once and in vain.
    let requests = [opened(&NO_ROOM), get(1, "/large"), get(3, "/")].concat();
    stream.write_all(&requests).await.unwrap();
    let taken = async {
        while rig.record.lock().unwrap().len() < 2 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, taken).await.unwrap();
    let freed = async {
        while rig.shards.shards()[0].in_flight() > 0 || gate.enter().and_then(|one| Ok((one, gate.enter()?))).is_err() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, freed).await.unwrap();
    // The connection is still there for what its client may ask next.
    stream.write_all(&get(5, "/")).await.unwrap();
    let asked = async {
        while rig.record.lock().unwrap().len() < 3 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, asked).await.unwrap();
}

/// A `GET` on a stream of HTTP/2: `:method`, `:scheme` and `:authority` by the static table, `:path` as a literal.
fn get(stream: u8, path: &str) -> Vec<u8> {
    let length = u8::try_from(path.len()).unwrap();
    frame(1, 5, stream, &[&[0x82, 0x86, 0x04, length], path.as_bytes(), &[0x01, 1, b'h']].concat())
}

#[tokio::test]
async fn a_connection_of_answers_nobody_takes_is_closed() {
    let rig = rig(ENDLESS, SHORT, SHORT);
    let mut stream = rig.connect().await;
    stream.write_all(&[opened(&NO_ROOM), get(1, "/")].concat()).await.unwrap();
    let read = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut Vec::new())).await;
    // A reset says the same.
    drop(read.expect("the connection is still open"));
    assert_eq!(rig.seen().len(), 1);
}

#[tokio::test]
async fn a_client_of_http2_that_takes_slowly_gets_all_of_it() {
    let rig = rig(ENDLESS, Duration::from_secs(6), ENDLESS);
    let mut builder = hyper::client::conn::http2::Builder::new(hyper_util::rt::TokioExecutor::new());
    // A piece at a time, of the connection too.
    builder.initial_stream_window_size(16 * 1024).initial_connection_window_size(65_535);
    let io = hyper_util::rt::TokioIo::new(rig.connect().await);
    let (mut client, connection) = builder.handshake(io).await.unwrap();
    tokio::spawn(connection);
    let request = http::Request::get("http://h/large").body(full("")).unwrap();
    let mut body = client.send_request(request).await.unwrap().into_body();
    let (began, mut size) = (Instant::now(), 0);
    while let Some(frame) = http_body_util::BodyExt::frame(&mut body).await {
        size += frame.unwrap().into_data().unwrap().len();
        if began.elapsed() < Duration::from_secs(9) {
            tokio::time::sleep(Duration::from_millis(250)).await;
        }
    }
    assert_eq!(size, 256 * 64 * 1024);
}

#[tokio::test]
async fn a_host_that_never_answers_is_given_up() {
    let rig = Rig::with(1, |config| config.request_timeout = SHORT);
    let response = rig.get("/hang").await;
    assert_eq!(status(&response), 504, "{response}");
    assert!(response.contains("sidereal-fault: timed-out\r\n"), "{response}");
}

#[tokio::test]
async fn connections_are_bounded_and_their_places_free_again() {
    let (remarks, mut said) = tokio::sync::mpsc::channel(1);
    let rig = Rig::with(1, |config| {
        config.connections = 4;
        config.remarks = Some(remarks);
    });
    let held: Vec<_> = futures::future::join_all((0..4).map(|_| rig.connect())).await;
    // Accepted in order, so the four are counted before the fifth.
    assert_eq!(rig.exchange("").await, "");
    let why = "a connection of 127.0.0.1 was closed unread: 4 are open, the most of all clients together";
    assert_eq!(tokio::time::timeout(PATIENCE, said.recv()).await.unwrap().unwrap(), why);
    drop(held);
    let freed = async {
        while status(&rig.get("/").await) != 200 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, freed).await.unwrap();
}

#[tokio::test]
async fn many_silent_connections_do_not_slow_the_others() {
    let rig = rig(ENDLESS, ENDLESS, ENDLESS);
    let mut silent = futures::future::join_all((0..400).map(|_| rig.connect())).await;
    for stream in &mut silent {
        stream.write_all(b"GET / HTTP/1.1\r\nHo").await.unwrap();
    }
    let began = Instant::now();
    for _ in 0..100 {
        assert_eq!(status(&rig.get("/").await), 200);
    }
    assert!(began.elapsed() < PATIENCE, "{:?}", began.elapsed());
}
