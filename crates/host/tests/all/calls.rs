//! Calls: how they reach a component, what it sees, and how each way to fail is said.

use std::sync::atomic::Ordering::SeqCst;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::future::join_all;
use http::Request;
use http_body_util::{BodyExt, Full};
use model::unit::{ByteSize, Millis};
use model::{LockedApp, World};

use crate::rig::{Answer, Rig, request, until};

fn limit(app: &mut LockedApp, change: impl FnOnce(&mut model::Limits)) {
    change(&mut app.components.values_mut().next().unwrap().limits);
}

#[tokio::test]
async fn both_worlds_answer() {
    let rig = Rig::new().await;
    rig.run(&rig.app("hello", "hello")).await;
    rig.run(&rig.app_in("three", "hello-p3", World::P3)).await;
    let two = rig.get("hello/1/main", "/").await;
    let three = rig.get("three/1/main", "/").await;
    assert_eq!((two.status, three.status), (200, 200));
    assert!(!two.text.is_empty() && !three.text.is_empty());
    let status = rig.status("hello").await;
    assert_eq!((status.loaded, status.calls, status.failed, status.in_flight), (true, 1, 0, 0));
    assert!(status.cpu_us > 0);
}

#[tokio::test]
async fn code_is_brought_by_the_first_call_and_only_once() {
    let rig = Rig::new().await;
    rig.start(&rig.app("one", "hello"), 1, false).await.unwrap();
    rig.start(&rig.app("two", "hello"), 1, false).await.unwrap();
    assert!(!rig.status("one").await.loaded);
    assert_eq!(rig.node.compiled_asked.load(SeqCst), 0);
    let calls = join_all((0..40).map(|n| rig.get(if n % 2 == 0 { "one/1/main" } else { "two/1/main" }, "/"))).await;
    assert!(calls.iter().all(|answer| answer.status == 200));
    assert_eq!(rig.node.compiled_asked.load(SeqCst), 1, "two apps of one artifact share its code");
}

#[tokio::test]
async fn a_component_sees_its_caller_and_nothing_of_the_platform() {
    let rig = Rig::new().await;
    rig.run(&rig.app("probe", "probe")).await;
    let mut asked = request("probe/1/main", "/request?a=b");
    asked.headers_mut().insert("sidereal-secret", "x".parse().unwrap());
    asked.headers_mut().insert("sidereal-fault", "x".parse().unwrap());
    asked.headers_mut().insert("x-forwarded-proto", "https".parse().unwrap());
    asked.headers_mut().insert("x-mine", "kept".parse().unwrap());
    let seen = rig.answer(asked).await;
    assert_eq!(seen.status, 200);
    assert!(!seen.text.contains("sidereal"), "{}", seen.text);
    assert!(seen.text.contains("authority: app.localhost:8080\n"), "{}", seen.text);
    assert!(seen.text.to_lowercase().contains("scheme: some(scheme::https)"), "{}", seen.text);
    assert!(seen.text.contains("target: /request?a=b\n") && seen.text.contains("x-mine: kept\n"), "{}", seen.text);
    let environment = rig.get("probe/1/main", "/env").await;
    assert!(environment.text.starts_with("variables: 0\narguments: 0"), "{}", environment.text);
}

#[tokio::test]
async fn a_request_for_what_is_not_here_can_be_sent_elsewhere() {
    let rig = Rig::new().await;
    rig.run(&rig.app("hello", "hello")).await;
    for route in ["hello/2/main", "hello/1/other", "hello", "", "other/1/main", "hello/1/main/", "HELLO/1/main"] {
        assert_eq!(rig.get(route, "/").await.fault(), (503, "not-found"), "{route}");
    }
    let unmarked = Request::get("/").header("host", "x").body(Full::default()).unwrap();
    assert_eq!(rig.answer(unmarked).await.fault(), (400, "request-invalid"));
}

