//! The ingress beside another server, hyper's: the same bytes go to both. Whatever gets to a host the other one reads as the
//! same requests, in the same order, each with the same end.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::AsyncWriteExt as _;

use super::rig::{PATIENCE, Rig};
use super::vectors::refused;

/// A request as it was understood, whole.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Understood {
    method: String,
    target: String,
    host: String,
    body: Bytes,
}

/// How many damaged requests there are of each good one.
const DAMAGED: usize = 60;

/// Good requests, and how many each is.
const GOOD: [(&str, usize); 6] = [
    ("POST /a?b=c HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\nabc", 1),
    ("POST /a HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n1\r\nd\r\n0\r\nx: y\r\n\r\n", 1),
    ("GET http://h/a HTTP/1.1\r\nHost: h\r\nX-A: b\r\n\r\n", 1),
    ("GET /a HTTP/1.1\r\nhost:H\r\nX_B:\r\nX-C: \t c \r\n\r\n", 1),
    ("PUT /a HTTP/1.1\r\nHOST: h\r\nContent-Length: 0003\r\nX-Forwarded-For: a\r\n\r\nabc", 1),
    ("GET /1 HTTP/1.1\r\nHost: h\r\n\r\nPOST /2 HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\n\r\nxy", 2),
];

/// Comes behind each of them: whoever finds another end of what is before it reads another request.
const LAST: &str = "GET /last HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n";

/// What the other server makes of the bytes, of which no more come.
async fn other(bytes: &[u8]) -> Vec<Understood> {
    let (mut client, server) = tokio::io::duplex(1 << 20);
    client.write_all(bytes).await.unwrap();
    client.shutdown().await.unwrap();
    let all = Arc::new(Mutex::new(Vec::new()));
    let record = Arc::clone(&all);
    let service = service_fn(move |request: Request<Incoming>| {
        let record = Arc::clone(&record);
        async move {
            let (parts, body) = request.into_parts();
            let body = body.collect().await?.to_bytes();
            let host = parts.headers.get("host").map_or(&b""[..], |host| host.as_bytes());
            record.lock().unwrap().push(Understood {
                method: parts.method.to_string(),
                target: parts.uri.path_and_query().map_or("/", |path| path.as_str()).to_owned(),
                host: String::from_utf8_lossy(host).to_ascii_lowercase(),
                body,
            });
            Ok::<_, hyper::Error>(Response::new(Full::new(Bytes::new())))
        }
    });
    let mut builder = hyper::server::conn::http1::Builder::new();
    let serving = builder.max_headers(128).half_close(true).serve_connection(TokioIo::new(server), service);
    // Its own refusals are not ours to judge.
    drop(tokio::time::timeout(PATIENCE, serving).await.expect("the other server does not end"));
    // Its answers, which nobody reads, had somewhere to go.
    drop(client);
    std::mem::take(&mut *all.lock().unwrap())
}

/// What gets to a host of the same bytes, whole.
async fn ours(rig: &Rig, bytes: &[u8]) -> Vec<Understood> {
    rig.exchange(bytes).await;
    let whole = rig.seen().into_iter().map_while(|seen| {
        let host = seen.headers.get("host").map_or(&b""[..], |host| host.as_bytes());
        Some(Understood {
            host: String::from_utf8_lossy(host).to_ascii_lowercase(),
            method: seen.method,
            target: seen.target,
            body: seen.body?,
        })
    });
    whole.collect()
}

/// One change: a byte that means something put in, put in the place of another, or taken out; or a line said again.
fn damaged(good: &[u8], random: &mut impl FnMut(usize) -> usize) -> Vec<u8> {
    const MEANING: &[u8] = b"\r\n \t:;,0134fxGH/_-\0\x0b\x80";
    let (mut bytes, at, byte) = (good.to_vec(), random(good.len()), MEANING[random(MEANING.len())]);
    match random(4) {
        0 => bytes.insert(at, byte),
        1 => bytes[at] = byte,
        2 => {
            bytes.remove(at);
        }
        _ => {
            let lines: Vec<&[u8]> = good.split_inclusive(|byte| *byte == b'\n').collect();
            let (from, to) = (random(lines.len()), random(lines.len()));
            bytes = [&lines[..to], &lines[from..=from], &lines[to..]].concat().concat();
        }
    }
    bytes
}

#[tokio::test]
async fn what_gets_to_a_host_another_server_reads_as_the_same_requests() {
    // What is not whole is not waited for; a client that is late has sent nothing, and shows nothing.
    let soon = Duration::from_millis(50);
    let rig =
        Rig::with(1, |config| (config.header_timeout, config.body_timeout, config.keep_alive) = (soon, soon, soon));
    // The same in each run.
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        usize::try_from(state % below as u64).unwrap()
    };
    let mut inputs: Vec<Vec<u8>> = refused().into_iter().map(|(_, bytes, _)| bytes.into_bytes()).collect();
    for (good, _) in GOOD {
        inputs.extend((0..DAMAGED).map(|_| damaged(good.as_bytes(), &mut random)));
    }
    let (mut forwarded, mut differ) = (0, Vec::new());
    for input in inputs {
        let bytes = [&input[..], LAST.as_bytes()].concat();
        let (ours, theirs) = (ours(&rig, &bytes).await, other(&bytes).await);
        forwarded += usize::from(!ours.is_empty());
        if !theirs.starts_with(&ours) {
            differ.push(format!("{:?}: {ours:?}, the other reads {theirs:?}", String::from_utf8_lossy(&bytes)));
        }
    }
    assert!(differ.is_empty(), "{}", differ.join("\n"));
    println!("{forwarded} damaged ones were requests all the same");
}

#[tokio::test]
async fn good_requests_are_the_same_to_both_servers() {
    let rig = Rig::new(1);
    for (good, count) in GOOD {
        let bytes = [good, LAST].concat();
        let (ours, theirs) = (ours(&rig, bytes.as_bytes()).await, other(bytes.as_bytes()).await);
        assert_eq!(ours, theirs, "{good:?}");
        assert_eq!(ours.len(), count + 1, "{good:?}");
    }
}
