//! A tenant that has as many requests as it may have: refused at once, told when to come back, and nobody else notices.

use std::sync::Arc;
use std::time::Duration;

use http::Request;
use model::tenant::Quotas;
use node::ingress::Gate;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::h2;
use super::rig::{PATIENCE, Rig, gated, status};

fn quota(quotas: Quotas) -> (Rig, Arc<Gate>) {
    let rig = Rig::new(1);
    let gate = Arc::new(Gate::default());
    gate.set(&quotas);
    rig.routes.store(gated(&rig.shards, "1", &gate));
    (rig, gate)
}

#[tokio::test]
async fn more_at_once_than_allowed_are_refused_and_the_place_is_free_afterwards() {
    let (rig, gate) = quota(Quotas { concurrent_requests: Some(1), ..Quotas::default() });
    let mut held = rig.connect().await;
    held.write_all(b"GET /hang HTTP/1.1\r\nHost: h\r\n\r\n").await.unwrap();
    while rig.record.lock().unwrap().is_empty() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let refused = rig.get("/").await;
    assert_eq!(status(&refused), 503, "{refused}");
    assert!(refused.contains("sidereal-fault: busy\r\n") && refused.contains("retry-after: 1\r\n"), "{refused}");
    let mut client = h2::client(&rig).await;
    let (status_of_h2, headers, _) = h2::ask(&mut client, Request::get("http://h/").body(h2::full("")).unwrap()).await;
    assert_eq!((status_of_h2, &headers["sidereal-fault"]), (503, &http::HeaderValue::from_static("busy")));
    drop(held);
    // The ingress learns of it by itself.
    tokio::time::timeout(PATIENCE, async {
        while status(&rig.get("/").await) != 200 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await
    .unwrap();
    // An answer that was read gives its place back, a little later.
    tokio::time::timeout(PATIENCE, async {
        let ask = || Request::get("http://h/").body(h2::full("")).unwrap();
        while h2::ask(&mut client, ask()).await.0 != 200 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        while status(&rig.get("/").await) != 200 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await
    .expect("a place is lost");
    assert!(gate.refused() >= 2);
}

#[tokio::test]
async fn more_a_second_than_allowed_are_refused_on_a_connection_that_goes_on() {
    let (rig, gate) = quota(Quotas { requests_per_second: Some(1), ..Quotas::default() });
    let mut stream = rig.connect().await;
    let (mut limited, began) = (0, std::time::Instant::now());
    for _ in 0..30 {
        stream.write_all(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n").await.unwrap();
        let answer = answer(&mut stream).await;
        match status(&answer) {
            200 => {}
            429 => {
                limited += 1;
                assert!(answer.contains("sidereal-fault: rate-limited\r\n"), "{answer}");
                assert!(answer.contains("\r\nretry-after: ") && !answer.contains("connection: close"), "{answer}");
            }
            other => panic!("{other}: {answer}"),
        }
    }
    // The burst is 10, and with each second there is one more.
    let earned = began.elapsed().as_secs() + 1;
    assert!((20_u64.saturating_sub(earned)..=20).contains(&limited), "{limited} in {:?}", began.elapsed());
    assert!(limited > 0 || earned > 20, "none in {:?}", began.elapsed());
    assert_eq!(gate.refused(), limited);
    gate.set(&Quotas::default());
    assert_eq!(status(&rig.get("/").await), 200, "a quota that is lifted holds nobody back");
}

/// One response with its body.
async fn answer(stream: &mut TcpStream) -> String {
    let whole = |text: &str| {
        let (head, body) = text.split_once("\r\n\r\n")?;
        let length: usize =
            head.lines().find_map(|l| l.to_ascii_lowercase().strip_prefix("content-length: ")?.parse().ok())?;
        (body.len() >= length).then_some(())
    };
    let mut text = String::new();
    while whole(&text).is_none() {
        let mut bytes = [0; 1024];
        let count = stream.read(&mut bytes).await.unwrap();
        assert_ne!(count, 0, "the connection ended after: {text}");
        text.push_str(&String::from_utf8_lossy(&bytes[..count]));
    }
    text
}