#[tokio::test]
async fn one_call_too_many_is_refused_and_told_when_to_come_back() {
    let rig = Rig::new().await;
    let mut app = rig.app("probe", "probe");
    limit(&mut app, |limits| limits.concurrency = 2);
    rig.run(&app).await;
    let slow = async { join_all((0..2).map(|_| rig.get("probe/1/main", "/slow?ms=5000"))).await };
    let refused = async {
        until("two calls are in flight", || async { rig.status("probe").await.in_flight == 2 }).await;
        rig.send(request("probe/1/main", "/")).await.unwrap()
    };
    let (slow, refused) = tokio::join!(slow, refused);
    assert_eq!(refused.headers()["retry-after"], "1");
    assert_eq!(Answer::of(refused).await.fault(), (503, "busy"));
    assert!(slow.iter().all(|answer| *answer == Answer::ok("slow")), "{slow:?}");
    until("their places are free", || async { rig.status("probe").await.in_flight == 0 }).await;
    assert_eq!(rig.get("probe/1/main", "/").await.status, 200);
    assert_eq!(rig.status("probe").await.refused, 1);
}

/// The ingress takes so many and no more: the caller would be told that the host had failed.
#[tokio::test]
async fn an_answer_with_more_header_fields_than_can_be_sent_is_the_components_fault() {
    let rig = Rig::new().await;
    rig.run(&rig.app("probe", "probe")).await;
    assert_eq!(rig.send(request("probe/1/main", "/headers?n=96")).await.unwrap().status(), 200);
    let refused = rig.get("probe/1/main", "/headers?n=97").await;
    assert_eq!(refused.fault(), (500, "limit-reached"));
    assert!(refused.text.contains("97 header fields"), "{}", refused.text);
    let status = rig.status("probe").await;
    assert_eq!((status.failed, status.last_fault), (1, Some(refused.text.trim().to_owned())));
}

#[tokio::test]
async fn a_streamed_answer_holds_its_place_until_it_ends() {
    let rig = Rig::new().await;
    rig.run(&rig.app("probe", "probe")).await;
    let response = rig.send(request("probe/1/main", "/bigresponse?bytes=50000000")).await.unwrap();
    assert_eq!(response.status(), 200);
    assert_eq!(rig.status("probe").await.in_flight, 1);
    drop(response);
    until("a caller that hangs up ends its call", || async { rig.status("probe").await.in_flight == 0 }).await;
}

#[tokio::test]
async fn a_guest_that_goes_on_after_its_answer_keeps_its_place_and_ends_with_its_revision() {
    let rig = Rig::new().await;
    let mut app = rig.app_in("probe", "probe-p3", World::P3);
    limit(&mut app, |limits| {
        limits.concurrency = 1;
        limits.wall = Millis(600_000);
    });
    rig.run(&app).await;
    assert_eq!(rig.get("probe/1/main", "/work-after?ms=6000").await, Answer::ok("done"));
    assert_eq!(rig.status("probe").await.in_flight, 1);
    assert_eq!(rig.get("probe/1/main", "/").await.fault(), (503, "busy"));
    until("the guest ends", || async { rig.status("probe").await.in_flight == 0 }).await;
    assert_eq!(rig.get("probe/1/main", "/work-after?ms=600000").await, Answer::ok("done"));
    let began = Instant::now();
    rig.drain("probe", 1, Duration::from_millis(50)).await;
    assert!(began.elapsed() < Duration::from_secs(60), "{:?}", began.elapsed());
}

#[tokio::test]
async fn bodies_have_their_limits() {
    let rig = Rig::new().await;
    let mut app = rig.app("probe", "probe");
    limit(&mut app, |limits| {
        limits.request_body = ByteSize::kib(64);
        limits.response_body = ByteSize::kib(64);
    });
    rig.run(&app).await;
    let post = |size: usize| {
        let mut request = request("probe/1/main", "/echo");
        *request.method_mut() = http::Method::POST;
        request.map(|_| Full::new(Bytes::from(vec![b'x'; size])))
    };
    assert_eq!(rig.answer(post(64 << 10)).await.text.len(), 64 << 10);
    assert_eq!(rig.answer(post((64 << 10) + 1)).await.fault(), (413, "too-large"));
    let broken = rig.send(request("probe/1/main", "/bigresponse")).await;
    // Depending on how far it came: no answer, or one that breaks off. Never one that looks whole.
    if let Ok(response) = broken {
        assert!(response.into_body().collect().await.is_err());
    }
}

