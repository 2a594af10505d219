//! Requests over the line of a host: many at once, whole answers, answers that are fetched, and hosts that talk nonsense on it.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use api::data_line::{self, CLAIM_HEADER, Frame, Kind};
use bytes::{Bytes, BytesMut};
use node::ingress::{Shard, ShardSet};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::mpsc;

use super::rig::{Host, PATIENCE, Rig, body, read_to_end, read_until, status};

const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nline";

/// The line of a host, in the hands of a test: frames that came, and a way to send some back.
struct Line {
    came: mpsc::UnboundedReceiver<Frame>,
    stream: tokio::net::unix::OwnedWriteHalf,
}

impl Line {
    fn on(stream: UnixStream) -> Self {
        let (mut read, stream) = stream.into_split();
        let (sender, came) = mpsc::unbounded_channel();
        tokio::spawn(async move {
            let mut buffer = BytesMut::new();
            loop {
                while let Some(frame) = data_line::take(&mut buffer).unwrap() {
                    if sender.send(frame).is_err() {
                        return;
                    }
                }
                if read.read_buf(&mut buffer).await.unwrap_or(0) == 0 {
                    return;
                }
            }
        });
        Self { came, stream }
    }

    async fn next(&mut self) -> Frame {
        tokio::time::timeout(PATIENCE, self.came.recv()).await.expect("nothing came").expect("it ended")
    }

    async fn say(&mut self, kind: Kind, call: u64, content: &[u8]) {
        let mut out = BytesMut::new();
        assert!(data_line::push(&mut out, kind, call, |out| out.extend_from_slice(content)));
        self.stream.write_all(&out).await.unwrap();
    }
}

/// An ingress in front of one host with a line, which is connected already, and a data socket that answers for itself.
async fn rig() -> (Rig, Line, UnixListener) {
    rig_that_waits(PATIENCE).await
}

/// The same, whose ingress gives up a host after so long.
async fn rig_that_waits(patience: Duration) -> (Rig, Line, UnixListener) {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("0.sock");
    let listener = UnixListener::bind(data_line::socket(&socket)).unwrap();
    let shards = ShardSet::new(vec![Shard::new(0, &socket)]);
    let mut rig = Rig::to(shards, dir, |config| config.request_timeout = patience);
    rig.hosts = VecDeque::from([Host::start(0, &socket, rig.record.clone())]);
    // The first request finds no line and asks for one.
    assert_eq!(status(&rig.get("/first").await), 200);
    let (stream, _) = listener.accept().await.unwrap();
    let mut line = Line::on(stream);
    until_used(&rig, &mut line).await;
    rig.seen();
    (rig, line, listener)
}

/// Asks until the ingress has learnt that it has the line.
async fn until_used(rig: &Rig, line: &mut Line) {
    let answers = async {
        loop {
            let frame = line.next().await;
            line.say(Kind::Answer, frame.call, OK.as_bytes()).await;
        }
    };
    let asked = async { while body(&rig.get("/used").await) != "line" {} };
    tokio::select! {
        () = asked => {}
        () = answers => {}
    }
}

fn text(frame: &Frame) -> String {
    String::from_utf8(frame.content.to_vec()).unwrap()
}

#[tokio::test]
async fn many_requests_share_a_line_and_each_gets_its_own_answer() {
    let (rig, mut line, _listener) = rig().await;
    let mut clients = Vec::new();
    for n in 0..8 {
        let mut client = rig.connect().await;
        let body = "x".repeat(n);
        client
            .write_all(format!("POST /{n} HTTP/1.1\r\nHost: h\r\nContent-Length: {n}\r\n\r\n{body}").as_bytes())
            .await
            .unwrap();
        clients.push(client);
    }
    let mut calls = Vec::new();
    for _ in 0..8 {
        let frame = line.next().await;
        assert_eq!(frame.kind, Kind::Call);
        let asked = text(&frame);
        assert!(asked.contains("\r\nsidereal-route: shop/1/web\r\n"), "{asked}");
        let number = asked.strip_prefix("POST /").unwrap().split(' ').next().unwrap().to_owned();
        assert_eq!(body(&asked).len().to_string(), number);
        calls.push((frame.call, number));
    }
    // Last come, first served.
    for (call, number) in calls.iter().rev() {
        let answer = format!("HTTP/1.1 201 Created\r\nx-number: {number}\r\ncontent-length: 2\r\n\r\nok");
        line.say(Kind::Answer, *call, answer.as_bytes()).await;
    }
    for (n, mut client) in clients.into_iter().enumerate() {
        let answer = read_until(&mut client, "ok").await;
        assert_eq!(status(&answer), 201);
        assert!(answer.contains(&format!("\r\nx-number: {n}\r\n")), "{answer}");
    }
    assert!(rig.seen().is_empty(), "nothing went over the data socket");
}

#[tokio::test]
async fn what_is_not_whole_has_a_connection_of_its_own() {
    let (rig, _line, _listener) = rig().await;
    let answer = rig
        .exchange(
            "PUT /a HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n1\r\na\r\n0\r\n\r\n",
        )
        .await;
    assert_eq!(status(&answer), 200);
    let answer = rig.exchange("HEAD /b HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n").await;
    assert_eq!(status(&answer), 200);
    assert_eq!(rig.seen().len(), 2);
}

