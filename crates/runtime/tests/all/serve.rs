//! Requests that go well: both worlds, streaming both ways, what the guest sees and what it does not.

use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame};
use http_body_util::{BodyExt, Empty, Full, StreamBody};
use model::World;
use model::unit::{ByteSize, Millis};
use runtime::{Bindings, Environment, Fault, HttpBodyError, LogStreamKind};

use crate::support::{Config, Rig, call, get, text, until};

#[tokio::test]
async fn hello_in_both_worlds() {
    let rig = Rig::new();
    let p2 = rig.workload("hello");
    assert_eq!(call(&p2, "/").await.unwrap(), (200, "hello".to_owned()));
    let p3 = rig.workload_in("hello-p3", World::P3);
    assert_eq!(call(&p3, "/").await.unwrap(), (200, "hello".to_owned()));
    // A WASI 0.2 handler also runs on the engine of 0.3.
    assert_eq!(call(&rig.workload_in("hello", World::P3), "/").await.unwrap(), (200, "hello".to_owned()));
    for work in [p2, p3] {
        until("the guest ends", || work.meter().in_flight() == 0).await;
        let meter = work.meter().snapshot();
        assert_eq!((meter.calls, meter.failed, meter.instances), (1, 0, 1));
        assert!(meter.cpu_us > 0);
    }
}

#[tokio::test]
async fn a_small_answer_is_whole_when_its_head_comes() {
    let rig = Rig::new();
    for work in [rig.workload("hello"), rig.workload_in("hello-p3", World::P3)] {
        let response = work.handle(get("/")).await.unwrap();
        assert_eq!(response.body().size_hint().exact(), Some(5), "{:?}", response.body());
        assert_eq!(work.meter().in_flight(), 0);
    }
}

#[tokio::test]
async fn the_guest_sees_its_request() {
    let rig = Rig::new();
    let work = rig.workload("probe");
    let seen = call(&work, "/request?a=b").await.unwrap().1;
    assert!(seen.contains("authority: test.localhost\n") && seen.contains("target: /request?a=b\n"), "{seen}");
    let absolute = http::Request::post("https://other.example/request").body(Empty::<Bytes>::new()).unwrap();
    let seen = text(work.handle(absolute).await.unwrap().into_body()).await.unwrap();
    assert!(seen.contains("authority: other.example") && seen.contains("Https") && seen.contains("Post"), "{seen}");
    let hostless = http::Request::get("/request").body(Empty::<Bytes>::new()).unwrap();
    assert!(matches!(work.handle(hostless).await, Err(Fault::BadRequest { .. })));
}

#[tokio::test]
async fn nothing_of_the_host_leaks_in() {
    let rig = Rig::new();
    let seen = call(&rig.workload("probe"), "/env").await.unwrap().1;
    assert!(seen.starts_with("variables: 0\narguments: 0"), "{seen}");
}

#[tokio::test]
async fn variables_that_are_granted_are_the_guests_environment() {
    let mut rig = Rig::new();
    let variables = [("REGION", "eu"), ("ZONE", "b")].map(|(name, value)| (name.to_owned(), value.to_owned()));
    rig.bindings = Bindings::new().with(Arc::new(Environment(variables.into())));
    let seen = call(&rig.workload("probe"), "/env").await.unwrap().1;
    assert_eq!(seen, "variables: 2\narguments: 0\nREGION\nZONE");
}

#[tokio::test]
async fn capabilities_find_their_bindings() {
    let mut rig = Rig::new();
    assert_eq!(call(&rig.workload("probe"), "/config?key=colour").await.unwrap().0, 502);
    rig.bindings = Bindings::new().with(Arc::new(Config([("colour".to_owned(), "teal".to_owned())].into())));
    let work = rig.workload("probe");
    assert_eq!(call(&work, "/config?key=colour").await.unwrap(), (200, "teal".to_owned()));
    assert_eq!(call(&work, "/config?key=shape").await.unwrap().0, 404);
}

#[tokio::test]
async fn the_log_arrives_by_stream_and_line() {
    let rig = Rig::new();
    call(&rig.workload("probe"), "/log?text=hi").await.unwrap();
    let lines = rig.log.lines.lock().unwrap().clone();
    let expected = [
        (LogStreamKind::Stdout, String::new(), "out hi\n".to_owned()),
        (LogStreamKind::Stderr, String::new(), "err hi\n".to_owned()),
        (LogStreamKind::Warn, "probe".to_owned(), "log hi".to_owned()),
    ];
    assert_eq!(lines, expected);
}

