//! HTTP/2 with prior knowledge: the same rules as HTTP/1, and nothing that HTTP/1 cannot express gets to a host.

use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::Frame;
use hyper::client::conn::http2::{SendRequest, handshake};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::mpsc;

use super::faults::{scripted, wait_until};
use super::rig::{BODY_LIMIT, PATIENCE, Rig, table};

pub(super) type Body = http_body_util::combinators::BoxBody<Bytes, std::convert::Infallible>;

pub(super) fn full(text: impl Into<Bytes>) -> Body {
    Full::new(text.into()).boxed()
}

pub(super) async fn client(rig: &Rig) -> SendRequest<Body> {
    let (client, connection) = handshake(TokioExecutor::new(), TokioIo::new(rig.connect().await)).await.unwrap();
    tokio::spawn(connection);
    client
}

pub(super) async fn ask(client: &mut SendRequest<Body>, request: Request<Body>) -> (u16, http::HeaderMap, Bytes) {
    let sent = async {
        let response = client.send_request(request).await.unwrap();
        let (parts, body) = response.into_parts();
        (parts.status.as_u16(), parts.headers, body.collect().await.unwrap().to_bytes())
    };
    tokio::time::timeout(PATIENCE, sent).await.unwrap()
}

#[tokio::test]
async fn requests_of_one_connection_run_side_by_side() {
    let rig = Rig::new(1);
    let client = client(&rig).await;
    let all = (0..20).map(|n| {
        let mut client = client.clone();
        async move { ask(&mut client, Request::get(format!("http://h/held?{n}")).body(full("")).unwrap()).await }
    });
    // None is answered before all of them are with the host.
    let together = async {
        wait_until(|| rig.record.lock().unwrap().len() == 20).await;
        rig.release();
    };
    let (answers, ()) = tokio::join!(futures::future::join_all(all), together);
    for (n, (status, headers, body)) in answers.into_iter().enumerate() {
        assert_eq!((status, body), (200, Bytes::from(format!("GET /held?{n} from 0"))));
        assert!(!headers.contains_key("sidereal-secret"));
    }
    for seen in rig.seen() {
        assert_eq!(seen.headers["host"], "h");
        assert_eq!(seen.headers["sidereal-route"], "shop/1/web");
        assert_eq!(seen.headers["x-forwarded-for"], "127.0.0.1");
    }
}

#[tokio::test]
async fn bodies_and_statuses() {
    let rig = Rig::new(1);
    let mut client = client(&rig).await;
    let (status, _, body) = ask(&mut client, Request::put("http://h/x").body(full("abc")).unwrap()).await;
    assert_eq!((status, body), (200, Bytes::from("PUT /x from 0")));
    assert_eq!(rig.seen()[0].body.as_deref(), Some(b"abc".as_slice()));
    let (status, headers, body) = ask(&mut client, Request::head("http://h/x").body(full("")).unwrap()).await;
    assert_eq!((status, &headers["content-length"], body.len()), (200, &"14".parse().unwrap(), 0));
    let (status, _, body) = ask(&mut client, Request::get("http://h/large").body(full("")).unwrap()).await;
    assert_eq!((status, body.len()), (200, 256 * 64 * 1024));
    let (status, _, _) = ask(&mut client, Request::get("http://h/none").body(full("")).unwrap()).await;
    assert_eq!(status, 204);
    let (status, headers, _) = ask(&mut client, Request::delete("http://h/read").body(full("")).unwrap()).await;
    assert_eq!((status, &headers["allow"]), (405, &"GET, HEAD".parse().unwrap()));
    let (status, _, _) = ask(&mut client, Request::get("http://nobody.test/").body(full("")).unwrap()).await;
    assert_eq!(status, 404);
    let large = vec![0; usize::try_from(BODY_LIMIT).unwrap() + 1];
    let (status, _, _) = ask(&mut client, Request::post("http://h/x").body(full(large)).unwrap()).await;
    assert_eq!(status, 413);
    assert_eq!(rig.shards.shards()[0].in_flight(), 0);
}

#[tokio::test]
async fn bodies_stream_in_both_directions_at_once() {
    let rig = Rig::new(1);
    let mut client = client(&rig).await;
    let (pieces, body) = mpsc::channel::<Bytes>(1);
    let body = futures::stream::unfold(body, |mut body| async {
        let piece = body.recv().await?;
        Some((Ok(Frame::data(piece)), body))
    });
    let request = Request::post("http://h/echo").body(StreamBody::new(body).boxed()).unwrap();
    let response = client.send_request(request).await.unwrap();
    let mut echoed = response.into_body();
    for piece in ["one", "two", "three"] {
        pieces.send(piece.into()).await.unwrap();
        assert_eq!(echoed.frame().await.unwrap().unwrap().into_data().unwrap(), piece);
    }
    drop(pieces);
    assert_eq!(echoed.collect().await.unwrap().to_bytes(), "");
}