#[tokio::test]
async fn whatever_a_component_does_is_an_answer_and_the_host_goes_on() {
    let rig = Rig::new().await;
    let mut app = rig.app("probe", "probe");
    // Who computes gives way to whatever else this machine does: that is no matter of seconds.
    limit(&mut app, |limits| (limits.cpu, limits.wall) = (Millis(60), Millis::secs(600)));
    rig.run(&app).await;
    let mut short = rig.app("short", "probe");
    limit(&mut short, |limits| limits.wall = Millis(3000));
    rig.run(&short).await;
    let cases = [
        ("/spin", 500, "limit-reached"),
        ("/recurse", 500, "limit-reached"),
        ("/alloc", 500, "limit-reached"),
        ("/handles", 500, "limit-reached"),
        ("/hostcopy", 500, "limit-reached"),
        ("/hostcalls", 500, "limit-reached"),
        ("/park", 504, "timed-out"),
        ("/trap", 500, "component-trapped"),
        ("/nobody", 500, "component-trapped"),
    ];
    for (target, status, fault) in cases {
        let route = if fault == "timed-out" { "short/1/main" } else { "probe/1/main" };
        let answer = rig.get(route, target).await;
        assert_eq!(answer.fault(), (status, fault), "{target}: {answer:?}");
        assert_eq!(answer.text.lines().count(), 1, "one sentence: {answer:?}");
        assert_eq!(rig.get(route, "/").await, Answer::ok("probe"), "after {target}");
    }
    let (state, short) = (rig.status("probe").await, rig.status("short").await);
    assert_eq!(state.failed + short.failed, cases.len() as u64);
    assert!(state.last_fault.is_some() && short.last_fault.is_some());
}

#[tokio::test]
async fn endless_loops_do_not_keep_others_from_their_answer() {
    let rig = Rig::new().await;
    let mut app = rig.app("probe", "probe");
    // Four times so much of a processor that others use as well is no matter of seconds.
    limit(&mut app, |limits| (limits.cpu, limits.wall) = (Millis(2000), Millis::secs(600)));
    rig.run(&app).await;
    rig.run(&rig.app("hello", "hello")).await;
    let looping = async { join_all((0..4).map(|_| rig.get("probe/1/main", "/spin"))).await };
    let others = async {
        until("they loop", || async { rig.status("probe").await.in_flight == 4 }).await;
        for _ in 0..5 {
            assert_eq!(rig.get("hello/1/main", "/").await.status, 200);
        }
        assert_eq!(rig.status("probe").await.in_flight, 4, "they still loop");
    };
    let (ended, ()) = tokio::join!(looping, others);
    assert!(ended.iter().all(|answer| answer.fault() == (500, "limit-reached")), "{ended:?}");
}

#[tokio::test]
async fn a_component_cannot_speak_for_the_platform() {
    let rig = Rig::new().await;
    rig.run(&rig.app("probe", "probe")).await;
    let answer = rig.get("probe/1/main", "/status?code=503").await;
    assert_eq!((answer.status, answer.fault), (503, None));
}

#[tokio::test]
async fn code_beyond_the_budget_of_bytes_makes_room_too() {
    let rig = Rig::with(|settings| settings.code_budget = 1).await;
    let apps = ["a", "b"];
    for name in apps {
        let mut app = rig.app(name, "hello");
        let digest = crate::rig::digest(name);
        rig.node.offer_as(digest, "hello");
        app.components.values_mut().next().unwrap().digest = digest;
        rig.start(&app, 1, false).await.unwrap();
        assert_eq!(rig.get(&format!("{name}/1/main"), "/").await.status, 200);
    }
    assert_eq!((rig.status("a").await.loaded, rig.status("b").await.loaded), (false, true));
    assert_eq!(rig.get("a/1/main", "/").await.status, 200, "what was unloaded is loaded again");
}

#[tokio::test]
async fn code_that_was_idle_longest_makes_room() {
    let rig = Rig::with(|settings| settings.max_loaded = 2).await;
    let apps = ["a", "b", "c"];
    for name in apps {
        let mut app = rig.app(name, "hello");
        let digest = crate::rig::digest(name);
        rig.node.offer_as(digest, "hello");
        app.components.values_mut().next().unwrap().digest = digest;
        rig.start(&app, 1, false).await.unwrap();
    }
    for name in apps {
        assert_eq!(rig.get(&format!("{name}/1/main"), "/").await.status, 200);
    }
    let mut loaded = Vec::new();
    for name in apps {
        loaded.push(rig.status(name).await.loaded);
    }
    assert_eq!(loaded, [false, true, true]);
    assert_eq!(rig.get("a/1/main", "/").await.status, 200);
    let status = rig.status("a").await;
    assert_eq!((status.loaded, status.calls), (true, 2), "what was counted before is not forgotten");
    assert_eq!(rig.node.compiled_asked.load(SeqCst), 4);
}
