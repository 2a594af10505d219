//! How revisions and the host itself begin and end.

use std::sync::atomic::Ordering::SeqCst;
use std::time::{Duration, Instant};

use api::Code;
use api::agent::AGENT_SOCKET;
use host::HostError;
use http::{Method, Request};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;
use model::unit::Millis;
use tokio::net::UnixStream;

use crate::rig::{Answer, Rig, code, digest, until};

const LONG: Duration = Duration::from_secs(20);

#[tokio::test]
async fn a_host_says_who_it_is() {
    let rig = Rig::new().await;
    let info = rig.agent.info().await.unwrap();
    assert_eq!((info.tenant.as_str(), info.shard, info.pid), ("acme", 1, std::process::id()));
    assert_eq!(info.fingerprints.len(), 2);
    for interface in ["wasi:keyvalue/store@0.2.0-draft", "wasi:config/store@0.2.0-rc.1", "wasi:logging/logging"] {
        assert!(info.interfaces.iter().any(|offered| offered == interface), "{interface}");
    }
    assert!(rig.agent.status(1 << 20).await.unwrap().rss > 1 << 20);
}

#[tokio::test]
async fn starting_the_same_again_changes_nothing_and_another_is_refused() {
    let rig = Rig::new().await;
    let app = rig.app("hello", "hello");
    rig.run(&app).await;
    assert_eq!(rig.get("hello/1/main", "/").await.status, 200);
    rig.run(&app).await;
    assert_eq!(rig.status("hello").await.calls, 1);
    let mut other = app.clone();
    other.version = Some("2".into());
    assert_eq!(code(rig.start(&other, 1, true).await), Code::Conflict);
    assert_eq!(rig.get("hello/1/main", "/").await.status, 200);
}

#[tokio::test]
async fn what_cannot_start_says_why_and_leaves_nothing() {
    let rig = Rig::new().await;
    assert_eq!(code(rig.start(&rig.app("a", "wants-unknown"), 1, true).await), Code::LinkMissing);
    assert_eq!(code(rig.start(&rig.app("b", "start-spin"), 1, true).await), Code::ProbeFailed);
    let mut missing = rig.app("c", "hello");
    missing.components.values_mut().next().unwrap().digest = digest("nobody has this");
    let refused = rig.start(&missing, 1, true).await.unwrap_err();
    assert_eq!(refused.code, Code::StartFailed);
    assert!(refused.detail.contains("no such artifact"), "{}", refused.detail);
    let mut hosts = rig.app("d", "hello");
    hosts.components.values_mut().next().unwrap().allow_hosts = vec!["everywhere".into()];
    assert_eq!(code(rig.start(&hosts, 1, true).await), Code::StartFailed);
    assert!(rig.agent.status(1 << 20).await.unwrap().apps.is_empty());

    // Without loading first, the same is found by the first call.
    rig.start(&missing, 1, false).await.unwrap();
    assert_eq!(rig.get("c/1/main", "/").await.fault(), (503, "start-failed"));
}

/// As after a start with another engine: what served is here at once, and the node has its code made.
#[tokio::test]
async fn calls_wait_for_code_that_is_still_being_made() {
    let rig = Rig::new().await;
    let (hello, probe) = (rig.app("a", "hello"), rig.app("p", "probe"));
    rig.start(&hello, 1, false).await.unwrap();
    rig.node.unmade.store(3, SeqCst);
    let (one, two) = tokio::join!(rig.get("a/1/main", "/"), rig.get("a/1/main", "/"));
    assert_eq!((one.status, two.status), (200, 200), "{one:?} {two:?}");
    assert_eq!(rig.node.compiled_asked.load(SeqCst), 4, "it is asked for once, until it is there");

    // Others come past it: more than a host asks for at once wait for theirs.
    let mut waits = rig.app("w", "hello");
    rig.node.made.lock().unwrap().extend(probe.components.values().map(|component| component.digest));
    for n in 0..40_u8 {
        let mut component = waits.components.values().next().unwrap().clone();
        component.digest = digest(&format!("w{n}"));
        waits.components.insert(format!("w{n}").parse().unwrap(), component);
    }
    rig.start(&waits, 1, false).await.unwrap();
    rig.node.unmade.store(u32::MAX, SeqCst);
    let routes: Vec<_> = (0..40).map(|n| format!("w/1/w{n}")).collect();
    let all = futures::future::join_all(routes.iter().map(|route| rig.get(route, "/")));
    let others = async {
        until("each waits", || async { rig.agent.status(1 << 20).await.unwrap().in_flight == 40 }).await;
        rig.start(&probe, 1, false).await.unwrap();
        assert_eq!(rig.get("p/1/main", "/").await, Answer::ok("probe"));
        // They are over with their revision, and nothing of it has run.
        rig.drain("w", 1, Duration::ZERO).await
    };
    let (all, ended) = tokio::join!(all, others);
    assert_eq!(ended, 40);
    assert!(all.iter().all(|answer| answer.fault() == (503, "not-found")), "{all:?}");
}

