//! An ingress that can open nothing more, in front of a host that does not read its line: what is on the line stays there, and
//! who finds no room on it and can be given no connection is told so.

use std::future::poll_fn;
use std::time::Duration;

use api::data_line::{self, Kind, Wire};
use bytes::BytesMut;
use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use node::ingress::{Shard, ShardSet};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpStream, UnixListener};

use super::rig::{Rig, read_until, status};

/// Set in the process that [`without_descriptors`] is the body of.
const STARVED: &str = "SIDEREAL_TEST_STARVED";
/// Requests at once, and the bytes of each: together more than a line and its socket take.
const CLIENTS: usize = 160;
const BYTES: usize = 12 << 10;

/// A host on its line that answers every call.
async fn serve(wire: &mut Wire) {
    loop {
        let frame = poll_fn(|cx| wire.poll_frame(cx)).await.unwrap();
        assert_eq!(frame.kind, Kind::Call);
        let mut out = BytesMut::new();
        let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
        assert!(data_line::push(&mut out, Kind::Answer, frame.call, |out| out.extend_from_slice(answer)));
        poll_fn(|cx| wire.poll_flush(cx, &mut out)).await.unwrap();
    }
}

/// The status of the next answer.
async fn answered(client: &mut TcpStream) -> u16 {
    status(&read_until(client, "\r\n\r\n").await)
}

#[test]
fn without_descriptors_a_full_line_loses_nothing_and_the_rest_is_refused() {
    // In a process of its own: what it may not open, no other test of this one could either.
    let mut child = std::process::Command::new(std::env::current_exe().unwrap());
    child.args(["--exact", "ingress::starved::without_descriptors", "--ignored"]).env(STARVED, "1");
    let output = child.output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.contains("1 passed"), "{said}");
}

#[tokio::test]
#[ignore = "the body of a child process"]
async fn without_descriptors() {
    if std::env::var_os(STARVED).is_none() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("0.sock");
    let listener = UnixListener::bind(data_line::socket(&socket)).unwrap();
    let shards = ShardSet::new(vec![Shard::new(0, &socket)]);
    let rig = Rig::to(shards, dir, |config| config.shard_wait = Duration::from_secs(5));
    // The host has nothing but a line yet: whoever comes waits for that.
    let mut clients = Vec::new();
    let mut wire = None;
    for _ in 0..CLIENTS {
        let mut client = rig.connect().await;
        client.write_all(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n").await.unwrap();
        let wire = match &mut wire {
            Some(wire) => wire,
            None => wire.insert(Wire::new(listener.accept().await.unwrap().0).unwrap()),
        };
        let first = tokio::select! {
            () = serve(wire) => unreachable!("it serves for ever"),
            first = answered(&mut client) => first,
        };
        assert_eq!(first, 200);
        clients.push(client);
    }
    let mut wire = wire.unwrap();
    // A connection would hang here, if one could be had.
    let _deaf = UnixListener::bind(&socket).unwrap();
    let limit = Rlimit { current: Some(0), maximum: getrlimit(Resource::Nofile).maximum };
    setrlimit(Resource::Nofile, limit).unwrap();

    // All in the head: so it is whole when it is sent.
    let long = "x".repeat(BYTES / 3);
    let request = format!("POST / HTTP/1.1\r\nHost: h\r\nA: {long}\r\nB: {long}\r\nC: {long}\r\n\r\n");
    for client in &mut clients {
        client.write_all(request.as_bytes()).await.unwrap();
    }
    let mut answers: FuturesUnordered<_> = clients.iter_mut().map(answered).collect();
    // The host reads nothing: so far there is nobody but those that it can get nothing of.
    assert_eq!(answers.next().await, Some(503));
    let mut statuses = Vec::new();
    tokio::select! {
        () = serve(&mut wire) => unreachable!("it serves for ever"),
        () = async { while let Some(status) = answers.next().await { statuses.push(status) } } => {}
    }
    let served = statuses.iter().filter(|status| **status == 200).count();
    let refused = statuses.iter().filter(|status| **status == 503).count();
    assert!(served > 0 && served + refused == CLIENTS - 1, "{statuses:?}");
}
