//! The NATS client against a real server, and against what only calls itself one.

use std::sync::atomic::Ordering::SeqCst;
use std::time::{Duration, Instant};

use futures::future::{join_all, select_all};
use providers::dial::DialError;
use providers::http_out::public_roots;
use providers::nats::{Buffer, Credentials, Headers, NatsError, Outgoing};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::nats_server::{NatsServer, client};
use crate::support::Direct;

const SECOND: Duration = Duration::from_secs(1);
/// For what happens soon, also on a slow machine with much to do.
const PATIENCE: Duration = Duration::from_secs(120);

#[tokio::test]
async fn messages_arrive_with_headers_and_are_answered() {
    let server = NatsServer::start();
    let (asks, answers) = (server.client(), server.client());
    let mut sub = answers.subscribe("greet.*", None, Buffer::default()).await.unwrap();
    let headers = Headers::new().with("traceparent", "00-1").unwrap();
    let message = Outgoing { headers, ..Outgoing::new("greet.one", "hi") };
    let reply = async {
        let got = sub.next().await.unwrap();
        assert_eq!((got.subject.as_str(), got.headers.get("Traceparent")), ("greet.one", Some("00-1")));
        answers.publish(Outgoing::new(got.reply.unwrap(), got.payload)).await.unwrap();
    };
    let (answer, ()) = tokio::join!(asks.request(message, PATIENCE), reply);
    assert_eq!(&answer.unwrap().payload[..], b"hi");
    let start = Instant::now();
    let nobody = asks.request(Outgoing::new("nobody.here", ""), PATIENCE).await;
    assert_eq!(nobody, Err(NatsError::NoResponders("nobody.here".into())));
    assert!(start.elapsed() < PATIENCE / 2, "said at once");
    drop(sub);
    answers.flush().await.unwrap();
    assert_eq!(
        asks.request(Outgoing::new("greet.x", ""), PATIENCE).await.unwrap_err(),
        NatsError::NoResponders("greet.x".into())
    );
}

#[tokio::test]
async fn members_of_a_queue_share_and_others_see_everything() {
    let server = NatsServer::start();
    let bus = server.client();
    let mut all = bus.subscribe("work.>", None, Buffer::default()).await.unwrap();
    let mut members = Vec::new();
    for _ in 0..3 {
        members.push(server.client().subscribe("work.>", Some("workers"), Buffer::default()).await.unwrap());
    }
    for n in 0..300 {
        bus.publish(Outgoing::new(format!("work.{n}"), "x")).await.unwrap();
    }
    for n in 0..300 {
        assert_eq!(all.next().await.unwrap().subject, format!("work.{n}"), "in order");
    }
    let mut shares = [0; 3];
    while shares.iter().sum::<i32>() < 300 {
        let next = select_all(members.iter_mut().map(|member| Box::pin(member.next())));
        let (got, who, _) = tokio::time::timeout(PATIENCE, next).await.unwrap_or_else(|_| panic!("{shares:?}"));
        got.unwrap();
        shares[who] += 1;
    }
    for member in &mut members {
        assert!(tokio::time::timeout(Duration::from_millis(100), member.next()).await.is_err(), "each has one taker");
    }
    assert!(shares.iter().all(|share| *share > 0), "{shares:?}");
}

#[tokio::test]
async fn requests_share_one_connection_and_do_not_wait_for_each_other() {
    let server = NatsServer::start();
    let dialer = Direct::to(server.address);
    let bus = client(&server.url(), None, public_roots(), dialer.clone());
    let echo = server.client();
    let mut sub = echo.subscribe("echo", None, Buffer::default()).await.unwrap();
    tokio::spawn(async move {
        while let Ok(got) = sub.next().await {
            if &got.payload[..] != b"never" {
                echo.publish(Outgoing::new(got.reply.unwrap(), got.payload)).await.unwrap();
            }
        }
    });
    let mut stuck = Box::pin(bus.request(Outgoing::new("echo", "never"), 10 * PATIENCE));
    let others = async {
        let asked = (0..500).map(|n| bus.request(Outgoing::new("echo", n.to_string()), PATIENCE));
        for (n, answer) in join_all(asked).await.into_iter().enumerate() {
            assert_eq!(&answer.unwrap().payload[..], n.to_string().as_bytes());
        }
    };
    tokio::select! {
        biased;
        early = &mut stuck => panic!("{early:?}: it ended before the others"),
        () = others => {}
    }
    let late = bus.request(Outgoing::new("echo", "never"), SECOND).await;
    assert_eq!(late, Err(NatsError::TimedOut { ms: 1000 }));
    assert!(futures::poll!(&mut stuck).is_pending());
    assert_eq!(dialer.dials.load(SeqCst), 1);
}