#[tokio::test]
async fn cookies_that_a_client_split_are_one() {
    let rig = Rig::new(1);
    let mut client = client(&rig).await;
    let crumbs =
        Request::get("http://h/x").header("cookie", "a=1").header("cookie", "b=2").header("cookie", "c=3; d=4");
    let (status, _, _) = ask(&mut client, crumbs.body(full("")).unwrap()).await;
    assert_eq!(status, 200);
    let (status, _, _) = ask(&mut client, Request::get("http://h/x").body(full("")).unwrap()).await;
    assert_eq!(status, 200);
    let seen = rig.seen();
    assert_eq!(seen[0].headers.get_all("cookie").iter().collect::<Vec<_>>(), ["a=1; b=2; c=3; d=4"]);
    assert!(!seen[1].headers.contains_key("cookie"));
}

/// A frame of HTTP/2.
pub(super) fn frame(kind: u8, flags: u8, stream: u8, payload: &[u8]) -> Vec<u8> {
    let length = u8::try_from(payload.len()).unwrap();
    [&[0, 0, length, kind, flags, 0, 0, 0, stream], payload].concat()
}

/// A client's first bytes, with these settings.
pub(super) fn opened(settings: &[u8]) -> Vec<u8> {
    [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(), frame(4, 0, 0, settings)].concat()
}

/// A client's first bytes with a POST whose body is there at once: `:method`, `:scheme` and `:path` of the static table,
/// `:authority` as a literal.
fn posted(body: &[u8]) -> Vec<u8> {
    [opened(b""), frame(1, 4, 1, &[0x83, 0x86, 0x84, 0x01, 1, b'h']), frame(0, 1, 1, body)].concat()
}

#[tokio::test]
async fn a_revision_the_host_no_longer_has_is_looked_up_again() {
    let rig = Rig::new(1);
    let (routes, shards) = (rig.routes.clone(), rig.shards.clone());
    let stays = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let table_stays = stays.clone();
    // The table changes between the look-up and the host's answer, as in a deploy or when a host is given up.
    let (gone, _dir) = scripted(move |_, _, request| {
        // What else comes is a piece of a body.
        if request.contains("sidereal-route: shop/1/") && !table_stays.load(std::sync::atomic::Ordering::SeqCst) {
            routes.store(table(&shards, "2"));
        }
        Some("HTTP/1.1 503 x\r\nsidereal-fault: not-found\r\ncontent-length: 4\r\n\r\ngone".into())
    });
    let mut client = client(&rig).await;
    rig.routes.store(table(&gone, "1"));
    let (status, _, body) = ask(&mut client, Request::get("http://h/x").body(full("")).unwrap()).await;
    assert_eq!((status, body), (200, Bytes::from("GET /x from 0")));
    assert_eq!(rig.seen()[0].headers["sidereal-route"], "shop/2/web");

    // A body that is there goes along.
    rig.routes.store(table(&gone, "1"));
    let mut stream = rig.connect().await;
    stream.write_all(&posted(b"abc")).await.unwrap();
    super::rig::read_until(&mut stream, "POST / from 0").await;
    let seen = rig.seen();
    assert_eq!(
        (&seen[0].headers["sidereal-route"], seen[0].body.as_deref()),
        (&"shop/2/web".parse().unwrap(), Some(b"abc".as_slice()))
    );

    // The same route is still there: the host's answer stands.
    stays.store(true, std::sync::atomic::Ordering::SeqCst);
    rig.routes.store(table(&gone, "1"));
    let (status, headers, body) = ask(&mut client, Request::get("http://h/x").body(full("")).unwrap()).await;
    assert_eq!((status, &headers["sidereal-fault"], body), (503, &"not-found".parse().unwrap(), Bytes::from("gone")));
    assert!(rig.seen().is_empty());
}