#[tokio::test]
async fn an_answer_that_is_not_whole_is_fetched() {
    let (rig, mut line, _listener) = rig().await;
    let mut client = rig.connect().await;
    client.write_all(b"POST / HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n").await.unwrap();
    let call = line.next().await.call;
    line.say(Kind::Claim, call, b"7.1").await;
    let answer = read_to_end(&mut client).await;
    assert_eq!(status(&answer), 200);
    let seen = rig.seen();
    assert_eq!(seen.len(), 1);
    assert_eq!(seen[0].headers.get(CLAIM_HEADER).unwrap(), "7.1");
}

#[tokio::test]
async fn nonsense_on_a_line_is_not_passed_on() {
    let answers: &[&[u8]] = &[
        b"",
        b"hello",
        b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nlin",
        b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nlines",
        b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\ncontent-length: 4\r\n\r\nline",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n\r\nline",
        b"HTTP/1.1 200 OK\ncontent-length: 4\n\nline",
        b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\nx: a\0b\r\n\r\nline",
        b"HTTP/1.1 200 OK\r\nfolded: a\r\n b\r\ncontent-length: 4\r\n\r\nline",
        b"HTTP/1.1 204 No\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nline",
        b"HTTP/1.1 101 Switching Protocols\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\n",
    ];
    let (rig, mut line, _listener) = rig().await;
    for answer in answers {
        let asked = rig.get("/");
        let told = async {
            let call = line.next().await.call;
            line.say(Kind::Answer, call, answer).await;
        };
        let (response, ()) = tokio::join!(asked, told);
        assert_eq!(status(&response), 502, "{}: {response}", String::from_utf8_lossy(answer));
    }
    for claim in ["", "1.2\r\nx: y", "a", &"1".repeat(65)] {
        let asked = rig.get("/");
        let told = async {
            let call = line.next().await.call;
            line.say(Kind::Claim, call, claim.as_bytes()).await;
        };
        assert_eq!(status(&tokio::join!(asked, told).0), 502, "{claim}");
        assert_eq!(line.next().await.kind, Kind::Cancel, "its host need not keep the answer");
    }
    assert!(rig.seen().is_empty());
}

#[tokio::test]
async fn a_host_that_breaks_the_rules_of_a_line_loses_it_and_requests_go_on() {
    for breach in 0..3 {
        let (rig, mut line, _listener) = rig().await;
        let mut client = rig.connect().await;
        client.write_all(b"POST / HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n").await.unwrap();
        let call = line.next().await.call;
        match breach {
            // An answer to a call nobody made, a frame of the other direction, and what is no frame.
            0 => line.say(Kind::Answer, call + 1, OK.as_bytes()).await,
            1 => line.say(Kind::Call, call, OK.as_bytes()).await,
            _ => line.stream.write_all(OK.as_bytes()).await.unwrap(),
        }
        // It may have run.
        assert_eq!(status(&read_to_end(&mut client).await), 502);
        assert!(line.came.recv().await.is_none(), "the line was closed");
        assert_eq!(body(&rig.get("/next").await), "GET /next from 0");
    }
}

#[tokio::test]
async fn a_lost_line_costs_an_idempotent_request_nothing() {
    let (rig, mut line, listener) = rig().await;
    let mut get = rig.connect().await;
    get.write_all(b"GET /again HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n").await.unwrap();
    let mut post = rig.connect().await;
    post.write_all(b"POST /once HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n").await.unwrap();
    line.next().await;
    line.next().await;
    drop(line);
    assert_eq!(body(&read_to_end(&mut get).await), "GET /again from 0");
    assert_eq!(status(&read_to_end(&mut post).await), 502);
    assert_eq!(rig.seen().len(), 1, "what may have run is not repeated");
    // The next request asks for a line again.
    assert_eq!(status(&rig.get("/").await), 200);
    let mut line = Line::on(listener.accept().await.unwrap().0);
    until_used(&rig, &mut line).await;
}

#[tokio::test]
async fn a_client_that_hangs_up_cancels_its_call_and_no_other() {
    let (rig, mut line, _listener) = rig().await;
    let mut stays = rig.connect().await;
    stays.write_all(b"GET /stays HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n").await.unwrap();
    let staying = line.next().await.call;
    let mut goes = rig.connect().await;
    goes.write_all(b"GET /goes HTTP/1.1\r\nHost: h\r\n\r\n").await.unwrap();
    let going = line.next().await.call;
    drop(goes);
    let cancel = line.next().await;
    assert_eq!((cancel.kind, cancel.call), (Kind::Cancel, going));
    // Its answer was on the way already.
    line.say(Kind::Answer, going, OK.as_bytes()).await;
    line.say(Kind::Answer, staying, OK.as_bytes()).await;
    assert_eq!(body(&read_to_end(&mut stays).await), "line");
}

#[tokio::test]
async fn a_call_that_is_never_answered_ends_in_time() {
    let (rig, mut line, _listener) = rig_that_waits(Duration::from_secs(3)).await;
    let asked = rig.get("/");
    let seen = Arc::new(Mutex::new(Vec::new()));
    let watch = async {
        loop {
            let Frame { kind, content, .. } = line.next().await;
            seen.lock().unwrap().push((kind, content == Bytes::new()));
            if kind == Kind::Cancel {
                return;
            }
        }
    };
    let (response, ()) = tokio::join!(asked, watch);
    assert_eq!(status(&response), 504);
    assert_eq!(*seen.lock().unwrap(), [(Kind::Call, false), (Kind::Cancel, true)]);
}

/// Keeps the helper honest: the socket of a line is beside the data socket.
#[test]
fn the_line_is_beside_the_data_socket() {
    assert_eq!(data_line::socket(Path::new("/x/data.sock")), Path::new("/x/data.line"));
}