#[tokio::test]
async fn a_message_above_the_servers_limit_is_refused_and_hurts_nobody() {
    let server = NatsServer::with("max_payload: 1000");
    let bus = server.client();
    assert_eq!(bus.check().await.unwrap().max_payload, 1000);
    let mut sub = bus.subscribe("a", None, Buffer::default()).await.unwrap();
    let refused = bus.publish(Outgoing::new("a", vec![0; 1001])).await;
    assert_eq!(refused, Err(NatsError::TooLarge { bytes: 1001, limit: 1000 }));
    let headers = Headers::new().with("a", "b").unwrap();
    let refused = bus.publish(Outgoing { headers, ..Outgoing::new("a", vec![0; 1000]) }).await;
    assert!(matches!(refused, Err(NatsError::TooLarge { .. })), "headers count: {refused:?}");
    bus.publish(Outgoing::new("a", vec![7; 1000])).await.unwrap();
    assert_eq!(sub.next().await.unwrap().payload.len(), 1000);
}

#[tokio::test]
async fn what_is_not_a_subject_never_reaches_the_wire() {
    let bus = client("nats://x", None, public_roots(), Direct::to("127.0.0.1:1".parse().unwrap()));
    for bad in ["a b", "a\r\nPUB x 0\r\n", "", "a.*"] {
        assert!(matches!(bus.publish(Outgoing::new(bad, "")).await, Err(NatsError::Invalid(_))), "{bad}");
    }
    assert!(matches!(bus.subscribe("a", Some("q q"), Buffer::default()).await, Err(NatsError::Invalid(_))));
}

