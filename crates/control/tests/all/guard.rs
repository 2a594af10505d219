//! Who may speak to the API, and in which form: on the wire, byte by byte.

use std::net::SocketAddr;

use api::Problem;
use api::client::{ClientError, ControlClient};
use api::problem::Code;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::rig::{PATIENCE, Rig, TOKEN, name, refused};

/// Sends a request as it is and answers with status, head and body.
pub(crate) async fn raw(addr: SocketAddr, request: &str) -> (u16, String, String) {
    let mut stream = TcpStream::connect(addr).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    (status, head.to_ascii_lowercase(), body.to_owned())
}

pub(crate) async fn code(addr: SocketAddr, line: &str, headers: &str, body: &str) -> (u16, Code) {
    let length = if body.is_empty() { String::new() } else { format!("content-length: {}\r\n", body.len()) };
    let request = format!("{line} HTTP/1.1\r\nconnection: close\r\n{headers}{length}\r\n{body}");
    let (status, head, body) = raw(addr, &request).await;
    assert!(head.contains("content-type: application/problem+json"), "{line}: {head}");
    let problem: Problem = serde_json::from_str(&body).unwrap();
    let document: serde_json::Value = serde_json::from_str(&body).unwrap();
    assert_eq!(document["status"], status);
    assert_eq!(document["type"], format!("urn:sidereal:problem:{}", problem.code.as_str()));
    (status, problem.code)
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_token_nothing_is_answered_but_health() {
    let rig = Rig::without_node().await;
    let host = format!("host: {}\r\n", rig.addr);
    let paths = [
        "/v1/version",
        "/v1/tenants",
        "/v1/tenants/t",
        "/v1/tenants/t/apps/x/logs",
        "/v1/events",
        "/v1/openapi.json",
        "/",
        "/nothing",
        "/v1/healthz/x",
    ];
    for path in paths {
        for auth in ["", "authorization: Bearer wrong-token-of-32-characters-xxx\r\n", "authorization: Basic eDp5\r\n"]
        {
            let (status, code) = code(rig.addr, &format!("GET {path}"), &format!("{host}{auth}"), "").await;
            assert_eq!((status, code), (401, Code::Unauthorized), "{path} {auth}");
        }
    }
    let request = format!("GET /v1/healthz HTTP/1.1\r\n{host}connection: close\r\n\r\n");
    let (status, head, body) = raw(rig.addr, &request).await;
    assert_eq!((status, body.as_str()), (200, "ok\n"));
    assert!(head.contains("cache-control: no-store") && head.contains("x-content-type-options: nosniff"), "{head}");
    let stranger = ControlClient::new(rig.addr, "another-token-of-32-characters-xx");
    assert_eq!(refused(stranger.tenants().await).code, Code::Unauthorized);
    stranger.health().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn only_our_own_names_and_pages_even_with_the_token() {
    let rig = Rig::without_node().await;
    let auth = format!("authorization: Bearer {TOKEN}\r\n");
    let port = rig.addr.port();
    for headers in [
        "host: evil.example\r\n".to_owned(),
        format!("host: evil.example:{port}\r\n"),
        format!("host: app.localhost:{port}\r\n"),
        "host: localhost\r\n".to_owned(),
        String::new(),
        format!("host: localhost:{port}\r\norigin: http://evil.example\r\n"),
        format!("host: localhost:{port}\r\norigin: null\r\n"),
        format!("host: localhost:{port}\r\norigin: http://app.localhost:{port}\r\n"),
    ] {
        // Health too: a page that rebinds its name must not even learn that we are here.
        for path in ["/v1/version", "/v1/healthz"] {
            let found = code(rig.addr, &format!("GET {path}"), &format!("{headers}{auth}"), "").await;
            assert_eq!(found, (403, Code::Forbidden), "{headers}");
        }
    }
    let own = format!(
        "GET /v1/version HTTP/1.1\r\nhost: localhost:{port}\r\norigin: http://localhost:{port}\r\n{auth}connection: close\r\n\r\n"
    );
    assert_eq!(raw(rig.addr, &own).await.0, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_known_is_refused_not_ignored() {
    let rig = Rig::without_node().await;
    let common = format!("host: {}\r\nauthorization: Bearer {TOKEN}\r\n", rig.addr);
    let json = format!("{common}content-type: application/json\r\n");
    let rows: &[(&str, &str, &str, (u16, Code))] = &[
        ("GET /v1/nothing", &common, "", (404, Code::NotFound)),
        ("PATCH /v1/tenants/t", &common, "", (405, Code::RequestInvalid)),
        ("GET /v1/tenants/UPPER", &common, "", (400, Code::RequestInvalid)),
        ("GET /v1/tenants/%2e%2e", &common, "", (400, Code::RequestInvalid)),
        ("GET /v1/tenants/nobody", &common, "", (404, Code::NotFound)),
        ("GET /v1/tenants/t/apps/x", &common, "", (404, Code::NotFound)),
        ("DELETE /v1/tenants/t/apps/x", &common, "", (404, Code::NotFound)),
        ("GET /v1/tenants/t/apps/x/revisions", &common, "", (404, Code::NotFound)),
        ("GET /v1/tenants/t/apps/x/logs", &common, "", (404, Code::NotFound)),
        ("GET /v1/events?tenan=t", &common, "", (400, Code::RequestInvalid)),
        ("GET /v1/events?app=x", &common, "", (400, Code::RequestInvalid)),
        ("GET /v1/events", &format!("{common}last-event-id: soon\r\n"), "", (400, Code::RequestInvalid)),
        ("PUT /v1/tenants/t/blobs/sha256:zz", &common, "x", (400, Code::RequestInvalid)),
        ("PUT /v1/tenants/t", &json, r#"{"shard":1}"#, (400, Code::RequestInvalid)),
        ("PUT /v1/tenants/t", &json, r#"{"ceilings":{"cpus":1}}"#, (400, Code::RequestInvalid)),
        ("PUT /v1/tenants/t", &json, r#"{"shards":1} x"#, (400, Code::RequestInvalid)),
        ("PUT /v1/tenants/t", &json, r#"{"shards":1}"#, (428, Code::RequestInvalid)),
        ("PUT /v1/tenants/t", &common, r#"{"shards":1}"#, (415, Code::RequestInvalid)),
        (
            "PUT /v1/tenants/t",
            &format!("{common}content-type: text/plain\r\n"),
            r#"{"shards":1}"#,
            (415, Code::RequestInvalid),
        ),
        ("PUT /v1/tenants/t", &format!("{json}if-match: x\r\n"), "{}", (400, Code::RequestInvalid)),
        ("PUT /v1/tenants/t", &format!("{json}if-match: 1\r\nif-match: 1\r\n"), "{}", (400, Code::RequestInvalid)),
        ("PUT /v1/tenants/t", &format!("{json}if-none-match: 1\r\n"), "{}", (400, Code::RequestInvalid)),
        ("POST /v1/tenants/t/apps/x/rollback", &json, r#"{"too":1}"#, (400, Code::RequestInvalid)),
        (
            "POST /v1/tenants/t/apps/x/links",
            &json,
            r#"{"contract":"a:b","provider":"../x"}"#,
            (400, Code::RequestInvalid),
        ),
        (
            "POST /v1/tenants/t/apps/x/revisions",
            &json,
            r#"{"app":{"name":"x","components":{},"extra":1}}"#,
            (400, Code::RequestInvalid),
        ),
    ];
    for (line, headers, body, expected) in rows {
        assert_eq!(code(rig.addr, line, headers, body).await, *expected, "{line} {body}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn large_bodies_are_refused() {
    let rig = Rig::without_node().await;
    let common = format!("host: {}\r\nauthorization: Bearer {TOKEN}\r\ncontent-type: application/json\r\n", rig.addr);
    let long = format!(r#"{{"shards":1,"revoked":["{}"]}}"#, "x".repeat(api::control::MAX_JSON));
    // The whole body is sent: what the server does not read must not hide its answer from a client that goes on sending.
    let found = code(rig.addr, "PUT /v1/tenants/t", &common, &long).await;
    assert_eq!(found, (413, Code::TooLarge));
    let announced = format!("{common}content-length: {}\r\n", api::control::MAX_BLOB + 1);
    let digest = model::Digest::of(b"x");
    assert_eq!(
        code(rig.addr, &format!("PUT /v1/tenants/t/blobs/{digest}"), &announced, "").await,
        (413, Code::TooLarge)
    );
    let chunked = format!("{common}transfer-encoding: chunked\r\n");
    let mut stream = TcpStream::connect(rig.addr).await.unwrap();
    let head = format!("PUT /v1/tenants/t/blobs/{digest} HTTP/1.1\r\n{chunked}connection: close\r\n\r\n");
    stream.write_all(head.as_bytes()).await.unwrap();
    let chunk = [b"100000\r\n".as_slice(), &vec![0; 1 << 20], b"\r\n"].concat();
    let mut answer = vec![0; 12];
    let (mut reader, mut writer) = stream.split();
    let sending = async {
        for _ in 0..64 {
            if writer.write_all(&chunk).await.is_err() {
                break;
            }
        }
        std::future::pending::<()>().await;
    };
    tokio::select! {
        () = sending => {}
        read = reader.read_exact(&mut answer) => { read.unwrap(); }
    }
    assert_eq!(String::from_utf8_lossy(&answer), "HTTP/1.1 413");
    assert!(!rig.blobs.has(&digest));
}

#[tokio::test(flavor = "multi_thread")]
async fn uploads_that_send_nothing_hold_up_nobody() {
    let rig = Rig::new().await;
    let digest = model::Digest::of(b"never sent");
    let head = format!(
        "PUT /v1/tenants/t/blobs/{digest} HTTP/1.1\r\nhost: {}\r\nauthorization: Bearer {TOKEN}\r\ncontent-length: 1000000\r\n\r\n",
        rig.addr
    );
    let mut stalled = Vec::new();
    for n in 0..8 {
        let mut stream = TcpStream::connect(rig.addr).await.unwrap();
        stream.write_all(head.as_bytes()).await.unwrap();
        // Half of them begin.
        stream.write_all(&vec![0; 1000 * (n % 2)]).await.unwrap();
        stalled.push(stream);
    }
    let start = std::time::Instant::now();
    assert_eq!(rig.deploy("counter", 1).await.revision.0, 1);
    // They are given up after 10 s.
    assert!(start.elapsed().as_secs() < 9, "it waited for the stalled ones: {:?}", start.elapsed());
    // They are not kept for ever; nor is a connection that never says what it wants.
    let mut silent = TcpStream::connect(rig.addr).await.unwrap();
    silent.write_all(b"GET /v1/healthz HTTP/1.1\r\n").await.unwrap();
    let mut ended = Vec::new();
    for stream in &mut stalled {
        let mut answer = String::new();
        tokio::time::timeout(PATIENCE, stream.read_to_string(&mut answer)).await.unwrap().unwrap();
        ended.push(answer.split(' ').nth(1).unwrap().to_owned());
    }
    assert_eq!(ended, ["408"; 8]);
    let read = tokio::time::timeout(PATIENCE, silent.read_to_end(&mut Vec::new())).await;
    read.expect("the connection is ended").unwrap();
    assert!(!rig.blobs.has(&digest));
}

#[tokio::test(flavor = "multi_thread")]
async fn artifacts_are_what_their_digest_says() {
    let rig = Rig::without_node().await;
    let (right, wrong) = (model::Digest::of(b"right"), model::Digest::of(b"wrong"));
    assert!(!rig.client.has_blob(&name("t"), &right).await.unwrap());
    assert_eq!(refused(rig.client.put_blob(&name("t"), &wrong, "right".into()).await).code, Code::ArtifactMissing);
    rig.client.put_blob(&name("t"), &right, "right".into()).await.unwrap();
    assert!(rig.client.has_blob(&name("t"), &right).await.unwrap());
    assert!(!rig.client.has_blob(&name("t"), &wrong).await.unwrap());
    // What the disk spoiled counts as missing, and sending it again heals it.
    std::fs::write(rig.blobs.path(&right), b"rihgt").unwrap();
    assert!(!rig.client.has_blob(&name("t"), &right).await.unwrap());
    rig.client.put_blob(&name("t"), &right, "right".into()).await.unwrap();
    assert!(rig.client.has_blob(&name("t"), &right).await.unwrap());
    assert_eq!(rig.blobs.get(&right).unwrap(), "right");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_not_there_is_said_with_its_address_and_a_remedy() {
    let mut rig = Rig::without_node().await;
    let addr = rig.addr;
    rig.shutdown().await;
    let error = rig.client.tenant(&name("t")).await.unwrap_err();
    assert!(matches!(error, ClientError::Unreachable { .. }), "{error:?}");
    let text = error.to_string();
    assert!(text.contains(&addr.to_string()) && text.contains("sidereal up") && text.contains("refused"), "{text}");
    assert_eq!(error.problem().code, Code::Unreachable);
}
