//! Calls over a line: they do not wait for one another, an answer that streams is fetched, and nobody's call goes on.

use std::time::Duration;

use api::agent::{DATA_SOCKET, ROUTE_HEADER};
use api::data_line::{self, CLAIM_HEADER, Frame, Kind};
use bytes::{Bytes, BytesMut};
use http::Request;
use http_body_util::{BodyExt as _, Full};
use model::World;
use model::unit::Millis;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;

use crate::rig::{Rig, until};

/// The ingress's end of a line.
struct Line {
    stream: UnixStream,
    buffer: BytesMut,
}

impl Line {
    async fn to(rig: &Rig) -> Self {
        let socket = data_line::socket(&rig.dir.path().join(DATA_SOCKET));
        Self { stream: UnixStream::connect(socket).await.unwrap(), buffer: BytesMut::new() }
    }

    async fn say(&mut self, frames: &[(Kind, u64, String)]) {
        let mut out = BytesMut::new();
        for (kind, call, content) in frames {
            assert!(data_line::push(&mut out, *kind, *call, |out| out.extend_from_slice(content.as_bytes())));
        }
        self.stream.write_all(&out).await.unwrap();
    }

    async fn ask(&mut self, call: u64, route: &str, target: &str) {
        self.say(&[(Kind::Call, call, get(route, target))]).await;
    }

    /// The next frame; `None` once the host has closed.
    async fn next(&mut self) -> Option<Frame> {
        let reading = async {
            loop {
                if let Some(frame) = data_line::take(&mut self.buffer).unwrap() {
                    return Some(frame);
                }
                if self.stream.read_buf(&mut self.buffer).await.unwrap_or(0) == 0 {
                    return None;
                }
            }
        };
        tokio::time::timeout(Duration::from_secs(60), reading).await.expect("no frame came")
    }

    async fn answer(&mut self) -> (u64, String) {
        let frame = self.next().await.expect("the line goes on");
        assert_eq!(frame.kind, Kind::Answer, "{frame:?}");
        (frame.call, String::from_utf8(frame.content.to_vec()).unwrap())
    }
}

fn get(route: &str, target: &str) -> String {
    format!("GET {target} HTTP/1.1\r\nhost: app.localhost:8080\r\n{ROUTE_HEADER}: {route}\r\n\r\n")
}

fn claim(frame: &Frame) -> Request<Full<Bytes>> {
    assert_eq!(frame.kind, Kind::Claim, "{frame:?}");
    Request::get("/").header(CLAIM_HEADER, &*frame.content).body(Full::default()).unwrap()
}

#[tokio::test]
async fn calls_of_one_line_do_not_wait_for_one_another() {
    let rig = Rig::new().await;
    rig.run(&rig.app("probe", "probe")).await;
    let mut line = Line::to(&rig).await;
    let post =
        format!("POST /echo HTTP/1.1\r\nhost: h\r\n{ROUTE_HEADER}: probe/1/main\r\ncontent-length: 5\r\n\r\nhello");
    line.say(&[
        (Kind::Call, 1, get("probe/1/main", "/slow?ms=3000")),
        (Kind::Call, 2, post),
        (Kind::Call, 3, get("probe/2/main", "/")),
        (Kind::Call, 4, "GET / HTTP/1.1\r\nhost: h\r\ncontent-length: 3\r\n\r\n".to_owned()),
    ])
    .await;
    let (call, echo) = line.answer().await;
    assert_eq!(call, 2);
    assert!(echo.starts_with("HTTP/1.1 200 \r\n") && echo.contains("\r\ndate: "), "{echo}");
    assert!(echo.ends_with("\r\ncontent-length: 5\r\n\r\nhello"), "{echo}");
    let (call, unknown) = line.answer().await;
    assert!(call == 3 && unknown.contains("sidereal-fault: not-found\r\n"), "{unknown}");
    let (call, malformed) = line.answer().await;
    assert!(call == 4 && malformed.starts_with("HTTP/1.1 400 "), "{malformed}");
    let (call, slow) = line.answer().await;
    assert!(call == 1 && slow.ends_with("\r\n\r\nslow"), "{slow}");
    until("all calls are over", || async { rig.status("probe").await.in_flight == 0 }).await;
}