#[tokio::test]
async fn what_cannot_be_said_in_one_way_is_refused() {
    let rig = Rig::new(1);
    let mut client = client(&rig).await;
    let get = |uri: &str| Request::get(uri.to_owned());
    for (name, request) in [
        ("authority and host differ", get("http://h/").header("host", "evil")),
        ("two hosts", get("http://h/").header("host", "h").header("host", "h")),
        ("dot segments", get("http://h/a/../b")),
        ("encoded NUL", get("http://h/%00")),
        ("disguised length", get("http://h/").header("content_length", "4")),
        ("disguised coding", get("http://h/").header("transfer_encoding", "chunked")),
        ("port out of range", get("http://h:99999/")),
    ] {
        let (status, _, _) = ask(&mut client, request.body(full("")).unwrap()).await;
        assert_eq!(status, 400, "{name}");
    }
    // A body with TRACE is one that somebody may not read (RFC 9110, 9.3.8); without one it is a method like others.
    let trace = || Request::builder().method("TRACE").uri("http://h/traced");
    for body in ["abc", super::vectors::SMUGGLED] {
        let (status, _, _) = ask(&mut client, trace().body(full(body)).unwrap()).await;
        assert_eq!(status, 400, "TRACE with a body");
    }
    let streamed = futures::stream::iter([Ok(Frame::data(Bytes::from("abc")))]);
    let (status, _, _) = ask(&mut client, trace().body(StreamBody::new(streamed).boxed()).unwrap()).await;
    assert_eq!(status, 400, "TRACE with a body of unknown length");
    let mut crowded = get("http://h/");
    // With its authority it has one more than HTTP/1 takes.
    for n in 0..100 {
        crowded = crowded.header(format!("x-{n}"), "1");
    }
    let (status, _, _) = ask(&mut client, crowded.body(full("")).unwrap()).await;
    assert_eq!(status, 431);
    assert!(rig.seen().is_empty());
    let (status, _, _) = ask(&mut client, trace().body(full("")).unwrap()).await;
    assert_eq!((status, rig.seen().len()), (200, 1), "TRACE without one");
    let forged =
        get("http://h/").header("sidereal-route", "x").header("x-forwarded-for", "8.8.8.8").header("te", "trailers");
    let (status, _, _) = ask(&mut client, forged.body(full("")).unwrap()).await;
    assert_eq!(status, 200);
    let seen = rig.seen();
    assert_eq!(seen[0].headers["sidereal-route"], "shop/1/web");
    assert_eq!(seen[0].headers.get_all("x-forwarded-for").iter().collect::<Vec<_>>(), ["127.0.0.1"]);
    assert!(!seen[0].headers.contains_key("te"));
}

#[tokio::test]
async fn a_stream_that_is_reset_ends_its_call() {
    let rig = Rig::new(1);
    let mut client = client(&rig).await;
    let hang = client.send_request(Request::get("http://h/hang").body(full("")).unwrap());
    tokio::select! {
        answer = hang => panic!("{answer:?}"),
        () = wait_until(|| rig.record.lock().unwrap().len() == 1) => {}
    }
    wait_until(|| rig.shards.shards()[0].in_flight() == 0).await;
    assert_eq!(rig.seen().len(), 1);
    let (status, _, _) = ask(&mut client, Request::get("http://h/").body(full("")).unwrap()).await;
    assert_eq!(status, 200);
}

#[tokio::test]
async fn a_flood_of_resets_ends_the_connection() {
    let rig = Rig::new(1);
    let mut stream = rig.connect().await;
    let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    bytes.extend_from_slice(&[0, 0, 0, 4, 0, 0, 0, 0, 0]);
    // `:method GET`, `:scheme http`, `:path /`, `:authority h`, by the static table.
    let head = [0x82, 0x86, 0x84, 0x41, 1, b'h'];
    for n in 0..20_000u32 {
        let stream_id = (n * 2 + 1).to_be_bytes();
        bytes.extend_from_slice(&[0, 0, head.len() as u8, 1, 5]);
        bytes.extend_from_slice(&stream_id);
        bytes.extend_from_slice(&head);
        bytes.extend_from_slice(&[0, 0, 4, 3, 0]);
        bytes.extend_from_slice(&stream_id);
        bytes.extend_from_slice(&[0, 0, 0, 8]);
    }
    let flood = async {
        // Ends early, because the other side closes.
        let _ = stream.write_all(&bytes).await;
        let _ = stream.read_to_end(&mut Vec::new()).await;
    };
    tokio::time::timeout(PATIENCE, flood).await.unwrap();
    assert!(rig.seen().len() < 2000);
    assert_eq!(super::rig::status(&rig.get("/").await), 200);
}

#[tokio::test]
async fn draining_finishes_streams() {
    let mut rig = Rig::new(1);
    let mut client = client(&rig).await;
    let mut other = client.clone();
    let held =
        tokio::spawn(async move { ask(&mut client, Request::get("http://h/held").body(full("")).unwrap()).await });
    wait_until(|| !rig.record.lock().unwrap().is_empty()).await;
    let mut draining = Box::pin(rig.ingress.take().unwrap().drain(PATIENCE));
    assert!(futures::poll!(&mut draining).is_pending(), "it has begun");
    rig.release();
    assert_eq!(held.await.unwrap().0, 200);
    tokio::time::timeout(PATIENCE / 2, draining).await.unwrap();
    assert!(other.send_request(Request::get("http://h/").body(full("")).unwrap()).await.is_err());
}
