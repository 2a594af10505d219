//! Clients that are slow, silent or too many.

use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::rig::{Rig, read_to_end, status};

const SHORT: Duration = Duration::from_millis(200);
const LONG: Duration = Duration::from_secs(30);

fn rig(header: Duration, body: Duration, keep_alive: Duration) -> Rig {
    Rig::with(1, |config| {
        config.header_timeout = header;
        config.body_timeout = body;
        config.keep_alive = keep_alive;
    })
}

#[tokio::test]
async fn a_head_that_trickles_is_cut_off_in_time() {
    let rig = rig(SHORT, LONG, LONG);
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
    assert!(began.elapsed() < Duration::from_secs(8), "{:?}", began.elapsed());
    assert!(rig.seen().is_empty());
}

#[tokio::test]
async fn a_connection_without_a_request_is_closed_without_a_word() {
    let rig = rig(SHORT, LONG, LONG);
    for bytes in ["", "P", "PRI * HT"] {
        let mut stream = rig.connect().await;
        stream.write_all(bytes.as_bytes()).await.unwrap();
        let began = Instant::now();
        assert_eq!(read_to_end(&mut stream).await, "", "{bytes}");
        assert!(began.elapsed() < Duration::from_secs(8), "{:?}", began.elapsed());
    }
}

#[tokio::test]
async fn an_idle_connection_is_closed_without_a_word() {
    let rig = rig(LONG, LONG, SHORT);
    let mut stream = rig.connect().await;
    stream.write_all(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n").await.unwrap();
    let began = Instant::now();
    let response = read_to_end(&mut stream).await;
    assert!(response.ends_with("GET / from 0"), "{response}");
    assert!((180..8000).contains(&began.elapsed().as_millis()), "{:?}", began.elapsed());
}

#[tokio::test]
async fn a_body_that_stops_is_answered_408() {
    let rig = rig(LONG, SHORT, LONG);
    for framing in ["Content-Length: 10\r\n\r\nabc", "Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n"] {
        let response = rig.exchange(format!("POST / HTTP/1.1\r\nHost: h\r\n{framing}")).await;
        assert_eq!(status(&response), 408, "{framing}: {response}");
        assert_eq!(rig.seen()[0].body, None);
    }
}

#[tokio::test]
async fn a_body_that_goes_on_slowly_is_no_silence() {
    let rig = rig(LONG, SHORT, LONG);
    let mut stream = rig.connect().await;
    stream.write_all(b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\nConnection: close\r\n\r\n").await.unwrap();
    for byte in b"abcde" {
        tokio::time::sleep(SHORT / 2).await;
        stream.write_all(&[*byte]).await.unwrap();
    }
    assert_eq!(status(&read_to_end(&mut stream).await), 200);
}

#[tokio::test]
async fn a_client_that_takes_nothing_is_cut_off() {
    let rig = rig(LONG, SHORT, LONG);
    let mut stream = rig.connect().await;
    stream.write_all(b"GET /large HTTP/1.1\r\nHost: h\r\n\r\n").await.unwrap();
    let waiting = async {
        while rig.record.lock().unwrap().is_empty() || rig.shards.shards()[0].in_flight() > 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(3), waiting).await.unwrap();
    drop(stream);
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
    let rig = Rig::with(1, |config| config.connections = 4);
    let held: Vec<_> = futures::future::join_all((0..4).map(|_| rig.connect())).await;
    // Accepted in order, so the four are counted before the fifth.
    assert_eq!(rig.exchange("").await, "");
    drop(held);
    let freed = async {
        while status(&rig.get("/").await) != 200 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(3), freed).await.unwrap();
}

#[tokio::test]
async fn many_silent_connections_do_not_slow_the_others() {
    let rig = rig(LONG, LONG, LONG);
    let mut silent = futures::future::join_all((0..400).map(|_| rig.connect())).await;
    for stream in &mut silent {
        stream.write_all(b"GET / HTTP/1.1\r\nHo").await.unwrap();
    }
    let began = Instant::now();
    for _ in 0..100 {
        assert_eq!(status(&rig.get("/").await), 200);
    }
    assert!(began.elapsed() < Duration::from_secs(8), "{:?}", began.elapsed());
}
