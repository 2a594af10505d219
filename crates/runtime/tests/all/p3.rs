//! WASI 0.3 guests: async bodies, and the same limits as everybody else.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body::Frame;
use http_body_util::{BodyExt, Full, StreamBody};
use model::World;
use model::app::Reuse;
use model::unit::{ByteSize, Millis};
use runtime::{Fault, HttpBodyError, Workload};

use crate::outbound::Client;
use crate::support::{Rig, call, get, text, until};

fn probe(rig: &Rig) -> Arc<Workload> {
    rig.workload_in("probe-p3", World::P3)
}

#[tokio::test]
async fn answers_and_streams() {
    let rig = Rig::new();
    let work = probe(&rig);
    assert_eq!(call(&work, "/").await.unwrap(), (200, "probe".to_owned()));
    assert_eq!(call(&work, "/slow?ms=20").await.unwrap(), (200, "slow".to_owned()));
    assert_eq!(call(&work, "/authority").await.unwrap().1, "test.localhost");
    assert_eq!(call(&work, "/stream?n=40").await.unwrap().1.len(), 40 << 16);
    until("the guests end", || work.meter().in_flight() == 0).await;
    assert_eq!(work.meter().failed(), 0);
}

#[tokio::test]
async fn a_body_that_is_only_passed_on_arrives_whole() {
    let rig = Rig::new();
    let work = probe(&rig);
    let sent: Vec<u8> = (0..1_000_000_u32).map(|i| (i % 251) as u8).collect();
    let request = http::Request::post("/echo").header("host", "a").body(Full::from(sent.clone())).unwrap();
    let body = work.handle(request).await.unwrap().into_body();
    assert!(body.collect().await.unwrap().to_bytes() == sent);
    until("the guest ends", || work.meter().in_flight() == 0).await;
}

#[tokio::test]
async fn what_follows_the_answer_is_finished() {
    let rig = Rig::new();
    let work = probe(&rig);
    let start = Instant::now();
    assert_eq!(call(&work, "/work-after?ms=4000").await.unwrap().1, "done");
    assert_eq!(work.meter().in_flight(), 1, "the answer did not wait for what follows it");
    until("the guest ends", || work.meter().in_flight() == 0).await;
    assert!(start.elapsed() >= Duration::from_millis(4000));
    assert_eq!(work.meter().failed(), 0);
}

#[tokio::test]
async fn limits_hold() {
    let mut rig = Rig::new();
    rig.limits.cpu = Millis(50);
    // Much longer than so much CPU takes on a machine that has much else to do.
    rig.limits.wall = Millis(5000);
    let work = probe(&rig);
    let cpu = Err(Fault::CpuTime { limit: Millis(50) });
    assert_eq!(call(&work, "/spin").await, cpu);
    assert!(work.meter().cpu_us() < 2_000_000, "{}", work.meter().cpu_us());
    assert_eq!(call(&work, "/park").await, Err(Fault::WallTime { limit: Millis(5000) }));
    // After the head: the reader of the body learns of it.
    assert_eq!(call(&work, "/spin-late").await, cpu);
    assert!(matches!(call(&work, "/trap-late").await, Err(Fault::Trap { .. })));
    assert!(matches!(call(&work, "/trap").await, Err(Fault::Trap { .. })));
    assert!(matches!(call(&work, "/refuse").await, Err(Fault::Refused { .. })));
    until("the guests end", || work.meter().in_flight() == 0).await;
    let meter = work.meter().snapshot();
    assert_eq!((meter.calls, meter.failed), (6, 6));
    rig.limits.response_body = ByteSize::mib(1);
    let work = probe(&rig);
    assert_eq!(call(&work, "/stream?n=1000").await, Err(Fault::ResponseTooLarge { limit: ByteSize::mib(1) }));
    until("the guest ends", || work.meter().in_flight() == 0).await;
}

#[tokio::test]
async fn wall_time_ends_a_passed_on_body() {
    let mut rig = Rig::new();
    // Its answer begins within this time also where the machine stands still for a while.
    rig.limits.wall = Millis(8000);
    let work = probe(&rig);
    let never = futures::stream::pending::<Result<Frame<Bytes>, HttpBodyError>>();
    let request = http::Request::post("/echo").header("host", "a").body(StreamBody::new(never)).unwrap();
    let response = work.handle(request).await.unwrap();
    assert_eq!(text(response.into_body()).await, Err(Fault::WallTime { limit: Millis(8000) }));
}

#[tokio::test]
async fn dropping_the_body_ends_the_guest() {
    let rig = Rig::new();
    let work = probe(&rig);
    let mut body = work.handle(get("/stream?n=1000000")).await.unwrap().into_body();
    assert!(body.frame().await.unwrap().is_ok());
    drop(body);
    until("the guest ends", || work.meter().in_flight() == 0).await;
    assert_eq!(work.meter().failed(), 0);
}

#[tokio::test]
async fn outgoing_requests_go_to_the_client() {
    let mut rig = Rig::new();
    // Denied: the guest hands the error code on as its own answer.
    match call(&probe(&rig), "/fetch?example.com").await {
        Err(Fault::Refused { message }) => assert!(message.contains("HttpRequestDenied"), "{message}"),
        other => panic!("{other:?}"),
    }
    rig.outbound = Some(Arc::new(Client::default()));
    assert_eq!(call(&probe(&rig), "/fetch?example.com").await.unwrap(), (201, "from afar".to_owned()));
}

#[tokio::test]
async fn a_reused_instance_serves_on_until_it_traps() {
    let mut rig = Rig::new();
    rig.reuse = Some(Reuse { requests: 100, idle: Millis::secs(60) });
    let work = probe(&rig);
    for _ in 0..10 {
        assert_eq!(call(&work, "/").await.unwrap().1, "probe");
        // What follows its answer may take a moment longer.
        until("it is free again", || work.idle_instances() == 1).await;
    }
    assert_eq!(work.meter().snapshot().instances, 1);
    call(&work, "/trap").await.unwrap_err();
    call(&work, "/").await.unwrap();
    assert_eq!(work.meter().snapshot().instances, 2);
}