#[tokio::test]
async fn an_answer_that_streams_is_fetched_once() {
    let rig = Rig::new().await;
    rig.run(&rig.app("probe", "probe")).await;
    let mut line = Line::to(&rig).await;
    line.ask(9, "probe/1/main", "/bigresponse?bytes=3000000").await;
    let told = line.next().await.unwrap();
    assert_eq!(told.call, 9);
    let response = rig.send(claim(&told)).await.unwrap();
    assert_eq!(response.status(), 200);
    assert_eq!(response.into_body().collect().await.unwrap().to_bytes().len(), 3_000_000);
    assert_eq!(rig.answer(claim(&told)).await.status, 500, "it is handed over once");
    let forged = Frame { kind: Kind::Claim, call: 0, content: Bytes::from_static(b"77.x") };
    assert_eq!(rig.answer(claim(&forged)).await.status, 500);
}

#[tokio::test]
async fn an_answer_whose_guest_failed_before_it_was_fetched_is_that_fault() {
    let rig = Rig::new().await;
    let mut app = rig.app_in("probe", "probe-p3", World::P3);
    app.components.values_mut().next().unwrap().limits.cpu = Millis(100);
    rig.run(&app).await;
    let mut line = Line::to(&rig).await;
    // It writes the begin of its answer, and loops until its limit.
    line.ask(5, "probe/1/main", "/spin-late").await;
    let told = line.next().await.unwrap();
    until("the guest has failed", || async { rig.status("probe").await.failed == 1 }).await;
    let answer = rig.answer(claim(&told)).await;
    assert_eq!(answer.fault(), (500, "limit-reached"), "{answer:?}");
    assert!(answer.text.contains("of CPU time"), "{answer:?}");
    let status = rig.status("probe").await;
    assert_eq!((status.in_flight, status.failed), (0, 1));
    assert!(status.last_fault.is_some_and(|fault| fault.contains("of CPU time")));
}

#[tokio::test]
async fn a_call_ends_when_it_is_cancelled_or_its_line_does() {
    let rig = Rig::new().await;
    rig.run(&rig.app("probe", "probe")).await;
    let waits = |count: u32| {
        let rig = &rig;
        until("the calls in flight are as many as expected", move || async move {
            rig.status("probe").await.in_flight == count
        })
    };
    let mut line = Line::to(&rig).await;
    line.ask(1, "probe/1/main", "/slow?ms=60000").await;
    line.ask(2, "probe/1/main", "/bigresponse?bytes=50000000").await;
    let told = line.next().await.unwrap();
    waits(2).await;
    line.say(&[(Kind::Cancel, 1, String::new())]).await;
    waits(1).await;
    // One whose answer waits to be asked for.
    line.say(&[(Kind::Cancel, 2, String::new())]).await;
    waits(0).await;
    assert_eq!(rig.answer(claim(&told)).await.status, 500);
    line.ask(3, "probe/1/main", "/slow?ms=60000").await;
    line.ask(4, "probe/1/main", "/bigresponse?bytes=50000000").await;
    line.next().await.unwrap();
    waits(2).await;
    drop(line);
    waits(0).await;
}

#[tokio::test]
async fn a_line_that_breaks_the_rules_is_closed() {
    let rig = Rig::new().await;
    for breach in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]] {
        let mut line = Line::to(&rig).await;
        line.stream.write_all(breach).await.unwrap();
        assert_eq!(line.next().await, None);
    }
}

#[tokio::test]
async fn a_host_that_ends_answers_what_was_sent() {
    let mut rig = Rig::new().await;
    rig.run(&rig.app("probe", "probe")).await;
    let mut line = Line::to(&rig).await;
    line.ask(1, "probe/1/main", "/slow?ms=3000").await;
    until("the call runs", || async { rig.status("probe").await.in_flight == 1 }).await;
    let drain = rig.agent.drain(Duration::from_secs(60));
    let answered = async {
        let (_, slow) = line.answer().await;
        assert!(slow.ends_with("\r\n\r\nslow"), "{slow}");
        assert_eq!(line.next().await, None);
    };
    let (drained, ()) = tokio::join!(drain, answered);
    drained.unwrap();
    rig.ended().await.unwrap();
}