#[tokio::test]
async fn a_slow_reader_loses_its_own_messages_only() {
    let server = NatsServer::start();
    let bus = server.client();
    let mut slow = bus.subscribe("a", None, Buffer { messages: 10, bytes: 1 << 20 }).await.unwrap();
    let mut quick = bus.subscribe("a", None, Buffer::default()).await.unwrap();
    for n in 0..100 {
        bus.publish(Outgoing::new("a", n.to_string())).await.unwrap();
    }
    for n in 0..100 {
        assert_eq!(&quick.next().await.unwrap().payload[..], n.to_string().as_bytes());
    }
    // Of the last one each is told by itself.
    let start = Instant::now();
    while slow.dropped() < 90 && start.elapsed() < PATIENCE {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!((slow.dropped(), quick.dropped()), (90, 0));
    assert_eq!(&slow.next().await.unwrap().payload[..], b"0", "the oldest stay");
}

#[tokio::test]
async fn a_restarted_server_is_found_again_and_subscriptions_with_it() {
    let server = NatsServer::start();
    let (bus, other) = (server.client(), server.client());
    let mut sub = bus.subscribe("a", Some("q"), Buffer::default()).await.unwrap();
    let start = Instant::now();
    let under_way = other.request(Outgoing::new("a", "unanswered"), PATIENCE);
    let restart = async {
        sub.next().await.unwrap();
        server.kill()
    };
    let (lost, restart) = tokio::join!(under_way, restart);
    assert!(matches!(lost, Err(NatsError::Lost(_))), "{lost:?}");
    assert!(start.elapsed() < PATIENCE / 2, "said when the connection broke");
    for _ in 0..100 {
        let down = other.publish(Outgoing::new("a", "")).await;
        assert!(matches!(down, Err(NatsError::Unavailable(_) | NatsError::Lost(_))), "{down:?}");
    }
    assert!(start.elapsed() < PATIENCE, "a call does not wait for a server that is down");
    let server = restart();
    let start = Instant::now();
    let got = loop {
        // Nothing is sent on `bus`: it connects for its subscription alone.
        drop(other.publish(Outgoing::new("a", "again")).await);
        if let Ok(got) = tokio::time::timeout(Duration::from_millis(50), sub.next()).await {
            break got.unwrap();
        }
        assert!(start.elapsed() < 60 * SECOND, "the subscription is not back: {}", server.log());
    };
    assert_eq!(&got.payload[..], b"again");
}

#[tokio::test]
async fn a_server_that_hangs_is_left_and_found_again() {
    let server = NatsServer::start();
    let bus = server.client();
    bus.check().await.unwrap();
    server.signal("-STOP");
    let start = Instant::now();
    let late = bus.request(Outgoing::new("a", ""), Duration::from_millis(300)).await;
    assert_eq!(late, Err(NatsError::TimedOut { ms: 300 }));
    // The late answer made it ask whether the server is there at all; that ends the connection within seconds.
    let lost = bus.request(Outgoing::new("a", ""), PATIENCE).await;
    assert!(matches!(&lost, Err(NatsError::Lost(why)) if why.contains("PING")), "{lost:?}");
    assert!(start.elapsed() < PATIENCE / 2);
    server.signal("-CONT");
    while let Err(cause) = bus.check().await {
        assert!(start.elapsed() < PATIENCE, "not found again: {cause}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn a_server_that_hangs_is_left_also_where_only_subscriptions_are_asked_for() {
    let server = NatsServer::start();
    let bus = server.client();
    bus.check().await.unwrap();
    server.signal("-STOP");
    let late = bus.subscribe("a", None, Buffer::default()).await.err();
    assert!(matches!(late, Some(NatsError::TimedOut { .. })), "{late:?}");
    // The first one that is late makes it ask whether the server is there at all.
    let lost = bus.subscribe("a", None, Buffer::default()).await.err();
    assert!(matches!(&lost, Some(NatsError::Lost(why)) if why.contains("PING")), "{lost:?}");
    server.signal("-CONT");
}

/// A server that takes connections and every byte on them, and says nothing.
async fn mute() -> (std::net::SocketAddr, tokio::task::JoinHandle<()>) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let serve = tokio::spawn(async move {
        let mut connections = tokio::task::JoinSet::new();
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            connections.spawn(async move {
                let mut sink = [0; 1024];
                while stream.read(&mut sink).await.is_ok_and(|count| count > 0) {}
            });
        }
    });
    (address, serve)
}

#[tokio::test]
async fn a_server_that_takes_packets_and_says_nothing_costs_a_call_its_time_and_not_each() {
    const CALLS: usize = 12;
    let (address, serve) = mute().await;
    let bus = || client("nats://x", None, public_roots(), Direct::to(address));
    let start = Instant::now();
    // How long each call of a kind took; each kind has a client of its own.
    let publishes = async {
        let (bus, mut took) = (bus(), Vec::new());
        for _ in 0..CALLS {
            let begun = Instant::now();
            bus.publish(Outgoing::new("a", "")).await.unwrap_err();
            took.push(begun.elapsed());
        }
        took
    };
    let subscribes = async {
        let (bus, mut took) = (bus(), Vec::new());
        for _ in 0..CALLS {
            let begun = Instant::now();
            assert!(bus.subscribe("a", None, Buffer::default()).await.is_err());
            took.push(begun.elapsed());
        }
        took
    };
    let requests = async {
        let (bus, mut took) = (bus(), Vec::new());
        for _ in 0..CALLS {
            let begun = Instant::now();
            bus.request(Outgoing::new("a", ""), SECOND * 5 / 4).await.unwrap_err();
            took.push(begun.elapsed());
        }
        took
    };
    // A caller that gives up by itself, as a component does whose own time is over.
    let given_up = async {
        let (bus, mut took) = (bus(), Vec::new());
        for _ in 0..CALLS {
            let begun = Instant::now();
            drop(tokio::time::timeout(SECOND * 5 / 4, bus.check()).await);
            took.push(begun.elapsed());
        }
        took
    };
    let (a, b, c, d) = tokio::join!(publishes, subscribes, requests, given_up);
    for took in [a, b, c, d] {
        assert!(took[0] >= SECOND, "the first finds out: {took:?}");
        // At most one more finds out again: the pause between is short.
        let slow = took.iter().filter(|took| **took >= SECOND).count();
        assert!(slow <= 2, "{took:?}");
    }
    assert!(start.elapsed() < PATIENCE / 2);
    serve.abort();
}

#[tokio::test]
async fn many_callers_share_one_attempt_to_connect() {
    let dialer = Direct::to("127.0.0.1:1".parse().unwrap());
    let bus = client("nats://nowhere.example", None, public_roots(), dialer.clone());
    let calls = join_all((0..50).map(|_| bus.publish(Outgoing::new("a", "")))).await;
    assert!(calls.iter().all(|call| matches!(call, Err(NatsError::Unavailable(_)))), "{calls:?}");
    assert_eq!(dialer.dials.load(SeqCst), 1);
    *dialer.refuse.lock().unwrap() = Some(DialError::Denied("10.0.0.1 (private) is not granted".into()));
    tokio::time::sleep(Duration::from_millis(60)).await;
    assert!(matches!(bus.check().await, Err(NatsError::Denied(_))));
}

#[tokio::test]
async fn credentials_of_every_kind_are_taken_and_wrong_ones_denied() {
    let key = nkeys::KeyPair::new_user();
    let (seed, other) = (key.seed().unwrap(), nkeys::KeyPair::new_user().seed().unwrap());
    let user = |password: &str| Credentials::User { user: "ann".into(), password: password.to_owned().into() };
    let token = |token: &str| Credentials::Token(token.to_owned().into());
    let by_key = |seed: &str| Credentials::Key { seed: seed.to_owned().into() };
    for (config, right, wrong) in [
        ("authorization { user: ann, password: right }".to_owned(), user("right"), user("hunter2")),
        ("authorization { token: right }".to_owned(), token("right"), token("hunter2")),
        (format!("authorization {{ users: [{{ nkey: {} }}] }}", key.public_key()), by_key(&seed), by_key(&other)),
    ] {
        let server = NatsServer::with(&config);
        let as_whom = |who| client(&server.url(), who, public_roots(), Direct::to(server.address));
        as_whom(Some(right)).check().await.unwrap();
        for who in [Some(wrong), None] {
            let denied = as_whom(who).check().await.unwrap_err();
            assert!(matches!(denied, NatsError::Denied(_)), "{denied:?}");
            assert!(!denied.to_string().contains("hunter2"), "{denied}");
        }
    }
    let server = NatsServer::start();
    let jwt = Credentials::Jwt { jwt: "e.e.e".to_owned().into(), seed: seed.into() };
    let denied = client(&server.url(), Some(jwt), public_roots(), Direct::to(server.address)).check().await;
    assert!(matches!(&denied, Err(NatsError::Denied(why)) if why.contains("nonce")), "{denied:?}");
}

#[tokio::test]
async fn what_is_not_permitted_is_said_and_the_rest_works() {
    let server = NatsServer::with(
        "authorization { users: [{ user: ann, password: pw, permissions: { publish: [\"ok\"], subscribe: [\"ok\", \"_INBOX.>\"] } }] }",
    );
    let who = Credentials::User { user: "ann".into(), password: "pw".to_owned().into() };
    let bus = client(&server.url(), Some(who), public_roots(), Direct::to(server.address));
    let start = Instant::now();
    let denied = bus.subscribe("secret", None, Buffer::default()).await.err();
    assert!(matches!(denied, Some(NatsError::Denied(_))), "{denied:?}");
    let denied = bus.request(Outgoing::new("secret", ""), PATIENCE).await;
    assert!(matches!(denied, Err(NatsError::Denied(_))), "{denied:?}");
    assert!(start.elapsed() < PATIENCE / 2);
    let mut sub = bus.subscribe("ok", None, Buffer::default()).await.unwrap();
    bus.publish(Outgoing::new("ok", "1")).await.unwrap();
    assert_eq!(&sub.next().await.unwrap().payload[..], b"1");
}

fn pem(what: &str, der: &[u8]) -> String {
    let base64 = data_encoding::BASE64.encode(der);
    let lines: Vec<_> = base64.as_bytes().chunks(64).map(String::from_utf8_lossy).collect();
    format!("-----BEGIN {what}-----\n{}\n-----END {what}-----\n", lines.join("\n"))
}

#[tokio::test]
async fn tls_is_used_where_asked_and_the_name_is_checked() {
    let dir = tempfile::tempdir().unwrap();
    let cert = rcgen::generate_simple_self_signed(vec!["bus.example".to_owned()]).unwrap();
    let (cert_file, key_file) = (dir.path().join("cert.pem"), dir.path().join("key.pem"));
    std::fs::write(&cert_file, pem("CERTIFICATE", cert.cert.der())).unwrap();
    std::fs::write(&key_file, pem("PRIVATE KEY", &cert.signing_key.serialize_der())).unwrap();
    let server = NatsServer::with(&format!("tls {{ cert_file: {cert_file:?}, key_file: {key_file:?} }}"));
    let mut roots = rustls::RootCertStore::empty();
    roots.add(cert.cert.der().clone()).unwrap();
    let dialer = Direct::to(server.address);
    // A server that asks for TLS gets it, whatever the URL says.
    for url in ["tls://bus.example", "nats://bus.example"] {
        let bus = client(url, None, roots.clone(), dialer.clone());
        let mut sub = bus.subscribe("a", None, Buffer::default()).await.unwrap();
        bus.publish(Outgoing::new("a", vec![7; 3 << 20])).await.unwrap();
        assert_eq!(sub.next().await.unwrap().payload.len(), 3 << 20);
    }
    for (url, roots) in [("tls://other.example", roots.clone()), ("tls://bus.example", public_roots())] {
        let refused = client(url, None, roots, dialer.clone()).check().await;
        assert!(matches!(&refused, Err(NatsError::Unavailable(why)) if why.contains("TLS")), "{refused:?}");
    }
    let plain = NatsServer::start();
    let refused = client("tls://bus.example", None, roots, Direct::to(plain.address)).check().await;
    assert!(matches!(&refused, Err(NatsError::Denied(why)) if why.contains("TLS")), "{refused:?}");
}

#[tokio::test]
async fn what_only_calls_itself_nats_is_left_in_time() {
    for (says, then_hangs) in [
        ("HTTP/1.1 400 Bad Request\r\n\r\n", false),
        ("INFO {\"max_payload\":1000,\"headers\":true}\r\nnonsense\r\n", false),
        ("INFO {\"max_payload\":1000}\r\nPONG\r\nMSG a 1 999999999\r\n", false),
        ("PING\r\n", false),
        ("INFO [", false),
        ("", true),
        ("INFO {\"max_payload\":1000}\r\n", true),
    ] {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let serve = tokio::spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                tokio::spawn(async move {
                    stream.write_all(says.as_bytes()).await.unwrap();
                    let mut sink = [0; 1024];
                    while then_hangs && stream.read(&mut sink).await.is_ok_and(|count| count > 0) {}
                });
            }
        });
        let start = Instant::now();
        let bus = client("nats://x", None, public_roots(), Direct::to(address));
        let failed = bus.request(Outgoing::new("a", ""), PATIENCE).await;
        let expected =
            matches!(failed, Err(NatsError::Unavailable(_) | NatsError::Lost(_) | NatsError::TimedOut { .. }));
        assert!(expected, "{says:?}: {failed:?}");
        assert!(start.elapsed() < PATIENCE / 2, "{says:?}");
        serve.abort();
    }
}