/// A caller waits as long as its call may take, or the moment that every load may take, and is told to come again.
#[tokio::test]
async fn code_that_is_not_made_in_time_is_asked_for_again_later() {
    let rig = Rig::new().await;
    let mut app = rig.app("a", "hello");
    app.components.values_mut().next().unwrap().limits.wall = Millis(1);
    rig.start(&app, 1, false).await.unwrap();
    rig.node.unmade.store(u32::MAX, SeqCst);
    assert_eq!(rig.get("a/1/main", "/").await.fault(), (503, "busy"));
    assert_eq!(rig.status("a").await.in_flight, 0);
}

#[tokio::test]
async fn the_agent_api_reads_strictly() {
    let rig = Rig::new().await;
    let ask = async |method: Method, path: &str, body: &str| {
        let stream = UnixStream::connect(rig.dir.path().join(AGENT_SOCKET)).await.unwrap();
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        let request = Request::builder().method(method).uri(path).header("host", "host");
        let response =
            sender.send_request(request.body(Full::<bytes::Bytes>::from(body.to_owned())).unwrap()).await.unwrap();
        assert_eq!(response.headers()["content-type"], "application/problem+json");
        let body = response.into_body().collect().await.unwrap().to_bytes();
        serde_json::from_slice::<api::Problem>(&body).unwrap().code
    };
    let app = serde_json::to_string(&rig.app("hello", "hello")).unwrap();
    let start = format!(r#"{{"app":{app},"load":true}}"#);
    for (path, body) in [
        ("/v1/apps/hello/revisions/1", ""),
        ("/v1/apps/hello/revisions/1", "{}"),
        ("/v1/apps/hello/revisions/1", &format!("{start}x")),
        ("/v1/apps/hello/revisions/one", &start),
        ("/v1/apps/HELLO/revisions/1", &start),
        ("/v1/apps/other/revisions/1", &start),
        ("/v1/apps/hello/revisions/1", "[1"),
    ] {
        assert_eq!(ask(Method::PUT, path, body).await, Code::RequestInvalid, "{path} {body}");
    }
    for (method, path) in [
        (Method::GET, "/"),
        (Method::GET, "/v2/info"),
        (Method::GET, "/v1/info/x"),
        (Method::POST, "/v1/info"),
        (Method::GET, "/v1/apps/hello/revisions/1"),
        (Method::PUT, "/v1/apps/hello/revisions/1/2"),
        (Method::DELETE, "/v1/apps/hello/revisions/1"),
        (Method::POST, "/v1/apps/hello/revisions/1/drain/x"),
    ] {
        assert_eq!(ask(method.clone(), path, "{}").await, Code::NotFound, "{method} {path}");
    }
    assert_eq!(ask(Method::PUT, "/v1/apps/hello/revisions/1", &" ".repeat(17 << 20)).await, Code::TooLarge);
}

#[tokio::test]
async fn a_drained_revision_finishes_its_calls_and_is_gone() {
    let rig = Rig::new().await;
    let app = rig.app("probe", "probe");
    rig.run(&app).await;
    rig.start(&app, 2, true).await.unwrap();
    let slow = rig.get("probe/1/main", "/slow?ms=4000");
    let drained = async {
        until("the call is in flight", || async { rig.status("probe").await.in_flight == 1 }).await;
        // A call sent before its sender knew of the drain is still answered.
        let late = async {
            until("it drains", || async { rig.agent.status(1 << 20).await.unwrap().apps[0].draining }).await;
            rig.get("probe/1/main", "/").await
        };
        tokio::join!(rig.drain("probe", 1, LONG), late)
    };
    let (slow, (ended, late)) = tokio::join!(slow, drained);
    assert_eq!((slow, ended, late), (Answer::ok("slow"), 0, Answer::ok("probe")));
    assert_eq!(rig.get("probe/1/main", "/").await.fault(), (503, "not-found"));
    assert_eq!(rig.get("probe/2/main", "/").await, Answer::ok("probe"), "the other revision is untouched");
    assert_eq!(rig.agent.status(1 << 20).await.unwrap().apps.len(), 1);
    assert_eq!(rig.drain("probe", 1, LONG).await, 0, "what is gone is drained");
    rig.run(&app).await;
    assert_eq!(rig.get("probe/1/main", "/").await, Answer::ok("probe"), "and may come back");
}

/// Whoever asks for it gives up before a call has ended that has longer.
#[tokio::test]
async fn a_drain_is_finished_also_where_its_asker_hangs_up() {
    let rig = Rig::new().await;
    let app = rig.app("probe", "probe");
    rig.run(&app).await;
    let slow = rig.get("probe/1/main", "/slow?ms=1500");
    let gone = async {
        until("the call is in flight", || async { rig.status("probe").await.in_flight == 1 }).await;
        let stream = UnixStream::connect(rig.dir.path().join(AGENT_SOCKET)).await.unwrap();
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
        let connection = tokio::spawn(connection);
        let drain = Request::post("/v1/apps/probe/revisions/1/drain").header("host", "host");
        let drain = drain.body(Full::<bytes::Bytes>::from(r#"{"deadline_ms":60000}"#)).unwrap();
        let asked = tokio::time::timeout(Duration::from_millis(100), sender.send_request(drain)).await;
        assert!(asked.is_err(), "the call has not ended");
        connection.abort();
        until("it is gone", || async { rig.agent.status(1 << 20).await.unwrap().apps.is_empty() }).await;
    };
    let (slow, ()) = tokio::join!(slow, gone);
    assert_eq!(slow, Answer::ok("slow"), "the call had the time it was given");
    rig.run(&app).await;
    assert_eq!(rig.get("probe/1/main", "/").await, Answer::ok("probe"), "its name is free again");
}

/// The second one has less patience, and both are told of what became of the same calls.
#[tokio::test]
async fn a_drain_that_is_asked_for_twice_is_one() {
    let rig = Rig::new().await;
    let mut app = rig.app("probe", "probe");
    let limits = &mut app.components.values_mut().next().unwrap().limits;
    (limits.cpu, limits.wall) = (Millis::secs(50), Millis::secs(50));
    rig.run(&app).await;
    let park = rig.get("probe/1/main", "/park");
    let start = Instant::now();
    let drains = async {
        until("the call is in flight", || async { rig.status("probe").await.in_flight == 1 }).await;
        let second = async {
            until("it drains", || async { rig.agent.status(1 << 20).await.unwrap().apps[0].draining }).await;
            rig.drain("probe", 1, Duration::from_millis(300)).await
        };
        tokio::join!(rig.drain("probe", 1, LONG), second)
    };
    let (park, ended) = tokio::join!(park, drains);
    assert_eq!((park.fault(), ended), ((504, "timed-out"), (1, 1)));
    assert!(start.elapsed() < Duration::from_secs(30), "{:?}", start.elapsed());
    assert!(rig.agent.status(1 << 20).await.unwrap().apps.is_empty());
}

#[tokio::test]
async fn calls_beyond_the_deadline_are_ended() {
    let rig = Rig::new().await;
    let mut app = rig.app("probe", "probe");
    let limits = &mut app.components.values_mut().next().unwrap().limits;
    (limits.cpu, limits.wall) = (Millis::secs(50), Millis::secs(50));
    rig.run(&app).await;
    let start = Instant::now();
    let calls = async {
        tokio::join!(rig.get("probe/1/main", "/park"), rig.get("probe/1/main", "/spin"), async {
            rig.send(crate::rig::request("probe/1/main", "/bigresponse")).await.unwrap()
        })
    };
    let drained = async {
        until("three calls are in flight", || async { rig.status("probe").await.in_flight == 3 }).await;
        rig.drain("probe", 1, Duration::from_millis(400)).await
    };
    let ((park, spin, stream), ended) = tokio::join!(calls, drained);
    assert_eq!(ended, 3);
    assert_eq!((park.fault(), spin.fault()), ((504, "timed-out"), (504, "timed-out")));
    assert!(stream.into_body().collect().await.is_err());
    assert!(start.elapsed() < Duration::from_secs(40), "{:?}", start.elapsed());
    until("all calls are over", || async { rig.agent.status(1 << 20).await.unwrap().in_flight == 0 }).await;
}

#[tokio::test]
async fn a_drained_host_ends_well() {
    let mut rig = Rig::new().await;
    rig.run(&rig.app("probe", "probe")).await;
    let slow = rig.get("probe/1/main", "/slow?ms=3000");
    let drain = async {
        until("the call is in flight", || async { rig.status("probe").await.in_flight == 1 }).await;
        rig.agent.drain(LONG).await.unwrap().ended
    };
    let (slow, ended) = tokio::join!(slow, drain);
    assert_eq!((slow, ended), (Answer::ok("slow"), 0));
    rig.ended().await.unwrap();
}

#[tokio::test]
async fn a_host_without_its_node_ends() {
    let mut rig = Rig::new().await;
    rig.run(&rig.app("probe", "probe")).await;
    rig.node.end();
    assert!(matches!(rig.ended().await, Err(HostError::NodeGone)));

    let nobody = || {
        let dir = tempfile::tempdir().unwrap();
        let listen = |name: &str| std::os::unix::net::UnixListener::bind(dir.path().join(name)).unwrap();
        let (node, _) = std::os::unix::net::UnixStream::pair().unwrap();
        host::Handed { agent: listen("a"), data: listen("d"), line: listen("l"), node }
    };
    let args = host::HostArgs { tenant: "acme".parse().unwrap(), shard: 0 };
    let (one, handed) = (args.clone(), nobody());
    let alone = tokio::task::spawn_blocking(move || host::run(one, handed, || Ok::<(), String>(()))).await.unwrap();
    assert!(matches!(alone, Err(HostError::Node(_))));
    let bare = tokio::task::spawn_blocking(move || host::run(args, nobody(), || Err("no"))).await.unwrap();
    assert!(matches!(bare, Err(HostError::Confinement(why)) if why == "no"), "nothing runs that is not confined");
}