type Piece = Result<Frame<Bytes>, HttpBodyError>;

#[tokio::test]
async fn bodies_stream_both_ways() {
    let rig = Rig::new();
    let work = rig.workload("probe");
    let (sender, receiver) = tokio::sync::mpsc::channel::<Piece>(1);
    let stream = futures::stream::unfold(receiver, |mut r| async { r.recv().await.map(|piece| (piece, r)) });
    let request = http::Request::post("/echo").header("host", "a").body(StreamBody::new(Box::pin(stream))).unwrap();
    let mut body = work.handle(request).await.unwrap().into_body();
    for piece in ["one", "two", "three"] {
        sender.send(Ok(Frame::data(Bytes::from_static(piece.as_bytes())))).await.unwrap();
        let echoed = body.frame().await.unwrap().unwrap().into_data().unwrap();
        assert_eq!(echoed, piece);
        assert_eq!(work.meter().in_flight(), 1);
    }
    drop(sender);
    assert!(body.frame().await.is_none());
    until("the guest ends", || work.meter().in_flight() == 0).await;
}

#[tokio::test]
async fn large_bodies_pass_whole() {
    let rig = Rig::new();
    let work = rig.workload("probe");
    let sent: Vec<u8> = (0..3_000_000_u32).map(|i| (i % 251) as u8).collect();
    let request = http::Request::post("/echo").header("host", "a").body(Full::from(sent.clone())).unwrap();
    let body = work.handle(request).await.unwrap().into_body();
    assert!(body.collect().await.unwrap().to_bytes() == sent);
}

#[tokio::test]
async fn a_broken_request_body_breaks_the_echo() {
    let rig = Rig::new();
    let work = rig.workload("probe");
    let pieces: [Piece; 2] = [Ok(Frame::data(Bytes::from_static(b"begin"))), Err(HttpBodyError::ConnectionTerminated)];
    let request =
        http::Request::post("/echo").header("host", "a").body(StreamBody::new(futures::stream::iter(pieces))).unwrap();
    // The guest drops its body unfinished: nobody may take what it wrote for the whole answer.
    let result = match work.handle(request).await {
        Ok(response) => text(response.into_body()).await,
        Err(fault) => Err(fault),
    };
    assert!(matches!(result, Err(Fault::BodyBroken { .. })), "{result:?}");
}

#[tokio::test]
async fn dropping_the_body_ends_the_guest() {
    let mut rig = Rig::new();
    rig.limits.response_body = ByteSize::mib(1024);
    rig.limits.cpu = Millis::secs(60);
    let work = rig.workload("probe");
    let mut body = work.handle(get("/bigresponse")).await.unwrap().into_body();
    assert!(body.frame().await.unwrap().is_ok());
    assert_eq!(work.meter().in_flight(), 1);
    drop(body);
    until("the guest ends", || work.meter().in_flight() == 0).await;
    assert_eq!(work.meter().failed(), 0);
}

#[tokio::test]
async fn dropping_the_call_ends_the_guest() {
    let rig = Rig::new();
    let work = rig.workload("probe");
    let gone = tokio::time::timeout(Duration::from_millis(50), work.handle(get("/park"))).await;
    assert!(gone.is_err());
    until("the guest ends", || work.meter().in_flight() == 0).await;
    let meter = work.meter().snapshot();
    assert_eq!((meter.calls, meter.failed), (1, 0));
}

#[tokio::test]
async fn a_component_without_a_handler_says_so() {
    let rig = Rig::new();
    let work = rig.workload("no-handler");
    work.probe().await.unwrap();
    assert_eq!(call(&work, "/").await, Err(Fault::NoHandler));
}

#[tokio::test]
async fn calls_run_side_by_side() {
    let rig = Rig::new();
    let work = rig.workload("probe");
    // One after the other they take so long every time; the machine may stand still for a while.
    let mut tries = Vec::new();
    while !tries.iter().any(|took| *took < Duration::from_millis(16 * 200)) {
        assert!(tries.len() < 4, "{tries:?}");
        let start = std::time::Instant::now();
        let calls = (0..16).map(|_| call(&work, "/slow?ms=200"));
        for result in futures::future::join_all(calls).await {
            assert_eq!(result.unwrap(), (200, "slow".to_owned()));
        }
        tries.push(start.elapsed());
    }
    assert_eq!(rig.log.dropped.load(SeqCst), 0);
}
